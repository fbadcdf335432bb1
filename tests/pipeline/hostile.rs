//! Configurations and checkpoints nobody vouches for: errors that name the problem, no panics, no huge allocations.

use std::path::Path;

use secateur::model::{Family, Head, HeadRequest, Model};
use serde_json::{Value, json};

use crate::tiny;

fn config_error(family: Family, changes: &[(&str, Value)]) -> String {
    let mut map = tiny::config_json(family);
    for (name, value) in changes {
        map.insert(name.to_string(), value.clone());
    }
    tiny::parse(map).expect_err(&format!("{changes:?} was accepted")).to_string()
}

#[test]
fn broken_configurations_are_errors_that_name_the_field() {
    let cases: &[(&[(&str, Value)], &str)] = &[
        (&[("model_type", json!("llama"))], "known model types: bert, roberta, distilbert, gpt2, opt"),
        (&[("model_type", Value::Null)], "model_type"),
        (&[("num_attention_heads", json!(3))], "3 attention heads"),
        (&[("num_attention_heads", json!(0))], "0 attention heads"),
        (&[("num_hidden_layers", json!(0))], "0 layers"),
        (&[("num_hidden_layers", json!(u64::MAX))], "layers"),
        (&[("num_hidden_layers", json!(-2))], "num_hidden_layers"),
        (&[("hidden_size", json!(-16))], "hidden_size"),
        (&[("hidden_size", json!(16.5))], "hidden_size"),
        (&[("hidden_size", json!("16"))], "hidden_size"),
        (&[("hidden_size", json!(0))], "hidden size 0"),
        (&[("hidden_size", json!(1u64 << 62))], "hidden size"),
        (&[("intermediate_size", json!(0))], "feed-forward"),
        (&[("intermediate_size", json!(1u64 << 60))], "neurons"),
        (&[("vocab_size", json!(1u64 << 60))], "vocabulary"),
        (&[("vocab_size", json!(0))], "vocabulary"),
        (&[("max_position_embeddings", json!(0))], "positions"),
        (&[("type_vocab_size", json!(1u64 << 50))], "token-type"),
        (&[("hidden_act", json!("silu"))], "silu"),
        (&[("hidden_dropout_prob", json!(1.0))], "hidden_dropout_prob"),
        (&[("hidden_dropout_prob", json!(-0.1))], "hidden_dropout_prob"),
        (&[("layer_norm_eps", json!(0.0))], "epsilon"),
        (&[("initializer_range", json!(-1.0))], "initializer_range"),
        (&[("position_embedding_type", json!("relative_key"))], "relative_key"),
        (&[("is_decoder", json!(true))], "is_decoder"),
        (&[("quantization_config", json!({}))], "quantization_config"),
        (&[("problem_type", json!("multi_label_classification"))], "multi_label_classification"),
        (&[("id2label", json!({"0": "a", "2": "b"}))], "id2label"),
        (&[("id2label", json!({}))], "id2label"),
        (&[("id2label", json!([1]))], "id2label"),
        (&[("num_labels", json!(1u64 << 40))], "num_labels"),
        (&[("pad_token_id", json!(1u64 << 40))], "pad_token_id"),
        (&[("pruned_heads", json!({"0": [0, 1, 2, 3, 4]}))], "pruned_heads"),
        (&[("pruned_heads", json!({"7": [0]}))], "pruned_heads"),
        (&[("secateur", json!({"heads_per_layer": [1]}))], "heads_per_layer"),
        (&[("secateur", json!({"heads_per_layer": [1, -1]}))], "heads_per_layer"),
        (&[("secateur", json!({"heads_per_layer": [1, 1u64 << 50]}))], "heads"),
        (&[("secateur", json!({"neurons_per_layer": [1, 1u64 << 50]}))], "neurons"),
        (&[("secateur", json!({"removed_ffn": [1]}))], "layer 1"),
        (&[("secateur", json!({"original_layers": 1}))], "before pruning"),
        (&[("secateur", json!({"original_layers": 1u64 << 50}))], "before pruning"),
        (&[("secateur", json!({"removed_ffn": [2]}))], "removed_ffn"),
        (&[("secateur", json!([]))], "secateur"),
    ];
    for (changes, expected) in cases {
        let message = config_error(Family::Bert, changes);
        assert!(message.contains(expected), "{changes:?}: {message}");
        assert!(message.len() < 400, "{changes:?}: {message}");
    }
    let message = config_error(Family::Roberta, &[("pad_token_id", json!(40))]);
    assert!(message.contains("leave no position"), "{message}");
    let message = config_error(Family::Opt, &[("layer_norm_elementwise_affine", json!(false))]);
    assert!(message.contains("layer_norm_elementwise_affine"), "{message}");
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let model = Model::from_config(tiny::config(Family::Bert), Head::Span, 1).unwrap();
    model.save(directory.path()).unwrap();
    directory
}

