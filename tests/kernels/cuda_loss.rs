//! The loss kernels on a device (emulated, or a GPU) against the f64 reference.
//!
//! The bounds are those of the CPU tests with the device's own count of roundings in a sum of exponentials: a thread
//! rescales its sum when it meets a new maximum, at most once every four logits, and once at the end.

use proptest::prelude::*;
use secateur::launch::ElementType::{Bf16, F32};
use secateur::launch::Precision;
use secateur::ops::gemm::Factors;
use secateur::ops::loss::{cuda, reference};

use crate::common::{Random, U, Wide, assert_within, gamma, wide};
use crate::loss::{Softmax, SpanDistillation, labels_and_weights};
use crate::support::device::TestDevice;

/// Rows with more classes than this are a block's work.
const NARROW: usize = 512;

/// A row's softmax with the error of the device's sum.
fn softmax(z: &[f64]) -> Softmax {
    let mut softmax = Softmax::of(z);
    let (threads, tree) = if z.len() <= NARROW { (32, 5) } else { (512, 5 + 16) };
    // Of each quad: a rescaling (an exponential of up to 2 ulp, a product) and four sums.
    let roundings = 9 * z.len().div_ceil(4 * threads) + 5 + tree;
    let mean_below: f64 = softmax.p.iter().zip(&softmax.below).map(|(p, below)| p * below).sum();
    softmax.sum_error = U * (3.0 * mean_below + 5.0) + gamma(roundings);
    softmax
}

fn classes() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1usize..300, 2 => prop::sample::select(vec![511usize, 512, 513, 1025, 2051])]
}

fn matrix(random: &mut Random, rows: usize, cols: usize, scale: f32) -> (Vec<f32>, Wide) {
    let values = random.values(rows * cols, scale);
    let data = wide(&values);
    (values, Wide { data, rows, cols })
}

fn check_cross_entropy(seed: u64, rows: usize, classes: usize, scale: f32, accumulate: bool) {
    let random = &mut Random(seed);
    let (z, wide_z) = matrix(random, rows, classes, scale);
    let (labels, weights) = labels_and_weights(random, rows, classes);
    let (old, wide_old) = matrix(random, rows, classes, 1.0);
    let (mut exact, mut exact_dz) = (vec![f64::NAN; rows], wide_old.clone());
    reference::cross_entropy(
        wide_z.view(),
        &labels,
        &wide(&weights),
        &mut exact,
        Some(exact_dz.view_mut()),
        accumulate,
    );

    let mut device = TestDevice::new();
    let on_z = device.matrix(rows, classes, &z, F32);
    let (on_labels, on_weights) = (device.ints(&labels), device.floats(&weights));
    let (on_losses, alone) = (device.output_floats(rows), device.output_floats(rows));
    let on_dz =
        if accumulate { device.matrix(rows, classes, &old, F32) } else { device.output(rows, classes, F32) };
    device.run(|queue| {
        cuda::cross_entropy(queue, on_z, on_labels, on_weights, on_losses, Some(on_dz), accumulate)
    });
    device.run(|queue| cuda::cross_entropy(queue, on_z, on_labels, on_weights, alone, None, accumulate));
    let (losses, dz) = (device.read_floats(on_losses, rows), device.read(&on_dz));
    let of: Vec<Softmax> = (0..rows).map(|i| softmax(wide_z.view().row(i))).collect();
    assert_within("losses", &losses, &exact, |i| {
        if labels[i] < 0 { 0.0 } else { of[i].loss_error(labels[i] as usize) }
    });
    assert_within("dz", &dz, &exact_dz.data, |at| {
        let (i, c) = (at / classes, at % classes);
        let weight = f64::from(weights[i]);
        weight * (of[i].p[c] * of[i].p_error(c) + 2.0 * U)
            + U * (wide_old.data[at].abs() + exact_dz.data[at].abs())
    });
    for i in (0..rows).filter(|&i| labels[i] < 0 || weights[i] == 0.0) {
        assert_eq!(losses[i], 0.0);
        assert!(accumulate || dz[i * classes..(i + 1) * classes].iter().all(|&x| x == 0.0));
    }
    assert_eq!(device.read_floats(alone, rows), losses, "without a gradient");
    if !accumulate {
        // In place of the logits: the same bits.
        device.run(|queue| {
            cuda::cross_entropy(queue, on_z, on_labels, on_weights, on_losses, Some(on_z), false)
        });
        assert_eq!(device.read_floats(on_losses, rows), losses, "in place");
        assert_eq!(device.read(&on_z), dz, "in place");
    }
}

