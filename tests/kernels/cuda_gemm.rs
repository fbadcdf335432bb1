//! The product kernels on a device (emulated, or a GPU) against the f64 reference, every tile and layout of them, and
//! the traffic of their main loops.

use half::{bf16, f16};
use proptest::prelude::*;
use secateur::exec::Approximations;
use secateur::launch::ElementType::{self, Bf16, F32};
use secateur::launch::{DropoutOperand, Factor, FactorType, Matrix, Precision};
use secateur::ops::activation::Activation;
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey};
use secateur::ops::gemm::cuda::{self, Choice, tiles};
use secateur::ops::gemm::{Epilogue, reference};
use secateur::ops::{View, ViewMut};

use crate::common::{Random, U, gamma, wide};
use crate::support::device::{TestDevice, leading_dimension};

/// Every precision that has kernels.
const ALL: [Precision; 4] = [Precision::Bf16, Precision::F16, Precision::Tf32, Precision::F32];

/// Everything that defines one product but its data.
#[derive(Clone, Debug)]
struct Case {
    precision: Precision,
    /// Index of the tile; `None` lets the model choose.
    tile: Option<usize>,
    splits: usize,
    m: usize,
    n: usize,
    k: usize,
    transpose: (bool, bool),
    /// Columns by which A, B and C are slices of wider matrices.
    shift: (usize, usize, usize),
    output: ElementType,
    bias: bool,
    accumulate: bool,
    activation: Option<Activation>,
    preactivation: bool,
    neuron_mask: Option<u64>,
    compute_masked: bool,
    dropout: Option<f32>,
    residual: bool,
    inner_mask: Option<u64>,
    seed: u64,
}

impl Case {
    fn plain(precision: Precision, (m, n, k): (usize, usize, usize), transpose: (bool, bool)) -> Case {
        Case {
            precision,
            tile: None,
            splits: 1,
            m,
            n,
            k,
            transpose,
            shift: (0, 0, 0),
            output: F32,
            bias: false,
            accumulate: false,
            activation: None,
            preactivation: false,
            neuron_mask: None,
            compute_masked: false,
            dropout: None,
            residual: false,
            inner_mask: None,
            seed: 11,
        }
    }
    fn input(&self) -> FactorType {
        self.precision.factors().unwrap_or(FactorType::F32)
    }
}

/// `value` as a matrix of this type holds it.
fn stored(element: impl Into<FactorType>, value: f32) -> f32 {
    match element.into() {
        FactorType::F32 => value,
        FactorType::Bf16 => bf16::from_f32(value).to_f32(),
        FactorType::F16 => f16::from_f32(value).to_f32(),
    }
}

/// A mask of stretches: of every eight neighbours, those whose bit is set in `pattern` are 0.
fn mask(random: &mut Random, len: usize, pattern: u64, stretch: usize) -> Vec<f32> {
    let dead = |i: usize| pattern >> (i / stretch % 8) & 1 == 1;
    let weight = |r: &mut Random| if r.below(3) == 0 { r.value(1.0) + 1.5 } else { 1.0 };
    (0..len).map(|i| if dead(i) { 0.0 } else { weight(random) }).collect()
}

