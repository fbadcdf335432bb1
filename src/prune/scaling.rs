//! The scaling step of methods that choose neurons: least-squares factors for what is kept, solved as Mask-Tuning's
//! rescaling is, with heads left alone (the last step of the KCM paper).

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::prune::mask_tuning::{RescaleOptions, Teacher, rescale};
use crate::prune::{Job, Pruned, UnitMasks};

/// Choices of the scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// What the scaled model imitates. The paper does not say.
    pub teacher: Teacher,
    /// The solver and what is accepted.
    pub rescale: RescaleOptions,
}

impl Default for Scaling {
    /// The model before pruning as the teacher.
    fn default() -> Scaling {
        let rescale = RescaleOptions { heads: false, ..RescaleOptions::default() };
        Scaling { teacher: Teacher::Dense, rescale }
    }
}

impl Scaling {
    /// As Mask-Tuning's released code: its teacher at √r, and its early end.
    pub fn authors() -> Scaling {
        let rescale = RescaleOptions { heads: false, ..RescaleOptions::authors() };
        Scaling { teacher: Teacher::SquareRoot, rescale }
    }
}

/// Fails on choices that cannot work, and where there are no rows to scale by.
pub fn check(job: &Job, scaling: Option<&Scaling>) -> Result<()> {
    let Some(scaling) = scaling else { return Ok(()) };
    if job.examples.is_empty() {
        return Err(Error::usage("scaling needs calibration rows; there are none"));
    }
    scaling.rescale.check()
}

/// The result of a method that chose `masks` for the budget `keep` of `job`, scaled where told to. `choose` gives the
/// method's masks for another budget.
pub fn finish(
    job: &Job,
    keep: f64,
    masks: UnitMasks,
    scaling: Option<&Scaling>,
    choose: impl FnOnce(f64) -> Result<UnitMasks>,
) -> Result<Pruned> {
    let dense = UnitMasks::ones(&job.cost.layers);
    let Some(scaling) = scaling.filter(|_| masks != dense) else {
        return Pruned::of_masks(masks, keep, job.cost);
    };
    let teacher = match scaling.teacher {
        Teacher::Dense => dense,
        Teacher::SquareRoot => choose(keep.sqrt())?,
    };
    let rescaled = rescale(job, &masks, &teacher, &scaling.rescale)?;
    let notes = rescaled.notes();
    let mut pruned = Pruned::of_masks(rescaled.masks, keep, job.cost)?;
    pruned.notes = notes;
    pruned.details = json!({ "rescaling": rescaled.trace });
    Ok(pruned)
}