fn check_distillation(seed: u64, rows: usize, classes: usize, temperature: f32, accumulate: bool) {
    let random = &mut Random(seed);
    let ((student, wide_student), (teacher, wide_teacher)) =
        (matrix(random, rows, classes, 6.0), matrix(random, rows, classes, 6.0));
    let (_, weights) = labels_and_weights(random, rows, 2);
    let (old, wide_old) = matrix(random, rows, classes, 1.0);
    let t = f64::from(temperature);
    let (mut exact, mut exact_ds) = (vec![f64::NAN; rows], wide_old.clone());
    reference::distillation(
        wide_student.view(),
        wide_teacher.view(),
        t,
        &wide(&weights),
        &mut exact,
        Some(exact_ds.view_mut()),
        accumulate,
    );

    let mut device = TestDevice::new();
    let (on_student, on_teacher) =
        (device.matrix(rows, classes, &student, F32), device.matrix(rows, classes, &teacher, F32));
    let (on_weights, on_losses) = (device.floats(&weights), device.output_floats(rows));
    let on_ds =
        if accumulate { device.matrix(rows, classes, &old, F32) } else { device.output(rows, classes, F32) };
    device.run(|queue| {
        cuda::distillation(
            queue,
            on_student,
            on_teacher,
            temperature,
            on_weights,
            on_losses,
            Some(on_ds),
            accumulate,
        )
    });
    let tempered = |x: &Wide, i: usize| softmax(&x.view().row(i).iter().map(|z| z / t).collect::<Vec<_>>());
    let pairs: Vec<(Softmax, Softmax)> =
        (0..rows).map(|i| (tempered(&wide_teacher, i), tempered(&wide_student, i))).collect();
    let losses = device.read_floats(on_losses, rows);
    assert_within("losses", &losses, &exact, |i| {
        let (p, q) = &pairs[i];
        let terms = (0..classes).map(|c| {
            let log_ratio = (p.p[c].ln() - q.p[c].ln()).abs();
            let (of_p, of_q) = (p.loss_error(c), q.loss_error(c));
            // Errors of the logarithms, of the exponential of the first, and of the sum.
            p.p[c]
                * ((of_p + of_q + U * log_ratio)
                    + log_ratio * (of_p + 5.0 * U + gamma(classes.div_ceil(32) + 26)))
        });
        t * t * terms.sum::<f64>()
    });
    assert_within("ds", &device.read(&on_ds), &exact_ds.data, |at| {
        let (i, c) = (at / classes, at % classes);
        let (p, q) = &pairs[i];
        f64::from(weights[i])
            * t
            * (p.p[c] * p.p_error(c) + q.p[c] * q.p_error(c) + 2.0 * U * (p.p[c] + q.p[c]))
            + U * (wide_old.data[at].abs() + exact_ds.data[at].abs())
    });
    let alone = device.output_floats(rows);
    device.run(|queue| {
        cuda::distillation(queue, on_student, on_teacher, temperature, on_weights, alone, None, accumulate)
    });
    assert_eq!(device.read_floats(alone, rows), losses, "without a gradient");
}

