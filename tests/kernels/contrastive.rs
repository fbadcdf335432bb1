//! The contrastive loss over a bank: a case by hand, its gradient, and CPU and device against the f64 reference.

use half::bf16;
use proptest::prelude::*;
use secateur::launch::ElementType::{self, Bf16, F32};
use secateur::ops::contrastive::{Keys, cpu, cuda, reference};
use secateur::ops::{View, ViewMut};

use crate::common::{
    Matrix, Random, U, Wide, assert_gradient, assert_within, gamma, same_bits_on_any_threads, wide,
};
use crate::loss::Softmax;
use crate::support::device::TestDevice;

#[test]
fn two_queries_by_hand() {
    let (x, bank) = ([2.0, 0.0, 0.0, 3.0], [1.0, 0.0, 0.6, 0.8, 7.0, 7.0]);
    let keys = Keys { ids: &[10, 11], bank_ids: &[10, 11, -1], labels: Some((&[0, 1], &[0, 1, 0])) };
    let (mut losses, mut scales, mut dx) = ([f64::NAN; 4], [f64::NAN; 2], [0.5; 4]);
    reference::contrastive(
        View::dense(&x, 2, 2),
        View::dense(&bank, 3, 2),
        keys,
        0.5,
        &[1.0, 3.0],
        ViewMut::dense(&mut losses, 2, 2),
        &mut scales,
        Some(ViewMut::dense(&mut dx, 2, 2)),
        true,
    );
    // Scores of query 0: 2, 1.2 and 0; of query 1: 0, 1.6 and 0. The positive is the first, the second.
    let [first, second] = [0.4603725535673182, 0.33917788447363484];
    for (found, expected) in losses.iter().zip([first, first, second, second]) {
        assert!((found - expected).abs() < 1e-12, "{losses:?}");
    }
    assert_eq!(scales, [0.5, 1.0 / 3.0]);
    for (found, expected) in dx.iter().zip([0.0, 1.2489672947607255, 0.30682056448470024, 0.0]) {
        assert!((found - 0.5 - expected).abs() < 1e-12, "{dx:?}");
    }
}

/// A batch of queries, a bank, and what they are.
#[derive(Clone, Debug)]
struct Case {
    x: Matrix,
    bank: Matrix,
    ids: Vec<i32>,
    bank_ids: Vec<i32>,
    labels: Option<(Vec<i32>, Vec<i32>)>,
    weights: [f32; 2],
    temperature: f32,
}

/// Which positives a case has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Positives {
    /// Some queries have some.
    Some,
    /// None at all.
    None,
    /// Every candidate is one.
    All,
}

impl Case {
    fn new(
        random: &mut Random,
        [rows, banked, d]: [usize; 3],
        positives: Positives,
        supervised: bool,
    ) -> Case {
        let mut bank = Matrix::random(random, banked, d, 2, 1.0);
        for j in 0..banked {
            let row = bank.view_mut().row_mut(j).to_vec();
            let norm = row.iter().map(|c| c * c).sum::<f32>().sqrt().max(1e-3);
            bank.view_mut().row_mut(j).iter_mut().for_each(|c| *c /= norm);
        }
        let number = |random: &mut Random, base: i32, kinds: usize| match positives {
            Positives::Some => base + random.below(kinds) as i32,
            Positives::None => base,
            Positives::All => 3,
        };
        // Numbers of the batch and of the bank overlap unless there is to be no positive.
        let ids: Vec<i32> =
            (0..rows).map(|i| if positives == Positives::All { 3 } else { i as i32 }).collect();
        let mut bank_ids: Vec<i32> = (0..banked).map(|_| number(random, 2, rows + 3)).collect();
        let mut labels = || {
            let own = |random: &mut Random, i: usize| match positives {
                Positives::None => -100 * i32::from(i.is_multiple_of(2)) - i as i32,
                _ if random.below(6) == 0 => -100,
                _ => number(random, 0, 3),
            };
            let of_rows = (0..rows).map(|i| own(random, i)).collect();
            (of_rows, (0..banked).map(|_| number(random, 0, 3)).collect())
        };
        let labels = supervised.then(&mut labels);
        if positives == Positives::None {
            bank_ids.iter_mut().for_each(|id| *id = 1_000_000);
        }
        for id in &mut bank_ids {
            if random.below(5) == 0 {
                *id = -1;
            }
        }
        let x = Matrix::random(random, rows, d, 3, 2.0);
        let weights = [[0.1, 10.0], [1.0, 0.0], [0.0, 2.0], [0.5, 0.5]][random.below(4)];
        let weights = if supervised { weights } else { [weights[0], 0.0] };
        Case { x, bank, ids, bank_ids, labels, weights, temperature: [0.1, 0.3, 1.0][random.below(3)] }
    }

