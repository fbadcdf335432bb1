//! `secateur bench`

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secateur::bench::{self, Ceilings, ModelTimes, Report, Settings, Shape};
use secateur::report::format;
use secateur::report::table::Table;
use secateur::train::checkpoint::write_atomically;
use secateur::{Error, Result};

use super::context::Context;

/// Measure this machine: ceilings, every operation inside real programs, whole models, pruning.
///
/// Weights and data are random; nothing is read but --lengths. Shares are of the ceilings measured on the device.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur bench --device cuda --precision bf16\n  secateur bench --models mini-lm --batch 32x128 --no-training\n  secateur bench --device cuda --models gpt2 --batch 8x1024 --out bench.json"
)]
pub struct Bench {
    /// Models to measure with.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bert-base", value_name = "NAME")]
    models: Vec<ShapeName>,
    /// Sequences and tokens of each in a batch.
    #[arg(long, default_value = "32x128", value_name = "SEQUENCES×TOKENS", value_parser = batch)]
    batch: (usize, usize),
    /// Lengths of real sequences, one a line, instead of equal ones; batches are runs of the lines.
    #[arg(long, value_name = "FILE")]
    lengths: Option<PathBuf>,
    /// Timed runs behind each median.
    #[arg(long, default_value_t = 15, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Leave training steps out.
    #[arg(long)]
    no_training: bool,
    /// Leave Dual-CP and the switching of weight masks out.
    #[arg(long)]
    no_pruning: bool,
    /// Write everything that was measured to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ShapeName {
    BertBase,
    MiniLm,
    Gpt2,
    Tiny,
}

fn batch(text: &str) -> std::result::Result<(usize, usize), String> {
    let parsed = text.split_once(['x', '×']).and_then(|(s, t)| Some((s.parse().ok()?, t.parse().ok()?)));
    match parsed {
        Some((sequences, tokens)) if sequences > 0 && tokens > 0 => Ok((sequences, tokens)),
        _ => Err(format!("{text:?} is not two positive numbers joined by an x, as in 32x128")),
    }
}

impl Bench {
    /// Whether training steps are measured.
    pub fn trains(&self) -> bool {
        !self.no_training
    }

    pub fn run(&self, context: &mut Context) -> Result<()> {
        let (sequences, tokens) = self.batch;
        let lengths = match &self.lengths {
            None => vec![tokens; sequences * 4],
            Some(path) => read_lengths(path, sequences)?,
        };
        let shape = |name: &ShapeName| match name {
            ShapeName::BertBase => Shape::BertBase,
            ShapeName::MiniLm => Shape::MiniLm,
            ShapeName::Gpt2 => Shape::Gpt2,
            ShapeName::Tiny => Shape::Tiny,
        };
        let settings = Settings {
            device: context.device,
            shapes: self.models.iter().map(shape).collect(),
            lengths,
            sequences,
            repeats: self.repeats as usize,
            training: self.trains(),
            pruning: !self.no_pruning,
            seed: context.seed,
        };
        let report = bench::run(&settings, &context.progress)?;
        let json = serde_json::to_value(&report)
            .map_err(|error| Error::usage(format!("writing the measurements as JSON: {error}")))?;
        if let Some(path) = &self.out {
            write_atomically(path, format!("{json:#}\n").as_bytes())?;
        }
        context.print(&json, &render(&report, std::io::stdout().is_terminal()));
        Ok(())
    }
}

/// One length a line; enough for a batch.
fn read_lengths(path: &PathBuf, sequences: usize) -> Result<Vec<usize>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
    let mut lengths = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match line.trim().parse() {
            Ok(length) if length > 0 => lengths.push(length),
            _ => {
                let message = format!("line {} is not a positive number: {line:?}", index + 1);
                return Err(Error::format(path, message));
            }
        }
    }
    if lengths.len() < sequences {
        return Err(Error::format(path, format!("{} lengths are no batch of {sequences}", lengths.len())));
    }
    Ok(lengths)
}

