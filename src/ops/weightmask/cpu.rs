//! The same in f32, a word of the mask at a time, in parallel.

use rayon::prelude::*;

/// Weights of one piece of work: whole words of the mask.
const PIECE: usize = 16 * 1024;

/// `out[i]` = `weights[i]` where `keep` has bit i, else 0.
pub fn apply(weights: &[f32], keep: &[u64], out: &mut [f32]) {
    assert_eq!((out.len(), keep.len()), (weights.len(), weights.len().div_ceil(64)));
    let pieces = weights.par_chunks(PIECE).zip(keep.par_chunks(PIECE / 64)).zip(out.par_chunks_mut(PIECE));
    pieces.for_each(|((weights, keep), out)| {
        for ((weights, &word), out) in weights.chunks(64).zip(keep).zip(out.chunks_mut(64)) {
            for (bit, (out, &weight)) in out.iter_mut().zip(weights).enumerate() {
                // All ones or all zeros: no branch a weight.
                let mask = ((word >> bit & 1) as u32).wrapping_neg();
                *out = f32::from_bits(weight.to_bits() & mask);
            }
        }
    });
}