/// The fused head: `step` rows of logits at a time, operands in bf16 if `narrow`.
fn check_head(seed: u64, [rows, classes, d, step]: [usize; 4], narrow: bool, with_bias: bool, which: usize) {
    let random = &mut Random(seed);
    let (element, half_ulp) = if narrow { (Bf16, 1.0 / 256.0) } else { (F32, 0.0) };
    let mut stored = |rows: usize, cols: usize| {
        let mut values = random.values(rows * cols, 1.0);
        if narrow {
            values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
        let data = wide(&values);
        (values, Wide { data, rows, cols })
    };
    let ((x, wide_x), (w, wide_w)) = (stored(rows, d), stored(classes, d));
    let bias = with_bias.then(|| random.values(classes, 1.0));
    let wide_bias = bias.as_ref().map(|bias| wide(bias));
    let (labels, weights) = labels_and_weights(random, rows, classes);
    let ((old_dw, wide_dw), old_dbias) = (matrix(random, classes, d, 1.0), random.values(classes, 1.0));
    let [want_dx, want_dw, want_dbias] = [0, 1, 2].map(|bit| which >> bit & 1 == 1);
    let (mut exact, mut exact_dx, mut exact_dw, mut exact_dbias) =
        (vec![f64::NAN; rows], Wide::poisoned(rows, d), wide_dw.clone(), wide(&old_dbias));
    reference::linear_cross_entropy(
        Factors::F32,
        wide_x.view(),
        wide_w.view(),
        wide_bias.as_deref(),
        &labels,
        &wide(&weights),
        &mut exact,
        Some(exact_dx.view_mut()),
        Some(exact_dw.view_mut()),
        Some(&mut exact_dbias),
    );

    let mut device = TestDevice::with_precision(if narrow { Precision::Bf16 } else { Precision::F32 });
    let (on_x, on_w) = (device.matrix(rows, d, &x, element), device.matrix(classes, d, &w, element));
    let on_bias = bias.as_ref().map(|bias| device.floats(bias));
    let (on_labels, on_weights, on_losses) =
        (device.ints(&labels), device.floats(&weights), device.output_floats(rows));
    let on_dx = want_dx.then(|| device.output(rows, d, element));
    let on_dw = want_dw.then(|| device.matrix(classes, d, &old_dw, F32));
    let on_dbias = want_dbias.then(|| device.floats(&old_dbias));
    device.run(|queue| {
        cuda::linear_cross_entropy_by(
            queue, step, on_x, on_w, on_bias, on_labels, on_weights, on_losses, on_dx, on_dw, on_dbias,
        )
    });

    // Logits of a row, the bound of their error, and what that does to the gradient of each; in bf16 the gradient is then
    // rounded. A tensor core may truncate where f32 rounds: twice the bound.
    let unit = if narrow { 2.0 } else { 1.0 };
    let mut loss_error = vec![0.0; rows];
    let (mut dz, mut dz_error) = (Wide::zeros(rows, classes), Wide::zeros(rows, classes));
    for i in 0..rows {
        let size = |c: usize| {
            (0..d).map(|j| (wide_x.at(i, j) * wide_w.at(c, j)).abs()).sum::<f64>()
                + wide_bias.as_ref().map_or(0.0, |b| b[c].abs())
        };
        let delta = (0..classes).map(|c| unit * gamma(d + 4) * size(c)).fold(0.0, f64::max);
        let z: Vec<f64> = (0..classes)
            .map(|c| {
                (0..d).map(|j| wide_x.at(i, j) * wide_w.at(c, j)).sum::<f64>()
                    + wide_bias.as_ref().map_or(0.0, |b| b[c])
            })
            .collect();
        let mut of = softmax(&z);
        // The bf16 kernel gives a block to every row.
        of.sum_error += gamma(30);
        if labels[i] >= 0 && weights[i] != 0.0 {
            loss_error[i] = 2.02 * delta + of.loss_error(labels[i] as usize);
            for c in 0..classes {
                let weight = f64::from(weights[i]);
                let target = if labels[i] == c as i32 { 1.0 } else { 0.0 };
                let size = (weight * (of.p[c] - target)).abs();
                let error = weight * (of.p[c] * (2.02 * delta + of.p_error(c)) + 2.0 * U);
                dz.data[i * classes + c] = size;
                dz_error.data[i * classes + c] = error + half_ulp * (size + error);
            }
        }
    }
    assert_within("losses", &device.read_floats(on_losses, rows), &exact, |i| loss_error[i]);
    let through = |i: usize, c: usize, terms: usize| {
        dz_error.at(i, c) + unit * gamma(terms) * (dz.at(i, c) + dz_error.at(i, c))
    };
    if let Some(on_dx) = on_dx {
        assert_within("dx", &device.read(&on_dx), &exact_dx.data, |at| {
            let bound = 1.01
                * (0..classes)
                    .map(|c| through(at / d, c, classes + 20) * wide_w.at(c, at % d).abs())
                    .sum::<f64>();
            bound + half_ulp * (exact_dx.data[at].abs() + bound)
        });
    }
    let chunks = rows.div_ceil(step);
    if let Some(on_dw) = on_dw {
        assert_within("dw", &device.read(&on_dw), &exact_dw.data, |at| {
            let (c, j) = (at / d, at % d);
            1.01 * ((0..rows).map(|i| through(i, c, rows + chunks + 4) * wide_x.at(i, j).abs()).sum::<f64>()
                + gamma(rows + chunks + 4) * wide_dw.data[at].abs())
        });
    }
    if let Some(on_dbias) = on_dbias {
        assert_within("dbias", &device.read_floats(on_dbias, classes), &exact_dbias, |c| {
            1.01 * ((0..rows).map(|i| through(i, c, rows + chunks + 30)).sum::<f64>()
                + gamma(rows + chunks + 30) * f64::from(old_dbias[c]).abs())
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_fused_head_on_a_device_matches_the_reference(seed: u64, rows in 0usize..24, classes in prop_oneof![4 => 1usize..70, 1 => 513usize..530], d in 1usize..40, step in 1usize..24, narrow: bool, with_bias: bool, which in 0usize..8) {
        check_head(seed, [rows, classes, d, step], narrow, with_bias, which);
    }

    #[test]
    fn cross_entropy_on_a_device_matches_the_reference(seed: u64, rows in 0usize..9, classes in classes(), scale in prop_oneof![Just(1.0f32), Just(10.0), Just(1e4), Just(1e30)], accumulate: bool) {
        check_cross_entropy(seed, rows, classes, scale, accumulate);
    }

    #[test]
    fn distillation_on_a_device_matches_the_reference(seed: u64, rows in 0usize..9, classes in classes(), temperature in prop_oneof![Just(1.0f32), Just(2.0), Just(4.0)], accumulate: bool) {
        check_distillation(seed, rows, classes, temperature, accumulate);
    }

    #[test]
    fn squared_error_on_a_device_matches_the_reference(seed: u64, rows in 0usize..600, accumulate: bool) {
        let random = &mut Random(seed);
        let (x, wide_x) = matrix(random, rows, 1, 5.0);
        let targets = random.values(rows, 5.0);
        let (_, weights) = labels_and_weights(random, rows, 2);
        let (old, wide_old) = matrix(random, rows, 1, 1.0);
        let (mut exact, mut exact_dx) = (vec![f64::NAN; rows], wide_old.clone());
        reference::mean_squared_error(wide_x.view(), &wide(&targets), &wide(&weights), &mut exact, Some(exact_dx.view_mut()), accumulate);
        let mut device = TestDevice::new();
        let on_x = device.matrix(rows, 1, &x, F32);
        let (on_targets, on_weights, on_losses) = (device.floats(&targets), device.floats(&weights), device.output_floats(rows));
        let on_dx = if accumulate { device.matrix(rows, 1, &old, F32) } else { device.output(rows, 1, F32) };
        device.run(|queue| cuda::mean_squared_error(queue, on_x, on_targets, on_weights, on_losses, Some(on_dx), accumulate));
        assert_within("losses", &device.read_floats(on_losses, rows), &exact, |i| gamma(4) * exact[i]);
        assert_within("dx", &device.read(&on_dx), &exact_dx.data, |i| gamma(5) * (exact_dx.data[i].abs() + 2.0 * wide_old.data[i].abs()));
    }

    #[test]
    fn span_distillation_on_a_device_matches_the_reference(seed: u64, sequences in 1usize..6, longest in prop_oneof![1usize..40, 100usize..300], accumulate: bool) {
        let random = &mut Random(seed);
        let cu_seqlens = random.cu_seqlens(sequences, longest);
        let rows = cu_seqlens[sequences] as usize;
        let ((student, wide_student), (teacher, wide_teacher)) = (matrix(random, rows, 2, 6.0), matrix(random, rows, 2, 6.0));
        let (old, wide_old) = matrix(random, rows, 2, 1.0);
        let (_, weights) = labels_and_weights(random, sequences, 2);
        let (mut exact, mut exact_ds) = (vec![f64::NAN; sequences], wide_old.clone());
        reference::span_distillation(wide_student.view(), wide_teacher.view(), 2.0, &cu_seqlens, &wide(&weights), &mut exact, Some(exact_ds.view_mut()), accumulate);
        let mut device = TestDevice::new();
        let (on_student, on_teacher) = (device.matrix(rows, 2, &student, F32), device.matrix(rows, 2, &teacher, F32));
        let on_ds = if accumulate { device.matrix(rows, 2, &old, F32) } else { device.output(rows, 2, F32) };
        let on_lengths = device.ints(&cu_seqlens);
        let (on_weights, on_losses) = (device.floats(&weights), device.output_floats(sequences));
        device.run(|queue| cuda::span_distillation(queue, on_student, on_teacher, 2.0, on_lengths, sequences, on_weights, on_losses, Some(on_ds), accumulate));
        // A thread of 128 takes every 128th token; a tree of a warp, then four warps.
        let bounds = SpanDistillation { student: &wide_student, teacher: &wide_teacher, temperature: 2.0, cu_seqlens: &cu_seqlens, extra: longest.div_ceil(128) + 12 };
        let losses = device.read_floats(on_losses, sequences);
        assert_within("losses", &losses, &exact, |b| bounds.of_loss(b) + 2.0 * U * exact[b]);
        assert_within("ds", &device.read(&on_ds), &exact_ds.data, |at| {
            let (t, c) = (at / 2, at % 2);
            f64::from(weights[bounds.sequence(t)]) * bounds.of_gradient(t, c) + U * (wide_old.data[at].abs() + exact_ds.data[at].abs())
        });
        let alone = device.output_floats(sequences);
        device.run(|queue| cuda::span_distillation(queue, on_student, on_teacher, 2.0, on_lengths, sequences, on_weights, alone, None, accumulate));
        prop_assert_eq!(device.read_floats(alone, sequences), losses);
    }

    #[test]
    fn span_on_a_device_matches_the_reference(seed: u64, sequences in 1usize..6, longest in prop_oneof![1usize..40, 100usize..300]) {
        let random = &mut Random(seed);
        let cu_seqlens = random.cu_seqlens(sequences, longest);
        let rows = cu_seqlens[sequences] as usize;
        let (z, wide_z) = matrix(random, rows, 2, 8.0);
        let len = |b: usize| (cu_seqlens[b + 1] - cu_seqlens[b]) as usize;
        // Some positions lie outside their sequence: those are ignored.
        let mut position = |b: usize| random.below(len(b) + 2) as i32 - 1;
        let starts: Vec<i32> = (0..sequences).map(&mut position).collect();
        let ends: Vec<i32> = (0..sequences).map(&mut position).collect();
        let (_, weights) = labels_and_weights(random, sequences, 2);
        let (mut exact, mut exact_dz) = (vec![f64::NAN; sequences], Wide::poisoned(rows, 2));
        reference::span(wide_z.view(), &starts, &ends, &cu_seqlens, &wide(&weights), &mut exact, Some(exact_dz.view_mut()));
        let mut device = TestDevice::new();
        let (on_z, on_dz) = (device.matrix(rows, 2, &z, F32), device.output(rows, 2, F32));
        let [on_starts, on_ends, on_lengths] = [&starts, &ends, &cu_seqlens].map(|values| device.ints(values));
        let (on_weights, on_losses) = (device.floats(&weights), device.output_floats(sequences));
        device.run(|queue| cuda::span(queue, on_z, on_starts, on_ends, on_lengths, sequences, on_weights, on_losses, Some(on_dz)));
        let column = |b: usize, c: usize| {
            let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
            let mut of = softmax(&tokens.map(|t| wide_z.at(t, c)).collect::<Vec<_>>());
            // A thread of 128 takes every 128th token; a tree of a warp, then four warps.
            of.sum_error += gamma(len(b).div_ceil(128) + 9);
            of
        };
        assert_within("losses", &device.read_floats(on_losses, sequences), &exact, |b| {
            let half = |c: usize, position: i32| if (0..len(b) as i32).contains(&position) { column(b, c).loss_error(position as usize) } else { 0.0 };
            half(0, starts[b]) + half(1, ends[b]) + 2.0 * U * exact[b]
        });
        let dz = device.read(&on_dz);
        for b in 0..sequences {
            for c in 0..2 {
                let of = column(b, c);
                for i in 0..len(b) {
                    let at = 2 * (cu_seqlens[b] as usize + i) + c;
                    let error = (f64::from(dz[at]) - exact_dz.data[at]).abs();
                    prop_assert!(error <= f64::from(weights[b]) * (of.p[i] * of.p_error(i) + 3.0 * U), "dz[{}]", at);
                }
            }
        }
        // In place.
        device.run(|queue| cuda::span(queue, on_z, on_starts, on_ends, on_lengths, sequences, on_weights, on_losses, Some(on_z)));
        prop_assert_eq!(device.read(&on_z), dz);
    }
}
