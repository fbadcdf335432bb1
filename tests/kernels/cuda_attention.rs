//! The attention kernels against the definition, on the emulator or a GPU.
//!
//! Two yardsticks. Every element obeys the error bound of the family (`attention_case.rs`), with the roundings that streaming
//! and bf16 add. And a bf16 tensor as a whole is no more than 2 (results) or 3 (gradients) times as far off as the
//! plain computation with every intermediate rounded to bf16, the rule of the flash-attention tests.

use half::bf16;
use proptest::prelude::*;
use secateur::exec::Approximations;
use secateur::launch::{DropoutOperand, ElementType, Matrix as Operand, Precision};
use secateur::ops::attention::cuda;
use secateur::ops::dropout::{AppliedDropout, Dropout, DropoutKey};

use crate::attention_case::{Case, Results, Rounding, bits};
use crate::common::{Matrix, Random, Wide};
use crate::support::device::TestDevice;

/// Unit roundoff of bf16.
const U_BF16: f64 = 1.0 / 256.0;

fn rounding(element: ElementType) -> Rounding {
    let underflow = f64::from(f32::MIN_POSITIVE);
    match element {
        ElementType::F32 => Rounding { stored: 0.0, product: 1, streamed: Some(32), underflow },
        ElementType::Bf16 => Rounding { stored: U_BF16, product: 2, streamed: Some(32), underflow },
    }
}

fn to_bf16(x: f64) -> f64 {
    f64::from(bf16::from_f64(x).to_f32())
}

