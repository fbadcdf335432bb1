//! `evaluate --latency`: a grid of measurements, and clear refusals.

use std::path::Path;

use assert_cmd::Command;
use secateur::model::{Head, Model, ModelConfig};
use secateur::report::RunRecord;

fn save(folder: &Path, fields: &str, head: Head) -> String {
    let config =
        ModelConfig::from_json(serde_json::from_str(fields).unwrap(), Path::new("config.json")).unwrap();
    Model::from_config(config, head, 1).unwrap().save(folder).unwrap();
    folder.to_str().unwrap().to_string()
}

const BERT: &str = r#"{"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32}"#;
const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4,
    "n_positions": 32}"#;

fn evaluate(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::cargo_bin("secateur").unwrap();
    command.args(["evaluate", "--device", "cpu", "--latency", "--latency-repeats", "6"]).args(arguments);
    command.output().unwrap()
}

#[test]
fn every_point_of_the_grid_is_measured_for_both_models() {
    for (fields, head) in
        [(BERT, Head::Classification { labels: 2 }), (BERT, Head::Span), (GPT2, Head::CausalLm)]
    {
        let folder = tempfile::tempdir().unwrap();
        let model = save(&folder.path().join("model"), fields, head);
        let grid = ["--latency-batches", "1,3", "--latency-lengths", "5,32"];
        let output = evaluate(&[&["--model", &model, "--against", &model, "--json"][..], &grid].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let record: RunRecord = serde_json::from_slice(&output.stdout).unwrap();
        let points: Vec<_> = record.latency.iter().map(|l| (l.variant.as_str(), l.batch, l.length)).collect();
        let both = [(1, 5), (1, 32), (3, 5), (3, 32)];
        let expected: Vec<_> = both.iter().flat_map(|&(b, t)| [("model", b, t), ("against", b, t)]).collect();
        assert_eq!(points, expected);
        assert!(record.latency.iter().all(|l| l.median > 0.0 && l.median <= l.p95 && l.repeats == 6));
    }
}

#[test]
fn the_table_compares() {
    let folder = tempfile::tempdir().unwrap();
    let model = save(folder.path(), BERT, Head::Backbone);
    let output = evaluate(&["--model", &model, "--against", &model, "--latency-lengths", "8"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("faster"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains('×')).count(), 3, "{text}");
}

#[test]
fn impossible_grids_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = save(folder.path(), BERT, Head::Backbone);
    for (arguments, part) in [
        (["--latency-lengths", "33"], "32 positions"),
        (["--latency-batches", "0"], "at least 1"),
        (["--latency-repeats", "0"], "at least 1"),
    ] {
        let mut command = Command::cargo_bin("secateur").unwrap();
        command.args(["evaluate", "--device", "cpu", "--latency", "--model", &model]).args(arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(part), "{arguments:?}: {text}");
    }
}
