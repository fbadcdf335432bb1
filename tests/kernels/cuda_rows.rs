//! The kernels that move, drop and sum rows, on a device against the f64 reference: dropout and bias, embed, gather,
//! reduce.

use proptest::prelude::*;
use secateur::launch::DropoutOperand;
use secateur::launch::ElementType::{self, Bf16, F32};
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey};
use secateur::ops::{bias, dropout, embed, gather, reduce};

use crate::common::{Matrix, Random, U, Wide, assert_within, gamma, wide};
use crate::device_rows::{columns, element, get, put, random_matrix, rounded, store};
use crate::rows::{indices, moments_error, named, products_error};
use crate::support::device::TestDevice;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

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
