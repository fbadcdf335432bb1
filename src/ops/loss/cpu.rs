//! The losses in f32.

pub use super::linear::linear_cross_entropy;
use crate::ops::elementary::exp;
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::{fold2, maximum, simd_fn, sum_of};
use crate::ops::{View, ViewMut, scratch};

simd_fn! {
    /// (max z, Σ exp(scale·(z − max z))).
    pub(in crate::ops) fn softmax_sums<I>(z: &[f32], scale: f32) -> (f32, f32) {
        let max = maximum(z);
        (max, sum_of(z, |z| exp::<I>(scale * (z - max))))
    }
}

simd_fn! {
    /// `out = factor·softmax(z)`, added where `accumulate`.
    fn softmax_gradient<I>(z: &[f32], max: f32, factor: f32, out: &mut [f32], accumulate: bool) {
        if accumulate {
            for (out, &z) in out.iter_mut().zip(z) {
                *out += factor * exp::<I>(z - max);
            }
        } else {
            for (out, &z) in out.iter_mut().zip(z) {
                *out = factor * exp::<I>(z - max);
            }
        }
    }
}

simd_fn! {
    /// [`softmax_gradient`] in place.
    pub(in crate::ops) fn softmax_in_place<I>(z: &mut [f32], max: f32, factor: f32) {
        for z in z.iter_mut() {
            *z = factor * exp::<I>(*z - max);
        }
    }
}

/// Cross-entropy; `logits`, `dlogits`: `[R, C]`, `labels`, `weights`, `losses`: `[R]`.
pub fn cross_entropy(
    logits: View<f32>,
    labels: &[i32],
    weights: &[f32],
    losses: &mut [f32],
    mut dlogits: Option<ViewMut<f32>>,
    accumulate: bool,
) {
    let rows = logits.rows();
    assert_eq!((labels.len(), weights.len(), losses.len()), (rows, rows, rows));
    assert!(dlogits.as_ref().is_none_or(|d| (d.rows(), d.cols()) == (rows, logits.cols())));
    let losses = Shared::slice(losses);
    let dlogits = dlogits.as_mut().map(Shared::new);
    parallel::rows(rows, logits.cols(), |range| {
        for i in range {
            let z = logits.row(i);
            // SAFETY: ranges of rows are disjoint.
            let loss = unsafe { &mut losses.range_mut(i..i + 1)[0] };
            // SAFETY: as above.
            let gradient = dlogits.as_ref().map(|d| unsafe { d.whole_row(i) });
            if labels[i] < 0 || weights[i] == 0.0 {
                *loss = 0.0;
                if let (Some(gradient), false) = (gradient, accumulate) {
                    gradient.fill(0.0);
                }
                continue;
            }
            let label = labels[i] as usize;
            let (max, sum) = softmax_sums(z, 1.0);
            *loss = (max - z[label]) + sum.ln();
            if let Some(gradient) = gradient {
                softmax_gradient(z, max, weights[i] / sum, gradient, accumulate);
                gradient[label] -= weights[i];
            }
        }
    });
}

/// Squared error; `x`, `dx`: `[R, 1]`, `targets`, `weights`, `losses`: `[R]`.
pub fn mean_squared_error(
    x: View<f32>,
    targets: &[f32],
    weights: &[f32],
    losses: &mut [f32],
    mut dx: Option<ViewMut<f32>>,
    accumulate: bool,
) {
    for i in 0..x.rows() {
        let difference = if weights[i] != 0.0 { x.at(i, 0) - targets[i] } else { 0.0 };
        losses[i] = difference * difference;
        if let Some(dx) = &mut dx {
            let into = &mut dx.row_mut(i)[0];
            *into = 2.0 * weights[i] * difference + if accumulate { *into } else { 0.0 };
        }
    }
}

/// Start and end of an answer; `logits`, `dlogits`: `[T, 2]` (start, end), `starts`, `ends`: `[B]` token
/// numbers within the sequence, `cu_seqlens`: `[B + 1]`, `weights`, `losses`: `[B]`.
///
/// A position outside its sequence is ignored: its half of the loss is 0.
pub fn span(
    logits: View<f32>,
    starts: &[i32],
    ends: &[i32],
    cu_seqlens: &[i32],
    weights: &[f32],
    losses: &mut [f32],
    mut dlogits: Option<ViewMut<f32>>,
) {
    for b in 0..starts.len() {
        let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
        losses[b] = 0.0;
        for (column, position) in [(0, starts[b]), (1, ends[b])] {
            scratch::with(tokens.len(), |z| {
                for (z, t) in z.iter_mut().zip(tokens.clone()) {
                    *z = logits.at(t, column);
                }
                let counted = weights[b] != 0.0 && position >= 0 && (position as usize) < z.len();
                if counted {
                    let (max, sum) = softmax_sums(z, 1.0);
                    losses[b] += 0.5 * ((max - z[position as usize]) + sum.ln());
                    softmax_in_place(z, max, 0.5 * weights[b] / sum);
                    z[position as usize] -= 0.5 * weights[b];
                } else {
                    z.fill(0.0);
                }
                if let Some(dlogits) = &mut dlogits {
                    for (&z, t) in z.iter().zip(tokens.clone()) {
                        dlogits.row_mut(t)[column] = z;
                    }
                }
            });
        }
    }
}