    fn keys(&self) -> Keys<'_> {
        let labels = self.labels.as_ref().map(|(rows, bank)| (&rows[..], &bank[..]));
        Keys { ids: &self.ids, bank_ids: &self.bank_ids, labels }
    }

    fn shape(&self) -> [usize; 3] {
        [self.ids.len(), self.bank_ids.len(), self.x.view().cols()]
    }

    /// Losses and gradient in f64.
    fn exact(&self, x: &Wide, old: &Wide, accumulate: bool) -> (Wide, Wide) {
        let [rows, _, _] = self.shape();
        let (mut losses, mut scales, mut dx) = (Wide::poisoned(rows, 2), vec![f64::NAN; rows], old.clone());
        reference::contrastive(
            x.view(),
            self.bank.wide().view(),
            self.keys(),
            f64::from(self.temperature),
            &self.weights.map(f64::from),
            losses.view_mut(),
            &mut scales,
            Some(dx.view_mut()),
            accumulate,
        );
        (losses, dx)
    }

    fn on_cpu(&self, old: &Matrix, accumulate: bool) -> (Matrix, Vec<f32>, Matrix) {
        let [rows, _, _] = self.shape();
        let (mut losses, mut scales, mut dx) =
            (Matrix::poisoned(rows, 2, 0), vec![f32::NAN; rows], old.clone());
        cpu::contrastive(
            self.x.view(),
            self.bank.view(),
            self.keys(),
            self.temperature,
            &self.weights,
            losses.view_mut(),
            &mut scales,
            Some(dx.view_mut()),
            accumulate,
        );
        (losses, scales, dx)
    }
}

/// Roundings of a sum of n terms on any executor: every 32nd term in order and a tree, or the tree of a block.
fn sum_roundings(n: usize) -> usize {
    n.div_ceil(32) + 20
}

/// Bounds of the errors of losses `[R][2]` and of the gradient before it is added to what was there, `[R, d]`.
struct Bounds {
    losses: Vec<[f64; 2]>,
    dx: Wide,
}

impl Bounds {
    fn of(case: &Case, x: &Wide) -> Bounds {
        let [rows, banked, d] = case.shape();
        let (bank, keys, t) = (case.bank.wide(), case.keys(), f64::from(case.temperature));
        let direction = |i: usize| {
            let norm = x.view().row(i).iter().map(|x| x * x).sum::<f64>().sqrt();
            (1.0 / norm, x.view().row(i).iter().map(|x| x / norm).collect::<Vec<f64>>())
        };
        let queries: Vec<(f64, Vec<f64>)> = (0..rows).map(direction).collect();
        // Square sum, root, quotient, product.
        let of_norm = 0.51 * gamma(sum_roundings(d) + 1) + 3.0 * U;
        let mut bounds = Bounds { losses: Vec::new(), dx: Wide::zeros(rows, d) };
        for (i, (scale, q)) in queries.iter().enumerate() {
            let present = |j: usize| if j < banked { case.bank_ids[j] >= 0 } else { j - banked != i };
            let present: Vec<usize> = (0..banked + rows).filter(|&j| present(j)).collect();
            let candidate = |j: usize| {
                if j < banked { bank.view().row(j).to_vec() } else { queries[j - banked].1.clone() }
            };
            let candidates: Vec<Vec<f64>> = present.iter().map(|&j| candidate(j)).collect();
            let dot = |c: &Vec<f64>| q.iter().zip(c).map(|(q, c)| q * c).sum::<f64>() / t;
            let size = |c: &Vec<f64>| q.iter().zip(c).map(|(q, c)| (q * c).abs()).sum::<f64>() / t;
            let scores: Vec<f64> = candidates.iter().map(dot).collect();
            let wrong = |c: &Vec<f64>| (gamma(d + 40) + 2.02 * of_norm + 3.0 * U) * size(c);
            let delta = candidates.iter().map(wrong).fold(0.0, f64::max);
            let n = scores.len();
            let mut softmax = Softmax::of(&scores);
            let mean_below: f64 = softmax.p.iter().zip(&softmax.below).map(|(p, below)| p * below).sum();
            softmax.sum_error = U * (3.0 * mean_below + 5.0) + gamma(sum_roundings(n));
            let mut slopes = vec![(0.0, 0.0); n];
            let mut of_losses = [0.0; 2];
            for which in 0..2 {
                let weight = f64::from(case.weights[which]);
                let positives: Vec<usize> =
                    (0..n).filter(|&k| positive(&keys, i, present[k])[which]).collect();
                if positives.is_empty() || weight == 0.0 {
                    continue;
                }
                let count = positives.len() as f64;
                let below = positives.iter().map(|&k| softmax.below[k]).sum::<f64>() / count;
                of_losses[which] = 2.02 * delta
                    + 1.01 * (softmax.sum_error + gamma(sum_roundings(n) + 4) * below)
                    + U * (4.0 * softmax.log_sum + 4.0);
                for k in 0..n {
                    slopes[k].0 += weight * softmax.p[k];
                    slopes[k].1 += weight * softmax.p[k] * (2.02 * delta + softmax.p_error(k) + 4.0 * U);
                }
                for &k in &positives {
                    slopes[k].0 -= weight / count;
                    slopes[k].1 += 4.0 * U * (weight / count + slopes[k].0.abs());
                }
            }
            bounds.losses.push(of_losses);
            let (mut dq, mut dq_error) = (vec![0.0; d], vec![0.0; d]);
            for (c, (slope, error)) in candidates.iter().zip(&slopes) {
                for k in 0..d {
                    dq[k] += slope * c[k] / t;
                    let relative = gamma(n + 45) + of_norm + 3.0 * U;
                    dq_error[k] += (error + relative * (slope.abs() + error)) * c[k].abs() / t;
                }
            }
            let along: f64 = dq.iter().zip(q).map(|(dq, q)| dq * q).sum();
            let relative = gamma(sum_roundings(d) + 2) + of_norm;
            let along_error: f64 = (0..d).map(|k| q[k].abs() * (dq_error[k] + relative * dq[k].abs())).sum();
            for k in 0..d {
                let parts = dq[k].abs() + (along * q[k]).abs();
                let error = dq_error[k] + q[k].abs() * along_error + (2.0 * of_norm + 4.0 * U) * parts;
                bounds.dx.data[i * d + k] = 1.02 * scale * error;
            }
        }
        bounds
    }
}

