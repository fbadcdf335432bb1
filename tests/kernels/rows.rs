//! The families that move and sum rows: embed, gather and reduce.

use proptest::prelude::*;
use secateur::ops::{embed, gather, reduce};

use crate::common::{Matrix, Random, U, Wide, assert_within, gamma, same_bits_on_any_threads, wide};

pub fn indices(random: &mut Random, count: usize, limit: usize) -> Vec<i32> {
    (0..count).map(|_| random.below(limit) as i32).collect()
}

/// How often each row is named, and the sum of |dy| over those that name it: the terms of its error bound.
pub fn named(indices: &[i32], row: usize) -> Vec<usize> {
    (0..indices.len()).filter(|&i| indices[i] as usize == row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn embeddings_match_the_reference(seed: u64, tokens in 0usize..200, d in 1usize..200, with_position: bool, with_types: bool) {
        let random = &mut Random(seed);
        let (word, position, types_table) = (Matrix::random(random, 50, d, 1, 1.0), Matrix::random(random, 20, d, 0, 1.0), Matrix::random(random, 2, d, 3, 1.0));
        let (ids, positions, types) = (indices(random, tokens, 50), indices(random, tokens, 20), indices(random, tokens, 2));
        let types = with_types.then_some(&types[..]);
        let mut exact = Wide::poisoned(tokens, d);
        let (wide_word, wide_position, wide_types) = (word.wide(), position.wide(), types_table.wide());
        embed::reference::embed(&ids, &positions, types, wide_word.view(), with_position.then(|| wide_position.view()), with_types.then(|| wide_types.view()), exact.view_mut());
        let run = || {
            let mut out = Matrix::poisoned(tokens, d, 2);
            embed::cpu::embed(&ids, &positions, types, word.view(), with_position.then(|| position.view()), with_types.then(|| types_table.view()), out.view_mut());
            out
        };
        // Three terms of at most 1.
        run().assert_within("out", &exact, |_, _| 3.0 * gamma(2));
        same_bits_on_any_threads(|| run().bits());

        let dy = Matrix::random(random, tokens, d, 1, 1.0);
        let old = [50, 20, 2].map(|rows| Matrix::random(random, rows, d, 2, 1.0));
        let mut exact: Vec<Wide> = old.iter().map(Matrix::wide).collect();
        let [dword, dposition, dtypes] = &mut exact[..] else { unreachable!() };
        embed::reference::embed_backward(dy.wide().view(), &ids, &positions, types, Some(dword.view_mut()), with_position.then(|| dposition.view_mut()), with_types.then(|| dtypes.view_mut()));
        let run = || {
            let mut tables = old.clone();
            let [dword, dposition, dtypes] = &mut tables;
            embed::cpu::embed_backward(dy.view(), &ids, &positions, types, Some(dword.view_mut()), with_position.then(|| dposition.view_mut()), with_types.then(|| dtypes.view_mut()));
            tables
        };
        let all_indices = [Some(&ids[..]), with_position.then_some(&positions[..]), types];
        for (i, table) in run().iter().enumerate() {
            table.assert_within("table gradient", &exact[i], |row, j| {
                let terms = all_indices[i].map_or(vec![], |indices| named(indices, row));
                let size: f64 = terms.iter().map(|&t| f64::from(dy.view().at(t, j)).abs()).sum();
                gamma(terms.len()) * (size + f64::from(old[i].view().at(row, j)).abs())
            });
        }
        same_bits_on_any_threads(|| run().iter().flat_map(Matrix::bits).collect());
    }

    #[test]
    fn rows_are_gathered_and_scattered(seed: u64, rows in 1usize..60, picked in 0usize..300, n in 1usize..300) {
        let random = &mut Random(seed);
        let x = Matrix::random(random, rows, n, 2, 1.0);
        let list = indices(random, picked, rows);
        let mut exact = Wide::poisoned(picked, n);
        gather::reference::gather_rows(x.wide().view(), &list, exact.view_mut());
        let mut y = Matrix::poisoned(picked, n, 1);
        gather::cpu::gather_rows(x.view(), &list, y.view_mut());
        y.assert_within("y", &exact, |_, _| 0.0);

        let mut exact = x.wide();
        gather::reference::scatter_rows_add(y.wide().view(), &list, exact.view_mut());
        let run = || {
            let mut dx = x.clone();
            gather::cpu::scatter_rows_add(y.view(), &list, dx.view_mut());
            dx
        };
        run().assert_within("dx", &exact, |row, j| {
            // All terms are equal to what was there.
            let terms = named(&list, row).len();
            gamma(terms) * (terms + 1) as f64 * f64::from(x.view().at(row, j)).abs()
        });
        same_bits_on_any_threads(|| run().bits());
    }

    #[test]
    fn whole_matrices_are_copied_added_and_filled(seed: u64, rows in 0usize..200, n in 1usize..200) {
        let random = &mut Random(seed);
        let (x, y) = (Matrix::random(random, rows, n, 2, 1.0), Matrix::random(random, rows, n, 1, 1.0));
        let mut copy = Matrix::poisoned(rows, n, 3);
        gather::cpu::copy(x.view(), copy.view_mut());
        prop_assert_eq!(copy.bits(), x.bits());
        let (mut sum, mut exact) = (y.clone(), y.wide());
        gather::cpu::add_in_place(sum.view_mut(), x.view());
        gather::reference::add_in_place(exact.view_mut(), x.wide().view());
        sum.assert_within("sum", &exact, |t, j| U * exact.at(t, j).abs());
        gather::cpu::fill(sum.view_mut(), 1.5);
        gather::reference::fill(exact.view_mut(), 1.5);
        sum.assert_within("fill", &exact, |_, _| 0.0);
    }

    #[test]
    fn mean_absolute_values_match_the_reference(seed: u64, rows in 0usize..300, groups in 1usize..40, group in 1usize..20) {
        let x = Matrix::random(&mut Random(seed), rows, groups * group, 2, 3.0);
        let mut exact = vec![f64::NAN; groups];
        reduce::reference::mean_absolute(x.wide().view(), group, &mut exact);
        let run = || {
            let mut out = vec![f32::NAN; groups];
            reduce::cpu::mean_absolute(x.view(), group, &mut out);
            out
        };
        assert_within("mean", &run(), &exact, |g| gamma(rows + group + 1) * exact[g]);
        same_bits_on_any_threads(|| wide(&run()).iter().map(|x| (*x as f32).to_bits()).collect());
    }

    #[test]
    fn column_moments_match_the_reference(seed: u64, rows in 0usize..300, n in 0usize..200, shift in 0.0f32..2.0) {
        let mut x = Matrix::random(&mut Random(seed), rows, n, 2, 3.0);
        for t in 0..rows {
            x.view_mut().row_mut(t).iter_mut().for_each(|x| *x += shift);
        }
        let mut exact = Wide::poisoned(3, n);
        reduce::reference::column_moments(x.wide().view(), exact.view_mut());
        let run = || {
            let mut out = Matrix::poisoned(3, n, 3);
            reduce::cpu::column_moments(x.view(), out.view_mut());
            out
        };
        run().assert_within("moments", &exact, |moment, j| moments_error(rows, &exact, moment, j));
        same_bits_on_any_threads(|| run().bits());
    }

    #[test]
    fn column_products_match_the_reference(seed: u64, rows in 0usize..300, n in 0usize..200) {
        let random = &mut Random(seed);
        let (x, y) = (Matrix::random(random, rows, n, 2, 3.0), Matrix::random(random, rows, n, 1, 2.0));
        let (wide_x, wide_y) = (x.wide(), y.wide());
        let mut exact = vec![f64::NAN; n];
        reduce::reference::column_products(wide_x.view(), wide_y.view(), &mut exact);
        let run = || {
            let mut out = vec![f32::NAN; n];
            reduce::cpu::column_products(x.view(), y.view(), &mut out);
            out
        };
        assert_within("products", &run(), &exact, |j| products_error(&wide_x, &wide_y, exact[j], j));
        same_bits_on_any_threads(|| run().iter().map(|x| x.to_bits()).collect());
    }
}

/// One rounding of the result to f32, and those of sums in f64 (twice: the reference rounds too).
pub fn products_error(x: &Wide, y: &Wide, exact: f64, j: usize) -> f64 {
    let magnitudes: f64 = (0..x.rows).map(|t| (x.at(t, j) * y.at(t, j)).abs()).sum();
    1.01 * U * exact.abs() + 2.0 * (x.rows + 16) as f64 * f64::EPSILON * magnitudes
}

/// One rounding of the result to f32, and those of sums of `rows` terms in f64 (twice: the reference rounds too).
pub fn moments_error(rows: usize, exact: &Wide, moment: usize, j: usize) -> f64 {
    let magnitudes = exact.at(moment.max(1), j);
    1.01 * U * exact.at(moment, j).abs() + 2.0 * (rows + 16) as f64 * f64::EPSILON * magnitudes
}
