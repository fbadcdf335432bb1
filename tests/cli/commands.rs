//! What a user meets before anything is computed: help, wrong usage, and output directories that stay clean.

use std::path::Path;

use assert_cmd::Command;
use secateur::model::{Head, Model, ModelConfig};

fn secateur(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("secateur").unwrap();
    command.args(arguments);
    command
}

/// Exit status and standard error.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = secateur(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn every_command_explains_itself() {
    for command in ["prune", "finetune", "evaluate", "inspect", "export", "forward"] {
        let output = secateur(&[command, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("Example"), "{command}: {text}");
        assert!(text.contains("--model"), "{command}: {text}");
    }
}

#[test]
fn wrong_usage_is_status_2_and_says_what_is_known() {
    for (arguments, part) in [
        (&["bogus"][..], "unrecognized subcommand"),
        (&["evaluate", "--model", "/nowhere/x", "--task", "mrpc", "--data", "x"], "/nowhere/x"),
        (&["inspect", "--model", "no-such-model"], "hf download"),
        (&["prune", "--model", ".", "--keep-flops", "a", "--out", "x"], "invalid value 'a'"),
    ] {
        let (status, text) = failure(arguments);
        assert_eq!(status, 2, "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}

#[test]
fn a_directory_that_is_no_model_is_status_1() {
    let empty = tempfile::tempdir().unwrap();
    let (status, text) = failure(&["inspect", "--model", empty.path().to_str().unwrap()]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("config.json"), "{text}");
    std::fs::write(empty.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    let (_, text) = failure(&["inspect", "--model", empty.path().to_str().unwrap()]);
    assert!(text.contains("mamba"), "{text}");
}

#[test]
fn a_model_without_a_head_is_given_that_of_a_task() {
    let folder = tempfile::tempdir().unwrap();
    let fields = r#"{"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32}"#;
    let config = serde_json::from_str(fields).unwrap();
    let config = ModelConfig::from_json(config, Path::new("config.json")).unwrap();
    Model::from_config(config, Head::Backbone, 1).unwrap().save(folder.path()).unwrap();
    let program = ["inspect", "--model", folder.path().to_str().unwrap(), "--program", "train"];
    assert!(failure(&program).1.contains("name a task"));
    let output = secateur(&[&program[..], &["--task", "mrpc"]].concat()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("d classifier.weight"), "{text}");
    assert!(failure(&[&program[..], &["--task", "table"]].concat()).1.contains("its data only"));
}

#[test]
fn an_output_directory_in_use_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("precious"), "kept").unwrap();
    let arguments = ["prune", "--model", "/nowhere", "--keep-flops", "0.6", "--out", out.to_str().unwrap()];
    let (status, text) = failure(&arguments);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("--overwrite"), "{text}");
    assert_eq!(names(folder.path()), ["out"]);
    assert_eq!(std::fs::read_to_string(out.join("precious")).unwrap(), "kept");
}

#[test]
fn a_failed_run_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    failure(&[
        "prune",
        "--model",
        "/nowhere",
        "--task",
        "mrpc",
        "--data",
        "x",
        "--keep-flops",
        "0.6",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
