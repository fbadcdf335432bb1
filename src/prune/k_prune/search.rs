//! Knowledge-preserving mask search: a threshold on the scores of all units that are left, for the sake of one sublayer.
//!
//! Heads from the target's layer on (from the next where the target is a feed-forward network) and neurons from the target's
//! layer on compete for what is left of the budget; only the target is then pruned, the rest is measured again. One sort and
//! one walk with running counts: O(n log n), where trying each threshold in turn is O(n²).

use super::options::Search;
use crate::error::{Error, Result};

/// Scores of the units that are left, by layer; empty lists for what lies below the target.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `[layers][heads]`.
    pub heads: Vec<Vec<f64>>,
    /// `[layers][neurons]`.
    pub neurons: Vec<Vec<f64>>,
}

impl Scores {
    /// Of the units of sublayer `2·i` (heads) or `2·i + 1` (neurons) of layer i.
    pub fn of(&self, sublayer: usize) -> &[f64] {
        match sublayer % 2 {
            0 => &self.heads[sublayer / 2],
            _ => &self.neurons[sublayer / 2],
        }
    }
}

/// What one head and one neuron cost, in the budget's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitCosts {
    /// Of a head.
    pub head: f64,
    /// Of a neuron.
    pub neuron: f64,
}

impl UnitCosts {
    /// Of a unit of the sublayer.
    pub fn of(&self, sublayer: usize) -> f64 {
        if sublayer.is_multiple_of(2) { self.head } else { self.neuron }
    }

    fn of_all(&self, [heads, neurons]: [usize; 2]) -> f64 {
        self.head * heads as f64 + self.neuron * neurons as f64
    }
}

/// The target's units that stay.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Whether each unit of the target stays.
    pub kept: Vec<bool>,
    /// The highest score that goes; `None` where nothing does, of the target or above.
    pub threshold: Option<f64>,
}

/// Chooses the units of sublayer `target` that stay within `budget`, what is left for the target and all above. Where not
/// even nothing fits (a budget of 0 or less), nothing stays. Fails on scores that are not finite.
pub fn search(scores: &Scores, target: usize, costs: UnitCosts, budget: f64, rule: Search) -> Result<Choice> {
    let mut units: Vec<(f64, usize, usize)> = Vec::new();
    let mut left = [0; 2];
    for sublayer in target..2 * scores.heads.len() {
        let of = scores.of(sublayer);
        if let Some(unit) = of.iter().position(|score| !score.is_finite()) {
            let what = if sublayer.is_multiple_of(2) { "head" } else { "neuron" };
            return Err(Error::NotFinite {
                what: format!("the score of {what} {unit}"),
                value: of[unit],
                place: format!("in layer {}; the model overflows on the calibration rows", sublayer / 2),
            });
        }
        left[sublayer % 2] += of.len();
        units.extend(of.iter().enumerate().map(|(unit, &score)| (score, sublayer, unit)));
    }
    // Of equal scores the upper sublayer's units come first; which of a sublayer's is arbitrary but fixed.
    units.sort_by(|a, b| a.0.total_cmp(&b.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    let fits = |left: [usize; 2]| match rule {
        Search::Strict => costs.of_all(left) < budget,
        Search::Threshold | Search::Ordered => costs.of_all(left) <= budget,
    };
    let mut kept = vec![true; scores.of(target).len()];
    let mut threshold = None;
    for (i, &(score, sublayer, unit)) in units.iter().enumerate() {
        // All that tie with a unit that goes go with it, unless units go one by one.
        let tied = rule != Search::Ordered && threshold == Some(score);
        // The released code looks for a threshold before it looks at the budget.
        let first = rule == Search::Strict && i == 0;
        if !tied && !first && fits(left) {
            break;
        }
        threshold = Some(score);
        left[sublayer % 2] -= 1;
        if sublayer == target {
            kept[unit] = false;
        }
    }
    Ok(Choice { kept, threshold })
}
