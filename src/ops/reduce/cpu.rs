//! Column statistics in f32; threads share the columns out.

use crate::ops::parallel::{self, Shared};
use crate::ops::simd::simd_fn;
use crate::ops::{View, scratch};

simd_fn! {
    fn add_absolute_row<I>(x: &[f32], sum: &mut [f32]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x.abs();
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