/// A case's data, row by row, as the matrices hold it.
struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    bias: Option<Vec<f32>>,
    neuron_mask: Option<Vec<f32>>,
    inner_mask: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Operands {
    fn new(case: &Case) -> Operands {
        let &Case { m, n, k, transpose, .. } = case;
        let random = &mut Random(case.seed);
        let neuron_mask =
            case.neuron_mask.map(|pattern| mask(random, n, pattern, 1 + random.0 as usize % 70));
        // Stretches of two slices, so that there are slices without a live k.
        let inner_mask = case.inner_mask.map(|pattern| mask(random, k, pattern, 64));
        let at = |mask: &Option<Vec<f32>>, i: usize| mask.as_ref().map_or(1.0, |mask| mask[i]);
        let unread = |j: usize| !case.compute_masked && at(&neuron_mask, j) == 0.0;
        let mut left =
            |p: usize| if at(&inner_mask, p) == 0.0 { 0.0 } else { stored(case.input(), random.value(1.0)) };
        let a = (0..m * k).map(|i| left(if transpose.0 { i / m.max(1) } else { i % k.max(1) })).collect();
        // What is never multiplied is NaN: the columns that masks remove, and whole slices of k.
        let mut right = |p: usize, j: usize| match at(&inner_mask, p) == 0.0 || unread(j) {
            true => f32::NAN,
            false => stored(case.input(), random.value(1.0)),
        };
        let b = (0..n * k)
            .map(|i| {
                if transpose.1 {
                    right(i % k.max(1), i / k.max(1))
                } else {
                    right(i / n.max(1), i % n.max(1))
                }
            })
            .collect();
        let mut column = |j: usize| if unread(j) { f32::NAN } else { random.value(1.0) };
        let bias = case.bias.then(|| (0..n).map(&mut column).collect());
        let c = (0..m * n).map(|i| stored(case.output, column(i % n.max(1)))).collect();
        let residual =
            case.residual.then(|| (0..m * n).map(|_| stored(case.output, random.value(1.0))).collect());
        Operands { a, b, c, bias, neuron_mask, inner_mask, residual }
    }

    fn dropout(case: &Case) -> Option<AppliedDropout> {
        case.dropout.map(|probability| AppliedDropout {
            dropout: Dropout { probability, site: 3 },
            key: DropoutKey { seed: case.seed, draw: 7 },
        })
    }

    /// z and C of the reference, of these operands through `f`.
    fn reference(&self, case: &Case, f: impl Fn(f64) -> f64) -> (Vec<f64>, Vec<f64>) {
        let map = |values: &[f32]| wide(values).into_iter().map(&f).collect::<Vec<f64>>();
        let option = |values: &Option<Vec<f32>>| values.as_ref().map(|v| map(v));
        let &Case { m, n, k, transpose, .. } = case;
        let (a, b, mut c, bias) = (map(&self.a), map(&self.b), map(&self.c), option(&self.bias));
        let (neuron, inner, residual) =
            (option(&self.neuron_mask), option(&self.inner_mask), option(&self.residual));
        let mut z = vec![0.0; m * n];
        let epilogue = Epilogue {
            bias: bias.as_deref(),
            accumulate: case.accumulate,
            activation: case.activation,
            preactivation: Some(ViewMut::dense(&mut z, m, n)),
            neuron_mask: neuron.as_deref(),
            compute_masked: case.compute_masked,
            dropout: Operands::dropout(case),
            residual: residual.as_ref().map(|r| View::dense(r, m, n)),
            inner_mask: inner.as_deref(),
        };
        let shape = |transposed, rows, cols| if transposed { (cols, rows) } else { (rows, cols) };
        let ((ar, ac), (br, bc)) = (shape(transpose.0, m, k), shape(transpose.1, k, n));
        let mut view = ViewMut::dense(&mut c, m, n);
        reference::gemm(
            View::dense(&a, ar, ac),
            transpose.0,
            View::dense(&b, br, bc),
            transpose.1,
            &mut view,
            epilogue,
        );
        (z, c)
    }

    /// C and the preactivation of the device.
    fn run(&self, case: &Case) -> (Vec<f32>, Option<Vec<f32>>) {
        self.run_on(case, &mut TestDevice::with_precision(case.precision))
    }

    fn run_on(&self, case: &Case, device: &mut TestDevice) -> (Vec<f32>, Option<Vec<f32>>) {
        let &Case { m, n, k, transpose, .. } = case;
        let shape = |transposed, rows, cols| if transposed { (cols, rows) } else { (rows, cols) };
        let ((ar, ac), (br, bc)) = (shape(transpose.0, m, k), shape(transpose.1, k, n));
        let a = factor(device, ar, ac, case.shift.0, &self.a, case.input());
        let b = factor(device, br, bc, case.shift.1, &self.b, case.input());
        let c = slice(device, m, n, case.shift.2, case.accumulate.then_some(&self.c), case.output);
        let residual = self.residual.as_ref().map(|r| slice(device, m, n, 0, Some(r), case.output));
        let preactivation = case.preactivation.then(|| device.output(m, n, case.output));
        let mut vector = |values: &Option<Vec<f32>>| values.as_ref().map(|values| device.floats(values));
        let (bias, neuron_mask, inner_mask) =
            (vector(&self.bias), vector(&self.neuron_mask), vector(&self.inner_mask));
        let dropout = Operands::dropout(case).map(|applied| {
            let [low, high] = applied.key.key();
            let key = device.ints(&[low as i32, high as i32, applied.key.draw as i32]);
            DropoutOperand::new(applied.dropout, key)
        });
        let epilogue = cuda::Epilogue {
            bias,
            accumulate: case.accumulate,
            activation: case.activation,
            preactivation,
            neuron_mask,
            compute_masked: case.compute_masked,
            dropout,
            residual,
            inner_mask,
        };
        // Not every GPU has room for every tile; the emulator does.
        let limits = device.limits();
        let tile = case.tile.filter(|&tile| tiles(case.precision)[tile].fits(limits));
        let choice = tile.map(|tile| Choice { tile, splits: case.splits });
        device.run(|queue| cuda::gemm_with(queue, choice, a, transpose.0, b, transpose.1, c, epilogue));
        (device.read(&c), preactivation.map(|z| device.read(&z)))
    }

    /// Runs the case and holds every element against its bound.
    fn check(&self, case: &Case) {
        self.check_on(case, &mut TestDevice::with_precision(case.precision));
    }

    fn check_on(&self, case: &Case, device: &mut TestDevice) {
        let (sums, outputs) = self.reference(case, |x| x);
        let magnitudes =
            self.reference(&Case { activation: None, dropout: None, ..case.clone() }, f64::abs).0;
        let (c, z) = self.run_on(case, device);
        // Tensor cores add the exact products of an instruction to the sum with at most one bit less than f32 rounds to;
        // tf32 factors are rounded to 11 bits, each by at most 2⁻¹¹, and bf16 results to 8 bits.
        let chain = 2 * (case.k + 2 * case.splits + 2);
        let factors =
            if case.precision == Precision::Tf32 { (1.0 + 2f64.powi(-11)).powi(2) - 1.0 } else { 0.0 };
        let last = if case.output == Bf16 { 2f64.powi(-8) } else { 0.0 };
        for i in 0..case.m * case.n {
            let j = i % case.n;
            let z_bound = (gamma(chain) + factors) * magnitudes[i];
            if let Some(z) = &z {
                let (found, bound) = (f64::from(z[i]), z_bound + last * (sums[i].abs() + z_bound));
                assert!(
                    (found - sums[i]).abs() <= bound,
                    "z[{},{j}] = {found}, not {} ± {bound:e}",
                    i / case.n,
                    sums[i]
                );
            }
            // Through the activation (slope at most 1.13, its own error as its module states), then three roundings.
            let (slope, own) = match case.activation {
                None | Some(Activation::Relu) => (1.0, 0.0),
                Some(Activation::Tanh) => (1.0, 5.0),
                Some(Activation::GeluErf) => (1.13, 10.0),
                Some(Activation::GeluTanh) => {
                    (1.13, 8.0 + 12.0 * (0.8 * (sums[i] + 0.045 * sums[i].powi(3))).abs())
                }
            };
            let factor = self.neuron_mask.as_ref().map_or(1.0, |mask| f64::from(mask[j]).abs())
                * case.dropout.map_or(1.0, |p| 1.0 / (1.0 - f64::from(p)));
            let y = slope * (sums[i].abs() + z_bound);
            let bound =
                factor * (slope * z_bound + (own * U + gamma(3)) * y) + gamma(2) * outputs[i].abs() + 1e-37;
            let bound = bound + last * (outputs[i].abs() + bound);
            let found = f64::from(c[i]);
            assert!(
                (found - outputs[i]).abs() <= bound,
                "C[{},{j}] = {found}, not {} ± {bound:e}",
                i / case.n,
                outputs[i]
            );
        }
    }
}

