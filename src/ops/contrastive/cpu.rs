//! The contrastive loss in f32: products of the product family, and one pass over the scores of each query.

use super::{Keys, NORM_FLOOR};
use crate::ops::gemm::{Epilogue, cpu::gemm};
use crate::ops::loss::cpu::{softmax_in_place, softmax_sums};
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::{dot, simd_fn, sum_of};
use crate::ops::{View, ViewMut, scratch};

simd_fn! {
    /// `q = x·scale`; returns the scale, 1/‖x‖.
    fn normalise_row<I>(x: &[f32], q: &mut [f32]) -> f32 {
        let norm = sum_of(x, |x| x * x).sqrt();
        // Of what is not a number the norm is none, and q stays so.
        let scale = if norm < NORM_FLOOR as f32 { 0.0 } else { 1.0 / norm };
        for (q, &x) in q.iter_mut().zip(x) {
            *q = x * scale;
        }
        scale
    }
}

simd_fn! {
    /// `dx = scale·(dq − (dq·q)·q)`, added where `accumulate`.
    fn through_norm_row<I>(dq: &[f32], q: &[f32], scale: f32, dx: &mut [f32], accumulate: bool) {
        let along = dot::<I>(dq, q);
        for ((dx, &dq), &q) in dx.iter_mut().zip(dq).zip(q) {
            let gradient = scale * (dq - along * q);
            *dx = gradient + if accumulate { *dx } else { 0.0 };
        }
    }
}

simd_fn! {
    /// `z = factor·z`.
    fn scale_row<I>(z: &mut [f32], factor: f32) {
        for z in z.iter_mut() {
            *z *= factor;
        }
    }
}

/// The contrastive loss; `x`, `dx`: `[R, d]`, `bank`: `[K, d]`, `weights`: `[2]`, `losses`: `[R, 2]`, `scales`: `[R]`. The
/// gradient is added to `dx` where `accumulate`.
pub fn contrastive(
    x: View<f32>,
    bank: View<f32>,
    keys: Keys,
    temperature: f32,
    weights: &[f32],
    mut losses: ViewMut<f32>,
    scales: &mut [f32],
    mut dx: Option<ViewMut<f32>>,
    accumulate: bool,
) {
    let (rows, d, banked) = (x.rows(), x.cols(), bank.rows());
    keys.check(rows, banked);
    assert_eq!((bank.cols(), weights.len(), scales.len()), (d, 2, rows));
    assert_eq!((losses.rows(), losses.cols()), (rows, 2));
    assert!(dx.as_ref().is_none_or(|dx| (dx.rows(), dx.cols()) == (rows, d)));
    let wide = banked + rows;
    scratch::with(rows * (2 * d + wide), |buffer| {
        let (queries, rest) = buffer.split_at_mut(rows * d);
        let (dq, scores) = rest.split_at_mut(rows * d);
        let mut queries = ViewMut::dense(queries, rows, d);
        for i in 0..rows {
            scales[i] = normalise_row(x.row(i), queries.row_mut(i));
        }
        let queries = queries.as_view();
        if weights.iter().all(|&weight| weight == 0.0) {
            // A bank that is still empty: nothing to multiply.
            (0..rows).for_each(|i| losses.row_mut(i).fill(0.0));
            if let (Some(dx), false) = (&mut dx, accumulate) {
                (0..rows).for_each(|i| dx.row_mut(i).fill(0.0));
            }
            return;
        }
        let product = |from: usize, factor: View<f32>, scores: &mut [f32]| {
            let mut part = ViewMut::new(&mut scores[from.min(rows * wide)..], rows, factor.rows(), wide);
            gemm(queries, false, factor, true, &mut part, Epilogue::default());
        };
        product(0, bank, scores);
        product(banked, queries, scores);
        let mut scores = ViewMut::dense(scores, rows, wide);
        slopes(&mut scores, keys, temperature, weights, &mut losses);
        let Some(dx) = &mut dx else { return };
        let scores = scores.as_view();
        let part =
            |from: usize, cols: usize| View::new(&scores.data()[from.min(rows * wide)..], rows, cols, wide);
        let mut dq = ViewMut::dense(dq, rows, d);
        gemm(part(0, banked), false, bank, false, &mut dq, Epilogue::default());
        let added = Epilogue { accumulate: true, ..Epilogue::default() };
        gemm(part(banked, rows), false, queries, false, &mut dq, added);
        for i in 0..rows {
            through_norm_row(dq.row(i), queries.row(i), scales[i], dx.row_mut(i), accumulate);
        }
    });
}

/// Replaces the dot products `z [R, K + R]` by the gradient of the loss in them, and writes the losses.
fn slopes(z: &mut ViewMut<f32>, keys: Keys, temperature: f32, weights: &[f32], losses: &mut ViewMut<f32>) {
    let (rows, wide) = (z.rows(), z.cols());
    let (z, losses) = (Shared::new(z), Shared::new(losses));
    parallel::rows(rows, 4 * wide, |range| {
        for i in range {
            // SAFETY: ranges of rows are disjoint.
            let (z, losses) = unsafe { (z.whole_row(i), losses.whole_row(i)) };
            scale_row(z, 1.0 / temperature);
            for (j, z) in z.iter_mut().enumerate() {
                if !keys.is_candidate(i, j) {
                    *z = f32::NEG_INFINITY;
                }
            }
            let (max, sum) = softmax_sums(z, 1.0);
            let (mut counts, mut below) = ([0usize; 2], [0.0f64; 2]);
            for_positives(keys, i, wide, |j, which| {
                counts[which] += 1;
                below[which] += f64::from(max - z[j]);
            });
            let mut slopes = [0.0f32; 2];
            let mut total = 0.0;
            for which in 0..2 {
                let counted = weights[which] != 0.0 && counts[which] > 0;
                let count = counts[which].max(1) as f64;
                losses[which] = if counted { (below[which] / count) as f32 + sum.ln() } else { 0.0 };
                if counted {
                    total += weights[which];
                    slopes[which] = (f64::from(weights[which]) / count) as f32;
                }
            }
            if total == 0.0 {
                // Perhaps without any candidate, where there is no softmax.
                z.fill(0.0);
                continue;
            }
            softmax_in_place(z, max, total / sum);
            for_positives(keys, i, wide, |j, which| z[j] -= slopes[which]);
            scale_row(z, 1.0 / temperature);
        }
    });
}

/// Calls `body` with every positive candidate of query `i` and the loss it is one of.
fn for_positives(keys: Keys, i: usize, wide: usize, mut body: impl FnMut(usize, usize)) {
    for j in (0..wide).filter(|&j| keys.is_candidate(i, j)) {
        for (which, positive) in keys.positive(i, j).into_iter().enumerate() {
            if positive {
                body(j, which);
            }
        }
    }
}
