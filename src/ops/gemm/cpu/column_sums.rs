//! Sums of the columns of a matrix: the gradient of a bias.

use crate::ops::simd::simd_fn;
use crate::ops::{View, parallel};

/// Columns whose sums are kept in registers together.
const STRIP: usize = 64;
/// Rows added up before their sum joins the total, so that the error grows with `CHUNK + m/CHUNK` instead of with m.
const CHUNK: usize = 64;

/// `out[j] = Σ_i x[i,j]`, added to what `out` holds if `accumulate`. Error at most γ_{CHUNK + m/CHUNK + 1}·Σ|x|; the bits do not
/// depend on the number of threads.
pub fn column_sums(x: View<f32>, out: &mut [f32], accumulate: bool) {
    assert_eq!(out.len(), x.cols(), "one sum for each column");
    let out = parallel::Shared::slice(out);
    parallel::columns(x.cols(), x.rows(), |columns| {
        // SAFETY: the ranges of columns are disjoint.
        let out = unsafe { out.range_mut(columns.clone()) };
        for (i, out) in out.chunks_mut(STRIP).enumerate() {
            strip(x.cols_at(columns.start + i * STRIP, out.len()), out, accumulate);
        }
    });
}

simd_fn! {
    /// Sums of at most [`STRIP`] columns.
    fn strip<I>(x: View<f32>, out: &mut [f32], accumulate: bool) {
        let mut total = [0.0f32; STRIP];
        for first in (0..x.rows()).step_by(CHUNK) {
            let mut chunk = [0.0f32; STRIP];
            for i in first..(first + CHUNK).min(x.rows()) {
                match <&[f32; STRIP]>::try_from(x.row(i)) {
                    Ok(row) => chunk.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value),
                    Err(_) => chunk.iter_mut().zip(x.row(i)).for_each(|(sum, &value)| *sum += value),
                }
            }
            total.iter_mut().zip(chunk).for_each(|(total, chunk)| *total += chunk);
        }
        for (out, total) in out.iter_mut().zip(total) {
            *out = if accumulate { *out + total } else { total };
        }
    }
}
