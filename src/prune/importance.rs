//! Importance baselines: units whose masks the loss depends on least go, heads and neurons in one ranking.
//!
//! * Taylor: Σ_b |g_b·m| at m = 1, the first-order change of the loss when the unit goes (Molchanov et al. 2017; Michel,
//!   Levy and Neubig 2019 for heads).
//! * Fisher: Σ_b g_b², the diagonal of the empirical Fisher information, without the search and the rearrangement that
//!   Mask-Tuning adds.
//!
//! Heads cost over a hundred times what neurons do, so units are ranked by score per multiply–accumulate.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::model::UnitMasks;
use crate::prune::mask_gradients::{Grouping, Importance, MaskGradients, Objective, Source, mask_gradients};
use crate::prune::{CostModel, Job, Pruned};
use crate::session::Session;

/// What a unit's gradients are summed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Σ |g|.
    Taylor,
    /// Σ g².
    Fisher,
}

/// All choices of the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Score of a unit.
    pub score: Score,
    /// One gradient for each row and not for each mini-batch of the job.
    pub by_row: bool,
    /// Keeps the least important units instead: the control that every method must beat.
    pub worst: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { score: Score::Taylor, by_row: false, worst: false }
    }
}

impl Options {
    /// Gradients of every row, as the definitions have it.
    pub fn paper() -> Options {
        Options { by_row: true, ..Options::default() }
    }

    /// Gradients of mini-batches, as released code has it.
    pub fn authors() -> Options {
        Options::default()
    }
}

/// Fractions of multiply–accumulates that can be reached: one neuron (or head, if there are none) to everything.
pub fn feasible(cost: &CostModel, _options: &Options) -> RangeInclusive<f64> {
    any_unit(cost)
}

/// What a method can reach that removes heads and neurons freely.
pub(super) fn any_unit(cost: &CostModel) -> RangeInclusive<f64> {
    let cheapest = if cost.total_neurons() > 0 { cost.neuron() } else { cost.head() };
    cheapest / cost.total()..=1.0
}

/// Fails on a budget outside `feasible`, in the name of `method`.
pub(super) fn check(method: &str, keep: f64, feasible: RangeInclusive<f64>) -> Result<()> {
    if !(keep > 0.0 && keep <= 1.0) {
        return Err(Error::usage(format!(
            "the fraction of FLOPs to keep must be above 0 and at most 1, not {keep}"
        )));
    }
    if keep < *feasible.start() {
        let minimum = (feasible.start() * 1e4).ceil() / 1e4;
        let reason = "nothing would be left".to_string();
        return Err(Error::Infeasible { method: method.into(), asked: keep, minimum, reason });
    }
    Ok(())
}

/// Prunes for every budget of the job, in its order. Fails before anything is computed where a budget is not
/// [`feasible`], and where rows have no labels.
pub fn prune(job: &Job, options: &Options) -> Result<Vec<Pruned>> {
    let name = match options.score {
        Score::Taylor => "Taylor importance",
        Score::Fisher => "Fisher importance",
    };
    job.keep.iter().try_for_each(|&keep| check(name, keep, any_unit(job.cost)))?;
    let mut session = Session::of(job.model, job.device)?;
    let ones = UnitMasks::ones(&job.cost.layers);
    let grouping = if options.by_row { Grouping::Rows } else { Grouping::MiniBatches(job.batch_rows) };
    let source = Source::Rows(job.examples);
    let gradients = mask_gradients(&mut session, source, grouping, Objective::Loss, &ones, job.progress)?;
    let importance = match options.score {
        Score::Taylor => taylor(&gradients),
        Score::Fisher => gradients.fisher(),
    };
    importance.check()?;
    let order = ranked(job.cost, &importance, options.worst);
    let result = |&keep: &f64| {
        let mut pruned = Pruned::of_masks(fill(job.cost, &order, keep), keep, job.cost)?;
        pruned.details = json!({ "gradients": gradients.batches });
        Ok(pruned)
    };
    job.keep.iter().map(result).collect()
}

/// Σ_b |g_b| of every unit.
fn taylor(gradients: &MaskGradients) -> Importance {
    let magnitudes = |layer: &Vec<f64>| {
        let mut sums = vec![0.0; layer.len() / gradients.batches.max(1)];
        for row in layer.chunks(sums.len().max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += g.abs());
        }
        sums
    };
    Importance {
        heads: gradients.heads.iter().map(magnitudes).collect(),
        neurons: gradients.neurons.iter().map(magnitudes).collect(),
    }
}

