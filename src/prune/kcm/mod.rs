//! KCM (Nova, Dai and Schuurmans: "Gradient-Free Structured Pruning with Unlabeled Data", ICML 2023): prunes FFN neurons
//! of a model by how well they represent the others' weights (R2) and how strongly they fire on unlabelled inputs (D2).
//!
//! No gradients, no retraining; heads are left alone, so a budget below the attention's share cannot be reached. Scores
//! do not depend on the budget: one pass serves any number of them. As the scores need neither labels nor a task head, the
//! same criterion prunes a pre-trained model before fine-tuning, and decoders.

mod d2;
pub mod labelled;
mod merge;
mod options;
mod r2;

use std::ops::RangeInclusive;

pub use d2::{Normaliser, Statistic};
pub use merge::Scores;
pub use options::{KernelWidth, Options, Score, Stop};
pub use r2::{Ranker, Representatives};

use serde_json::json;

use crate::error::Result;
use crate::prune::{CostModel, Job, Pruned, neuron_ranking};

/// Name in messages.
const METHOD: &str = "KCM";

/// Fractions of multiply–accumulates that can be reached: attention's share to 1.
pub fn feasible(cost: &CostModel, _options: &Options) -> RangeInclusive<f64> {
    neuron_ranking::feasible(cost)
}

/// Prunes for every budget of the job, in its order. Fails before anything is computed where a budget is not
/// [`feasible`].
pub fn prune(job: &Job, options: &Options) -> Result<Vec<Pruned>> {
    options.check()?;
    let counts: Vec<usize> = (job.keep.iter())
        .map(|&keep| neuron_ranking::count(METHOD, job.cost, keep))
        .collect::<Result<_>>()?;
    let scores = Scores::compute(job, options)?;
    let gradients = options.labelled.map(|rows| labelled::gradients(job, rows)).transpose()?;
    let dead = scores.moments.as_ref().and_then(|moments| moments.dead_neurons());
    let masks_at = |keep, count| {
        neuron_ranking::masks(job.cost, &scores.merged, keep, count, options.scope, options.round_to)
    };
    let mut results = Vec::with_capacity(counts.len());
    for (&keep, count) in job.keep.iter().zip(counts) {
        let mut masks = masks_at(keep, count)?;
        let mut swaps = None;
        if let Some(gradients) = &gradients {
            swaps = Some(labelled::swap(&mut masks, &scores.merged, gradients));
        }
        let mut pruned = Pruned::of_masks(masks, keep, job.cost)?;
        pruned.notes.extend(dead.clone());
        pruned.details = scores.details();
        pruned.details["swaps"] = json!(swaps);
        results.push(pruned);
    }
    Ok(results)
}