/// Rounds what a case is given to what the kernels are given.
fn rounded(mut case: Case, element: ElementType) -> Case {
    if element == ElementType::Bf16 {
        for matrix in [&mut case.qkv, &mut case.dout] {
            for r in 0..matrix.view().rows() {
                matrix.view_mut().row_mut(r).iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
        }
    }
    case
}

fn elements(matrix: &Matrix) -> Vec<f32> {
    (0..matrix.view().rows()).flat_map(|r| matrix.view().row(r).to_vec()).collect()
}

fn matrix_of(rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let mut matrix = Matrix::poisoned(rows, cols, 0);
    for r in 0..rows {
        matrix.view_mut().row_mut(r).copy_from_slice(&values[r * cols..][..cols]);
    }
    matrix
}

/// Forward and backward on a device of its own. q, k, v and their gradients are thirds of one matrix each.
fn run(case: &Case, element: ElementType) -> Results<Matrix> {
    run_on(case, element, TestDevice::new())
}

fn run_on(case: &Case, element: ElementType, mut device: TestDevice) -> Results<Matrix> {
    let (rows, width, heads, sequences) = (case.rows(), case.width(), case.heads, case.sequences());
    let qkv = device.matrix(rows, 3 * width, &elements(&case.qkv), element);
    let dqkv = device.output(rows, 3 * width, element);
    let third = |of: Operand, i: usize| Operand {
        address: of.address + (i * width * element.bytes()) as u64,
        cols: width,
        ..of
    };
    let dout = device.matrix(rows, width, &elements(&case.dout), element);
    let out = device.output(rows, width, element);
    let lse = device.output(rows, heads, ElementType::F32);
    let unmasked = case.want_mask_gradient.then(|| device.output(rows, width, element));
    let dmask = case.want_mask_gradient.then(|| device.output(sequences, heads, ElementType::F32));
    let cu_seqlens = device.ints(&case.cu_seqlens);
    let mask = case.mask.as_ref().map(|mask| device.floats(mask));
    let dropout = case.dropout.map(|AppliedDropout { dropout, key }| {
        let [low, high] = key.key().map(|word| word as i32);
        DropoutOperand::new(dropout, device.ints(&[low, high, key.draw as i32]))
    });
    let (head_dim, scale, causal) = (case.head_dim, case.scale(), case.causal);
    let [q, k, v] = [0, 1, 2].map(|i| third(qkv, i));
    let [dq, dk, dv] = [0, 1, 2].map(|i| third(dqkv, i));
    device.run(|queue| {
        cuda::forward(
            queue, q, k, v, cu_seqlens, sequences, heads, head_dim, scale, causal, mask, dropout, out, lse,
            unmasked,
        );
    });
    device.run(|queue| {
        cuda::backward(
            queue, q, k, v, out, dout, lse, unmasked, cu_seqlens, sequences, heads, head_dim, scale, causal,
            mask, dropout, dq, dk, dv, dmask,
        );
    });
    let read = |operand: &Operand| matrix_of(operand.rows, operand.cols, &device.read(operand));
    Results {
        out: read(&out),
        lse: read(&lse),
        unmasked: unmasked.as_ref().map(read),
        dq: read(&dq),
        dk: read(&dk),
        dv: read(&dv),
        dmask: dmask.as_ref().map(read),
    }
}

/// Runs a case and asserts every element within its bound.
fn check(case: Case, element: ElementType) {
    let case = rounded(case, element);
    case.check(&run(&case, element), rounding(element));
}

/// The bounds hold at both ends of the documented errors of the exponential.
#[test]
fn bounds_hold_for_the_worst_exponentials() {
    for approximations in [Approximations::Least, Approximations::Greatest] {
        for element in BOTH {
            for seed in 0..4 {
                let case = Case::random(&mut Random(seed), 3, 80, 2, 20);
                let case = rounded(case, element);
                let device = TestDevice::with_approximations(Precision::F32, approximations);
                case.check(&run_on(&case, element, device), rounding(element));
            }
        }
    }
}

/// A case with these sequence lengths.
fn case_of(random: &mut Random, lengths: &[i32], heads: usize, head_dim: usize) -> Case {
    let mut case = Case::random(random, 1, 1, heads, head_dim);
    case.cu_seqlens = lengths.iter().fold(vec![0], |mut ends, len| {
        ends.push(ends[ends.len() - 1] + len);
        ends
    });
    let (rows, width) = (case.rows(), case.width());
    case.qkv = Matrix::random(random, rows, 3 * width, 0, 2.0);
    case.dout = Matrix::random(random, rows, width, 0, 1.0);
    case.answers = None;
    case
}

const BOTH: [ElementType; 2] = [ElementType::F32, ElementType::Bf16];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn kernels_match_the_reference(seed: u64, sequences in 1usize..5, longest in 1usize..90, heads in 1usize..5, head_dim in 1usize..40, bf16: bool) {
        let case = Case::random(&mut Random(seed), sequences, longest, heads, head_dim);
        check(case, BOTH[usize::from(bf16)]);
    }
}

/// Every padded head size, at it and below it, with sequences of one token, of none, of whole tiles and of one more.
#[test]
fn every_head_size_matches_the_reference() {
    let sizes = [8, 12, 16, 24, 32, 40, 64, 80, 96, 100, 128];
    for (seed, head_dim) in sizes.into_iter().enumerate() {
        for element in BOTH {
            let mut random = Random(seed as u64 + 40);
            let mut case = case_of(&mut random, &[65, 0, 1, 64, 33], 2, head_dim);
            case.causal = seed % 2 == 0;
            check(case, element);
        }
    }
}

/// Heads whose columns are not aligned to 16 bytes: odd counts of heads of odd sizes, as pruning leaves them.
#[test]
fn unaligned_slices_match_the_reference() {
    for (seed, heads, head_dim) in [(1, 3, 12), (2, 5, 7), (3, 1, 33), (4, 7, 4)] {
        check(case_of(&mut Random(seed), &[40, 3, 70], heads, head_dim), ElementType::Bf16);
    }
}

