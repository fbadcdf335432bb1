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
use crate::prune::{CostModel, Job, Pruned, UnitMasks, neuron_ranking, rounding, scaling};

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
    job.keep.iter().try_for_each(|&keep| neuron_ranking::count(METHOD, job.cost, keep).map(drop))?;
    scaling::check(job, options.scaling.as_ref())?;
    // First, because labels or a head may be missing.
    let gradients = options.labelled.map(|rows| labelled::gradients(job, rows)).transpose()?;
    let scores = Scores::compute(job, options)?;
    let dead = scores.moments.as_ref().and_then(|moments| moments.dead_neurons());
    let masks_at = |keep: f64| -> Result<(UnitMasks, usize)> {
        let count = neuron_ranking::count(METHOD, job.cost, keep)?;
        let mut scores = scores.merged.clone();
        let mut masks = neuron_ranking::masks(job.cost, &scores, keep, count, options.scope, None)?;
        let swaps = gradients.as_ref().map(|gradients| labelled::swap(&mut masks, &mut scores, gradients));
        if let Some(multiple) = options.round_to {
            masks = rounding::round_to(&masks, &scores, job.cost, keep, multiple)?;
        }
        Ok((masks, swaps.unwrap_or(0)))
    };
    let result = |&keep: &f64| {
        let (masks, swaps) = masks_at(keep)?;
        let choose = |keep| Ok(masks_at(keep)?.0);
        let mut pruned = scaling::finish(job, keep, masks, options.scaling.as_ref(), choose)?;
        pruned.notes.extend(dead.clone());
        pruned.details = json!({
            "scores": scores.details(),
            "swaps": swaps,
            "rescaling": pruned.details["rescaling"].take(),
        });
        Ok(pruned)
    };
    job.keep.iter().map(result).collect()
}
