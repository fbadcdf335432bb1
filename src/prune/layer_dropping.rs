//! Layer dropping (Sajjad, Dalvi, Durrani and Nakov: "On the effect of dropping layers of pre-trained transformer models",
//! Computer Speech & Language 2023): whole layers go, then the model is fine-tuned.
//!
//! A dropped layer is gone with its biases and LayerNorms, and the layers above move down; what follows the last layer
//! (a final LayerNorm, the head) stays. A strategy names K layers for every K; a budget takes the smallest K that meets
//! it.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::model::{EmptySublayers, LayerWidths, Model, UnitMasks, answer_rows, check_dropped};
use crate::prune::{CostModel, Job, Pruned, Stream};
use crate::session::Session;

/// Tokens of a batch.
const TOKEN_BUDGET: usize = 2048;

/// Which layers go. Layers are numbered from 0 at the embeddings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The K highest.
    Top,
    /// The K lowest.
    Bottom,
    /// The K in the middle; where L − K is odd, one more stays below than above.
    Symmetric,
    /// Every other layer from the top down, those of odd number.
    OddAlternate,
    /// Every other layer from the top down, those of even number.
    EvenAlternate,
    /// The K whose weights (of matrices, biases left out) have the smallest sum of magnitudes.
    ParameterMagnitude,
    /// The K whose weights have the smallest variance.
    ParameterVariance,
    /// The K that change the state of the answering token least: by mean cosine of what enters and leaves the layer,
    /// over the calibration rows. Encoders answer at their first token (`[CLS]`), causal models at their last.
    Contribution,
    /// These.
    Layers(Vec<usize>),
}

/// All choices of the method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Which layers go.
    pub strategy: Strategy,
}

impl Default for Options {
    /// The top layers, which the paper finds at least as good as anything else.
    fn default() -> Options {
        Options { strategy: Strategy::Top }
    }
}

impl Options {
    /// As [`Options::default`].
    pub fn paper() -> Options {
        Options::default()
    }

    /// As [`Options::default`].
    pub fn authors() -> Options {
        Options::default()
    }
}

/// The layers that a strategy drops which goes by position alone, ascending: `count` of `layers`. `None` for the
/// strategies that rank layers. Fails where so many cannot be dropped.
pub fn by_position(strategy: &Strategy, layers: usize, count: usize) -> Result<Option<Vec<usize>>> {
    let alternate = |parity: usize| (0..layers).filter(|layer| layer % 2 == parity).collect::<Vec<_>>();
    let last = |mut layers: Vec<usize>| layers.split_off(layers.len() - count.min(layers.len()));
    if count >= layers {
        return Err(too_many(count, layers.saturating_sub(1)));
    }
    let dropped = match strategy {
        Strategy::Top => last((0..layers).collect()),
        Strategy::Bottom => (0..count).collect(),
        Strategy::Symmetric => {
            let below = (layers - count).div_ceil(2);
            (below..below + count).collect()
        }
        Strategy::OddAlternate => last(alternate(1)),
        Strategy::EvenAlternate => last(alternate(0)),
        Strategy::Layers(list) => list.clone(),
        Strategy::ParameterMagnitude | Strategy::ParameterVariance | Strategy::Contribution => {
            return Ok(None);
        }
    };
    if !matches!(strategy, Strategy::Layers(_)) && dropped.len() < count {
        return Err(too_many(count, dropped.len()));
    }
    Ok(Some(dropped))
}

fn too_many(count: usize, most: usize) -> Error {
    Error::usage(format!("{count} layers cannot be dropped: this strategy has {most} at most"))
}

/// Largest number of layers that a strategy can drop.
fn most(strategy: &Strategy, layers: usize) -> usize {
    match strategy {
        Strategy::Layers(list) => list.len(),
        Strategy::OddAlternate => layers / 2,
        // Of a single layer nothing may go.
        Strategy::EvenAlternate => layers.div_ceil(2).min(layers.saturating_sub(1)),
        _ => layers.saturating_sub(1),
    }
}

/// Fractions of multiply–accumulates that can be reached. Where layers differ in width and the strategy ranks them, which
/// layers go is not known before: the lower end is then what is left when the cheapest layer stays.
pub fn feasible(cost: &CostModel, options: &Options) -> RangeInclusive<f64> {
    let layers = cost.layers.len();
    let lowest = match by_position(&options.strategy, layers, most(&options.strategy, layers)) {
        Ok(Some(dropped)) => share_without(cost, &dropped),
        _ => cost.layers.iter().map(|layer| cost.share(std::slice::from_ref(layer))).fold(1.0, f64::min),
    };
    lowest..=1.0
}

/// Fraction of multiply–accumulates without these layers.
fn share_without(cost: &CostModel, dropped: &[usize]) -> f64 {
    cost.share(&without(&cost.layers, dropped))
}

fn without(layers: &[LayerWidths], dropped: &[usize]) -> Vec<LayerWidths> {
    (0..layers.len()).filter(|layer| !dropped.contains(layer)).map(|layer| layers[layer]).collect()
}

/// Prunes for every budget of the job, in its order. Fails before anything is computed where a budget is not
/// [`feasible`], and on lists of layers that repeat one, name one that is not there, or name all.
pub fn prune(job: &Job, options: &Options) -> Result<Vec<Pruned>> {
    let layers = job.cost.layers.len();
    if let Strategy::Layers(list) = &options.strategy {
        check_dropped(list, layers)?;
    }
    let range = feasible(job.cost, options);
    for &keep in job.keep {
        if !(keep > 0.0 && keep <= 1.0) {
            return Err(Error::usage(format!(
                "the fraction of FLOPs to keep must be above 0 and at most 1, not {keep}"
            )));
        }
        if keep + SLACK < *range.start() {
            return Err(infeasible(keep, *range.start()));
        }
    }
    let order = order(job, &options.strategy)?;
    let result = |&keep: &f64| {
        let dropped = choose(job.cost, options, order.as_deref(), keep)?;
        pruned(job.cost, keep, &dropped, order.as_deref())
    };
    job.keep.iter().map(result).collect()
}

