//! The contrastive loss of sentence vectors over a bank (CAP, Xu et al., AAAI 2022), its gradient written in the same pass.
//!
//! A query is `q_i = x_i/‖x_i‖`. Its candidates are the other queries of the batch, which count as constants, and K bank
//! rows c, already normalised. With `s_ij = q_i·c_j/τ` and `log p_ij = s_ij − log Σ_j' exp s_ij'` over all candidates,
//!
//! ```text
//! losses[i, 0] = −mean of log p_ij over the candidates of the same example     (unsupervised)
//! losses[i, 1] = −mean of log p_ij over the candidates of the same label       (supervised)
//! ```
//!
//! and the loss of the batch is `Σ_i weights[0]·losses[i, 0] + weights[1]·losses[i, 1]`. The published loss divides that sum
//! by the number of positive pairs of the batch too, which is the weights' business (`prune::contrastive`). What keeps it
//! simple to call:
//! - a bank row whose example number is negative is not there, so a bank of any size fits a program planned for the
//!   largest;
//! - a negative label (or none at all) is like no other; a query without positives has loss and gradient 0, and so has a loss
//!   whose weight is 0;
//! - a query whose norm is below [`NORM_FLOOR`] has no direction: q and the gradient are 0.
//!
//! `scales[i] = 1/‖x_i‖` is left for the caller. The three terms of CAP are three calls, the second and third of which add
//! to the gradient.
//!
//! One operation that is made of products, because both of its large steps (scores, and the gradient of q) are the products
//! that exist, at their speed, while what lies between them is one pass over `[R, R + K]` numbers that must not become a
//! slot: its width follows the batch. Cost: `4·R·(R + K)·d` operations with gradient; BERT-base at R = 32, K = 4,128
//! takes 0.4 GFLOP, a 10,000th of the training step it belongs to.
//!
//! Error, u = 2⁻²⁴: a score is off by δ = (γ_{d+2} + 2e)·Σ|q||c|/τ + 3u|s|, with e = γ_{d/32+10} that of ‖x‖; a loss by
//! 2δ and what the softmax of the losses family states, with the mean in f64; a weight of the gradient by its
//! probability times 2δ and the same. Device products in tf32 round q and c to 11 bits before.

pub mod cpu;
pub mod cuda;
pub mod reference;

/// Norm below which a query has no direction.
pub const NORM_FLOOR: f64 = 1e-12;

/// What queries and bank rows are, as numbers that are compared.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Example of each query, `[R]`.
    pub ids: &'a [i32],
    /// Example of each bank row, `[K]`; negative where there is none.
    pub bank_ids: &'a [i32],
    /// Labels of the queries `[R]` and of the bank `[K]`; `None` without a supervised loss.
    pub labels: Option<(&'a [i32], &'a [i32])>,
}

impl Keys<'_> {
    /// Panics where the lists are not those of `rows` queries and `bank` bank rows: a bug of the emitting code.
    fn check(&self, rows: usize, bank: usize) {
        assert_eq!((self.ids.len(), self.bank_ids.len()), (rows, bank));
        assert!(self.labels.is_none_or(|(of_rows, of_bank)| (of_rows.len(), of_bank.len()) == (rows, bank)));
    }

    /// Whether candidate `j` (bank rows first, then queries) is one of query `i`'s.
    pub(crate) fn is_candidate(&self, i: usize, j: usize) -> bool {
        match j.checked_sub(self.bank_ids.len()) {
            None => self.bank_ids[j] >= 0,
            Some(query) => query != i,
        }
    }

    /// Whether candidate `j` is a positive of query `i` in the unsupervised and in the supervised loss.
    pub(crate) fn positive(&self, i: usize, j: usize) -> [bool; 2] {
        let bank = self.bank_ids.len();
        let of = |rows: &[i32], of_bank: &[i32]| if j < bank { of_bank[j] } else { rows[j - bank] };
        let same_label =
            self.labels.is_some_and(|(rows, of_bank)| rows[i] >= 0 && of(rows, of_bank) == rows[i]);
        [of(self.ids, self.bank_ids) == self.ids[i], same_label]
    }
}
