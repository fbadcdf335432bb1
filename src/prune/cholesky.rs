//! Symmetric positive definite systems in f64: normal equations of least-squares problems.
//!
//! `A = L·Lᵀ`, blocked and right-looking; then two triangular solves, strip by strip of the right-hand sides. All three are
//! made of one kernel, `out −= Σ_k c_k·row_k`. Rows and strips are shared out among threads and every element is computed in
//! one order, so the bits depend on the input alone. n³/3 multiply–adds for the factor, n²·m for m right-hand sides; 8·n²
//! bytes. The residual of a solution is at most about n·2⁻⁵² of ‖A‖·‖X‖ (Higham, Accuracy and Stability, theorem 10.4),
//! which `tests/pipeline/k_prune/cholesky.rs` asserts.
//!
//! Gram matrices of activations are often singular: dead neurons, fewer tokens than neurons. [`solve_with_ridge`] then adds
//! a multiple of the identity, the smallest of a doubling series that makes the factor exist.

use rayon::prelude::*;

/// Columns of a panel of the factorisation.
const PANEL: usize = 64;
/// Columns that the kernel holds in registers: 8 of AVX2, 4 of AVX-512.
const STRIP: usize = 32;
/// A pivot below this fraction of its diagonal element, times n, is rounding and no pivot.
const SMALLEST_PIVOT: f64 = f64::EPSILON;

/// The factor of a symmetric positive definite matrix.
#[derive(Clone, Debug)]
pub struct Cholesky {
    n: usize,
    /// L below and on the diagonal, Lᵀ above, row-major `[n, n]`.
    factor: Vec<f64>,
}

impl Cholesky {
    /// Factors `a`, row-major `[n, n]`, of which the lower triangle is read. `None` where a pivot is not a number well above
    /// rounding: the matrix is singular, indefinite or not finite.
    pub fn factor(mut a: Vec<f64>, n: usize) -> Option<Cholesky> {
        assert_eq!(a.len(), n * n);
        let diagonal: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
        for first in (0..n).step_by(PANEL) {
            let end = (first + PANEL).min(n);
            for i in first..end {
                let (above, row) = a.split_at_mut(i * n);
                finish_row(&mut row[first..i + 1], i - first, |j| &above[(first + j) * n + first..]);
                let pivot = row[i];
                // Written so that NaN fails.
                if !(pivot > n as f64 * SMALLEST_PIVOT * diagonal[i] && pivot.is_finite()) {
                    return None;
                }
                row[i] = pivot.sqrt();
            }
            let (panel, below) = a.split_at_mut(end * n);
            below.par_chunks_mut(n).for_each(|row| {
                finish_row(&mut row[first..end], end - first, |j| &panel[(first + j) * n + first..]);
            });
            update(&mut a, n, first, end);
        }
        for i in 0..n {
            for j in 0..i {
                a[j * n + i] = a[i * n + j];
            }
        }
        Some(Cholesky { n, factor: a })
    }

    /// Replaces `b`, row-major `[n, m]`, by the solution of `A·X = B`.
    pub fn solve(&self, b: &mut [f64], m: usize) {
        let n = self.n;
        assert_eq!(b.len(), n * m);
        let strips: Vec<Vec<f64>> = (0..m.div_ceil(STRIP))
            .into_par_iter()
            .map(|strip| {
                let columns = strip * STRIP..((strip + 1) * STRIP).min(m);
                let mut x = vec![0.0; n * STRIP];
                for (to, from) in x.chunks_exact_mut(STRIP).zip(b.chunks_exact(m)) {
                    to[..columns.len()].copy_from_slice(&from[columns.clone()]);
                }
                self.solve_strip(&mut x);
                x
            })
            .collect();
        for (strip, x) in strips.iter().enumerate() {
            let columns = strip * STRIP..((strip + 1) * STRIP).min(m);
            for (from, to) in x.chunks_exact(STRIP).zip(b.chunks_exact_mut(m)) {
                to[columns.clone()].copy_from_slice(&from[..columns.len()]);
            }
        }
    }

    /// `x [n, STRIP] ← L⁻ᵀ·L⁻¹·x`.
    fn solve_strip(&self, x: &mut [f64]) {
        let n = self.n;
        let row = |i: usize| &self.factor[i * n..(i + 1) * n];
        let divide = |out: &mut [f64], by: f64| out.iter_mut().for_each(|value| *value /= by);
        for i in 0..n {
            let (done, rest) = x.split_at_mut(i * STRIP);
            subtract(&mut rest[..STRIP], &row(i)[..i], done, STRIP);
            divide(&mut rest[..STRIP], row(i)[i]);
        }
        for i in (0..n).rev() {
            let (rest, done) = x.split_at_mut((i + 1) * STRIP);
            subtract(&mut rest[i * STRIP..], &row(i)[i + 1..], done, STRIP);
            divide(&mut rest[i * STRIP..], row(i)[i]);
        }
    }
}

