//! `cap-f` on models so small that a run takes seconds: what is asked is kept, what is saved is what was measured, an
//! interrupted run continues to the same bits, and wrong input is one clear error each.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::sparsify::{Fixture, wide_classifier};
use crate::train::{assert_whole_model, failure, run, secateur, text};

fn arguments<'a>(fixture: &'a Fixture, teacher: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["cap-f", "--model", text(&fixture.model), "--teacher", text(teacher)];
    arguments.extend(["--task", "table", "--data", text(&fixture.data), "--out", text(out)]);
    arguments.extend(["--batch-size", "8", "--extra-candidates", "20"]);
    arguments.extend(more);
    arguments
}

fn masks(out: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("masks.json")).unwrap()).unwrap()
}

/// Units that the masks of `kind` keep, by layer.
fn kept(masks: &Value, kind: &str) -> Vec<usize> {
    let layer =
        |layer: &Value| layer.as_array().unwrap().iter().filter(|unit| unit.as_f64() != Some(0.0)).count();
    masks[kind].as_array().unwrap().iter().map(layer).collect()
}

#[test]
fn steps_of_a_tenth_lead_to_the_fraction_asked() {
    let fixture = Fixture::new();
    let (teacher, out) = (fixture.teacher(), fixture.path("small"));
    let record = run(&arguments(&fixture, &teacher, &out, &["--keep-flops", "0.65"]));
    assert_whole_model(&out);
    assert!(out.join("report.html").is_file() && !out.join("checkpoints").exists());
    // 2 layers of 4 heads and 64 neurons: 65 % are 5 heads and 83 neurons.
    let masks = masks(&out);
    let (heads, neurons) = (kept(&masks, "heads"), kept(&masks, "neurons"));
    assert_eq!((heads.iter().sum::<usize>(), neurons.iter().sum::<usize>()), (5, 83));
    assert!(heads.iter().all(|&heads| heads > 0), "{heads:?}");
    // Of 0.9, 0.8, 0.7, 0.65; two epochs of six steps each.
    let trained: Vec<&str> =
        record["training"].as_array().unwrap().iter().map(|t| t["variant"].as_str().unwrap()).collect();
    assert_eq!(trained, ["cap-f 0.900", "cap-f 0.800", "cap-f 0.700", "cap-f 0.650"]);
    assert!(record["training"].as_array().unwrap().iter().all(|training| training["steps"] == 12));
    let reached = record["keep_flops"]["reached"].as_f64().unwrap();
    assert!(reached <= 0.65 && reached > 0.62, "{reached}");
    assert!(record["compact"]["max_logit_difference"].as_f64().unwrap() < 1e-4);
    assert_eq!(record["method"]["choices"]["contrastive-weights"]["value"], "0.3,3");
    let size = &record["size"];
    assert!(size["parameters_kept"].as_u64().unwrap() < size["parameters_dense"].as_u64().unwrap());
    let evaluated =
        run(&["evaluate", "--model", text(&out), "--task", "table", "--data", text(&fixture.data)]);
    assert_eq!(evaluated["evaluations"][0]["metrics"], record["evaluations"][0]["metrics"]);
}

#[test]
fn an_interrupted_run_is_continued_to_the_same_bits() {
    let fixture = Fixture::new();
    let teacher = fixture.teacher();
    let more = ["--keep-flops", "0.7", "--epochs", "60", "--learning-rate", "0.001"];
    let (whole, cut) = (fixture.path("whole"), fixture.path("cut"));
    run(&arguments(&fixture, &teacher, &whole, &more));
    let cut_arguments = arguments(&fixture, &teacher, &cut, &more);
    let mut child = secateur(&cut_arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // In the training of the second step.
    let partial = fixture.path("cut.partial");
    let checkpoint = partial.join("checkpoints/step-2-training/training_state.safetensors");
    let start = Instant::now();
    while !checkpoint.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(1), "the run ended before it was interrupted");
    assert!(partial.join("checkpoints/step-1/model.safetensors").is_file() && !cut.exists());
    let mut resumed = cut_arguments.clone();
    resumed.push("--resume");
    // Other choices are another run.
    let other = [&resumed[..], &["--weight-decay", "0.5"]].concat();
    let (status, message) = failure(&other);
    assert!(status != 0 && message.contains("belongs to another run"), "{message}");
    let record = run(&resumed);
    assert!(!partial.exists());
    assert_eq!(record["training"].as_array().unwrap().len(), 3);
    for name in ["model.safetensors", "config.json", "masks.json"] {
        let read = |directory: &Path| std::fs::read(directory.join(name)).unwrap();
        assert!(read(&cut) == read(&whole), "{name} differs");
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_written() {
    let fixture = Fixture::new();
    let (teacher, out) = (fixture.teacher(), fixture.path("out"));
    let refused = |teacher: &Path, more: &[&str], part: &str| {
        let (status, message) = failure(&arguments(&fixture, teacher, &out, more));
        assert_eq!(status, 2, "{more:?}: {message}");
        assert!(message.contains(part), "{more:?}: {message}");
        assert!(!out.exists() && !fixture.path("out.partial").exists(), "{more:?} left something");
    };
    for keep in ["0", "1", "1.5", "-0.1", "nan"] {
        refused(&teacher, &[&format!("--keep-flops={keep}")], "above 0 and below 1");
    }
    refused(&teacher, &["--keep-flops", "0.5", "--contrastive-temperature", "0"], "positive");
    refused(&teacher, &["--keep-flops", "0.5", "--contrastive-weights", "1,2,3"], "two numbers");
    // Not fine-tuned; of another width.
    refused(&fixture.model, &["--keep-flops", "0.5"], "the teacher");
    refused(&wide_classifier(&fixture, &teacher), &["--keep-flops", "0.5"], "same hidden size");
    let (status, message) = failure(&["cap-f", "--model", text(&fixture.model), "--out", text(&out)]);
    assert!(status == 2 && message.contains("--teacher"), "{message}");
}
