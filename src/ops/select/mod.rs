//! The largest entries of arrays of scores, as bit sets: what top-k pruning keeps.
//!
//! `keep_largest`: of n scores the `count` largest get a 1, the others a 0, bit i mod 64 of word i / 64; bits beyond n
//! are 0. Exactly `count` bits are set (all n if `count` ≥ n): of equal scores the first come first, so that a mask
//! depends on the scores alone. This matters in score-based pruning, where the first optimiser step leaves almost all
//! scores at ± the learning rate. With `magnitude` scores are compared by |x|. Several matrices may share one budget, and
//! rows may be padded: what stands in the padding is no score and its bits are 0.
//!
//! `count_above`: how many scores are above a threshold, so that a threshold is a `count` too.
//!
//! Order is that of `f32::total_cmp`: −0 below +0, and a NaN above infinity (below −∞ if its sign bit is set), so a NaN
//! is kept first instead of making the result depend on the algorithm. (A NaN is above no threshold.)
//!
//! No rounding takes place: all versions give the same bits. Cost: memory; two or three passes over the scores find the
//! threshold digit by digit, most significant first, one or two more write the mask.

pub mod cpu;
pub mod cuda;
pub mod reference;

/// Bits as an integer that is ordered as the scores are.
#[inline(always)]
fn key(score: f32, magnitude: bool) -> u32 {
    let bits = if magnitude { score.abs().to_bits() } else { score.to_bits() };
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Scores of one matrix in padded rows, and their bits.
#[derive(Debug)]
pub struct Matrix<'a, T> {
    /// `rows · ld` values.
    pub scores: &'a [T],
    /// Scores of a row; the values up to the next one are padding.
    pub cols: usize,
    /// Distance between the starts of two rows.
    pub ld: usize,
    /// A word for every 64 values.
    pub keep: &'a mut [u64],
}

impl<'a, T> Matrix<'a, T> {
    /// Scores without padding.
    pub fn dense(scores: &'a [T], keep: &'a mut [u64]) -> Matrix<'a, T> {
        let cols = scores.len().max(1);
        Matrix { scores, cols, ld: cols, keep }
    }

    /// Whether value `i` is a score and not padding.
    fn real(&self, i: usize) -> bool {
        is_real(i, self.cols, self.ld)
    }

    /// Number of scores.
    fn len(&self) -> usize {
        self.scores.len() / self.ld * self.cols
    }
}

fn is_real(i: usize, cols: usize, ld: usize) -> bool {
    cols == ld || i % ld < cols
}
