//! Every choice of KCM, and the three named sets of choices.

use serde::{Deserialize, Serialize};

use super::d2::{Normaliser, Statistic};
use crate::error::{Error, Result};
use crate::prune::method::Needs;
use crate::prune::neuron_ranking::Scope;
use crate::prune::scaling::Scaling;

/// Which ranking decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// The product of both.
    R2d2,
    /// Representative ranking alone: weights, no data.
    R2,
    /// Data-driven ranking alone.
    D2,
}

/// Width of the Gaussian kernel, K_ij = exp(−‖x_i − x_j‖² / s) with σ = 1. The paper writes σ without the formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelWidth {
    /// s = 2σ², the usual form.
    #[serde(rename = "2s2")]
    TwoSigmaSquared,
    /// s = σ², as the only public reimplementation has it.
    #[serde(rename = "s2")]
    SigmaSquared,
}

impl KernelWidth {
    /// s.
    pub fn scale(self) -> f32 {
        match self {
            KernelWidth::TwoSigmaSquared => 2.0,
            KernelWidth::SigmaSquared => 1.0,
        }
    }
}

/// When the iteration for R2 ends, with δ the relative growth of ΣC in an iteration.
///
/// The exact minimiser is C = I, which ranks nothing: the scores are those of the trajectory, so this choice is a part
/// of the method and not of its precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// At the first |δ| ≤ α.
    Abs,
    /// At the first δ ≤ α, sign included: a shrinking sum ends it too.
    Signed,
    /// After so many iterations.
    Fixed(usize),
}

/// All choices of KCM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Ranking.
    pub score: Score,
    /// Kernel of R2.
    pub kernel: KernelWidth,
    /// Stopping rule of R2.
    pub stop: Stop,
    /// α of the stopping rule.
    pub alpha: f64,
    /// Iterations before the stopping rule is looked at. On trained weights |δ| is below α at first, then δ rises to a
    /// maximum and falls again: on all-MiniLM-L6-v2 with s = σ² it is 0.021 to 0.039 at its maximum, in iterations 8 and
    /// 9, and back at α in iterations 13 to 15. Ten iterations are past the maximum.
    pub min_iterations: usize,
    /// Iterations at most.
    pub max_iterations: usize,
    /// Statistic of D2.
    pub statistic: Statistic,
    /// Normaliser of D2, in every layer.
    pub normaliser: Normaliser,
    /// Whether layers compete.
    pub scope: Scope,
    /// Labelled rows of the extension with labels: kept and masked neurons are swapped by their gradients. `None` is
    /// the method without labels.
    pub labelled: Option<usize>,
    /// Scaling of what is kept; `None` leaves masks of zeros and ones.
    pub scaling: Option<Scaling>,
    /// Multiple that the neurons of every layer are kept at.
    pub round_to: Option<usize>,
}

impl Options {
    /// The paper's text, read literally: δ ≤ α ends the iteration, the kernel in its usual form.
    pub fn paper() -> Options {
        Options {
            score: Score::R2d2,
            kernel: KernelWidth::TwoSigmaSquared,
            stop: Stop::Signed,
            alpha: 0.01,
            min_iterations: 1,
            max_iterations: 20,
            statistic: Statistic::Mean,
            normaliser: Normaliser::Minmax,
            scope: Scope::Global,
            labelled: None,
            scaling: Some(Scaling::default()),
            round_to: None,
        }
    }

    /// There is no code of the authors. This is the choices of the only public reimplementation: s = σ², |δ| ≤ α,
    /// z-scores, and the scaling of Mask-Tuning's released code. (It also averages over padding tokens, which do not exist
    /// here.)
    pub fn authors() -> Options {
        Options {
            kernel: KernelWidth::SigmaSquared,
            stop: Stop::Abs,
            normaliser: Normaliser::Zscore,
            scaling: Some(Scaling::authors()),
            ..Options::paper()
        }
    }

    /// What the choices look at: labels for the extension, rows for D2 and for scaling, else weights alone.
    pub fn needs(&self) -> Needs {
        match (self.labelled, self.score, &self.scaling) {
            (Some(_), _, _) => Needs::Labels,
            (None, Score::R2, None) => Needs::Weights,
            (None, _, _) => Needs::Inputs,
        }
    }

    /// Fails on values that cannot work.
    pub fn check(&self) -> Result<()> {
        if !(self.alpha.is_finite() && self.alpha >= 0.0) {
            return Err(Error::usage(format!("alpha must be a number of at least 0, not {}", self.alpha)));
        }
        if self.max_iterations == 0 || self.stop == Stop::Fixed(0) {
            return Err(Error::usage("the representative ranking needs at least one iteration"));
        }
        if self.labelled == Some(0) {
            return Err(Error::usage("the labelled extension needs at least one labelled row"));
        }
        Ok(())
    }
}

impl Default for Options {
    /// s = σ² and |δ| ≤ α from the tenth iteration on, where the scores of neurons have drawn apart.
    fn default() -> Options {
        Options { kernel: KernelWidth::SigmaSquared, stop: Stop::Abs, min_iterations: 10, ..Options::paper() }
    }
}
