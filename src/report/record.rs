//! The run record: everything a run was asked, chose, reached and measured. It is written as `run.json`, printed by
//! `--json`, and the only source of tables and of `report.html`.
//!
//! Field names are stable: fields may be added under the same [`FORMAT`], never renamed or given another meaning.
//! What does not apply to a command is left out of the JSON. `docs/run-record.md` is the reference for readers.

use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::format;
use super::machine::Machine;
use super::ordered::Ordered;
use crate::error::{Error, Result};
use crate::eval::latency::Latency;
use crate::progress::Progress;
use crate::prune::cost::{BudgetRecord, LayerWidths};
use crate::prune::masks::UnitMasks;

/// Version of the record's layout.
pub const FORMAT: u32 = 1;

/// The record of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program.
    pub secateur: String,
    /// Command: "prune".
    pub command: String,
    /// Arguments as given, without the program's name.
    pub arguments: Vec<String>,
    /// Seed of every random choice.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Device the work ran on: "cpu", "reference".
    pub device: String,
    /// Start, UTC.
    pub started: String,
    /// Wall-clock seconds from start to the writing of the record.
    pub elapsed_seconds: f64,
    /// The machine.
    pub machine: Machine,
    /// Files read, with their hashes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputFile>,
    /// The model before pruning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSummary>,
    /// The task and its data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskSummary>,
    /// The pruning method and each of its choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// What the method saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Fraction of FLOPs to keep, asked and reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_flops: Option<KeepFlops>,
    /// Fraction of the dense model's latency to keep, where that is the budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_latency: Option<KeepLatency>,
    /// Budgets that the method can reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feasible: Option<Feasible>,
    /// The budget by part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetRecord>,
    /// Parameters and bytes of the whole model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Heads before pruning, a number a layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<usize>,
    /// Heads kept, a number a layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads_kept: Vec<usize>,
    /// Neurons before pruning, a number a layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neurons: Vec<usize>,
    /// Neurons kept, a number a layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neurons_kept: Vec<usize>,
    /// The compact model against the masked one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact: Option<CompactProof>,
    /// Training runs, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub training: Vec<Training>,
    /// Quality and speed of each model that was evaluated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<Evaluation>,
    /// Latency on this device over a grid of batch sizes and lengths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<Latency>,
    /// Wall-clock seconds by stage, inner stages as "outer / inner".
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    pub seconds: Ordered<f64>,
    /// Most memory resident at once, in bytes, as the system measured it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The same as planned before the work began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planned_peak_bytes: Option<u64>,
    /// Things that went differently from what was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Rows of the data that could not be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bad_rows: Vec<BadRows>,
    /// What a command found that has no field of its own ("inspect", "forward").
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputFile {
    /// What it was read as: "model", "configuration", "tokenizer", "train", "dev", "masks".
    pub role: String,
    /// Path as given.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// BLAKE3 hash of the content, hexadecimal.
    pub blake3: String,
}

impl InputFile {
    /// Hashes a file.
    pub fn hash(role: &str, path: &Path) -> Result<InputFile> {
        let mut file = std::fs::File::open(path).map_err(Error::io(path, "reading"))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 18];
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer).map_err(Error::io(path, "reading"))? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
        let blake3 = hasher.finalize().to_hex().to_string();
        Ok(InputFile { role: role.into(), path: path.display().to_string(), bytes, blake3 })
    }
}

/// Shape of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Path or hub name as given.
    pub name: String,
    /// `model_type` of config.json.
    pub family: String,
    /// Encoder or decoder blocks.
    pub layers: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Dimensions of one head.
    pub head_dim: usize,
    /// Vocabulary.
    pub vocabulary: usize,
    /// Most positions.
    pub positions: usize,
    /// Parameters, shared ones counted once.
    pub parameters: u64,
}

