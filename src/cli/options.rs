//! Options that several commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secateur::data::text::Grouping;
use secateur::launch::Precision;
use secateur::prune::method;
use secateur::session;
use secateur::{Error, Result};

/// Options of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Every command")]
pub struct GlobalOptions {
    /// Seed of every random choice. The same seed gives the same bits, whatever the number of threads. Default 42.
    #[arg(long, global = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Worker threads; all logical processors if not given.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// What computes: cpu (all cores), cuda or cuda:N (an NVIDIA GPU), reference (f64, slow and obvious; for
    /// checking), emulated (the GPU's kernels without a GPU, every memory access checked; very slow). `auto` is the first
    /// GPU, or the CPU where there is none; `secateur doctor` says why there is none.
    #[arg(
        long,
        global = true,
        default_value = "auto",
        value_name = "auto|cpu|cuda|cuda:N|reference|emulated"
    )]
    pub device: DeviceName,
    /// What products and activations are computed in. On a GPU, f32 and tf32 store f32; bf16 halves memory traffic too; f16
    /// rounds the factors of products alone, as finely as tf32 and at the rate of bf16, and computes no gradients. On the
    /// CPU, bf16 rounds the factors of products alone; it pays where the processor has matrix tiles (AMX), which `secateur
    /// doctor` tells. Sums, statistics, losses and the optimiser are f32 always.
    #[arg(long, global = true, value_enum, default_value_t = PrecisionName::F32)]
    pub precision: PrecisionName,
    /// No progress, no tables; warnings and errors only.
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Print the run record as one JSON object on standard output, and nothing else.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Device names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    Auto,
    Cpu,
    Cuda(usize),
    Reference,
    Emulated,
}

impl std::str::FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<DeviceName, String> {
        Ok(match name {
            "auto" => DeviceName::Auto,
            "cpu" => DeviceName::Cpu,
            "cuda" => DeviceName::Cuda(0),
            "reference" => DeviceName::Reference,
            "emulated" => DeviceName::Emulated,
            _ => match name.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => DeviceName::Cuda(ordinal),
                _ => return Err("expected auto, cpu, cuda, cuda:N, reference or emulated".into()),
            },
        })
    }
}

/// Precisions of products.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrecisionName {
    F32,
    Tf32,
    Bf16,
    F16,
}

impl GlobalOptions {
    /// The device to use; for `auto`, also why it is not a GPU.
    pub fn device(&self) -> Result<(session::Device, Option<Error>)> {
        use session::Device;
        let precision = match self.precision {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Tf32 => Precision::Tf32,
            PrecisionName::Bf16 => Precision::Bf16,
            PrecisionName::F16 => Precision::F16,
        };
        let (device, reason) = match self.device {
            DeviceName::Auto => Device::best(precision),
            DeviceName::Cpu if precision == Precision::Bf16 => (Device::CpuBf16, None),
            DeviceName::Cpu => (Device::Cpu, None),
            DeviceName::Reference => (Device::Reference, None),
            DeviceName::Cuda(ordinal) => (Device::Cuda { ordinal, precision }, None),
            DeviceName::Emulated => (Device::Emulated { precision }, None),
        };
        if precision != Precision::F32 && matches!(device, Device::Cpu | Device::Reference) {
            let why = reason.map_or(String::new(), |reason| format!(" ({reason})"));
            let (asked, cpu) =
                (precision.name(), if precision == Precision::Bf16 { " or the CPU" } else { "" });
            return Err(Error::usage(format!(
                "--precision {asked} needs a GPU{cpu}; the device is {device}{why}"
            )));
        }
        Ok((device, reason))
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceName::Auto => f.write_str("auto"),
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceName::Reference => f.write_str("reference"),
            DeviceName::Emulated => f.write_str("emulated"),
        }
    }
}

/// The name of an enumerated option's value on the command line.
pub fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelOptions {
    /// Directory with config.json and model.safetensors, or a name in the local Hugging Face cache
    /// ("bert-base-uncased").
    #[arg(long, value_name = "DIR|NAME")]
    pub model: String,
}

