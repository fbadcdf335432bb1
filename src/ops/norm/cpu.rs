//! Layer normalisation in f32, a row at a time.

use std::ops::Range;

use crate::ops::parallel::{self, Shared};
use crate::ops::simd::{fold2, simd_fn, sum_of};
use crate::ops::{View, ViewMut, scratch};

simd_fn! {
    /// Returns (mean, rstd).
    fn forward_row<I>(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, y: &mut [f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = sum_of(x, |x| x) / n;
        let variance = sum_of(x, |x| (x - mean) * (x - mean)) / n;
        let rstd = 1.0 / (variance + eps).sqrt();
        for (((y, &x), &gamma), &beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = I::mul_add((x - mean) * rstd, gamma, beta);
        }
        (mean, rstd)
    }
}

simd_fn! {
    fn backward_row<I>(dy: &[f32], x: &[f32], gamma: &[f32], mean: f32, rstd: f32, dx: &mut [f32], accumulate: bool, g: &mut [f32]) {
        let n = x.len() as f32;
        for ((g, &dy), &gamma) in g.iter_mut().zip(dy).zip(gamma) {
            *g = dy * gamma;
        }
        let mean_g = sum_of(g, |g| g) / n;
        let mean_gx = fold2(g, x, 0.0, |p, g, x| I::mul_add(g, (x - mean) * rstd, p), |p, q| p + q) / n;
        if accumulate {
            for ((dx, &g), &x) in dx.iter_mut().zip(&*g).zip(x) {
                *dx += rstd * (g - mean_g - (x - mean) * rstd * mean_gx);
            }
        } else {
            for ((dx, &g), &x) in dx.iter_mut().zip(&*g).zip(x) {
                *dx = rstd * (g - mean_g - (x - mean) * rstd * mean_gx);
            }
        }
    }
}

simd_fn! {
    /// `dgamma += dy·x̂`, `dbeta += dy` for one row.
    fn parameter_row<I>(dy: &[f32], x: &[f32], mean: f32, rstd: f32, dgamma: &mut [f32], dbeta: &mut [f32]) {
        for (((dgamma, dbeta), &dy), &x) in dgamma.iter_mut().zip(dbeta).zip(dy).zip(x) {
            *dgamma = I::mul_add(dy, (x - mean) * rstd, *dgamma);
            *dbeta += dy;
        }
    }
}

/// `y = γ·(x − mean)·rstd + β`; `x`, `y`: `[T, n]`, `gamma`, `beta`: `[n]`, `mean`, `rstd`: `[T]`, written.
pub fn layer_norm(
    x: View<f32>,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    mut y: ViewMut<f32>,
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
    assert_eq!((gamma.len(), beta.len()), (x.cols(), x.cols()));
    assert_eq!((mean.len(), rstd.len()), (x.rows(), x.rows()));
    let (y, mean, rstd) = (Shared::new(&mut y), Shared::slice(mean), Shared::slice(rstd));
    parallel::rows(x.rows(), x.cols(), |rows| {
        // SAFETY: ranges of rows are disjoint.
        let (mean, rstd) = unsafe { (mean.range_mut(rows.clone()), rstd.range_mut(rows.clone())) };
        for (i, t) in rows.enumerate() {
            // SAFETY: as above.
            let y = unsafe { y.whole_row(t) };
            (mean[i], rstd[i]) = forward_row(x.row(t), gamma, beta, eps, y);
        }
    });
}

/// The backward of [`layer_norm`]; `dx` is added to where `accumulate_dx`, `dgamma` and `dbeta` always.
pub fn layer_norm_backward(
    dy: View<f32>,
    x: View<f32>,
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    mut dx: ViewMut<f32>,
    accumulate_dx: bool,
    dgamma: Option<&mut [f32]>,
    dbeta: Option<&mut [f32]>,
) {
    let (rows, n) = (x.rows(), x.cols());
    assert_eq!((dy.rows(), dy.cols()), (rows, n));
    assert_eq!((dx.rows(), dx.cols()), (rows, n));
    assert_eq!((gamma.len(), mean.len(), rstd.len()), (n, rows, rows));
    let dx = Shared::new(&mut dx);
    let dx_rows = |range: Range<usize>, g: &mut [f32]| {
        for t in range {
            // SAFETY: ranges of rows are disjoint.
            let dx = unsafe { dx.whole_row(t) };
            backward_row(dy.row(t), x.row(t), gamma, mean[t], rstd[t], dx, accumulate_dx, g);
        }
    };
    if dgamma.is_none() && dbeta.is_none() {
        parallel::rows(rows, n, |range| scratch::with(n, |g| dx_rows(range, g)));
        return;
    }
    // At most 64 chunks, so that their partial sums stay small whatever the batch.
    let step = rows.div_ceil(64).max(32);
    let chunks = rows.div_ceil(step);
    scratch::with(chunks * 2 * n, |partial| {
        let sums = Shared::slice(&mut *partial);
        parallel::items(chunks, |chunk| {
            let range = chunk * step..((chunk + 1) * step).min(rows);
            // SAFETY: one piece of work for each chunk.
            let sums = unsafe { sums.range_mut(chunk * 2 * n..(chunk + 1) * 2 * n) };
            sums.fill(0.0);
            let (sum_gamma, sum_beta) = sums.split_at_mut(n);
            for t in range.clone() {
                parameter_row(dy.row(t), x.row(t), mean[t], rstd[t], sum_gamma, sum_beta);
            }
            scratch::with(n, |g| dx_rows(range, g));
        });
        for (offset, total) in [(0, dgamma), (n, dbeta)] {
            if let Some(total) = total {
                assert_eq!(total.len(), n);
                for chunk in 0..chunks {
                    let from = chunk * 2 * n + offset;
                    total.iter_mut().zip(&partial[from..from + n]).for_each(|(total, &sum)| *total += sum);
                }
            }
        }
    });
}
