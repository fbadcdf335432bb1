//! The largest entries of an array of scores, as a bit set: what top-k pruning keeps.
//!
//! `keep_largest`: of n scores the `count` largest get a 1, the others a 0, bit i mod 64 of word i / 64; bits beyond n
//! are 0. Exactly `count` bits are set (all n if `count` ≥ n): of equal scores the first come first, so that a mask
//! depends on the scores alone. This matters in score-based pruning, where the first optimiser step leaves almost all
//! scores at ± the learning rate. With `magnitude` scores are compared by |x|.
//!
//! Order is that of `f32::total_cmp`: −0 below +0, and a NaN above infinity (below −∞ if its sign bit is set), so a NaN
//! is kept first instead of making the result depend on the algorithm.
//!
//! No rounding takes place: all versions give the same bits. Cost: memory; three passes over the scores find the
//! threshold digit by digit (11, 11 and 10 bits, most significant first), two more write the mask.

pub mod cpu;
pub mod cuda;
pub mod reference;

/// Bits as an integer that is ordered as the scores are.
fn key(score: f32, magnitude: bool) -> u32 {
    let bits = if magnitude { score.abs().to_bits() } else { score.to_bits() };
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}
