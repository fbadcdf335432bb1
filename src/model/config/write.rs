//! Writing `config.json`: the fields that were read, updated, and one documented addition.
//!
//! A pruned model whose layers differ cannot be said in the families' own fields. Those keep the sizes of the
//! unpruned model, so that `head_dim` stays `hidden_size / num_attention_heads`, and the object `secateur` holds
//!
//! - `head_dim`: size of one head;
//! - `heads_per_layer`, `neurons_per_layer`: what is left, one number a layer;
//! - `removed_attention`, `removed_ffn`: numbers of the layers where the sublayer is gone. A sublayer with 0 units
//!   that is not listed still adds the bias of its output projection.
//!
//! They are absent where the family's own fields say it all: every head is there and all layers have the same neurons. If
//! these are fewer than before pruning, `secateur` holds `original_neurons`, and if layers were dropped `original_layers`,
//! so that what was removed is known. Of a model whose weights SMP's masks are applied to, `secateur` holds `label_words`,
//! the tokens that answer for the classes through its language-model head.

use serde_json::{Map, Value, json};

use super::{Family, LayerShape, ModelConfig, Sublayer};
use crate::model::heads::Head;

impl ModelConfig {
    /// The configuration to save, for a model with the given head.
    pub fn to_json(&self, head: Head) -> Map<String, Value> {
        let mut map = self.raw.clone();
        let mut set = |spellings: &[&str], value: Value| {
            let present = spellings.iter().find(|&&name| map.contains_key(name));
            map.insert((*present.unwrap_or(&spellings[0])).to_string(), value);
        };
        let spelled = Spellings::of(self.family);
        let uniform = self.uniform_neurons();
        set(&["architectures"], json!([head.architecture(self.family)]));
        set(&["model_type"], json!(self.family.model_type()));
        set(spelled.layers, json!(self.layers.len()));
        set(spelled.heads, json!(self.original_heads));
        set(spelled.neurons, json!(uniform.unwrap_or(self.original_neurons)));
        set(&["torch_dtype"], json!("float32"));
        if let Head::Classification { .. } | Head::Regression = head {
            let by_id: Map<String, Value> =
                self.labels.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
            let by_name: Map<String, Value> =
                self.labels.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
            set(&["id2label"], Value::Object(by_id));
            set(&["label2id"], Value::Object(by_name));
            let regression = head == Head::Regression;
            let problem = if regression { "regression" } else { "single_label_classification" };
            set(&["problem_type"], json!(problem));
        }
        // The widths below replace what transformers recorded of its own head pruning.
        map.remove("pruned_heads");
        map.remove("num_labels");
        map.remove("secateur");
        let mut own = Map::new();
        match uniform {
            None => own = self.own_fields(),
            Some(neurons) if neurons != self.original_neurons => {
                own.insert("original_neurons".into(), json!(self.original_neurons));
            }
            Some(_) => {}
        }
        if self.layers.len() != self.original_layers {
            own.insert("original_layers".into(), json!(self.original_layers));
        }
        // A head of its own answers without them.
        let of_task = matches!(head, Head::Classification { .. } | Head::Regression | Head::Span);
        if !self.label_words.is_empty() && !of_task {
            own.insert("label_words".into(), json!(self.label_words));
        }
        if !own.is_empty() {
            map.insert("secateur".into(), Value::Object(own));
        }
        map
    }

    /// The feed-forward width of all layers, where that is all there is to say about them.
    fn uniform_neurons(&self) -> Option<usize> {
        let first = LayerShape::full(self.original_heads, self.layers[0].neurons.max(1));
        self.layers.iter().all(|layer| *layer == first).then_some(first.neurons)
    }

    fn own_fields(&self) -> Map<String, Value> {
        let removed = |sublayer: fn(&LayerShape) -> Sublayer| -> Vec<usize> {
            let gone = |&i: &usize| sublayer(&self.layers[i]) == Sublayer::Removed;
            (0..self.layers.len()).filter(gone).collect()
        };
        let fields = [
            ("head_dim", json!(self.head_dim)),
            ("heads_per_layer", json!(self.layers.iter().map(|layer| layer.heads).collect::<Vec<_>>())),
            ("neurons_per_layer", json!(self.layers.iter().map(|layer| layer.neurons).collect::<Vec<_>>())),
            ("removed_attention", json!(removed(|layer| layer.attention))),
            ("removed_ffn", json!(removed(|layer| layer.ffn))),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }
}

/// The names a family gives to the fields that are written; the first where none is present.
struct Spellings {
    layers: &'static [&'static str],
    heads: &'static [&'static str],
    neurons: &'static [&'static str],
}

impl Spellings {
    fn of(family: Family) -> Spellings {
        match family {
            Family::Bert | Family::Roberta => Spellings {
                layers: &["num_hidden_layers"],
                heads: &["num_attention_heads"],
                neurons: &["intermediate_size"],
            },
            Family::DistilBert => Spellings {
                layers: &["n_layers", "num_hidden_layers"],
                heads: &["n_heads", "num_attention_heads"],
                neurons: &["hidden_dim", "intermediate_size"],
            },
            Family::Gpt2 => Spellings {
                layers: &["n_layer", "num_hidden_layers"],
                heads: &["n_head", "num_attention_heads"],
                neurons: &["n_inner", "intermediate_size"],
            },
            Family::Opt => Spellings {
                layers: &["num_hidden_layers"],
                heads: &["num_attention_heads"],
                neurons: &["ffn_dim"],
            },
        }
    }
}
