//! Which units to keep under a budget: the knapsack of heads and neurons, solved exactly.
//!
//! With importance I (diagonal Fisher) and one cost a head and one a neuron, the best n heads are the n most important
//! ones, so only the number of heads is searched: for each the budget left buys a number of neurons, and prefix sums of
//! the sorted importances give the value. O(U log U) for U units.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prune::cost::CostModel;
use crate::prune::mask_gradients::Importance;
use crate::prune::masks::UnitMasks;

/// Which numbers of heads are tried, and which win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchRule {
    /// From no head on, never above the budget; of equal values the cheaper one wins.
    WithinBudget,
    /// The released code: from one head on; heads that exceed the budget stay candidates, without neurons, so a budget
    /// too small for the heads is exceeded; of equal values the one with fewer heads wins.
    Released,
}

/// All units of one kind, most important first; equal ones by layer and number.
pub(super) struct Ranking {
    /// (layer, unit)
    pub units: Vec<(usize, usize)>,
    /// Importance of the first n units, `[units + 1]`.
    pub prefix: Vec<f64>,
}

impl Ranking {
    pub(super) fn of(importance: &[Vec<f64>]) -> Ranking {
        let layers = importance.iter().enumerate();
        let units =
            layers.flat_map(|(layer, values)| (0..values.len()).map(move |unit| (layer, unit))).collect();
        Ranking::among(importance, units)
    }

    /// Ranks some of the units, which are given by layer and number.
    pub(super) fn among(importance: &[Vec<f64>], mut units: Vec<(usize, usize)>) -> Ranking {
        let at = |&(layer, unit): &(usize, usize)| importance[layer][unit];
        units.sort_by(|a, b| at(b).total_cmp(&at(a)));
        let mut prefix = Vec::with_capacity(units.len() + 1);
        prefix.push(0.0);
        let mut sum = 0.0;
        for unit in &units {
            sum += at(unit);
            prefix.push(sum);
        }
        Ranking { units, prefix }
    }

    /// Indices of the first `count` units by layer.
    pub(super) fn first(&self, count: usize, layers: usize) -> Vec<Vec<usize>> {
        let mut kept = vec![Vec::new(); layers];
        self.units[..count].iter().for_each(|&(layer, unit)| kept[layer].push(unit));
        kept
    }
}

/// How many units of `cost` fit into `budget`, at most `all`; free ones all do. The quotient is allowed the rounding error
/// of its inputs, so that a budget of the whole model buys the whole model.
pub(super) fn affordable(budget: f64, cost: f64, all: usize) -> usize {
    const SLACK: f64 = 1e-12;
    if cost <= 0.0 {
        return all;
    }
    ((budget / cost * (1.0 + SLACK)).max(0.0) as usize).min(all)
}

/// The most important units within `keep` of the cost of all units. Fails as [`Importance::check`], and where the widths
/// are not those of `cost`.
pub fn search(importance: &Importance, cost: &CostModel, keep: f64, rule: SearchRule) -> Result<UnitMasks> {
    importance.check()?;
    let widths = importance.widths();
    if widths != cost.layers {
        let message = format!("importance of {widths:?} for a model of {:?}", cost.layers);
        return Err(Error::shape("mask search", message));
    }
    let (head, neuron) = (cost.head(), cost.neuron());
    let budget = keep * cost.total();
    let (heads, neurons) = (Ranking::of(&importance.heads), Ranking::of(&importance.neurons));
    let all_neurons = neurons.units.len();
    let candidates = (0..=heads.units.len()).filter_map(|count| {
        let left = budget - count as f64 * head;
        match rule {
            SearchRule::WithinBudget if left < -1e-12 * budget => None,
            SearchRule::WithinBudget => Some((count, affordable(left, neuron, all_neurons))),
            SearchRule::Released if count == 0 => None,
            // Truncation towards zero, as the released code's `int`.
            SearchRule::Released => Some((count, ((left / neuron).max(0.0) as usize).min(all_neurons))),
        }
    });
    let mut best: Option<(f64, f64, usize, usize)> = None;
    for (head_count, neuron_count) in candidates {
        let value = heads.prefix[head_count] + neurons.prefix[neuron_count];
        let spent = head_count as f64 * head + neuron_count as f64 * neuron;
        let better = best.is_none_or(|(best_value, best_spent, _, _)| match rule {
            SearchRule::WithinBudget => value > best_value || (value == best_value && spent < best_spent),
            SearchRule::Released => value > best_value,
        });
        if better {
            best = Some((value, spent, head_count, neuron_count));
        }
    }
    let Some((_, _, head_count, neuron_count)) = best else {
        return Err(Error::usage("a model without heads has nothing for this search to choose"));
    };
    let layers = widths.len();
    Ok(UnitMasks::from_kept(&widths, &heads.first(head_count, layers), &neurons.first(neuron_count, layers)))
}
