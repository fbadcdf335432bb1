//! Matrix products: every path against the f64 reference within its error bound, and to the bit where bits are promised.

use proptest::prelude::*;
use secateur::ops::gemm::{self, Factors, cpu, reference};
use secateur::ops::simd::{Level, level};

use crate::common::{Random, gamma};
use crate::gemm_case::{Case, Matrix, Operands, Path, case, paths, plain, pool, wide_view};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_path_stays_within_its_error_bound(case in case()) {
        let operands = Operands::new(&case);
        operands.check(&case);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads(case in case()) {
        let operands = Operands::new(&case);
        for path in paths() {
            let bits = |threads: usize| {
                let (c, z) = pool(threads).install(|| operands.run(&case, path));
                (c.bits(), z.bits())
            };
            let one = bits(1);
            prop_assert!(one == bits(2) && one == bits(3), "{:?}", path);
        }
    }

    #[test]
    fn all_ones_masks_change_no_bit(case in case()) {
        let plain = Case { neuron_mask: None, inner_mask: None, ..case };
        let operands = Operands::new(&plain);
        let mut masked = Operands::new(&plain);
        masked.neuron_mask = Some(vec![1.0; plain.n]);
        masked.inner_mask = Some(vec![1.0; plain.k]);
        for path in paths() {
            let (without, with) = (operands.run(&plain, path), masked.run(&plain, path));
            prop_assert_eq!(without.0.bits(), with.0.bits());
            prop_assert_eq!(without.1.bits(), with.1.bits());
        }
    }

    #[test]
    fn levels_with_fused_arithmetic_agree_to_the_bit(case in case()) {
        // Thin products sum in as many chains as a register has lanes; all others in one.
        let case = Case { m: case.m.max(9), n: case.n.max(9), ..case };
        if level() == Level::Avx512 {
            let operands = Operands::new(&case);
            let run = |at| operands.run(&case, Path::Vectors(at, Factors::F32));
            let (narrow, wide) = (run(Level::Avx2), run(Level::Avx512));
            prop_assert_eq!(narrow.0.bits(), wide.0.bits());
            prop_assert_eq!(narrow.1.bits(), wide.1.bits());
        } else {
            println!("not run: this processor has no AVX-512");
        }
    }

    #[test]
    fn all_paths_of_rounded_factors_agree_to_the_bit(case in case()) {
        let operands = Operands::new(&case);
        let expected = operands.sums_as_promised(&case);
        let bits: Vec<u32> = expected.iter().map(|x| x.to_bits()).collect();
        for path in paths().filter(|path| path.factors() == Factors::Bf16) {
            let z = Case { preactivation: true, ..case.clone() };
            let (_, z) = operands.run(&z, path);
            let found: Vec<u32> = (0..case.m).flat_map(|i| z.view().row(i).iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect();
            prop_assert!(found == bits, "{:?}", path);
        }
        if !cpu::bf16::has_tiles() {
            println!("not run on matrix tiles: this processor has no AMX");
        }
    }

    #[test]
    fn column_sums_stay_within_their_bound(
        (rows, cols, gap) in (prop::sample::select(vec![0usize, 1, 63, 64, 65, 200, 1000]), 0..200usize, 0..3usize),
        accumulate: bool,
        seed: u64,
    ) {
        let mut random = Random(seed);
        let x = Matrix::new(rows, cols, gap, f32::NAN, |_, _| random.value(1.0));
        let old = if accumulate { random.values(cols, 1.0) } else { vec![f32::NAN; cols] };
        let sums = |threads: usize| {
            let mut out = old.clone();
            pool(threads).install(|| cpu::column_sums(x.view(), &mut out, accumulate));
            out
        };
        let found = sums(1);
        let mut exact: Vec<f64> = old.iter().map(|&x| x.into()).collect();
        let mut magnitude: Vec<f64> = old.iter().map(|&x| f64::from(x).abs()).collect();
        reference::column_sums(wide_view(&x.wide(f64::from)), &mut exact, accumulate);
        reference::column_sums(wide_view(&x.wide(|x| f64::from(x).abs())), &mut magnitude, accumulate);
        for j in 0..cols {
            let bound = gamma(64 + rows.div_ceil(64) + 1) * magnitude[j];
            prop_assert!((f64::from(found[j]) - exact[j]).abs() <= bound, "{} {} {bound}", found[j], exact[j]);
        }
        for threads in [2, 3] {
            prop_assert!(sums(threads).iter().zip(&found).all(|(x, y)| x.to_bits() == y.to_bits()));
        }
    }
}

/// Large enough for several blocks of every dimension and several tasks.
#[test]
fn large_products_match_the_reference_in_every_layout() {
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let case = Case { bias: true, accumulate: true, ..plain(150, 801, 400, transpose_a, transpose_b) };
        let operands = Operands::new(&case);
        operands.check(&case);
    }
}

#[test]
fn an_empty_sum_leaves_the_epilogue() {
    for path in paths() {
        let case = Case { bias: true, residual: true, ..plain(20, 40, 0, false, true) };
        let operands = Operands::new(&case);
        let (c, _) = operands.run(&case, path);
        let (bias, residual) = (operands.bias.unwrap(), operands.residual.unwrap());
        for (i, j) in (0..20).flat_map(|i| (0..40).map(move |j| (i, j))) {
            assert_eq!(c.view().at(i, j), bias[j] + residual.view().at(i, j));
        }
    }
}

/// One special value reaches exactly the row and column the formula says, in every path.
#[test]
fn not_a_number_and_infinity_propagate() {
    for (m, n, k) in [(3, 40, 50), (40, 3, 50), (33, 70, 400), (20, 33, 17)] {
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            for (path, special) in
                paths().flat_map(|path| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|x| (path, x)))
            {
                let case = plain(m, n, k, transpose_a, transpose_b);
                let mut operands = Operands::new(&case);
                // Last row of op(A), last k.
                let (row, col) = if transpose_a { (k - 1, m - 1) } else { (m - 1, k - 1) };
                operands.a.view_mut().row_mut(row)[col] = special;
                let (c, _) = operands.run(&case, path);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let found = c.view().at(i, j);
                    let factor = if transpose_b {
                        operands.b.view().at(j, k - 1)
                    } else {
                        operands.b.view().at(k - 1, j)
                    };
                    match i == m - 1 {
                        false => assert!(found.is_finite()),
                        true if special.is_nan() => assert!(found.is_nan()),
                        true => assert_eq!(found, special * factor.signum()),
                    }
                }
            }
        }
    }
}

#[test]
fn factors_are_rounded_to_the_nearest_bf16() {
    let mut random = Random(5);
    let special =
        [0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE];
    let any = (0..100_000).map(|_| f32::from_bits(random.next() as u32)).filter(|x| !x.is_subnormal());
    for x in special.into_iter().chain(any) {
        let (found, expected) = (f32::from_bits(gemm::bf16_bits(x)), half::bf16::from_f32(x).to_f32());
        assert!(found.to_bits() == expected.to_bits() || x.is_nan() && found.is_nan(), "{x:e}: {found:e}");
    }
    assert_eq!(gemm::bf16_bits(-f32::from_bits(0x007f_ffff)), 1 << 31, "subnormal numbers are 0");
}