/// A matrix that starts `shift` columns into a wider one, of which the rest is never written.
fn slice(
    device: &mut TestDevice,
    rows: usize,
    cols: usize,
    shift: usize,
    values: Option<&Vec<f32>>,
    element: ElementType,
) -> Matrix {
    let whole = device.output(rows, cols + shift, element);
    let address = whole.address + (shift * element.bytes()) as u64;
    let ld = leading_dimension(cols + shift);
    let matrix = Matrix { address, element, rows, cols, ld };
    if let Some(values) = values {
        device.write(matrix, values);
    }
    matrix
}

/// The same for a factor.
fn factor(
    device: &mut TestDevice,
    rows: usize,
    cols: usize,
    shift: usize,
    values: &[f32],
    element: FactorType,
) -> Factor {
    let whole = device.factor(rows, cols + shift, element);
    let address = whole.address + (shift * element.bytes()) as u64;
    let factor = Factor { address, cols, ..whole };
    device.write(factor, values);
    factor
}

/// Sizes around the edges of tiles, quads and chunks.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => prop::sample::select(vec![1usize, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33]),
        2 => prop::sample::select(vec![47usize, 48, 49, 63, 64, 65, 72]),
        1 => prop::sample::select(vec![127usize, 128, 129, 136]),
    ]
}

