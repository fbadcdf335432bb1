//! The definition: sort, stably, and take the first.

use super::Matrix;

/// Sets in `keep` the bits of the `count` largest scores of all `matrices` together; returns how many.
pub fn keep_largest(matrices: &mut [Matrix<f64>], magnitude: bool, count: usize) -> usize {
    let size = |score: f64| if magnitude { score.abs() } else { score };
    let mut order: Vec<(usize, usize, f64)> = Vec::new();
    for (number, matrix) in matrices.iter_mut().enumerate() {
        assert_eq!(matrix.keep.len(), matrix.scores.len().div_ceil(64));
        matrix.keep.fill(0);
        let real = (0..matrix.scores.len()).filter(|&i| matrix.real(i));
        order.extend(real.map(|i| (number, i, size(matrix.scores[i]))));
    }
    order.sort_by(|a, b| b.2.total_cmp(&a.2));
    order.truncate(count);
    for &(number, i, _) in &order {
        matrices[number].keep[i / 64] |= 1 << (i % 64);
    }
    order.len()
}

/// How many scores are above `threshold`.
pub fn count_above(matrix: &Matrix<f64>, threshold: f64) -> usize {
    (0..matrix.scores.len()).filter(|&i| matrix.real(i) && matrix.scores[i] > threshold).count()
}
