//! Loads, stores, atomics, generic addresses, local memory and asynchronous copies.

use ptxsim::{Argument, Machine, Module, Options};

use crate::{HEADER, expect, f};

/// Runs one thread over a buffer and returns the buffer.
fn run(body: &str, buffer: &[u8], threads: u32) -> Vec<u8> {
    let text = format!(
        "{HEADER}.visible .entry test(.param .u64 x)\n{{\n.reg .b64 %rd<12>; .reg .b32 %r<20>; .reg .b16 %h<8>; .reg .f32 %f<9>; .reg .f64 %fd<4>; .reg .pred %p<4>;\n\
         ld.param.u64 %rd1, [x]; mov.u32 %r1, %tid.x;\n{body}\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut machine = Machine::new(Options::default());
    let x = machine.allocate(buffer.len(), "x");
    machine.write(x, buffer).unwrap();
    let report = machine.launch(&module, "test", [1; 3], [threads, 1, 1], 0, &[Argument::U64(x)]).unwrap();
    assert!(report.findings.is_empty(), "{:?}\n{text}", report.findings);
    machine.read(x, buffer.len()).unwrap()
}

fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * index..4 * index + 4].try_into().unwrap())
}

#[test]
fn widths_and_extension() {
    let bytes: Vec<u8> = (0x80..0xa0).collect();
    let got = run(
        "ld.global.u8 %r2, [%rd1]; ld.global.s8 %r3, [%rd1+1]; ld.global.u16 %h1, [%rd1+2]; ld.global.s16 %r4, [%rd1+4];
         ld.global.s8 %rd2, [%rd1+5]; cvt.u32.u64 %r6, %rd2; shr.u64 %rd2, %rd2, 32; cvt.u32.u64 %r7, %rd2;
         cvt.u32.u16 %r5, %h1;
         st.global.u32 [%rd1+32], %r2; st.global.u32 [%rd1+36], %r3; st.global.u32 [%rd1+40], %r5; st.global.u32 [%rd1+44], %r4;
         st.global.u32 [%rd1+48], %r6; st.global.u32 [%rd1+52], %r7; st.global.u8 [%rd1+56], %r3; st.global.u16 [%rd1+58], %h1;",
        &[&bytes[..], &[0; 32]].concat(),
        1,
    );
    let want = [0x80, 0xffff_ff81, 0x8382, 0xffff_8584, 0xffff_ff85, 0xffff_ffff, 0x8382_0081];
    for (i, want) in want.into_iter().enumerate() {
        assert_eq!(word(&got, 8 + i), want, "word {i}");
    }
}

#[test]
fn vectors_and_hints() {
    let bytes: Vec<u8> = (0..64).collect();
    let got = run(
        "ld.global.nc.L2::128B.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1]; st.global.cs.v4.u32 [%rd1+16], {%r5, %r4, %r3, %r2};
         ld.global.v2.u64 {%rd2, %rd3}, [%rd1+32]; st.global.wb.v2.u64 [%rd1+48], {%rd3, %rd2};
         ld.global.v2.u16 {%h1, %h2}, [%rd1]; st.global.v2.u16 [%rd1], {%h2, %h1};
         ld.global.v4.u8 {%r6, %r7, %r8, %r9}, [%rd1+4]; st.global.v4.u8 [%rd1+4], {%r9, %r8, %r7, %r6};",
        &bytes,
        1,
    );
    assert_eq!(got[..8], [2, 3, 0, 1, 7, 6, 5, 4]);
    assert_eq!(got[16..32], [12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]);
    assert_eq!(got[48..56], [40, 41, 42, 43, 44, 45, 46, 47]);
}

#[test]
fn generic_addresses_and_local_memory() {
    let got = run(
        ".shared .align 8 .b8 s[16]; .local .align 8 .b8 l[16];
         mov.u64 %rd2, s; cvta.shared.u64 %rd3, %rd2; mov.u32 %r2, 11; st.u32 [%rd3+4], %r2; ld.shared.u32 %r3, [s+4];
         mov.u64 %rd4, l; cvta.local.u64 %rd5, %rd4; add.u32 %r4, %r1, 22; st.u32 [%rd5+8], %r4; ld.local.u32 %r5, [%rd4+8];
         cvta.to.shared.u64 %rd6, %rd3; ld.shared.u32 %r6, [%rd6+4]; cvta.to.global.u64 %rd7, %rd1; cvta.global.u64 %rd8, %rd7;
         isspacep.shared %p1, %rd3; isspacep.local %p2, %rd5; isspacep.global %p3, %rd8; and.pred %p1, %p1, %p2; and.pred %p1, %p1, %p3;
         selp.u32 %r7, 1, 0, %p1;
         st.u32 [%rd8], %r3; st.global.u32 [%rd7+4], %r5; st.global.u32 [%rd7+8], %r6; st.global.u32 [%rd7+12], %r7;",
        &[0; 16],
        1,
    );
    assert_eq!([word(&got, 0), word(&got, 1), word(&got, 2), word(&got, 3)], [11, 22, 11, 1]);
}

