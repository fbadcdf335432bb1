//! The definitions, in f64.

use crate::ops::gemm::Factors;
use crate::ops::{View, ViewMut};

/// log Σ exp z.
fn log_sum_exp(z: &[f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
}

fn put(into: &mut f64, gradient: f64, accumulate: bool) {
    *into = if accumulate { *into + gradient } else { gradient };
}

/// Cross-entropy; `logits`, `dlogits`: `[R, C]`, `labels`, `weights`, `losses`: `[R]`.
pub fn cross_entropy(
    logits: View<f64>,
    labels: &[i32],
    weights: &[f64],
    losses: &mut [f64],
    mut dlogits: Option<ViewMut<f64>>,
    accumulate: bool,
) {
    for i in 0..logits.rows() {
        let row = logits.row(i);
        let counted = labels[i] >= 0 && weights[i] != 0.0;
        let total = log_sum_exp(row);
        losses[i] = if counted { total - row[labels[i] as usize] } else { 0.0 };
        if let Some(dlogits) = &mut dlogits {
            for c in 0..row.len() {
                let target = if labels[i] == c as i32 { 1.0 } else { 0.0 };
                let gradient = if counted { weights[i] * ((row[c] - total).exp() - target) } else { 0.0 };
                put(&mut dlogits.row_mut(i)[c], gradient, accumulate);
            }
        }
    }
}

/// Cross-entropy of `z = x·wᵀ + bias`; `x`: `[R, d]`, `w`: `[V, d]`, `bias`: `[V]`, `labels`, `weights`,
/// `losses`: `[R]`. `dx` is overwritten, `dw` and `dbias` are added to.
pub fn linear_cross_entropy(
    factors: Factors,
    x: View<f64>,
    w: View<f64>,
    bias: Option<&[f64]>,
    labels: &[i32],
    weights: &[f64],
    losses: &mut [f64],
    mut dx: Option<ViewMut<f64>>,
    mut dw: Option<ViewMut<f64>>,
    mut dbias: Option<&mut [f64]>,
) {
    let (rows, classes, d) = (x.rows(), w.rows(), x.cols());
    let product = |left, right| factors.rounded(left) * factors.rounded(right);
    let mut logits = vec![0.0; classes];
    let mut gradient = vec![0.0; classes];
    for i in 0..rows {
        for c in 0..classes {
            let sum: f64 = (0..d).map(|j| product(x.at(i, j), w.at(c, j))).sum();
            logits[c] = sum + bias.map_or(0.0, |b| b[c]);
        }
        cross_entropy(
            View::dense(&logits, 1, classes),
            &labels[i..=i],
            &weights[i..=i],
            &mut losses[i..=i],
            Some(ViewMut::dense(&mut gradient, 1, classes)),
            false,
        );
        for j in 0..d {
            if let Some(dx) = &mut dx {
                dx.row_mut(i)[j] = (0..classes).map(|c| product(gradient[c], w.at(c, j))).sum();
            }
            if let Some(dw) = &mut dw {
                for c in 0..classes {
                    dw.row_mut(c)[j] += product(gradient[c], x.at(i, j));
                }
            }
        }
        if let Some(dbias) = &mut dbias {
            for c in 0..classes {
                dbias[c] += gradient[c];
            }
        }
    }
}

/// Squared error; `x`, `dx`: `[R, 1]`, `targets`, `weights`, `losses`: `[R]`.
pub fn mean_squared_error(
    x: View<f64>,
    targets: &[f64],
    weights: &[f64],
    losses: &mut [f64],
    mut dx: Option<ViewMut<f64>>,
    accumulate: bool,
) {
    for i in 0..x.rows() {
        let difference = if weights[i] != 0.0 { x.at(i, 0) - targets[i] } else { 0.0 };
        losses[i] = difference * difference;
        if let Some(dx) = &mut dx {
            put(&mut dx.row_mut(i)[0], 2.0 * weights[i] * difference, accumulate);
        }
    }
}

/// Start and end of an answer; `logits`, `dlogits`: `[T, 2]` (start, end), `starts`, `ends`: `[B]` token
/// numbers within the sequence, `cu_seqlens`: `[B + 1]`, `weights`, `losses`: `[B]`.
///
/// A position outside its sequence is ignored: its half of the loss is 0.
pub fn span(
    logits: View<f64>,
    starts: &[i32],
    ends: &[i32],
    cu_seqlens: &[i32],
    weights: &[f64],
    losses: &mut [f64],
    mut dlogits: Option<ViewMut<f64>>,
) {
    for b in 0..starts.len() {
        let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
        losses[b] = 0.0;
        for (column, position) in [(0, starts[b]), (1, ends[b])] {
            let z: Vec<f64> = tokens.clone().map(|t| logits.at(t, column)).collect();
            let counted = weights[b] != 0.0 && position >= 0 && (position as usize) < z.len();
            let total = log_sum_exp(&z);
            if counted {
                losses[b] += 0.5 * (total - z[position as usize]);
            }
            if let Some(dlogits) = &mut dlogits {
                for (i, t) in tokens.clone().enumerate() {
                    let target = if position == i as i32 { 1.0 } else { 0.0 };
                    let gradient = 0.5 * weights[b] * ((z[i] - total).exp() - target);
                    dlogits.row_mut(t)[column] = if counted { gradient } else { 0.0 };
                }
            }
        }
    }
}

/// Distillation of class probabilities; `student`, `teacher`, `dstudent`: `[R, C]`, `weights`, `losses`:
/// `[R]`. The teacher gets no gradient.
pub fn distillation(
    student: View<f64>,
    teacher: View<f64>,
    temperature: f64,
    weights: &[f64],
    losses: &mut [f64],
    mut dstudent: Option<ViewMut<f64>>,
    accumulate: bool,
) {
    for i in 0..student.rows() {
        let log_softmax = |z: &[f64]| -> Vec<f64> {
            let scaled: Vec<f64> = z.iter().map(|z| z / temperature).collect();
            let total = log_sum_exp(&scaled);
            scaled.iter().map(|z| z - total).collect()
        };
        let (log_p, log_q) = (log_softmax(teacher.row(i)), log_softmax(student.row(i)));
        let divergence: f64 = log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum();
        losses[i] = if weights[i] != 0.0 { temperature * temperature * divergence } else { 0.0 };
        if let Some(dstudent) = &mut dstudent {
            for c in 0..student.cols() {
                let gradient = weights[i] * temperature * (log_q[c].exp() - log_p[c].exp());
                put(&mut dstudent.row_mut(i)[c], gradient, accumulate);
            }
        }
    }
}

/// Distillation of the start and the end of an answer over each sequence's own tokens; `student`, `teacher`,
/// `dstudent`: `[T, 2]` (start, end), `cu_seqlens`: `[B + 1]`, `weights`, `losses`: `[B]`.
pub fn span_distillation(
    student: View<f64>,
    teacher: View<f64>,
    temperature: f64,
    cu_seqlens: &[i32],
    weights: &[f64],
    losses: &mut [f64],
    mut dstudent: Option<ViewMut<f64>>,
    accumulate: bool,
) {
    for b in 0..losses.len() {
        let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
        losses[b] = 0.0;
        for column in 0..2 {
            let of = |logits: View<f64>| tokens.clone().map(|t| logits.at(t, column)).collect::<Vec<f64>>();
            let (p, q) = (of(teacher), of(student));
            let (mut loss, mut gradient) = ([0.0], vec![0.0; q.len()]);
            distillation(
                View::dense(&q, 1, q.len()),
                View::dense(&p, 1, p.len()),
                temperature,
                &[0.5 * weights[b]],
                &mut loss,
                Some(ViewMut::dense(&mut gradient, 1, q.len())),
                false,
            );
            losses[b] += 0.5 * loss[0];
            if let Some(dstudent) = &mut dstudent {
                for (gradient, t) in gradient.into_iter().zip(tokens.clone()) {
                    put(&mut dstudent.row_mut(t)[column], gradient, accumulate);
                }
            }
        }
    }
}
