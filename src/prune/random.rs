//! Random units under a budget: the control that a criterion must beat.
//!
//! All heads and neurons are shuffled by the job's seed and kept in that order while the budget has room, so that of
//! both about the same share stays. Budgets are cut from one order. Needs neither data nor a task head.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::importance::{any_unit, check, fill, units};
use crate::data::random::{Purpose, Stream};
use crate::error::Result;
use crate::prune::{CostModel, Job, Pruned};

/// There is nothing to choose; the seed is the job's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {}

impl Options {
    /// As [`Options::default`].
    pub fn paper() -> Options {
        Options::default()
    }

    /// As [`Options::default`].
    pub fn authors() -> Options {
        Options::default()
    }
}

/// Fractions of multiply–accumulates that can be reached: one neuron (or head, if there are none) to everything.
pub fn feasible(cost: &CostModel, _options: &Options) -> RangeInclusive<f64> {
    any_unit(cost)
}

/// Prunes for every budget of the job, in its order. Fails where a budget is not [`feasible`].
pub fn prune(job: &Job, _options: &Options) -> Result<Vec<Pruned>> {
    job.keep.iter().try_for_each(|&keep| check("random pruning", keep, any_unit(job.cost)))?;
    let mut order = units(job.cost);
    Stream::new(job.seed, Purpose::Control, 2).shuffle(&mut order);
    let result = |&keep: &f64| Pruned::of_masks(fill(job.cost, &order, keep), keep, job.cost);
    job.keep.iter().map(result).collect()
}
