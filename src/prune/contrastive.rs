//! What contrastive pruning (CAP: Xu et al., "From Dense to Sparse: Contrastive Pruning for Better Pre-trained Language
//! Model Compression", AAAI 2022) adds to the loss of a method that trains while it prunes.
//!
//! The sentence vector of a row is held against those that other models gave, kept in three banks: of the model before
//! any pruning (what pre-training knew), of the fine-tuned teacher (what the task needs), and of the model at the start of
//! each later epoch (snapshots on the way). For each bank, a row's positives are its own example and, where rows have
//! classes, all of its class; the losses are those of [`ops::contrastive`](crate::ops::contrastive).
//!
//! The published loss of a bank is `−Σ_i (Σ_{j∈P_i} log p_ij / |P_i|) / Σ_i |P_i|`: it is divided by the number of positives
//! twice. The published weights (10 for the supervised loss) belong to that, so it stays ([`term_weights`]).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::contrastive::Keys;

/// Weights and sizes of the contrastive terms, the same for all three banks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Weight of the loss whose positives are the row's own example.
    pub unsupervised_weight: f64,
    /// Weight of the loss whose positives are the rows of the same class; 0 where there are no classes.
    pub supervised_weight: f64,
    /// τ: scores are divided by it.
    pub temperature: f64,
    /// Bank rows that are candidates beside those of the batch, drawn anew for each; a bank of S snapshots gives all S of
    /// ⌊extra / S⌋ examples.
    pub extra: usize,
}

impl Options {
    /// The released settings of CAP-m and CAP-soft: GLUE, or SQuAD, which has no classes.
    pub fn unstructured(squad: bool) -> Options {
        let (unsupervised_weight, supervised_weight) = if squad { (0.5, 0.0) } else { (0.1, 10.0) };
        Options { unsupervised_weight, supervised_weight, temperature: 0.1, extra: 4096 }
    }

    /// Refuses what no training can work with.
    pub fn check(&self) -> Result<()> {
        for (name, weight) in
            [("unsupervised", self.unsupervised_weight), ("supervised", self.supervised_weight)]
        {
            if !(weight >= 0.0 && weight.is_finite()) {
                let message =
                    format!("the weight of the {name} contrastive loss must be at least 0, not {weight}");
                return Err(Error::usage(message));
            }
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let message =
                format!("the contrastive temperature must be a positive number, not {}", self.temperature);
            return Err(Error::usage(message));
        }
        Ok(())
    }

    /// Examples that a bank of `snapshots` vectors an example gives beside those of the batch.
    pub fn extra_examples(&self, snapshots: usize) -> usize {
        self.extra / snapshots.max(1)
    }

    /// Most bank rows that are candidates at once, for batches of up to `rows` and banks of up to `snapshots` vectors for each
    /// of `examples`; at least one.
    pub fn bank_rows(&self, rows: usize, snapshots: usize, examples: usize) -> usize {
        let of = |snapshots: usize| snapshots * (rows + self.extra_examples(snapshots).min(examples));
        (1..=snapshots).map(of).max().unwrap_or(0).max(1)
    }
}

/// Pairs of a query and a positive candidate: of the same example, and of the same class.
pub fn positive_pairs(keys: &Keys) -> [usize; 2] {
    let queries = keys.ids.len();
    let mut pairs = [0, 0];
    for i in 0..queries {
        for j in 0..keys.bank_ids.len() + queries {
            if keys.is_candidate(i, j) {
                let [same, alike] = keys.positive(i, j);
                pairs[0] += usize::from(same);
                pairs[1] += usize::from(alike);
            }
        }
    }
    pairs
}

/// What the sums of the queries' losses are multiplied by: the options' weights, times the batch's `share` of the
/// optimiser step, over the number of positive pairs.
pub fn term_weights(options: &Options, keys: &Keys, share: f64) -> [f64; 2] {
    let weights = [options.unsupervised_weight, options.supervised_weight];
    let pairs = positive_pairs(keys);
    [0, 1].map(|which| if pairs[which] > 0 { share * weights[which] / pairs[which] as f64 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_leave_out_the_query_itself_and_rows_that_are_not_there() {
        let keys = Keys {
            ids: &[4, 5, 6],
            bank_ids: &[4, 5, 6, 6, -1, 9],
            labels: Some((&[0, 0, 1], &[0, 0, 1, 1, 0, 0])),
        };
        // Example: one row each, of 6 two. Class 0: two of the batch's bank rows and one more, and one another; class 1: two.
        assert_eq!(positive_pairs(&keys), [4, 2 * (3 + 1) + 2]);
        let options = Options { supervised_weight: 3.0, ..Options::unstructured(false) };
        assert_eq!(term_weights(&options, &keys, 0.5), [0.5 * 0.1 / 4.0, 0.5 * 3.0 / 10.0]);
        let unlabelled = Keys { labels: None, ..keys };
        assert_eq!(term_weights(&options, &unlabelled, 1.0)[1], 0.0);
    }

    #[test]
    fn a_program_has_room_for_any_number_of_snapshots() {
        let options = Options::unstructured(true);
        assert_eq!(options.bank_rows(32, 1, 10_000), 4128);
        // Five snapshots: 819 examples give 4,095 rows.
        assert_eq!(options.bank_rows(32, 5, 10_000), 5 * 32 + 4095);
        assert_eq!(options.bank_rows(32, 9, 10_000), 9 * 32 + 4095);
        assert_eq!(options.bank_rows(32, 1, 3668), 3700);
        assert_eq!(Options { extra: 0, ..options }.bank_rows(8, 0, 10_000), 1);
    }
}
