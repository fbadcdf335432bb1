//! What commands that prune say of budgets: asked, reached, feasible, in parameters and bytes; and what they refuse.

use std::path::Path;

use serde_json::Value;

use crate::train::{failure, pretrained, run, secateur, text};

/// A masked-language model of two layers, and what names task and rows.
fn model(folder: &Path) -> std::path::PathBuf {
    pretrained(folder, "masked-lm", &["--train-tokenizer", "120", "--steps", "3"]).0
}

const TASK: [&str; 6] = ["--task", "agreement", "--train-rows", "48", "--eval-rows", "16"];

/// The first fine-tuned for a few steps.
fn tuned(folder: &Path) -> std::path::PathBuf {
    let (model, out) = (model(folder), folder.join("tuned"));
    let arguments = ["finetune", "--model", text(&model), "--out", text(&out), "--steps", "3"];
    run(&[&arguments[..], &TASK].concat());
    out
}

fn number(record: &Value, path: &str) -> f64 {
    record.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {record:#}"))
}

#[test]
fn what_can_be_reached_and_what_is_left_is_always_said() {
    let folder = tempfile::tempdir().unwrap();
    let model = tuned(folder.path());
    let out = folder.path().join("small");
    let method = ["prune", "--model", text(&model), "--method", "kcm", "--keep-flops", "0.9,0.8", "--out"];
    let arguments = [&method[..], &[text(&out)], &TASK].concat();
    let output = secateur(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    for part in ["parameters", "bytes", "the method can keep", "keep 90.00 %", "keep 80.00 %", "layer"] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let record = std::fs::read_to_string(out.join("keep-0.8/run.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let (least, reached) = (number(&record, "/feasible/least"), number(&record, "/keep_flops/reached"));
    assert!(0.0 < least && least < reached && number(&record, "/feasible/most") == 1.0, "{record:#}");
    // Below the smallest fraction: refused by that number, which then works.
    let (below, least) = (format!("{}", least - 0.01), format!("{:.4}", (least * 1e4).ceil() / 1e4));
    let again = |keep: &str, out: &str| {
        let method = ["prune", "--model", text(&model), "--method", "kcm", "--keep-flops", keep, "--out"];
        failure(&[&method[..], &[text(&folder.path().join(out))], &TASK].concat())
    };
    let (status, said) = again(&below, "below");
    assert!(status == 2 && said.contains(&least), "{status} {said}: no {least}");
    assert_eq!(again(&least, "least").0, 0);
}

/// What masks leave is counted from the budget; once the model is compact, from the model.
#[test]
fn sizes_of_masks_are_those_of_the_compact_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let size = |command: &str, more: &[&str]| {
        let out = folder.path().join(command);
        let arguments = [command, "--model", text(&model), "--keep-flops", "0.6", "--out", text(&out)];
        let record = run(&[&arguments[..], &["--calibration-tokens", "40"], more, &TASK].concat());
        (number(&record, "/size/parameters_dense"), number(&record, "/size/parameters_kept"))
    };
    let (masks, compact) = (size("prune", &[]), size("run", &["--steps", "1"]));
    // `run` has the classifier too, before and after.
    assert_eq!(masks.0 - masks.1, compact.0 - compact.1);
    assert!(masks.1 < masks.0);
}

#[test]
fn a_latency_budget_is_recorded_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = tuned(folder.path());
    let prune = |keep: &str, out: &str, more: &[&str]| {
        let arguments = ["prune", "--model", text(&model), "--method", "mask-tuning", "--keep-latency", keep];
        let grid = ["--latency-length", "8", "--choose", "rescale=none", "--out"];
        [&arguments[..], &grid, &[text(&folder.path().join(out))], &TASK, more]
            .concat()
            .iter()
            .map(|s| s.to_string())
            .collect::<Vec<_>>()
    };
    let words = prune("0.8", "fast", &[]);
    let record = run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(number(&record, "/keep_latency/asked"), 0.8);
    assert!(number(&record, "/keep_latency/predicted") <= 0.8 + 1e-9, "{record:#}");
    assert_eq!(number(&record, "/keep_flops/asked"), number(&record, "/keep_flops/reached"));
    // The range is that of the measured table, not of FLOPs.
    let words = prune("0.000001", "none", &[]);
    let (status, said) = failure(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(status == 2 && said.contains("of the latency"), "{said}");
}

#[test]
fn a_stage_that_a_method_cannot_prune_at_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let prune = |method: &[&str], out: &str| {
        let arguments = ["prune", "--model", text(&model), "--keep-flops", "0.8", "--out"];
        failure(&[&arguments[..], &[text(&folder.path().join(out))], method, &TASK].concat())
    };
    // A head drawn at random is nothing to prune for; before fine-tuning the backbone is.
    let (status, said) = prune(&["--method", "kcm"], "post");
    assert!(status == 2 && said.contains("no trained head for agreement"), "{said}");
    assert!(!folder.path().join("post").exists());
    assert_eq!(prune(&["--method", "kcm", "--stage", "pre"], "pre").0, 0);
    let (status, said) = prune(&["--method", "mask-tuning", "--stage", "pre"], "answers");
    assert!(status == 2 && said.contains("answers"), "{said}");
    let (status, said) = prune(&["--method", "kcm", "--stage", "pre", "--choose", "labelled=8"], "labels");
    assert!(status == 2 && said.contains("answers"), "{said}");
    // A language model has answers before it is fine-tuned.
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "causal-lm", &["--train-tokenizer", "300", "--steps", "2"]);
    let (data, out) = (folder.path().join("text"), folder.path().join("small"));
    let task = ["--task", "lm", "--data", text(&data), "--max-length", "16", "--calibration-rows", "8"];
    let arguments =
        ["prune", "--model", text(&model), "--method", "fisher", "--stage", "pre", "--keep-flops", "0.7"];
    run(&[&arguments[..], &task, &["--out", text(&out)]].concat());
}

#[test]
fn options_that_a_method_does_not_read_are_refused_and_those_it_has_are_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let model = tuned(folder.path());
    let prune = |method: &str, more: &[&str]| {
        let out = folder.path().join(method);
        let arguments =
            ["prune", "--model", text(&model), "--keep-flops", "0.8", "--method", method, "--overwrite"];
        let words = [&arguments[..], &["--out", text(&out)], more].concat();
        secateur(&words).arg("--json").output().unwrap()
    };
    let refused = prune("kcm", &[&["--calibration-batch", "4"][..], &TASK].concat());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && said.contains("--calibration-batch"), "{said}");

    let record = |output: std::process::Output| -> Value {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // A name that stands for a choice is recorded as it was typed, with the choice as made.
    let ranked = record(prune("r2", &TASK));
    assert_eq!(ranked["method"]["name"], "r2");
    assert_eq!(ranked["method"]["choices"]["score"], serde_json::json!({ "value": "r2", "given": true }));
    let teacher = |profile: &str| {
        let record = record(prune("weight-magnitude-scale", &[&["--profile", profile][..], &TASK].concat()));
        record["method"]["choices"]["scaling.teacher"]["value"].clone()
    };
    assert_ne!(teacher("authors"), teacher("default"));
    // Weights alone need no task, once it is said at which length FLOPs are counted.
    let alone = record(prune("random-units", &["--cost-length", "20"]));
    assert!(alone["task"].is_null() && alone["calibration"]["rows"] == serde_json::json!([]), "{alone:#}");
    let (status, said) = {
        let output = prune("kcm", &["--cost-length", "20"]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(status == Some(2) && said.contains("--task is missing"), "{said}");
}
