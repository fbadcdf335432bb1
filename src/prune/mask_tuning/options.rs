//! Every choice of the method, and the three named sets of choices.

use serde::{Deserialize, Serialize};

use super::latency::LatencyTable;
use super::search::SearchRule;
use crate::error::{Error, Result};
use crate::prune::lsmr::LsmrOptions;
use crate::prune::mask_gradients::Grouping;

/// What is squared and summed for the importance of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fisher {
    /// Gradients of mini-batch means: the released code, whose scores depend on the size of a mini-batch.
    MiniBatch,
    /// Gradients of single rows: the empirical Fisher information.
    Row,
}

/// Which model the rescaling imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// The model under the masks that the same search finds at the square root of the keep fraction, as the released code
    /// does.
    SquareRoot,
    /// The model before pruning, as the paper's equation says.
    Dense,
}

/// What the keep fraction is a fraction of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// Multiply–accumulates.
    Macs,
    /// The dense model's latency as these tables predict it.
    Latency(LatencyTable),
}

/// What to do with scales that are not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReject {
    /// Leave this sublayer as it is and go on.
    #[default]
    Skip,
    /// Leave this and all sublayers above as they are: the released code.
    Break,
    /// Solve again with tenfold damping, up to six times, then skip.
    Ridge,
}

/// Choices of the rescaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RescaleOptions {
    /// Whether head masks are tuned.
    pub heads: bool,
    /// Whether neuron masks are tuned.
    pub neurons: bool,
    /// Damping and tolerances; its iteration limit is `iterations_per_unknown`'s.
    pub solver: LsmrOptions,
    /// Iteration limit of the solver as a multiple of the unknowns.
    pub iterations_per_unknown: usize,
    /// Scales of larger magnitude are rejected.
    pub largest_scale: f64,
    /// What happens then, and when the solver did not converge.
    pub on_reject: OnReject,
    /// The target of a feed-forward network comes from the teacher's network without its own neuron mask (the
    /// teacher's layers below keep theirs): the released code reads it before the mask is applied.
    pub own_ffn_unmasked: bool,
}

impl RescaleOptions {
    /// The released code.
    pub fn authors() -> RescaleOptions {
        RescaleOptions {
            heads: true,
            neurons: true,
            solver: LsmrOptions { damp: 1.0, ..LsmrOptions::default() },
            iterations_per_unknown: 1,
            largest_scale: 10.0,
            on_reject: OnReject::Break,
            own_ffn_unmasked: true,
        }
    }

    /// Fails on values that cannot work.
    pub fn check(&self) -> Result<()> {
        if !(self.solver.damp >= 0.0 && self.solver.damp.is_finite()) {
            return Err(Error::usage(format!(
                "the damping must be a number of at least 0, not {}",
                self.solver.damp
            )));
        }
        if self.largest_scale.is_nan() || self.largest_scale <= 0.0 {
            let message = format!("the largest scale must be positive, not {}", self.largest_scale);
            return Err(Error::usage(message));
        }
        if self.iterations_per_unknown == 0 {
            return Err(Error::usage("the solver needs at least one iteration an unknown"));
        }
        Ok(())
    }
}

impl Default for RescaleOptions {
    /// The released code with its early end repaired: a sublayer whose scales are rejected does not keep those above from
    /// being tuned, and the solver of a handful of heads is not cut off by a limit of as many iterations.
    fn default() -> RescaleOptions {
        RescaleOptions { iterations_per_unknown: 10, on_reject: OnReject::Skip, ..RescaleOptions::authors() }
    }
}

/// All choices of Mask-Tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Importance.
    pub fisher: Fisher,
    /// What is kept a fraction of.
    pub budget: Budget,
    /// Search under a budget of multiply–accumulates.
    pub search: SearchRule,
    /// Layers keep multiples of so many neurons ([`round_to`](crate::prune::rounding::round_to)); only under a budget of multiply–accumulates,
    /// since a latency table has the steps of the device in it.
    pub round_to: Option<usize>,
    /// Whether the greedy rearrangement follows the search.
    pub rearrange: bool,
    /// The rescaling; `None` keeps zero–one masks.
    pub rescale: Option<RescaleOptions>,
    /// What the rescaling imitates.
    pub teacher: Teacher,
}

impl Options {
    /// The paper's text: Fisher information of single rows, the dense model as teacher.
    pub fn paper() -> Options {
        Options { fisher: Fisher::Row, teacher: Teacher::Dense, ..Options::default() }
    }

    /// The authors' released code, its slips included.
    pub fn authors() -> Options {
        Options {
            fisher: Fisher::MiniBatch,
            budget: Budget::Macs,
            search: SearchRule::Released,
            round_to: None,
            rearrange: true,
            rescale: Some(RescaleOptions::authors()),
            teacher: Teacher::SquareRoot,
        }
    }

    /// Fails on values that cannot work.
    pub fn check(&self) -> Result<()> {
        if let Budget::Latency(table) = &self.budget {
            table.fits()?;
            if self.round_to.is_some() {
                return Err(Error::usage(
                    "rounding widths needs a budget of multiply-accumulates, not of latency",
                ));
            }
        }
        self.rescale.as_ref().map_or(Ok(()), RescaleOptions::check)
    }

    /// Whether gradients are of mini-batches.
    pub fn uses_mini_batches(&self) -> bool {
        self.fisher == Fisher::MiniBatch
    }

    /// How gradients are grouped for mini-batches of `rows`.
    pub(super) fn grouping(&self, rows: usize) -> Grouping {
        match self.fisher {
            Fisher::MiniBatch => Grouping::MiniBatches(rows),
            Fisher::Row => Grouping::Rows,
        }
    }
}

impl Default for Options {
    /// The released method with its search and its rescaling repaired.
    fn default() -> Options {
        Options {
            search: SearchRule::WithinBudget,
            rescale: Some(RescaleOptions::default()),
            ..Options::authors()
        }
    }
}