/// Whether candidate `j` is a positive of query `i` in the unsupervised and in the supervised loss: by the definition.
fn positive(keys: &Keys, i: usize, j: usize) -> [bool; 2] {
    let banked = keys.bank_ids.len();
    let id = if j < banked { keys.bank_ids[j] } else { keys.ids[j - banked] };
    let same_label = keys.labels.is_some_and(|(rows, bank)| {
        let label = if j < banked { bank[j] } else { rows[j - banked] };
        rows[i] >= 0 && label == rows[i]
    });
    [id == keys.ids[i], same_label]
}

fn check_on_cpu(case: &Case, random: &mut Random, accumulate: bool) {
    let [rows, _, d] = case.shape();
    let old = Matrix::random(random, rows, d, 1, 1.0);
    let (x, old_wide) = (case.x.wide(), old.wide());
    let (exact, exact_dx) = case.exact(&x, &old_wide, accumulate);
    let bounds = Bounds::of(case, &x);
    let (losses, _, dx) = case.on_cpu(&old, accumulate);
    losses.assert_within("losses", &exact, |i, which| bounds.losses[i][which]);
    dx.assert_within("dx", &exact_dx, |i, k| {
        bounds.dx.at(i, k) + 2.0 * U * (old_wide.at(i, k).abs() + exact_dx.at(i, k).abs())
    });
    same_bits_on_any_threads(|| {
        let (losses, scales, dx) = case.on_cpu(&old, accumulate);
        [losses.bits(), dx.bits(), scales.iter().map(|scale| scale.to_bits()).collect()].concat()
    });
}

