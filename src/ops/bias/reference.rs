//! The formula in f64.

use crate::ops::dropout::AppliedDropout;
use crate::ops::{View, ViewMut};

/// `y = dropout(bias) + residual`; see the [module](super).
pub fn bias_residual(
    bias: &[f64],
    dropout: Option<AppliedDropout>,
    residual: View<f64>,
    mut y: ViewMut<f64>,
) {
    for t in 0..y.rows() {
        let row = y.row_mut(t);
        row.copy_from_slice(bias);
        if let Some(dropout) = dropout {
            dropout.scale_row_f64(t, 0, row);
        }
        for (value, residual) in row.iter_mut().zip(residual.row(t)) {
            *value += residual;
        }
    }
}
