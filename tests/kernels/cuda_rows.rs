//! The row-wise kernels on a device (emulated, or a GPU) against the f64 reference, with the error bounds of their
//! families.
//!
//! Inputs in bf16 are exact in f64, arithmetic is f32, and a result is rounded to bf16 once: its bound is the f32 bound
//! and half an ulp of bf16. Every matrix has unwritten gaps between its rows, which nothing may read or write.

use proptest::prelude::*;
use secateur::launch::ElementType::{self, Bf16, F32};
use secateur::launch::{DropoutOperand, Matrix as DeviceMatrix};
use secateur::ops::activation::Activation;
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey};
use secateur::ops::{activation, bias, dropout, embed, gather, norm, reduce};

use crate::activation::{KINDS, derivative_bound, value_bound, whole_range};
use crate::common::{Matrix, Random, U, Wide, assert_within, gamma, wide};
use crate::norm::forward_bounds;
use crate::rows::{indices, moments_error, named, products_error};
use crate::support::device::TestDevice;

const ELEMENTS: [ElementType; 2] = [F32, Bf16];

/// Half an ulp of the element type beyond f32, relative: what storing a result costs.
fn stored(element: ElementType) -> f64 {
    match element {
        F32 => 0.0,
        Bf16 => 1.0 / 256.0,
    }
}

/// The bound of a result that is within `bound` of `exact` before it is stored.
fn rounded(element: ElementType, bound: f64, exact: f64) -> f64 {
    bound + stored(element) * (exact.abs() + bound)
}

/// A random matrix of values that the element type holds exactly.
fn random_matrix(random: &mut Random, element: ElementType, rows: usize, cols: usize, scale: f32) -> Matrix {
    let mut matrix = Matrix::random(random, rows, cols, 0, scale);
    store(element, &mut matrix);
    matrix
}

/// Rounds every value to the element type.
fn store(element: ElementType, matrix: &mut Matrix) {
    if element == Bf16 {
        for t in 0..matrix.view().rows() {
            matrix.view_mut().row_mut(t).iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
    }
}

/// Copies a matrix to the device.
fn put(device: &mut TestDevice, matrix: &Matrix, element: ElementType) -> DeviceMatrix {
    let view = matrix.view();
    let values: Vec<f32> = (0..view.rows()).flat_map(|t| view.row(t).to_vec()).collect();
    device.matrix(view.rows(), view.cols(), &values, element)
}

/// Copies a matrix from the device.
fn get(device: &TestDevice, matrix: DeviceMatrix) -> Matrix {
    let mut out = Matrix::poisoned(matrix.rows, matrix.cols, 0);
    for (t, row) in device.read(&matrix).chunks(matrix.cols).enumerate() {
        out.view_mut().row_mut(t).copy_from_slice(row);
    }
    out
}

/// Column counts around the boundaries of the kernels: pieces, warps, registers of a row.
fn columns() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1usize..300, 1 => prop::sample::select(vec![8, 128, 255, 256, 257, 1023, 1024, 1025, 1300])]
}

fn element() -> impl Strategy<Value = ElementType> {
    prop::sample::select(&ELEMENTS[..])
}

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

#[test]
fn activations_stay_within_their_stated_error_over_the_whole_range() {
    let points = whole_range();
    let n = points.len();
    let (mut pre, mut ones) = (Matrix::poisoned(1, n, 0), Matrix::poisoned(1, n, 0));
    pre.view_mut().row_mut(0).copy_from_slice(&points);
    ones.view_mut().row_mut(0).fill(1.0);
    for kind in KINDS {
        let mut device = TestDevice::new();
        let (on_pre, on_ones) = (put(&mut device, &pre, F32), put(&mut device, &ones, F32));
        let (on_dx, on_dmask, cu_seqlens) =
            (device.output(1, n, F32), device.output(1, n, F32), device.ints(&[0, 1]));
        // With dy = 1 and one token, dx is the derivative and dmask the value.
        device.run(|queue| {
            activation::cuda::backward(
                queue,
                kind,
                on_ones,
                on_pre,
                None,
                on_dx,
                Some((cu_seqlens, on_dmask)),
            )
        });
        let (derivatives, values) = (get(&device, on_dx), get(&device, on_dmask));
        for (j, &x) in points.iter().enumerate() {
            let x = f64::from(x);
            let (value, derivative) =
                (activation::reference::value(kind, x), activation::reference::derivative(kind, x));
            let ours = f64::from(values.view().at(0, j));
            let error = (ours - value).abs();
            // Below the normal range results may become 0; x·Φ(x) does from x = −13.2 on.
            let bound = value_bound(kind, x) + 16.0 * f64::from(f32::MIN_POSITIVE);
            assert!(
                error <= bound,
                "{kind:?}({x}) is {ours}, should be {value}: {} ulp",
                error / value.abs() / U / 2.0
            );
            let ours = f64::from(derivatives.view().at(0, j));
            assert!(
                (ours - derivative).abs() <= derivative_bound(kind, x),
                "{kind:?}'({x}) is {ours}, should be {derivative}"
            );
        }
    }
}

