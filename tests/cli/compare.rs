//! `compare` and `methods`: a grid of tiny cells, run once, continued, listed, gathered.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::report::assert_page;
use crate::train::{failure, pretrained, run, secateur, text};

/// A command without the seed that others are given: a comparison has seeds of its own.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    command.args(arguments);
    command
}

/// Runs a comparison; what it found.
fn compare(arguments: &[&str]) -> Value {
    let output = command(arguments).arg("--json").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Status and errors of a comparison that fails.
fn refused(arguments: &[&str]) -> (i32, String) {
    let output = command(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A grid with other values for some options, and options it has not.
fn with<'a>(grid: &[&'a str], options: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let mut grid = grid.to_vec();
    for (name, value) in options {
        match grid.iter().position(|word| word == name) {
            Some(at) => grid[at + 1] = value,
            None => grid.extend([name, value]),
        }
    }
    grid
}

fn model(folder: &Path) -> PathBuf {
    pretrained(folder, "masked-lm", &["--train-tokenizer", "300", "--epochs", "1", "--batch-size", "8"]).0
}

/// One seed of the built-in task, the smallest grid that trains.
fn small<'a>(model: &'a str, out: &'a str, methods: &'a str, keep: &'a str) -> Vec<&'a str> {
    let all = with(&arguments(model, out), &[("--methods", methods), ("--keep-flops", keep)]);
    with(&all, &[("--seeds", "1"), ("--train-rows", "32"), ("--eval-rows", "20")])
}

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

    let listed = command(&[&grid[..], &["--list"]].concat()).output().unwrap();
    let lines = String::from_utf8(listed.stdout).unwrap();
    // Of each seed: the dense model, masks and two fine-tunings of the two that prune first, one cell for each other.
    assert_eq!(lines.lines().filter(|line| !line.starts_with('#')).count(), 2 * 12, "{lines}");
    assert_eq!(lines.lines().filter(|line| line.starts_with('#')).count(), 2, "{lines}");
    assert!(!out.exists());

    let latency =
        ["--latency", "--latency-repeats", "5", "--latency-batches", "1,2", "--latency-lengths", "16"];
    let found = compare(&[&grid[..], &latency].concat());
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
    assert_eq!(found["missing"], serde_json::json!([]));
    let out_of_reach: Vec<_> = found["out_of_reach"].as_array().unwrap().iter().collect();
    assert!(out_of_reach.iter().any(|m| *m == "agreement/seed-1/kcm/keep-0.1"), "{out_of_reach:?}");
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
    // One row is a question of its own.
    assert!(page.contains("batch 1 × 16 tokens") && page.contains("batch 2 × 16 tokens"));
    let (status, errors) = refused(&[&grid[..], &latency[..4], &["1"]].concat());
    assert!(status == 2 && errors.contains("--latency-batches 1,2"), "{errors}");

    // Other budgets would be missing from the cells that are there.
    let (status, errors) = refused(&with(&grid, &[("--keep-flops", "0.8")]));
    assert!(status == 2 && errors.contains("--keep-flops 0.1,0.8"), "{errors}");

    // Again: nothing runs. With one cell gone, that one runs.
    let cells = out.join("cells/agreement/seed-1");
    let (dense, kcm) = (cells.join("dense/run.json"), cells.join("kcm/keep-0.8/run.json"));
    let before = (modified(&dense), modified(&kcm));
    compare(&grid);
    assert_eq!((modified(&dense), modified(&kcm)), before);
    std::fs::remove_dir_all(cells.join("kcm")).unwrap();
    let gathered = compare(&[&grid[..], &["--gather"]].concat());
    assert_eq!(gathered["rows"].as_array().unwrap().len(), rows.len() - 1);
    let again = compare(&grid);
    assert!(modified(&dense) == before.0 && modified(&kcm) > before.1);
    let value = |found: &serde_json::Value| found["summary"].clone();
    assert_eq!(value(&again), value(&found), "the same seeds give the same quality");
}