/// A head or a neuron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Head, or neuron.
    pub head: bool,
    /// Its layer.
    pub layer: usize,
    /// Its number there.
    pub index: usize,
}

/// Every unit of the model, heads first.
pub(super) fn units(cost: &CostModel) -> Vec<Unit> {
    let of = |head: bool| {
        cost.layers.iter().enumerate().flat_map(move |(layer, widths)| {
            let count = if head { widths.heads } else { widths.neurons };
            (0..count).map(move |index| Unit { head, layer, index })
        })
    };
    of(true).chain(of(false)).collect()
}

/// Units by score per multiply–accumulate, highest first (lowest where `worst`); of equal ones the first come first.
fn ranked(cost: &CostModel, importance: &Importance, worst: bool) -> Vec<Unit> {
    let value = |unit: &Unit| {
        let (scores, cost) = match unit.head {
            true => (&importance.heads, cost.head()),
            false => (&importance.neurons, cost.neuron()),
        };
        scores[unit.layer][unit.index] / cost
    };
    let mut order = units(cost);
    order.sort_by(|a, b| {
        let ordering = value(a).total_cmp(&value(b));
        if worst { ordering } else { ordering.reverse() }
    });
    order
}

/// Masks that keep, in this order, every unit that the budget `keep` still has room for.
pub(super) fn fill(cost: &CostModel, order: &[Unit], keep: f64) -> UnitMasks {
    // A millionth of a neuron against rounding: budgets that are a whole number of units keep that number.
    let mut room = keep * cost.total() + 1e-6 * cost.neuron();
    let mut masks = UnitMasks::ones(&cost.layers);
    masks.heads.iter_mut().chain(&mut masks.neurons).for_each(|mask| mask.fill(0.0));
    for unit in order {
        let (layers, price) = match unit.head {
            true => (&mut masks.heads, cost.head()),
            false => (&mut masks.neurons, cost.neuron()),
        };
        if price <= room {
            room -= price;
            layers[unit.layer][unit.index] = 1.0;
        }
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, Stream};
    use crate::prune::LayerWidths;

    /// More budget keeps all that less keeps where one kind of unit is ranked, never costs more than it may, leaves no
    /// room for a further unit of those it passed over, and does not depend on how units are numbered.
    #[test]
    fn filling_is_within_the_budget_monotone_and_blind_to_numbers() {
        let mut random = Stream::new(3, Purpose::Control, 0);
        let widths = vec![LayerWidths { heads: 3, neurons: 20 }; 4];
        let cost = CostModel::new(12, 4, 9.0, widths.clone()).unwrap();
        let mut draw = |units: usize| -> Vec<f64> { (0..units).map(|_| random.uniform()).collect() };
        let importance = Importance {
            heads: (0..4).map(|_| draw(3)).collect(),
            neurons: (0..4).map(|_| draw(20)).collect(),
        };
        let turned = Importance {
            heads: importance.heads.iter().map(|layer| layer.iter().rev().copied().collect()).collect(),
            neurons: importance.neurons.iter().map(|layer| layer.iter().rev().copied().collect()).collect(),
        };
        let masks = |importance: &Importance, keep: f64| fill(&cost, &ranked(&cost, importance, false), keep);
        let mut before = 0.0;
        for keep in (1..=50).map(|i| f64::from(i) / 50.0) {
            let found = masks(&importance, keep);
            let record = cost.record(keep, &found).unwrap();
            assert!(record.reached <= keep + 1e-9, "{} of {keep}", record.reached);
            let whole = record.ffn.units_kept == record.ffn.units_total;
            assert!(
                whole || keep - record.reached < cost.neuron() / cost.total(),
                "room for a neuron at {keep}"
            );
            assert!(record.reached >= before, "{keep}");
            before = record.reached;
            let mut again = masks(&turned, keep);
            again.heads.iter_mut().chain(&mut again.neurons).for_each(|layer| layer.reverse());
            assert_eq!(again, found, "{keep}");
        }
        assert_eq!(before, 1.0);
    }
}
