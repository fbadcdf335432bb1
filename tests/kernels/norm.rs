//! Layer normalisation within its forward-error bound, for rows with a large common offset too.

use proptest::prelude::*;
use secateur::ops::norm::{cpu, reference};

use crate::common::{
    Matrix, Random, U, Wide, assert_gradient, assert_within, gamma, row_sum, same_bits_on_any_threads, wide,
};

/// First-order bounds of (x̂, rstd relative, mean) for a row, from the roundings of the three passes, a sum over the
/// row taking `k`.
pub fn forward_bounds(row: &[f64], eps: f64, mean: f64, rstd: f64, k: usize) -> (f64, f64, f64) {
    let n = row.len() as f64;
    let mean_error = gamma(k + 2) * row.iter().map(|x| x.abs()).sum::<f64>() / n;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    // The mean's error is common to all deviations, and deviations sum to 0: it enters the variance squared.
    let variance_error = gamma(k + 5) * variance + mean_error * mean_error * 1.01;
    let rstd_error = 0.5 * variance_error / (variance + eps) + 4.0 * U;
    (rstd * mean_error, rstd_error, mean_error)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn forward_and_backward_match_the_reference(seed: u64, rows in 0usize..150, n in 1usize..300, offset in prop_oneof![Just(0.0f32), Just(100.0)], accumulate: bool) {
        let random = &mut Random(seed);
        let mut x = Matrix::random(random, rows, n, 3, 2.0);
        for t in 0..rows {
            x.view_mut().row_mut(t).iter_mut().for_each(|x| *x += offset);
        }
        let dy = Matrix::random(random, rows, n, 1, 1.0);
        let (weight, bias) = (random.values(n, 2.0), random.values(n, 1.0));
        let (old, old_gamma, old_beta) = (Matrix::random(random, rows, n, 2, 1.0), random.values(n, 1.0), random.values(n, 1.0));
        let eps = 1e-5f32;

        let (wide_x, wide_dy, wide_weight, wide_bias) = (x.wide(), dy.wide(), wide(&weight), wide(&bias));
        let (mut exact_y, mut exact_mean, mut exact_rstd) = (Wide::poisoned(rows, n), vec![f64::NAN; rows], vec![f64::NAN; rows]);
        reference::layer_norm(wide_x.view(), &wide_weight, &wide_bias, f64::from(eps), exact_y.view_mut(), &mut exact_mean, &mut exact_rstd);
        let (mut y, mut mean, mut rstd) = (Matrix::poisoned(rows, n, 5), vec![f32::NAN; rows], vec![f32::NAN; rows]);
        cpu::layer_norm(x.view(), &weight, &bias, eps, y.view_mut(), &mut mean, &mut rstd);
        let bounds: Vec<_> = (0..rows).map(|t| forward_bounds(wide_x.view().row(t), f64::from(eps), exact_mean[t], exact_rstd[t], row_sum(n))).collect();
        assert_within("mean", &mean, &exact_mean, |t| bounds[t].2);
        assert_within("rstd", &rstd, &exact_rstd, |t| 1.01 * bounds[t].1 * exact_rstd[t]);
        y.assert_within("y", &exact_y, |t, j| {
            let normalised = ((wide_x.at(t, j) - exact_mean[t]) * exact_rstd[t]).abs();
            let error = bounds[t].0 + normalised * (bounds[t].1 + 3.0 * U);
            1.01 * (wide_weight[j].abs() * error + 2.0 * U * (wide_weight[j].abs() * normalised + wide_bias[j].abs()))
        });

        // The backward is given the same (rounded) statistics on both sides.
        let (wide_mean, wide_rstd) = (wide(&mean), wide(&rstd));
        let (mut exact_dx, mut exact_dgamma, mut exact_dbeta) = (old.wide(), wide(&old_gamma), wide(&old_beta));
        reference::layer_norm_backward(wide_dy.view(), wide_x.view(), &wide_weight, &wide_mean, &wide_rstd, exact_dx.view_mut(), accumulate, Some(&mut exact_dgamma), Some(&mut exact_dbeta));
        let run = || {
            let (mut dx, mut dgamma, mut dbeta) = (old.clone(), old_gamma.clone(), old_beta.clone());
            cpu::layer_norm_backward(dy.view(), x.view(), &weight, &mean, &rstd, dx.view_mut(), accumulate, Some(&mut dgamma), Some(&mut dbeta));
            (dx, dgamma, dbeta)
        };
        let (dx, dgamma, dbeta) = run();
        let normalised = |t: usize, j: usize| ((wide_x.at(t, j) - wide_mean[t]) * wide_rstd[t]).abs();
        let old_dx = old.wide();
        let k = row_sum(n) + 10;
        for t in 0..rows {
            let g: Vec<f64> = (0..n).map(|j| (wide_weight[j] * wide_dy.at(t, j)).abs()).collect();
            let mean_g = g.iter().sum::<f64>() / n as f64;
            let mean_gx = g.iter().enumerate().map(|(j, g)| g * normalised(t, j)).sum::<f64>() / n as f64;
            for j in 0..n {
                let size = wide_rstd[t] * (g[j] + mean_g + normalised(t, j) * mean_gx);
                let error = (f64::from(dx.view().at(t, j)) - exact_dx.at(t, j)).abs();
                prop_assert!(error <= gamma(k) * size + U * (old_dx.at(t, j).abs() + exact_dx.at(t, j).abs()), "dx[{}, {}]", t, j);
            }
        }
        // Sums over rows inside a chunk, over at most 64 chunks, and the old value.
        let sum = |j: usize, with_x: bool| (0..rows).map(|t| wide_dy.at(t, j).abs() * if with_x { normalised(t, j) } else { 1.0 }).sum::<f64>();
        assert_within("dgamma", &dgamma, &exact_dgamma, |j| gamma(rows + 70) * (sum(j, true) + f64::from(old_gamma[j]).abs()));
        assert_within("dbeta", &dbeta, &exact_dbeta, |j| gamma(rows + 70) * (sum(j, false) + f64::from(old_beta[j]).abs()));

        same_bits_on_any_threads(|| {
            let (dx, dgamma, dbeta) = run();
            let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            [dx.bits(), bits(dgamma), bits(dbeta)].concat()
        });
        // dx alone is the same dx.
        let mut alone = old.clone();
        cpu::layer_norm_backward(dy.view(), x.view(), &weight, &mean, &rstd, alone.view_mut(), accumulate, None, None);
        prop_assert_eq!(alone.bits(), dx.bits());
    }
}

