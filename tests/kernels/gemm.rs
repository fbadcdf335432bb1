//! Matrix products: every path against the f64 reference within its error bound, and to the bit where bits are promised.

use proptest::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use secateur::ops::activation::Activation;
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey};
use secateur::ops::gemm::{self, Epilogue, Factors, cpu, reference};
use secateur::ops::simd::{Level, level};
use secateur::ops::{View, ViewMut};
use std::sync::OnceLock;

/// Stands in every gap between rows of an output: must survive.
const CANARY: f32 = -1.234_567_9e30;
/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// γ_q = q·u/(1 − q·u): bound of the relative error of q roundings.
fn gamma(q: usize) -> f64 {
    q as f64 * U / (1.0 - q as f64 * U)
}

/// SplitMix64 (Steele, Lea and Flood 2014): values for the cases.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In [-1, 1), neither tiny nor special.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
    /// A mask that keeps about `fraction`, with other weights than 1 among the kept.
    fn mask(&mut self, count: usize, fraction: f64) -> Vec<f32> {
        (0..count)
            .map(|_| match (self.next() % 1000) as f64 / 1000.0 {
                x if x >= fraction => 0.0,
                x if x < fraction / 4.0 => self.value() + 1.5,
                _ => 1.0,
            })
            .collect()
    }
}

/// Rows with gaps between them.
#[derive(Clone, Debug)]
struct Matrix {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    ld: usize,
}

impl Matrix {
    fn new(
        rows: usize,
        cols: usize,
        gap: usize,
        fill: f32,
        mut value: impl FnMut(usize, usize) -> f32,
    ) -> Matrix {
        let ld = cols + gap;
        let mut data = vec![fill; rows * ld];
        for i in 0..rows {
            for j in 0..cols {
                data[i * ld + j] = value(i, j);
            }
        }
        Matrix { data, rows, cols, ld }
    }
    fn view(&self) -> View<'_, f32> {
        View::new(&self.data, self.rows, self.cols, self.ld)
    }
    fn view_mut(&mut self) -> ViewMut<'_, f32> {
        ViewMut::new(&mut self.data, self.rows, self.cols, self.ld)
    }
    /// The same in f64 through `f`.
    fn wide(&self, f: impl Fn(f32) -> f64) -> (Vec<f64>, usize, usize) {
        let data = (0..self.rows)
            .flat_map(|i| self.view().row(i).iter().map(|&x| f(x)).collect::<Vec<_>>())
            .collect();
        (data, self.rows, self.cols)
    }
    fn bits(&self) -> Vec<u32> {
        self.data.iter().map(|x| x.to_bits()).collect()
    }
    fn assert_gaps_untouched(&self) {
        for i in 0..self.rows {
            let gap = &self.data[i * self.ld + self.cols..(i + 1) * self.ld];
            assert!(gap.iter().all(|&x| x == CANARY), "row {i}: the gap behind the row was written");
        }
    }
}

fn wide_view((data, rows, cols): &(Vec<f64>, usize, usize)) -> View<'_, f64> {
    View::dense(data, *rows, *cols)
}

/// Everything that defines one product but its data.
#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    gap: usize,
    bias: bool,
    accumulate: bool,
    activation: Option<Activation>,
    preactivation: bool,
    neuron_mask: Option<f64>,
    dropout: Option<f32>,
    residual: bool,
    inner_mask: Option<f64>,
    seed: u64,
}

impl Case {
    /// Half of the cases compute masked columns too, as mask gradients need.
    fn compute_masked(&self) -> bool {
        self.seed.is_multiple_of(2)
    }
}

/// A case with its data.
struct Operands {
    a: Matrix,
    b: Matrix,
    c: Matrix,
    bias: Option<Vec<f32>>,
    neuron_mask: Option<Vec<f32>>,
    inner_mask: Option<Vec<f32>>,
    residual: Option<Matrix>,
    dropout: Option<AppliedDropout>,
}

