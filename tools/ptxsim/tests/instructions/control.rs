//! Branches, reconvergence, barriers, scopes, constants and module variables, and the errors of the reader.

use ptxsim::{Argument, Checks, Error, FindingKind, Machine, Module, Options};

use crate::{HEADER, expect};

/// Runs a body that stores one word per thread at [%rd2] and returns the words.
fn run(body: &str, threads: u32, seed: u64) -> Vec<u32> {
    let text = format!(
        "{HEADER}.visible .entry test(.param .u64 out)\n{{\n.reg .b64 %rd<9>; .reg .b32 %r<20>; .reg .pred %p<9>; .reg .f32 %f<9>;\n\
         ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd1, %rd3;\n{body}\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut machine = Machine::new(Options { seed, checks: Checks::all(), ..Options::default() });
    let out = machine.allocate(4 * threads as usize, "out");
    let report = machine.launch(&module, "test", [1; 3], [threads, 1, 1], 0, &[Argument::U64(out)]).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let bytes = machine.read(out, 4 * threads as usize).unwrap();
    bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn lanes_reconverge_after_a_branch() {
    // Odd lanes take one side, even lanes the other; after the join all of them vote.
    let got = run(
        "and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 1;
         @%p1 bra ODD;
         mov.u32 %r3, 10; bra.uni JOIN;
         ODD: mov.u32 %r3, 20;
         JOIN: activemask.b32 %r4; popc.b32 %r5, %r4; add.u32 %r6, %r3, %r5; st.global.u32 [%rd2], %r6;",
        32,
        0,
    );
    for (lane, value) in got.into_iter().enumerate() {
        assert_eq!(value, if lane % 2 == 1 { 52 } else { 42 });
    }
}

#[test]
fn loops_of_different_length() {
    let got = run(
        "mov.u32 %r2, 0; mov.u32 %r3, 0;
         LOOP: setp.ge.u32 %p1, %r2, %r1; @%p1 bra DONE;
         add.u32 %r2, %r2, 1; add.u32 %r3, %r3, %r2; bra LOOP;
         DONE: activemask.b32 %r4; popc.b32 %r4, %r4; shl.b32 %r4, %r4, 16; or.b32 %r3, %r3, %r4; st.global.u32 [%rd2], %r3;",
        32,
        0,
    );
    for (n, value) in got.into_iter().enumerate() {
        assert_eq!(value as usize, (32 << 16) | (n * (n + 1) / 2));
    }
}

#[test]
fn code_behind_a_barrier_that_stands_lower() {
    // The side with the higher address jumps back: the barrier must wait for it.
    let got = run(
        "setp.gt.u32 %p1, %r1, 7; mov.u32 %r3, 1;
         @%p1 bra FAR;
         BACK: bar.sync 0; st.global.u32 [%rd2], %r3; ret;
         FAR: mov.u32 %r3, 2; bra BACK;",
        64,
        3,
    );
    assert_eq!(got[7], 1);
    assert_eq!(got[8], 2);
}

#[test]
fn branch_tables() {
    let got = run(
        "and.b32 %r2, %r1, 3;
         ts: .branchtargets A, B, C, D;
         brx.idx %r2, ts;
         A: mov.u32 %r3, 100; bra J;
         B: mov.u32 %r3, 101; bra J;
         C: mov.u32 %r3, 102; bra J;
         D: mov.u32 %r3, 103;
         J: st.global.u32 [%rd2], %r3;",
        32,
        0,
    );
    assert_eq!(&got[..5], [100, 101, 102, 103, 100]);
}

#[test]
fn shared_memory_and_barriers_for_every_order_of_warps() {
    for seed in 0..8 {
        let got = run(
            ".shared .align 4 .b8 buffer[1024];
             mov.u64 %rd4, buffer; add.s64 %rd5, %rd4, %rd3;
             st.shared.u32 [%rd5], %r1; bar.sync 0;
             mov.u32 %r2, 255; sub.u32 %r2, %r2, %r1; mul.wide.u32 %rd6, %r2, 4; add.s64 %rd7, %rd4, %rd6;
             ld.shared.u32 %r3, [%rd7]; st.global.u32 [%rd2], %r3;",
            256,
            seed,
        );
        assert!(got.iter().enumerate().all(|(i, &v)| v as usize == 255 - i));
    }
}

#[test]
fn named_barriers_and_reductions() {
    // Warps 0 and 1 meet at barrier 1, warps 2 and 3 at barrier 2; then all of them count.
    let got = run(
        "shr.u32 %r2, %r1, 6; add.u32 %r2, %r2, 1; bar.sync %r2, 64;
         setp.lt.u32 %p1, %r1, 100; bar.red.popc.u32 %r3, 0, %p1;
         bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, %p1;
         selp.u32 %r4, 1000, 0, %p2; selp.u32 %r5, 2000, 0, %p3;
         add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %r5; st.global.u32 [%rd2], %r3;",
        128,
        1,
    );
    assert!(got.iter().all(|&v| v == 2100));
}

#[test]
fn special_registers() {
    let text = format!(
        "{HEADER}.visible .entry test(.param .u64 out)\n{{\n.reg .b64 %rd<9>; .reg .b32 %r<20>;
         ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %ntid.x; mov.u32 %r4, %ctaid.x;
         mov.u32 %r5, %nctaid.x; mad.lo.u32 %r6, %r2, %r3, %r1; mad.lo.u32 %r7, %r4, 64, %r6;
         mul.wide.u32 %rd2, %r7, 4; add.s64 %rd3, %rd1, %rd2;
         mov.u32 %r8, %laneid; mov.u32 %r9, %warpid; mov.u32 %r10, %lanemask_lt; popc.b32 %r10, %r10;
         sub.u32 %r10, %r10, %r8; shl.b32 %r9, %r9, 8; or.b32 %r8, %r8, %r9; shl.b32 %r5, %r5, 16; or.b32 %r8, %r8, %r5;
         or.b32 %r8, %r8, %r10; st.global.u32 [%rd3], %r8; ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap();
    let mut machine = Machine::new(Options::default());
    let out = machine.allocate(4 * 192, "out");
    machine.expect_written(out, 1, 192, 192, 4).unwrap();
    let report = machine.launch(&module, "test", [3, 1, 1], [16, 4, 1], 0, &[Argument::U64(out)]).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let bytes = machine.read(out, 4 * 192).unwrap();
    for (i, b) in bytes.chunks(4).enumerate() {
        let want = 3 << 16 | (i % 64 / 32) << 8 | (i % 32);
        assert_eq!(u32::from_le_bytes(b.try_into().unwrap()) as usize, want);
    }
}

#[test]
fn module_variables_and_initialisers() {
    let text = format!(
        "{HEADER}.const .align 4 .b8 table[8] = {{1, 2, 3, 4, 0, 0, 128, 63}};
         .global .align 8 .u64 counter = 41; .global .f32 values[4] = {{0f3F800000, 0f40000000}};
         .visible .entry test(.param .u64 out)\n{{\n.reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .f32 %f<9>;
         ld.param.u64 %rd1, [out]; mov.u64 %rd2, table; ld.const.u32 %r1, [%rd2]; ld.const.f32 %f1, [table+4];
         ld.global.u64 %rd3, [counter]; add.u64 %rd3, %rd3, 1; st.global.u64 [counter], %rd3;
         ld.global.f32 %f2, [values+4]; ld.global.f32 %f3, [values+8]; add.f32 %f1, %f1, %f2; add.f32 %f1, %f1, %f3;
         st.global.u32 [%rd1], %r1; st.global.f32 [%rd1+4], %f1; st.global.u64 [%rd1+8], %rd3; ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap();
    let mut machine = Machine::new(Options::default());
    let out = machine.allocate(16, "out");
    for counter in [42u64, 43] {
        let report = machine.launch(&module, "test", [1; 3], [1; 3], 0, &[Argument::U64(out)]).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let bytes = machine.read(out, 16).unwrap();
        assert_eq!(bytes[..4], [1, 2, 3, 4]);
        assert_eq!(bytes[4..8], 3f32.to_le_bytes());
        assert_eq!(bytes[8..], counter.to_le_bytes());
    }
}

#[test]
fn scopes_hide_registers() {
    expect(
        "{ .reg .b32 a; mov.b32 a, 7; { .reg .b32 a; mov.b32 a, 9; } mov.b32 d, a; }",
        "r:r",
        &[(&[1], 7)],
    );
}

#[test]
fn unknown_instructions_are_named_errors() {
    let body = |line: &str| format!("{HEADER}.visible .entry k()\n{{\n.reg .b32 %r<4>;\n{line}\nret;\n}}\n");
    let error = |line: &str| Module::parse(&body(line)).unwrap_err();
    match error("wgmma.fence.sync.aligned;") {
        Error::Unsupported { line, instruction, .. } => {
            assert_eq!((line, instruction.as_str()), (7, "wgmma.fence.sync.aligned"));
        }
        other => panic!("{other}"),
    }
    for line in [
        "add.cc.u32 %r1, %r2, %r3;",
        "mov.u32 %r1, %smid_of_nowhere;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r1}, {%r1}, {%r1};",
        "{ .param .b32 param0; }",
    ] {
        assert!(matches!(error(line), Error::Unsupported { .. }), "{line}: {}", error(line));
    }
    for line in
        ["mov.u32 %r9, %r1;", "add.u32 %r1, %r2;", "bra NOWHERE;", "@%r1 ret;", "mov.u32 %r1, nothing;"]
    {
        let found = error(line);
        assert!(
            matches!(found, Error::Syntax { line: 7, .. } | Error::Unsupported { line: 7, .. }),
            "{line}: {found}"
        );
    }
}

#[test]
fn launches_that_do_not_fit() {
    let text = format!("{HEADER}.visible .entry k(.param .f32 x)\n.maxntid 64, 1, 1\n{{\nret;\n}}\n");
    let module = Module::parse(&text).unwrap();
    let mut machine = Machine::new(Options::default());
    let mut launch = |name: &str, block, arguments: &[Argument]| {
        machine.launch(&module, name, [1; 3], block, 0, arguments)
    };
    assert!(launch("k", [64, 1, 1], &[Argument::F32(1.0)]).is_ok());
    assert!(matches!(launch("k", [65, 1, 1], &[Argument::F32(1.0)]), Err(Error::Launch { .. })));
    assert!(matches!(launch("k", [64, 1, 1], &[]), Err(Error::Launch { .. })));
    assert!(matches!(launch("k", [64, 1, 1], &[Argument::U32(1)]), Err(Error::Launch { .. })));
    assert!(matches!(launch("k", [0, 1, 1], &[Argument::F32(1.0)]), Err(Error::Launch { .. })));
    assert!(matches!(launch("other", [1, 1, 1], &[]), Err(Error::NoKernel { .. })));
}

#[test]
fn endless_loops_end_in_an_error() {
    let text = format!("{HEADER}.visible .entry k()\n{{\nAGAIN: bra AGAIN;\n}}\n");
    let module = Module::parse(&text).unwrap();
    let mut machine = Machine::new(Options { instruction_limit: 1000, ..Options::default() });
    let result = machine.launch(&module, "k", [1; 3], [32, 1, 1], 0, &[]);
    assert!(matches!(result, Err(Error::Limit { limit: 1000, .. })), "{result:?}");
}

#[test]
fn traps_are_findings() {
    let text = format!("{HEADER}.visible .entry k()\n{{\ntrap;\n}}\n");
    let module = Module::parse(&text).unwrap();
    let report = Machine::new(Options::default()).launch(&module, "k", [1; 3], [1; 3], 0, &[]).unwrap();
    assert_eq!(report.findings.iter().map(|f| f.kind).collect::<Vec<_>>(), [FindingKind::Trap]);
}