#[test]
fn the_reference_backward_is_the_difference_quotient() {
    let (rows, n, eps) = (3, 7, 1e-3);
    let random = &mut Random(1);
    let [x, dy] = [2.0, 1.0].map(|scale| wide(&random.values(rows * n, scale)));
    let [weight, bias] = [wide(&random.values(n, 2.0)), wide(&random.values(n, 1.0))];
    let as_wide = |data: &[f64]| Wide { data: data.to_vec(), rows, cols: n };
    let forward = |x: &[f64], weight: &[f64], bias: &[f64]| {
        let (mut y, mut mean, mut rstd) = (Wide::zeros(rows, n), vec![0.0; rows], vec![0.0; rows]);
        reference::layer_norm(as_wide(x).view(), weight, bias, eps, y.view_mut(), &mut mean, &mut rstd);
        let loss: f64 = y.data.iter().zip(&dy).map(|(y, dy)| y * dy).sum();
        (loss, mean, rstd)
    };
    let (_, mean, rstd) = forward(&x, &weight, &bias);
    let (mut dx, mut dgamma, mut dbeta) = (Wide::zeros(rows, n), vec![0.0; n], vec![0.0; n]);
    reference::layer_norm_backward(
        as_wide(&dy).view(),
        as_wide(&x).view(),
        &weight,
        &mean,
        &rstd,
        dx.view_mut(),
        false,
        Some(&mut dgamma),
        Some(&mut dbeta),
    );
    assert_gradient("dx", &x, &dx.data, |x| forward(x, &weight, &bias).0);
    assert_gradient("dgamma", &weight, &dgamma, |weight| forward(&x, weight, &bias).0);
    assert_gradient("dbeta", &bias, &dbeta, |bias| forward(&x, &weight, bias).0);
}
