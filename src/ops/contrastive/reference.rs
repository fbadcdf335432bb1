//! The definition, in f64.

use super::{Keys, NORM_FLOOR};
use crate::ops::{View, ViewMut};

/// The contrastive loss; `x`, `dx`: `[R, d]`, `bank`: `[K, d]`, `weights`: `[2]`, `losses`: `[R, 2]`, `scales`: `[R]`. The
/// gradient is added to `dx` where `accumulate`.
pub fn contrastive(
    x: View<f64>,
    bank: View<f64>,
    keys: Keys,
    temperature: f64,
    weights: &[f64],
    mut losses: ViewMut<f64>,
    scales: &mut [f64],
    mut dx: Option<ViewMut<f64>>,
    accumulate: bool,
) {
    let (rows, d) = (x.rows(), x.cols());
    keys.check(rows, bank.rows());
    let mut queries = Vec::with_capacity(rows);
    for i in 0..rows {
        let norm = x.row(i).iter().map(|x| x * x).sum::<f64>().sqrt();
        scales[i] = if norm < NORM_FLOOR { 0.0 } else { 1.0 / norm };
        queries.push(x.row(i).iter().map(|x| x * scales[i]).collect::<Vec<f64>>());
    }
    let candidate = |j: usize| if j < bank.rows() { bank.row(j) } else { &queries[j - bank.rows()] };
    for i in 0..rows {
        let present: Vec<usize> = (0..bank.rows() + rows).filter(|&j| keys.is_candidate(i, j)).collect();
        let dot = |j: usize| queries[i].iter().zip(candidate(j)).map(|(q, c)| q * c).sum::<f64>();
        let scores: Vec<f64> = present.iter().map(|&j| dot(j) / temperature).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        // Weight of each candidate in the gradient of its score.
        let mut slopes = vec![0.0; present.len()];
        for which in 0..2 {
            let positives: Vec<usize> =
                (0..present.len()).filter(|&k| keys.positive(i, present[k])[which]).collect();
            let counted = weights[which] != 0.0 && !positives.is_empty();
            let mean = |sum: f64| sum / positives.len() as f64;
            losses.row_mut(i)[which] =
                if counted { total - mean(positives.iter().map(|&k| scores[k]).sum()) } else { 0.0 };
            if counted {
                slopes.iter_mut().zip(&scores).for_each(|(g, s)| *g += weights[which] * (s - total).exp());
                positives.iter().for_each(|&k| slopes[k] -= mean(weights[which]));
            }
        }
        let Some(dx) = &mut dx else { continue };
        let mut dq = vec![0.0; d];
        for (&j, slope) in present.iter().zip(&slopes) {
            dq.iter_mut().zip(candidate(j)).for_each(|(dq, c)| *dq += slope * c / temperature);
        }
        let along: f64 = dq.iter().zip(&queries[i]).map(|(dq, q)| dq * q).sum();
        for (k, into) in dx.row_mut(i).iter_mut().enumerate() {
            *into = scales[i] * (dq[k] - along * queries[i][k]) + if accumulate { *into } else { 0.0 };
        }
    }
}
