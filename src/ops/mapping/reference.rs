//! The procedure of the paper, step by step in f64: scan for the maximum, strike out, repeat.

use super::Match;
use crate::ops::{View, ViewMut};

/// The d_h steps of the matching of one pair; `block` is [d_h, d_h], values ≥ 0.
pub fn greedy_matching(block: View<f64>) -> Vec<Match<f64>> {
    let n = block.rows();
    assert_eq!(block.cols(), n);
    let mut left: Vec<f64> = (0..n).flat_map(|r| block.row(r).iter().copied()).collect();
    let mut steps = Vec::with_capacity(n);
    for _ in 0..n {
        let mut best = 0;
        for index in 0..left.len() {
            if left[index] > left[best] {
                best = index;
            }
        }
        let (row, column) = (best / n, best % n);
        steps.push(Match { row, column, value: left[best] });
        for k in 0..n {
            left[row * n + k] = 0.0;
            left[k * n + column] = 0.0;
        }
    }
    steps
}

/// [H, H] head similarity from `absolute_cosine` [H·d_h, H·d_h]; see the family's contract.
pub fn dimension_mapping(absolute_cosine: View<f64>, head_dim: usize, out: &mut ViewMut<f64>) {
    let heads = out.rows();
    assert_eq!((absolute_cosine.rows(), absolute_cosine.cols()), (heads * head_dim, heads * head_dim));
    for i in 0..heads {
        out.row_mut(i)[i] = 1.0;
        for j in i + 1..heads {
            let block = absolute_cosine.rows_at(i * head_dim, head_dim).cols_at(j * head_dim, head_dim);
            let undefined = (0..head_dim).any(|r| block.row(r).iter().any(|v| v.is_nan()));
            let sum: f64 = greedy_matching(block).iter().map(|step| step.value).sum();
            let mean = if undefined { f64::NAN } else { sum / head_dim as f64 };
            out.row_mut(i)[j] = mean;
            out.row_mut(j)[i] = mean;
        }
    }
}
