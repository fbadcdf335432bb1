//! Planted bugs: for every check a kernel that must set it off, and its corrected twin that must not.
//!
//! In the `.ptx` texts beside this file, a line ending in `// BUG` is the fault, and `// FIX:` lines take its place in the
//! corrected twin.

use ptxsim::{Argument, Checks, FindingKind, Machine, Module, Options, Report};

fn text(name: &str, fixed: bool) -> String {
    let path = format!("{}/tests/checks/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = |line: &str| match (fixed, line.strip_prefix("// FIX:"), line.ends_with("// BUG")) {
        (true, Some(fix), _) => fix.to_string(),
        (true, None, true) => String::new(),
        _ => line.to_string(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Two blocks of two warps over x (1024 floats) and y (128 floats, an expected output).
fn run(name: &str, fixed: bool, seed: u64, checks: Checks) -> Report {
    let module = Module::parse(&text(name, fixed)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut machine =
        Machine::new(Options { seed, checks, instruction_limit: 1 << 20, ..Options::default() });
    let (x, y) = (machine.allocate(4096, "x"), machine.allocate(512, "y"));
    machine.write(x, &1f32.to_le_bytes().repeat(1024)).unwrap();
    machine.expect_written(y, 1, 128, 128, 4).unwrap();
    let arguments = [Argument::U64(x), Argument::U64(y)];
    machine.launch(&module, "planted", [2, 1, 1], [64, 1, 1], 0, &arguments).unwrap()
}

/// The kind is found, at the line, under every seed; nothing is found in the corrected twin.
fn planted(name: &str, kind: FindingKind, line: u32) {
    for seed in 0..6 {
        let report = run(name, false, seed, Checks::all());
        let found = report.findings.iter().find(|f| f.kind == kind);
        let Some(found) = found else { panic!("{name}, seed {seed}: not found in {:#?}", report.findings) };
        // A race is found at either of its two accesses, whichever comes last; the other one is in the message.
        let shown = found.to_string();
        assert!(line == 0 || shown.contains(&format!("planted.cu:{line}")), "{name}: {shown}");
        assert_eq!(found.kernel, "planted");
        let report = run(name, true, seed, Checks::all());
        assert!(report.findings.is_empty(), "corrected {name}, seed {seed}: {:#?}", report.findings);
    }
}

#[test]
fn out_of_bounds() {
    planted("out_of_bounds", FindingKind::OutOfBounds, 10);
    planted("shared_out_of_bounds", FindingKind::OutOfBounds, 10);
    let report = run("out_of_bounds", false, 0, Checks::none());
    let found = &report.findings[0];
    assert_eq!((found.block, found.thread, found.count), ([1, 0, 0], [63, 0, 0], 1));
    assert!(found.message.contains("byte 4096 of `x` (4096 bytes)"), "{found}");
}

#[test]
fn use_after_free() {
    let module = Module::parse(&text("out_of_bounds", true)).unwrap();
    let mut machine = Machine::new(Options::default());
    let (x, y) = (machine.allocate(4096, "x"), machine.allocate(512, "y"));
    machine.free(x).unwrap();
    let arguments = [Argument::U64(x), Argument::U64(y)];
    let report = machine.launch(&module, "planted", [2, 1, 1], [64, 1, 1], 0, &arguments).unwrap();
    assert_eq!(report.findings[0].kind, FindingKind::OutOfBounds);
    assert!(report.findings[0].message.contains("freed `x`"));
}

#[test]
fn misaligned() {
    planted("misaligned", FindingKind::Misaligned, 10);
}

#[test]
fn uninitialised() {
    planted("uninitialised_store", FindingKind::Uninitialised, 11);
    planted("uninitialised_branch", FindingKind::Uninitialised, 11);
    planted("uninitialised_register", FindingKind::Uninitialised, 10);
    let report = run("uninitialised_store", false, 0, Checks::all());
    assert!(report.findings[0].message.contains("loaded at planted.cu:10"), "{}", report.findings[0]);
}

#[test]
fn poisoned_memory_counts_as_never_written() {
    let module = Module::parse(&text("uninitialised_store", true)).unwrap();
    let mut machine = Machine::new(Options::default());
    let (x, y) = (machine.allocate(4096, "x"), machine.allocate(512, "y"));
    machine.fill(x, 4096, 0).unwrap();
    machine.poison(x + 4 * 100, 4).unwrap();
    let arguments = [Argument::U64(x), Argument::U64(y)];
    let report = machine.launch(&module, "planted", [2, 1, 1], [64, 1, 1], 0, &arguments).unwrap();
    assert_eq!(
        report.findings.iter().map(|f| (f.kind, f.count)).collect::<Vec<_>>(),
        [(FindingKind::Uninitialised, 1)]
    );
    assert_eq!((report.findings[0].block[0], report.findings[0].thread[0]), (1, 36));
    assert_eq!(machine.written(y + 4 * 99, 8).unwrap(), [true, true, true, true, false, false, false, false]);
}

#[test]
fn races() {
    planted("shared_race", FindingKind::SharedRace, 12);
    planted("shared_race_after_read", FindingKind::SharedRace, 12);
    planted("shared_race_in_warp", FindingKind::SharedRace, 12);
    planted("global_race_between_blocks", FindingKind::GlobalRace, 10);
    planted("global_race_in_block", FindingKind::GlobalRace, 0);
}

#[test]
fn barriers() {
    planted("barrier_divergence", FindingKind::BarrierDivergence, 10);
    planted("shuffle_divergence", FindingKind::BarrierDivergence, 10);
    planted("deadlock", FindingKind::Deadlock, 10);
}

#[test]
fn missing_copy_wait() {
    planted("missing_copy_wait", FindingKind::MissingCopyWait, 12);
}

#[test]
fn outputs() {
    planted("not_written", FindingKind::NotWritten, 0);
    planted("written_twice", FindingKind::WrittenTwice, 11);
    let report = run("not_written", false, 0, Checks::all());
    assert!(report.findings[0].message.contains("1 of 128 elements"), "{}", report.findings[0]);
}

#[test]
fn padding_of_an_output() {
    {
        let fixed = false;
        let module = Module::parse(&text("padding_written", fixed)).unwrap();
        let mut machine = Machine::new(Options::default());
        let (x, y) = (machine.allocate(4096, "x"), machine.allocate(1024, "y"));
        // Only threads below 100 write row 0; the launch has 100 threads in one block.
        machine.expect_written(y, 1, 100, 128, 4).unwrap();
        machine.expect_written(y + 512, 0, 0, 128, 4).unwrap();
        let arguments = [Argument::U64(x), Argument::U64(y)];
        let report = machine.launch(&module, "planted", [1, 1, 1], [100, 1, 1], 0, &arguments).unwrap();
        assert!(report.findings.is_empty(), "{fixed}: {:?}", report.findings);
        // With 128 threads the last 28 write behind the columns of the first of two rows.
        machine.expect_written(y, 2, 100, 128, 4).unwrap();
        let report = machine.launch(&module, "planted", [1, 1, 1], [128, 1, 1], 0, &arguments).unwrap();
        let kinds: Vec<FindingKind> = report.findings.iter().map(|f| f.kind).collect();
        assert!(kinds.contains(&FindingKind::PaddingWritten), "{kinds:?}");
        assert!(kinds.contains(&FindingKind::NotWritten), "{kinds:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_report() {
    for name in ["shared_race", "global_race_between_blocks", "uninitialised_store"] {
        assert_eq!(run(name, false, 7, Checks::all()), run(name, false, 7, Checks::all()));
    }
}

#[test]
fn traffic_is_counted() {
    let report = run("shared_race", true, 0, Checks::all());
    let counters = &report.counters;
    // Four warps, each one store and one load of shared memory without conflicts, and one store of four sectors.
    assert_eq!((counters.shared_accesses, counters.bank_conflict_replays), (8, 0));
    assert_eq!((counters.sectors, counters.minimum_sectors, counters.global_bytes), (16, 16, 512));
    assert_eq!(counters.by_opcode["bar.sync"], 4);
    assert_eq!(counters.by_opcode["st.global.u32"], 4);
    assert_eq!(counters.lane_instructions, 32 * counters.warp_instructions);
}