/// The report as tables.
fn render(report: &Report, styled: bool) -> String {
    let mut text = format!("{}\n", report.device);
    if let Some(ceilings) = &report.ceilings {
        text.push_str(&render_ceilings(ceilings, styled));
    }
    let mut models =
        Table::new(&["model", "work", "tokens>", "median>", "fastest>", "tokens/s>", "FLOP/s>", "memory>"]);
    for times in &report.models {
        models.row([
            times.model.clone(),
            times.work.clone(),
            format!("{:.0}", times.tokens),
            format::seconds(times.seconds.median),
            format::seconds(times.seconds.minimum),
            format::count(times.tokens_per_second()),
            format::count(times.flops / times.seconds.median),
            format::bytes(times.bytes_held as u64),
        ]);
    }
    text.push('\n');
    text.push_str(&models.render(styled));
    for times in &report.models {
        text.push_str(&format!("\n{}, {}: where the time goes\n", times.model, times.work));
        text.push_str(&render_operations(times, report.ceilings.as_ref(), styled));
    }
    if !report.pruning.is_empty() {
        text.push_str("\nDual-CP, loaded weights to masks\n");
        let mut table = Table::new(&["model", "rows>", "tokens>", "median>", "stage", "seconds>", "rate>"]);
        for times in &report.pruning {
            table.row([
                times.model.clone(),
                times.rows.to_string(),
                times.tokens.to_string(),
                format::seconds(times.seconds.median),
                "calibration".into(),
                format::seconds(times.calibration),
                format!("{} tokens/s", format::count(times.tokens_per_second())),
            ]);
            for (stage, seconds) in &times.stages {
                let rate = format!("{} neurons²/s", format::count(times.neuron_pairs as f64 / seconds));
                let blank = String::new;
                table.row([
                    blank(),
                    blank(),
                    blank(),
                    blank(),
                    stage.clone(),
                    format::seconds(*seconds),
                    rate,
                ]);
            }
        }
        text.push_str(&table.render(styled));
    }
    if !report.switching.is_empty() {
        text.push_str("\nfrom one task's weight masks to another's, the model frozen\n");
        let mut table = Table::new(&["model", "weights>", "bits>", "median>", "fastest>", "weights/s>"]);
        for times in &report.switching {
            table.row([
                times.model.clone(),
                format::count(times.weights as f64),
                format::bytes(times.mask_bytes as u64),
                format::seconds(times.seconds.median),
                format::seconds(times.seconds.minimum),
                format::count(times.weights as f64 / times.seconds.median),
            ]);
        }
        text.push_str(&table.render(styled));
    }
    text
}

fn render_ceilings(ceilings: &Ceilings, styled: bool) -> String {
    let mut table = Table::new(&["ceiling", "measured>"]);
    for (name, rate) in [
        ("bf16 products (mma.sync)", ceilings.mma_bf16),
        ("f16 products (mma.sync)", ceilings.mma_f16),
        ("tf32 products (mma.sync)", ceilings.mma_tf32),
        ("f32 multiply-adds", ceilings.fma_f32),
    ] {
        table.row([name.to_owned(), format!("{}FLOP/s", format::count(rate))]);
    }
    table.row(["copy, read and written".to_owned(), format!("{}B/s", format::count(ceilings.copy))]);
    table.row(["empty kernel".to_owned(), format!("{:.2} µs", ceilings.launch * 1e6)]);
    table.render(styled)
}

/// Operations that together take almost all of the time, with rates and shares.
fn render_operations(times: &ModelTimes, ceilings: Option<&Ceilings>, styled: bool) -> String {
    let mut table =
        Table::new(&["operation", "count>", "seconds>", "share>", "FLOP/s>", "B/s>", "of the copy ceiling>"]);
    let total: f64 = times.operations.iter().map(|operation| operation.seconds).sum();
    let mut shown = 0.0;
    for operation in &times.operations {
        if shown > 0.99 * total {
            break;
        }
        shown += operation.seconds;
        let bytes = operation.bytes as f64 / operation.seconds;
        table.row([
            operation.operation.clone(),
            operation.count.to_string(),
            format::seconds(operation.seconds),
            format::percent(operation.seconds / total),
            format::count(operation.flops as f64 / operation.seconds),
            format::count(bytes),
            ceilings.map_or(String::new(), |c| format::percent(bytes / c.copy)),
        ]);
    }
    table.render(styled)
}
