//! AdamW in both forms, with and without a weight mask, over several steps; the norm on any number of threads.

use proptest::prelude::*;
use secateur::ops::optimizer::{
    AdamW, AdamWForm, bias_correction, clip_factor, cpu, linear_schedule, reference,
};

use crate::common::{Random, U, assert_within, gamma, same_bits_on_any_threads, wide};

fn settings(step: u64, form: AdamWForm, clip_factor: f64) -> AdamW {
    let (beta1, beta2) = (0.9, 0.999);
    AdamW {
        lr: 2e-3,
        beta1,
        beta2,
        eps: 1e-8,
        weight_decay: 0.01,
        bias_correction1: bias_correction(beta1, step),
        bias_correction2: bias_correction(beta2, step),
        clip_factor,
        form,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_step_from_any_state_matches_the_reference(seed: u64, len in prop_oneof![0usize..300, 20_000usize..20_100], step in 1u64..1000, hugging_face: bool, masked: bool, decays: bool, untouched in 0.0f64..1.0, clip in 0.01f64..1.0) {
        let random = &mut Random(seed);
        let form = if hugging_face { AdamWForm::HuggingFaceUncorrected } else { AdamWForm::Torch };
        let settings = AdamW { weight_decay: if decays { 0.01 } else { 0.0 }, ..settings(step, form, clip) };
        let (param, mut grad, mut m) = (random.values(len, 1.0), random.values(len, 0.1), random.values(len, 0.1));
        let mut v: Vec<f32> = random.values(len, 0.1).iter().map(|x| x * x).collect();
        // A stretch that no gradient ever reached.
        let untouched = len / 8..len / 8 + (untouched * (len - len / 8) as f64) as usize;
        for state in [&mut grad, &mut m, &mut v] {
            state[untouched.clone()].fill(0.0);
        }
        let keep: Option<Vec<u64>> = masked.then(|| (0..len.div_ceil(64)).map(|_| random.next()).collect());
        let (mut exact_p, mut exact_m, mut exact_v) = (wide(&param), wide(&m), wide(&v));
        reference::adamw(&mut exact_p, &wide(&grad), &mut exact_m, &mut exact_v, &settings, keep.as_deref());
        let run = || {
            let (mut p, mut m, mut v) = (param.clone(), m.clone(), v.clone());
            cpu::adamw(&mut p, &grad, &mut m, &mut v, &settings, keep.as_deref());
            (p, m, v)
        };
        let (new_p, new_m, new_v) = run();
        let m_error = |i: usize| gamma(5) * (0.9 * f64::from(m[i]).abs() + 0.1 * clip * f64::from(grad[i]).abs());
        assert_within("m", &new_m, &exact_m, m_error);
        assert_within("v", &new_v, &exact_v, |i| gamma(7) * exact_v[i]);
        assert_within("p", &new_p, &exact_p, |i| {
            // The update: rate·m/(root·√v + ε); the root halves the relative error of v.
            let (rate, root) = match form {
                AdamWForm::Torch => (settings.lr / settings.bias_correction1, settings.bias_correction2.sqrt().recip()),
                AdamWForm::HuggingFaceUncorrected => (settings.lr * settings.bias_correction2.sqrt() / settings.bias_correction1, 1.0),
            };
            let denominator = root * exact_v[i].sqrt() + settings.eps;
            let update = rate * exact_m[i].abs() / denominator;
            1.01 * (rate * m_error(i) / denominator + gamma(12) * update) + 4.0 * U * (f64::from(param[i]).abs() + update)
        });
        if !decays && !masked {
            for i in untouched {
                prop_assert_eq!(new_p[i].to_bits(), param[i].to_bits());
            }
        }
        if let Some(keep) = &keep {
            for i in 0..len {
                if keep[i / 64] >> (i % 64) & 1 == 0 {
                    prop_assert_eq!((new_p[i], new_m[i], new_v[i]), (0.0, 0.0, 0.0));
                }
            }
        }
        same_bits_on_any_threads(|| {
            let (p, m, v) = run();
            [p, m, v].concat().into_iter().map(f32::to_bits).collect()
        });
    }

    #[test]
    fn the_norm_is_exact_to_f64_rounding(seed: u64, lengths in prop::collection::vec(0usize..20_000, 0..4)) {
        let random = &mut Random(seed);
        let blocks: Vec<Vec<f32>> = lengths.iter().map(|&len| random.values(len, 1e-3)).collect();
        let (wide, narrow): (Vec<Vec<f64>>, Vec<&[f32]>) = blocks.iter().map(|block| (wide(block), &block[..])).unzip();
        let exact = reference::global_norm(wide.iter().map(|block| &block[..]));
        let ours = cpu::global_norm(narrow.iter().copied());
        // At most 60,000 additions of positive terms in f64 on either side, and a square root.
        prop_assert!((ours - exact).abs() <= 120_000.0 * f64::EPSILON / 2.0 * exact);
        same_bits_on_any_threads(|| {
            let bits = cpu::global_norm(narrow.iter().copied()).to_bits();
            vec![bits as u32, (bits >> 32) as u32]
        });
    }
}

/// Ten steps from the same start: the two forms differ by ε only, so by more the smaller the gradient.
#[test]
fn the_two_forms_differ_only_through_epsilon() {
    let run = |form, gradient: f64| {
        let (mut p, mut m, mut v) = (vec![0.0], vec![0.0], vec![0.0]);
        let settings = AdamW { weight_decay: 0.0, ..settings(1, form, 1.0) };
        reference::adamw(&mut p, &[gradient], &mut m, &mut v, &settings, None);
        -p[0] / settings.lr
    };
    // Torch: g/(|g| + ε); the other: the same with ε/√(1 − β₂).
    for gradient in [1e-2, 1e-6, 1e-8] {
        let torch = gradient / (gradient + 1e-8);
        let other = gradient / (gradient + 1e-8 / (1.0f64 - 0.999).sqrt());
        assert!((run(AdamWForm::Torch, gradient) - torch).abs() < 1e-12);
        assert!((run(AdamWForm::HuggingFaceUncorrected, gradient) - other).abs() < 1e-12);
    }
}

#[test]
fn clipping_and_the_schedule_have_their_limits() {
    assert_eq!(clip_factor(1.0, 0.0), 1.0);
    assert_eq!(clip_factor(1.0, 0.5), 1.0);
    assert!((clip_factor(1.0, 4.0) - 0.25).abs() < 1e-6);
    assert_eq!(linear_schedule(0, 0, 10), 1.0);
    assert_eq!(linear_schedule(0, 5, 10), 0.0);
    assert_eq!(linear_schedule(5, 5, 10), 1.0);
    assert_eq!(linear_schedule(10, 5, 10), 0.0);
    assert_eq!(linear_schedule(11, 5, 10), 0.0);
    assert_eq!(linear_schedule(3, 3, 3), 0.0);
}
