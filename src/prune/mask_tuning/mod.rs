//! Mask-Tuning (Kwon et al., *A Fast Post-Training Pruning Framework for Transformers*, NeurIPS 2022): prune a fine-tuned
//! model by its masks alone.
//!
//! ```text
//! mask gradients ─ Σ g² ─► importance ─ search (MACs or latency) ─► masks ─ rearrange ─► masks ─ rescale ─► real-valued masks
//! ```

mod emitted;
mod normal;
mod options;
mod rearrange;
mod rescale;
mod search;
mod system;

pub use normal::{NormalEquations, NormalSlots};
pub use options::{Fisher, OnReject, Options, RescaleOptions, Teacher};
pub use rearrange::{pruned_loss, rearrange, rearrange_layer};
pub use rescale::{FEATURE_BYTES, Rescaled, rescale, rescale_observed};
pub use search::{Importance, SearchRule, search};
pub use system::{SublayerTrace, System};

use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::prune::mask_gradients::{Objective, Source, mask_gradients};
use crate::prune::{CostModel, Job, Pruned, UnitMasks};
use crate::session::Session;

/// Budgets that [`prune`] can meet: from one unit of the cheaper kind to everything.
pub fn feasible(cost: &CostModel, options: &Options) -> RangeInclusive<f64> {
    match options.search {
        // The released search accepts any budget and exceeds those below what one head costs.
        SearchRule::Released => 0.0..=1.0,
        SearchRule::WithinBudget => cost.head().min(cost.neuron()) / cost.total()..=1.0,
    }
}

/// Prunes for every budget of the job; gradients are computed once. The job's model has its task head and its rows their
/// labels. Fails on budgets outside [`feasible`] before anything is computed.
pub fn prune(job: &Job, options: &Options) -> Result<Vec<Pruned>> {
    options.check()?;
    let range = feasible(job.cost, options);
    for keep in job.keep {
        // No number of units is worth nothing: 0 is outside for every rule.
        if !(range.contains(keep) && *keep > 0.0) {
            return Err(Error::usage(format!(
                "mask-tuning cannot keep {keep} of the multiply-accumulates; feasible here: {:.6} to 1",
                range.start()
            )));
        }
    }
    let widths = job.model.config().widths();
    let ones = UnitMasks::ones(&widths);
    let gradients = {
        let mut session = Session::of(job.model, job.device)?;
        let (source, grouping) = (Source::Rows(job.examples), options.grouping(job.batch_rows));
        mask_gradients(&mut session, source, grouping, Objective::Loss, &ones, job.progress)?
    };
    let importance = gradients.fisher();
    let mut results = Vec::with_capacity(job.keep.len());
    for &keep in job.keep {
        let mut masks = search(&importance, job.cost, keep, options.search)?;
        if options.rearrange {
            let _stage = job.progress.stage("rearrangement", 0, "layers");
            masks = rearrange(&masks, &gradients);
        }
        let mut trace = Vec::new();
        let mut notes = Vec::new();
        if let Some(rescaling) = &options.rescale {
            let teacher = match options.teacher {
                Teacher::Dense => ones.clone(),
                Teacher::SquareRoot => search(&importance, job.cost, keep.sqrt(), options.search)?,
            };
            let rescaled = rescale(job, &masks, &teacher, rescaling)?;
            notes = rescaled.notes();
            (masks, trace) = (rescaled.masks, rescaled.trace);
        }
        let mut pruned = Pruned::of_masks(masks, keep, job.cost)?;
        if pruned.budget.reached > keep * (1.0 + 1e-9) {
            notes.push(format!("keep {keep}: the released search exceeds budgets smaller than its heads"));
        }
        pruned.notes = notes;
        pruned.details = serde_json::json!({ "importance": importance, "rescaling": trace });
        results.push(pruned);
    }
    Ok(results)
}
