//! Cases of matrix products: shapes, layouts, epilogues and data, how they are run, and what is allowed of the results.

use proptest::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use secateur::ops::activation::Activation;
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey};
use secateur::ops::gemm::{Epilogue, Factors, cpu, reference};
use secateur::ops::simd::{Level, level};
use secateur::ops::{View, ViewMut};
use std::sync::OnceLock;

use crate::common::{Random, U, gamma};

/// Stands in every gap between rows of an output: must survive.
const CANARY: f32 = -1.234_567_9e30;
/// A mask that keeps about `fraction`, with other weights than 1 among the kept.
fn mask(random: &mut Random, count: usize, fraction: f64) -> Vec<f32> {
    (0..count)
        .map(|_| match (random.next() % 1000) as f64 / 1000.0 {
            x if x >= fraction => 0.0,
            x if x < fraction / 4.0 => random.value(1.0) + 1.5,
            _ => 1.0,
        })
        .collect()
}

/// Rows with gaps between them.
#[derive(Clone, Debug)]
pub struct Matrix {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    ld: usize,
}

impl Matrix {
    pub fn new(
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
    pub fn view(&self) -> View<'_, f32> {
        View::new(&self.data, self.rows, self.cols, self.ld)
    }
    pub fn view_mut(&mut self) -> ViewMut<'_, f32> {
        ViewMut::new(&mut self.data, self.rows, self.cols, self.ld)
    }
    /// The same in f64 through `f`.
    pub fn wide(&self, f: impl Fn(f32) -> f64) -> (Vec<f64>, usize, usize) {
        let data = (0..self.rows)
            .flat_map(|i| self.view().row(i).iter().map(|&x| f(x)).collect::<Vec<_>>())
            .collect();
        (data, self.rows, self.cols)
    }
    pub fn bits(&self) -> Vec<u32> {
        self.data.iter().map(|x| x.to_bits()).collect()
    }
    pub fn assert_gaps_untouched(&self) {
        for i in 0..self.rows {
            let gap = &self.data[i * self.ld + self.cols..(i + 1) * self.ld];
            assert!(gap.iter().all(|&x| x == CANARY), "row {i}: the gap behind the row was written");
        }
    }
}

pub fn wide_view((data, rows, cols): &(Vec<f64>, usize, usize)) -> View<'_, f64> {
    View::dense(data, *rows, *cols)
}

/// Everything that defines one product but its data.
#[derive(Clone, Debug)]
pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transpose_a: bool,
    pub transpose_b: bool,
    pub gap: usize,
    pub bias: bool,
    pub accumulate: bool,
    pub activation: Option<Activation>,
    pub preactivation: bool,
    pub neuron_mask: Option<f64>,
    pub dropout: Option<f32>,
    pub residual: bool,
    pub inner_mask: Option<f64>,
    pub seed: u64,
}

impl Case {
    /// Half of the cases compute masked columns too, as mask gradients need.
    pub fn compute_masked(&self) -> bool {
        self.seed.is_multiple_of(2)
    }
}

/// A case with its data.
pub struct Operands {
    pub a: Matrix,
    pub b: Matrix,
    pub c: Matrix,
    pub bias: Option<Vec<f32>>,
    pub neuron_mask: Option<Vec<f32>>,
    pub inner_mask: Option<Vec<f32>>,
    pub residual: Option<Matrix>,
    pub dropout: Option<AppliedDropout>,
}

