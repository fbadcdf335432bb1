//! How a FLOPs budget is split between attention and FFN, and which budgets can be reached at all.
//!
//! With I = I^A + I^F the full cost and r the fraction to keep, removed = (1 − r)·I; attention loses
//! removed/(λ + 1), the FFN λ·removed/(λ + 1) (Eq. 4 of the paper, and the authors' code). Clustering leaves at least
//! one unit in every layer, so neither part can fall below one unit a layer. With λ = 5 the FFN runs out first: BERT
//! cannot go below about 0.2, and the authors' loop never ends when asked to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prune::cost::CostModel;
use crate::prune::dual_cp::OnInfeasible;

/// One of the two parts a budget is split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Heads.
    Attention,
    /// Neurons.
    Ffn,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Attention => "attention",
            Part::Ffn => "the FFN",
        })
    }
}

/// Budgets of the two parts in multiply–accumulates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Fraction asked for.
    pub keep: f64,
    /// Attention's budget.
    pub attention: f64,
    /// The FFN's budget.
    pub ffn: f64,
    /// The part that was left one unit a layer because λ asked for more than it has.
    pub clamped: Option<Part>,
}

/// Smallest fractions to keep that can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeasibleRange {
    /// Below this λ asks attention for more than it has; may be negative (never).
    pub attention: f64,
    /// Below this λ asks the FFN for more than it has; may be negative (never).
    pub ffn: f64,
    /// One unit a layer in both parts: the limit with `--on-infeasible shift`.
    pub shifted: f64,
}

impl FeasibleRange {
    /// The smallest fraction reachable with the split by λ, and the part that sets it.
    pub fn minimum(&self) -> (f64, Part) {
        if self.attention > self.ffn { (self.attention, Part::Attention) } else { (self.ffn, Part::Ffn) }
    }
}

/// Cost of one unit in every layer that has any: (attention, FFN).
fn floors(cost: &CostModel) -> (f64, f64) {
    let with_heads = cost.layers.iter().filter(|layer| layer.heads > 0).count();
    let with_neurons = cost.layers.iter().filter(|layer| layer.neurons > 0).count();
    (with_heads as f64 * cost.head(), with_neurons as f64 * cost.neuron())
}

/// The feasible range for `lambda`.
pub fn feasible_range(cost: &CostModel, lambda: f64) -> FeasibleRange {
    let (attention_floor, ffn_floor) = floors(cost);
    // A part can lose (part − floor); the whole model loses 1/share as much. A share of zero never runs out.
    let smallest = |part: f64, floor: f64, share: f64| {
        if share > 0.0 { 1.0 - (part - floor) / (share * cost.total()) } else { f64::NEG_INFINITY }
    };
    FeasibleRange {
        attention: smallest(cost.attention(), attention_floor, 1.0 / (lambda + 1.0)),
        ffn: smallest(cost.ffn(), ffn_floor, lambda / (lambda + 1.0)),
        shifted: (attention_floor + ffn_floor) / cost.total(),
    }
}

/// Splits the budget for `keep`, which must be in (0, 1], or fails with the range that can be reached.
pub fn split(cost: &CostModel, keep: f64, lambda: f64, on_infeasible: OnInfeasible) -> Result<Split> {
    if !(keep > 0.0 && keep <= 1.0) {
        return Err(Error::usage(format!(
            "the fraction of FLOPs to keep must be above 0 and at most 1, not {keep}"
        )));
    }
    let removed = (1.0 - keep) * cost.total();
    let mut split = Split {
        keep,
        attention: cost.attention() - removed / (lambda + 1.0),
        ffn: cost.ffn() - lambda * removed / (lambda + 1.0),
        clamped: None,
    };
    let (attention_floor, ffn_floor) = floors(cost);
    if split.attention >= attention_floor && split.ffn >= ffn_floor {
        return Ok(split);
    }
    let range = feasible_range(cost, lambda);
    if on_infeasible == OnInfeasible::Error {
        let (minimum, part) = range.minimum();
        let unit = if part == Part::Ffn { "neuron" } else { "head" };
        let reason = format!("with lambda = {lambda}, {part} would need to go below one {unit} a layer");
        return Err(infeasible(keep, minimum, reason));
    }
    let both_short = split.attention < attention_floor && split.ffn < ffn_floor;
    if split.ffn < ffn_floor {
        split.attention -= ffn_floor - split.ffn;
        split.ffn = ffn_floor;
        split.clamped = Some(Part::Ffn);
    } else {
        split.ffn -= attention_floor - split.attention;
        split.attention = attention_floor;
        split.clamped = Some(Part::Attention);
    }
    if both_short || split.attention < attention_floor || split.ffn < ffn_floor {
        return Err(infeasible(
            keep,
            range.shifted,
            "it would need less than one head and one neuron a layer".into(),
        ));
    }
    Ok(split)
}

/// `minimum` is rounded up to the four digits the message shows, so that the number shown works.
fn infeasible(asked: f64, minimum: f64, reason: String) -> Error {
    let minimum = (minimum * 1e4).ceil() / 1e4;
    Error::Infeasible { method: "Dual-CP".into(), asked, minimum, reason }
}
