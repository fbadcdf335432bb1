//! Dual-CP (P-pruning, LREC-COLING 2024): prune a pre-trained model before fine-tuning, from unlabelled inputs alone.
//!
//! ```text
//! lengths ─ data::sampling::choose_tokens ─► positions ─(model)─► CalibrationSample
//!                                              │  forest: |cos|, dimension mapping, distance, linkage, one tree a layer
//!                                              ▼
//! keep ─ split ─► budgets ─ search ─► cuts ─ centroid ─► masks      (controls: random, worst)
//! ```
//!
//! Units that respond alike to the task's inputs are clustered, and of each cluster one unit, the centroid, is kept.
//! The trees do not depend on the budget, so any number of keep fractions comes from one set of trees. A budget that
//! cannot be reached is an error with the feasible range before any search; no search can run for ever.
//!
//! The paper and its authors' released code disagree in several places; [`Options::paper`] and [`Options::authors`]
//! follow one and the other, [`Options::default`] the paper with what is broken repaired.

mod backend;
mod centroid;
mod controls;
mod executor_backend;
mod forest;
mod options;
mod sample;
mod search;
mod split;

pub use backend::{CpuBackend, ReferenceBackend, SimilarityBackend};
pub use controls::{Control, control};
pub use executor_backend::ExecutorBackend;
pub use forest::{Forest, StageTimes, layers_at_once, peak_bytes};
pub use options::{Centroid, OnInfeasible, Options, Search, Space, Ties};
pub use sample::CalibrationSample;
pub use search::{Cut, cut};
pub use split::{FeasibleRange, Part, Split, feasible_range, split};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::program::ParameterLayout;
use crate::prune::clustering::members;
use crate::prune::cost::{BudgetRecord, CostModel};
use crate::prune::masks::UnitMasks;
use crate::session::Device;

/// The result for one keep fraction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// Zero–one masks.
    pub masks: UnitMasks,
    /// Budget asked and reached.
    pub budget: BudgetRecord,
    /// How the budget was split between attention and FFN.
    pub split: Split,
    /// Where the head trees were cut.
    pub head_cut: Cut,
    /// Where the neuron trees were cut.
    pub neuron_cut: Cut,
}

/// Results for all keep fractions, the trees they were cut from, and what the user should know.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// One result for each of [`Options::keep_flops`], in that order.
    pub results: Vec<Pruned>,
    /// Trees, magnitudes and dead neurons, for reports and controls.
    pub forest: Forest,
    /// Seconds of every stage, all layers together.
    pub stages: StageTimes,
    /// Things that went differently from what was asked, as sentences.
    pub notes: Vec<String>,
}

/// Prunes for every keep fraction of `options`. All budgets are checked before the trees are built.
pub fn prune(
    sample: &CalibrationSample,
    cost: &CostModel,
    options: &Options,
    backend: &mut dyn SimilarityBackend,
) -> Result<Outcome> {
    options.check()?;
    sample.check(&cost.layers, cost.head_dim)?;
    let splits: Vec<Split> = options
        .keep_flops
        .iter()
        .map(|&keep| split(cost, keep, options.lambda, options.on_infeasible))
        .collect::<Result<_>>()?;
    let mut forest = Forest::build(sample, options.linkage, options.space, backend)?;
    let mut stages = std::mem::take(&mut forest.stages);
    let mut results = Vec::with_capacity(splits.len());
    for split in splits {
        results.push(
            stages.time("cut and centroids", || prune_one(sample, cost, options, &forest, split, backend))?,
        );
    }
    let notes = notes(sample, options, &forest, &results);
    forest.stages = stages.clone();
    Ok(Outcome { results, forest, stages, notes })
}

/// [`prune`] with its numeric steps on `device` (in f32 whatever the device's precision for models is).
pub fn prune_on(
    device: Device,
    sample: &CalibrationSample,
    cost: &CostModel,
    options: &Options,
) -> Result<Outcome> {
    match device.for_similarities() {
        Device::Cpu => prune(sample, cost, options, &mut CpuBackend),
        device => {
            let layout = Arc::new(ParameterLayout::new());
            let mut executor = device.executor(layout.clone())?;
            prune(sample, cost, options, &mut ExecutorBackend::new(executor.as_mut(), layout))
        }
    }
}

/// Cuts the trees for one budget and picks the centroids.
fn prune_one(
    sample: &CalibrationSample,
    cost: &CostModel,
    options: &Options,
    forest: &Forest,
    split: Split,
    backend: &mut dyn SimilarityBackend,
) -> Result<Pruned> {
    let head_cut = cut(&forest.heads, cost.head(), split.attention, options.search, options.ties);
    let neuron_cut = cut(&forest.neurons, cost.neuron(), split.ffn, options.search, options.ties);
    let mut heads = Vec::with_capacity(cost.layers.len());
    let mut neurons = Vec::with_capacity(cost.layers.len());
    for layer in 0..cost.layers.len() {
        let clusters = members(&forest.heads[layer].partition_after(head_cut.merges[layer]));
        heads.push(centroid::heads(sample, layer, &clusters, forest, options, backend)?);
        let clusters = members(&forest.neurons[layer].partition_after(neuron_cut.merges[layer]));
        neurons.push(centroid::neurons(sample, layer, &clusters, forest, options, backend)?);
    }
    let masks = UnitMasks::from_kept(&cost.layers, &heads, &neurons);
    let budget = cost.record(split.keep, &masks)?;
    Ok(Pruned { masks, budget, split, head_cut, neuron_cut })
}

fn notes(sample: &CalibrationSample, options: &Options, forest: &Forest, results: &[Pruned]) -> Vec<String> {
    let mut notes = Vec::new();
    if sample.samples < options.tokens {
        notes.push(format!(
            "{} tokens were asked for, the inputs have {}: all are used",
            options.tokens, sample.samples
        ));
    }
    let dead: usize = forest.dead_neurons.iter().map(Vec::len).sum();
    if dead > 0 {
        let layers = forest.dead_neurons.iter().filter(|units| !units.is_empty()).count();
        notes.push(format!("{dead} neurons in {layers} layers are zero on every sampled token"));
    }
    for result in results {
        if let Some(part) = result.split.clamped {
            notes.push(format!(
                "keep {}: {part} is down to one unit a layer, the rest of the budget was taken from the other part",
                result.split.keep
            ));
        }
    }
    notes
}