#[test]
fn not_a_number_stays_so_and_infinities_have_their_limits_on_a_device() {
    let points = [f32::NAN, f32::INFINITY, -1e30, 1e30];
    let (mut pre, mut ones) = (Matrix::poisoned(1, 4, 0), Matrix::poisoned(1, 4, 0));
    pre.view_mut().row_mut(0).copy_from_slice(&points);
    ones.view_mut().row_mut(0).fill(1.0);
    for kind in KINDS {
        let mut device = TestDevice::new();
        let (on_pre, on_ones) = (put(&mut device, &pre, F32), put(&mut device, &ones, F32));
        let (on_dx, on_dmask, cu_seqlens) =
            (device.output(1, 4, F32), device.output(1, 4, F32), device.ints(&[0, 1]));
        device.run(|queue| {
            activation::cuda::backward(
                queue,
                kind,
                on_ones,
                on_pre,
                None,
                on_dx,
                Some((cu_seqlens, on_dmask)),
            )
        });
        let values = get(&device, on_dmask);
        let y = values.view().row(0);
        assert!(y[0].is_nan(), "{kind:?}");
        assert_eq!(y[1], if kind == Activation::Tanh { 1.0 } else { f32::INFINITY }, "{kind:?}");
        assert_eq!(y[2], if kind == Activation::Tanh { -1.0 } else { 0.0 }, "{kind:?}");
        assert_eq!(y[3], if kind == Activation::Tanh { 1.0 } else { 1e30 }, "{kind:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn activation_backward_with_masks_matches_the_reference(seed: u64, element in element(), n in columns(), sequences in 1usize..5, masked: bool, with_dmask: bool) {
        let random = &mut Random(seed);
        let kind = KINDS[random.below(4)];
        let cu_seqlens = random.cu_seqlens(sequences, 20);
        let rows = cu_seqlens[sequences] as usize;
        let (x, dy) = (random_matrix(random, element, rows, n, 5.0), random_matrix(random, element, rows, n, 2.0));
        let mask = masked.then(|| random.mask(n));
        let wide_mask = mask.as_ref().map(|mask| wide(mask));
        let (wide_x, wide_dy) = (x.wide(), dy.wide());
        let (mut exact_dx, mut exact_dmask) = (Wide::poisoned(rows, n), Wide::poisoned(sequences, n));
        activation::reference::backward(kind, wide_dy.view(), wide_x.view(), wide_mask.as_deref(), exact_dx.view_mut(), false, Some((&cu_seqlens, exact_dmask.view_mut())));

        let mut device = TestDevice::new();
        let (on_x, on_dy, on_dx) = (put(&mut device, &x, element), put(&mut device, &dy, element), device.output(rows, n, element));
        let on_mask = mask.as_ref().map(|mask| device.floats(mask));
        let on_dmask = with_dmask.then(|| (device.ints(&cu_seqlens), device.output(sequences, n, F32)));
        device.run(|queue| activation::cuda::backward(queue, kind, on_dy, on_x, on_mask, on_dx, on_dmask));
        let mask_at = |j: usize| wide_mask.as_ref().map_or(1.0, |mask| mask[j].abs());
        get(&device, on_dx).assert_within("dx", &exact_dx, |t, j| {
            let scale = mask_at(j) * wide_dy.at(t, j).abs();
            rounded(element, scale * (derivative_bound(kind, wide_x.at(t, j)) + 6.0 * U) + 2.0 * U * exact_dx.at(t, j).abs(), exact_dx.at(t, j))
        });
        if let Some((_, on_dmask)) = on_dmask {
            get(&device, on_dmask).assert_within("dmask", &exact_dmask, |b, j| {
                let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
                tokens.clone().map(|t| {
                    let term = (wide_dy.at(t, j) * activation::reference::value(kind, wide_x.at(t, j))).abs();
                    wide_dy.at(t, j).abs() * value_bound(kind, wide_x.at(t, j)) + gamma(tokens.len() + 8) * term
                }).sum::<f64>() * 1.001
            });
        }
    }

    #[test]
    fn dropout_drops_what_the_definition_drops(seed: u64, draw: u32, site in 0u32..1000, element in element(), rows in 0usize..30, n in columns(),
        probability in prop_oneof![Just(0.0f32), Just(0.1), Just(1.0), 0.0f32..1.0], with_key: bool) {
        let random = &mut Random(seed);
        let layer = Dropout { probability, site };
        let applied = AppliedDropout { dropout: layer, key: DropoutKey { seed, draw } };
        let x = random_matrix(random, element, rows, n, 1.0);
        let values = random.values(n, 1.0);

        let mut device = TestDevice::new();
        let key = device.ints(&[seed as i32, (seed >> 32) as i32, draw as i32]);
        let operand = DropoutOperand::new(layer, key);
        let (on_x, on_bias) = (put(&mut device, &x, element), device.floats(&values));
        let (on_out, on_y) = (device.output(rows, n, element), device.output(rows, n, element));
        device.run(|queue| {
            dropout::cuda::dropout(queue, on_x, on_out, operand);
            bias::cuda::bias_residual(queue, on_bias, with_key.then_some(operand), on_x, on_y);
        });
        // The same elements, multiplied by the same f32.
        let mut expected = x.clone();
        dropout::cpu::dropout(x.view(), expected.view_mut(), applied);
        store(element, &mut expected);
        prop_assert_eq!(get(&device, on_out).bits(), expected.bits());
        let mut exact = Wide::poisoned(rows, n);
        bias::reference::bias_residual(&wide(&values), with_key.then_some(applied), x.wide().view(), exact.view_mut());
        get(&device, on_y).assert_within("y", &exact, |t, j| {
            let term = exact.at(t, j).abs() + 2.0 * f64::from(x.view().at(t, j)).abs();
            rounded(element, 2.0 * U * term, exact.at(t, j))
        });
    }

    #[test]
    fn embeddings_match_the_reference(seed: u64, element in element(), tokens in 0usize..100, d in columns(), with_position: bool, with_types: bool) {
        let random = &mut Random(seed);
        let sizes = [50, 20, 2];
        let tables = sizes.map(|rows| Matrix::random(random, rows, d, 0, 1.0));
        let lists = sizes.map(|rows| indices(random, tokens, rows));
        let present = [true, with_position, with_types];
        let mut device = TestDevice::new();
        let at = [0, 1, 2].map(|i| device.ints(&lists[i]));
        let types = with_types.then_some(at[2]);

        let wide_tables: Vec<Wide> = tables.iter().map(Matrix::wide).collect();
        let mut exact = Wide::poisoned(tokens, d);
        embed::reference::embed(&lists[0], &lists[1], with_types.then_some(&lists[2][..]), wide_tables[0].view(), with_position.then(|| wide_tables[1].view()), with_types.then(|| wide_tables[2].view()), exact.view_mut());
        let on_tables = [0, 1, 2].map(|i| present[i].then(|| put(&mut device, &tables[i], F32)));
        let on_out = device.output(tokens, d, element);
        device.run(|queue| embed::cuda::embed(queue, at[0], at[1], types, on_tables[0].unwrap(), on_tables[1], on_tables[2], on_out));
        // Three terms of at most 1.
        get(&device, on_out).assert_within("out", &exact, |t, j| rounded(element, 3.0 * gamma(2), exact.at(t, j)));

        let dy = random_matrix(random, element, tokens, d, 1.0);
        let mut exact: Vec<Wide> = tables.iter().map(Matrix::wide).collect();
        let [dword, dposition, dtypes] = &mut exact[..] else { unreachable!() };
        embed::reference::embed_backward(dy.wide().view(), &lists[0], &lists[1], with_types.then_some(&lists[2][..]), Some(dword.view_mut()), with_position.then(|| dposition.view_mut()), with_types.then(|| dtypes.view_mut()));
        let on_dy = put(&mut device, &dy, element);
        device.run(|queue| embed::cuda::embed_backward(queue, on_dy, at[0], at[1], types, on_tables[0], on_tables[1], on_tables[2]));
        for i in 0..3 {
            let Some(table) = on_tables[i] else { continue };
            get(&device, table).assert_within("table gradient", &exact[i], |row, j| {
                let terms = named(&lists[i], row);
                let size: f64 = terms.iter().map(|&t| f64::from(dy.view().at(t, j)).abs()).sum();
                gamma(terms.len() + 1) * (size + f64::from(tables[i].view().at(row, j)).abs())
            });
        }
    }

    #[test]
    fn rows_are_gathered_and_scattered(seed: u64, element in element(), rows in 1usize..30, picked in 0usize..200, n in columns(), same: bool) {
        let random = &mut Random(seed);
        let x = random_matrix(random, element, rows, n, 1.0);
        // Half of the lists name mostly one row, as [CLS] and token types do.
        let mut list = indices(random, picked, rows);
        if same {
            list.iter_mut().filter(|_| random.below(8) > 0).for_each(|row| *row = rows as i32 / 2);
        }
        check_gather_and_scatter(element, &x, &list);
    }

    #[test]
    fn whole_matrices_are_added_and_filled(seed: u64, element in element(), rows in 0usize..40, n in columns()) {
        let random = &mut Random(seed);
        let (x, y) = (random_matrix(random, element, rows, n, 1.0), random_matrix(random, element, rows, n, 1.0));
        let mut device = TestDevice::new();
        let (on_x, on_y) = (put(&mut device, &x, element), put(&mut device, &y, element));
        device.run(|queue| gather::cuda::add_in_place(queue, on_y, on_x));
        let mut exact = y.wide();
        gather::reference::add_in_place(exact.view_mut(), x.wide().view());
        get(&device, on_y).assert_within("sum", &exact, |t, j| rounded(element, U * exact.at(t, j).abs(), exact.at(t, j)));
        device.run(|queue| gather::cuda::fill(queue, on_y, 1.5));
        gather::reference::fill(exact.view_mut(), 1.5);
        get(&device, on_y).assert_within("fill", &exact, |_, _| 0.0);
    }

    #[test]
    fn mean_absolute_values_match_the_reference(seed: u64, element in element(), rows in 0usize..150, groups in 1usize..20, group in 1usize..20) {
        check_mean_absolute(seed, element, rows, groups, group);
    }

    #[test]
    fn column_moments_match_the_reference(seed: u64, element in element(), rows in 0usize..150, n in 1usize..300) {
        check_column_moments(seed, element, rows, n);
    }

    #[test]
    fn column_products_match_the_reference(seed: u64, element in element(), rows in 0usize..150, n in 1usize..300) {
        check_column_products(seed, element, rows, n);
    }
}

fn check_gather_and_scatter(element: ElementType, x: &Matrix, list: &[i32]) {
    let (n, picked) = (x.view().cols(), list.len());
    let mut device = TestDevice::new();
    let (on_x, on_list, on_y) =
        (put(&mut device, x, element), device.ints(list), device.output(picked, n, element));
    device.run(|queue| gather::cuda::gather_rows(queue, on_x, on_list, on_y));
    let mut exact = Wide::poisoned(picked, n);
    gather::reference::gather_rows(x.wide().view(), list, exact.view_mut());
    let y = get(&device, on_y);
    y.assert_within("y", &exact, |_, _| 0.0);

    let mut exact = x.wide();
    gather::reference::scatter_rows_add(y.wide().view(), list, exact.view_mut());
    let scatter = |order| {
        let mut device = TestDevice::with_order(order);
        let (on_y, on_dx, on_list) =
            (put(&mut device, &y, element), put(&mut device, x, element), device.ints(list));
        device.run(|queue| gather::cuda::scatter_rows_add(queue, on_y, on_list, on_dx));
        get(&device, on_dx)
    };
    let dx = scatter(1);
    dx.assert_within("dx", &exact, |row, j| {
        // All terms are equal to what was there.
        let terms = named(list, row).len();
        let bound = gamma(terms + 1) * (terms + 1) as f64 * f64::from(x.view().at(row, j)).abs();
        rounded(element, bound, exact.at(row, j))
    });
    // Another order of blocks and warps gives the same bits.
    assert_eq!(scatter(2).bits(), dx.bits());
}

#[test]
fn one_row_named_a_thousand_times_is_summed_in_parallel() {
    let x = random_matrix(&mut Random(5), Bf16, 3, 9, 1.0);
    check_gather_and_scatter(Bf16, &x, &[1; 1000]);
    let mixed: Vec<i32> = (0..1500).map(|i| if i % 100 == 0 { 0 } else { 2 }).collect();
    check_gather_and_scatter(F32, &random_matrix(&mut Random(6), F32, 3, 5, 1.0), &mixed);
}

fn check_mean_absolute(seed: u64, element: ElementType, rows: usize, groups: usize, group: usize) {
    let x = random_matrix(&mut Random(seed), element, rows, groups * group, 3.0);
    let mut exact = vec![f64::NAN; groups];
    reduce::reference::mean_absolute(x.wide().view(), group, &mut exact);
    let mut device = TestDevice::new();
    let (on_x, on_out) = (put(&mut device, &x, element), device.output_floats(groups));
    device.run(|queue| reduce::cuda::mean_absolute(queue, on_x, group, on_out));
    assert_within("mean", &device.read_floats(on_out, groups), &exact, |g| {
        gamma(rows + group + 16) * exact[g]
    });
}

#[test]
fn mean_absolute_values_of_many_rows_match_the_reference() {
    // More rows than blocks of 64.
    check_mean_absolute(9, F32, 128 * 64 + 100, 3, 2);
}

fn check_column_moments(seed: u64, element: ElementType, rows: usize, n: usize) {
    let x = random_matrix(&mut Random(seed), element, rows, n, 3.0);
    let mut exact = Wide::poisoned(3, n);
    reduce::reference::column_moments(x.wide().view(), exact.view_mut());
    let mut device = TestDevice::new();
    let (on_x, on_out) = (put(&mut device, &x, element), device.output(3, n, F32));
    device.run(|queue| reduce::cuda::column_moments(queue, on_x, on_out));
    get(&device, on_out).assert_within("moments", &exact, |moment, j| moments_error(rows, &exact, moment, j));
}

fn check_column_products(seed: u64, element: ElementType, rows: usize, n: usize) {
    let random = &mut Random(seed);
    let (x, y) = (random_matrix(random, element, rows, n, 3.0), random_matrix(random, element, rows, n, 2.0));
    let (wide_x, wide_y) = (x.wide(), y.wide());
    let mut exact = vec![f64::NAN; n];
    reduce::reference::column_products(wide_x.view(), wide_y.view(), &mut exact);
    let mut device = TestDevice::new();
    let (on_x, on_y) = (put(&mut device, &x, element), put(&mut device, &y, element));
    // Squares: both factors are the same matrix.
    for (on_y, other) in [(on_y, &wide_y), (on_x, &wide_x)] {
        reduce::reference::column_products(wide_x.view(), other.view(), &mut exact);
        let on_out = device.output_floats(n);
        device.run(|queue| reduce::cuda::column_products(queue, on_x, on_y, on_out));
        assert_within("products", &device.read_floats(on_out, n), &exact, |j| {
            products_error(&wide_x, other, exact[j], j)
        });
    }
}

#[test]
fn column_products_of_many_rows_match_the_reference() {
    // More rows than blocks of 64.
    check_column_products(11, F32, 128 * 64 + 100, 5);
}

#[test]
fn column_moments_of_many_rows_match_the_reference() {
    // More rows than blocks of 64.
    check_column_moments(10, F32, 128 * 64 + 100, 5);
}
