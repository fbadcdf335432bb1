//! D2, the data-driven ranking: how strongly neurons fire on the task's inputs (the paper's Data-Driven Ranking).
//!
//! A statistic of each neuron's activation over all valid tokens, then a normaliser in every layer, because layers'
//! activations differ in size while the ranking is global.

use serde::{Deserialize, Serialize};

use crate::prune::moments::ActivationMoments;

/// Statistic of a neuron's activation over tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Statistic {
    /// Mean (the paper).
    Mean,
    /// Mean magnitude.
    Absmean,
    /// Root mean square.
    Rms,
}

impl Statistic {
    /// The statistic of every neuron, by layer.
    pub fn of(self, moments: &ActivationMoments) -> Vec<Vec<f64>> {
        match self {
            Statistic::Mean => moments.means(),
            Statistic::Absmean => moments.mean_magnitudes(),
            Statistic::Rms => moments.root_mean_squares(),
        }
    }
}

/// How the scores of a layer are made comparable with those of others. The paper says "normalized" and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normaliser {
    /// (x − min) / (max − min): in [0, 1].
    Minmax,
    /// (x − mean) / standard deviation (of the population). Negative scores make products with R2 change sign.
    Zscore,
    /// x / ‖x‖₂.
    L2,
    /// x / Σ x.
    Sum,
    /// ln(1 + x − min).
    Log,
    /// x.
    None,
}

impl Normaliser {
    /// The scores of one layer, normalised. Where that would divide by zero (all scores equal, or all zero) every
    /// neuron gets 1: such scores rank nothing, and a product with another ranking is left to that one.
    pub fn apply(self, scores: &[f64]) -> Vec<f64> {
        let count = scores.len() as f64;
        let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let (shift, divisor) = match self {
            Normaliser::Minmax => (lowest, scores.iter().copied().fold(f64::NEG_INFINITY, f64::max) - lowest),
            Normaliser::Zscore => {
                let mean = scores.iter().sum::<f64>() / count;
                // Equal scores differ from their mean by its rounding, which is no deviation.
                let equal = scores.iter().all(|&x| x == lowest);
                let variance = scores.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                (mean, if equal { 0.0 } else { variance.sqrt() })
            }
            Normaliser::L2 => (0.0, scores.iter().map(|x| x * x).sum::<f64>().sqrt()),
            Normaliser::Sum => (0.0, scores.iter().sum()),
            Normaliser::Log => return scores.iter().map(|x| (x - lowest).ln_1p()).collect(),
            Normaliser::None => return scores.to_vec(),
        };
        scores.iter().map(|x| if divisor == 0.0 { 1.0 } else { (x - shift) / divisor }).collect()
    }
}
