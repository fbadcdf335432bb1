//! `sparsify` on models so small that a run takes seconds: every method leaves masks and records, what was trained loads
//! again, an interrupted run continues, and wrong input is one clear error each.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::train::{assert_whole_model, failure, pretrained, run, text};

/// Rows "a and b": small if the first is below the second.
fn table(folder: &Path) -> PathBuf {
    let names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let data = folder.join("rows");
    std::fs::create_dir_all(&data).unwrap();
    for (name, count) in [("train.csv", 48), ("dev.csv", 16)] {
        let row = |i: usize| {
            let (a, b) = (i * 7 % 10, i * 3 / 2 % 10);
            format!("{} and {},{}\n", names[a], names[b], if a < b { "small" } else { "large" })
        };
        let rows: String = (0..count).map(row).collect();
        std::fs::write(data.join(name), format!("text,label\n{rows}")).unwrap();
    }
    data
}

struct Fixture {
    folder: tempfile::TempDir,
    model: PathBuf,
    data: PathBuf,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let more = ["--train-tokenizer", "300", "--steps", "4", "--batch-size", "4"];
        let (model, _) = pretrained(folder.path(), "masked-lm", &more);
        let data = table(folder.path());
        Fixture { folder, model, data }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Arguments of a run that writes to `out`.
    fn arguments<'a>(&'a self, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["sparsify", "--model", text(&self.model), "--task", "table"];
        arguments.extend(["--data", text(&self.data), "--out", text(out), "--epochs", "3"]);
        arguments.extend(["--batch-size", "8", "--quiet"]);
        arguments.extend(more);
        arguments
    }

    fn sparsify(&self, name: &str, more: &[&str]) -> (PathBuf, Value) {
        let out = self.path(name);
        let record = run(&self.arguments(&out, more));
        assert!(out.join("masks.safetensors").is_file() && out.join("run.json").is_file());
        assert!(out.join("report.html").is_file() && !out.join("checkpoints").exists());
        (out, record)
    }

    fn refused(&self, more: &[&str], part: &str) {
        let out = self.path("refused");
        let (status, message) = failure(&self.arguments(&out, more));
        assert_eq!(status, 2, "{more:?}: {message}");
        assert!(message.contains(part), "{more:?}: {message}");
        assert!(!out.exists() && !self.path("refused.partial").exists(), "{more:?} left something");
    }
}

const SMP: [&str; 4] = ["--method", "smp", "--keep-weights", "0.3"];
const WORDS: [&str; 2] = ["--label-words", "one,two"];

#[test]
fn every_method_leaves_masks_of_the_asked_size() {
    let fixture = Fixture::new();
    for method in ["smp", "movement", "soft-movement", "magnitude", "l0"] {
        let mut more = vec!["--method", method, "--keep-weights", "0.3"];
        if method == "smp" {
            more.extend(WORDS);
        }
        if matches!(method, "soft-movement" | "l0") {
            more.push("--snap");
        }
        let (out, record) = fixture.sparsify(method, &more);
        let kept = record["result"]["keep_weights"].as_f64().unwrap();
        // Whole matrices round down: at most one weight each of 256.
        assert!(
            kept <= 0.3 && kept > 0.3 - 1.0 / 256.0 - if method == "smp" { 0.1 } else { 0.0 },
            "{method}: {kept}"
        );
        assert_eq!(record["method"]["name"], method);
        assert_eq!(record["training"][0]["steps"], 18);
        if method == "smp" {
            assert!(!out.join("model.safetensors").exists(), "SMP's model is the one it was given");
            continue;
        }
        assert_whole_model(&out);
        let evaluated =
            run(&["evaluate", "--model", text(&out), "--task", "table", "--data", text(&fixture.data)]);
        assert_eq!(evaluated["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"], "{method}");
    }
}

#[test]
fn a_teacher_must_be_of_the_same_task() {
    let fixture = Fixture::new();
    let (dense, masks) = (fixture.path("dense"), fixture.path("taught"));
    let (model, data) = (text(&fixture.model), text(&fixture.data));
    run(&[
        "finetune",
        "--model",
        model,
        "--task",
        "table",
        "--data",
        data,
        "--out",
        text(&dense),
        "--epochs",
        "1",
    ]);
    let more = [&SMP[..], &WORDS, &["--teacher", text(&dense)]].concat();
    let record = run(&fixture.arguments(&masks, &more));
    let choices = &record["method"]["choices"];
    assert!(choices["distillation"]["value"].as_str().unwrap().contains("0.5 teacher"), "{choices}");
    // Classes in another order are another question.
    let path = dense.join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let swapped =
        config.replace("\"small\"", "\"x\"").replace("\"large\"", "\"small\"").replace("\"x\"", "\"large\"");
    assert!(swapped != config);
    std::fs::write(&path, swapped).unwrap();
    fixture.refused(&more, "numbers its classes");
    // A model without a head for the task is no teacher.
    fixture.refused(&[&SMP[..], &WORDS, &["--teacher", model]].concat(), "the teacher");
}

#[test]
fn wrong_choices_are_refused_before_anything_is_trained() {
    let fixture = Fixture::new();
    for keep in ["0", "1.5", "-0.1", "nan"] {
        let keep = format!("--keep-weights={keep}");
        fixture.refused(&[&["--method", "smp", &keep][..], &WORDS].concat(), "above 0 and at most 1");
    }
    let smp = |more: &[&'static str]| [&SMP[..], more].concat();
    fixture.refused(&smp(&[]), "--label-words");
    fixture.refused(&smp(&["--label-words", "one"]), "1 label words for the 2 outputs");
    fixture.refused(&smp(&["--label-words", "one,one"]), "two classes");
    fixture.refused(&smp(&["--label-words", "one,unbelievable"]), "is not one token");
    fixture.refused(&smp(&["--label-words", "one,two", "--prune-steps", "19"]), "longer than the training");
    fixture.refused(&smp(&["--label-words", "one,two", "--profile", "authors"]), "longer than the training");
    fixture.refused(&smp(&["--label-words", "one,two", "--snap"]), "--snap");
    fixture.refused(&smp(&["--label-words", "one,two", "--lambda=-1"]), "--lambda");
    let movement = ["--method", "movement", "--keep-weights", "0.3"];
    for option in
        [&["--masking", "global"][..], &["--trained-head"], &["--label-words", "a,b"], &["--lambda", "3"]]
    {
        fixture.refused(&[&movement[..], option].concat(), "belongs to");
    }
}