impl Operands {
    fn new(case: &Case) -> Operands {
        let &Case { m, n, k, gap, .. } = case;
        let mut random = Random(case.seed);
        let neuron_mask = case.neuron_mask.map(|fraction| random.mask(n, fraction));
        let inner_mask = case.inner_mask.map(|fraction| random.mask(k, fraction));
        let dead = |mask: &Option<Vec<f32>>, i: usize| mask.as_ref().is_some_and(|mask| mask[i] == 0.0);
        let unread = |j: usize| !case.compute_masked() && dead(&neuron_mask, j);
        // What masks remove must not be read: NaN there, except in A, which promises 0.
        let mut a_value = |p: usize| if dead(&inner_mask, p) { 0.0 } else { random.value() };
        let a = if case.transpose_a {
            Matrix::new(k, m, gap, f32::NAN, |p, _| a_value(p))
        } else {
            Matrix::new(m, k, gap, f32::NAN, |_, p| a_value(p))
        };
        let mut b_value = |p: usize, j: usize| {
            if dead(&inner_mask, p) || unread(j) { f32::NAN } else { random.value() }
        };
        let b = if case.transpose_b {
            Matrix::new(n, k, gap, f32::NAN, |j, p| b_value(p, j))
        } else {
            Matrix::new(k, n, gap, f32::NAN, &mut b_value)
        };
        let mut column = |j: usize| if unread(j) { f32::NAN } else { random.value() };
        let bias = case.bias.then(|| (0..n).map(&mut column).collect());
        let c = Matrix::new(m, n, gap, CANARY, |_, j| if case.accumulate { column(j) } else { f32::NAN });
        let residual = case.residual.then(|| Matrix::new(m, n, gap, f32::NAN, |_, _| random.value()));
        let dropout = case.dropout.map(|probability| AppliedDropout {
            dropout: Dropout { probability, site: 3 },
            key: DropoutKey { seed: case.seed, draw: 7 },
        });
        Operands { a, b, c, bias, neuron_mask, inner_mask, residual, dropout }
    }

    /// C and the preactivation (canaries where it is not asked for).
    fn run(&self, case: &Case, path: Path) -> (Matrix, Matrix) {
        let mut c = self.c.clone();
        let mut z = Matrix::new(case.m, case.n, case.gap, CANARY, |_, _| CANARY);
        let epilogue = Epilogue {
            bias: self.bias.as_deref(),
            accumulate: case.accumulate,
            activation: case.activation,
            preactivation: case.preactivation.then(|| z.view_mut()),
            neuron_mask: self.neuron_mask.as_deref(),
            compute_masked: case.compute_masked(),
            dropout: self.dropout,
            residual: self.residual.as_ref().map(Matrix::view),
            inner_mask: self.inner_mask.as_deref(),
        };
        let (a, b) = (self.a.view(), self.b.view());
        let (ta, tb, c_view) = (case.transpose_a, case.transpose_b, &mut c.view_mut());
        match path {
            Path::Vectors(at, factors) => cpu::gemm_at(at, factors, a, ta, b, tb, c_view, epilogue),
            Path::Tiles => cpu::gemm_of(Factors::Bf16, a, ta, b, tb, c_view, epilogue),
        }
        (c, z)
    }

    /// The plain sums z of the reference, of these operands through `f`.
    fn reference_sums(&self, case: &Case, factors: Factors, f: impl Fn(f32) -> f64 + Copy) -> Vec<f64> {
        let wide =
            |values: &Option<Vec<f32>>| values.as_ref().map(|v| v.iter().map(|&x| f(x)).collect::<Vec<_>>());
        let (bias, neuron, inner) = (wide(&self.bias), wide(&self.neuron_mask), wide(&self.inner_mask));
        let (a, b, mut c) = (self.a.wide(f), self.b.wide(f), self.c.wide(f).0);
        let mut z = vec![0.0; case.m * case.n];
        let epilogue = Epilogue {
            bias: bias.as_deref(),
            accumulate: case.accumulate,
            preactivation: Some(ViewMut::dense(&mut z, case.m, case.n)),
            neuron_mask: neuron.as_deref(),
            compute_masked: case.compute_masked(),
            inner_mask: inner.as_deref(),
            ..Epilogue::default()
        };
        let mut c = ViewMut::dense(&mut c, case.m, case.n);
        let (a, b) = (wide_view(&a), wide_view(&b));
        reference::gemm_of(factors, a, case.transpose_a, b, case.transpose_b, &mut c, epilogue);
        z
    }

