//! Dual-CP from loaded weights to masks, by stage.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Seconds, Settings, Shape};
use crate::data::{Example, Target, random};
use crate::error::Result;
use crate::model::{Head, Model, ModelConfig};
use crate::progress::Progress;
use crate::prune::CostModel;
use crate::prune::calibrate;
use crate::prune::dual_cp::{self, Options};
use crate::session::Session;

/// Dual-CP on one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruningTimes {
    /// Model.
    pub model: String,
    /// Rows run for calibration, and their tokens.
    pub rows: usize,
    /// Tokens of those rows.
    pub tokens: usize,
    /// Sampled tokens.
    pub sampled: usize,
    /// Seconds from loaded weights to masks.
    pub seconds: Seconds,
    /// Median seconds of the calibration forward passes.
    pub calibration: f64,
    /// Seconds of every later stage, of the last run.
    pub stages: Vec<(String, f64)>,
    /// Similarities of neuron pairs computed: Σ neurons².
    pub neuron_pairs: usize,
}

impl PruningTimes {
    /// Calibration tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.calibration
    }
}

/// Rows of 128 random tokens of which 200 tokens are sampled, as the paper samples them.
const ROWS: usize = 512;
const ROW_TOKENS: usize = 128;

pub(super) fn measure(shape: Shape, settings: &Settings, progress: &Progress) -> Result<PruningTimes> {
    let model = shape.model(settings.seed)?;
    let model = backbone(&model.architecture.config, settings.seed)?;
    let config = model.config().clone();
    let mut stream = random::Stream::new(settings.seed, random::Purpose::Bench, 1);
    let length = ROW_TOKENS.min(config.max_length());
    let rows: Vec<Example> = (0..ROWS)
        .map(|_| Example {
            input_ids: (0..length).map(|_| stream.below(config.vocab) as i32).collect(),
            token_type_ids: vec![0; length],
            target: Target::None,
        })
        .collect();
    let lengths = vec![length; ROWS];
    let options = Options { keep_flops: vec![0.6], ..Options::default() };
    let selection = calibrate::select(&lengths, ROWS, options.tokens, settings.seed)?;
    let cost = CostModel::new(config.hidden, config.head_dim, length as f64, config.widths())?;
    let touched = {
        let mut rows: Vec<usize> = selection.tokens.iter().map(|token| token / length).collect();
        rows.dedup();
        rows.sort_unstable();
        rows.dedup();
        rows.len()
    };
    let stage = progress.stage(&format!("{} Dual-CP", shape.name()), 0, "");
    let mut session = Session::new(model, settings.device)?;
    let (mut totals, mut calibrations, mut stages) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.repeats.clamp(1, 3) {
        let start = Instant::now();
        let sample = calibrate::collect(&mut session, &rows, &selection, progress)?;
        calibrations.push(start.elapsed().as_secs_f64());
        let outcome = dual_cp::prune_on(settings.device, &sample, &cost, &options)?;
        totals.push(start.elapsed().as_secs_f64());
        stages = outcome.stages.0;
    }
    stage.finish();
    Ok(PruningTimes {
        model: shape.name().into(),
        rows: touched,
        tokens: touched * length,
        sampled: selection.tokens.len(),
        seconds: Seconds::of(totals),
        calibration: Seconds::of(calibrations).median,
        stages,
        neuron_pairs: config.layers.iter().map(|layer| layer.neurons * layer.neurons).sum(),
    })
}

/// The model without a task head, as `prune` loads it.
fn backbone(config: &ModelConfig, seed: u64) -> Result<Model> {
    Model::from_config(config.clone(), Head::Backbone, seed)
}
