//! `compare` and `methods`: a grid of tiny cells, run once, continued, listed, gathered.

use std::path::Path;
use std::time::SystemTime;

use crate::report::assert_page;
use crate::train::{failure, pretrained, run, secateur, text};

/// Arguments of a comparison of four methods on the built-in task.
fn arguments<'a>(model: &'a str, out: &'a str) -> Vec<&'a str> {
    let grid = [
        "compare",
        "--model",
        model,
        "--tasks",
        "agreement",
        "--methods",
        "dual-cp,kcm,taylor,random-units,mask-tuning,k-prune,layer-dropping",
        "--keep-flops",
        "0.8,0.1",
        "--seeds",
        "1,2",
        "--train-rows",
        "64",
        "--eval-rows",
        "40",
        "--epochs",
        "1",
        "--calibration-rows",
        "32",
        "--max-length",
        "32",
        "--jobs",
        "2",
        "--device",
        "cpu",
        "--out",
        out,
    ];
    grid.to_vec()
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

#[test]
fn a_grid_runs_once_and_continues() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "300", "--epochs", "1", "--batch-size", "8"];
    let (model, _) = pretrained(folder.path(), "masked-lm", &more);
    let out = folder.path().join("compared");
    let grid = arguments(text(&model), text(&out));

    let listed = secateur(&[&grid[..], &["--list"]].concat()).output().unwrap();
    let lines = String::from_utf8(listed.stdout).unwrap();
    // Of each seed: the dense model, masks and two fine-tunings of the two that prune first, one cell for each other.
    assert_eq!(lines.lines().filter(|line| !line.starts_with('#')).count(), 2 * 12, "{lines}");
    assert_eq!(lines.lines().filter(|line| line.starts_with('#')).count(), 2, "{lines}");
    assert!(!out.exists());

    let found = run(&[
        &grid[..],
        &["--latency", "--latency-repeats", "5", "--latency-batches", "1", "--latency-lengths", "16"],
    ]
    .concat());
    let rows = found["rows"].as_array().unwrap();
    // The dense model, every method at 0.8, and at 0.1 those that can: not KCM, which leaves attention whole.
    let of =
        |method: &str, keep: f64| rows.iter().filter(|r| r["method"] == method && r["keep"] == keep).count();
    assert_eq!((of("dense", 1.0), of("dual-cp", 0.8), of("kcm", 0.8)), (2, 2, 2), "{found:#}");
    assert_eq!((of("taylor", 0.8), of("taylor", 0.1), of("random-units", 0.1)), (2, 2, 2), "{found:#}");
    assert_eq!(
        (of("mask-tuning", 0.1), of("k-prune", 0.8), of("layer-dropping", 0.8)),
        (2, 2, 2),
        "{found:#}"
    );
    assert_eq!((of("kcm", 0.1), of("layer-dropping", 0.1)), (0, 0));
    let missing: Vec<_> = found["missing"].as_array().unwrap().iter().filter_map(|m| m.as_str()).collect();
    assert!(missing.contains(&"agreement/seed-1/kcm/keep-0.1"), "{missing:?}");
    for row in rows.iter().filter(|row| row["method"] != "dense") {
        assert!(row["reached"].as_f64().unwrap() <= row["keep"].as_f64().unwrap() + 1e-9, "{row}");
        assert!(row["pruning_seconds"].as_f64().unwrap() >= 0.0, "{row}");
    }
    let measured = rows.iter().filter(|row| row["latency"].is_array()).count();
    assert_eq!(measured, (rows.len() - 2) / 2, "latency of the first seed's pruned models");
    let summary = found["summary"].as_array().unwrap();
    assert!(summary.iter().all(|s| s["seeds"] == 2 && s["deviation"].is_number()), "{summary:?}");

    let csv = std::fs::read_to_string(out.join("compare.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + rows.len());
    let width = csv.lines().next().unwrap().split(',').count();
    assert!(csv.lines().all(|line| line.split(',').count() == width), "{csv}");
    let page = std::fs::read_to_string(out.join("compare.html")).unwrap();
    assert_page(&page);
    assert!(page.contains("random-units"));

    // Other budgets would be missing from the cells that are there.
    let mut other = grid.clone();
    let at = other.iter().position(|word| *word == "0.8,0.1").unwrap();
    other[at] = "0.8";
    let (status, errors) = failure(&other);
    assert!(status == 2 && errors.contains("--keep-flops 0.8,0.1"), "{errors}");

    // Again: nothing runs. With one cell gone, that one runs.
    let cells = out.join("cells/agreement/seed-1");
    let (dense, kcm) = (cells.join("dense/run.json"), cells.join("kcm/keep-0.8/run.json"));
    let before = (modified(&dense), modified(&kcm));
    run(&grid);
    assert_eq!((modified(&dense), modified(&kcm)), before);
    std::fs::remove_dir_all(cells.join("kcm")).unwrap();
    let gathered = run(&[&grid[..], &["--gather"]].concat());
    assert_eq!(gathered["rows"].as_array().unwrap().len(), rows.len() - 1);
    let again = run(&grid);
    assert!(modified(&dense) == before.0 && modified(&kcm) > before.1);
    let value = |found: &serde_json::Value| found["summary"].clone();
    assert_eq!(value(&again), value(&found), "the same seeds give the same quality");
}

#[test]
fn a_failed_cell_is_named_and_the_others_run() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "300", "--epochs", "1", "--batch-size", "8"];
    let (model, _) = pretrained(folder.path(), "masked-lm", &more);
    let out = folder.path().join("compared");
    let grid = [
        "compare",
        "--model",
        text(&model),
        "--tasks",
        "agreement,mrpc=/nowhere",
        "--methods",
        "random-units",
        "--keep-flops",
        "0.5",
        "--train-rows",
        "32",
        "--eval-rows",
        "20",
        "--epochs",
        "1",
        "--max-length",
        "32",
        "--device",
        "cpu",
        "--out",
        text(&out),
    ];
    let (status, errors) = failure(&grid);
    assert_eq!(status, 1, "{errors}");
    assert!(errors.contains("mrpc/seed-1/dense"), "{errors}");
    assert!(out.join("cells/agreement/seed-1/random-units/keep-0.5/run.json").is_file());
    let log = std::fs::read_to_string(out.join("logs/mrpc_seed-1_dense.log")).unwrap();
    assert!(log.contains("/nowhere"), "{log}");
}