/// Which task, and its data.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Task and data")]
pub struct TaskOptions {
    /// mrpc, sts-b, sst-2, rte, cola, qnli, qqp, mnli, mnli-mm, wnli, squad, squad-v2, lm (next token), mlm (masked
    /// tokens), table (any CSV, TSV or JSONL with named columns), agreement (built in).
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// Directory in the task's usual layout (for GLUE: train.tsv, dev.tsv), or one file for all splits. The built-in
    /// task needs none.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Most tokens of a row (of a block, for language modelling); longer ones are cut. Default: the task's usual.
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Use only the first N training rows.
    #[arg(long, value_name = "N")]
    pub train_rows: Option<usize>,
    /// Use only the first N evaluation rows.
    #[arg(long, value_name = "N")]
    pub eval_rows: Option<usize>,
    /// Task `table`: column of the (first) text.
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Task `table`: column of the second text of a pair.
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
    /// Task `table`: column of the label.
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// Task `table`: the label is a number to predict, not a class.
    #[arg(long)]
    pub regression: bool,
    /// Task `lm`: how lines become blocks. Published perplexities depend on it.
    #[arg(long, value_enum, default_value_t = LmGrouping::Global)]
    pub lm_grouping: LmGrouping,
    /// Lines of a map batch of `--lm-grouping hf`.
    #[arg(long, value_name = "LINES", default_value_t = 1000)]
    pub lm_batch: usize,
    /// Shards of `--lm-grouping hf`.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub lm_workers: usize,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LmGrouping {
    /// All lines are one stream, cut into blocks; the last, incomplete block is dropped.
    Global,
    /// As a map over batches of lines in shards cuts them, each batch by itself.
    Hf,
}

impl TaskOptions {
    /// How the lines of a text become blocks.
    pub fn grouping(&self) -> Grouping {
        match self.lm_grouping {
            LmGrouping::Global => Grouping::Global,
            LmGrouping::Hf => {
                Grouping::Hf { batch: self.lm_batch, workers: self.lm_workers, keep_short: true }
            }
        }
    }
}

/// Where results go.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputOptions {
    /// Directory to write. It appears only when everything in it is whole.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace the directory if it exists (it is removed only once the new one is whole).
    #[arg(long)]
    pub overwrite: bool,
}

/// Sets of choices.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The paper's text.
    Paper,
    /// The authors' released code, its slips included, mask for mask.
    Authors,
    /// The paper with what is broken or infeasible repaired.
    Default,
}

impl From<Profile> for method::Profile {
    fn from(profile: Profile) -> method::Profile {
        match profile {
            Profile::Paper => method::Profile::Paper,
            Profile::Authors => method::Profile::Authors,
            Profile::Default => method::Profile::Default,
        }
    }
}

/// How to train.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct TrainOptions {
    #[command(flatten)]
    pub recipe: RecipeOptions,
    /// Continue an interrupted run, to the same bits as if it had not been interrupted.
    #[arg(long)]
    pub resume: bool,
}

/// What a training does.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct RecipeOptions {
    /// Hyper-parameters to start from: glue, bert-paper, squad, lm-paper, lm-readme. Default: squad for SQuAD, lm-paper
    /// for language modelling, glue otherwise.
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
    /// Peak learning rate.
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Rows of an optimiser step.
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Passes over the training rows.
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Stop after N optimiser steps; the learning rate decays over these.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Fraction of the steps over which the learning rate rises from 0.
    #[arg(long, value_name = "FRACTION")]
    pub warmup: Option<f64>,
    /// Decoupled weight decay of matrices.
    #[arg(long, value_name = "RATE")]
    pub weight_decay: Option<f64>,
}

impl RecipeOptions {
    /// The arguments that give the same training.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut set = |name: &str, value: Option<String>| {
            arguments.extend(value.into_iter().flat_map(|value| [name.to_string(), value]));
        };
        set("--recipe", self.recipe.clone());
        set("--learning-rate", self.learning_rate.map(|v| v.to_string()));
        set("--batch-size", self.batch_size.map(|v| v.to_string()));
        set("--epochs", self.epochs.map(|v| v.to_string()));
        set("--steps", self.steps.map(|v| v.to_string()));
        set("--warmup", self.warmup.map(|v| v.to_string()));
        set("--weight-decay", self.weight_decay.map(|v| v.to_string()));
        arguments
    }
}
