//! The commands that train, on models so small that a run takes seconds: what they leave is whole, loads again, and is
//! the same after an interruption.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Runs a command with `--json`; its record.
pub fn run(arguments: &[&str]) -> Value {
    let output = secateur(arguments).arg("--json").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?} printed no JSON: {e}"))
}

pub fn secateur(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    command.args(arguments).args(["--seed", "5"]);
    command
}

pub fn failure(arguments: &[&str]) -> (i32, String) {
    let output = secateur(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory with train.txt and valid.txt: sums in words, so that there is something to learn.
fn corpus(folder: &Path) -> PathBuf {
    let names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let line = |i: usize| {
        let (a, b) = (i % 5, i / 5 % 5);
        format!("{} and {} are {} .\n", names[a], names[b], names[a + b])
    };
    let data = folder.join("text");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("train.txt"), (0..400).map(|i| line(i * 7)).collect::<String>()).unwrap();
    std::fs::write(data.join("valid.txt"), (0..60).map(|i| line(i * 3 + 1)).collect::<String>()).unwrap();
    data
}

/// A one-layer model of 16 dimensions, trained for a few steps.
pub fn pretrained(folder: &Path, objective: &str, more: &[&str]) -> (PathBuf, Value) {
    let (data, out) = (corpus(folder), folder.join("pretrained"));
    let shape =
        ["--layers", "2", "--hidden", "16", "--heads", "4", "--intermediate", "64", "--max-length", "32"];
    let mut arguments =
        vec!["pretrain", "--objective", objective, "--data", text(&data), "--out", text(&out)];
    arguments.extend(shape.iter().chain(more));
    let record = run(&arguments);
    (out, record)
}

pub fn assert_whole_model(directory: &Path) {
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(directory.join(name).is_file(), "{} lacks {name}", directory.display());
    }
}

fn assert_no_leftovers(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.ends_with(".partial") && !name.ends_with(".replaced"), "{name} was left");
    }
}

fn accuracy(record: &Value, index: usize) -> f64 {
    record["evaluations"][index]["metrics"]["accuracy"].as_f64().unwrap()
}

#[test]
fn causal_pretraining_learns_and_is_taken_by_other_commands() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "300", "--epochs", "4", "--batch-size", "4", "--learning-rate", "0.01"];
    let (model, record) = pretrained(folder.path(), "causal-lm", &more);
    assert_whole_model(&model);
    assert!(model.join("report.html").is_file() && model.join("run.json").is_file());
    assert_no_leftovers(folder.path());
    let losses = record["training"][0]["losses"].as_array().unwrap();
    let loss = |index: usize| losses[index]["loss"].as_f64().unwrap();
    assert!(loss(losses.len() - 1) < 0.8 * loss(0), "{losses:?}");

    let data = folder.path().join("text");
    let evaluate =
        ["evaluate", "--model", text(&model), "--task", "lm", "--data", text(&data), "--max-length", "32"];
    let again = run(&evaluate);
    let perplexity = |record: &Value, name: &str| record["evaluations"][0]["metrics"][name].as_f64().unwrap();
    assert_eq!(perplexity(&again, "perplexity"), perplexity(&record, "perplexity"));

    // Batches of seven lines end in short blocks, so the two means and the number of rows differ.
    let grouped = run(&[&evaluate[..], &["--lm-grouping", "hf", "--lm-batch", "2"]].concat());
    assert_ne!(grouped["evaluations"][0]["rows"], again["evaluations"][0]["rows"]);
    assert_ne!(perplexity(&grouped, "perplexity"), perplexity(&again, "perplexity"));
}