fn load(directory: &Path) -> secateur::Result<Model> {
    Model::load(directory, HeadRequest::AsSaved, 1)
}

#[test]
fn truncated_and_scrambled_weights_are_errors() {
    let directory = directory();
    let path = directory.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    load(directory.path()).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 1, 7, 8, 9, 8 + header / 2, 8 + header, whole.len() - 4, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let message = load(directory.path()).expect_err(&format!("{length} bytes")).to_string();
        assert!(message.contains("safetensors"), "{length} bytes: {message}");
    }
    // Every byte of the length and a sweep over the header, changed.
    for at in (0..8).chain((8..8 + header).step_by(7)) {
        let mut broken = whole.clone();
        broken[at] ^= 0x15;
        std::fs::write(&path, &broken).unwrap();
        // Some changes are harmless (a space for another); none may panic or allocate without bound.
        let _ = load(directory.path());
    }
}

#[test]
fn headers_that_lie_are_errors() {
    let directory = directory();
    let path = directory.path().join("model.safetensors");
    let write = |header: &str, claimed: u64, data: usize| {
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(&path, bytes).unwrap();
        load(directory.path()).expect_err(header).to_string()
    };
    let with = |header: &str, data: usize| write(header, header.len() as u64, data);
    assert!(write("{}", u64::MAX, 0).contains("claims"));
    assert!(write("{}", 1 << 40, 0).contains("claims"));
    assert!(with("[]", 0).contains("header"));
    assert!(with(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 12).contains("truncated"));
    assert!(with(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, 16).contains("claims bytes"));
    assert!(with(r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#, 16).contains("has 16 bytes"));
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}"#;
    assert!(with(huge, 16).contains("has 16 bytes"));
    let end =
        r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#;
    assert!(with(end, 16).contains("claims bytes"));
    assert!(
        with(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,16]}}"#, 16).contains("broken header")
    );
    assert!(with(r#"{"a":{"dtype":"F32","shape":[4]}}"#, 16).contains("broken header"));
    let deep = "[".repeat(200_000);
    assert!(with(&deep, 0).contains("header"));
    // A well-formed file of another model.
    let other = with(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 16);
    assert!(other.contains("lacks tensor bert.embeddings.word_embeddings.weight and"), "{other}");
}

#[test]
fn a_configuration_larger_than_its_weights_allocates_nothing() {
    let directory = directory();
    let path = directory.path().join("config.json");
    let mut map = tiny::config_json(Family::Bert);
    // 2²⁴ · 2¹⁶ elements of word embedding: 4 TB. The file's shape contradicts it first.
    map.insert("vocab_size".into(), json!(1 << 24));
    map.insert("hidden_size".into(), json!(1 << 16));
    std::fs::write(&path, Value::Object(map.clone()).to_string()).unwrap();
    let message = Model::load(directory.path(), HeadRequest::Task(Head::Span), 1).unwrap_err().to_string();
    assert!(message.contains("[40, 16]") && message.contains("[16777216, 65536]"), "{message}");
    assert!(message.contains("vocab_size"), "{message}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let directory = directory();
        let mut model = load(directory.path()).unwrap();
        let layout = model.layout().clone();
        let id = layout.find("bert.encoder.layer.1.output.dense.weight").unwrap();
        let parameter = layout.get(id);
        model.values[parameter.offset + 2 * parameter.ld() + 3] = value;
        model.save(directory.path()).unwrap();
        let message = load(directory.path()).unwrap_err().to_string();
        for part in ["bert.encoder.layer.1.output.dense.weight", "row 2, column 3", shown] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn directories_without_a_model_say_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    assert!(load(directory.path()).unwrap_err().to_string().contains("config.json"));
    let config = Value::Object(tiny::config_json(Family::Gpt2)).to_string();
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    assert!(load(directory.path()).unwrap_err().to_string().contains("model.safetensors"));
    std::fs::write(directory.path().join("pytorch_model.bin"), "").unwrap();
    assert!(load(directory.path()).unwrap_err().to_string().contains("pickle"));
    let index = directory.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"a": "../../etc/passwd"}}"#).unwrap();
    assert!(load(directory.path()).unwrap_err().to_string().contains("plain file name"));
    std::fs::write(&index, r#"{"weight_map": 1}"#).unwrap();
    assert!(load(directory.path()).unwrap_err().to_string().contains("weight_map"));
}