/// A task and what was read of its data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskSummary {
    /// Name on the command line.
    pub name: String,
    /// Main metric.
    pub metric: String,
    /// Whether larger values of it are better.
    pub larger_is_better: bool,
    /// Rows of each split that were used.
    pub rows: Ordered<usize>,
    /// Mean tokens of a row, split by split.
    pub mean_tokens: Ordered<f64>,
    /// Most tokens of a row.
    pub max_length: usize,
    /// Classes in class order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// One resolved choice of a method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its value.
    pub value: String,
    /// Whether it was given on the command line instead of coming with the profile.
    pub given: bool,
}

/// A pruning method as it was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// Name on the command line: "dual-cp".
    pub name: String,
    /// Profile: "paper", "authors" or "default".
    pub profile: String,
    /// Every choice by the name of its option.
    pub choices: Ordered<Choice>,
}

/// Calibration data of a method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Where the rows came from.
    pub source: String,
    /// Rows there.
    pub rows_available: usize,
    /// Indices of the rows drawn, in drawing order.
    pub rows: Vec<usize>,
    /// Tokens in those rows.
    pub tokens_available: usize,
    /// Indices of the tokens drawn, in the concatenation of those rows, in drawing order.
    pub tokens: Vec<usize>,
    /// Sequence length T of the cost model.
    pub cost_length: f64,
    /// Neurons that were zero on every calibration token, a number a layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead_neurons: Vec<usize>,
}

/// The budget in one line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeepFlops {
    /// Fraction of FLOPs to keep.
    pub asked: f64,
    /// Fraction kept.
    pub reached: f64,
}

/// A budget of latency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeepLatency {
    /// Fraction of the dense model's latency to keep.
    pub asked: f64,
    /// Fraction that the measured table predicts of what is kept.
    pub predicted: f64,
}

/// Budgets that a method can reach, as fractions of what its budget is of: FLOPs, or latency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feasible {
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

/// The whole model, embeddings and head included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Parameters before.
    pub parameters_dense: u64,
    /// Parameters after.
    pub parameters_kept: u64,
    /// Bytes of the checkpoint before.
    pub bytes_dense: u64,
    /// Bytes of the checkpoint after.
    pub bytes_kept: u64,
}

impl Size {
    /// Of parameters stored as f32.
    pub fn of_f32(dense: u64, kept: u64) -> Size {
        Size { parameters_dense: dense, parameters_kept: kept, bytes_dense: 4 * dense, bytes_kept: 4 * kept }
    }
}

/// The proof that the compact model computes what the masked one does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompactProof {
    /// Largest absolute difference of a logit.
    pub max_logit_difference: f64,
    /// Largest absolute logit, for scale.
    pub max_logit: f64,
    /// Rows it was measured on.
    pub rows: usize,
}

/// One training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Which model: "dense", "dual-cp", "random"; "pretrained" where it was trained from scratch.
    pub variant: String,
    /// Objective: the task's name, "masked-lm", "causal-lm".
    pub objective: String,
    /// Hyper-parameters by name.
    pub recipe: Ordered<serde_json::Value>,
    /// Optimiser steps run.
    pub steps: u64,
    /// Seconds, evaluation excluded.
    pub seconds: f64,
    /// Loss along the way.
    pub losses: Vec<LossPoint>,
    /// Each epoch.
    pub epochs: Vec<Epoch>,
    /// Epoch (from 1) whose weights were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_epoch: Option<usize>,
}

/// Mean training loss of the steps since the point before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Steps done.
    pub step: u64,
    /// Mean loss.
    pub loss: f64,
}

/// One epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Number from 1.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: f64,
    /// Metrics on the evaluation split, the main one first.
    #[serde(deserialize_with = "super::ordered::undefined_as_nan")]
    pub metrics: Ordered<f64>,
}

/// Quality and speed of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Which model: "dense", "dual-cp", "random", "worst".
    pub variant: String,
    /// Split: "dev".
    pub split: String,
    /// Fraction of FLOPs it keeps.
    pub keep_flops: f64,
    /// Metrics, the main one first.
    #[serde(deserialize_with = "super::ordered::undefined_as_nan")]
    pub metrics: Ordered<f64>,
    /// Rows evaluated.
    pub rows: usize,
    /// Seconds of the forward passes.
    pub seconds: f64,
}

