//! The same in f32: rows in parallel, sums in f64.

use crate::ops::elementary::exp;
use crate::ops::gemm::{Epilogue, cpu::gemm};
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::{fold2, simd_fn};
use crate::ops::{View, ViewMut, scratch};

simd_fn! {
    /// exp(−|a − b|²·inverse_scale).
    fn similarity<I>(a: &[f32], b: &[f32], inverse_scale: f32) -> f32 {
        let square = |sum: f32, a: f32, b: f32| I::mul_add(a - b, a - b, sum);
        exp::<I>(-fold2(a, b, 0.0, square, |x, y| x + y) * inverse_scale)
    }
}

/// K `[n, n]` of the rows of `x` `[n, d]`.
pub fn gaussian_kernel(x: View<f32>, scale: f32, mut out: ViewMut<f32>) {
    let n = x.rows();
    assert_eq!((out.rows(), out.cols()), (n, n));
    {
        let shared = Shared::new(&mut out);
        parallel::rows(n, n * x.cols() / 2, |range| {
            for i in range {
                // SAFETY: ranges of rows are disjoint.
                let row = unsafe { shared.whole_row(i) };
                for j in i..n {
                    row[j] = similarity(x.row(i), x.row(j), 1.0 / scale);
                }
            }
        });
    }
    let ld = out.ld();
    let data = out.data_mut();
    for i in 0..n {
        for j in 0..i {
            data[i * ld + j] = data[j * ld + i];
        }
    }
}

/// One update of `c` `[n, n]` under `kernel` `[n, n]`; returns the relative growth of its sum.
pub fn multiplicative_update(kernel: View<f32>, mut c: ViewMut<f32>) -> f64 {
    let n = kernel.rows();
    assert_eq!((kernel.cols(), c.rows(), c.cols()), (n, n, n));
    let mut sums = vec![(0.0f64, 0.0f64); n];
    scratch::with(n * n, |product| {
        let mut product = ViewMut::dense(product, n, n);
        gemm(kernel, false, c.as_view(), false, &mut product, Epilogue::default());
        let (product, c, sums) = (product.as_view(), Shared::new(&mut c), Shared::slice(&mut sums));
        parallel::rows(n, n, |range| {
            for i in range {
                // SAFETY: ranges of rows are disjoint.
                let (row, sum) = unsafe { (c.whole_row(i), &mut sums.range_mut(i..i + 1)[0]) };
                for ((value, &k), &p) in row.iter_mut().zip(kernel.row(i)).zip(product.row(i)) {
                    sum.0 += f64::from(*value);
                    *value = if k == 0.0 { 0.0 } else { *value * (k / p).sqrt() };
                    sum.1 += f64::from(*value);
                }
            }
        });
    });
    let (before, after) = sums.iter().fold((0.0, 0.0), |(a, b), sum| (a + sum.0, b + sum.1));
    (after - before) / before
}
