//! Every choice of the method, and the three named sets of choices.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prune::clustering::Linkage;

/// What the distance between two units is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// D = 1 − similarity itself (the paper).
    Direct,
    /// Chebyshev distance of two rows of D: alike only if alike to everything else too. The authors' code does this,
    /// because SciPy takes a square matrix for observation vectors.
    Profile,
}

/// How the height at which the trees are cut is found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// The fewest merges that meet the budget.
    Exact,
    /// The first t = 0, δ, 2δ, … (by repeated addition) that meets the budget.
    Grid {
        /// Step δ.
        delta: f64,
        /// Cut one step later than the one that met the budget, as the authors' code does.
        overshoot: bool,
    },
}

/// What the exact search does with merges of exactly equal height.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// All of them happen: the result is a cut at a height. With many dead units this can prune far below the budget.
    Together,
    /// Only as many as the budget needs, by layer and order in the tree: the budget is met with no merge to spare.
    Ordered,
}

/// Which member of a cluster is kept. "First" below: the lowest index wins a tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Centroid {
    /// The first with the largest mean |activation| (the paper).
    Member,
    /// As `Member` for neurons. For a cluster of n heads the magnitudes are read from heads 0..n of the layer instead
    /// of from the members, and the winner's position picks the member: a slip of the authors' code, kept for parity.
    AuthorsHeadPrefix,
    /// A random member, by the seed (the paper's ablation without centroid selection).
    Random,
    /// The first with the smallest mean distance 1 − similarity to the other members: the cluster's medoid, which is
    /// how the paper's "cluster centre" is read here, since a mean of units is not a unit.
    ClusterCentre,
}

/// What to do when the split by λ asks more of one part than it can lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnInfeasible {
    /// Fail, with the feasible range.
    Error,
    /// Leave that part one unit a layer and take the rest from the other part.
    Shift,
}

/// All choices of Dual-CP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Fractions of FLOPs to keep, each in (0, 1]; one result each.
    pub keep_flops: Vec<f64>,
    /// λ: FLOPs removed from the FFN for each removed from attention.
    pub lambda: f64,
    /// Tokens drawn from the inputs.
    pub tokens: usize,
    /// Linkage of the trees.
    pub linkage: Linkage,
    /// Distance of the trees.
    pub space: Space,
    /// Search of the cut.
    pub search: Search,
    /// Equal heights in the exact search.
    pub ties: Ties,
    /// Kept member of a cluster.
    pub centroid: Centroid,
    /// Budgets that λ makes impossible.
    pub on_infeasible: OnInfeasible,
    /// Seed of token sampling, random centroids and controls.
    pub seed: u64,
}

impl Options {
    /// The paper's text: average linkage on D, grid of 0.001, λ = 5, 200 tokens.
    pub fn paper() -> Options {
        Options {
            keep_flops: vec![0.5],
            lambda: 5.0,
            tokens: 200,
            linkage: Linkage::Average,
            space: Space::Direct,
            search: Search::Grid { delta: 0.001, overshoot: false },
            ties: Ties::Together,
            centroid: Centroid::Member,
            on_infeasible: OnInfeasible::Error,
            seed: 0,
        }
    }

    /// The authors' released code, its slips included, for mask-for-mask comparison.
    pub fn authors() -> Options {
        Options {
            linkage: Linkage::Complete,
            space: Space::Profile,
            search: Search::Grid { delta: 0.0005, overshoot: true },
            centroid: Centroid::AuthorsHeadPrefix,
            ..Options::paper()
        }
    }

    /// Fails on values that cannot work.
    pub fn check(&self) -> Result<()> {
        if self.keep_flops.is_empty() {
            return Err(Error::usage("at least one keep fraction is needed"));
        }
        if !(self.lambda.is_finite() && self.lambda >= 0.0) {
            return Err(Error::usage(format!("lambda must be a number of at least 0, not {}", self.lambda)));
        }
        if self.tokens == 0 {
            return Err(Error::usage("at least one token must be sampled"));
        }
        if let Search::Grid { delta, .. } = self.search
            && !(1e-6..=1.0).contains(&delta)
        {
            return Err(Error::usage(format!("the step delta must be between 1e-6 and 1, not {delta}")));
        }
        Ok(())
    }
}

impl Default for Options {
    /// The paper with an exact budget search, so that neither the step nor ties decide how much is pruned, and with
    /// complete linkage, with which fine-tuned quality was higher on MRPC (75.6 ± 0.1 % against 74.6 ± 1.7 %, three
    /// seeds) and STS-B (82.4 against 79.8, one seed); `benches/results/2026-11-22-dual-cp-quality.md` has all.
    fn default() -> Options {
        Options { search: Search::Exact, ties: Ties::Ordered, linkage: Linkage::Complete, ..Options::paper() }
    }
}