/// A sequence long enough for the variant with 128 queries a block, in heads enough to fill the device with them (8
/// blocks for each of the emulator's 4 multiprocessors), gives the same bits beside an empty one, which halves the mean
/// length and so takes the other variant.
#[test]
fn long_sequences_match_the_reference_in_both_variants() {
    for causal in [false, true] {
        let element = ElementType::Bf16;
        let mut case = rounded(case_of(&mut Random(5), &[260], 16, 40), element);
        case.causal = causal;
        let alone = run(&case, element);
        case.check(&alone, rounding(element));
        let mut beside = case.clone();
        beside.cu_seqlens.push(260);
        let together = run(&beside, element);
        assert_eq!((alone.out.bits(), alone.lse.bits()), (together.out.bits(), together.lse.bits()));
    }
}

#[test]
fn huge_scores_stay_finite_and_exact() {
    for element in BOTH {
        let mut case = case_of(&mut Random(6), &[40, 70], 2, 16);
        case.mask = None;
        for t in 0..case.rows() {
            case.qkv.view_mut().row_mut(t).iter_mut().for_each(|x| *x *= 20.0);
        }
        check(case, element);
    }
}

#[test]
fn a_mask_of_ones_changes_no_bit_and_a_mask_of_zeros_leaves_zeros() {
    for element in BOTH {
        let mut case = rounded(case_of(&mut Random(11), &[70, 20, 1], 3, 16), element);
        case.mask = None;
        let without = bits(&run(&case, element));
        case.mask = Some(vec![1.0; 3]);
        assert_eq!(bits(&run(&case, element)), without);
        case.mask = Some(vec![0.0; 3]);
        case.want_mask_gradient = false;
        let Results { out, lse, dq, dk, dv, .. } = run(&case, element);
        assert!([out, lse, dq, dk, dv].iter().flat_map(Matrix::bits).all(|bits| bits == 0));
    }
}

/// Everything dropped: the context and all gradients are 0, not 0 · ∞.
#[test]
fn dropping_everything_leaves_zeros() {
    for element in BOTH {
        let mut case = rounded(case_of(&mut Random(12), &[40, 1], 2, 16), element);
        case.mask = None;
        case.dropout = Some(AppliedDropout {
            dropout: Dropout { probability: 1.0, site: 1 },
            key: DropoutKey { seed: 7, draw: 2 },
        });
        let Results { out, dq, dk, dv, .. } = run(&case, element);
        assert!([out, dq, dk, dv].iter().flat_map(|m| m.wide().data).all(|x| x == 0.0));
    }
}

/// A sequence's results do not depend on what else is in the batch, to the bit.
#[test]
fn sequences_do_not_see_each_other() {
    for element in BOTH {
        let mut case = rounded(case_of(&mut Random(21), &[37, 50, 1], 2, 16), element);
        (case.dropout, case.mask) = (None, None);
        let together = run(&case, element);
        let width = case.width();
        for pair in case.cu_seqlens.windows(2) {
            let (start, rows) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
            let part = |from: &Matrix, cols: usize| {
                matrix_of(rows, cols, &elements(from)[start * cols..][..rows * cols])
            };
            let alone = Case {
                qkv: part(&case.qkv, 3 * width),
                dout: part(&case.dout, width),
                cu_seqlens: vec![0, rows as i32],
                ..case.clone()
            };
            let results = run(&alone, element);
            for (alone, together) in [
                (&results.out, &together.out),
                (&results.dq, &together.dq),
                (&results.dk, &together.dk),
                (&results.dv, &together.dv),
            ] {
                assert_eq!(alone.bits(), part(together, width).bits());
            }
        }
    }
}