#[test]
fn a_finished_cell_is_the_one_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(folder.path()), folder.path().join("compared"));
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(&model).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    let grid = small(text(&model), text(&out), "kcm,random-units", "0.8");
    compare(&grid);
    for (name, value, cell) in [
        ("--epochs", "2", "agreement/seed-1/dense"),
        ("--train-rows", "48", "agreement/seed-1/dense"),
        ("--model", text(&other), "agreement/seed-1/dense"),
        ("--calibration-rows", "16", "agreement/seed-1/kcm"),
        ("--choose", "kcm:kernel=2s2", "agreement/seed-1/kcm"),
        ("--profile", "authors", "agreement/seed-1/kcm"),
    ] {
        for mode in [&[][..], &["--gather"], &["--list"]] {
            let (status, errors) = refused(&[&with(&grid, &[(name, value)])[..], mode].concat());
            let option = if name == "--choose" { "kernel=2s2" } else { value };
            assert!(
                status == 2 && errors.contains(option) && errors.contains(cell),
                "{name} {mode:?}: {errors}"
            );
            assert!(errors.contains("remove") && errors.contains("--out"), "{errors}");
        }
    }
    // What changes no result is free, and so is where the comparison lies.
    let moved = folder.path().join("moved");
    std::fs::rename(&out, &moved).unwrap();
    let again = compare(&with(&grid, &[("--out", text(&moved)), ("--threads", "1"), ("--jobs", "1")]));
    assert_eq!(again["rows"].as_array().unwrap().len(), 3);
    std::fs::rename(&moved, &out).unwrap();

    // A method before and after fine-tuning, side by side.
    let both = compare(&with(&grid, &[("--methods", "kcm"), ("--stage", "pre,post")]));
    let stages: Vec<_> =
        both["rows"].as_array().unwrap().iter().map(|r| (&r["method"], &r["stage"])).collect();
    assert_eq!(format!("{stages:?}").matches("kcm").count(), 2, "{stages:?}");
    assert!(stages.iter().any(|(method, stage)| *method == "kcm-pre" && *stage == "pre"), "{stages:?}");

    // A dense model made anew, in another way: the models pruned from the old one are not its own.
    std::fs::remove_dir_all(out.join("cells/agreement/seed-1/dense")).unwrap();
    let (status, errors) = refused(&with(&grid, &[("--epochs", "2")]));
    assert!(status == 2 && errors.contains("agreement/seed-1/kcm was made of another"), "{errors}");
    // In the same way it is the same, to the bits.
    std::fs::remove_dir_all(out.join("cells/agreement/seed-1/dense")).unwrap();
    compare(&grid);
    // A cell that nothing is known of.
    std::fs::remove_file(out.join("cells/agreement/seed-1/kcm/keep-0.8/run.json")).unwrap();
    let (status, errors) = refused(&grid);
    assert!(status == 2 && errors.contains("agreement/seed-1/kcm is there, but"), "{errors}");
}

