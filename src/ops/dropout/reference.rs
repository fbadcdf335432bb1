//! Dropout one element at a time, in f64.

use super::AppliedDropout;
use crate::ops::{View, ViewMut};

/// See [`AppliedDropout::scale_row_f64`].
pub fn scale_row(applied: &AppliedDropout, row: usize, first_column: usize, values: &mut [f64]) {
    if applied.threshold() == 0 {
        return;
    }
    for (i, value) in values.iter_mut().enumerate() {
        let keep = applied.keeps(row, first_column + i);
        *value = if keep { *value * f64::from(applied.scale()) } else { 0.0 };
    }
}

/// `out = dropout(x)`, `[T, n]`; also its backward, with `dy` for `x`.
pub fn dropout(x: View<f64>, mut out: ViewMut<f64>, applied: AppliedDropout) {
    for t in 0..x.rows() {
        out.row_mut(t).copy_from_slice(x.row(t));
        scale_row(&applied, t, 0, out.row_mut(t));
    }
}
