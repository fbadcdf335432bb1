//! Masks of L0 regularisation, gradients of scores and sums of sigmoids: CPU and device against the f64 reference.

use proptest::prelude::*;
use secateur::launch::ElementType::Bf16;
use secateur::launch::Pointer;
use secateur::ops::dropout::DropoutKey;
use secateur::ops::weightmask::{self, Gradients, Noise, cpu, cuda, hard_concrete_shift, reference};

use crate::common::{Random, U, assert_within, gamma, same_bits_on_any_threads, wide};
use crate::support::device::TestDevice;

/// One matrix in the middle of a masked stretch: its scores reach both ends of the mask, and padding is −∞.
#[derive(Debug)]
struct Case {
    weights: Vec<f32>,
    scores: Vec<f32>,
    gradients: Vec<f32>,
    keep: Vec<u64>,
    noise: Option<Noise>,
    first: usize,
    penalty: f32,
}

impl Case {
    fn new(seed: u64, len: usize, noisy: bool, penalty: f32) -> Case {
        let random = &mut Random(seed);
        let mut scores = random.values(len, 6.0);
        for i in (0..len).step_by(17) {
            scores[i] = f32::NEG_INFINITY;
        }
        Case {
            weights: random.values(len, 1.0),
            gradients: random.values(len, 1.0),
            keep: (0..len.div_ceil(64)).map(|_| random.next()).collect(),
            noise: noisy.then(|| Noise(DropoutKey { seed: random.next(), draw: random.next() as u32 })),
            first: 64 * random.below(1000),
            scores,
            penalty,
        }
    }

    fn uniform(&self, i: usize) -> Option<f64> {
        let element = self.first + i;
        self.noise.map(|noise| f64::from(noise.uniforms(element / 4)[element % 4]))
    }

    /// Mask and slope of element `i`, and whether it is so near an end of [0, 1] that rounding decides the slope.
    fn exact(&self, i: usize) -> (f64, f64, bool) {
        let at = |score: f64| reference::hard_concrete(score, self.uniform(i));
        let (mask, slope) = at(f64::from(self.scores[i]));
        let near = |delta: f64| (at(f64::from(self.scores[i]) + delta).1 == 0.0) != (slope == 0.0);
        (mask, slope, near(1e-4) || near(-1e-4))
    }

    /// Error of the penalty's term: eight roundings of p·σ', and that of its argument.
    fn penalty_error(&self, i: usize, shift: f64) -> f64 {
        let score = f64::from(self.scores[i]);
        let argument = if score.is_finite() { 2.0 * U * (score.abs() + shift.abs()) } else { 0.0 };
        f64::from(self.penalty) * 0.25 * (gamma(12) + argument)
    }
}

