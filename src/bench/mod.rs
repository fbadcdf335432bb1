//! What this machine does with the engine: operation by operation, whole models, and pruning, each as a share of what
//! the device itself can do.
//!
//! The measurements keep four rules. Ceilings are measured on the device, never looked up by its name. Data are random.
//! Operations are timed inside the program they belong to, one after the other, so each finds its operands where a real
//! step leaves them, not in a cache that a repeated call has warmed. Every figure is a median, and the spread is kept.
//!
//! [`run`] measures and returns a [`Report`]; printing it is the command's part.

mod ceiling;
mod model;
mod pruning;
mod switching;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Head, Model, ModelConfig};
use crate::progress::Progress;
use crate::session::Device;

pub use ceiling::Ceilings;
pub use model::{ModelTimes, OperationTime};
pub use pruning::PruningTimes;
pub use switching::{SwitchingTimes, random_masks};

/// Models with random weights to measure with: what is measured depends on shapes, not on values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// 12 layers, hidden size 768, 12 heads, 3,072 neurons, 30,522 words.
    BertBase,
    /// 6 layers, hidden size 384, 12 heads, 1,536 neurons, 30,522 words.
    MiniLm,
    /// 12 layers, hidden size 768, 12 heads, 3,072 neurons, 50,257 words, causal.
    Gpt2,
    /// 2 layers, hidden size 128, 2 heads, 512 neurons, 1,000 words: for the emulator and for tests.
    Tiny,
}

impl Shape {
    /// Name in tables and records.
    pub fn name(self) -> &'static str {
        match self {
            Shape::BertBase => "bert-base",
            Shape::MiniLm => "mini-lm",
            Shape::Gpt2 => "gpt2",
            Shape::Tiny => "tiny",
        }
    }

    /// The model with random weights: two classes for encoders, next-token prediction for GPT-2.
    pub fn model(self, seed: u64) -> Result<Model> {
        let bert = |layers, hidden, heads, neurons, vocabulary| {
            serde_json::json!({
                "model_type": "bert", "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
                "intermediate_size": neurons, "vocab_size": vocabulary, "max_position_embeddings": 512,
                "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
                "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            })
        };
        let (json, head) = match self {
            Shape::BertBase => (bert(12, 768, 12, 3072, 30_522), Head::Classification { labels: 2 }),
            Shape::MiniLm => (bert(6, 384, 12, 1536, 30_522), Head::Classification { labels: 2 }),
            Shape::Tiny => (bert(2, 128, 2, 512, 1000), Head::Classification { labels: 2 }),
            Shape::Gpt2 => {
                let json = serde_json::json!({
                    "model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024,
                    "vocab_size": 50_257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
                });
                (json, Head::CausalLm)
            }
        };
        let serde_json::Value::Object(map) = json else {
            return Err(Error::usage("a model's configuration is a JSON object"));
        };
        let config = ModelConfig::from_json(map, std::path::Path::new(self.name()))?;
        Model::from_config(config, head, seed)
    }
}

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Device and precision.
    pub device: Device,
    /// Models.
    pub shapes: Vec<Shape>,
    /// Tokens of each sequence of a batch; batches are runs of `sequences` of them.
    pub lengths: Vec<usize>,
    /// Sequences of a batch.
    pub sequences: usize,
    /// Timed runs behind a median.
    pub repeats: usize,
    /// Whether training steps are measured.
    pub training: bool,
    /// Whether Dual-CP and the switching of weight masks are measured.
    pub pruning: bool,
    /// Seed of weights and data.
    pub seed: u64,
}

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What ran it.
    pub device: String,
    /// What it can do; absent on the host.
    pub ceilings: Option<Ceilings>,
    /// Whole models and their operations.
    pub models: Vec<ModelTimes>,
    /// Dual-CP, by model.
    pub pruning: Vec<PruningTimes>,
    /// From one task's weight masks to another's, by model.
    #[serde(default)]
    pub switching: Vec<SwitchingTimes>,
}

/// Seconds of repeated runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Median.
    pub median: f64,
    /// Fastest.
    pub minimum: f64,
    /// Slowest.
    pub maximum: f64,
    /// Number of runs.
    pub runs: usize,
}

impl Seconds {
    /// Of `values`, which must not be empty.
    fn of(mut values: Vec<f64>) -> Seconds {
        values.sort_by(f64::total_cmp);
        let runs = values.len();
        let median = (values[(runs - 1) / 2] + values[runs / 2]) / 2.0;
        Seconds { median, minimum: values[0], maximum: values[runs - 1], runs }
    }
}

/// Measures. Can be interrupted between two measurements.
pub fn run(settings: &Settings, progress: &Progress) -> Result<Report> {
    if settings.sequences == 0 || settings.lengths.len() < settings.sequences || settings.repeats == 0 {
        return Err(Error::usage("a bench needs at least one repeat and one batch of sequences"));
    }
    let interrupted = || progress.check(|| "nothing was written".into());
    let (device, ceilings) = ceiling::measure(settings, progress)?;
    let mut report =
        Report { device, ceilings, models: Vec::new(), pruning: Vec::new(), switching: Vec::new() };
    for &shape in &settings.shapes {
        interrupted()?;
        report.models.extend(model::measure(shape, settings, progress)?);
        if settings.pruning {
            interrupted()?;
            report.pruning.push(pruning::measure(shape, settings, progress)?);
            interrupted()?;
            report.switching.push(switching::measure(shape, settings, progress)?);
        }
    }
    Ok(report)
}
