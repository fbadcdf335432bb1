//! What every kernel costs on every architecture, held against a committed record: a change that makes a kernel spill,
//! or needs more registers or shared memory, shows as a difference in review, with no GPU anywhere.
//!
//! The record is of one version of NVRTC (`tools/nvrtc` installs it); with another, only what must hold everywhere is
//! checked: no spills, no stack. `SECATEUR_UPDATE=1` writes the record anew.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;
use secateur::cuda::Nvrtc;
use secateur::launch::kernels::MODULES;

/// Ampere (data centre, RTX 30), Ada, Hopper, Blackwell (RTX 50).
const ARCHITECTURES: [u32; 5] = [80, 86, 89, 90, 120];
const RECORD: &str = "tests/kernels/resources.txt";
const RECORDED_WITH: (i32, i32) = (13, 0);

#[test]
fn kernels_cost_what_the_record_says_and_spill_nothing() {
    let nvrtc = Nvrtc::get().expect("NVRTC");
    let jobs: Vec<_> =
        MODULES.iter().flat_map(|module| ARCHITECTURES.map(|architecture| (module, architecture))).collect();
    let reports: Vec<_> = jobs
        .par_iter()
        .map(|(module, architecture)| {
            let resources = nvrtc.resources(module, *architecture).expect("every kernel compiles");
            (module, architecture, resources)
        })
        .collect();
    let mut record = String::from("# file kernel architecture registers shared-bytes\n");
    let mut faults = Vec::new();
    for module in MODULES {
        for kernel in module.kernels {
            for (_, architecture, resources) in reports.iter().filter(|(of, ..)| of.file == module.file) {
                let Some(found) = resources.iter().find(|found| found.kernel == kernel.name) else {
                    panic!("{}: no report on {}", module.file, kernel.name);
                };
                if found.spilled > 0 || found.stack > 0 {
                    faults.push(format!("{} sm_{architecture}: {found:?}", module.file));
                }
                let _ = writeln!(
                    record,
                    "{} {} sm_{architecture} {} {}",
                    module.file, kernel.name, found.registers, found.shared
                );
            }
        }
    }
    assert!(faults.is_empty(), "kernels that spill:\n{}", faults.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORD);
    if std::env::var_os("SECATEUR_UPDATE").is_some() {
        std::fs::write(&path, record).expect("the record can be written");
        return;
    }
    if nvrtc.version() != RECORDED_WITH {
        println!(
            "not compared with {RECORD}: NVRTC {:?}, the record is of {RECORDED_WITH:?}",
            nvrtc.version()
        );
        return;
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    let differing: Vec<String> = diff(&recorded, &record);
    assert!(
        differing.is_empty(),
        "{} lines differ from {RECORD} (SECATEUR_UPDATE=1 writes it anew):\n{}",
        differing.len(),
        differing.join("\n")
    );
}

/// Lines of only one of the two texts.
fn diff(old: &str, new: &str) -> Vec<String> {
    let has = |text: &str, line: &str| text.lines().any(|other| other == line);
    let gone = old.lines().filter(|line| !has(new, line)).map(|line| format!("- {line}"));
    let added = new.lines().filter(|line| !has(old, line)).map(|line| format!("+ {line}"));
    gone.chain(added).collect()
}