/// Turns a row of A into a row of L within a panel: `row[j] = (row[j] − Σ_{p<j} row[p]·L[j][p]) / L[j][j]` for the first
/// `known` columns, of which `of(j)` are the rows of L; a last element (the row's own diagonal) loses its squares.
fn finish_row<'a>(row: &mut [f64], known: usize, of: impl Fn(usize) -> &'a [f64]) {
    for j in 0..row.len() {
        let (done, rest) = row.split_at_mut(j);
        if j < known {
            let other = of(j);
            let sum: f64 = done.iter().zip(other).map(|(a, b)| a * b).sum();
            rest[0] = (rest[0] - sum) / other[j];
        } else {
            rest[0] -= done.iter().map(|a| a * a).sum::<f64>();
        }
    }
}

/// The trailing update of `a [n, n]`: for rows and columns from `end` on, minus the products of the rows of the panel
/// `first..end`, in the lower triangle.
fn update(a: &mut [f64], n: usize, first: usize, end: usize) {
    let (width, rest) = (end - first, n - end);
    let mut transposed = vec![0.0; width * rest];
    for (i, row) in a[end * n..].chunks_exact(n).enumerate() {
        for (p, value) in row[first..end].iter().enumerate() {
            transposed[p * rest + i] = *value;
        }
    }
    a[end * n..].par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        let (panel, trailing) = row.split_at_mut(end);
        for (strip, out) in trailing[..i + 1].chunks_mut(STRIP).enumerate() {
            subtract(out, &panel[first..], &transposed[strip * STRIP..], rest);
        }
    });
}

/// `out[c] −= Σ_k coefficients[k]·rows[k·stride + c]`, k in rising order; `out` has at most [`STRIP`] elements.
fn subtract(out: &mut [f64], coefficients: &[f64], rows: &[f64], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(out: &mut [f64], coefficients: &[f64], rows: &[f64], stride: usize) {
            subtract_body(out, coefficients, rows, stride);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has just confirmed the feature.
            return unsafe { avx2(out, coefficients, rows, stride) };
        }
    }
    subtract_body(out, coefficients, rows, stride);
}

#[inline(always)]
fn subtract_body(out: &mut [f64], coefficients: &[f64], rows: &[f64], stride: usize) {
    if let Ok(out) = <&mut [f64; STRIP]>::try_from(&mut *out) {
        let mut sums = *out;
        for (k, coefficient) in coefficients.iter().enumerate() {
            let row = &rows[k * stride..k * stride + STRIP];
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum -= coefficient * value;
            }
        }
        *out = sums;
        return;
    }
    for (k, coefficient) in coefficients.iter().enumerate() {
        for (sum, value) in out.iter_mut().zip(&rows[k * stride..]) {
            *sum -= coefficient * value;
        }
    }
}

/// A solution and what it took.
#[derive(Clone, Debug)]
pub struct Ridged {
    /// `[n, m]`.
    pub x: Vec<f64>,
    /// ε of the ridge `ε·tr(A)/n` that was added; 0 where none was needed and none asked for.
    pub ridge: f64,
}

/// First ridge tried where none was asked for and the matrix has no factor.
const FIRST_RIDGE: f64 = 1e-6;

/// Solves `(A + ε·tr(A)/n·I)·X = B` with ε = `ridge`, doubled until the factor exists; `a [n, n]`, `b [n, m]`. `None` for
/// matrices that stay without one up to ε = 1 (zero, not finite) and for solutions that are not finite.
pub fn solve_with_ridge(a: &[f64], n: usize, b: &[f64], m: usize, ridge: f64) -> Option<Ridged> {
    let scale = (0..n).map(|i| a[i * n + i]).sum::<f64>() / n as f64;
    if !(scale > 0.0 && scale.is_finite()) {
        return None;
    }
    let mut epsilon = ridge;
    while epsilon <= 1.0 {
        let mut shifted = a.to_vec();
        (0..n).for_each(|i| shifted[i * n + i] += epsilon * scale);
        if let Some(factor) = Cholesky::factor(shifted, n) {
            let mut x = b.to_vec();
            factor.solve(&mut x, m);
            return x.iter().all(|value| value.is_finite()).then_some(Ridged { x, ridge: epsilon });
        }
        epsilon = if epsilon == 0.0 { FIRST_RIDGE } else { 2.0 * epsilon };
    }
    None
}
