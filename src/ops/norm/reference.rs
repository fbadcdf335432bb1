//! The definitions, in f64.

use crate::ops::{View, ViewMut};

/// `y = γ·(x − mean)·rstd + β`; `x`, `y`: `[T, n]`, `gamma`, `beta`: `[n]`, `mean`, `rstd`: `[T]`, written.
pub fn layer_norm(
    x: View<f64>,
    gamma: &[f64],
    beta: &[f64],
    eps: f64,
    mut y: ViewMut<f64>,
    mean: &mut [f64],
    rstd: &mut [f64],
) {
    let n = x.cols() as f64;
    for t in 0..x.rows() {
        let row = x.row(t);
        mean[t] = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean[t]).powi(2)).sum::<f64>() / n;
        rstd[t] = 1.0 / (variance + eps).sqrt();
        for j in 0..x.cols() {
            y.row_mut(t)[j] = gamma[j] * (row[j] - mean[t]) * rstd[t] + beta[j];
        }
    }
}

/// The backward of [`layer_norm`]; `dx` is added to where `accumulate_dx`, `dgamma` and `dbeta` always.
pub fn layer_norm_backward(
    dy: View<f64>,
    x: View<f64>,
    gamma: &[f64],
    mean: &[f64],
    rstd: &[f64],
    mut dx: ViewMut<f64>,
    accumulate_dx: bool,
    mut dgamma: Option<&mut [f64]>,
    mut dbeta: Option<&mut [f64]>,
) {
    let n = x.cols();
    for t in 0..x.rows() {
        let normalised: Vec<f64> = x.row(t).iter().map(|x| (x - mean[t]) * rstd[t]).collect();
        let g: Vec<f64> = (0..n).map(|j| gamma[j] * dy.at(t, j)).collect();
        let mean_g = g.iter().sum::<f64>() / n as f64;
        let mean_gx = (0..n).map(|j| g[j] * normalised[j]).sum::<f64>() / n as f64;
        for j in 0..n {
            let gradient = rstd[t] * (g[j] - mean_g - normalised[j] * mean_gx);
            let into = &mut dx.row_mut(t)[j];
            *into = if accumulate_dx { *into + gradient } else { gradient };
            if let Some(dgamma) = &mut dgamma {
                dgamma[j] += dy.at(t, j) * normalised[j];
            }
            if let Some(dbeta) = &mut dbeta {
                dbeta[j] += dy.at(t, j);
            }
        }
    }
}
