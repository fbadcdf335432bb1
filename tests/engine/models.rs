//! Tiny models and random batches for the tests of this binary.

use std::path::Path;

use secateur::data::{Batch, Example, Target};
use secateur::model::{Head, Model, ModelConfig};
use secateur::program::Extents;
use serde_json::{Value, json};

use crate::support::numbers::Random;

/// Configurations of the families, tiny; dropout as given.
pub fn config(family: &str, dropout: f64) -> ModelConfig {
    let fields = match family {
        "bert" => json!({"model_type": "bert", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 32, "type_vocab_size": 2,
            "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}),
        "roberta" => {
            json!({"model_type": "roberta", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 34, "type_vocab_size": 1,
            "pad_token_id": 1, "layer_norm_eps": 1e-5,
            "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout})
        }
        "distilbert" => {
            json!({"model_type": "distilbert", "vocab_size": 50, "dim": 24, "n_layers": 2, "n_heads": 3,
            "hidden_dim": 40, "max_position_embeddings": 32, "dropout": dropout, "attention_dropout": dropout,
            "seq_classif_dropout": dropout, "qa_dropout": dropout})
        }
        "gpt2" => json!({"model_type": "gpt2", "vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 3,
            "n_positions": 32, "embd_pdrop": dropout, "attn_pdrop": dropout, "resid_pdrop": dropout}),
        "opt" => json!({"model_type": "opt", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 3, "ffn_dim": 40, "max_position_embeddings": 32, "word_embed_proj_dim": 16,
            "dropout": dropout, "attention_dropout": dropout, "pad_token_id": 1}),
        other => panic!("no tiny {other}"),
    };
    let Value::Object(fields) = fields else { unreachable!("a JSON object") };
    ModelConfig::from_json(fields, Path::new("test")).expect("a valid configuration")
}

/// All families.
pub const FAMILIES: [&str; 5] = ["bert", "roberta", "distilbert", "gpt2", "opt"];

/// A model with weights large enough that no layer is close to linear.
pub fn model(family: &str, head: Head, dropout: f64) -> Model {
    let mut model = Model::from_config(config(family, dropout), head, 7).expect("a model");
    let mut random = Random(11);
    let layout = model.layout().clone();
    for (_, parameter) in layout.iter() {
        for row in 0..parameter.rows {
            let start = parameter.offset + row * parameter.ld();
            for value in &mut model.values[start..start + parameter.cols] {
                *value += (0.15 * random.normal()) as f32;
            }
        }
    }
    model
}

/// Rows of 1 to 20 tokens with targets of the head; two segments where the family has them.
pub fn examples(family: &str, head: Head, rows: usize, seed: u64) -> Vec<Example> {
    let mut random = Random(seed);
    (0..rows)
        .map(|row| {
            // Length-1 rows are legal everywhere but in a next-token loss, which has nothing to predict there.
            let shortest = if head == Head::CausalLm { 2 } else { 1 };
            let length = if row == 0 { shortest } else { shortest + random.below(20) };
            let input_ids = (0..length).map(|_| 4 + random.below(46) as i32).collect();
            let token_type_ids = (0..length).map(|t| i32::from(family == "bert" && 2 * t > length)).collect();
            let target = match head {
                Head::Classification { labels } => Target::Class(random.below(labels) as u32),
                Head::Regression => Target::Value(random.normal() as f32),
                Head::Span => {
                    let start = random.below(length);
                    Target::Span { start: start as u32, end: (start + random.below(length - start)) as u32 }
                }
                Head::CausalLm => Target::NextToken,
                Head::MaskedLm => {
                    let position = random.below(length) as u32;
                    Target::Masked { positions: vec![position], labels: vec![random.below(50) as i32] }
                }
                Head::Backbone => Target::None,
            };
            Example { input_ids, token_type_ids, target }
        })
        .collect()
}

/// A batch of all rows.
pub fn batch(examples: &[Example]) -> Batch {
    let rows: Vec<usize> = (0..examples.len()).collect();
    Batch::of(examples, &rows).expect("a batch")
}

/// Room for `batch`, and a little more, so that slots are larger than what a run uses.
pub fn capacity(batch: &Batch) -> Extents {
    Extents {
        tokens: batch.token_count() + 5,
        sequences: batch.row_count() + 2,
        targets: batch.token_count() + 3,
        samples: 0,
        longest: batch.longest_row(),
    }
}