/// Logits of a row at a temperature: (max, 1/T, Σ exp((z − max)/T), its logarithm).
#[derive(Clone, Copy)]
struct Tempered {
    max: f32,
    scale: f32,
    sum: f32,
    log_sum: f32,
}

impl Tempered {
    fn of(z: &[f32], scale: f32) -> Tempered {
        let (max, sum) = softmax_sums(z, scale);
        Tempered { max, scale, sum, log_sum: sum.ln() }
    }
}

simd_fn! {
    /// Σ p·(log p − log q), p the teacher's and q the student's probabilities.
    fn divergence<I>(teacher: &[f32], student: &[f32], t: Tempered, s: Tempered) -> f32 {
        let term = |partial: f32, p: f32, q: f32| {
            let log_p = t.scale * (p - t.max) - t.log_sum;
            let log_q = s.scale * (q - s.max) - s.log_sum;
            I::mul_add(exp::<I>(log_p), log_p - log_q, partial)
        };
        fold2(teacher, student, 0.0, term, |a, b| a + b)
    }
}

simd_fn! {
    /// `out = factor·(q − p)`, added where `accumulate`.
    fn divergence_gradient<I>(teacher: &[f32], student: &[f32], t: Tempered, s: Tempered, factor: f32, out: &mut [f32], accumulate: bool) {
        let (of_p, of_q) = (factor / t.sum, factor / s.sum);
        for ((out, &p), &q) in out.iter_mut().zip(teacher).zip(student) {
            let gradient = of_q * exp::<I>(s.scale * (q - s.max)) - of_p * exp::<I>(t.scale * (p - t.max));
            *out = gradient + if accumulate { *out } else { 0.0 };
        }
    }
}

/// Distillation of class probabilities; `student`, `teacher`, `dstudent`: `[R, C]`, `weights`, `losses`:
/// `[R]`. The teacher gets no gradient.
pub fn distillation(
    student: View<f32>,
    teacher: View<f32>,
    temperature: f32,
    weights: &[f32],
    losses: &mut [f32],
    mut dstudent: Option<ViewMut<f32>>,
    accumulate: bool,
) {
    let (rows, classes) = (student.rows(), student.cols());
    assert_eq!((teacher.rows(), teacher.cols()), (rows, classes));
    assert_eq!((weights.len(), losses.len()), (rows, rows));
    let losses = Shared::slice(losses);
    let dstudent = dstudent.as_mut().map(Shared::new);
    parallel::rows(rows, classes, |range| {
        for i in range {
            let (p, q) = (teacher.row(i), student.row(i));
            // SAFETY: ranges of rows are disjoint.
            let loss = unsafe { &mut losses.range_mut(i..i + 1)[0] };
            // SAFETY: as above.
            let gradient = dstudent.as_ref().map(|d| unsafe { d.whole_row(i) });
            if weights[i] == 0.0 {
                *loss = 0.0;
                if let (Some(gradient), false) = (gradient, accumulate) {
                    gradient.fill(0.0);
                }
                continue;
            }
            let (t, s) = (Tempered::of(p, 1.0 / temperature), Tempered::of(q, 1.0 / temperature));
            *loss = temperature * temperature * divergence(p, q, t, s);
            if let Some(gradient) = gradient {
                divergence_gradient(p, q, t, s, weights[i] * temperature, gradient, accumulate);
            }
        }
    });
}

/// Distillation of the start and the end of an answer over each sequence's own tokens; `student`, `teacher`,
/// `dstudent`: `[T, 2]` (start, end), `cu_seqlens`: `[B + 1]`, `weights`, `losses`: `[B]`.
pub fn span_distillation(
    student: View<f32>,
    teacher: View<f32>,
    temperature: f32,
    cu_seqlens: &[i32],
    weights: &[f32],
    losses: &mut [f32],
    mut dstudent: Option<ViewMut<f32>>,
    accumulate: bool,
) {
    assert_eq!((student.cols(), teacher.cols(), teacher.rows()), (2, 2, student.rows()));
    for b in 0..losses.len() {
        let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
        let length = tokens.len();
        let counted = weights[b] != 0.0 && length > 0;
        losses[b] = 0.0;
        for column in 0..2 {
            scratch::with(3 * length, |buffer| {
                let (p, rest) = buffer.split_at_mut(length);
                let (q, gradient) = rest.split_at_mut(length);
                for (i, t) in tokens.clone().enumerate() {
                    (p[i], q[i]) = (teacher.at(t, column), student.at(t, column));
                }
                gradient.fill(0.0);
                if counted {
                    let (t, s) = (Tempered::of(p, 1.0 / temperature), Tempered::of(q, 1.0 / temperature));
                    losses[b] += 0.5 * temperature * temperature * divergence(p, q, t, s);
                    if dstudent.is_some() {
                        divergence_gradient(p, q, t, s, 0.5 * weights[b] * temperature, gradient, false);
                    }
                }
                if let Some(dstudent) = &mut dstudent {
                    for (&gradient, t) in gradient.iter().zip(tokens.clone()) {
                        let into = &mut dstudent.row_mut(t)[column];
                        *into = gradient + if accumulate { *into } else { 0.0 };
                    }
                }
            });
        }
    }
}
