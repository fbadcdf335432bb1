//! The language-model head and its loss as one operation.
//!
//! A batch of 4,096 tokens over 50,257 classes has 0.8 GB of logits and as much of their gradient. Here a
//! chunk of rows is multiplied, turned into its own gradient in place and used up before the next one.

use super::cpu::{softmax_in_place, softmax_sums};
use crate::ops::gather::cpu::add_row;
use crate::ops::gemm::{Epilogue, Factors, cpu::gemm_of};
use crate::ops::parallel::{self, Shared};
use crate::ops::{View, ViewMut, scratch};

/// Elements of the logits that are held at a time: 8 MB.
const CHUNK: usize = 2 * 1024 * 1024;

/// Cross-entropy of `z = x·wᵀ + bias`; `x`: `[R, d]`, `w`: `[V, d]`, `bias`: `[V]`, `labels`, `weights`,
/// `losses`: `[R]`. `dx` is overwritten, `dw` and `dbias` are added to.
pub fn linear_cross_entropy(
    factors: Factors,
    x: View<f32>,
    w: View<f32>,
    bias: Option<&[f32]>,
    labels: &[i32],
    weights: &[f32],
    losses: &mut [f32],
    mut dx: Option<ViewMut<f32>>,
    mut dw: Option<ViewMut<f32>>,
    mut dbias: Option<&mut [f32]>,
) {
    let (rows, classes, d) = (x.rows(), w.rows(), x.cols());
    assert_eq!((labels.len(), weights.len(), losses.len()), (rows, rows, rows));
    assert_eq!(w.cols(), d);
    let step = (CHUNK / classes.max(1)).clamp(1, rows.max(1));
    let wanted = dx.is_some() || dw.is_some() || dbias.is_some();
    scratch::with(step * classes, |buffer| {
        for start in (0..rows).step_by(step) {
            let count = step.min(rows - start);
            let chunk = x.rows_at(start, count);
            let mut z = ViewMut::dense(&mut buffer[..count * classes], count, classes);
            gemm_of(factors, chunk, false, w, true, &mut z, Epilogue { bias, ..Epilogue::default() });
            let (labels, weights) = (&labels[start..start + count], &weights[start..start + count]);
            gradient_in_place(&mut z, labels, weights, &mut losses[start..start + count], wanted);
            let z = z.as_view();
            if let Some(dx) = &mut dx {
                let (cols, ld) = (dx.cols(), dx.ld());
                let mut dx = ViewMut::new(&mut dx.data_mut()[start * ld..], count, cols, ld);
                gemm_of(factors, z, false, w, false, &mut dx, Epilogue::default());
            }
            if let Some(dw) = &mut dw {
                gemm_of(
                    factors,
                    z,
                    true,
                    chunk,
                    false,
                    dw,
                    Epilogue { accumulate: true, ..Epilogue::default() },
                );
            }
            if let Some(dbias) = &mut dbias {
                add_columns(z, dbias);
            }
        }
    });
}

/// Replaces logits by the gradient of the loss in them, where `wanted`.
fn gradient_in_place(
    z: &mut ViewMut<f32>,
    labels: &[i32],
    weights: &[f32],
    losses: &mut [f32],
    wanted: bool,
) {
    let (rows, classes) = (z.rows(), z.cols());
    let (z, losses) = (Shared::new(z), Shared::slice(losses));
    parallel::rows(rows, classes, |range| {
        for i in range {
            // SAFETY: ranges of rows are disjoint.
            let (z, loss) = unsafe { (z.whole_row(i), &mut losses.range_mut(i..i + 1)[0]) };
            if labels[i] < 0 || weights[i] == 0.0 {
                *loss = 0.0;
                z.fill(0.0);
                continue;
            }
            let label = labels[i] as usize;
            let (max, sum) = softmax_sums(z, 1.0);
            *loss = (max - z[label]) + sum.ln();
            if wanted {
                softmax_in_place(z, max, weights[i] / sum);
                z[label] -= weights[i];
            }
        }
    });
}

/// `sum[c] += Σ_i x[i, c]`, the rows in their order.
fn add_columns(x: View<f32>, sum: &mut [f32]) {
    let sum = Shared::slice(sum);
    parallel::columns(x.cols(), x.rows(), |cols| {
        // SAFETY: ranges of columns are disjoint.
        let sum = unsafe { sum.range_mut(cols.clone()) };
        for i in 0..x.rows() {
            add_row(&x.row(i)[cols.clone()], sum);
        }
    });
}
