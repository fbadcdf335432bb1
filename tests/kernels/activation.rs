//! Activations: the elementary functions over their whole range, the mask, and exact gradients of it.

use proptest::prelude::*;
use secateur::ops::activation::{Activation, cpu, reference};

use crate::common::{Matrix, Random, U, Wide, assert_gradient, gamma, same_bits_on_any_threads, wide};

pub const KINDS: [Activation; 4] =
    [Activation::GeluErf, Activation::GeluTanh, Activation::Relu, Activation::Tanh];

/// |2u| of GELU's approximation, which magnifies the rounding of its argument.
fn exponent(x: f64) -> f64 {
    2.0 * 0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x).abs()
}

/// The error bound of a value, as the module states it.
pub fn value_bound(kind: Activation, x: f64) -> f64 {
    let y = reference::value(kind, x).abs();
    match kind {
        Activation::GeluErf => 10.0 * U * y,
        Activation::GeluTanh => U * (8.0 + 6.0 * exponent(x).min(90.0)) * y,
        Activation::Relu => 0.0,
        Activation::Tanh => 5.0 * U * y,
    }
}

/// The derivative is a sum of terms of order 1 that cancel near its zero: an absolute bound of a few u, plus
/// the magnified rounding of the exponent.
pub fn derivative_bound(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::GeluErf => 8.0 * U,
        Activation::GeluTanh => {
            let s = 1.0 / (1.0 + (-exponent(x) * x.signum()).exp());
            let slope = x.abs() * (1.6 + 0.22 * x * x);
            U * (8.0 + s * (1.0 - s) * slope * (12.0 + 6.0 * exponent(x)))
        }
        Activation::Relu => 0.0,
        Activation::Tanh => 2.0 * U * 5.0,
    }
}

/// Every binade from 2⁻³⁰ to 2⁶, 200 points each, both signs, and zero.
pub fn whole_range() -> Vec<f32> {
    let mut random = Random(7);
    let mut points = vec![0.0, -0.0];
    for exponent in -30..6 {
        for _ in 0..200 {
            let x = (1.5 + 0.5 * random.value(1.0)) * (exponent as f32).exp2();
            points.extend([x, -x]);
        }
    }
    points
}

#[test]
fn values_and_derivatives_stay_within_their_stated_error_over_the_whole_range() {
    let points = whole_range();
    for kind in KINDS {
        let mut y = points.clone();
        cpu::forward_in_place(kind, &mut y);
        let ones = vec![1.0; points.len()];
        let n = points.len();
        let row = |data| secateur::ops::View::dense(data, 1, n);
        let mut dx = Matrix::poisoned(1, n, 0);
        cpu::backward(kind, row(&ones), row(&points), None, dx.view_mut(), false, None);
        for (i, &x) in points.iter().enumerate() {
            let x = f64::from(x);
            let (value, derivative) = (reference::value(kind, x), reference::derivative(kind, x));
            let error = (f64::from(y[i]) - value).abs();
            // Below the normal range results may become 0; x·Φ(x) does from x = −13.2 on.
            let bound = value_bound(kind, x) + 16.0 * f64::from(f32::MIN_POSITIVE);
            assert!(
                error <= bound,
                "{kind:?}({x}) is {}, should be {value}: {} ulp",
                y[i],
                error / value.abs() / U / 2.0
            );
            let ours = f64::from(dx.view().at(0, i));
            let error = (ours - derivative).abs();
            assert!(error <= derivative_bound(kind, x), "{kind:?}'({x}) is {ours}, should be {derivative}");
        }
    }
}

#[test]
fn not_a_number_stays_so_and_infinities_have_their_limits() {
    for kind in KINDS {
        let mut y = [f32::NAN, f32::INFINITY, -1e30, 1e30];
        cpu::forward_in_place(kind, &mut y);
        assert!(y[0].is_nan(), "{kind:?}");
        assert_eq!(y[1], if kind == Activation::Tanh { 1.0 } else { f32::INFINITY }, "{kind:?}");
        assert_eq!(y[2], if kind == Activation::Tanh { -1.0 } else { 0.0 }, "{kind:?}");
        assert_eq!(y[3], if kind == Activation::Tanh { 1.0 } else { 1e30 }, "{kind:?}");
    }
}

#[test]
fn the_reference_derivative_is_the_difference_quotient() {
    for kind in KINDS {
        // Away from the corner of relu.
        let x: Vec<f64> = (-40..40).map(|i| 0.1 * f64::from(i) + 0.013).collect();
        let gradient: Vec<f64> = x.iter().map(|&x| reference::derivative(kind, x)).collect();
        assert_gradient("act'", &x, &gradient, |x| x.iter().map(|&x| reference::value(kind, x)).sum());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn matrices_with_masks_match_the_reference(seed: u64, n in 1usize..200, sequences in 1usize..6, masked: bool, accumulate: bool) {
        let random = &mut Random(seed);
        let kind = KINDS[random.below(4)];
        let cu_seqlens = random.cu_seqlens(sequences, 40);
        let rows = cu_seqlens[sequences] as usize;
        let (x, dy) = (Matrix::random(random, rows, n, 3, 5.0), Matrix::random(random, rows, n, 1, 2.0));
        let mask = masked.then(|| random.mask(n));
        let wide_mask = mask.as_ref().map(|mask| wide(mask));
        let old = Matrix::random(random, rows, n, 2, 1.0);
        let old_wide = old.wide();

        let (wide_x, wide_dy) = (x.wide(), dy.wide());
        let mut exact_y = Wide::poisoned(rows, n);
        reference::forward(kind, wide_x.view(), wide_mask.as_deref(), exact_y.view_mut());
        let (mut exact_dx, mut exact_dmask) = (old.wide(), Wide::poisoned(sequences, n));
        reference::backward(kind, wide_dy.view(), wide_x.view(), wide_mask.as_deref(), exact_dx.view_mut(), accumulate, Some((&cu_seqlens, exact_dmask.view_mut())));

        let mask_at = |j: usize| wide_mask.as_ref().map_or(1.0, |mask| mask[j].abs());
        let run = || {
            let (mut y, mut dx) = (Matrix::poisoned(rows, n, 2), old.clone());
            let mut dmask = Matrix::poisoned(sequences, n, 4);
            cpu::forward(kind, x.view(), mask.as_deref(), y.view_mut());
            cpu::backward(kind, dy.view(), x.view(), mask.as_deref(), dx.view_mut(), accumulate, Some((&cu_seqlens, dmask.view_mut())));
            (y, dx, dmask)
        };
        let (y, dx, dmask) = run();
        y.assert_within("y", &exact_y, |t, j| mask_at(j) * value_bound(kind, wide_x.at(t, j)) + 2.0 * U * exact_y.at(t, j).abs());
        dx.assert_within("dx", &exact_dx, |t, j| {
            let scale = mask_at(j) * wide_dy.at(t, j).abs();
            scale * (derivative_bound(kind, wide_x.at(t, j)) + 6.0 * U) + 2.0 * U * (exact_dx.at(t, j).abs() + old_wide.at(t, j).abs())
        });
        dmask.assert_within("dmask", &exact_dmask, |b, j| {
            let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
            tokens.clone().map(|t| {
                let term = (wide_dy.at(t, j) * reference::value(kind, wide_x.at(t, j))).abs();
                wide_dy.at(t, j).abs() * value_bound(kind, wide_x.at(t, j)) + gamma(tokens.len() + 1) * term
            }).sum::<f64>() * 1.001
        });
        same_bits_on_any_threads(|| { let (y, dx, dmask) = run(); [y.bits(), dx.bits(), dmask.bits()].concat() });
    }
}
