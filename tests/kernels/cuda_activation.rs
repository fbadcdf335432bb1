//! Activations and their derivatives on a device against the f64 reference, with the errors stated for the functions.

use proptest::prelude::*;
use secateur::launch::ElementType::F32;
use secateur::ops::activation::{self, Activation};

use crate::activation::{KINDS, derivative_bound, value_bound, whole_range};
use crate::common::{Random, U, Wide, gamma, wide};
use crate::device_rows::{columns, element, get, put, random_matrix, rounded};
use crate::support::device::TestDevice;

/// The activation at `points` and its derivative there: with dy = 1 and one token, dmask is the value and dx the
/// derivative.
fn values_and_derivatives(kind: Activation, points: &[f32]) -> [Vec<f32>; 2] {
    let n = points.len();
    let mut device = TestDevice::new();
    let (on_ones, on_pre) = (device.matrix(1, n, &vec![1.0; n], F32), device.matrix(1, n, points, F32));
    let (on_dx, on_dmask, cu_seqlens) =
        (device.output(1, n, F32), device.output(1, n, F32), device.ints(&[0, 1]));
    device.run(|queue| {
        activation::cuda::backward(queue, kind, on_ones, on_pre, None, on_dx, Some((cu_seqlens, on_dmask)))
    });
    [device.read(&on_dmask), device.read(&on_dx)]
}

#[test]
fn activations_stay_within_their_stated_error_over_the_whole_range() {
    let points = whole_range();
    for kind in KINDS {
        let [values, derivatives] = values_and_derivatives(kind, &points);
        for (j, &x) in points.iter().enumerate() {
            let x = f64::from(x);
            let (value, derivative) =
                (activation::reference::value(kind, x), activation::reference::derivative(kind, x));
            let ours = f64::from(values[j]);
            let error = (ours - value).abs();
            // Below the normal range results may become 0; x·Φ(x) does from x = −13.2 on.
            let bound = value_bound(kind, x) + 16.0 * f64::from(f32::MIN_POSITIVE);
            assert!(
                error <= bound,
                "{kind:?}({x}) is {ours}, should be {value}: {} ulp",
                error / value.abs() / U / 2.0
            );
            let ours = f64::from(derivatives[j]);
            assert!(
                (ours - derivative).abs() <= derivative_bound(kind, x),
                "{kind:?}'({x}) is {ours}, should be {derivative}"
            );
        }
    }
}

#[test]
fn not_a_number_stays_so_and_infinities_have_their_limits_on_a_device() {
    let points = [f32::NAN, f32::INFINITY, -1e30, 1e30];
    for kind in KINDS {
        let [y, _] = values_and_derivatives(kind, &points);
        assert!(y[0].is_nan(), "{kind:?}");
        assert_eq!(y[1], if kind == Activation::Tanh { 1.0 } else { f32::INFINITY }, "{kind:?}");
        assert_eq!(y[2], if kind == Activation::Tanh { -1.0 } else { 0.0 }, "{kind:?}");
        assert_eq!(y[3], if kind == Activation::Tanh { 1.0 } else { 1e30 }, "{kind:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn activation_backward_with_masks_matches_the_reference(seed: u64, element in element(), n in columns(), sequences in 1usize..5, masked: bool, with_dmask: bool) {
        let random = &mut Random(seed);
        let kind = KINDS[random.below(4)];
        let cu_seqlens = random.cu_seqlens(sequences, 20);
        let rows = cu_seqlens[sequences] as usize;
        let (x, dy) = (random_matrix(random, element, rows, n, 5.0), random_matrix(random, element, rows, n, 2.0));
        let mask = masked.then(|| random.mask(n));
        let wide_mask = mask.as_ref().map(|mask| wide(mask));
        let (wide_x, wide_dy) = (x.wide(), dy.wide());
        let (mut exact_dx, mut exact_dmask) = (Wide::poisoned(rows, n), Wide::poisoned(sequences, n));
        activation::reference::backward(kind, wide_dy.view(), wide_x.view(), wide_mask.as_deref(), exact_dx.view_mut(), false, Some((&cu_seqlens, exact_dmask.view_mut())));

        let mut device = TestDevice::new();
        let (on_x, on_dy, on_dx) = (put(&mut device, &x, element), put(&mut device, &dy, element), device.output(rows, n, element));
        let on_mask = mask.as_ref().map(|mask| device.floats(mask));
        let on_dmask = with_dmask.then(|| (device.ints(&cu_seqlens), device.output(sequences, n, F32)));
        device.run(|queue| activation::cuda::backward(queue, kind, on_dy, on_x, on_mask, on_dx, on_dmask));
        let mask_at = |j: usize| wide_mask.as_ref().map_or(1.0, |mask| mask[j].abs());
        get(&device, on_dx).assert_within("dx", &exact_dx, |t, j| {
            let scale = mask_at(j) * wide_dy.at(t, j).abs();
            rounded(element, scale * (derivative_bound(kind, wide_x.at(t, j)) + 6.0 * U) + 2.0 * U * exact_dx.at(t, j).abs(), exact_dx.at(t, j))
        });
        if let Some((_, on_dmask)) = on_dmask {
            get(&device, on_dmask).assert_within("dmask", &exact_dmask, |b, j| {
                let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
                tokens.clone().map(|t| {
                    let term = (wide_dy.at(t, j) * activation::reference::value(kind, wide_x.at(t, j))).abs();
                    wide_dy.at(t, j).abs() * value_bound(kind, wide_x.at(t, j)) + gamma(tokens.len() + 8) * term
                }).sum::<f64>() * 1.001
            });
        }
    }
}