/// Runs one of the two functions of gradients for each way of storing them: (∂L/∂W or the old gradient, ∂L/∂S or nothing).
fn in_every_place<T: Copy + Default>(
    gradients: &[T],
    run: impl Fn(Gradients<T>),
) -> ((Vec<T>, Vec<T>), Vec<T>) {
    let (mut weights, mut scores) = (gradients.to_vec(), vec![T::default(); gradients.len()]);
    run(Gradients::Both { weights: &mut weights, scores: &mut scores });
    let mut in_place = gradients.to_vec();
    run(Gradients::Scores(&mut in_place));
    ((weights, scores), in_place)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn gradients_through_bits_match_the_reference(seed: u64, len in prop_oneof![0usize..300, 16_000usize..16_800], penalty in prop_oneof![Just(0.0f32), 0.0f32..2.0]) {
        let case = Case::new(seed, len, false, penalty);
        let Case { weights, scores, gradients, keep, .. } = &case;
        let ((of_weights, of_scores), in_place) = in_every_place(gradients, |into| cpu::score_gradients(weights, scores, keep, penalty, into));
        let ((exact_weights, exact_scores), _) = in_every_place(&wide(gradients), |into| reference::score_gradients(&wide(weights), &wide(scores), keep, f64::from(penalty), into));
        assert_within("dW", &of_weights, &exact_weights, |_| 0.0);
        assert_within("dS", &of_scores, &exact_scores, |i| gamma(3) * f64::from(weights[i] * gradients[i]).abs() + case.penalty_error(i, 0.0) + U * exact_scores[i].abs());
        prop_assert_eq!(in_place.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), of_scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        let mut alone = gradients.clone();
        cpu::score_gradients(weights, &[], keep, 0.0, Gradients::Weights(&mut alone));
        prop_assert_eq!(alone, of_weights);
        for i in (0..len).step_by(17) {
            // Nothing moves the score of padding, whose weight and gradient are 0.
            prop_assert!(penalty == 0.0 || (exact_scores[i] - f64::from(weights[i]) * f64::from(gradients[i])).abs() == 0.0);
        }
    }

    #[test]
    fn the_hard_concrete_and_its_gradients_match_the_reference(seed: u64, len in prop_oneof![0usize..300, 16_000usize..16_800], noisy: bool, penalty in 0.0f32..2.0) {
        let case = Case::new(seed, len, noisy, penalty);
        let Case { weights, scores, gradients, noise, first, .. } = &case;
        let (mut out, mut exact) = (vec![f32::NAN; len], vec![f64::NAN; len]);
        cpu::apply_hard_concrete(weights, scores, *noise, *first, &mut out);
        reference::apply_hard_concrete(&wide(weights), &wide(scores), *noise, *first, &mut exact);
        // exp of a score of 6 (an error of 6·u in its argument), a power 1.5 of it, and a slope of at most 1.5·1.2/4.
        assert_within("W'", &out, &exact, |i| gamma(24) * f64::from(weights[i]).abs());
        let run = || in_every_place(gradients, |into| cpu::hard_concrete_gradients(weights, scores, *noise, *first, penalty, into));
        let ((of_weights, of_scores), in_place) = run();
        let ((exact_weights, exact_scores), _) = in_every_place(&wide(gradients), |into| reference::hard_concrete_gradients(&wide(weights), &wide(scores), *noise, *first, f64::from(penalty), into));
        assert_within("dW", &of_weights, &exact_weights, |i| gamma(24) * f64::from(gradients[i]).abs());
        let product = |i: usize| f64::from(weights[i] * gradients[i]).abs();
        let score_error = |i: usize| {
            let undecided = if case.exact(i).2 { product(i) } else { 0.0 };
            undecided + gamma(48) * product(i) + case.penalty_error(i, hard_concrete_shift()) + U * exact_scores[i].abs()
        };
        assert_within("dS", &of_scores, &exact_scores, score_error);
        prop_assert_eq!(in_place.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), of_scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        same_bits_on_any_threads(|| run().1.into_iter().map(f32::to_bits).collect());
    }

    #[test]
    fn sums_of_sigmoids_match_the_reference(seed: u64, len in prop_oneof![0usize..300, 20_000usize..20_100], shift in -2.0f32..2.0, temperature in prop_oneof![Just(1.0f32), Just(4.0)]) {
        let case = Case::new(seed, len, false, 0.0);
        let exact = reference::sigmoid_sum(&wide(&case.scores), f64::from(shift), f64::from(temperature));
        let ours = cpu::sigmoid_sum(&case.scores, shift, temperature);
        // 256 terms of a piece in each of 32 sums, each below 1 and with eight roundings and those of its argument.
        prop_assert!((ours - exact).abs() <= gamma(256 + 8) * exact + 16.0 * U * len as f64, "{} is not {}", ours, exact);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn kernels_of_scores_match_the_reference(seed: u64, quads in prop_oneof![0usize..80, 2000usize..2100], bits: bool, noisy: bool, penalty in prop_oneof![Just(0.0f32), 0.0f32..2.0], trained: bool) {
        let len = 4 * quads;
        let case = Case::new(seed, len, noisy && !bits, penalty);
        let Case { weights, scores, gradients, keep, noise, first, .. } = &case;
        let mut device = TestDevice::new();
        let matrix = cuda::Scored { weights: device.floats(weights), scores: device.floats(scores), length: len, first: *first };
        let key = match noise {
            Some(Noise(key)) => device.ints(&[key.seed as i32, (key.seed >> 32) as i32, key.draw as i32]),
            None => Pointer::NULL,
        };
        let (on_gradients, beside) = (device.floats(gradients), device.output_floats(len));
        let of_scores = if trained { beside } else { on_gradients };
        let how = cuda::ScoreGradients {
            keep: if bits { device.words(keep) } else { Pointer::NULL },
            key,
            penalty: device.floats(&[2.0 * penalty]),
            share: 0.5,
            gradients: on_gradients,
            of_scores,
            trained,
        };
        device.run(|queue| cuda::score_gradients(queue, matrix, how));
        let ((exact_weights, exact_scores), _) = in_every_place(&wide(gradients), |into| match bits {
            true => reference::score_gradients(&wide(weights), &wide(scores), keep, f64::from(penalty), into),
            false => reference::hard_concrete_gradients(&wide(weights), &wide(scores), *noise, *first, f64::from(penalty), into),
        });
        let product = |i: usize| f64::from(weights[i] * gradients[i]).abs();
        let undecided = |i: usize| if !bits && case.exact(i).2 { product(i) } else { 0.0 };
        assert_within("dS", &device.read_floats(of_scores, len), &exact_scores, |i| undecided(i) + gamma(48) * product(i) + 2.0 * case.penalty_error(i, hard_concrete_shift()) + U * exact_scores[i].abs());
        if trained {
            assert_within("dW", &device.read_floats(on_gradients, len), &exact_weights, |i| gamma(24) * f64::from(gradients[i]).abs());
        }
        if !bits {
            let (out, copy) = (device.output_floats(len), device.output(1, len, Bf16));
            device.run(|queue| cuda::apply_hard_concrete(queue, matrix, key, out, copy.bf16()));
            let mut exact = vec![f64::NAN; len];
            reference::apply_hard_concrete(&wide(weights), &wide(scores), *noise, *first, &mut exact);
            let found = device.read_floats(out, len);
            assert_within("W'", &found, &exact, |i| gamma(24) * f64::from(weights[i]).abs());
            for (copied, value) in device.read(&copy).into_iter().zip(found) {
                prop_assert_eq!(copied, half::bf16::from_f32(value).to_f32());
            }
        }
    }

    #[test]
    fn means_of_sigmoids_on_a_device_match_the_reference(seed: u64, len in prop_oneof![0usize..300, 9000usize..9100], shift in -2.0f32..2.0, temperature in prop_oneof![Just(1.0f32), Just(4.0)]) {
        let case = Case::new(seed, len, false, 0.0);
        let mut device = TestDevice::new();
        let (scores, out) = (device.floats(&case.scores), device.output_floats(1));
        device.run(|queue| cuda::mean_sigmoid(queue, scores, len, len, shift, temperature, out));
        let exact = reference::sigmoid_sum(&wide(&case.scores), f64::from(shift), f64::from(temperature)) / len.max(1) as f64;
        assert_within("mean", &device.read_floats(out, 1), &[exact], |_| 24.0 * U);
    }
}

/// The published constants: at a score of 2.197 a mask is above 0 with probability 0.97…, and half of the noise is below ½.
#[test]
fn the_hard_concrete_reaches_both_ends() {
    assert!((hard_concrete_shift() - 2.0 / 3.0 * 11f64.ln()).abs() < 1e-12);
    assert_eq!(reference::hard_concrete(8.0, None).0, 1.0);
    assert_eq!(reference::hard_concrete(-8.0, None).0, 0.0);
    let (mask, slope) = reference::hard_concrete(0.0, Some(0.5));
    assert!((mask - 0.5).abs() < 1e-12 && (slope - 1.2 * 1.5 / 4.0).abs() < 1e-12);
    let noise = weightmask::Noise(DropoutKey { seed: 1, draw: 2 });
    let drawn: Vec<f32> = (0..4096).flat_map(|group| noise.uniforms(group)).collect();
    assert!(drawn.iter().all(|u| (1e-4..=1.0 - 1e-4).contains(u)));
    let mean = drawn.iter().sum::<f32>() / drawn.len() as f32;
    assert!((mean - 0.5).abs() < 4.0 * (1.0 / 12.0f32).sqrt() / 128.0, "{mean}");
}

/// Bits applied to matrices of all sizes, those that are written past the caches among them, from aligned and other places:
/// kept weights keep their bits, everything else is +0, nothing beside the matrix is touched.
#[test]
fn bits_keep_weights_or_leave_zeros() {
    let random = &mut Random(31);
    for len in [1, 63, 64, 1000, 8192, 128 * 1024 - 1, 128 * 1024, 200 * 1024 + 37] {
        let mut weights = random.values(len, 1.0);
        weights[len / 2] = -0.0;
        weights[len / 3] = f32::INFINITY;
        let keep: Vec<u64> = (0..len.div_ceil(64)).map(|_| random.next()).collect();
        let mut room = vec![7.0f32; len + 64];
        let aligned = room.as_ptr().align_offset(64);
        for start in [aligned, aligned + 1] {
            room.fill(7.0);
            cpu::apply(&weights, &keep, &mut room[start..start + len]);
            for (i, weight) in weights.iter().enumerate() {
                let expected = if keep[i / 64] >> (i % 64) & 1 == 1 { weight.to_bits() } else { 0 };
                assert_eq!(room[start + i].to_bits(), expected, "element {i} of {len}");
            }
            assert!(room[..start].iter().chain(&room[start + len..]).all(|x| *x == 7.0));
        }
    }
}
