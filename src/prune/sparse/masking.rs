//! The masks of one step: how many scores of which matrices are kept, or above which threshold.

use super::fractions::fractions;
use super::options::{Masking, Options};
use super::schedule::Schedule;
use crate::error::{Error, Result};
use crate::model::{LayerMatrix, MatrixKind};
use crate::program::ParameterLayout;

/// What a mask selection is told.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Budget {
    /// Scores kept of each matrix (at least, with a threshold), or of all together: one number.
    pub counts: Vec<i32>,
    /// Scores above this are kept as well.
    pub threshold: Option<f64>,
}

/// The masked matrices of a model and how their masks follow the schedule.
#[derive(Clone, Debug)]
pub struct MaskPlan {
    masking: Masking,
    /// Fraction that always survives a threshold.
    least: f64,
    schedule: Schedule,
    kinds: Vec<MatrixKind>,
    sizes: Vec<usize>,
    extra: usize,
}

/// Score above which L0's mask is above 0 in evaluation: σ(S)(r − l) + l > 0.
fn hard_concrete_threshold() -> f64 {
    let [low, high] = crate::ops::weightmask::STRETCH;
    logit(-low / (high - low))
}

fn logit(probability: f64) -> f64 {
    (probability / (1.0 - probability)).ln()
}

impl MaskPlan {
    /// The plan for `matrices`, in the order of the layout. Fails on a matrix too large to count.
    pub fn new(
        options: &Options,
        schedule: Schedule,
        matrices: &[LayerMatrix],
        layout: &ParameterLayout,
    ) -> Result<MaskPlan> {
        let sizes: Vec<usize> = matrices.iter().map(|matrix| layout.get(matrix.id).len()).collect();
        if sizes.iter().sum::<usize>() > i32::MAX as usize {
            return Err(Error::usage("more than 2³¹ weights to mask"));
        }
        Ok(MaskPlan {
            masking: options.masking,
            least: options.least_survivors,
            schedule,
            kinds: matrices.iter().map(|matrix| matrix.kind).collect(),
            sizes,
            extra: usize::from(options.extra_global_survivor),
        })
    }

    /// The scheduled fraction or threshold at `step`.
    pub fn value(&self, step: u64) -> f64 {
        self.schedule.at(step)
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Weights of all masked matrices.
    pub fn total(&self) -> usize {
        self.sizes.iter().sum()
    }

    /// Number of budgets of a selection: one a matrix, or one.
    pub fn groups(&self) -> usize {
        if self.masking == Masking::Global { 1 } else { self.sizes.len() }
    }

    /// Temperature of the means that [`MaskPlan::budget`] wants, if it does.
    pub fn temperature(&self) -> Option<f64> {
        match self.masking {
            Masking::Fractions { temperature } => Some(temperature),
            _ => None,
        }
    }

    /// Budgets at `step`; `means` are those of σ(S/p) of each matrix, where [`MaskPlan::temperature`] asks for them.
    pub fn budget(&self, step: u64, means: &[f64]) -> Budget {
        let value = self.schedule.at(step);
        match self.masking {
            Masking::Local => self.exactly(value),
            Masking::Global => {
                let total = self.total();
                Budget { counts: vec![(floor(value, total) + self.extra).min(total) as i32], threshold: None }
            }
            Masking::Fractions { .. } => {
                let shares: Vec<(MatrixKind, f64)> =
                    self.kinds.iter().copied().zip(means.iter().copied()).collect();
                let counts = fractions(value, &shares);
                let counts = counts.iter().zip(&self.sizes).map(|(&share, &size)| floor(share, size) as i32);
                Budget { counts: counts.collect(), threshold: None }
            }
            Masking::Threshold => self.above(logit(value)),
            Masking::HardConcrete => self.above(hard_concrete_threshold()),
        }
    }

    /// Budgets that keep the fraction `keep` of every matrix.
    pub fn exactly(&self, keep: f64) -> Budget {
        let count = |&size: &usize| floor(keep, size) as i32;
        let counts = match self.masking {
            Masking::Global => vec![count(&self.total())],
            _ => self.sizes.iter().map(count).collect(),
        };
        Budget { counts, threshold: None }
    }

    fn above(&self, threshold: f64) -> Budget {
        // Fewer than ⌊0.005·numel⌋ + 1 survivors are filled up by rank.
        let least = |&size: &usize| {
            if self.least > 0.0 { (floor(self.least, size) + 1).min(size) as i32 } else { 0 }
        };
        Budget { counts: self.sizes.iter().map(least).collect(), threshold: Some(threshold) }
    }
}

/// ⌊share·size⌋, at most `size`.
fn floor(share: f64, size: usize) -> usize {
    ((share * size as f64) as usize).min(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l0_and_thresholds_are_scores() {
        assert!((hard_concrete_threshold() + 11f64.ln()).abs() < 1e-12);
        assert_eq!(logit(0.5), 0.0);
        assert_eq!(logit(0.0), f64::NEG_INFINITY);
    }
}
