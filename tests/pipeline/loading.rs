//! Checkpoints in their many spellings.

use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use secateur::model::{Family, Head, HeadRequest, Model};
use serde_json::{Value, json};

use crate::support;
use crate::tiny;

/// Tensors of a saved model: name, shape, values.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn saved(family: Family, head: Head) -> (tempfile::TempDir, Model) {
    let directory = tempfile::tempdir().unwrap();
    let model = Model::from_config(tiny::config(family), head, 5).unwrap();
    model.save(directory.path()).unwrap();
    (directory, model)
}

fn read(directory: &Path) -> Tensors {
    let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    file.tensors().into_iter().map(|(name, t)| (name, t.shape().to_vec(), floats(t.data()))).collect()
}

fn write(path: &Path, tensors: &Tensors, dtype: Dtype) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| match dtype {
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.clone(), TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn rewrite(directory: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = read(directory);
    change(&mut tensors);
    write(&directory.join("model.safetensors"), &tensors, Dtype::F32);
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names
}

#[test]
fn every_family_and_head_survives_saving() {
    for family in Family::ALL {
        for head in tiny::heads(family) {
            let (directory, model) = saved(family, head);
            let loaded = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap();
            assert_eq!(loaded.architecture.head, head, "{family:?}");
            assert_eq!(loaded.values, model.values, "{family:?} {head:?}");
            assert_eq!(loaded.report.loaded, model.layout().count());
            assert!(loaded.report.initialised.is_empty() && loaded.report.unused.is_empty());
            let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
            assert_eq!(left.len(), 2, "temporary files are left: {left:?}");
        }
    }
}

#[test]
fn fields_not_understood_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut map = tiny::config_json(Family::Bert);
    map.insert("my_own_field".into(), json!({"a": [1, 2]}));
    map.insert("id2label".into(), json!({"1": "yes", "0": "no"}));
    let config = tiny::parse(map).unwrap();
    let head = Head::Classification { labels: 2 };
    Model::from_config(config, head, 1).unwrap().save(directory.path()).unwrap();
    let text = std::fs::read_to_string(directory.path().join("config.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["my_own_field"], json!({"a": [1, 2]}));
    assert_eq!(value["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(value["label2id"], json!({"no": 0, "yes": 1}));
    assert_eq!(value["num_attention_heads"], json!(4));
    assert!(value.get("secateur").is_none(), "an unpruned model needs no extra field");
}

#[test]
fn backbones_load_into_tasks_and_tasks_into_backbones() {
    for family in Family::ALL {
        let (directory, backbone) = saved(family, Head::Backbone);
        let task = Head::Classification { labels: 3 };
        let model = Model::load(directory.path(), HeadRequest::Task(task), 7).unwrap();
        assert_eq!(model.report.loaded, backbone.layout().count(), "{family:?}");
        let head = model.architecture.parameters.head_ids();
        let names: Vec<_> = head.iter().map(|id| model.layout().get(*id).name.clone()).collect();
        assert_eq!(sorted(&model.report.initialised), sorted(&names), "{family:?}");
        // The same seed draws the same head, another seed another one.
        let again = Model::load(directory.path(), HeadRequest::Task(task), 7).unwrap();
        let other = Model::load(directory.path(), HeadRequest::Task(task), 8).unwrap();
        assert_eq!(model.values, again.values, "{family:?}");
        assert_ne!(model.values, other.values, "{family:?}");
        let directory = tempfile::tempdir().unwrap();
        model.save(directory.path()).unwrap();
        let back = Model::load(directory.path(), HeadRequest::Task(Head::Backbone), 0).unwrap();
        assert_eq!(back.values, backbone.values, "{family:?}");
        assert_eq!(sorted(&back.report.unused), sorted(&names), "{family:?}");
    }
}

#[test]
fn another_number_of_classes_takes_a_new_classifier_only_when_asked_for() {
    let (directory, model) = saved(Family::Bert, Head::Classification { labels: 2 });
    let request = HeadRequest::Task(Head::Classification { labels: 3 });
    let loaded = Model::load(directory.path(), request, 1).unwrap();
    assert_eq!(loaded.report.initialised, ["classifier.weight", "classifier.bias"]);
    assert_eq!(loaded.report.loaded, model.layout().count() - 2, "the pooler is kept");
    assert_eq!(loaded.config().labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    // A file that contradicts its own configuration is broken.
    let path = directory.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["id2label"] = json!({"0": "a", "1": "b", "2": "c"});
    std::fs::write(&path, value.to_string()).unwrap();
    for request in [request, HeadRequest::AsSaved] {
        let message = Model::load(directory.path(), request, 1).unwrap_err().to_string();
        for part in ["classifier.weight", "[2, 16]", "[3, 16]", "id2label"] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn old_names_stray_buffers_and_other_heads_do_not_hinder() {
    let (directory, model) = saved(Family::Bert, Head::Span);
    rewrite(directory.path(), |tensors| {
        for (name, _, _) in tensors.iter_mut() {
            let old = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            *name = old.replace("LayerNorm.bias", "LayerNorm.beta").replacen("bert.", "", 1);
        }
        tensors.push(("embeddings.position_ids".into(), vec![1, 4], vec![0.0; 4]));
        tensors.push(("cls.seq_relationship.weight".into(), vec![2, 16], vec![0.0; 32]));
    });
    let loaded = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap();
    assert_eq!(loaded.values, model.values);
    assert_eq!(loaded.report.unused, ["cls.seq_relationship.weight"]);

    let (directory, model) = saved(Family::Gpt2, Head::CausalLm);
    rewrite(directory.path(), |tensors| {
        let bare = |name: &str| name.replacen("transformer.", "", 1);
        tensors.iter_mut().for_each(|(name, _, _)| *name = bare(name));
        tensors.push(("h.0.attn.bias".into(), vec![1, 1, 2, 2], vec![1.0; 4]));
        tensors.push(("h.0.attn.masked_bias".into(), vec![1], vec![-1e4]));
        let word = tensors.iter().find(|(name, _, _)| name == "wte.weight").unwrap().clone();
        tensors.push(("lm_head.weight".into(), word.1, word.2));
    });
    let loaded = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap();
    assert_eq!(loaded.values, model.values);
    assert!(loaded.report.unused.is_empty(), "{:?}", loaded.report.unused);
}

#[test]
fn a_tied_head_may_not_differ_from_its_embedding_unless_untied() {
    let (directory, model) = saved(Family::Opt, Head::CausalLm);
    rewrite(directory.path(), |tensors| {
        let word = tensors.iter().find(|(name, _, _)| name.ends_with("embed_tokens.weight")).unwrap().clone();
        tensors.push(("lm_head.weight".into(), word.1, word.2.iter().map(|v| v + 1.0).collect()));
    });
    let message = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap_err().to_string();
    assert!(message.contains("lm_head.weight") && message.contains("tie_word_embeddings"), "{message}");
    let path = directory.path().join("config.json");
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    value["tie_word_embeddings"] = json!(false);
    std::fs::write(&path, value.to_string()).unwrap();
    let untied = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap();
    assert_eq!(untied.layout().count(), model.layout().count() + 1);
    let head = untied.layout().get(untied.layout().find("lm_head.weight").unwrap());
    let word = untied.layout().get(untied.layout().find("model.decoder.embed_tokens.weight").unwrap());
    assert_eq!(untied.values[head.offset], untied.values[word.offset] + 1.0);
}

#[test]
fn missing_tensors_are_named() {
    let (directory, _) = saved(Family::DistilBert, Head::Span);
    rewrite(directory.path(), |tensors| tensors.retain(|(name, _, _)| !name.contains("layer.1.ffn.lin1")));
    let message = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap_err().to_string();
    assert!(message.contains("distilbert.transformer.layer.1.ffn.lin1.weight and 1 more"), "{message}");
}

#[test]
fn half_precision_is_widened_exactly() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        let (directory, _) = saved(Family::Gpt2, Head::Backbone);
        let path = directory.path().join("model.safetensors");
        let mut tensors = read(directory.path());
        let round = |v: f32| match dtype {
            Dtype::F16 => f16::from_f32(v).to_f32(),
            _ => bf16::from_f32(v).to_f32(),
        };
        tensors.iter_mut().for_each(|(_, _, values)| values.iter_mut().for_each(|v| *v = round(*v)));
        write(&path, &tensors, dtype);
        let model = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap();
        for (name, shape, values) in &tensors {
            let parameter = model.layout().get(model.layout().find(name).unwrap());
            assert_eq!(parameter.len(), shape.iter().product::<usize>());
            for (row, expected) in values.chunks(parameter.cols).enumerate() {
                let start = parameter.offset + row * parameter.ld();
                assert_eq!(&model.values[start..start + parameter.cols], expected, "{name}");
            }
        }
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let (directory, model) = saved(Family::Roberta, Head::MaskedLm);
    let path = directory.path().join("model.safetensors");
    let tensors = read(directory.path());
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut weight_map = serde_json::Map::new();
    for (file, part) in [("model-1.safetensors", first), ("model-2.safetensors", second)] {
        write(&directory.path().join(file), &part.to_vec(), Dtype::F32);
        part.iter().for_each(|(name, _, _)| drop(weight_map.insert(name.clone(), json!(file))));
    }
    std::fs::remove_file(path).unwrap();
    let index = directory.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"metadata": {}, "weight_map": weight_map}).to_string()).unwrap();
    assert_eq!(Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap().values, model.values);
    std::fs::remove_file(directory.path().join("model-2.safetensors")).unwrap();
    let message = Model::load(directory.path(), HeadRequest::AsSaved, 0).unwrap_err().to_string();
    assert!(message.contains("model-2.safetensors"), "{message}");
}

#[test]
fn fresh_weights_have_the_published_distribution() {
    let mut map = tiny::config_json(Family::Gpt2);
    map.insert("n_embd".into(), json!(64));
    map.insert("vocab_size".into(), json!(4000));
    let model = Model::from_config(tiny::parse(map).unwrap(), Head::CausalLm, 3).unwrap();
    let deviation = |name: &str| {
        let parameter = model.layout().get(model.layout().find(name).unwrap());
        let values = &model.values[parameter.offset..parameter.offset + parameter.span()];
        let n = parameter.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
        // Standard errors of mean and deviation of a normal sample, four of them.
        assert!(mean.abs() < 4.0 * variance.sqrt() / n.sqrt(), "{name}: mean {mean}");
        (variance.sqrt(), 4.0 / (2.0 * n).sqrt())
    };
    let residual = 0.02 / 4.0f64.sqrt();
    for (name, expected) in [
        ("transformer.wte.weight", 0.02),
        ("transformer.h.0.attn.c_attn.weight", 0.02),
        ("transformer.h.0.attn.c_proj.weight", residual),
        ("transformer.h.1.mlp.c_proj.weight", residual),
    ] {
        let (found, relative) = deviation(name);
        assert!((found / expected - 1.0).abs() < relative, "{name}: {found}, expected {expected}");
    }
    let gamma = model.layout().get(model.layout().find("transformer.ln_f.weight").unwrap());
    assert!(model.values[gamma.offset..gamma.offset + 64].iter().all(|&v| v == 1.0));
    let bias = model.layout().get(model.layout().find("transformer.h.0.mlp.c_fc.bias").unwrap());
    assert!(model.values[bias.offset..bias.offset + 24].iter().all(|&v| v == 0.0));
}

#[test]
fn a_real_checkpoint_loads() {
    let Some(directory) = support::shared("models/all-MiniLM-L6-v2") else { return };
    let model = Model::load(&directory, HeadRequest::Task(Head::Classification { labels: 2 }), 0).unwrap();
    assert_eq!(model.report.initialised, ["classifier.weight", "classifier.bias"]);
    assert!(model.report.unused.is_empty(), "{:?}", model.report.unused);
    assert_eq!(model.layout().total_elements(), 22_713_216 + 2 * 384 + 2);
}
