//! What a `config.json` says about a model, in one vocabulary for all families.
//!
//! Widths are per layer, because pruning makes them differ: a layer has its own number of heads and of neurons,
//! and a sublayer may be reduced to its output bias or be gone. `head_dim` stays the size the model was trained
//! with, however many heads are left. A configuration that was read or written here always holds what
//! [`ModelConfig::validate`] checks, so nothing after it needs to.

mod read;
mod write;

pub(super) use read::default_labels;

use serde_json::{Map, Value};

use super::heads::Head;
use super::masks::LayerWidths;
use crate::error::{Error, Result};
use crate::program::Activation;

/// Model family: what `model_type` names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Family {
    /// Devlin et al. 2019.
    Bert,
    /// Liu et al. 2019: BERT with other positions and heads.
    Roberta,
    /// Sanh et al. 2019: BERT without token types and pooler.
    DistilBert,
    /// Radford et al. 2019.
    Gpt2,
    /// Zhang et al. 2022.
    Opt,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 5] =
        [Family::Bert, Family::Roberta, Family::DistilBert, Family::Gpt2, Family::Opt];

    /// The `model_type` of its configurations.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Bert => "bert",
            Family::Roberta => "roberta",
            Family::DistilBert => "distilbert",
            Family::Gpt2 => "gpt2",
            Family::Opt => "opt",
        }
    }

    /// Whether a token sees only itself and earlier ones.
    pub fn is_causal(self) -> bool {
        matches!(self, Family::Gpt2 | Family::Opt)
    }
}

/// What is left of an attention or feed-forward sublayer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sublayer {
    /// At least one head or neuron.
    Full,
    /// Only the bias of its output projection (what an all-zero mask computes).
    BiasOnly,
    /// Nothing: the residual stream passes unchanged (K-prune's authors' code).
    Removed,
}

/// Widths of one layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerShape {
    /// Heads; 0 unless `attention` is full.
    pub heads: usize,
    /// Feed-forward neurons; 0 unless `ffn` is full.
    pub neurons: usize,
    /// What is left of attention.
    pub attention: Sublayer,
    /// What is left of the feed-forward network.
    pub ffn: Sublayer,
}

impl LayerShape {
    /// An unpruned layer.
    pub fn full(heads: usize, neurons: usize) -> LayerShape {
        LayerShape { heads, neurons, attention: Sublayer::Full, ffn: Sublayer::Full }
    }
}

/// Whether LayerNorm follows the residual addition or precedes the sublayer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NormOrder {
    /// `LayerNorm(x + sublayer(x))`: BERT, OPT-350m.
    Post,
    /// `x + sublayer(LayerNorm(x))`: GPT-2, OPT.
    Pre,
}

/// Dropout probabilities by place, in [0, 1).
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct DropoutProbabilities {
    /// After the embeddings.
    pub embedding: f32,
    /// On attention probabilities.
    pub attention: f32,
    /// After the attention output projection.
    pub attention_output: f32,
    /// After the feed-forward output projection.
    pub ffn_output: f32,
    /// Inside the sequence-classification head.
    pub classifier: f32,
    /// Before the span head.
    pub span: f32,
}

/// A model's shape and constants.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Family.
    pub family: Family,
    /// Hidden size d.
    pub hidden: usize,
    /// Size of one head, before and after pruning.
    pub head_dim: usize,
    /// Rows of the word embedding.
    pub vocab: usize,
    /// `max_position_embeddings`; see [`ModelConfig::max_length`] for how long an input may be.
    pub max_positions: usize,
    /// Rows of the token-type embedding; 0 where the family has none.
    pub type_vocab: usize,
    /// Columns of the word embedding; differs from `hidden` where OPT projects in and out.
    pub embedding_size: usize,
    /// Widths, layer by layer.
    pub layers: Vec<LayerShape>,
    /// Activation of the feed-forward sublayer.
    pub activation: Activation,
    /// Epsilon of every LayerNorm.
    pub norm_epsilon: f32,
    /// Where LayerNorm stands.
    pub norm_order: NormOrder,
    /// Whether a LayerNorm follows the last layer.
    pub final_norm: bool,
    /// Whether the projections of the layers have biases.
    pub projection_bias: bool,
    /// Dropout probabilities.
    pub dropout: DropoutProbabilities,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f32,
    /// Whether the language-model head shares the word embedding.
    pub tie_word_embeddings: bool,
    /// Whether scores are divided by √head_dim (always, but for a GPT-2 option).
    pub scale_attention: bool,
    /// Whether scores of layer i are divided by i + 1 (a GPT-2 option).
    pub scale_attention_by_layer: bool,
    /// Task head the checkpoint was saved with, by its `architectures` entry.
    pub saved_head: Option<Head>,
    /// Names of the classes.
    pub labels: Vec<String>,
    /// Tokens of the label words that answer for the classes of a task through the language-model head, in class order, where
    /// the weights were masked for that task (SMP); empty otherwise.
    pub label_words: Vec<u32>,
    /// Padding token.
    pub pad_token: Option<u32>,
    /// Token at the beginning of a text.
    pub bos_token: Option<u32>,
    /// Token at the end of a text.
    pub eos_token: Option<u32>,
    /// Layers of the unpruned model.
    pub(super) original_layers: usize,
    /// `num_attention_heads` of the unpruned model.
    pub(super) original_heads: usize,
    /// Feed-forward width of the unpruned model.
    pub(super) original_neurons: usize,
    /// Every field of the file, so that saving keeps those not understood here.
    pub(super) raw: Map<String, Value>,
}

