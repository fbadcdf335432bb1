//! Weight magnitude: neurons with small weights go (Li et al. 2017, a baseline of the KCM paper, section 5.1).
//!
//! The score is the L1 norm of a neuron's weights, biases left out; all layers are ranked together. No data are needed
//! but for scaling.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::Model;
use crate::prune::neuron_ranking::{self, Matrix, Scope, neuron_weights};
use crate::prune::scaling::{self, Scaling};
use crate::prune::{CostModel, Job, Pruned};

/// Name in messages.
const METHOD: &str = "weight magnitude";

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
    /// Scaling of what is kept (the paper's "Weight-Magnitude-Scale"); `None` leaves masks of zeros and ones.
    pub scaling: Option<Scaling>,
    /// Multiple that the neurons of every layer are kept at.
    pub round_to: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { weights: Weights::W1, scope: Scope::Global, scaling: None, round_to: None }
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
    scaling::check(job, options.scaling.as_ref())?;
    job.keep.iter().try_for_each(|&keep| neuron_ranking::count(METHOD, job.cost, keep).map(drop))?;
    let scores = scores(job.model, options.weights);
    let choose = |keep: f64| {
        let count = neuron_ranking::count(METHOD, job.cost, keep)?;
        neuron_ranking::masks(job.cost, &scores, keep, count, options.scope, options.round_to)
    };
    let result = |&keep: &f64| scaling::finish(job, keep, choose(keep)?, options.scaling.as_ref(), choose);
    job.keep.iter().map(result).collect()
}
