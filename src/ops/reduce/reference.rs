//! The definitions, in f64.

use crate::ops::{View, ViewMut};

/// `out[g]` = mean of `|x|` over rows and the columns of group g; `x`: `[T, n]`, `out`: `[n / group]`.
pub fn mean_absolute(x: View<f64>, group: usize, out: &mut [f64]) {
    for g in 0..out.len() {
        let columns = g * group..(g + 1) * group;
        let sum: f64 = (0..x.rows()).flat_map(|t| &x.row(t)[columns.clone()]).map(|x| x.abs()).sum();
        out[g] = sum / (x.rows() * group).max(1) as f64;
    }
}

/// `out` `[3, n]` = Σ x, Σ |x|, Σ x² over the rows of `x` `[T, n]`.
pub fn column_moments(x: View<f64>, mut out: ViewMut<f64>) {
    assert_eq!((out.rows(), out.cols()), (3, x.cols()));
    let moments: [fn(f64) -> f64; 3] = [|x| x, f64::abs, |x| x * x];
    for (m, moment) in moments.iter().enumerate() {
        for j in 0..x.cols() {
            out.row_mut(m)[j] = (0..x.rows()).map(|t| moment(x.at(t, j))).sum();
        }
    }
}

/// `out[j]` = Σ_t x[t, j]·y[t, j]; `x`, `y`: `[T, n]`, `out`: `[n]`.
pub fn column_products(x: View<f64>, y: View<f64>, out: &mut [f64]) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = (0..x.rows()).map(|t| x.at(t, j) * y.at(t, j)).sum();
    }
}
