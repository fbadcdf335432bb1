//! Dimension mapping: how alike two attention heads are when their dimensions may be matched in any order.
//!
//! Two heads can compute the same thing with their d_h context dimensions permuted, so heads are compared under a
//! one-to-one matching of dimensions, chosen greedily (P-pruning, LREC-COLING 2024, Eq. 8 with the mean over d_h):
//! d_h times take the largest absolute cosine left in the pair's [d_h, d_h] block, record it, and strike its row and
//! column out by setting them to zero. Equal values: the first in row-major order. Once only zeros are left the
//! remaining steps record (0, 0) with value 0, and the mean still divides by d_h.
//!
//! Input: the absolute cosines of all dimensions of a layer, [H·d_h, H·d_h], symmetric, in [0, 1]. Output: [H, H],
//! the mean recorded value of every pair; 1 on the diagonal; (i, j) and (j, i) are both the matching of i < j with the
//! rows of head i. A block with a NaN gives NaN.
//!
//! The values are selected, not computed, so the only rounding is that of the mean: the CPU version sums in f64 and
//! rounds once to f32. Cost: H²/2 sorts of d_h² keys.

pub mod cpu;
pub mod cuda;
pub mod reference;

/// One step of the greedy matching.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match<T> {
    /// Dimension of the first head.
    pub row: usize,
    /// Dimension of the second head.
    pub column: usize,
    /// Their absolute cosine.
    pub value: T,
}