    /// The whole product of the reference.
    fn reference(&self, case: &Case, factors: Factors) -> Vec<f64> {
        let wide = |values: &Option<Vec<f32>>| {
            values.as_ref().map(|v| v.iter().map(|&x| x.into()).collect::<Vec<f64>>())
        };
        let (bias, neuron, inner) = (wide(&self.bias), wide(&self.neuron_mask), wide(&self.inner_mask));
        let (a, b, mut c) = (self.a.wide(f64::from), self.b.wide(f64::from), self.c.wide(f64::from).0);
        let residual = self.residual.as_ref().map(|residual| residual.wide(f64::from));
        let epilogue = Epilogue {
            bias: bias.as_deref(),
            accumulate: case.accumulate,
            activation: case.activation,
            preactivation: None,
            neuron_mask: neuron.as_deref(),
            compute_masked: case.compute_masked(),
            dropout: self.dropout,
            residual: residual.as_ref().map(wide_view),
            inner_mask: inner.as_deref(),
        };
        let mut view = ViewMut::dense(&mut c, case.m, case.n);
        let (a, b) = (wide_view(&a), wide_view(&b));
        reference::gemm_of(factors, a, case.transpose_a, b, case.transpose_b, &mut view, epilogue);
        c
    }

    /// Runs the case on every path and holds every element against its bound.
    fn check(&self, case: &Case) {
        for factors in [Factors::F32, Factors::Bf16] {
            let sums = self.reference_sums(case, factors, f64::from);
            let magnitudes = self.reference_sums(case, factors, |x| f64::from(x).abs());
            let outputs = self.reference(case, factors);
            // Roundings behind an element, as the modules state them.
            let roundings = match factors {
                Factors::Bf16 => (case.k / 2).min(16) + case.k.div_ceil(32) + 3,
                Factors::F32 => case.k + 2,
            };
            for path in paths().filter(|path| path.factors() == factors) {
                let (c, z) = self.run(case, path);
                c.assert_gaps_untouched();
                z.assert_gaps_untouched();
                self.compare(case, roundings, (&c, &z), (&sums, &magnitudes, &outputs));
            }
        }
    }

    /// The preactivation of rounded factors, every step in the order that `gemm::cpu::bf16` promises.
    fn sums_as_promised(&self, case: &Case) -> Vec<f32> {
        let live = |mask: &Option<Vec<f32>>, i: usize| mask.as_ref().is_none_or(|mask| mask[i] != 0.0);
        let depth: Vec<usize> = (0..case.k).filter(|&p| live(&self.inner_mask, p)).collect();
        let factor = |x: f32| half::bf16::from_f32(x).to_f32();
        let mut sums = Vec::new();
        for (i, j) in (0..case.m).flat_map(|i| (0..case.n).map(move |j| (i, j))) {
            if !case.compute_masked() && !live(&self.neuron_mask, j) {
                sums.push(0.0);
                continue;
            }
            let mut sum = if case.accumulate { self.c.view().at(i, j) } else { 0.0 };
            for depth in depth.chunks(32) {
                let mut chains = [0.0f32; 2];
                for (place, &p) in depth.iter().enumerate() {
                    let left = if case.transpose_a { self.a.view().at(p, i) } else { self.a.view().at(i, p) };
                    let right =
                        if case.transpose_b { self.b.view().at(j, p) } else { self.b.view().at(p, j) };
                    chains[place % 2] += factor(left) * factor(right);
                }
                sum += chains[0] + chains[1];
            }
            sums.push(sum + self.bias.as_ref().map_or(0.0, |bias| bias[j]));
        }
        sums
    }

    /// Holds C and the preactivation against the reference's sums, sums of magnitudes and outputs.
    fn compare(
        &self,
        case: &Case,
        roundings: usize,
        (c, z): (&Matrix, &Matrix),
        (sums, magnitudes, outputs): (&[f64], &[f64], &[f64]),
    ) {
        for i in 0..case.m {
            for j in 0..case.n {
                let (sum, output) = (sums[i * case.n + j], outputs[i * case.n + j]);
                let z_bound = gamma(roundings) * magnitudes[i * case.n + j];
                let found = f64::from(z.view().at(i, j));
                if case.preactivation {
                    assert!((found - sum).abs() <= z_bound, "z[{i},{j}] = {found}, not {sum} ± {z_bound:e}");
                } else {
                    assert_eq!(z.view().at(i, j), CANARY);
                }
                // Through the activation (slope at most 1.13, its own error as its module states), then three roundings.
                let (slope, ulps) = match case.activation {
                    None => (1.0, 0.0),
                    Some(Activation::Relu) => (1.0, 0.0),
                    Some(Activation::Tanh) => (1.0, 2.5),
                    Some(Activation::GeluErf) => (1.13, 5.0),
                    Some(Activation::GeluTanh) => {
                        (1.13, 4.0 + 6.0 * (0.8 * (sum + 0.045 * sum.powi(3))).abs())
                    }
                };
                let factor = self.neuron_mask.as_ref().map_or(1.0, |mask| f64::from(mask[j]).abs())
                    * case.dropout.map_or(1.0, |p| 1.0 / (1.0 - f64::from(p)));
                let (y_bound, y) = (slope * z_bound, slope * (sum.abs() + z_bound));
                let bound =
                    factor * (y_bound + (ulps * 2.0 * U + gamma(3)) * y) + gamma(1) * output.abs() + 1e-37;
                let found = f64::from(c.view().at(i, j));
                assert!((found - output).abs() <= bound, "C[{i},{j}] = {found}, not {output} ± {bound:e}");
            }
        }
    }
}

