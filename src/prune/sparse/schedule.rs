//! What changes with the step: the fraction kept (or the threshold), and the weight of the regulariser.
//!
//! SMP's text and code swap their schedules and ramp the regulariser differently; both are here, the profiles choose
//! (`options`).

use serde::Serialize;

use crate::error::{Error, Result};

/// How a value moves from its start to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Curve {
    /// `last + (initial − last)(1 − x)³` (Zhu and Gupta 2018).
    Cubic,
    /// `last + (initial − last)(1 − x)`.
    Linear,
}

impl Curve {
    /// What is left of the way at `x` in [0, 1].
    fn left(self, x: f64) -> f64 {
        match self {
            Curve::Cubic => (1.0 - x).powi(3),
            Curve::Linear => 1.0 - x,
        }
    }
}

/// A value that moves between two steps and rests before and after.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Schedule {
    /// Shape of the way.
    pub curve: Curve,
    /// The value is `initial` up to this step.
    pub begin: u64,
    /// The value is `last` from this step on.
    pub end: u64,
    /// Value at the beginning.
    pub initial: f64,
    /// Value at the end.
    pub last: f64,
}

impl Schedule {
    /// Always `value`.
    pub fn constant(value: f64) -> Schedule {
        Schedule { curve: Curve::Cubic, begin: 0, end: 0, initial: value, last: value }
    }

    /// SMP: from 1 to `keep` over the first `steps` steps (section 3.1; equation 4 calls the fraction kept v, equation 5
    /// the sparsity).
    pub fn smp(curve: Curve, keep: f64, steps: u64) -> Schedule {
        Schedule { curve, begin: 0, end: steps, initial: 1.0, last: keep }
    }

    /// Movement pruning: rests for `initial_warmup` times the warm-up, and at the end for `final_warmup` times. Fails where
    /// the two leave no step between them.
    pub fn movement(
        curve: Curve,
        [initial, last]: [f64; 2],
        warmup: u64,
        total: u64,
        [initial_warmup, final_warmup]: [u64; 2],
    ) -> Result<Schedule> {
        let (begin, rest) = (initial_warmup.saturating_mul(warmup), final_warmup.saturating_mul(warmup));
        if begin.saturating_add(rest) >= total {
            return Err(Error::usage(format!(
                "a schedule longer than the training: {begin} steps before pruning and {rest} after it ({initial_warmup} and \
                 {final_warmup} times a warm-up of {warmup}) leave none of {total}; train longer, or give a shorter \
                 --schedule-warmup or smaller --schedule-rests"
            )));
        }
        Ok(Schedule { curve, begin, end: total - rest, initial, last })
    }

    /// The value at `step`.
    pub fn at(&self, step: u64) -> f64 {
        if step >= self.end {
            self.last
        } else if step <= self.begin {
            self.initial
        } else {
            let x = (step - self.begin) as f64 / (self.end - self.begin) as f64;
            self.last + (self.initial - self.last) * self.curve.left(x)
        }
    }
}

/// How the weight λ of the regulariser follows the step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Ramp {
    /// λ from the first step on (L0).
    Constant,
    /// `λ(1 − (1 − t/T)³)` over the whole training (SMP's code).
    WholeTraining,
    /// λ times the sparsity reached over the final one (SMP's text): λ from the end of the schedule on.
    Sparsity,
    /// λ·τ_t/τ_f (soft movement).
    Threshold,
}

impl Ramp {
    /// λ at `step` of `total`, where the schedule is at `value` of `schedule`.
    pub fn at(self, lambda: f64, step: u64, total: u64, schedule: &Schedule) -> f64 {
        let value = schedule.at(step);
        let share = match self {
            Ramp::Constant => 1.0,
            Ramp::WholeTraining => 1.0 - (1.0 - step.min(total) as f64 / total.max(1) as f64).powi(3),
            Ramp::Sparsity if schedule.last < 1.0 => (1.0 - value) / (1.0 - schedule.last),
            Ramp::Threshold if schedule.last > 0.0 => value / schedule.last,
            Ramp::Sparsity | Ramp::Threshold => 1.0,
        };
        lambda * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_rest_at_both_ends() {
        let schedule = Schedule::movement(Curve::Cubic, [1.0, 0.15], 100, 1000, [1, 2]).unwrap();
        assert_eq!(
            (schedule.at(0), schedule.at(100), schedule.at(800), schedule.at(5000)),
            (1.0, 1.0, 0.15, 0.15)
        );
        assert!((schedule.at(450) - (0.15 + 0.85 * 0.125)).abs() < 1e-12);
        for (warmup, rests) in [(100, [1, 2]), (u64::MAX, [2, 3])] {
            let refused = Schedule::movement(Curve::Cubic, [1.0, 0.15], warmup, 300, rests).unwrap_err();
            assert!(refused.to_string().contains("--schedule-warmup"), "{refused}");
        }
        let linear = Schedule::smp(Curve::Linear, 0.5, 10);
        assert_eq!((linear.at(0), linear.at(5), linear.at(10)), (1.0, 0.75, 0.5));
        assert_eq!(Schedule::constant(1.0).at(7), 1.0);
    }

    #[test]
    fn ramps_reach_their_weight() {
        let soft = Schedule::smp(Curve::Cubic, 0.1, 10);
        for ramp in [Ramp::Constant, Ramp::WholeTraining, Ramp::Sparsity] {
            assert!((ramp.at(400.0, 10, 10, &soft) - 400.0).abs() < 1e-9);
        }
        assert_eq!(Ramp::WholeTraining.at(400.0, 0, 10, &soft), 0.0);
        assert_eq!(Ramp::Sparsity.at(400.0, 0, 10, &soft), 0.0);
    }
}
