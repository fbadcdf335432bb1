//! Reading `config.json`: every family's spelling of every field, and a refusal by name of what is not supported.

use std::path::Path;

use serde_json::{Map, Value};

use super::{DropoutProbabilities, Family, LayerShape, ModelConfig, NormOrder, Sublayer, limit};
use crate::error::{Error, Result};
use crate::model::heads::Head;
use crate::program::Activation;

/// The fields of a JSON object with errors that name the file and the field.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The first spelling present, unless null.
    fn any(&self, names: &[&'a str]) -> Option<(&'a str, &'a Value)> {
        names.iter().find_map(|&name| self.map.get(name).filter(|v| !v.is_null()).map(|v| (name, v)))
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> Error {
        let mut shown = value.to_string();
        if let Some((end, _)) = shown.char_indices().nth(60) {
            shown.truncate(end);
        }
        Error::format(self.path, format!("\"{name}\" is {shown}, expected {expected}"))
    }

    fn size(&self, names: &[&'a str]) -> Result<Option<usize>> {
        let Some((name, value)) = self.any(names) else { return Ok(None) };
        match value.as_u64().map(usize::try_from) {
            Some(Ok(size)) => Ok(Some(size)),
            _ => Err(self.wrong(name, value, "a whole number of at least 0")),
        }
    }

    fn required_size(&self, names: &[&'a str]) -> Result<usize> {
        self.size(names)?.ok_or_else(|| Error::format(self.path, format!("\"{}\" is missing", names[0])))
    }

    fn number(&self, names: &[&'a str], default: f64) -> Result<f64> {
        let Some((name, value)) = self.any(names) else { return Ok(default) };
        value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong(name, value, "a number"))
    }

    fn probability(&self, names: &[&'a str], default: f64) -> Result<f32> {
        let p = self.number(names, default)?;
        // Half a unit of f32 below 1 would round to 1, whose scale 1/(1 − p) is infinite.
        if (0.0..1.0).contains(&(p as f32)) {
            return Ok(p as f32);
        }
        Err(Error::format(self.path, format!("\"{}\" is {p}, expected a probability in [0, 1)", names[0])))
    }

    fn flag(&self, name: &'a str, default: bool) -> Result<bool> {
        let Some((_, value)) = self.any(&[name]) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(name, value, "true or false"))
    }

    fn text(&self, names: &[&'a str]) -> Result<Option<&'a str>> {
        let Some((name, value)) = self.any(names) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(name, value, "a string"))
    }

    /// A token id, or the first of a list of them.
    fn token(&self, name: &'a str) -> Result<Option<u32>> {
        let Some((_, value)) = self.any(&[name]) else { return Ok(None) };
        let first = value.as_array().and_then(|list| list.first()).unwrap_or(value);
        match first.as_i64() {
            // Some checkpoints write −1 for "none".
            Some(-1) => Ok(None),
            Some(id) if (0..limit::VOCABULARY as i64).contains(&id) => Ok(Some(id as u32)),
            _ => Err(self.wrong(name, value, "a token id")),
        }
    }

    fn sizes(&self, name: &'a str, count: usize) -> Result<Option<Vec<usize>>> {
        let Some((_, value)) = self.any(&[name]) else { return Ok(None) };
        let expected = format!("{count} whole numbers, one a layer");
        let list = value.as_array().filter(|list| list.len() == count);
        let sizes: Option<Vec<usize>> = list
            .and_then(|list| list.iter().map(|v| v.as_u64().and_then(|n| usize::try_from(n).ok())).collect());
        sizes.map(Some).ok_or_else(|| self.wrong(name, value, &expected))
    }
}

impl ModelConfig {
    /// Reads `config.json`.
    pub fn read(path: &Path) -> Result<ModelConfig> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| Error::format(path, format!("is not valid JSON: {error}")))?;
        match value {
            Value::Object(map) => ModelConfig::from_json(map, path),
            _ => Err(Error::format(path, "is not a JSON object")),
        }
    }

    /// Interprets the fields of a configuration; `path` is for error messages.
    pub fn from_json(map: Map<String, Value>, path: &Path) -> Result<ModelConfig> {
        let fields = Fields { path, map: &map };
        let family = family(&fields)?;
        refuse_unsupported(&fields, family)?;
        let hidden = fields.required_size(&["hidden_size", "n_embd", "dim"])?;
        let heads = fields.required_size(&["num_attention_heads", "n_head", "n_heads"])?;
        let count = fields.required_size(&["num_hidden_layers", "n_layer", "n_layers"])?;
        if count == 0 || count > limit::LAYERS {
            return Err(Error::format(path, format!("{count} layers; expected 1 to {}", limit::LAYERS)));
        }
        if hidden == 0 || heads == 0 || hidden > limit::HIDDEN || !hidden.is_multiple_of(heads) {
            let message =
                format!("hidden size {hidden} cannot be divided into {heads} attention heads of equal size");
            return Err(Error::format(path, message));
        }
        let neurons = match fields.size(&["intermediate_size", "n_inner", "hidden_dim", "ffn_dim"])? {
            Some(neurons) => neurons,
            None if family == Family::Gpt2 => 4 * hidden,
            None => return Err(Error::format(path, "\"intermediate_size\" is missing")),
        };
        if neurons == 0 {
            return Err(Error::format(path, "the feed-forward size is 0"));
        }
        let dropout = dropout(&fields, family)?;
        let pre_norm = match family {
            Family::Gpt2 => true,
            Family::Opt => fields.flag("do_layer_norm_before", true)?,
            _ => false,
        };
        let norm_epsilon = match family {
            Family::DistilBert => 1e-12,
            Family::Opt => 1e-5,
            Family::Gpt2 => fields.number(&["layer_norm_epsilon", "layer_norm_eps"], 1e-5)?,
            _ => fields.number(&["layer_norm_eps"], 1e-12)?,
        };
        if !(norm_epsilon > 0.0 && norm_epsilon < 1.0) {
            let message = format!("LayerNorm epsilon {norm_epsilon} is not in (0, 1)");
            return Err(Error::format(path, message));
        }
        let initializer_range = fields.number(&["initializer_range", "init_std"], 0.02)?;
        if !(0.0..=10.0).contains(&initializer_range) {
            let message = format!("\"initializer_range\" is {initializer_range}, expected 0 to 10");
            return Err(Error::format(path, message));
        }
        let labels = labels(&fields)?;
        let mut config = ModelConfig {
            family,
            hidden,
            head_dim: hidden / heads,
            vocab: fields.required_size(&["vocab_size"])?,
            max_positions: fields.required_size(&["max_position_embeddings", "n_positions", "n_ctx"])?,
            type_vocab: match family {
                Family::Bert | Family::Roberta => fields.size(&["type_vocab_size"])?.unwrap_or(2),
                _ => 0,
            },
            embedding_size: match family {
                Family::Opt => fields.size(&["word_embed_proj_dim"])?.unwrap_or(hidden),
                _ => hidden,
            },
            layers: layers(&fields, count, heads, neurons)?,
            activation: activation(&fields)?,
            norm_epsilon: norm_epsilon as f32,
            norm_order: if pre_norm { NormOrder::Pre } else { NormOrder::Post },
            final_norm: pre_norm && !fields.flag("_remove_final_layer_norm", false)?,
            projection_bias: family != Family::Opt || fields.flag("enable_bias", true)?,
            dropout,
            initializer_range: initializer_range as f32,
            tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
            scale_attention: fields.flag("scale_attn_weights", true)?,
            scale_attention_by_layer: fields.flag("scale_attn_by_inverse_layer_idx", false)?,
            saved_head: None,
            labels,
            label_words: label_words(&fields)?,
            pad_token: fields.token("pad_token_id")?,
            bos_token: fields.token("bos_token_id")?,
            eos_token: fields.token("eos_token_id")?,
            original_layers: original(&fields, "original_layers")?.unwrap_or(count),
            original_heads: heads,
            original_neurons: original(&fields, "original_neurons")?.unwrap_or(neurons),
            raw: Map::new(),
        };
        config.saved_head = saved_head(&fields, &config)?;
        config.validate().map_err(|error| Error::format(path, error.to_string()))?;
        config.raw = map;
        Ok(config)
    }
}

fn family(fields: &Fields) -> Result<Family> {
    let known = || Family::ALL.map(Family::model_type).join(", ");
    let Some(name) = fields.text(&["model_type"])? else {
        let message = format!("\"model_type\" is missing; known model types: {}", known());
        return Err(Error::format(fields.path, message));
    };
    Family::ALL.into_iter().find(|family| family.model_type() == name).ok_or_else(|| {
        let message = format!("model_type \"{name}\" is not supported; known model types: {}", known());
        Error::format(fields.path, message)
    })
}

fn refuse_unsupported(fields: &Fields, family: Family) -> Result<()> {
    let refuse = |what: String| Err(Error::format(fields.path, format!("{what} is not supported")));
    if let Some(kind) = fields.text(&["position_embedding_type"])?.filter(|&kind| kind != "absolute") {
        return refuse(format!("position_embedding_type \"{kind}\" (only \"absolute\" is)"));
    }
    for name in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
        if fields.flag(name, false)? {
            return refuse(format!("\"{name}\": true"));
        }
    }
    if family == Family::Opt && !fields.flag("layer_norm_elementwise_affine", true)? {
        return refuse("\"layer_norm_elementwise_affine\": false".into());
    }
    if fields.any(&["quantization_config"]).is_some() {
        return refuse("a quantized checkpoint (\"quantization_config\")".into());
    }
    if fields.text(&["problem_type"])? == Some("multi_label_classification") {
        return refuse("problem_type \"multi_label_classification\"".into());
    }
    Ok(())
}

fn activation(fields: &Fields) -> Result<Activation> {
    let name = fields.text(&["hidden_act", "activation_function", "activation"])?;
    let default = match fields.map.get("model_type").and_then(Value::as_str) {
        Some("gpt2") => "gelu_new",
        Some("opt") => "relu",
        _ => "gelu",
    };
    match name.unwrap_or(default) {
        "gelu" | "gelu_python" => Ok(Activation::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => {
            let known = "gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, relu";
            let message = format!("activation \"{other}\" is not supported; known activations: {known}");
            Err(Error::format(fields.path, message))
        }
    }
}

fn dropout(fields: &Fields, family: Family) -> Result<DropoutProbabilities> {
    let p = |names: &[&'static str], default| fields.probability(names, default);
    Ok(match family {
        Family::Bert | Family::Roberta => {
            let hidden = p(&["hidden_dropout_prob"], 0.1)?;
            DropoutProbabilities {
                embedding: hidden,
                attention: p(&["attention_probs_dropout_prob"], 0.1)?,
                attention_output: hidden,
                ffn_output: hidden,
                classifier: p(&["classifier_dropout"], f64::from(hidden))?,
                span: 0.0,
            }
        }
        Family::DistilBert => {
            let hidden = p(&["dropout"], 0.1)?;
            DropoutProbabilities {
                embedding: hidden,
                attention: p(&["attention_dropout"], 0.1)?,
                attention_output: 0.0,
                ffn_output: hidden,
                classifier: p(&["seq_classif_dropout"], 0.2)?,
                span: p(&["qa_dropout"], 0.1)?,
            }
        }
        Family::Gpt2 => {
            let residual = p(&["resid_pdrop"], 0.1)?;
            DropoutProbabilities {
                embedding: p(&["embd_pdrop"], 0.1)?,
                attention: p(&["attn_pdrop"], 0.1)?,
                attention_output: residual,
                ffn_output: residual,
                classifier: 0.0,
                span: 0.0,
            }
        }
        Family::Opt => {
            let hidden = p(&["dropout"], 0.1)?;
            DropoutProbabilities {
                embedding: 0.0,
                attention: p(&["attention_dropout"], 0.0)?,
                attention_output: hidden,
                ffn_output: hidden,
                classifier: 0.0,
                span: 0.0,
            }
        }
    })
}

/// Class names in order of their number; as many `LABEL_i` as `num_labels` says where there are none.
fn labels(fields: &Fields) -> Result<Vec<String>> {
    let Some((_, names)) = fields.any(&["id2label"]) else {
        let count = fields.size(&["num_labels"])?.unwrap_or(2);
        if count == 0 || count > limit::LABELS {
            let message = format!("\"num_labels\" is {count}, expected 1 to {}", limit::LABELS);
            return Err(Error::format(fields.path, message));
        }
        return Ok(default_labels(count));
    };
    let wrong = || fields.wrong("id2label", names, "an object from \"0\", \"1\", … to class names");
    let names_by_id = names.as_object().ok_or_else(wrong)?;
    let mut labels = vec![String::new(); names_by_id.len()];
    let mut seen = vec![false; labels.len()];
    for (id, name) in names_by_id {
        let id = id.parse::<usize>().ok().filter(|&id| id < labels.len()).ok_or_else(wrong)?;
        seen[id] = true;
        labels[id] = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
    }
    if labels.is_empty() || seen.contains(&false) {
        return Err(wrong());
    }
    Ok(labels)
}

/// The names transformers gives to classes without names.
pub(in crate::model) fn default_labels(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("LABEL_{i}")).collect()
}

/// The head of the class named in `architectures`.
fn saved_head(fields: &Fields, config: &ModelConfig) -> Result<Option<Head>> {
    // Without it nothing says that there is a head.
    let Some((_, list)) = fields.any(&["architectures"]) else { return Ok(Some(Head::Backbone)) };
    let Some(name) = list.as_array().and_then(|list| list.first()).and_then(Value::as_str) else {
        return Ok(None);
    };
    let regression = fields.text(&["problem_type"])? == Some("regression") || config.labels.len() == 1;
    Ok(match name.split_once("For") {
        Some((_, "SequenceClassification")) if regression => Some(Head::Regression),
        Some((_, "SequenceClassification")) => Some(Head::Classification { labels: config.labels.len() }),
        Some((_, "QuestionAnswering")) => Some(Head::Span),
        Some((_, "MaskedLM" | "PreTraining")) => Some(Head::MaskedLm),
        Some((_, "CausalLM")) => Some(Head::CausalLm),
        None if name.ends_with("LMHeadModel") => Some(Head::CausalLm),
        None if name.ends_with("Model") => Some(Head::Backbone),
        _ => None,
    })
}

/// Per-layer widths: those of the `secateur` object, else uniform less transformers' `pruned_heads`.
fn layers(fields: &Fields, count: usize, heads: usize, neurons: usize) -> Result<Vec<LayerShape>> {
    let mut layers = vec![LayerShape::full(heads, neurons); count];
    if let Some((_, pruned)) = fields.any(&["pruned_heads"]) {
        let expected = "an object from layer numbers to lists of head numbers";
        let wrong = || fields.wrong("pruned_heads", pruned, expected);
        for (layer, list) in pruned.as_object().ok_or_else(wrong)? {
            let layer = layer.parse::<usize>().ok().filter(|&l| l < count).ok_or_else(wrong)?;
            let removed = list.as_array().ok_or_else(wrong)?.len();
            layers[layer].heads = heads.checked_sub(removed).ok_or_else(wrong)?;
        }
    }
    let (mut removed_attention, mut removed_ffn) = (Vec::new(), Vec::new());
    if let Some((_, own)) = fields.any(&["secateur"]) {
        let map = own.as_object().ok_or_else(|| fields.wrong("secateur", own, "an object"))?;
        let fields = Fields { path: fields.path, map };
        if let Some(heads) = fields.sizes("heads_per_layer", count)? {
            layers.iter_mut().zip(heads).for_each(|(layer, heads)| layer.heads = heads);
        }
        if let Some(neurons) = fields.sizes("neurons_per_layer", count)? {
            layers.iter_mut().zip(neurons).for_each(|(layer, neurons)| layer.neurons = neurons);
        }
        removed_attention = removed(&fields, "removed_attention", count)?;
        removed_ffn = removed(&fields, "removed_ffn", count)?;
    }
    for (i, layer) in layers.iter_mut().enumerate() {
        layer.attention = sublayer(layer.heads, removed_attention.contains(&i));
        layer.ffn = sublayer(layer.neurons, removed_ffn.contains(&i));
    }
    Ok(layers)
}

/// A size before pruning, where the family's own field no longer says it.
fn original(fields: &Fields, name: &str) -> Result<Option<usize>> {
    let Some((_, own)) = fields.any(&["secateur"]) else { return Ok(None) };
    let map = own.as_object().ok_or_else(|| fields.wrong("secateur", own, "an object"))?;
    Fields { path: fields.path, map }.size(&[name])
}

/// Label words of masks that the weights hold.
fn label_words(fields: &Fields) -> Result<Vec<u32>> {
    let Some((_, own)) = fields.any(&["secateur"]) else { return Ok(Vec::new()) };
    let map = own.as_object().ok_or_else(|| fields.wrong("secateur", own, "an object"))?;
    let fields = Fields { path: fields.path, map };
    let Some((_, value)) = fields.any(&["label_words"]) else { return Ok(Vec::new()) };
    let wrong = || fields.wrong("label_words", value, "a list of token numbers");
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter().map(|v| v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)).collect()
}

fn sublayer(units: usize, removed: bool) -> Sublayer {
    match (units, removed) {
        (0, true) => Sublayer::Removed,
        (0, false) => Sublayer::BiasOnly,
        // With `removed` this contradicts itself, which `validate` reports.
        (_, true) => Sublayer::Removed,
        (_, false) => Sublayer::Full,
    }
}

fn removed<'a>(fields: &Fields<'a>, name: &'a str, count: usize) -> Result<Vec<usize>> {
    let Some((_, value)) = fields.any(&[name]) else { return Ok(Vec::new()) };
    let wrong = || fields.wrong(name, value, "a list of layer numbers");
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter().map(|v| v.as_u64().map(|n| n as usize).filter(|&n| n < count).ok_or_else(wrong)).collect()
}