/// The plain computation with every matrix it would store rounded to bf16: out, dq, dk, dv.
fn plain_bf16(case: &Case) -> [Wide; 4] {
    let (rows, width, dim) = (case.rows(), case.width(), case.head_dim);
    let (qkv, dout, scale) = (case.qkv.wide(), case.dout.wide(), f64::from(case.scale()));
    let [mut out, mut dq, mut dk, mut dv] = [(); 4].map(|()| Wide::zeros(rows, width));
    for pair in case.cu_seqlens.windows(2) {
        let (start, end) = (pair[0] as usize, pair[1] as usize);
        for h in 0..case.heads {
            let mask = case.mask.as_ref().map_or(1.0, |mask| f64::from(mask[h]));
            let column = |part: usize, j: usize| part * width + h * dim + j;
            for t in start..end {
                let keys = start..if case.causal { t + 1 } else { end };
                let dot =
                    |key: usize| (0..dim).map(|j| qkv.at(t, column(0, j)) * qkv.at(key, column(1, j))).sum();
                let scores: Vec<f64> = keys.clone().map(|key| to_bf16(scale * to_bf16(dot(key)))).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| to_bf16((s - max).exp() / sum)).collect();
                let mut factors = vec![1.0; p.len()];
                if let Some(dropout) = case.dropout {
                    dropout.scale_row_f64(t * case.heads + h, 0, &mut factors);
                }
                let dropped: Vec<f64> = p.iter().zip(&factors).map(|(p, f)| to_bf16(p * f)).collect();
                for j in 0..dim {
                    let context: f64 =
                        keys.clone().zip(&dropped).map(|(key, p)| p * qkv.at(key, column(2, j))).sum();
                    out.data[t * width + h * dim + j] = to_bf16(mask * to_bf16(context));
                }
                let g: Vec<f64> = (0..dim).map(|j| to_bf16(mask * dout.at(t, h * dim + j))).collect();
                let dp: Vec<f64> = keys
                    .clone()
                    .zip(&factors)
                    .map(|(key, f)| {
                        f * to_bf16(g.iter().enumerate().map(|(j, g)| g * qkv.at(key, column(2, j))).sum())
                    })
                    .collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (i, key) in keys.enumerate() {
                    let ds = to_bf16(scale * p[i] * (dp[i] - mean));
                    for j in 0..dim {
                        dq.data[t * width + h * dim + j] += ds * qkv.at(key, column(1, j));
                        dk.data[key * width + h * dim + j] += ds * qkv.at(t, column(0, j));
                        dv.data[key * width + h * dim + j] += dropped[i] * g[j];
                    }
                }
            }
        }
    }
    for gradient in [&mut dq, &mut dk, &mut dv] {
        gradient.data.iter_mut().for_each(|x| *x = to_bf16(*x));
    }
    [out, dq, dk, dv]
}

#[test]
fn bf16_is_as_good_as_the_plain_computation_in_bf16() {
    let largest = |errors: &mut dyn Iterator<Item = f64>| errors.fold(0.0, f64::max);
    for (seed, head_dim, causal) in [(31, 64, false), (32, 64, true), (33, 32, false), (34, 128, true)] {
        let mut case = case_of(&mut Random(seed), &[150, 64, 1], 2, head_dim);
        case.causal = causal;
        let case = rounded(case, ElementType::Bf16);
        let (ours, exact, plain) = (run(&case, ElementType::Bf16), case.exact(), plain_bf16(&case));
        let f32_bounds = case.bounds(&exact, rounding(ElementType::F32));
        let all = [
            ("out", 2.0, &ours.out, &exact.out, &f32_bounds.out),
            ("dq", 3.0, &ours.dq, &exact.dq, &f32_bounds.dq),
            ("dk", 3.0, &ours.dk, &exact.dk, &f32_bounds.dk),
            ("dv", 3.0, &ours.dv, &exact.dv, &f32_bounds.dv),
        ];
        for ((name, factor, ours, exact, bound), plain) in all.into_iter().zip(&plain) {
            let off = |from: &Wide| {
                largest(&mut from.data.iter().zip(&exact.data).map(|(x, exact)| (x - exact).abs()))
            };
            let (error, plain) = (off(&ours.wide()), off(plain));
            let allowed = factor * plain + largest(&mut bound.data.iter().copied());
            println!("{name}, head_dim {head_dim}: error {error:.2e}, plain bf16 {plain:.2e}");
            assert!(
                error <= allowed,
                "{name}, head_dim {head_dim}: {error:e} > {allowed:e} ({plain:e} plain)"
            );
        }
    }
}
