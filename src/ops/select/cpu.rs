//! The threshold by counting digits, in parallel over fixed pieces; then one pass that writes bits. Only where some of the
//! scores equal to the threshold are kept and some are not does their order matter, and another pass counts them.

use rayon::prelude::*;

use super::{Matrix, is_real, key};
use crate::ops::simd::simd_fn;

/// Scores of one piece of work: whole words of the bit set.
const PIECE: usize = 64 * 1024;
/// Bits of a digit: its counters fill 512 KB, a second-level cache.
const DIGIT: u32 = 16;

/// A part of a matrix.
struct Piece<'a> {
    scores: &'a [f32],
    /// Number of the first score within its matrix.
    first: usize,
    cols: usize,
    ld: usize,
}

impl Piece<'_> {
    /// Calls `f` with every key.
    fn keys(&self, magnitude: bool, mut f: impl FnMut(u32)) {
        if self.cols == self.ld {
            return self.scores.iter().for_each(|&score| f(key(score, magnitude)));
        }
        for (i, &score) in self.scores.iter().enumerate() {
            if is_real(self.first + i, self.cols, self.ld) {
                f(key(score, magnitude));
            }
        }
    }
}

/// The pieces of all matrices, in order.
fn pieces<'a>(matrices: &[Matrix<'a, f32>]) -> Vec<Piece<'a>> {
    let of_matrix = |matrix: &Matrix<'a, f32>| {
        let (cols, ld) = (matrix.cols, matrix.ld);
        let cut = matrix.scores.chunks(PIECE).enumerate();
        cut.map(move |(i, scores)| Piece { scores, first: i * PIECE, cols, ld }).collect::<Vec<_>>()
    };
    matrices.iter().flat_map(of_matrix).collect()
}

/// How many keys agree with `prefix` above `shift + 16`, for each value of the 16 bits from `shift` on.
fn histogram(pieces: &[Piece], magnitude: bool, prefix: u32, shift: u32) -> Vec<usize> {
    let agrees = |key: u32| shift + DIGIT == 32 || key >> (shift + DIGIT) == prefix >> (shift + DIGIT);
    let zeros = || vec![0usize; 1 << DIGIT];
    // Integers: the order of addition does not matter.
    let count = |mut counts: Vec<usize>, piece: &Piece| {
        piece.keys(magnitude, |key| {
            if agrees(key) {
                counts[(key >> shift & ((1 << DIGIT) - 1)) as usize] += 1;
            }
        });
        counts
    };
    let sum = |mut a: Vec<usize>, b: Vec<usize>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    pieces.par_iter().fold(zeros, count).reduce(zeros, sum)
}

simd_fn! {
    /// Bits of the scores whose key is at least `threshold`.
    fn at_least<I>(scores: &[f32], magnitude: bool, threshold: u32, keep: &mut [u64]) {
        for (word, scores) in keep.iter_mut().zip(scores.chunks(64)) {
            let bit = |(bit, score): (usize, &f32)| u64::from(key(*score, magnitude) >= threshold) << bit;
            *word = scores.iter().enumerate().map(bit).fold(0, |word, bit| word | bit);
        }
    }
}

/// Sets in `keep` the bits of the `count` largest scores of all `matrices` together; returns how many.
pub fn keep_largest(matrices: &mut [Matrix<f32>], magnitude: bool, count: usize) -> usize {
    for matrix in matrices.iter() {
        assert_eq!(matrix.keep.len(), matrix.scores.len().div_ceil(64));
    }
    let total: usize = matrices.iter().map(Matrix::len).sum();
    let count = count.min(total);
    if count == 0 {
        matrices.iter_mut().for_each(|matrix| matrix.keep.fill(0));
        return 0;
    }
    let pieces = pieces(matrices);
    // The key of the last one kept, and how many of the scores with this key are.
    let (mut threshold, mut remaining, mut tied) = (0u32, count, false);
    for shift in [DIGIT, 0] {
        let counts = histogram(&pieces, magnitude, threshold, shift);
        let mut digit = counts.len() - 1;
        while counts[digit] < remaining {
            remaining -= counts[digit];
            digit -= 1;
        }
        threshold |= (digit as u32) << shift;
        tied = counts[digit] > remaining;
    }
    let equal = |piece: &Piece| {
        let mut equal = 0;
        piece.keys(magnitude, |key| equal += usize::from(key == threshold));
        equal
    };
    let equals: Vec<usize> = match tied {
        true => pieces.par_iter().map(equal).collect(),
        // All of them are kept.
        false => vec![0; pieces.len()],
    };
    let before = equals.iter().scan(0, |seen, n| Some(std::mem::replace(seen, *seen + n)));
    let words = matrices.iter_mut().flat_map(|matrix| matrix.keep.chunks_mut(PIECE / 64));
    let work: Vec<_> = pieces.iter().zip(words).zip(before).collect();
    work.into_par_iter().for_each(|((piece, keep), mut rank)| {
        if !tied && piece.cols == piece.ld {
            return at_least(piece.scores, magnitude, threshold, keep);
        }
        for (number, (word, scores)) in keep.iter_mut().zip(piece.scores.chunks(64)).enumerate() {
            *word = 0;
            for (bit, &score) in scores.iter().enumerate() {
                let real = is_real(piece.first + 64 * number + bit, piece.cols, piece.ld);
                let key = key(score, magnitude);
                let equal = real && key == threshold;
                let kept = real && key > threshold || equal && rank < remaining;
                rank += usize::from(equal);
                *word |= u64::from(kept) << bit;
            }
        }
    });
    count
}

/// How many scores are above `threshold`.
pub fn count_above(matrix: &Matrix<f32>, threshold: f32) -> usize {
    let above = |piece: &Piece| {
        let real = |i: &usize| is_real(piece.first + i, piece.cols, piece.ld);
        (0..piece.scores.len()).filter(real).filter(|&i| piece.scores[i] > threshold).count()
    };
    pieces(std::slice::from_ref(matrix)).par_iter().map(above).sum()
}
