//! The threshold by counting digits, in parallel over fixed pieces; then one pass that writes bits.

use rayon::prelude::*;

use super::key;

/// Scores of one piece of work: whole words of the bit set.
const PIECE: usize = 64 * 1024;
/// Bits of a digit: its counters fill 256 KB, a second-level cache.
const DIGIT: u32 = 16;

/// How many keys agree with `prefix` above `shift + 16`, for each value of the 16 bits from `shift` on.
fn histogram(scores: &[f32], magnitude: bool, prefix: u32, shift: u32) -> Vec<usize> {
    let agrees = |key: u32| shift + DIGIT == 32 || key >> (shift + DIGIT) == prefix >> (shift + DIGIT);
    let zeros = || vec![0usize; 1 << DIGIT];
    // Integers: the order of addition does not matter.
    let count = |mut counts: Vec<usize>, piece: &[f32]| {
        for &score in piece {
            let key = key(score, magnitude);
            if agrees(key) {
                counts[(key >> shift & ((1 << DIGIT) - 1)) as usize] += 1;
            }
        }
        counts
    };
    let sum = |mut a: Vec<usize>, b: Vec<usize>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    scores.par_chunks(PIECE).fold(zeros, count).reduce(zeros, sum)
}

/// Sets in `keep` the bits of the `count` largest of `scores`.
pub fn keep_largest(scores: &[f32], magnitude: bool, count: usize, keep: &mut [u64]) {
    assert_eq!(keep.len(), scores.len().div_ceil(64));
    // The key of the last one kept, and how many of the scores with this key are.
    let (mut threshold, mut remaining) = (0u32, count.min(scores.len()));
    if remaining == 0 {
        return keep.fill(0);
    }
    for shift in [DIGIT, 0] {
        let counts = histogram(scores, magnitude, threshold, shift);
        let mut digit = counts.len() - 1;
        while counts[digit] < remaining {
            remaining -= counts[digit];
            digit -= 1;
        }
        threshold |= (digit as u32) << shift;
    }
    let equal = |piece: &[f32]| piece.iter().filter(|&&score| key(score, magnitude) == threshold).count();
    let equals: Vec<usize> = scores.par_chunks(PIECE).map(equal).collect();
    let before: Vec<usize> =
        equals.iter().scan(0, |seen, n| Some(std::mem::replace(seen, *seen + n))).collect();
    let pieces = scores.par_chunks(PIECE).zip(keep.par_chunks_mut(PIECE / 64)).zip(before);
    pieces.for_each(|((scores, keep), mut rank)| {
        for (word, scores) in keep.iter_mut().zip(scores.chunks(64)) {
            *word = 0;
            for (bit, &score) in scores.iter().enumerate() {
                let key = key(score, magnitude);
                let kept = key > threshold || key == threshold && rank < remaining;
                rank += usize::from(key == threshold);
                *word |= u64::from(kept) << bit;
            }
        }
    });
}