#[test]
fn pruning_before_fine_tuning_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "120", "--steps", "5"];
    let (model, _) = pretrained(folder.path(), "masked-lm", &more);
    assert_whole_model(&model);
    let task = ["--task", "agreement", "--train-rows", "96", "--eval-rows", "64"];
    let out = folder.path().join("small");
    let arguments = [
        &["run", "--model", text(&model), "--out", text(&out), "--with-dense", "--epochs", "2"],
        &task[..],
        &["--keep-flops", "0.5,0.8", "--calibration-tokens", "50", "--calibration-rows", "40"],
    ]
    .concat();
    let records = run(&arguments);
    assert_no_leftovers(folder.path());
    assert_whole_model(&out.join("dense"));
    for (index, keep) in [(0, 0.5), (1, 0.8)] {
        let record = &records["runs"][index];
        let directory = out.join(format!("keep-{keep}"));
        assert_whole_model(&directory);
        assert!(!directory.join("checkpoints").exists());
        assert_eq!(record["keep_flops"]["asked"], keep);
        let reached = record["keep_flops"]["reached"].as_f64().unwrap();
        assert!(reached <= keep && reached > keep - 0.05, "{reached}");
        // 64 units in f32: rounding, no more.
        let difference = record["compact"]["max_logit_difference"].as_f64().unwrap();
        assert!(difference < 1e-5, "{difference}");
        let variants: Vec<&Value> =
            record["evaluations"].as_array().unwrap().iter().map(|e| &e["variant"]).collect();
        assert_eq!(variants[0], "dense");
        assert_eq!(variants.len(), 2);
        // What was saved is what was measured.
        let again = run(&[&["evaluate", "--model", text(&directory)][..], &task[..]].concat());
        assert_eq!(accuracy(&again, 0), accuracy(record, 1));
        // Of the FLOPs before pruning, which the small model's configuration knows; at the mean length of other rows.
        let kept = again["evaluations"][0]["keep_flops"].as_f64().unwrap();
        assert!((kept - reached).abs() < 0.02, "{kept}, pruned to {reached}");
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(directory.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["id2label"]["1"], "grammatical");
    }

    // The same masks from their file: the same small model before training, so the same one after it.
    let tuned = folder.path().join("tuned");
    let masks = out.join("keep-0.5/masks.json");
    let arguments = [
        &[
            "finetune",
            "--model",
            text(&model),
            "--masks",
            text(&masks),
            "--out",
            text(&tuned),
            "--epochs",
            "2",
        ],
        &task[..],
    ]
    .concat();
    run(&arguments);
    let weights = |directory: &Path| std::fs::read(directory.join("model.safetensors")).unwrap();
    assert_eq!(weights(&tuned), weights(&out.join("keep-0.5")));

    let (status, message) = failure(&[&["evaluate", "--model", text(&model)][..], &task[..]].concat());
    assert_eq!(status, 2, "{message}");
    assert!(message.contains("fine-tune"), "{message}");
}

#[test]
fn masked_evaluation_is_that_of_the_masks() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "masked-lm", &["--train-tokenizer", "120", "--steps", "30"]);
    let data = folder.path().join("text");
    let evaluate = |masks: &str| {
        let path = folder.path().join("masks.json");
        std::fs::write(&path, masks).unwrap();
        let arguments = [
            "evaluate",
            "--model",
            text(&model),
            "--task",
            "mlm",
            "--data",
            text(&data),
            "--max-length",
            "32",
            "--masks",
            text(&path),
        ];
        let record = run(&arguments);
        let evaluation = &record["evaluations"][0];
        (evaluation["metrics"]["loss"].as_f64().unwrap(), evaluation["keep_flops"].as_f64().unwrap())
    };
    let layer = |value: &str, units: usize| format!("[{}]", vec![value; units].join(","));
    let masks = |heads: &str, neurons: &str| {
        let (heads, neurons) = (layer(heads, 4), layer(neurons, 64));
        format!("{{\"heads\": [{heads}, {heads}], \"neurons\": [{neurons}, {neurons}]}}")
    };
    let (all, keep) = evaluate(&masks("1", "1"));
    assert_eq!(keep, 1.0);
    let (none, keep) = evaluate(&masks("0", "0"));
    assert_eq!(keep, 0.0);
    assert_ne!(all, none);
}

