//! `mma.sync`, `ldmatrix`, `stmatrix` and `movmatrix`: layouts after the element formulas of PTX ISA §9.7.15.

use ptxsim::{Argument, Machine, Module, Options};

use crate::{HEADER, Random};

/// Runs a body with 32 bytes of input (8 words) and 16 bytes of output per lane.
fn run(body: &str, input: &[[u32; 8]; 32]) -> [[u32; 4]; 32] {
    let text = format!(
        "{HEADER}.visible .entry test(.param .u64 in, .param .u64 out)\n{{\n.reg .b64 %rd<9>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b32 d<4>; .reg .b32 s<8>;\n\
         ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %rd3, %r1, 32; add.s64 %rd1, %rd1, %rd3; mul.wide.u32 %rd3, %r1, 16; add.s64 %rd2, %rd2, %rd3;\n\
         ld.global.v4.u32 {{s0, s1, s2, s3}}, [%rd1]; ld.global.v4.u32 {{s4, s5, s6, s7}}, [%rd1+16];\n\
         mov.u32 d0, 0; mov.u32 d1, 0; mov.u32 d2, 0; mov.u32 d3, 0;\n{body}\n\
         st.global.v4.u32 [%rd2], {{d0, d1, d2, d3}};\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut machine = Machine::new(Options::default());
    let (x, y) = (machine.allocate(1024, "in"), machine.allocate(512, "out"));
    let bytes: Vec<u8> = input.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    machine.write(x, &bytes).unwrap();
    let report = machine
        .launch(&module, "test", [1; 3], [32, 1, 1], 0, &[Argument::U64(x), Argument::U64(y)])
        .unwrap();
    assert!(report.findings.is_empty(), "{:?}\n{text}", report.findings);
    let bytes = machine.read(y, 512).unwrap();
    std::array::from_fn(|lane| {
        std::array::from_fn(|i| {
            let at = 16 * lane + 4 * i;
            u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
        })
    })
}

fn small(random: &mut Random) -> f32 {
    // Integers up to 8: every product and sum is exact, so the layout alone decides.
    (random.bits() % 17) as f32 - 8.0
}

fn bf16(x: f32) -> u32 {
    x.to_bits() >> 16
}

fn half(x: f32) -> u32 {
    half::f16::from_f32(x).to_bits().into()
}

/// Element (row, column) of A that part i of a lane's fragment holds, per the ISA's formulas.
fn place_a(k: usize, pairs: bool, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    if pairs {
        let low_row = if k == 16 { i < 2 || (4..6).contains(&i) } else { i < 2 };
        let row = if low_row { group } else { group + 8 };
        (row, thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
    } else {
        let row = if i == 0 || i == 2 { group } else { group + 8 };
        (row, thread + if i < 2 { 0 } else { 4 })
    }
}

fn place_b(pairs: bool, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    if pairs { (thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group) } else { (thread + 4 * i, group) }
}

fn product(k: usize, ty: &str, encode: fn(f32) -> u32, pairs: bool, half_result: bool) {
    let mut random = Random::new(k as u64);
    let a: Vec<Vec<f32>> = (0..16).map(|_| (0..k).map(|_| small(&mut random)).collect()).collect();
    let b: Vec<Vec<f32>> = (0..k).map(|_| (0..8).map(|_| small(&mut random)).collect()).collect();
    let per = if pairs { 2 } else { 1 };
    let (na, nb) = (16 * k / 32 / per, 8 * k / 32 / per);
    let mut input = [[0u32; 8]; 32];
    for (lane, words) in input.iter_mut().enumerate() {
        for i in 0..na * per {
            let (r, c) = place_a(k, pairs, lane, i);
            words[i / per] |= encode(a[r][c]) << (16 * (i % per));
        }
        for i in 0..nb * per {
            let (r, c) = place_b(pairs, lane, i);
            words[na + i / per] |= encode(b[r][c]) << (16 * (i % per));
        }
    }
    let list =
        |from: usize, n: usize| (from..from + n).map(|i| format!("s{i}")).collect::<Vec<_>>().join(", ");
    let result = if half_result { "f16" } else { "f32" };
    let d = if half_result { "d0, d1" } else { "d0, d1, d2, d3" };
    let body = format!(
        "mma.sync.aligned.m16n8k{k}.row.col.{result}.{ty}.{ty}.{result} {{{d}}}, {{{}}}, {{{}}}, {{{d}}};",
        list(0, na),
        list(na, nb)
    );
    let got = run(&body, &input);
    for (lane, words) in got.iter().enumerate() {
        for i in 0..4 {
            let row = (lane >> 2) + if i < 2 { 0 } else { 8 };
            let column = (lane % 4) * 2 + (i & 1);
            let want: f32 = (0..k).map(|x| a[row][x] * b[x][column]).sum();
            let value = if half_result {
                half::f16::from_bits((words[i / 2] >> (16 * (i & 1))) as u16).to_f32()
            } else {
                f32::from_bits(words[i])
            };
            assert_eq!(value, want, "m16n8k{k} {ty}: ({row}, {column})");
        }
    }
}

#[test]
fn products() {
    product(16, "bf16", bf16, true, false);
    product(8, "bf16", bf16, true, false);
    product(16, "f16", half, true, false);
    product(16, "f16", half, true, true);
    product(8, "f16", half, true, false);
    product(8, "tf32", f32::to_bits, false, false);
    product(4, "tf32", f32::to_bits, false, false);
}

#[test]
fn tf32_ignores_the_low_bits() {
    let mut input = [[0u32; 8]; 32];
    for words in &mut input {
        *words = [1f32.to_bits() | 0x1fff; 8];
    }
    let got = run(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {d0, d1, d2, d3}, {s0, s1, s2, s3}, {s4, s5}, {d0, d1, d2, d3};",
        &input,
    );
    assert!(got.iter().flatten().all(|&v| v == 8f32.to_bits()));
}

/// Element (row, column) of matrix m is 1000 m + 10 row + column.
fn matrices() -> [[u32; 8]; 32] {
    let element = |m: usize, r: usize, c: usize| (1000 * m + 10 * r + c) as u32;
    let mut input = [[0; 8]; 32];
    // Lane l writes row l % 8 of matrix l / 8 to shared memory: 16 bytes.
    for (lane, words) in input.iter_mut().enumerate() {
        for w in 0..4 {
            words[w] = element(lane / 8, lane % 8, 2 * w) | element(lane / 8, lane % 8, 2 * w + 1) << 16;
        }
    }
    input
}

const STAGE: &str = ".shared .align 16 .b8 buffer[512]; mov.u64 %rd4, buffer; cvt.u32.u64 %r2, %rd4; mad.lo.u32 %r3, %r1, 16, %r2;
    st.shared.v4.u32 [%r3], {s0, s1, s2, s3}; bar.sync 0;";

#[test]
fn matrix_loads() {
    for (form, count, transposed) in
        [("x4", 4, false), ("x4.trans", 4, true), ("x2", 2, false), ("x1.trans", 1, true)]
    {
        let list = (0..count).map(|i| format!("d{i}")).collect::<Vec<_>>().join(", ");
        let got = run(
            &format!("{STAGE} ldmatrix.sync.aligned.m8n8.{form}.shared.b16 {{{list}}}, [%r3];"),
            &matrices(),
        );
        for (lane, words) in got.iter().enumerate() {
            for (m, &word) in words.iter().enumerate().take(count) {
                let (r, c) = (lane / 4, 2 * (lane % 4));
                let element =
                    |r: usize, c: usize| (1000 * m + if transposed { 10 * c + r } else { 10 * r + c }) as u32;
                assert_eq!(word, element(r, c) | element(r, c + 1) << 16, "{form}, lane {lane}, matrix {m}");
            }
        }
    }
}

#[test]
fn matrix_stores_and_moves_invert_loads() {
    let plain = run(
        &format!("{STAGE} ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{d0, d1, d2, d3}}, [%r3];"),
        &matrices(),
    );
    for (store, load) in [("x4", "x4"), ("x4.trans", "x4.trans")] {
        let got = run(
            &format!(
                "{STAGE} ldmatrix.sync.aligned.m8n8.{load}.shared.b16 {{d0, d1, d2, d3}}, [%r3]; bar.sync 0;
                 stmatrix.sync.aligned.m8n8.{store}.shared.b16 [%r3], {{d0, d1, d2, d3}}; bar.sync 0;
                 ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{d0, d1, d2, d3}}, [%r3];"
            ),
            &matrices(),
        );
        assert_eq!(got, plain);
    }
    let moved = run(
        &format!(
            "{STAGE} ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{d0}}, [%r3]; movmatrix.sync.aligned.m8n8.trans.b16 d0, d0;"
        ),
        &matrices(),
    );
    assert!((0..32).all(|lane| moved[lane][0] == plain[lane][0]));
}