#[test]
fn a_task_stands_twice_and_the_listed_lines_make_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let tasks = ("--tasks", "agreement:first,agreement:second");
    let grid = |out| {
        let grid = small("pretrained", out, "random,dual-cp,mask-tuning,layer-dropping", "0.8,0.1");
        with(&grid, &[tasks, ("--choose", "dual-cp:lambda=2")])
    };
    assert!(model.ends_with("pretrained"));
    let at = |arguments: &[&str]| {
        let output = command(arguments).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    at(&grid("run"));
    let lines = at(&[&grid("listed")[..], &["--list"]].concat());
    assert!(!lines.contains("--threads"), "{lines}");
    assert!(lines.contains("--device cpu") && lines.contains("--lambda 2"), "{lines}");
    let lines = at(&[&grid("listed")[..], &["--list", "--threads", "1"]].concat());
    assert!(lines.contains("--threads 1"), "{lines}");
    // The lines run from anywhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("lines.sh");
    std::fs::write(&file, format!("set -e\n{lines}")).unwrap();
    let output = Command::new("sh").arg(&file).current_dir(elsewhere.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    at(&[&grid("listed")[..], &["--gather"]].concat());

    // All columns but the seconds are equal.
    let table = |out: &str| -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(folder.path().join(out).join("compare.csv")).unwrap();
        let rows = text.lines().map(|line| line.split(',').take(9).map(String::from).collect());
        rows.collect()
    };
    let (run, listed) = (table("run"), table("listed"));
    assert_eq!(run, listed);
    for label in ["first", "second"] {
        assert!(run.iter().filter(|row| row[0] == label).count() >= 4, "{run:?}");
        assert!(folder.path().join("run/cells").join(label).join("seed-1/dense/run.json").is_file());
    }
    let page = std::fs::read_to_string(folder.path().join("run/compare.html")).unwrap();
    assert!(page.contains("first") && page.contains("second"));
    let again = at(&[&grid("listed")[..], &["--list"]].concat());
    assert!(again.lines().all(|line| line.starts_with('#')), "{again}");

    // The control is cut from the trees of dual-cp, and is what it would be by itself.
    let masks = folder.path().join("run/cells/first/seed-1/dual-cp/masks");
    assert!(!folder.path().join("run/cells/first/seed-1/random/masks").exists());
    let alone = folder.path().join("alone");
    for (method, shared) in [("dual-cp", masks.clone()), ("random", masks.join("random"))] {
        let record: Value =
            serde_json::from_slice(&std::fs::read(shared.join("keep-0.8/run.json")).unwrap()).unwrap();
        assert_eq!(record["method"]["name"], method);
        assert_eq!(record["method"]["choices"]["lambda"]["value"], "2");
        let own = ["prune", "--model", text(&model), "--task", "agreement", "--max-length", "32"];
        let rows = ["--train-rows", "32", "--calibration-rows", "32", "--seed", "1", "--device", "cpu"];
        let choice = ["--method", method, "--lambda", "2", "--keep-flops", "0.8"];
        let out = ["--out", text(&alone), "--overwrite"];
        at(&[&own[..], &rows, &choice, &out].concat());
        let masks = |folder: &Path| std::fs::read(folder.join("masks.json")).unwrap();
        assert!(masks(&alone) == masks(&shared.join("keep-0.8")), "{method}");
    }
}

#[test]
fn a_method_that_reaches_no_budget_is_finished_and_empty() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(folder.path()), folder.path().join("compared"));
    let grid = small(text(&model), text(&out), "dual-cp,kcm", "0.01");
    for _ in 0..2 {
        let found = compare(&grid);
        assert_eq!(found["rows"].as_array().unwrap().len(), 1, "the dense model alone");
        let names = ["agreement/seed-1/dual-cp/keep-0.01", "agreement/seed-1/kcm/keep-0.01"];
        assert_eq!(found["out_of_reach"], serde_json::json!(names));
        assert_eq!(found["missing"], serde_json::json!([]));
    }
    let log = std::fs::read_to_string(out.join("logs/agreement_seed-1_kcm.log")).unwrap();
    assert_eq!(log.matches("left out").count(), 1, "{log}");
    // Without a directory for each budget there would be nothing to write.
    let prune =
        ["prune", "--model", text(&model), "--task", "agreement", "--keep-flops", "0.01", "--device", "cpu"];
    let out = folder.path().join("masks");
    let (status, errors) = failure(&[&prune[..], &["--skip-infeasible", "--out", text(&out)]].concat());
    assert!(status != 0 && !out.exists(), "{errors}");
}