#[test]
fn axes_given_twice_are_refused() {
    let twice = |name: &str, value: &str| {
        let mut grid = arguments("m", "/tmp/never");
        let at = grid.iter().position(|word| *word == name).unwrap();
        grid[at + 1] = value;
        failure(&grid)
    };
    for (name, value) in [("--seeds", "1,1"), ("--keep-flops", "0.5,0.5"), ("--methods", "kcm,kcm")] {
        let (status, errors) = twice(name, value);
        assert!(status == 2 && errors.contains("twice"), "{errors}");
    }
}

#[test]
fn methods_and_their_choices_are_listed() {
    let all = run(&["methods"]);
    assert!(all.as_array().unwrap().iter().any(|m| m["name"] == "kcm" && m["stage"] == "post"));
    let kcm = run(&["methods", "kcm"]);
    let kernel = kcm["choices"].as_array().unwrap().iter().find(|c| c["name"] == "kernel").unwrap();
    assert_eq!(kernel["default"], "s2");
    let text = String::from_utf8(secateur(&["methods", "dual-cp"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("prune --help"), "{text}");
}

#[test]
fn latency_is_a_budget_too() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "300", "--epochs", "1", "--batch-size", "8"];
    let (model, _) = pretrained(folder.path(), "masked-lm", &more);
    let (tuned, small) = (folder.path().join("tuned"), folder.path().join("small"));
    let task = ["--task", "agreement", "--train-rows", "64", "--eval-rows", "40", "--device", "cpu"];
    run(&[&["finetune", "--model", text(&model), "--epochs", "1", "--out", text(&tuned)][..], &task].concat());
    let prune = ["prune", "--model", text(&tuned), "--calibration-rows", "32", "--out", text(&small)];
    let latency = ["--keep-latency", "0.8", "--latency-batch", "2", "--latency-length", "16"];
    let wrong = failure(&[&prune[..], &latency, &task, &["--method", "kcm"]].concat());
    assert!(wrong.0 == 2 && wrong.1.contains("FLOPs only"), "{}", wrong.1);
    // Nothing is ignored: what belongs to another method is refused.
    for foreign in [["--method", "kcm", "--lambda", "3"], ["--method", "dual-cp", "--round-to", "8"]] {
        let (status, errors) = failure(&[&prune[..], &task, &foreign, &["--keep-flops", "0.8"]].concat());
        assert!(status == 2 && errors.contains("means nothing to"), "{errors}");
    }
    let found = run(&[&prune[..], &latency, &task, &["--method", "mask-tuning"]].concat());
    let table = &found["result"]["latency_table"];
    assert_eq!((table["batch"].as_u64(), table["length"].as_u64()), (Some(2), Some(16)), "{found:#}");
    assert_eq!(table["heads"].as_array().unwrap().len(), 4);
    assert_eq!(found["method"]["choices"]["budget"]["value"], "latency, see result");
    assert!(small.join("model.safetensors").is_file() && small.join("masks.json").is_file());
}
