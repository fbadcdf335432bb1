//! Every choice of the method, and the three named sets of choices.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the units of the target sublayer that stay are found from the scores of all that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// The lowest score v such that the units scored above v cost less than the budget: the released code. The unit with the
    /// lowest score goes, with all that tie with it, even where everything fits.
    Strict,
    /// Nothing goes where everything fits; else the lowest score v such that the units above v fit.
    Threshold,
    /// As `Threshold`, but of units with exactly equal scores only as many go as must, the upper sublayers' first: those are
    /// measured again before their own turn comes.
    Ordered,
}

/// What a regression model's outputs are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Regression {
    /// The teacher's output for the same row.
    Paired,
    /// All outputs of the teacher in the mini-batch: the released code subtracts a `[B]` from a `[B, 1]`. Its gradient is
    /// that of the squared distance to the mini-batch's mean.
    Broadcast,
}

/// What becomes of a sublayer that loses all its units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Emptied {
    /// It still adds the bias of its output projection.
    KeepBias,
    /// It goes, bias and all: the released code.
    Remove,
}

/// All choices of K-prune.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Tokens of calibration that the rows are to hold together.
    pub tokens: usize,
    /// Temperature T of the teacher's and the student's predictions.
    pub temperature: f64,
    /// Weight λ_pred of predictive knowledge.
    pub lambda_pred: f64,
    /// Weight λ_rep of representational knowledge.
    pub lambda_rep: f64,
    /// Factor μ of the scores of heads.
    pub mu: f64,
    /// Search of the mask.
    pub search: Search,
    /// Objective of regression models.
    pub regression: Regression,
    /// Sublayers without units.
    pub emptied: Emptied,
    /// Whether output projections are tuned.
    pub tune: bool,
    /// Whether the output projection of a feed-forward network that loses nothing stays as it is.
    pub spare_whole_ffn: bool,
    /// ε of the ridge ε·tr(XᵀX)/n, relative to the mean diagonal element; doubled where the system is singular.
    pub ridge: f64,
    /// Whether tuned weights that fit the teacher no better than the old ones are given up.
    pub only_if_better: bool,
    /// Tokens that run at once; more costs memory. Mini-batches for gradients are cut into such pieces and added up.
    pub batch_tokens: usize,
}

impl Options {
    /// The paper: 100 000 tokens, T = 2, λ_pred = 1, λ_rep = 2.5e-4, μ = 64, plain least squares.
    pub fn paper() -> Options {
        Options {
            tokens: 100_000,
            temperature: 2.0,
            lambda_pred: 1.0,
            lambda_rep: 2.5e-4,
            mu: 64.0,
            search: Search::Threshold,
            regression: Regression::Paired,
            emptied: Emptied::KeepBias,
            tune: true,
            spare_whole_ffn: false,
            ridge: 0.0,
            only_if_better: false,
            batch_tokens: 4096,
        }
    }

    /// The authors' released code, its slips included, for comparison mask by mask.
    pub fn authors() -> Options {
        Options {
            search: Search::Strict,
            regression: Regression::Broadcast,
            emptied: Emptied::Remove,
            spare_whole_ffn: true,
            ..Options::paper()
        }
    }

    /// Fails on values that cannot work.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, value: f64| {
            Err(Error::usage(format!("{what} must be a finite number of at least 0, not {value}")))
        };
        for (what, value) in [
            ("lambda_pred", self.lambda_pred),
            ("lambda_rep", self.lambda_rep),
            ("mu", self.mu),
            ("the ridge", self.ridge),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(what, value);
            }
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::usage(format!("the temperature must be positive, not {}", self.temperature)));
        }
        if self.tokens == 0 || self.batch_tokens == 0 {
            return Err(Error::usage("at least one calibration token is needed"));
        }
        Ok(())
    }
}

impl Default for Options {
    /// The paper with its gaps closed: ties do not empty sublayers, singular systems get a ridge, and weights are replaced
    /// only by better ones.
    fn default() -> Options {
        Options { search: Search::Ordered, ridge: 1e-6, only_if_better: true, ..Options::paper() }
    }
}