impl Operands {
    pub fn new(case: &Case) -> Operands {
        let &Case { m, n, k, gap, .. } = case;
        let mut random = Random(case.seed);
        let neuron_mask = case.neuron_mask.map(|fraction| mask(&mut random, n, fraction));
        let inner_mask = case.inner_mask.map(|fraction| mask(&mut random, k, fraction));
        let dead = |mask: &Option<Vec<f32>>, i: usize| mask.as_ref().is_some_and(|mask| mask[i] == 0.0);
        let unread = |j: usize| !case.compute_masked() && dead(&neuron_mask, j);
        // What masks remove must not be read: NaN there, except in A, which promises 0.
        let mut a_value = |p: usize| if dead(&inner_mask, p) { 0.0 } else { random.value(1.0) };
        let a = if case.transpose_a {
            Matrix::new(k, m, gap, f32::NAN, |p, _| a_value(p))
        } else {
            Matrix::new(m, k, gap, f32::NAN, |_, p| a_value(p))
        };
        let mut b_value = |p: usize, j: usize| {
            if dead(&inner_mask, p) || unread(j) { f32::NAN } else { random.value(1.0) }
        };
        let b = if case.transpose_b {
            Matrix::new(n, k, gap, f32::NAN, |j, p| b_value(p, j))
        } else {
            Matrix::new(k, n, gap, f32::NAN, &mut b_value)
        };
        let mut column = |j: usize| if unread(j) { f32::NAN } else { random.value(1.0) };
        let bias = case.bias.then(|| (0..n).map(&mut column).collect());
        let c = Matrix::new(m, n, gap, CANARY, |_, j| if case.accumulate { column(j) } else { f32::NAN });
        let residual = case.residual.then(|| Matrix::new(m, n, gap, f32::NAN, |_, _| random.value(1.0)));
        let dropout = case.dropout.map(|probability| AppliedDropout {
            dropout: Dropout { probability, site: 3 },
            key: DropoutKey { seed: case.seed, draw: 7 },
        });
        Operands { a, b, c, bias, neuron_mask, inner_mask, residual, dropout }
    }

    /// C and the preactivation (canaries where it is not asked for).
    pub fn run(&self, case: &Case, path: Path) -> (Matrix, Matrix) {
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
    pub fn reference_sums(&self, case: &Case, factors: Factors, f: impl Fn(f32) -> f64 + Copy) -> Vec<f64> {
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
    pub fn reference(&self, case: &Case, factors: Factors) -> Vec<f64> {
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
    pub fn check(&self, case: &Case) {
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
    pub fn sums_as_promised(&self, case: &Case) -> Vec<f32> {
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
    pub fn compare(
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
pub enum Path {
    /// Vector registers.
    Vectors(Level, Factors),
    /// Matrix tiles, of factors rounded to bf16.
    Tiles,
}

impl Path {
    pub fn factors(self) -> Factors {
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
pub fn paths() -> impl Iterator<Item = Path> {
    let vectors =
        levels().flat_map(|at| [Factors::F32, Factors::Bf16].map(|factors| Path::Vectors(at, factors)));
    vectors.chain(cpu::bf16::has_tiles().then_some(Path::Tiles))
}

pub fn pool(threads: usize) -> &'static ThreadPool {
    static POOLS: [OnceLock<ThreadPool>; 4] = [const { OnceLock::new() }; 4];
    POOLS[threads].get_or_init(|| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"))
}

/// Sizes around the edges of tiles and blocks.
pub fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17]),
        4 => prop::sample::select(vec![27, 28, 29, 31, 32, 33, 37, 47, 48, 49, 61, 64, 65, 97, 113]),
        1 => prop::sample::select(vec![127, 191, 257, 383, 384, 385, 401]),
    ]
}

/// Longer sums and wider rows, several blocks of each, at few rows.
pub fn shape() -> impl Strategy<Value = (usize, usize, usize)> {
    prop_oneof![
        8 => (size(), size(), size()),
        1 => (1..40usize, prop::sample::select(vec![767, 768, 769, 1543]), 1..70usize),
        1 => (1..40usize, 1..70usize, prop::sample::select(vec![767, 769, 1153])),
    ]
}

prop_compose! {
    /// Everything at random.
    pub fn case()(
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

/// No epilogue.
pub fn plain(m: usize, n: usize, k: usize, transpose_a: bool, transpose_b: bool) -> Case {
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
