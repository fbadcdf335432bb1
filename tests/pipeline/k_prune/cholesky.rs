//! Cholesky against Gaussian elimination.

use proptest::prelude::*;
use secateur::prune::cholesky::{Cholesky, solve_with_ridge};

use super::norm;
use crate::support::numbers::Random;

/// XᵀX of `rows` random rows, and random right-hand sides.
fn system(random: &mut Random, n: usize, m: usize, rows: usize) -> (Vec<f64>, Vec<f64>) {
    let x: Vec<f64> = (0..rows * n).map(|_| random.normal()).collect();
    let mut gram = vec![0.0; n * n];
    for row in x.chunks(n.max(1)) {
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] += row[i] * row[j];
            }
        }
    }
    (gram, (0..n * m).map(|_| random.normal()).collect())
}

/// Gaussian elimination with partial pivoting.
fn eliminate(a: &[f64], n: usize, b: &[f64], m: usize) -> Vec<f64> {
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    for k in 0..n {
        let pivot = (k..n).max_by(|i, j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs())).unwrap();
        (0..n).for_each(|c| a.swap(k * n + c, pivot * n + c));
        (0..m).for_each(|c| b.swap(k * m + c, pivot * m + c));
        for i in (0..n).filter(|i| *i != k) {
            let factor = a[i * n + k] / a[k * n + k];
            (k..n).for_each(|c| a[i * n + c] -= factor * a[k * n + c]);
            (0..m).for_each(|c| b[i * m + c] -= factor * b[k * m + c]);
        }
    }
    (0..n * m).map(|at| b[at] / a[at / m * n + at / m]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Sizes around panels of 64 and strips of 32.
    #[test]
    fn cholesky_solves_what_elimination_solves(seed: u64, n in prop_oneof![1usize..70, 120usize..135], m in prop_oneof![1usize..5, 30usize..70]) {
        let (a, b) = system(&mut Random(seed), n, m, n + 40);
        let factor = Cholesky::factor(a.clone(), n).unwrap();
        let mut x = b.clone();
        factor.solve(&mut x, m);
        // Backward error: |B − A·X| within a small multiple of n·u·|A|·|X|.
        let mut residual = b.clone();
        for i in 0..n {
            for c in 0..m {
                residual[i * m + c] -= (0..n).map(|j| a[i * n + j] * x[j * m + c]).sum::<f64>();
            }
        }
        let bound = 8.0 * n as f64 * f64::EPSILON * norm(&a) * norm(&x);
        prop_assert!(norm(&residual) <= bound, "{} over {}", norm(&residual), bound);
        let expected = eliminate(&a, n, &b, m);
        let difference: Vec<f64> = x.iter().zip(&expected).map(|(x, e)| x - e).collect();
        // Condition numbers of such Grams stay below 1e4.
        prop_assert!(norm(&difference) <= 1e-9 * norm(&expected));
    }

    /// Unknowns that repeat others: no factor, and with a ridge the solution of the shifted system. (Fewer rows than unknowns
    /// are as singular, but the rest of such a matrix is so ill-conditioned that rounding may leave a pivot: a factor, of a
    /// matrix near it.)
    #[test]
    fn singular_systems_get_a_ridge(seed: u64, n in 1usize..70, repeated in 1usize..20) {
        let (some, _) = system(&mut Random(seed), n, 1, n + 40);
        let all = n + repeated;
        let a: Vec<f64> = (0..all * all).map(|at| some[at / all % n * n + at % all % n]).collect();
        prop_assert!(Cholesky::factor(a.clone(), all).is_none());
        let b = vec![1.0; all];
        let solved = solve_with_ridge(&a, all, &b, 1, 0.0).unwrap();
        prop_assert!(solved.ridge >= 1e-6 && solved.x.iter().all(|x| x.is_finite()));
        let trace: f64 = (0..all).map(|i| a[i * all + i]).sum();
        let mut shifted = a.clone();
        (0..all).for_each(|i| shifted[i * all + i] += solved.ridge * trace / all as f64);
        let expected = eliminate(&shifted, all, &b, 1);
        let difference: Vec<f64> = solved.x.iter().zip(&expected).map(|(x, e)| x - e).collect();
        prop_assert!(norm(&difference) <= 1e-6 * norm(&expected));
    }

    /// Fewer rows than unknowns, as in calibration: whatever rounding leaves, a ridge gives a solution of the shifted system.
    #[test]
    fn few_rows_get_a_solution(seed: u64, n in 2usize..90, short in 1usize..20) {
        let (a, _) = system(&mut Random(seed), n, 1, n.saturating_sub(short).max(1));
        let b = vec![1.0; n];
        let solved = solve_with_ridge(&a, n, &b, 1, 1e-6).unwrap();
        let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
        let mut shifted = a.clone();
        (0..n).for_each(|i| shifted[i * n + i] += solved.ridge * trace / n as f64);
        let expected = eliminate(&shifted, n, &b, 1);
        let difference: Vec<f64> = solved.x.iter().zip(&expected).map(|(x, e)| x - e).collect();
        prop_assert!(norm(&difference) <= 1e-6 * norm(&expected));
    }
}

#[test]
fn matrices_without_a_factor_are_told() {
    assert!(Cholesky::factor(vec![0.0; 9], 3).is_none());
    assert!(Cholesky::factor(vec![1.0, 0.0, 0.0, -1.0], 2).is_none());
    assert!(Cholesky::factor(vec![1.0, 0.0, f64::NAN, 1.0], 2).is_none());
    assert!(Cholesky::factor(vec![f64::INFINITY, 0.0, 0.0, 1.0], 2).is_none());
    assert!(Cholesky::factor(Vec::new(), 0).is_some());
    assert!(solve_with_ridge(&[0.0; 4], 2, &[1.0; 2], 1, 1e-6).is_none());
    assert!(solve_with_ridge(&[1.0, f64::NAN, f64::NAN, 1.0], 2, &[1.0; 2], 1, 1e-6).is_none());
    assert!(solve_with_ridge(&[1.0, 0.0, 0.0, 1.0], 2, &[f64::NAN, 1.0], 1, 1e-6).is_none());
}

/// The bits do not depend on the number of threads.
#[test]
fn cholesky_repeats_on_any_number_of_threads() {
    let (a, b) = system(&mut Random(5), 150, 70, 300);
    let solve = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut x = b.clone();
            Cholesky::factor(a.clone(), 150).unwrap().solve(&mut x, 70);
            x
        })
    };
    assert!(solve(1) == solve(3));
}