fn depth() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => prop::sample::select(vec![0usize, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33]),
        2 => prop::sample::select(vec![63usize, 64, 65, 96, 100, 129]),
        1 => prop::sample::select(vec![257usize, 300]),
    ]
}

prop_compose! {
    fn case()(
        precision in prop::sample::select(vec![Precision::Bf16, Precision::F16, Precision::Tf32, Precision::F32]),
        tile in prop::option::weighted(0.8, 0..60usize),
        splits in prop::sample::select(vec![1usize, 1, 1, 2, 3]),
        (m, n, k) in (size(), size(), depth()),
        transpose in prop::sample::select(vec![(false, true), (false, false), (true, false)]),
        shift in prop::sample::select(vec![(0usize, 0usize, 0usize), (0, 0, 0), (8, 16, 4), (0, 0, 1), (8, 0, 3)]),
        output in prop::sample::select(vec![F32, Bf16]),
        (bias, preactivation, residual) in any::<(bool, bool, bool)>(),
        accumulate in prop::bool::weighted(0.3),
        activation in prop::sample::select(vec![
            None, None, Some(Activation::GeluErf), Some(Activation::GeluTanh), Some(Activation::Relu), Some(Activation::Tanh),
        ]),
        neuron_mask in prop::sample::select(vec![None, None, Some(0u64), Some(0b0101_0110), Some(0xff)]),
        compute_masked: bool,
        dropout in prop::sample::select(vec![None, None, Some(0.1f32), Some(0.5)]),
        inner_mask in prop::sample::select(vec![None, None, Some(0u64), Some(0b0110), Some(0xff)]),
        seed in any::<u64>(),
    ) -> Case {
        let tile = tile.map(|tile| tile % tiles(precision).len());
        let splits = if tile.is_some() { splits } else { 1 };
        Case {
            precision, tile, splits, m, n, k, transpose, shift, output, bias, accumulate, activation, preactivation,
            neuron_mask, compute_masked, dropout, residual, inner_mask, seed,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_stay_within_their_error_bound(case in case()) {
        Operands::new(&case).check(&case);
    }

    /// Rows that start anywhere, and both factors transposed: the kernel for any layout.
    #[test]
    fn products_of_unaligned_operands_stay_within_their_error_bound(
        case in case(),
        shift in prop::sample::select(vec![(1usize, 0usize, 0usize), (0, 3, 1), (5, 2, 2), (0, 0, 0)]),
    ) {
        let transpose = if shift.0 + shift.1 == 0 { (true, true) } else { case.transpose };
        let case = Case { shift, transpose, tile: None, splits: 1, ..case };
        Operands::new(&case).check(&case);
    }

    #[test]
    fn column_sums_on_the_device_stay_within_their_bound(
        (rows, cols, shift) in (prop::sample::select(vec![0usize, 1, 7, 63, 64, 65, 200, 700]), 1..200usize, 0..4usize),
        element in prop::sample::select(vec![F32, Bf16]),
        accumulate: bool,
        seed: u64,
    ) {
        let random = &mut Random(seed);
        let values: Vec<f32> = random.values(rows * cols, 1.0).into_iter().map(|x| stored(element, x)).collect();
        let old = random.values(cols, 1.0);
        let device = &mut TestDevice::new();
        let x = slice(device, rows, cols, shift, Some(&values), element);
        let out = if accumulate { device.floats(&old) } else { device.output_floats(cols) };
        device.run(|queue| cuda::column_sums(queue, x, out, accumulate));
        let found = device.read_floats(out, cols);
        for j in 0..cols {
            let terms = (0..rows).map(|i| f64::from(values[i * cols + j])).chain(accumulate.then_some(f64::from(old[j])));
            let (sum, magnitude) = terms.fold((0.0, 0.0), |(s, m), x| (s + x, m + x.abs()));
            let bound = gamma(24 + 64 / 8 + rows.div_ceil(64).div_ceil(8)) * magnitude;
            prop_assert!((f64::from(found[j]) - sum).abs() <= bound, "{} {sum} {bound:e}", found[j]);
        }
    }
}

/// Every tile in every layout, over several tiles each way, with ragged edges and a cut k.
#[test]
fn every_tile_computes_every_layout() {
    for precision in ALL {
        for (tile, shape) in tiles(precision).iter().enumerate() {
            for transpose in [(false, true), (false, false), (true, false)] {
                for splits in [1, 2] {
                    let sizes = (shape.rows + 2, shape.columns + 9, 7 * 64 + 11);
                    let plain = Case::plain(precision, sizes, transpose);
                    let case = Case { tile: Some(tile), splits, bias: true, accumulate: true, ..plain };
                    Operands::new(&case).check(&case);
                }
            }
        }
    }
}

#[test]
fn nothing_is_launched_for_an_empty_matrix() {
    for (m, n) in [(0, 5), (5, 0)] {
        let case = Case::plain(Precision::Bf16, (m, n, 8), (false, true));
        Operands::new(&case).check(&case);
    }
}

/// The bounds of the activations hold at both ends of the documented errors of what they are computed with.
#[test]
fn bounds_hold_for_the_worst_approximations() {
    for approximations in [Approximations::Least, Approximations::Greatest] {
        for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Tanh] {
            for precision in [Precision::Bf16, Precision::F32] {
                let plain = Case::plain(precision, (33, 72, 40), (false, true));
                let case = Case { activation: Some(activation), bias: true, preactivation: true, ..plain };
                let device = &mut TestDevice::with_approximations(precision, approximations);
                Operands::new(&case).check_on(&case, device);
            }
        }
    }
}

/// Everything dropped leaves the residual alone.
#[test]
fn dropout_of_everything_leaves_the_residual() {
    let plain = Case::plain(Precision::F32, (9, 12, 16), (false, true));
    let case = Case { dropout: Some(1.0), residual: true, bias: true, ..plain };
    let operands = Operands::new(&case);
    let (c, _) = operands.run(&case);
    assert_eq!(Some(c), operands.residual);
}

/// What f16 cannot hold is infinite in a result, not a wrong number.
#[test]
fn factors_beyond_f16_give_no_finite_result() {
    let case = Case::plain(Precision::F16, (20, 33, 17), (false, true));
    let mut operands = Operands::new(&case);
    operands.a[3] = 65_520.0; // half-way from the largest finite value to the next, were there one
    let (c, _) = operands.run(&case);
    for (i, row) in c.chunks(case.n).enumerate() {
        assert!(row.iter().all(|x| x.is_finite() == (i > 0)), "row {i}");
    }
}

/// One special value reaches exactly the row that the formula says.
#[test]
fn not_a_number_and_infinity_propagate() {
    for precision in ALL {
        for transpose in [(false, true), (false, false), (true, false)] {
            for special in [f32::NAN, f32::INFINITY] {
                let (m, n, k) = (20, 33, 17);
                let case = Case::plain(precision, (m, n, k), transpose);
                let mut operands = Operands::new(&case);
                let last = operands.a.len() - 1;
                operands.a[last] = special;
                let (c, _) = operands.run(&case);
                for (i, row) in c.chunks(n).enumerate() {
                    assert_eq!(
                        row.iter().all(|x| x.is_finite()),
                        i < m - 1,
                        "{precision:?} {transpose:?} row {i}"
                    );
                    assert!(i < m - 1 || row.iter().all(|x| !x.is_finite()));
                }
            }
        }
    }
}

/// The same bits whatever the order of blocks and warps, with k cut into parts as well.
#[test]
fn bits_of_products_do_not_depend_on_the_order_of_blocks() {
    for (precision, tile, splits) in
        [(Precision::Bf16, 3, 3), (Precision::F16, 3, 2), (Precision::Bf16, 1, 1), (Precision::F32, 0, 2)]
    {
        let plain = Case::plain(precision, (70, 201, 300), (false, true));
        let case = Case { tile: Some(tile), splits, bias: true, dropout: Some(0.1), residual: true, ..plain };
        let operands = Operands::new(&case);
        let bits = |order: u64| {
            let (c, _) = operands.run_on(&case, &mut TestDevice::with_order(order));
            c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(bits(1), bits(2), "{precision:?}");
    }
}
