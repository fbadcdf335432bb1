//! Dual-CP on a model of BERT-base's size with random weights, stage by stage, each run in a process of its own so that its
//! peak memory is that of the method and nothing else. No peer has this method; what is asked is time and memory.

use crate::contest::median;
use crate::machine;
use crate::model::{BERT_BASE, bert, examples, mrpc_lengths};
use secateur::data::{Example, Target};
use secateur::model::{Head, LayerWidths};
use secateur::progress::Progress;
use secateur::prune::dual_cp::{self, CpuBackend, Options};
use secateur::prune::{CostModel, calibrate};
use secateur::session::{Device, Session};
use serde::{Deserialize, Serialize};
use std::process::Command;
use std::time::Instant;

/// Name among the workloads.
pub const NAME: &str = "Dual-CP BERT-base 200 tokens";
/// Argument that makes this program run the method once and print what it measured.
pub const ONCE: &str = "dual-cp-once";
/// Rows of the data set the tokens are drawn from, as `secateur prune` has it.
const CALIBRATION_ROWS: usize = 3000;

/// What one run measured.
#[derive(Serialize, Deserialize)]
pub struct Run {
    /// Name and seconds of every stage.
    stages: Vec<(String, f64)>,
    /// Largest memory of the process, and what it was before the method began, in bytes.
    peak_bytes: u64,
    weights_bytes: u64,
    /// Rows and tokens that went through the model.
    rows: usize,
    tokens: usize,
}

impl Run {
    fn seconds(&self) -> f64 {
        self.stages.iter().map(|(_, seconds)| seconds).sum()
    }
}

/// Runs the method once and prints the measurement.
pub fn once() {
    let model = bert(BERT_BASE, Head::Backbone);
    let lengths = mrpc_lengths();
    let rows: Vec<Example> = examples(std::slice::from_ref(&lengths), BERT_BASE.vocabulary, |_| Target::None)
        .into_iter()
        .flatten()
        .collect();
    let weights_bytes = machine::peak_bytes();
    let mut stages: Vec<(String, f64)> = Vec::new();
    let mut start = Instant::now();
    let mut stage = |stages: &mut Vec<(String, f64)>, name: &str| {
        stages.push((name.to_string(), start.elapsed().as_secs_f64()));
        start = Instant::now();
    };
    let options = Options::default();
    let config = model.config();
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    let widths: Vec<LayerWidths> = config
        .layers
        .iter()
        .map(|layer| LayerWidths { heads: layer.heads, neurons: layer.neurons })
        .collect();
    let cost = CostModel::new(config.hidden, config.head_dim, mean, widths).expect("positive sizes");
    let mut session = Session::new(model, Device::Cpu).expect("the parameters fit their block");
    let selection = calibrate::select(&lengths, CALIBRATION_ROWS, options.tokens, 0).expect("rows");
    stage(&mut stages, "parameters to the executor");
    let sample =
        calibrate::collect(&mut session, &rows, &selection, &Progress::silent()).expect("valid tokens");
    drop(session);
    stage(&mut stages, "calibration (forward passes)");
    let outcome = dual_cp::prune(&sample, &cost, &options, &mut CpuBackend).expect("a feasible budget");
    let (mut inside, known) = (Vec::new(), stages.len());
    stage(&mut inside, "the rest of pruning");
    stages.extend(outcome.stages.0);
    inside[0].1 -= stages[known..].iter().map(|(_, seconds)| seconds).sum::<f64>();
    stages.append(&mut inside);
    let ends: Vec<usize> = selection
        .rows
        .iter()
        .scan(0, |end, &row| {
            *end += lengths[row];
            Some(*end)
        })
        .collect();
    let mut chosen: Vec<usize> =
        selection.tokens.iter().map(|token| ends.partition_point(|end| end <= token)).collect();
    chosen.sort_unstable();
    chosen.dedup();
    let run = Run {
        stages,
        peak_bytes: machine::peak_bytes(),
        weights_bytes,
        rows: chosen.len(),
        tokens: chosen.iter().map(|&row| lengths[selection.rows[row]]).sum(),
    };
    println!("{}", serde_json::to_string(&run).expect("plain data"));
}

/// Several runs, each in its own process; a section of the record.
pub fn report(rounds: usize, threads: usize) -> String {
    let runs: Vec<Run> = (0..rounds)
        .map(|_| {
            let program = std::env::current_exe().expect("this program");
            let arguments = ["--threads", &threads.to_string(), ONCE];
            let output = Command::new(program).args(arguments).output().expect("starts");
            assert!(output.status.success(), "Dual-CP failed: {}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice(&output.stdout).expect("one line of JSON")
        })
        .collect();
    let totals = || runs.iter().map(Run::seconds);
    let total = median(totals());
    let peak = runs.iter().map(|run| run.peak_bytes).max().unwrap_or(0) as f64 / 1e9;
    let mut text = format!(
        "\n## {NAME}\n\n12 layers of 3,072 neurons and 12 heads, random weights; {} rows ({} tokens) of MRPC's lengths hold the \
         200 tokens.\nMedian of {rounds} processes {total:.2} s ({:.2}–{:.2}; asked: under 15 s), peak memory {peak:.2} GB \
         (asked: under 1.5 GB), of which {:.2} GB before the method began (weights). Stages:\n\n| stage | seconds | share |\n\
         | --- | --- | --- |\n",
        runs[0].rows,
        runs[0].tokens,
        totals().fold(f64::NAN, f64::min),
        totals().fold(f64::NAN, f64::max),
        runs[0].weights_bytes as f64 / 1e9,
    );
    for (index, (name, _)) in runs[0].stages.iter().enumerate() {
        let seconds = median(runs.iter().map(|run| run.stages[index].1));
        text += &format!("| {name} | {seconds:.3} | {:.1} % |\n", 100.0 * seconds / total);
    }
    text
}
