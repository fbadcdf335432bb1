//! The formulas of this family in f64, one loop each.

use super::{Epilogue, Factors, Shape};
use crate::ops::{View, ViewMut, activation};

/// `C = epilogue(op(A)·op(B))`; see the module's formula.
pub fn gemm(
    a: View<f64>,
    transpose_a: bool,
    b: View<f64>,
    transpose_b: bool,
    c: &mut ViewMut<f64>,
    epilogue: Epilogue<f64>,
) {
    gemm_of(Factors::F32, a, transpose_a, b, transpose_b, c, epilogue);
}

/// [`gemm`] with rounded factors.
pub fn gemm_of(
    factors: Factors,
    a: View<f64>,
    transpose_a: bool,
    b: View<f64>,
    transpose_b: bool,
    c: &mut ViewMut<f64>,
    mut epilogue: Epilogue<f64>,
) {
    let Shape { m, n, k } = Shape::check(&a, transpose_a, &b, transpose_b, c, &epilogue);
    let factor = |x| factors.rounded(x);
    let live = |mask: Option<&[f64]>, index: usize| mask.is_none_or(|mask| mask[index] != 0.0);
    for i in 0..m {
        for j in 0..n {
            let (mut z, mut y) = (0.0, 0.0);
            if epilogue.compute_masked || live(epilogue.neuron_mask, j) {
                for p in (0..k).filter(|&p| live(epilogue.inner_mask, p)) {
                    let left = if transpose_a { a.at(p, i) } else { a.at(i, p) };
                    let right = if transpose_b { b.at(j, p) } else { b.at(p, j) };
                    z += factor(left) * factor(right);
                }
                z += epilogue.bias.map_or(0.0, |bias| bias[j]);
                z += if epilogue.accumulate { c.row(i)[j] } else { 0.0 };
                y = epilogue.activation.map_or(z, |kind| activation::reference::value(kind, z));
                y *= epilogue.neuron_mask.map_or(1.0, |mask| mask[j]);
            }
            if let Some(preactivation) = &mut epilogue.preactivation {
                preactivation.row_mut(i)[j] = z;
            }
            if let Some(dropout) = epilogue.dropout {
                let mut element = [y];
                dropout.scale_row_f64(i, j, &mut element);
                [y] = element;
            }
            c.row_mut(i)[j] = y + epilogue.residual.map_or(0.0, |residual| residual.at(i, j));
        }
    }
}

/// `out[j] = Σ_i x[i,j]`, added to what `out` holds if `accumulate`: the gradient of a bias.
pub fn column_sums(x: View<f64>, out: &mut [f64], accumulate: bool) {
    assert_eq!(out.len(), x.cols());
    for (j, sum) in out.iter_mut().enumerate() {
        let column: f64 = (0..x.rows()).map(|i| x.at(i, j)).sum();
        *sum = if accumulate { *sum + column } else { column };
    }
}