#[test]
fn an_interruption_reaches_the_running_cells() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(folder.path()), folder.path().join("compared"));
    // So many epochs that it does not end by itself.
    let grid = small(text(&model), text(&out), "kcm", "0.8");
    let grid = with(&grid, &[("--epochs", "1000000")]);
    let partial = out.join("cells/agreement/seed-1/dense.partial");
    let started = Instant::now();
    let patient = |what: &str| {
        assert!(started.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut child = command(&grid).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !partial.join("checkpoints/training_state.safetensors").exists() {
        patient("no checkpoint after two minutes");
    }
    // This process alone, not its group as a terminal would.
    let kill = |id: &str| Command::new("kill").args(["-TERM", id]).status().unwrap();
    assert!(kill(&child.id().to_string()).success());
    let cell = std::fs::read_to_string(partial.join("writer.pid")).unwrap();
    let asked = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if asked.elapsed() > Duration::from_secs(60) => {
                kill(&cell);
                child.kill().unwrap();
                panic!("a cell still runs after a minute");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(status.code(), Some(1));
    // The cell has ended in order: its checkpoint is there, its claim is not.
    assert!(partial.join("checkpoints/training_state.safetensors").exists());
    assert!(!partial.join("writer.pid").exists());
}

#[test]
fn a_failed_cell_is_named_with_its_output_and_the_others_run() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(folder.path()), folder.path().join("compared"));
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let broken = format!("mrpc={}", text(&empty));
    let tasks = format!("agreement,{broken}");
    let grid = small(text(&model), text(&out), "random-units", "0.5");
    let log = out.join("logs/mrpc_seed-1_dense.log");

    // Where nothing else has run, the failure is what is said.
    let (status, errors) = refused(&with(&grid, &[("--tasks", &broken)]));
    assert!(status == 1 && !errors.contains("no cell has run"), "{errors}");
    assert!(errors.contains("mrpc/seed-1/dense") && errors.contains(text(&log)), "{errors}");
    let output = std::fs::read_to_string(&log).unwrap();
    assert!(errors.contains(output.lines().last().unwrap()), "{errors}");

    let (status, errors) = refused(&with(&grid, &[("--tasks", &tasks)]));
    assert!(status == 1 && errors.contains("mrpc/seed-1/dense"), "{errors}");
    assert!(out.join("cells/agreement/seed-1/random-units/keep-0.5/run.json").is_file());
    assert!(out.join("compare.csv").is_file());
}

#[test]
fn what_no_cell_could_use_is_refused_before_any_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(folder.path()), folder.path().join("compared"));
    let grid = small(text(&model), text(&out), "kcm,dual-cp", "0.8");
    let wrong = [
        (with(&grid, &[("--seeds", "1,1")]), "twice"),
        (with(&grid, &[("--keep-flops", "0.5,0.5")]), "twice"),
        (with(&grid, &[("--methods", "kcm,kcm")]), "twice"),
        (with(&grid, &[("--tasks", "agreement,agreement")]), "NAME:LABEL=PATH"),
        (with(&grid, &[("--tasks", "agreement:../up")]), "names a directory"),
        (with(&grid, &[("--tasks", "nonsense=/tmp")]), "nonsense"),
        (with(&grid, &[("--tasks", "mrpc")]), "needs data"),
        (with(&grid, &[("--tasks", "mrpc=/nowhere")]), "/nowhere"),
        (with(&grid, &[("--model", "/nowhere")]), "/nowhere"),
        (with(&grid, &[("--keep-flops", "1.5")]), "1.5"),
        (with(&grid, &[("--recipe", "nonsense")]), "nonsense"),
        (with(&grid, &[("--choose", "kernel=s2")]), "METHOD:NAME=VALUE"),
        (with(&grid, &[("--choose", "taylor:score=fisher")]), "not among the --methods"),
        (with(&grid, &[("--choose", "kcm:nonsense=1")]), "nonsense"),
        (with(&grid, &[("--choose", "dual-cp:nonsense=1")]), "nonsense"),
        (with(&grid, &[("--methods", "random"), ("--choose", "random:lambda=2")]), "choose for that"),
        (with(&grid, &[("--choose", "dual-cp:linkage=nonsense")]), "nonsense"),
        (with(&grid, &[("--seed", "3")]), "--seeds 3"),
        (with(&grid, &[("--against", "m")]), "--against"),
        ([&grid[..], &["--resume"]].concat(), "--resume"),
        (with(&grid, &[("--latency-batches", "4")]), "--latency"),
    ];
    for (arguments, what) in wrong {
        for mode in [&[][..], &["--list"]] {
            let output = command(&[&arguments[..], mode].concat()).output().unwrap();
            let errors = String::from_utf8(output.stderr).unwrap();
            assert!(
                output.status.code().is_some_and(|code| code != 0) && errors.contains(what),
                "{what}: {errors}"
            );
            assert!(output.stdout.is_empty() && !out.exists(), "{what}");
        }
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
