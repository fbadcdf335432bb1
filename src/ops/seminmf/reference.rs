//! The definitions, element by element in f64.

use crate::ops::{View, ViewMut};

/// K `[n, n]` of the rows of `x` `[n, d]`.
pub fn gaussian_kernel(x: View<f64>, scale: f64, mut out: ViewMut<f64>) {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.rows()));
    for i in 0..x.rows() {
        for j in 0..x.rows() {
            let distance: f64 = x.row(i).iter().zip(x.row(j)).map(|(a, b)| (a - b) * (a - b)).sum();
            out.row_mut(i)[j] = (-distance / scale).exp();
        }
    }
}

/// The first update, from 1/n everywhere: writes `c` `[n, n]`; returns the relative growth of its sum.
pub fn first_update(kernel: View<f64>, mut c: ViewMut<f64>) -> f64 {
    let start = 1.0 / kernel.rows() as f64;
    (0..kernel.rows()).for_each(|i| c.row_mut(i).fill(start));
    multiplicative_update(kernel, c)
}

/// One update of `c` `[n, n]` under `kernel` `[n, n]`; returns the relative growth of its sum.
pub fn multiplicative_update(kernel: View<f64>, mut c: ViewMut<f64>) -> f64 {
    let n = kernel.rows();
    assert_eq!((kernel.cols(), c.rows(), c.cols()), (n, n, n));
    let old: Vec<f64> = (0..n).flat_map(|i| c.row(i).to_vec()).collect();
    for i in 0..n {
        for j in 0..n {
            let product: f64 = (0..n).map(|k| kernel.at(i, k) * old[k * n + j]).sum();
            let k = kernel.at(i, j);
            c.row_mut(i)[j] = if k == 0.0 { 0.0 } else { old[i * n + j] * (k / product).sqrt() };
        }
    }
    let before: f64 = old.iter().sum();
    let after: f64 = (0..n).flat_map(|i| c.row(i)).sum();
    (after - before) / before
}