/// Slack of a budget against the rounding of shares.
const SLACK: f64 = 1e-9;

fn infeasible(asked: f64, minimum: f64) -> Error {
    let minimum = (minimum * 1e4).ceil() / 1e4;
    let reason = "this strategy cannot drop so many layers".to_string();
    Error::Infeasible { method: "layer dropping".into(), asked, minimum, reason }
}

/// The fewest layers that meet the budget, ascending.
fn choose(cost: &CostModel, options: &Options, order: Option<&[usize]>, keep: f64) -> Result<Vec<usize>> {
    let layers = cost.layers.len();
    let start = if let Strategy::Layers(list) = &options.strategy { list.len() } else { 0 };
    for count in start..=most(&options.strategy, layers) {
        let mut dropped = match (by_position(&options.strategy, layers, count)?, order) {
            (Some(dropped), _) => dropped,
            (None, Some(order)) => order[..count].to_vec(),
            (None, None) => unreachable!("a strategy goes by position or has an order"),
        };
        dropped.sort_unstable();
        if share_without(cost, &dropped) <= keep + SLACK {
            return Ok(dropped);
        }
    }
    Err(infeasible(keep, *feasible(cost, options).start()))
}

fn pruned(cost: &CostModel, keep: f64, dropped: &[usize], order: Option<&[usize]>) -> Result<Pruned> {
    let mut masks = UnitMasks::ones(&cost.layers);
    for &layer in dropped {
        masks.heads[layer].fill(0.0);
        masks.neurons[layer].fill(0.0);
    }
    let mut pruned = Pruned::of_masks(masks, keep, cost)?;
    pruned.empty = EmptySublayers::DropLayers;
    pruned.budget.parameters_kept = cost.block_parameters(&without(&cost.layers, dropped));
    let list: Vec<String> = dropped.iter().map(usize::to_string).collect();
    if !list.is_empty() {
        pruned.notes.push(format!("dropped layers: {}", list.join(", ")));
    }
    pruned.details = json!({ "dropped": dropped, "order": order });
    Ok(pruned)
}

/// Layers from the first to go to the last, for the strategies that rank them.
fn order(job: &Job, strategy: &Strategy) -> Result<Option<Vec<usize>>> {
    let scores = match strategy {
        Strategy::ParameterMagnitude => {
            parameter_scores(job.model, |weights| weights.iter().map(|&w| f64::from(w.abs())).sum())
        }
        Strategy::ParameterVariance => parameter_scores(job.model, |weights| {
            let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / weights.len().max(1) as f64;
            weights.iter().map(|&w| (f64::from(w) - mean).powi(2)).sum::<f64>() / weights.len().max(1) as f64
        }),
        // The most alike go first.
        Strategy::Contribution => cosines(job)?.into_iter().map(|cosine| -cosine).collect(),
        _ => return Ok(None),
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    Ok(Some(order))
}

/// A number for the weights of all matrices of each layer.
fn parameter_scores(model: &Model, score: impl Fn(&[f32]) -> f64) -> Vec<f64> {
    let layer = |layer: &crate::model::parameters::LayerParameters| {
        let mut weights = Vec::new();
        for parameter in layer.ids().map(|id| model.layout().get(id)).filter(|parameter| !parameter.vector) {
            for row in 0..parameter.rows {
                let start = parameter.offset + row * parameter.ld();
                weights.extend_from_slice(&model.values[start..start + parameter.cols]);
            }
        }
        score(&weights)
    };
    model.architecture.parameters.layers.iter().map(layer).collect()
}

/// Mean cosine, over the calibration rows, of the answering token's state below and above each layer.
pub fn cosines(job: &Job) -> Result<Vec<f64>> {
    let config = job.model.config();
    let mut session = Session::of(job.model, job.device)?;
    let mut stream = Stream::start(&mut session, job.examples, TOKEN_BUDGET)?;
    let mut answers = Vec::new();
    for batch in &stream.batches {
        let mut rows = Vec::new();
        answer_rows(config, &batch.cu_seqlens, &mut rows)?;
        answers.push(rows);
    }
    let states = |stream: &Stream| -> Vec<Vec<f32>> {
        let state = |hidden: &Vec<f32>, row: i32| {
            hidden[row as usize * config.hidden..(row as usize + 1) * config.hidden].to_vec()
        };
        let rows = stream.hidden.iter().zip(&answers);
        rows.flat_map(|(hidden, rows)| rows.iter().map(move |&row| state(hidden, row))).collect()
    };
    let mut stage = job.progress.stage("contribution of layers", config.layers.len() as u64, "layers");
    let mut below = states(&stream);
    let mut cosines = Vec::with_capacity(config.layers.len());
    for layer in 0..config.layers.len() {
        stream.advance(&mut session, 2 * layer + 2, None, false, job.progress, |_| Ok(()))?;
        let above = states(&stream);
        let sum: f64 = below.iter().zip(&above).map(|(a, b)| cosine(a, b)).sum();
        let mean = sum / below.len() as f64;
        if !mean.is_finite() {
            let what = "the cosine of the states around a layer".to_string();
            return Err(Error::NotFinite { what, value: mean, place: format!("at layer {layer}") });
        }
        cosines.push(mean);
        below = above;
        stage.advance(1);
    }
    Ok(cosines)
}

/// 0 where a vector is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms == 0.0 { 0.0 } else { dot(a, b) / norms }
}
