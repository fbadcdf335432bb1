//! Mask-Tuning (Kwon et al., *A Fast Post-Training Pruning Framework for Transformers*, NeurIPS 2022): prune a fine-tuned
//! model by its masks alone.
//!
//! ```text
//! mask gradients ─ Σ g² ─► importance ─ search (MACs or latency) ─► masks ─ rearrange ─► masks ─ rescale ─► real-valued masks
//! ```

mod emitted;
pub mod latency;
mod normal;
mod options;
mod rearrange;
mod rescale;
mod search;
mod system;

pub use normal::{NormalEquations, NormalSlots};
pub use options::{Budget, Fisher, OnReject, Options, RescaleOptions, Teacher};
pub use rearrange::{pruned_loss, rearrange, rearrange_layer};
pub use rescale::{FEATURE_BYTES, Rescaled, rescale, rescale_observed};
pub use search::{SearchRule, search};
pub use system::{SublayerTrace, System};

use std::ops::RangeInclusive;

use self::latency::{LatencyPlan, search_latency};
use crate::error::{Error, Result};
use crate::prune::mask_gradients::{Importance, MaskGradients, Objective, Source, mask_gradients};
use crate::prune::rounding::round_to;
use crate::prune::{CostModel, Job, LayerWidths, Pruned, UnitMasks};
use crate::session::Session;

/// Budgets that [`prune`] can meet: from one unit of the cheaper kind (one sublayer, where latency is what counts) to
/// everything. [`Options::check`] tells of latency tables that cannot be used; here they have no lower limit.
pub fn feasible(cost: &CostModel, options: &Options) -> RangeInclusive<f64> {
    let least = match (&options.budget, options.search) {
        (Budget::Latency(table), _) => table.fits().map_or(0.0, |(heads, neurons)| {
            let layer = |layer: &LayerWidths| heads.at(layer.heads) + neurons.at(layer.neurons);
            heads.flat.min(neurons.flat) / cost.layers.iter().map(layer).sum::<f64>()
        }),
        // The released search takes any budget and exceeds those below what one head costs.
        (Budget::Macs, SearchRule::Released) => 0.0,
        (Budget::Macs, SearchRule::WithinBudget) => cost.head().min(cost.neuron()) / cost.total(),
    };
    least..=1.0
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
                "mask-tuning cannot keep {keep} of the {}; feasible here: {:.6} to 1",
                match options.budget {
                    Budget::Macs => "multiply-accumulates",
                    Budget::Latency(_) => "latency",
                },
                range.start()
            )));
        }
    }
    let gradients = {
        let mut session = Session::of(job.model, job.device)?;
        let (source, grouping) = (Source::Rows(job.examples), options.grouping(job.batch_rows));
        let ones = UnitMasks::ones(&job.model.config().widths());
        mask_gradients(&mut session, source, grouping, Objective::Loss, &ones, job.progress)?
    };
    let importance = gradients.fisher();
    job.keep.iter().map(|&keep| prune_one(job, options, keep, &gradients, &importance)).collect()
}

/// One budget, from the gradients on.
fn prune_one(
    job: &Job,
    options: &Options,
    keep: f64,
    gradients: &MaskGradients,
    importance: &Importance,
) -> Result<Pruned> {
    let mut latency = None;
    let mut search_at = |keep: f64| match &options.budget {
        Budget::Macs => search(importance, job.cost, keep, options.search),
        Budget::Latency(table) => {
            let (heads, neurons) = table.fits()?;
            let LatencyPlan { masks, dense, budget, predicted } =
                search_latency(importance, &heads, &neurons, keep)?;
            latency = Some(serde_json::json!({
                "batch": table.batch, "length": table.length, "device": table.device, "heads": heads,
                "neurons": neurons, "dense_seconds": dense, "budget_seconds": budget, "predicted_seconds": predicted,
            }));
            Ok(masks)
        }
    };
    let teacher = match (&options.rescale, options.teacher) {
        (Some(_), Teacher::SquareRoot) => search_at(keep.sqrt())?,
        _ => UnitMasks::ones(&job.cost.layers),
    };
    let mut searched = search_at(keep)?;
    if let Some(multiple) = options.round_to {
        searched = round_to(&searched, &importance.neurons, job.cost, keep, multiple)?;
    }
    let mut masks = searched.clone();
    if options.rearrange {
        let _stage = job.progress.stage("rearrangement", 0, "layers");
        masks = rearrange(&masks, gradients);
    }
    let (mut notes, mut trace) = (Vec::new(), Vec::new());
    if let Some(rescaling) = &options.rescale {
        let rescaled = rescale(job, &masks, &teacher, rescaling)?;
        notes = rescaled.notes();
        (masks, trace) = (rescaled.masks, rescaled.trace);
    }
    let mut pruned = Pruned::of_masks(masks, keep, job.cost)?;
    if latency.is_none() && pruned.budget.reached > keep * (1.0 + 1e-9) {
        notes.push(format!("keep {keep}: the released search exceeds budgets smaller than its heads"));
    }
    pruned.notes = notes;
    // Of neurons a record has room for the sum of each layer.
    let neurons: Vec<f64> = importance.neurons.iter().map(|layer| layer.iter().sum()).collect();
    pruned.details = serde_json::json!({
        "head_importance": importance.heads,
        "neuron_importance_by_layer": neurons,
        "searched_widths": searched.widths(),
        "latency": latency,
        "rescaling": trace,
    });
    Ok(pruned)
}