/// Rows of a file that could not be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BadRows {
    /// The file.
    pub path: String,
    /// How many.
    pub count: usize,
    /// What they are counted in: "line", "question".
    pub unit: String,
    /// Each, as (number from 1, reason).
    pub rows: Vec<(usize, String)>,
}

impl RunRecord {
    /// A record that begins now.
    pub fn begin(
        command: &str,
        arguments: Vec<String>,
        seed: u64,
        threads: usize,
        device: &str,
    ) -> RunRecord {
        RunRecord {
            format: FORMAT,
            secateur: env!("CARGO_PKG_VERSION").into(),
            command: command.into(),
            arguments,
            seed,
            threads,
            device: device.into(),
            started: format::utc_now(),
            machine: Machine::here(),
            ..RunRecord::default()
        }
    }

    /// Takes over a pruning result.
    pub fn set_budget(&mut self, budget: &BudgetRecord, dense: &[LayerWidths]) {
        self.keep_flops = Some(KeepFlops { asked: budget.asked, reached: budget.reached });
        self.heads = dense.iter().map(|layer| layer.heads).collect();
        self.neurons = dense.iter().map(|layer| layer.neurons).collect();
        self.heads_kept = budget.layers.iter().map(|layer| layer.heads).collect();
        self.neurons_kept = budget.layers.iter().map(|layer| layer.neurons).collect();
        self.budget = Some(budget.clone());
        // Until the compact model is there to be counted: what goes, goes from the blocks.
        let of_masks = |model: &ModelSummary| {
            let gone = budget.parameters_total.saturating_sub(budget.parameters_kept) as u64;
            Size::of_f32(model.parameters, model.parameters.saturating_sub(gone))
        };
        self.size = self.size.or(self.model.as_ref().map(of_masks));
    }

    /// Makes the budget one of latency: nothing was asked of FLOPs, so what is reached stands for it.
    pub fn set_latency(&mut self, latency: KeepLatency) {
        self.keep_latency = Some(latency);
        if let (Some(keep), Some(budget)) = (&mut self.keep_flops, &mut self.budget) {
            keep.asked = keep.reached;
            budget.asked = budget.reached;
        }
    }

    /// Takes over stages, warnings and peak memory at the end of a run that took `elapsed` seconds.
    pub fn finish(&mut self, progress: &Progress, elapsed: f64) {
        self.seconds = progress.seconds().into_iter().map(|s| (s.stage, s.seconds)).collect();
        self.warnings = progress.warnings();
        self.peak_bytes = crate::memory::peak_bytes();
        self.planned_peak_bytes = progress.planned_bytes();
        self.elapsed_seconds = elapsed;
    }

    /// The evaluation of a variant.
    pub fn evaluation(&self, variant: &str) -> Option<&Evaluation> {
        self.evaluations.iter().find(|evaluation| evaluation.variant == variant)
    }

    /// `run.json`: indented, one line break at the end.
    pub fn to_json(&self) -> String {
        // Only maps with keys that are not strings can fail, and there are none.
        let mut text = serde_json::to_string_pretty(self).expect("a record is plain data");
        text.push('\n');
        text
    }

    /// Reads a `run.json`.
    pub fn read(path: &Path) -> Result<RunRecord> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        let record: RunRecord =
            serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not a run record: {e}")))?;
        if record.format != FORMAT {
            let message = format!("run record of format {}; this version reads {FORMAT}", record.format);
            return Err(Error::format(path, message));
        }
        Ok(record)
    }
}

/// Whether `masks` are those of `record`: same layers, same numbers kept.
pub fn agrees(record: &RunRecord, masks: &UnitMasks) -> bool {
    let kept = masks.widths();
    kept.iter().map(|l| l.heads).eq(record.heads_kept.iter().copied())
        && kept.iter().map(|l| l.neurons).eq(record.neurons_kept.iter().copied())
}