#[test]
fn an_interrupted_run_is_continued_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "masked-lm", &["--train-tokenizer", "120", "--steps", "5"]);
    let arguments = |out: &Path| {
        let fixed =
            ["finetune", "--task", "agreement", "--train-rows", "128", "--eval-rows", "32", "--epochs", "40"];
        let own = ["--model", text(&model), "--learning-rate", "0.001", "--out", text(out)];
        fixed.iter().chain(&own).map(|argument| argument.to_string()).collect::<Vec<String>>()
    };
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let whole_arguments = arguments(&whole);
    run(&whole_arguments.iter().map(String::as_str).collect::<Vec<_>>());

    let cut_arguments = arguments(&cut);
    let cut_arguments: Vec<&str> = cut_arguments.iter().map(String::as_str).collect();
    let mut child = secateur(&cut_arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = folder.path().join("cut.partial");
    let checkpoint = partial.join("checkpoints/training_state.safetensors");
    let start = Instant::now();
    while !checkpoint.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1), "the run ended before it was interrupted");
    assert!(checkpoint.exists() && !cut.exists());

    let (status, message) = failure(&cut_arguments);
    assert_eq!(status, 2, "{message}");
    assert!(message.contains("--resume"), "{message}");
    let mut resumed = cut_arguments.clone();
    resumed.push("--resume");
    run(&resumed);
    assert!(!partial.exists());
    for name in ["model.safetensors", "config.json"] {
        let read = |directory: &Path| std::fs::read(directory.join(name)).unwrap();
        assert!(read(&cut) == read(&whole), "{name} differs");
    }
}

#[test]
fn the_demo_tells_its_story_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let demo = |threads: &str| {
        let record = run(&["demo", "--effort", "0.002", "--out", text(&out), "--threads", threads]);
        (record, std::fs::read(out.join("dual-cp/model.safetensors")).unwrap())
    };
    let (record, bytes) = demo("1");
    assert_no_leftovers(folder.path());
    for name in ["pretrained", "dense", "dual-cp", "random"] {
        assert_whole_model(&out.join(name));
    }
    assert!(out.join("report.html").is_file());
    let evaluations = record["evaluations"].as_array().unwrap();
    let shown: Vec<(&str, f64)> = evaluations
        .iter()
        .map(|e| (e["variant"].as_str().unwrap(), e["keep_flops"].as_f64().unwrap()))
        .collect();
    assert_eq!(shown.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["dense", "dual-cp", "random"]);
    assert_eq!(shown[1].1, shown[2].1, "the control keeps as many FLOPs");
    assert!(shown[1].1 <= 0.5 && shown[1].1 > 0.45, "{shown:?}");
    // An earlier demo is replaced; its numbers do not depend on the threads.
    let (_, again) = demo("2");
    assert!(bytes == again, "two demos of one seed differ");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let data = corpus(folder.path());
    let out = folder.path().join("out");
    let pretrain = ["pretrain", "--objective", "masked-lm", "--data", text(&data), "--out", text(&out)];
    for (more, part) in [
        (&["--train-tokenizer", "120", "--hidden", "30", "--heads", "4"][..], "multiple"),
        (&["--train-tokenizer", "120", "--steps", "0"], "--steps"),
        (&["--train-tokenizer", "120", "--dropout", "1"], "--dropout"),
        (&["--train-tokenizer", "6"], "too small"),
        (&["--tokenizer", "/nowhere"], "/nowhere"),
        (&[], "--tokenizer"),
    ] {
        let (status, message) = failure(&[&pretrain[..], more].concat());
        assert!(status != 0 && message.contains(part), "{more:?}: {status} {message}");
        assert!(!out.exists(), "{more:?}");
        assert_no_leftovers(folder.path());
    }
    let (status, message) = failure(&["demo", "--effort", "2", "--out", text(&out)]);
    assert_eq!(status, 2, "{message}");
}
