//! The Gaussian kernel and the multiplicative update against their f64 definitions.

use proptest::prelude::*;
use secateur::ops::seminmf::{cpu, reference};

use crate::common::{Matrix, Random, U, Wide, gamma, same_bits_on_any_threads};

/// Bound of the error of entry (i, j) of the kernel of `x`.
pub fn kernel_error(x: &Wide, scale: f64, i: usize, j: usize) -> f64 {
    let distance: f64 = (0..x.cols).map(|k| (x.at(i, k) - x.at(j, k)).powi(2)).sum();
    let exponent = distance / scale;
    1.01 * (-exponent).exp() * (gamma(x.cols + 4) * exponent + 4.0 * U)
}

/// Bound of the error of an updated entry, of value `exact`: every term of the product is positive.
pub fn update_error(n: usize, exact: f64) -> f64 {
    1.01 * (gamma(n + 2) / 2.0 + 4.0 * U) * exact
}

/// Rows of which some are copies of others, and a kernel of entries in (0, 1].
pub fn rows(random: &mut Random, n: usize, d: usize) -> Matrix {
    let mut x = Matrix::random(random, n, d, 1, 0.7);
    for i in 0..n {
        if random.below(6) == 0 {
            let other = x.view().row(random.below(n)).to_vec();
            x.view_mut().row_mut(i).copy_from_slice(&other);
        }
    }
    x
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_kernel_matches_the_reference(seed: u64, n in 0usize..60, d in 1usize..80, scale in prop_oneof![Just(1.0f32), Just(2.0), Just(0.3)]) {
        let x = rows(&mut Random(seed), n, d);
        let mut exact = Wide::poisoned(n, n);
        reference::gaussian_kernel(x.wide().view(), f64::from(scale), exact.view_mut());
        let run = || {
            let mut kernel = Matrix::poisoned(n, n, 2);
            cpu::gaussian_kernel(x.view(), scale, kernel.view_mut());
            kernel
        };
        let kernel = run();
        kernel.assert_within("K", &exact, |i, j| kernel_error(&x.wide(), f64::from(scale), i, j));
        for i in 0..n {
            prop_assert_eq!(kernel.view().at(i, i), 1.0);
            for j in 0..i {
                prop_assert_eq!(kernel.view().at(i, j), kernel.view().at(j, i));
            }
        }
        same_bits_on_any_threads(|| run().bits());
    }

    #[test]
    fn an_update_matches_the_reference(seed: u64, n in 1usize..60, d in 1usize..30) {
        let random = &mut Random(seed);
        let mut kernel = Matrix::poisoned(n, n, 1);
        cpu::gaussian_kernel(rows(random, n, d).view(), 1.0, kernel.view_mut());
        let mut c = Matrix::random(random, n, n, 2, 0.5);
        for i in 0..n {
            c.view_mut().row_mut(i).iter_mut().for_each(|c| *c += 0.6);
        }
        let (wide_kernel, mut exact) = (kernel.wide(), c.wide());
        let exact_growth = reference::multiplicative_update(wide_kernel.view(), exact.view_mut());
        let run = || {
            let mut c = c.clone();
            let growth = cpu::multiplicative_update(kernel.view(), c.view_mut());
            (c, growth)
        };
        let (updated, growth) = run();
        updated.assert_within("C", &exact, |i, j| update_error(n, exact.at(i, j)));
        let (after, before): (f64, f64) = (exact.data.iter().sum(), c.wide().data.iter().sum());
        prop_assert!((growth - exact_growth).abs() <= update_error(n, after / before) + 1e-12);
        same_bits_on_any_threads(|| run().0.bits());
    }
}

/// The first update needs no product, and must be the update all the same.
#[test]
fn the_first_update_is_an_update_from_equal_entries() {
    for (n, d, seed) in [(1, 3, 1), (15, 4, 2), (16, 7, 3), (53, 20, 4)] {
        let mut kernel = Matrix::poisoned(n, n, 1);
        cpu::gaussian_kernel(rows(&mut Random(seed), n, d).view(), 1.0, kernel.view_mut());
        let mut exact = Wide::poisoned(n, n);
        let exact_growth = reference::first_update(kernel.wide().view(), exact.view_mut());
        let run = || {
            let mut c = Matrix::poisoned(n, n, 2);
            let growth = cpu::first_update(kernel.view(), c.view_mut());
            (c, growth)
        };
        let (c, growth) = run();
        c.assert_within("C", &exact, |i, j| update_error(n, exact.at(i, j)));
        assert!((growth - exact_growth).abs() <= update_error(n, 1.0 + exact_growth) + 1e-12);
        same_bits_on_any_threads(|| run().0.bits());
    }
}

/// Rows so far apart that the kernel is 0 keep C at 0 there instead of dividing by nothing.
#[test]
fn rows_far_apart_do_not_divide_by_zero() {
    let x = Wide { data: vec![0.0, 1e4, -1e4], rows: 3, cols: 1 };
    let (narrow, mut kernel) = (Matrix::of(&x), Matrix::poisoned(3, 3, 0));
    cpu::gaussian_kernel(narrow.view(), 1.0, kernel.view_mut());
    let mut c = Matrix::poisoned(3, 3, 0);
    cpu::first_update(kernel.view(), c.view_mut());
    for _ in 0..3 {
        assert!(cpu::multiplicative_update(kernel.view(), c.view_mut()).is_finite());
    }
    for i in 0..3 {
        for j in 0..3 {
            let value = c.view().at(i, j);
            assert!(if i == j { (value - 1.0).abs() < 0.2 } else { value == 0.0 }, "{i} {j}: {value}");
        }
    }
}

/// The exact minimiser is the identity: from all ones the update moves towards it, and stays there.
#[test]
fn the_identity_is_a_fixed_point_and_updates_approach_it() {
    let n = 12;
    let x = Matrix::random(&mut Random(5), n, 20, 0, 1.0).wide();
    let mut kernel = Wide::poisoned(n, n);
    reference::gaussian_kernel(x.view(), 1.0, kernel.view_mut());
    let mut identity = Wide::zeros(n, n);
    (0..n).for_each(|i| identity.data[i * n + i] = 1.0);
    assert!(reference::multiplicative_update(kernel.view(), identity.view_mut()).abs() < 1e-12);
    let mut c = Wide { data: vec![1.0 / n as f64; n * n], rows: n, cols: n };
    let off = |c: &Wide| (0..n * n).filter(|at| at % (n + 1) != 0).map(|at| c.data[at]).sum::<f64>();
    let mut last = off(&c);
    for _ in 0..10 {
        reference::multiplicative_update(kernel.view(), c.view_mut());
        assert!(off(&c) < last);
        last = off(&c);
    }
}
