//! Weight magnitude: neurons with small weights go (Li et al. 2017, a baseline of the KCM paper, section 5.1).
//!
//! The score is the L1 norm of a neuron's weights, biases left out; all layers are ranked together. No data are needed
//! but for scaling.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::Model;
use crate::prune::neuron_ranking::{self, Matrix, Scope, neuron_weights};
use crate::prune::{CostModel, Job, Pruned};

/// Which weights of a neuron are its magnitude. The papers do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// ‖W1[:, j]‖₁, the weights it reads its input with.
    W1,
    /// ‖W2[j, :]‖₁, the weights its output is spread by.
    W2,
    /// The sum of both.
    Both,
}

/// All choices of the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// What is measured.
    pub weights: Weights,
    /// Whether layers compete.
    pub scope: Scope,
    /// Multiple that the neurons of every layer are kept at.
    pub round_to: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { weights: Weights::W1, scope: Scope::Global, round_to: None }
    }
}

impl Options {
    /// The input weights of all layers in one ranking.
    pub fn paper() -> Options {
        Options::default()
    }

    /// There is no code of the authors; as [`Options::paper`].
    pub fn authors() -> Options {
        Options::default()
    }
}

/// Fractions of multiply–accumulates that can be reached: attention's share to 1.
pub fn feasible(cost: &CostModel, _options: &Options) -> RangeInclusive<f64> {
    neuron_ranking::feasible(cost)
}

/// L1 norm of every neuron's weights, summed in f64, by layer.
pub fn scores(model: &Model, weights: Weights) -> Vec<Vec<f64>> {
    let hidden = model.config().hidden;
    let norms = |layer: usize, matrix: Matrix| -> Vec<f64> {
        let norm = |row: &[f32]| row.iter().map(|w| f64::from(w.abs())).sum();
        neuron_weights(model, layer, matrix).chunks(hidden).map(norm).collect()
    };
    let layer = |layer| match weights {
        Weights::W1 => norms(layer, Matrix::Up),
        Weights::W2 => norms(layer, Matrix::Down),
        Weights::Both => {
            let both = norms(layer, Matrix::Up).into_iter().zip(norms(layer, Matrix::Down));
            both.map(|(up, down)| up + down).collect()
        }
    };
    (0..model.config().layers.len()).map(layer).collect()
}

/// Prunes for every budget of the job, in its order. Fails before anything is computed where a budget is not
/// [`feasible`].
pub fn prune(job: &Job, options: &Options) -> Result<Vec<Pruned>> {
    let counts: Vec<usize> = (job.keep.iter())
        .map(|&keep| neuron_ranking::count("weight magnitude", job.cost, keep))
        .collect::<Result<_>>()?;
    let scores = scores(job.model, options.weights);
    let result = |(&keep, count): (&f64, usize)| {
        let masks = neuron_ranking::masks(job.cost, &scores, keep, count, options.scope, options.round_to)?;
        Pruned::of_masks(masks, keep, job.cost)
    };
    job.keep.iter().zip(counts).map(result).collect()
}
