//! The f32 version: one pass, rows in parallel.

use crate::ops::dropout::AppliedDropout;
use crate::ops::parallel::{self, Shared};
use crate::ops::{View, ViewMut};

/// `y = dropout(bias) + residual`; see the [module](super).
pub fn bias_residual(
    bias: &[f32],
    dropout: Option<AppliedDropout>,
    residual: View<f32>,
    mut y: ViewMut<f32>,
) {
    assert_eq!((residual.rows(), residual.cols(), bias.len()), (y.rows(), y.cols(), y.cols()));
    let (rows, cols) = (y.rows(), y.cols());
    let y = Shared::new(&mut y);
    parallel::rows(rows, cols, |range| {
        for t in range {
            // SAFETY: ranges of rows are disjoint.
            let row = unsafe { y.whole_row(t) };
            row.copy_from_slice(bias);
            if let Some(dropout) = dropout {
                dropout.scale_row(t, 0, row);
            }
            for (value, residual) in row.iter_mut().zip(residual.row(t)) {
                *value += residual;
            }
        }
    });
}
