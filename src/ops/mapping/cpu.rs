//! The same matching by one sort and one sweep: the largest value left is always the next one in descending order
//! whose row and column are both free.

use rayon::prelude::*;

use super::Match;
use crate::ops::{View, ViewMut};

/// The d_h steps of the matching of one pair; `block` is [d_h, d_h], values ≥ 0, no NaN.
pub fn greedy_matching(block: View<f32>) -> Vec<Match<f32>> {
    let n = block.rows();
    assert_eq!(block.cols(), n);
    assert!(n <= 1 << 16, "a flat index of a {n} × {n} block does not fit the 32-bit half of a key");
    // Non-negative floats order like their bits. Key = (value descending, row-major index ascending).
    let mut keys: Vec<u64> = (0..n)
        .flat_map(|r| block.row(r).iter().enumerate().map(move |(c, v)| (r * n + c, *v)))
        .filter(|(_, value)| *value > 0.0)
        .map(|(index, value)| (u64::from(!value.to_bits()) << 32) | index as u64)
        .collect();
    keys.sort_unstable();
    let (mut row_taken, mut column_taken) = (vec![false; n], vec![false; n]);
    let mut steps = Vec::with_capacity(n);
    for key in keys {
        let index = (key & 0xffff_ffff) as usize;
        let (row, column) = (index / n, index % n);
        if row_taken[row] || column_taken[column] {
            continue;
        }
        (row_taken[row], column_taken[column]) = (true, true);
        steps.push(Match { row, column, value: f32::from_bits(!((key >> 32) as u32)) });
        if steps.len() == n {
            break;
        }
    }
    steps.resize(n, Match { row: 0, column: 0, value: 0.0 });
    steps
}

/// [H, H] head similarity from `absolute_cosine` [H·d_h, H·d_h]; pairs run in parallel. See the family's contract.
pub fn dimension_mapping(absolute_cosine: View<f32>, head_dim: usize, out: &mut ViewMut<f32>) {
    let heads = out.rows();
    assert_eq!((absolute_cosine.rows(), absolute_cosine.cols()), (heads * head_dim, heads * head_dim));
    let pairs: Vec<(usize, usize)> = (0..heads).flat_map(|i| (i + 1..heads).map(move |j| (i, j))).collect();
    let means: Vec<f32> = pairs
        .par_iter()
        .map(|&(i, j)| {
            let block = absolute_cosine.rows_at(i * head_dim, head_dim).cols_at(j * head_dim, head_dim);
            if (0..head_dim).any(|r| block.row(r).iter().any(|v| v.is_nan())) {
                return f32::NAN;
            }
            let sum: f64 = greedy_matching(block).iter().map(|step| f64::from(step.value)).sum();
            (sum / head_dim as f64) as f32
        })
        .collect();
    (0..heads).for_each(|i| out.row_mut(i)[i] = 1.0);
    for (&(i, j), &mean) in pairs.iter().zip(&means) {
        out.row_mut(i)[j] = mean;
        out.row_mut(j)[i] = mean;
    }
}