#[test]
fn atomics_of_many_threads() {
    let got = run(
        "atom.global.add.u32 %r2, [%rd1], 2; atom.global.max.s32 %r3, [%rd1+4], %r1; red.global.add.f32 [%rd1+8], 0f3F000000;
         red.global.or.b32 [%rd1+12], %r1; atom.global.inc.u32 %r4, [%rd1+16], 9; atom.global.add.f64 %fd1, [%rd1+24], 0d3FE0000000000000;
         atom.global.exch.b32 %r5, [%rd1+32], 77; atom.global.cas.b32 %r6, [%rd1+36], 0, 5; red.global.add.u64 [%rd1+40], 3;
         red.global.min.s32 [%rd1+48], %r1; atom.global.dec.u32 %r7, [%rd1+52], 3; mov.b32 %r8, 0x3f803f80; red.global.add.noftz.bf16x2 [%rd1+56], %r8;",
        &[0; 64],
        64,
    );
    assert_eq!(word(&got, 0), 128);
    assert_eq!(word(&got, 1), 63);
    assert_eq!(word(&got, 2), 32f32.to_bits());
    assert_eq!(word(&got, 3), 63);
    assert_eq!(word(&got, 4), 4); // 64 counts modulo 10
    assert_eq!(got[24..32], 32f64.to_le_bytes());
    assert_eq!([word(&got, 8), word(&got, 9), word(&got, 10)], [77, 5, 192]);
    assert_eq!(word(&got, 12), 0);
    assert_eq!(word(&got, 13), 0); // from 0 it wraps to 3: period 4
    assert_eq!(word(&got, 14), 0x4280_4280);
}

#[test]
fn shared_atomics_return_old_values() {
    let got = run(
        ".shared .align 4 .b8 s[4];
         setp.eq.u32 %p1, %r1, 0; mov.u32 %r2, 0; @%p1 st.shared.u32 [s], %r2; bar.sync 0;
         atom.shared.add.u32 %r3, [s], 1; mul.wide.u32 %rd2, %r3, 4; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r3;",
        &[0xff; 256],
        64,
    );
    assert!((0..64).all(|i| word(&got, i) == i as u32));
}

#[test]
fn asynchronous_copies() {
    let bytes: Vec<u8> = (0..64).chain([0xee; 64]).collect();
    // 16 bytes, 8 bytes, 4 bytes of which 2 are read, and a group that is waited for later.
    let got = run(
        ".shared .align 16 .b8 s[64];
         mov.u64 %rd2, s; cvt.u32.u64 %r2, %rd2; mov.u32 %r3, 2;
         cp.async.cg.shared.global [%r2], [%rd1], 16; cp.async.ca.shared.global.L2::128B [%r2+16], [%rd1+24], 8;
         cp.async.commit_group;
         cp.async.ca.shared.global [%r2+24], [%rd1+32], 4, %r3; mov.u32 %r4, 0; cp.async.ca.shared.global [%r2+28], [%rd1+36], 4, %r4;
         cp.async.commit_group;
         cp.async.wait_group 1; ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [s]; st.global.v4.u32 [%rd1+64], {%r5, %r6, %r7, %r8};
         ld.shared.u64 %rd3, [s+16]; st.global.u64 [%rd1+80], %rd3;
         cp.async.wait_all; ld.shared.u64 %rd3, [s+24]; st.global.u64 [%rd1+88], %rd3;",
        &bytes,
        1,
    );
    assert_eq!(got[64..80], bytes[..16]);
    assert_eq!(got[80..88], bytes[24..32]);
    assert_eq!(got[88..96], [32, 33, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn freed_and_foreign_memory_is_refused_to_the_host() {
    let mut machine = Machine::new(Options::default());
    let x = machine.allocate(8, "x");
    assert!(machine.write(x, &[1; 9]).is_err());
    assert!(machine.read(x + 4, 8).is_err());
    machine.free(x).unwrap();
    assert!(machine.read(x, 1).is_err());
    assert!(machine.free(x).is_err());
    assert!(machine.free(12345).is_err());
}

#[test]
fn constants_keep_their_bits() {
    expect("mov.f32 d, 0f3F8CCCCD;", "f:r", &[(&[0], f(1.1))]);
    expect("mov.b64 d, 0d3FF199999999999A;", "l:r", &[(&[0], 1.1f64.to_bits())]);
    expect("mov.u32 d, -5;", "r:r", &[(&[0], 0xffff_fffb)]);
    expect("add.s64 d, a, -8;", "l:l", &[(&[3], -5i64 as u64)]);
}
