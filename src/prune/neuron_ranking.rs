//! A global ranking of FFN neurons under a budget: what KCM and the magnitude baselines share.
//!
//! These methods leave attention alone, so with I^A its cost and I that of all blocks a budget r leaves
//! k = ⌊(r·I − I^A) / c_neuron⌋ neurons, taken from all layers by score (KCM). Nothing below
//! r = I^A / I can be reached. Of equal scores the first come first, layer by layer.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::parameters::SublayerParameters;
use crate::program::{Linear, WeightOrder};
use crate::prune::{CostModel, UnitMasks, rounding};

/// Slack of ⌊·⌋ against rounding, in neurons: budgets that are an exact number of neurons keep that number.
const SLACK: f64 = 1e-9;

/// Fractions of multiply–accumulates that a method reaches which removes neurons alone.
pub fn feasible(cost: &CostModel) -> RangeInclusive<f64> {
    cost.attention() / cost.total()..=1.0
}

/// Neurons that the budget `keep` leaves. Fails outside [`feasible`], in the name of `method`.
pub fn count(method: &str, cost: &CostModel, keep: f64) -> Result<usize> {
    if !(keep > 0.0 && keep <= 1.0) {
        return Err(Error::usage(format!(
            "the fraction of FLOPs to keep must be above 0 and at most 1, not {keep}"
        )));
    }
    let neurons = (keep * cost.total() - cost.attention()) / cost.neuron() + SLACK;
    if neurons < 0.0 {
        // Rounded up to the digits the message shows, so that the number shown works.
        let minimum = (feasible(cost).start() * 1e4).ceil() / 1e4;
        let reason = "it leaves attention alone, which costs more than that".to_string();
        return Err(Error::Infeasible { method: method.into(), asked: keep, minimum, reason });
    }
    Ok((neurons.floor() as usize).min(cost.total_neurons()))
}

/// Over what the scores are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All layers: they compete.
    #[default]
    Global,
    /// Each layer for itself: all keep the same share.
    Layer,
}

/// Masks that keep every head and the neurons that score highest.
///
/// `scores` has one number a neuron; a score that is not finite is an error. With `round_to`, layers keep multiples of
/// it ([`rounding::round_to`]).
pub fn masks(
    cost: &CostModel,
    scores: &[Vec<f64>],
    keep: f64,
    count: usize,
    scope: Scope,
    round_to: Option<usize>,
) -> Result<UnitMasks> {
    check(cost, scores)?;
    let kept = match scope {
        Scope::Global => top_k(scores, count),
        Scope::Layer => {
            let counts = shares(&scores.iter().map(Vec::len).collect::<Vec<_>>(), count);
            let layer = |(scores, count)| top_k(std::slice::from_ref(scores), count).remove(0);
            scores.iter().zip(counts).map(layer).collect()
        }
    };
    let heads: Vec<Vec<usize>> = cost.layers.iter().map(|layer| (0..layer.heads).collect()).collect();
    let masks = UnitMasks::from_kept(&cost.layers, &heads, &kept);
    match round_to {
        Some(multiple) => rounding::round_to(&masks, scores, cost, keep, multiple),
        None => Ok(masks),
    }
}

fn check(cost: &CostModel, scores: &[Vec<f64>]) -> Result<()> {
    let fits = |(scores, widths): (&Vec<f64>, &crate::prune::LayerWidths)| scores.len() == widths.neurons;
    if scores.len() != cost.layers.len() || !scores.iter().zip(&cost.layers).all(fits) {
        return Err(Error::shape("scores", "there must be one for each neuron of the model"));
    }
    for (layer, scores) in scores.iter().enumerate() {
        if let Some(neuron) = scores.iter().position(|score| !score.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("the score of neuron {neuron}"),
                value: scores[neuron],
                place: format!("in layer {layer}"),
            });
        }
    }
    Ok(())
}

/// Indices of the `count` highest scores of all layers, ascending in each layer. Scores must be finite.
pub fn top_k(scores: &[Vec<f64>], count: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<(usize, usize)> = (scores.iter().enumerate())
        .flat_map(|(layer, scores)| (0..scores.len()).map(move |neuron| (layer, neuron)))
        .collect();
    // Stable: of equal scores the first come first.
    order.sort_by(|&(l, i), &(m, j)| scores[m][j].total_cmp(&scores[l][i]));
    let mut kept = vec![Vec::new(); scores.len()];
    for &(layer, neuron) in order.iter().take(count) {
        kept[layer].push(neuron);
    }
    kept.iter_mut().for_each(|neurons| neurons.sort_unstable());
    kept
}

/// `count` in proportion to `widths`; what ⌊·⌋ leaves over goes to the largest fractions, the first of equal ones.
fn shares(widths: &[usize], count: usize) -> Vec<usize> {
    let total: usize = widths.iter().sum();
    let mut shares: Vec<usize> = widths.iter().map(|width| count * width / total.max(1)).collect();
    let left = count - shares.iter().sum::<usize>();
    let mut order: Vec<usize> = (0..widths.len()).collect();
    order.sort_by_key(|&layer| std::cmp::Reverse(count * widths[layer] % total.max(1)));
    order.into_iter().take(left).for_each(|layer| shares[layer] += 1);
    shares
}

/// Which weights of a neuron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// Those it reads its input with: column j of W1, `d → neurons`.
    Up,
    /// Those its output is spread by: row j of W2, `neurons → d`.
    Down,
}

/// The weights of each neuron of a layer, dense `[neurons, d]` whatever their order in the checkpoint, without biases;
/// empty where the layer has no neurons.
pub fn neuron_weights(model: &Model, layer: usize, matrix: Matrix) -> Vec<f32> {
    let SublayerParameters::Full(ffn) = model.architecture.parameters.layers[layer].ffn else {
        return Vec::new();
    };
    let (Linear { weight, order, .. }, neurons_first) = match matrix {
        Matrix::Up => (ffn.up, WeightOrder::OutIn),
        Matrix::Down => (ffn.down, WeightOrder::InOut),
    };
    let parameter = model.layout().get(weight);
    let stored = &model.values[parameter.offset..parameter.offset + parameter.span()];
    let rows = stored.chunks(parameter.ld()).map(|row| &row[..parameter.cols]);
    if order == neurons_first {
        return rows.flatten().copied().collect();
    }
    let (neurons, d) = (parameter.cols, parameter.rows);
    let mut weights = vec![0.0; neurons * d];
    for (k, row) in rows.enumerate() {
        for (neuron, &value) in row.iter().enumerate() {
            weights[neuron * d + k] = value;
        }
    }
    weights
}
