//! Column statistics in f32; threads share the columns out.

use crate::ops::parallel::{self, Shared};
use crate::ops::simd::simd_fn;
use crate::ops::{View, ViewMut, scratch};

simd_fn! {
    fn add_absolute_row<I>(x: &[f32], sum: &mut [f32]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x.abs();
        }
    }
}

simd_fn! {
    /// Adds a row to the sums of x, of |x| and of x².
    fn add_moments_of_row<I>(x: &[f32], sums: &mut [f64], magnitudes: &mut [f64], squares: &mut [f64]) {
        for (((&x, sum), magnitude), square) in x.iter().zip(sums).zip(magnitudes).zip(squares) {
            let x = f64::from(x);
            *sum += x;
            *magnitude += x.abs();
            *square += x * x;
        }
    }
}

/// `out[g]` = mean of `|x|` over rows and the columns of group g; `x`: `[T, n]`, `out`: `[n / group]`.
pub fn mean_absolute(x: View<f32>, group: usize, out: &mut [f32]) {
    assert_eq!(out.len() * group, x.cols());
    scratch::with(x.cols(), |sums| {
        let shared = Shared::slice(&mut *sums);
        parallel::columns(x.cols(), x.rows(), |cols| {
            // SAFETY: ranges of columns are disjoint.
            let sums = unsafe { shared.range_mut(cols.clone()) };
            sums.fill(0.0);
            for t in 0..x.rows() {
                add_absolute_row(&x.row(t)[cols.clone()], sums);
            }
        });
        let count = (x.rows() * group).max(1) as f32;
        for (out, group) in out.iter_mut().zip(sums.chunks_exact(group)) {
            *out = group.iter().sum::<f32>() / count;
        }
    });
}

/// `out` `[3, n]` = Σ x, Σ |x|, Σ x² over the rows of `x` `[T, n]`, summed in f64.
pub fn column_moments(x: View<f32>, mut out: ViewMut<f32>) {
    let cols = x.cols();
    assert_eq!((out.rows(), out.cols()), (3, cols));
    scratch::with_doubles(3 * cols, |sums| {
        let shared = Shared::slice(&mut *sums);
        parallel::columns(cols, x.rows(), |range| {
            // SAFETY: ranges of columns are disjoint, in each of the three rows of sums.
            let [sums, magnitudes, squares] =
                [0, 1, 2].map(|m| unsafe { shared.range_mut(m * cols + range.start..m * cols + range.end) });
            sums.fill(0.0);
            magnitudes.fill(0.0);
            squares.fill(0.0);
            for t in 0..x.rows() {
                add_moments_of_row(&x.row(t)[range.clone()], sums, magnitudes, squares);
            }
        });
        for m in 0..3 {
            for (out, &sum) in out.row_mut(m).iter_mut().zip(&sums[m * cols..]) {
                *out = sum as f32;
            }
        }
    });
}

simd_fn! {
    fn add_products_of_row<I>(x: &[f32], y: &[f32], sum: &mut [f64]) {
        for ((sum, &x), &y) in sum.iter_mut().zip(x).zip(y) {
            *sum += f64::from(x) * f64::from(y);
        }
    }
}

/// `out[j]` = Σ_t x[t, j]·y[t, j], summed in f64; `x`, `y`: `[T, n]`, `out`: `[n]`.
pub fn column_products(x: View<f32>, y: View<f32>, out: &mut [f32]) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
    assert_eq!(out.len(), x.cols());
    let out = Shared::slice(out);
    parallel::columns(x.cols(), x.rows(), |cols| {
        // SAFETY: ranges of columns are disjoint.
        let out = unsafe { out.range_mut(cols.clone()) };
        scratch::with_doubles(cols.len(), |sums| {
            sums.fill(0.0);
            for t in 0..x.rows() {
                add_products_of_row(&x.row(t)[cols.clone()], &y.row(t)[cols.clone()], sums);
            }
            for (out, &sum) in out.iter_mut().zip(&*sums) {
                *out = sum as f32;
            }
        });
    });
}
