//! The definition: sort, stably, and take the first.

/// Sets in `keep` the bits of the `count` largest of `scores`.
pub fn keep_largest(scores: &[f64], magnitude: bool, count: usize, keep: &mut [u64]) {
    assert_eq!(keep.len(), scores.len().div_ceil(64));
    let size = |i: usize| if magnitude { scores[i].abs() } else { scores[i] };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| size(b).total_cmp(&size(a)));
    keep.fill(0);
    for &i in order.iter().take(count) {
        keep[i / 64] |= 1 << (i % 64);
    }
}
