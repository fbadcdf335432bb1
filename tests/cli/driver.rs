//! What a user meets where the driver, NVRTC or the GPU is missing, too old, full or lost in mid-run. The driver here is
//! `driver/cuda.c`, compiled by the C compiler that Rust links with: one GPU whose kernels do nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::train::{pretrained, secateur, text};

/// A folder with the library of `source` under its name.
fn library(source: &str, name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(source);
    std::fs::create_dir_all(&folder).unwrap();
    let compiled = tempfile::NamedTempFile::new_in(&folder).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/driver/{source}.c"));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-o"])
        .args([compiled.path(), &source])
        .status()
        .expect("cc, which Rust links with, is there");
    assert!(status.success());
    compiled.persist(folder.join(name)).unwrap();
    folder
}

/// The folder of the driver.
fn driver() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| library("cuda", "libcuda.so"))
}

/// The folder of an NVRTC that only says its version.
fn nvrtc() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| library("nvrtc", "libnvrtc.so.13"))
}

/// A command on the driver, in an environment.
fn with_driver(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = secateur(arguments);
    // Its graphs are left out: what is launched is counted.
    command.env("LD_LIBRARY_PATH", driver()).env("SECATEUR_GRAPHS", "0").envs(environment.iter().copied());
    command
}

/// What `doctor` says.
fn doctor(environment: &[(&str, &str)]) -> String {
    let output = with_driver(&["doctor"], environment).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn doctor_says_what_is_wrong_with_driver_and_gpu() {
    let none = secateur(&["doctor"]).env("LD_LIBRARY_PATH", "/nowhere").output().unwrap();
    let without = String::from_utf8(none.stdout).unwrap();
    if !without.contains("supports CUDA") {
        assert!(
            without.contains("no NVIDIA driver") && without.contains("--device auto is cpu"),
            "{without}"
        );
    }
    for (environment, part) in [
        (&[("FAKE_INIT", "803")][..], "the NVIDIA driver does not start: as the driver puts it"),
        (&[("FAKE_INIT", "100")], "sees no GPU"),
        (&[("FAKE_COUNT", "0")], "--device auto is cpu"),
        (&[("FAKE_CAPABILITY", "75")], "compute capability 7.5, but 8.0 is needed"),
        (&[("FAKE_VERSION", "12040"), ("FAKE_CAPABILITY", "75")], "supports CUDA 12.4"),
    ] {
        let found = doctor(environment);
        assert!(found.contains(part), "{environment:?}: {found}");
        assert!(found.contains("--device auto is cpu"), "{environment:?}: {found}");
    }
}

#[test]
fn nvrtc_that_is_missing_or_too_old_is_named() {
    let folder = text(nvrtc());
    for (environment, part) in [
        (&[("SECATEUR_NVRTC", "/nowhere")][..], "SECATEUR_NVRTC: no libnvrtc.so* under /nowhere"),
        (&[("SECATEUR_NVRTC", folder), ("FAKE_NVRTC", "11")], "NVRTC 11.8 is too old (12.0 at least)"),
    ] {
        let found = doctor(environment);
        assert!(found.contains(part) && found.contains("--device auto is cpu"), "{environment:?}: {found}");
    }
}

/// A one-layer model, pretrained on the CPU.
fn model(folder: &Path) -> PathBuf {
    pretrained(folder, "masked-lm", &["--train-tokenizer", "120", "--steps", "2", "--device", "cpu"]).0
}

fn finetune<'a>(model: &'a str, out: &'a str) -> Vec<&'a str> {
    let data = ["--task", "agreement", "--max-length", "32", "--train-rows", "32", "--eval-rows", "16"];
    let rest = ["--epochs", "2", "--batch-size", "8", "--device", "cuda", "--model", model, "--out", out];
    [&["finetune"][..], &data, &rest].concat()
}

#[test]
fn a_driver_older_than_the_compiler_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(folder.path()), folder.path().join("tuned"));
    let output =
        with_driver(&finetune(text(&model), text(&out)), &[("FAKE_VERSION", "12040"), ("FAKE_LOAD", "222")])
            .output()
            .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the driver supports CUDA 12.4, NVRTC is 13"), "{said}");
    assert!(!out.exists() && !folder.path().join("tuned.partial").exists());
}

#[test]
fn a_gpu_that_is_lost_or_full_in_mid_run_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(folder.path()), folder.path().join("tuned"));
    let arguments = finetune(text(&model), text(&out));
    for (environment, part) in [
        (&[("FAKE_FAULT_AT", "1")][..], "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (&[("FAKE_FAULT_AT", "150")], "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (&[("FAKE_FULL_AT", "1")], "bytes for parameters"),
        (&[("FAKE_FULL_AT", "6")], "CUDA_ERROR_OUT_OF_MEMORY"),
    ] {
        let output = with_driver(&arguments, environment).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{environment:?}: {said}");
        assert!(said.contains(part) && said.contains("Imaginary"), "{environment:?}: {said}");
        assert!(!said.contains("panicked"), "{environment:?}: {said}");
        assert!(!out.exists(), "{environment:?} left an output directory");
        assert!(!folder.path().join("tuned.partial").exists(), "{environment:?} left a partial directory");
    }
    // Of a run that had a checkpoint it stays, as after any interruption, and --resume takes it up.
    let late = [("FAKE_FAULT_AT", "700")];
    let output = with_driver(&arguments, &late).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(folder.path().join("tuned.partial/checkpoints/training_state.safetensors").is_file(), "{said}");
    let again = with_driver(&[&arguments[..], &["--resume"]].concat(), &[]).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(out.join("model.safetensors").is_file());
}

#[test]
fn f16_trains_nothing() {
    for arguments in
        [&["finetune", "--model", ".", "--task", "agreement", "--out", "x"][..], &["bench"], &["demo"]]
    {
        let arguments = [arguments, &["--device", "emulated", "--precision", "f16"]].concat();
        let output = secateur(&arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--precision f16 is for forward passes"), "{said}");
    }
}
