//! LayerNorm's kernels on a device against the f64 reference, forward and backward, with the error bounds of the family.

use proptest::prelude::*;
use secateur::launch::ElementType::{self, Bf16, F32};
use secateur::ops::norm;

use crate::common::{Random, U, Wide, assert_within, gamma, wide};
use crate::device_rows::{columns, element, get, put, random_matrix, rounded, store};
use crate::norm::forward_bounds;
use crate::support::device::TestDevice;

/// Roundings of the sum of a row of n columns: a lane's values one by one, then five shuffles.
fn device_row_sum(n: usize) -> usize {
    n.div_ceil(32) + 12
}

fn check_layer_norm(
    seed: u64,
    element: ElementType,
    rows: usize,
    n: usize,
    offset: f32,
    accumulate: bool,
    wanted: [bool; 2],
) {
    let random = &mut Random(seed);
    let mut x = random_matrix(random, element, rows, n, 2.0);
    for t in 0..rows {
        x.view_mut().row_mut(t).iter_mut().for_each(|x| *x += offset);
    }
    store(element, &mut x);
    let (dy, old) =
        (random_matrix(random, element, rows, n, 1.0), random_matrix(random, element, rows, n, 1.0));
    let (weight, shift) = (random.values(n, 2.0), random.values(n, 1.0));
    let old_parameters = [random.values(n, 1.0), random.values(n, 1.0)];
    let eps = 1e-5f32;

    let (wide_x, wide_dy, wide_weight, wide_shift) = (x.wide(), dy.wide(), wide(&weight), wide(&shift));
    let (mut exact_y, mut exact_mean, mut exact_rstd) =
        (Wide::poisoned(rows, n), vec![f64::NAN; rows], vec![f64::NAN; rows]);
    norm::reference::layer_norm(
        wide_x.view(),
        &wide_weight,
        &wide_shift,
        f64::from(eps),
        exact_y.view_mut(),
        &mut exact_mean,
        &mut exact_rstd,
    );

    let mut device = TestDevice::new();
    let (on_x, gamma_at, beta_at) =
        (put(&mut device, &x, element), device.floats(&weight), device.floats(&shift));
    let (on_y, on_mean, on_rstd) =
        (device.output(rows, n, element), device.output_floats(rows), device.output_floats(rows));
    device.run(|queue| norm::cuda::layer_norm(queue, on_x, gamma_at, beta_at, eps, on_y, on_mean, on_rstd));
    let (mean, rstd) = (device.read_floats(on_mean, rows), device.read_floats(on_rstd, rows));
    let bounds: Vec<_> = (0..rows)
        .map(|t| {
            forward_bounds(
                wide_x.view().row(t),
                f64::from(eps),
                exact_mean[t],
                exact_rstd[t],
                device_row_sum(n),
            )
        })
        .collect();
    assert_within("mean", &mean, &exact_mean, |t| bounds[t].2);
    assert_within("rstd", &rstd, &exact_rstd, |t| 1.01 * bounds[t].1 * exact_rstd[t]);
    get(&device, on_y).assert_within("y", &exact_y, |t, j| {
        let normalised = ((wide_x.at(t, j) - exact_mean[t]) * exact_rstd[t]).abs();
        let error = bounds[t].0 + normalised * (bounds[t].1 + 3.0 * U);
        let bound = 1.01
            * (wide_weight[j].abs() * error
                + 2.0 * U * (wide_weight[j].abs() * normalised + wide_shift[j].abs()));
        rounded(element, bound, exact_y.at(t, j))
    });

    // The backward is given the same (rounded) statistics on both sides.
    let (wide_mean, wide_rstd) = (wide(&mean), wide(&rstd));
    let (mut exact_dx, mut exact_dgamma, mut exact_dbeta) =
        (old.wide(), wide(&old_parameters[0]), wide(&old_parameters[1]));
    norm::reference::layer_norm_backward(
        wide_dy.view(),
        wide_x.view(),
        &wide_weight,
        &wide_mean,
        &wide_rstd,
        exact_dx.view_mut(),
        accumulate,
        Some(&mut exact_dgamma),
        Some(&mut exact_dbeta),
    );
    let backward = |order: u64, wanted: [bool; 2]| {
        let mut device = TestDevice::with_order(order);
        let (on_dy, on_x, gamma_at) =
            (put(&mut device, &dy, element), put(&mut device, &x, element), device.floats(&weight));
        let (on_mean, on_rstd) = (device.floats(&mean), device.floats(&rstd));
        let on_dx =
            if accumulate { put(&mut device, &old, element) } else { device.output(rows, n, element) };
        let at = [0, 1].map(|i| wanted[i].then(|| device.floats(&old_parameters[i])));
        device.run(|queue| {
            norm::cuda::layer_norm_backward(
                queue, on_dy, on_x, gamma_at, on_mean, on_rstd, on_dx, accumulate, at[0], at[1],
            )
        });
        let parameters = at.map(|at| at.map(|at| device.read_floats(at, n)));
        (get(&device, on_dx), parameters)
    };
    let (dx, parameters) = backward(1, wanted);
    let [dgamma, dbeta] = parameters.clone();
    let normalised = |t: usize, j: usize| ((wide_x.at(t, j) - wide_mean[t]) * wide_rstd[t]).abs();
    let old_dx = old.wide();
    let sizes: Vec<(f64, f64)> = (0..rows)
        .map(|t| {
            let g = |j: usize| (wide_weight[j] * wide_dy.at(t, j)).abs();
            let of = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
            (of(&g), of(&|j| g(j) * normalised(t, j)))
        })
        .collect();
    dx.assert_within("dx", &exact_dx, |t, j| {
        let size = wide_rstd[t]
            * ((wide_weight[j] * wide_dy.at(t, j)).abs() + sizes[t].0 + normalised(t, j) * sizes[t].1);
        let bound =
            gamma(device_row_sum(n) + 10) * size + U * (old_dx.at(t, j).abs() + exact_dx.at(t, j).abs());
        rounded(element, bound, exact_dx.at(t, j))
    });
    // Rows of a warp, warps, blocks by every 16th, and the old value.
    let sum = |j: usize, with_x: bool| {
        (0..rows).map(|t| wide_dy.at(t, j).abs() * if with_x { normalised(t, j) } else { 1.0 }).sum::<f64>()
    };
    for (i, (name, ours, exact)) in
        [("dgamma", dgamma, exact_dgamma), ("dbeta", dbeta, exact_dbeta)].into_iter().enumerate()
    {
        assert_eq!(ours.is_some(), wanted[i]);
        if let Some(ours) = ours {
            assert_within(name, &ours, &exact, |j| {
                gamma(rows + 70) * (sum(j, i == 0) + f64::from(old_parameters[i][j]).abs())
            });
        }
    }
    // Another order of blocks and warps gives the same bits, and dx is the same whatever else is wanted.
    let bits = |v: &[Option<Vec<f32>>; 2]| {
        v.clone().map(|v| v.map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>()))
    };
    let (again, parameters_again) = backward(2, wanted);
    assert_eq!((again.bits(), bits(&parameters_again)), (dx.bits(), bits(&parameters)));
    assert_eq!(backward(1, [!wanted[0], wanted[1]]).0.bits(), dx.bits());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn layer_norm_matches_the_reference(seed: u64, element in element(), rows in 0usize..40, n in columns(), offset in prop_oneof![Just(0.0f32), Just(100.0)], accumulate: bool, wanted: [bool; 2]) {
        check_layer_norm(seed, element, rows, n, offset, accumulate, wanted);
    }
}

#[test]
fn layer_norm_of_many_rows_matches_the_reference() {
    // More rows than blocks of 16.
    check_layer_norm(1, F32, 384 * 16 + 5, 8, 0.0, false, [true, true]);
    check_layer_norm(2, Bf16, 384 * 16 + 400, 5, 0.0, true, [true, true]);
}
