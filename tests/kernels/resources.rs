//! What every kernel costs on every architecture, held against a committed record: a change that makes a kernel spill,
//! or needs more registers or shared memory, shows as a difference in review, with no GPU anywhere.
//!
//! The record is of one version of NVRTC (`tools/nvrtc` installs it); with another, only what must hold everywhere is
//! checked: no spills, no stack. `SECATEUR_UPDATE=1` writes the record anew.
//!
//! Compiling everything for five architectures takes minutes. What the assembler said is kept in the build folder by the
//! hash of all that it depends on, so a change of one source costs the compilation of that source.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;
use secateur::cuda::{self, Nvrtc, Resources, Target};
use secateur::launch::Module;
use secateur::launch::kernels::MODULES;

use crate::record;

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
        .with_max_len(1)
        .map(|&(module, architecture)| (module, architecture, resources(nvrtc, module, architecture)))
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
    if nvrtc.version() != RECORDED_WITH && !record::updating() {
        println!(
            "not compared with {RECORD}: NVRTC {:?}, the record is of {RECORDED_WITH:?}",
            nvrtc.version()
        );
        return;
    }
    record::compare(RECORD, &record);
}

/// What the kernels of a source cost: as the assembler says now, or as it said of the same text.
fn resources(nvrtc: &Nvrtc, module: &Module, architecture: u32) -> Vec<Resources> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("resources");
    let path = folder.join(cuda::key(nvrtc, module, Target::Cubin(architecture)));
    let kept = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    kept.unwrap_or_else(|| {
        let found = nvrtc.resources(module, architecture).expect("every kernel compiles");
        let text = serde_json::to_vec(&found).expect("numbers and names");
        std::fs::create_dir_all(&folder).expect("a folder");
        // Under its name only when it is whole, whoever else runs this test.
        let mut file = tempfile::NamedTempFile::new_in(&folder).expect("a file");
        std::io::Write::write_all(&mut file, &text).expect("written");
        file.persist(&path).expect("renamed");
        found
    })
}