/// A way to compute a product.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    /// Vector registers.
    Vectors(Level, Factors),
    /// Matrix tiles, of factors rounded to bf16.
    Tiles,
}

impl Path {
    fn factors(self) -> Factors {
        match self {
            Path::Vectors(_, factors) => factors,
            Path::Tiles => Factors::Bf16,
        }
    }
}

fn levels() -> impl Iterator<Item = Level> {
    [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter(|&at| at <= level())
}

/// All this processor has.
fn paths() -> impl Iterator<Item = Path> {
    let vectors =
        levels().flat_map(|at| [Factors::F32, Factors::Bf16].map(|factors| Path::Vectors(at, factors)));
    vectors.chain(cpu::bf16::has_tiles().then_some(Path::Tiles))
}

fn pool(threads: usize) -> &'static ThreadPool {
    static POOLS: [OnceLock<ThreadPool>; 4] = [const { OnceLock::new() }; 4];
    POOLS[threads].get_or_init(|| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"))
}

/// Sizes around the edges of tiles and blocks.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17]),
        4 => prop::sample::select(vec![27, 28, 29, 31, 32, 33, 37, 47, 48, 49, 61, 64, 65, 97, 113]),
        1 => prop::sample::select(vec![127, 191, 257, 383, 384, 385, 401]),
    ]
}

/// Longer sums and wider rows, several blocks of each, at few rows.
fn shape() -> impl Strategy<Value = (usize, usize, usize)> {
    prop_oneof![
        8 => (size(), size(), size()),
        1 => (1..40usize, prop::sample::select(vec![767, 768, 769, 1543]), 1..70usize),
        1 => (1..40usize, 1..70usize, prop::sample::select(vec![767, 769, 1153])),
    ]
}

prop_compose! {
    fn case()(
        (m, n, k) in shape(),
        (transpose_a, transpose_b) in any::<(bool, bool)>(),
        gap in prop::sample::select(vec![0usize, 1, 8]),
        (bias, accumulate, preactivation, residual) in any::<(bool, bool, bool, bool)>(),
        activation in prop::sample::select(vec![
            None, None, Some(Activation::GeluErf), Some(Activation::GeluTanh), Some(Activation::Relu), Some(Activation::Tanh),
        ]),
        neuron_mask in prop::sample::select(vec![None, None, Some(0.0), Some(0.3), Some(0.95), Some(1.0)]),
        inner_mask in prop::sample::select(vec![None, None, Some(0.0), Some(0.3), Some(0.95), Some(1.0)]),
        dropout in prop::sample::select(vec![None, None, Some(0.1), Some(0.5)]),
        seed in any::<u64>(),
    ) -> Case {
        Case {
            m, n, k, transpose_a, transpose_b, gap, bias, accumulate, activation, preactivation,
            neuron_mask, dropout, residual, inner_mask, seed,
        }
    }
}

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
        let x = Matrix::new(rows, cols, gap, f32::NAN, |_, _| random.value());
        let old = if accumulate { random.values(cols) } else { vec![f32::NAN; cols] };
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

fn plain(m: usize, n: usize, k: usize, transpose_a: bool, transpose_b: bool) -> Case {
    Case {
        m,
        n,
        k,
        transpose_a,
        transpose_b,
        gap: 0,
        bias: false,
        accumulate: false,
        activation: None,
        preactivation: false,
        neuron_mask: None,
        dropout: None,
        residual: false,
        inner_mask: None,
        seed: 11,
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
