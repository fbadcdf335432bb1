//! What a structured method is given and what it returns.
//!
//! Every method sees the same drawn rows, the same cost model and the same budgets, so that results can be compared;
//! one call serves any number of budgets, so that what does not depend on the budget is computed once.

use crate::data::Example;
use crate::model::{EmptySublayers, Model};
use crate::progress::Progress;
use crate::prune::{BudgetRecord, CostModel, UnitMasks};
use crate::session::Device;

/// One pruning of one model, for one or more budgets.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The model, with its task head where the method looks at losses or logits.
    pub model: &'a Model,
    /// What computes.
    pub device: Device,
    /// Calibration rows, drawn already, in the order of the draw, with their labels.
    pub examples: &'a [Example],
    /// Rows of a gradient mini-batch: methods that square gradients of batch means depend on it.
    pub batch_rows: usize,
    /// Multiply–accumulates of heads and neurons.
    pub cost: &'a CostModel,
    /// Budgets: fractions of multiply–accumulates to keep, each above 0 and at most 1.
    pub keep: &'a [f64],
    /// Seed of whatever a method draws.
    pub seed: u64,
    /// Where long work reports to and is stopped by.
    pub progress: &'a Progress,
}

/// What a method gives for one budget.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// Zero removes a unit, any other value scales it.
    pub masks: UnitMasks,
    /// What was asked and is kept.
    pub budget: BudgetRecord,
    /// The parameter block with tuned weights, in the layout of the job's model; `None` where no weight was changed.
    pub values: Option<Vec<f32>>,
    /// What becomes of a sublayer without units.
    pub empty: EmptySublayers,
    /// What the user should know: rejected solves, dead neurons, budgets not reached exactly.
    pub notes: Vec<String>,
    /// Scores and traces for the run record; null where there are none.
    pub details: serde_json::Value,
}

impl Pruned {
    /// A result that is its masks alone. Fails where they do not fit the cost model.
    pub fn of_masks(masks: UnitMasks, keep: f64, cost: &CostModel) -> crate::Result<Pruned> {
        let budget = cost.record(keep, &masks)?;
        let details = serde_json::Value::Null;
        Ok(Pruned {
            masks,
            budget,
            values: None,
            empty: EmptySublayers::KeepBias,
            notes: Vec::new(),
            details,
        })
    }
}
