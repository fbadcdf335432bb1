//! Dropout in f32: sixteen counters, 64 columns, at a time.

use super::{AppliedDropout, philox};
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::simd_fn;
use crate::ops::{View, ViewMut};

/// Columns whose words are made together: 16 counters of four words.
const BLOCK: usize = 64;

simd_fn! {
    /// Multiplies `values[i]` by `scale` where the word of column `first_column + i` is at least
    /// `threshold`, else sets it to 0.
    fn scale_row_from<I>(counter: [u32; 3], key: [u32; 2], threshold: u32, scale: f32, first_column: usize, values: &mut [f32]) {
        let mut words = [0u32; BLOCK];
        let mut start = first_column - first_column % 4;
        let mut values = values;
        while !values.is_empty() {
            let first = (start / 4) as u32;
            for (i, four) in words.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&philox([first.wrapping_add(i as u32), counter[0], counter[1], counter[2]], key));
            }
            // Only the first block can begin inside a group of four.
            let skipped = first_column.saturating_sub(start);
            let (here, rest) = values.split_at_mut((BLOCK - skipped).min(values.len()));
            for (value, &word) in here.iter_mut().zip(&words[skipped..]) {
                *value = if word >= threshold { *value * scale } else { 0.0 };
            }
            values = rest;
            start += BLOCK;
        }
    }
}

/// See [`AppliedDropout::scale_row`].
pub fn scale_row(applied: &AppliedDropout, row: usize, first_column: usize, values: &mut [f32]) {
    match u32::try_from(applied.threshold()) {
        Ok(0) => {}
        Ok(threshold) => {
            let counter = [row as u32, applied.dropout.site, applied.key.draw];
            scale_row_from(counter, applied.key.key(), threshold, applied.scale(), first_column, values);
        }
        Err(_) => values.fill(0.0),
    }
}

/// `out = dropout(x)`, `[T, n]`; also its backward, with `dy` for `x`.
pub fn dropout(x: View<f32>, mut out: ViewMut<f32>, applied: AppliedDropout) {
    assert_eq!((x.rows(), x.cols()), (out.rows(), out.cols()));
    let out = Shared::new(&mut out);
    parallel::rows(x.rows(), x.cols(), |rows| {
        for t in rows {
            // SAFETY: ranges of rows are disjoint.
            let into = unsafe { out.whole_row(t) };
            into.copy_from_slice(x.row(t));
            scale_row(&applied, t, 0, into);
        }
    });
}