fn check_on_device(case: &Case, random: &mut Random, element: ElementType, accumulate: bool) {
    let [rows, banked, d] = case.shape();
    let rounded = |values: Vec<f64>| -> Vec<f32> {
        let narrow = |x: f64| if element == Bf16 { bf16::from_f64(x).to_f32() } else { x as f32 };
        values.into_iter().map(narrow).collect()
    };
    let x = rounded(case.x.wide().data);
    let old = rounded(wide(&random.values(rows * d, 1.0)));
    let of = |values: &[f32]| Wide { data: wide(values), rows, cols: d };
    let (exact, exact_dx) = case.exact(&of(&x), &of(&old), accumulate);
    let bounds = Bounds::of(case, &of(&x));
    let mut device = TestDevice::new();
    let on_x = device.matrix(rows, d, &x, element);
    let bank: Vec<f32> = case.bank.wide().data.iter().map(|&c| c as f32).collect();
    let on_bank = device.matrix(banked, d, &bank, F32);
    let labels = case.labels.as_ref().map(|(rows, bank)| (device.ints(rows), device.ints(bank)));
    let keys = cuda::Keys { ids: device.ints(&case.ids), bank_ids: device.ints(&case.bank_ids), labels };
    let weights = device.floats(&case.weights);
    let mut run = |gradient: bool| {
        let (losses, scales) = (device.output(rows, 2, F32), device.output_floats(rows));
        let dx = match accumulate {
            true => device.matrix(rows, d, &old, element),
            false => device.output(rows, d, element),
        };
        device.run(|queue| {
            let dx = gradient.then_some(dx);
            cuda::contrastive(
                queue,
                on_x,
                on_bank,
                keys,
                case.temperature,
                weights,
                losses,
                scales,
                dx,
                accumulate,
            );
        });
        (device.read(&losses), device.read_floats(scales, rows), device.read(&dx))
    };
    let (losses, scales, dx) = run(true);
    assert_within("losses", &losses, &exact.data, |at| bounds.losses[at / 2][at % 2]);
    let half_ulp = if element == Bf16 { 1.0 / 256.0 } else { 2.0 * U };
    assert_within("dx", &dx, &exact_dx.data, |at| {
        let bound = bounds.dx.data[at];
        bound + half_ulp * (exact_dx.data[at].abs() + bound) + 2.0 * U * f64::from(old[at]).abs()
    });
    // The same bits again, and without a gradient.
    assert_eq!(run(true), (losses.clone(), scales.clone(), dx));
    assert_eq!(run(false).0, losses);
}

fn kinds() -> impl Strategy<Value = Positives> {
    prop_oneof![4 => Just(Positives::Some), 1 => Just(Positives::None), 1 => Just(Positives::All)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn contrastive_matches_the_reference(seed: u64, rows in 0usize..40, banked in 1usize..300, d in 1usize..200, kind in kinds(), supervised: bool, accumulate: bool) {
        let random = &mut Random(seed);
        let case = Case::new(random, [rows, banked, d], kind, supervised);
        check_on_cpu(&case, random, accumulate);
    }

    #[test]
    fn its_gradient_is_the_derivative(seed: u64, rows in 1usize..5, banked in 1usize..9, d in 2usize..7, kind in kinds()) {
        // Derivatives of higher order grow with powers of 1/τ: at 1 the quotient has digits to compare.
        let case = Case { temperature: 1.0, ..Case::new(&mut Random(seed), [rows, banked, d], kind, true) };
        let x = case.x.wide();
        let (_, dx) = case.exact(&x, &Wide::zeros(rows, d), false);
        // Queries are constants where they are candidates: query i's loss with only row i moved.
        for i in 0..rows {
            let loss = |row: &[f64]| {
                let mut moved = x.clone();
                moved.data[i * d..(i + 1) * d].copy_from_slice(row);
                let losses = case.exact(&moved, &Wide::zeros(rows, d), false).0;
                f64::from(case.weights[0]) * losses.at(i, 0) + f64::from(case.weights[1]) * losses.at(i, 1)
            };
            // And with powers of 1/‖x‖.
            if x.view().row(i).iter().map(|x| x * x).sum::<f64>().sqrt() > 0.5 {
                assert_gradient("dx", x.view().row(i), &dx.data[i * d..(i + 1) * d], loss);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn contrastive_on_a_device_matches_the_reference(seed: u64, rows in 0usize..10, banked in prop_oneof![1usize..40, Just(255usize), Just(257)], d in prop_oneof![1usize..40, Just(127usize), Just(1025)], kind in kinds(), supervised: bool, half: bool, accumulate: bool) {
        let random = &mut Random(seed);
        let case = Case::new(random, [rows, banked, d], kind, supervised);
        check_on_device(&case, random, if half { Bf16 } else { F32 }, accumulate);
    }
}

#[test]
fn a_query_without_a_direction_gets_no_gradient() {
    let random = &mut Random(4);
    let mut case = Case::new(random, [3, 5, 7], Positives::Some, true);
    case.weights = [1.0, 1.0];
    case.x.view_mut().row_mut(1).fill(0.0);
    let (losses, scales, dx) = case.on_cpu(&Matrix::poisoned(3, 7, 0), false);
    assert_eq!(scales[1], 0.0);
    assert!(losses.wide().data.iter().chain(&dx.wide().data).all(|value| value.is_finite()));
    assert!(dx.view().row(1).iter().all(|&value| value == 0.0));
    assert!(dx.view().row(0).iter().any(|&value| value != 0.0));
}
