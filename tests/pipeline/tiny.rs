//! Tiny models of every family.

use std::path::Path;

use secateur::model::{Family, Head, ModelConfig};
use serde_json::{Map, Value, json};

/// `config.json` of a tiny model: 2 layers, hidden size 16, 4 heads, 24 neurons, 40 tokens, 32 positions.
pub fn config_json(family: Family) -> Map<String, Value> {
    let value = match family {
        Family::Bert | Family::Roberta => json!({
            "model_type": family.model_type(), "hidden_size": 16, "num_attention_heads": 4,
            "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 40,
            "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-12,
            "pad_token_id": if family == Family::Bert { 0 } else { 1 },
        }),
        Family::DistilBert => json!({
            "model_type": "distilbert", "dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 24,
            "vocab_size": 40, "max_position_embeddings": 32, "activation": "gelu", "dropout": 0.1,
            "attention_dropout": 0.1, "seq_classif_dropout": 0.2, "pad_token_id": 0,
        }),
        Family::Gpt2 => json!({
            "model_type": "gpt2", "n_embd": 16, "n_head": 4, "n_layer": 2, "n_inner": 24, "vocab_size": 40,
            "n_positions": 32, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        }),
        Family::Opt => json!({
            "model_type": "opt", "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2,
            "ffn_dim": 24, "vocab_size": 40, "max_position_embeddings": 32, "activation_function": "relu",
            "do_layer_norm_before": true, "word_embed_proj_dim": 16, "dropout": 0.1, "pad_token_id": 1,
        }),
    };
    match value {
        Value::Object(map) => map,
        _ => unreachable!(),
    }
}

/// The configuration of [`config_json`].
pub fn config(family: Family) -> ModelConfig {
    parse(config_json(family)).unwrap()
}

/// Interprets a configuration.
pub fn parse(map: Map<String, Value>) -> secateur::Result<ModelConfig> {
    ModelConfig::from_json(map, Path::new("config.json"))
}

/// OPT-350m's variations: LayerNorm after the sublayers, a narrow word embedding, no final LayerNorm.
pub fn narrow_opt() -> ModelConfig {
    let mut map = config_json(Family::Opt);
    map.insert("do_layer_norm_before".into(), json!(false));
    map.insert("word_embed_proj_dim".into(), json!(8));
    parse(map).unwrap()
}

/// All tiny configurations.
pub fn configs() -> Vec<ModelConfig> {
    Family::ALL.into_iter().map(config).chain([narrow_opt()]).collect()
}

/// Heads a family can have.
pub fn heads(family: Family) -> Vec<Head> {
    let all = [
        Head::Backbone,
        Head::Classification { labels: 3 },
        Head::Regression,
        Head::Span,
        Head::CausalLm,
        Head::MaskedLm,
    ];
    all.into_iter().filter(|head| head.check(family).is_ok()).collect()
}
