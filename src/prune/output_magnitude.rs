//! Output magnitude: neurons that fire weakly on the task's inputs go (a baseline of the KCM paper, section 5.1).
//!
//! The score is the mean magnitude of a neuron's activation over all tokens, which is D2 alone with magnitudes.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::Result;
use crate::prune::moments::ActivationMoments;
use crate::prune::neuron_ranking::{self, Scope};
use crate::prune::{CostModel, Job, Pruned};

/// All choices of the baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Whether layers compete.
    pub scope: Scope,
    /// Multiple that the neurons of every layer are kept at.
    pub round_to: Option<usize>,
}

impl Options {
    /// The paper's: one ranking of all layers.
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

/// Prunes for every budget of the job, in its order. Fails before anything is computed where a budget is not
/// [`feasible`].
pub fn prune(job: &Job, options: &Options) -> Result<Vec<Pruned>> {
    let counts: Vec<usize> = (job.keep.iter())
        .map(|&keep| neuron_ranking::count("output magnitude", job.cost, keep))
        .collect::<Result<_>>()?;
    let moments = ActivationMoments::collect(job)?;
    let scores = moments.mean_magnitudes();
    let result = |(&keep, count): (&f64, usize)| {
        let masks = neuron_ranking::masks(job.cost, &scores, keep, count, options.scope, options.round_to)?;
        let mut pruned = Pruned::of_masks(masks, keep, job.cost)?;
        pruned.notes.extend(moments.dead_neurons());
        pruned.details = json!({ "tokens": moments.tokens });
        Ok(pruned)
    };
    job.keep.iter().zip(counts).map(result).collect()
}