/// Largest sizes accepted. They bound every product below 2⁵³ and every index within i32, far above any model
/// of these families, so that a hostile configuration ends in an error and not in an overflow.
mod limit {
    pub const LAYERS: usize = 1 << 10;
    pub const HIDDEN: usize = 1 << 16;
    pub const NEURONS: usize = 1 << 18;
    pub const VOCABULARY: usize = 1 << 24;
    pub const POSITIONS: usize = 1 << 22;
    pub const LABELS: usize = 1 << 16;
}

impl ModelConfig {
    /// Rows added before position 0 of the position embedding.
    pub fn position_offset(&self) -> usize {
        match self.family {
            // Positions count from padding_idx + 1.
            Family::Roberta => self.pad_token.map_or(2, |pad| pad as usize + 1),
            Family::Opt => 2,
            _ => 0,
        }
    }

    /// Rows of the position embedding.
    pub fn position_rows(&self) -> usize {
        match self.family {
            Family::Opt => self.max_positions + self.position_offset(),
            _ => self.max_positions,
        }
    }

    /// Longest input, in tokens.
    pub fn max_length(&self) -> usize {
        self.position_rows().saturating_sub(self.position_offset())
    }

    /// Factor of the attention scores of layer `layer`.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let scale = if self.scale_attention { 1.0 / (self.head_dim as f64).sqrt() } else { 1.0 };
        let divisor = if self.scale_attention_by_layer { (layer + 1) as f64 } else { 1.0 };
        (scale / divisor) as f32
    }

    /// Heads and neurons layer by layer.
    pub fn widths(&self) -> Vec<LayerWidths> {
        let widths = |layer: &LayerShape| LayerWidths { heads: layer.heads, neurons: layer.neurons };
        self.layers.iter().map(widths).collect()
    }

    /// Heads and neurons layer by layer before pruning.
    pub fn original_widths(&self) -> Vec<LayerWidths> {
        let layer = LayerWidths { heads: self.original_heads, neurons: self.original_neurons };
        vec![layer; self.original_layers]
    }

    /// Whether every layer is there and as wide as the model was before pruning.
    pub fn is_unpruned(&self) -> bool {
        let full = LayerShape::full(self.original_heads, self.original_neurons);
        self.layers.len() == self.original_layers && self.layers.iter().all(|layer| *layer == full)
    }

    /// Checks sizes against each other and against the limits; the error names the field.
    pub fn validate(&self) -> Result<()> {
        let within = |field: &str, value: usize, most: usize| {
            if value == 0 || value > most {
                return Err(Error::shape(field, format!("is {value}, must be 1 to {most}")));
            }
            Ok(())
        };
        within("number of layers", self.layers.len(), limit::LAYERS)?;
        within("number of layers before pruning", self.original_layers, limit::LAYERS)?;
        if self.original_layers < self.layers.len() {
            let message = format!("is {}, but there are {}", self.original_layers, self.layers.len());
            return Err(Error::shape("number of layers before pruning", message));
        }
        within("hidden size", self.hidden, limit::HIDDEN)?;
        within("head size", self.head_dim, limit::HIDDEN)?;
        within("word embedding size", self.embedding_size, limit::HIDDEN)?;
        within("vocabulary size", self.vocab, limit::VOCABULARY)?;
        within("number of positions", self.max_positions, limit::POSITIONS)?;
        within("token-type vocabulary size", self.type_vocab.max(1), limit::LABELS)?;
        within("number of labels", self.labels.len().max(1), limit::LABELS)?;
        if self.max_length() == 0 || self.position_offset() > limit::POSITIONS {
            let message = format!("{} rows leave no position for a token", self.position_rows());
            return Err(Error::shape("number of positions", message));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if layer.heads > limit::HIDDEN / self.head_dim {
                return Err(Error::shape(
                    format!("layer {i}"),
                    format!("{} heads are too many", layer.heads),
                ));
            }
            if layer.neurons > limit::NEURONS {
                let message = format!("{} neurons are too many", layer.neurons);
                return Err(Error::shape(format!("layer {i}"), message));
            }
            let agrees = |sublayer: Sublayer, units: usize| (sublayer == Sublayer::Full) == (units > 0);
            if !agrees(layer.attention, layer.heads) || !agrees(layer.ffn, layer.neurons) {
                return Err(Error::shape(format!("layer {i}"), format!("contradicts itself: {layer:?}")));
            }
        }
        Ok(())
    }
}

/// Replaces the content of `positions` by the row of the position embedding for every token of an unpadded batch with row
/// offsets `cu_seqlens [B + 1]`. Fails on a sequence longer than [`ModelConfig::max_length`].
pub fn positions(config: &ModelConfig, cu_seqlens: &[i32], positions: &mut Vec<i32>) -> Result<()> {
    let offset = config.position_offset() as i32;
    positions.clear();
    for (sequence, bounds) in cu_seqlens.windows(2).enumerate() {
        let length = i64::from(bounds[1]) - i64::from(bounds[0]);
        if length < 0 || length > config.max_length() as i64 {
            let message =
                format!("has {length} tokens; this model takes 0 to {} (truncate)", config.max_length());
            return Err(Error::shape(format!("sequence {sequence} of the batch"), message));
        }
        positions.extend((0..length as i32).map(|position| position + offset));
    }
    Ok(())
}
