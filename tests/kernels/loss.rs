//! Losses and their gradients: weights, ignored rows, huge logits, accumulation.

use proptest::prelude::*;
use secateur::ops::gemm::Factors;
use secateur::ops::loss::{cpu, reference};

use crate::common::{
    Matrix, Random, U, Wide, assert_gradient, assert_within, gamma, row_sum, same_bits_on_any_threads, wide,
};

/// A row of logits as its error analysis needs it.
pub struct Softmax {
    pub p: Vec<f64>,
    /// |z − max| of each class.
    pub below: Vec<f64>,
    /// Relative error of the sum of exponentials: each exponent is off by its rounding.
    pub sum_error: f64,
    pub log_sum: f64,
}

impl Softmax {
    pub fn of(z: &[f64]) -> Softmax {
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let below: Vec<f64> = z.iter().map(|z| max - z).collect();
        let p: Vec<f64> = below.iter().map(|below| (-below - log_sum).exp()).collect();
        let mean_below: f64 = p.iter().zip(&below).map(|(p, below)| p * below).sum();
        let sum_error = U * (3.0 * mean_below + 3.0) + gamma(row_sum(z.len()));
        Softmax { p, below, sum_error, log_sum }
    }
    /// Bound of the error of the cross-entropy of class `label`.
    pub fn loss_error(&self, label: usize) -> f64 {
        1.01 * (self.sum_error + U * (2.0 * self.below[label] + 4.0 * self.log_sum + 2.0))
    }
    /// Relative bound of a probability.
    pub fn p_error(&self, class: usize) -> f64 {
        1.01 * (self.sum_error + U * (3.0 * self.below[class] + 8.0))
    }
}

/// Labels, some of them ignored, and weights, some of them 0.
pub fn labels_and_weights(random: &mut Random, rows: usize, classes: usize) -> (Vec<i32>, Vec<f32>) {
    (0..rows)
        .map(|_| {
            let label = if random.below(5) == 0 { -100 } else { random.below(classes) as i32 };
            let weight = if random.below(5) == 0 { 0.0 } else { random.value(1.0) + 1.0 };
            (label, weight)
        })
        .unzip()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cross_entropy_matches_the_reference(seed: u64, rows in 0usize..60, classes in 1usize..500, scale in prop_oneof![Just(1.0f32), Just(10.0), Just(1e4), Just(1e30)], accumulate: bool) {
        let random = &mut Random(seed);
        let z = Matrix::random(random, rows, classes, 2, scale);
        let (labels, weights) = labels_and_weights(random, rows, classes);
        let old = Matrix::random(random, rows, classes, 1, 1.0);
        let old_wide = old.wide();
        let wide_z = z.wide();
        let (mut exact, mut exact_dz) = (vec![f64::NAN; rows], old.wide());
        reference::cross_entropy(wide_z.view(), &labels, &wide(&weights), &mut exact, Some(exact_dz.view_mut()), accumulate);
        let run = || {
            let (mut losses, mut dz) = (vec![f32::NAN; rows], old.clone());
            cpu::cross_entropy(z.view(), &labels, &weights, &mut losses, Some(dz.view_mut()), accumulate);
            (losses, dz)
        };
        let (losses, dz) = run();
        let rows_of: Vec<Softmax> = (0..rows).map(|i| Softmax::of(wide_z.view().row(i))).collect();
        assert_within("losses", &losses, &exact, |i| if labels[i] < 0 { 0.0 } else { rows_of[i].loss_error(labels[i] as usize) });
        dz.assert_within("dz", &exact_dz, |i, c| {
            let weight = f64::from(weights[i]);
            weight * (rows_of[i].p[c] * rows_of[i].p_error(c) + 2.0 * U) + U * (old_wide.at(i, c).abs() + exact_dz.at(i, c).abs())
        });
        for i in 0..rows {
            if labels[i] < 0 || weights[i] == 0.0 {
                prop_assert_eq!(losses[i], 0.0);
                if !accumulate {
                    prop_assert!(dz.view().row(i).iter().all(|&x| x == 0.0));
                }
            }
        }
        same_bits_on_any_threads(|| {
            let (losses, dz) = run();
            [losses.iter().map(|x| x.to_bits()).collect(), dz.bits()].concat()
        });
        // Without a gradient the losses are the same.
        let mut alone = vec![f32::NAN; rows];
        cpu::cross_entropy(z.view(), &labels, &weights, &mut alone, None, accumulate);
        prop_assert_eq!(alone, losses);
    }

    #[test]
    fn the_fused_head_matches_the_reference(seed: u64, rows in 0usize..40, classes in 1usize..120, d in 1usize..40, with_bias: bool, which in 0usize..8, narrow: bool) {
        // Factors rounded to bf16 have relative errors of 2⁻⁸, against exact ones.
        let (factors, rounding) = if narrow { (Factors::Bf16, 1.0 / 256.0) } else { (Factors::F32, 0.0) };
        let of_product = 2.0 * rounding + rounding * rounding;
        let random = &mut Random(seed);
        let (x, w) = (Matrix::random(random, rows, d, 1, 1.0), Matrix::random(random, classes, d, 2, 1.0));
        let bias = with_bias.then(|| random.values(classes, 1.0));
        let (labels, weights) = labels_and_weights(random, rows, classes);
        let (old_dw, old_dbias) = (Matrix::random(random, classes, d, 1, 1.0), random.values(classes, 1.0));
        let old_dw_wide = old_dw.wide();
        let [want_dx, want_dw, want_dbias] = [0, 1, 2].map(|bit| which >> bit & 1 == 1);
        let (wide_x, wide_w, wide_bias) = (x.wide(), w.wide(), bias.as_ref().map(|b| wide(b)));
        let (mut exact, mut exact_dx, mut exact_dw, mut exact_dbias) = (vec![f64::NAN; rows], Wide::poisoned(rows, d), old_dw.wide(), wide(&old_dbias));
        reference::linear_cross_entropy(Factors::F32, wide_x.view(), wide_w.view(), wide_bias.as_deref(), &labels, &wide(&weights), &mut exact, Some(exact_dx.view_mut()), Some(exact_dw.view_mut()), Some(&mut exact_dbias));
        let run = || {
            let (mut losses, mut dx, mut dw, mut dbias) = (vec![f32::NAN; rows], Matrix::poisoned(rows, d, 2), old_dw.clone(), old_dbias.clone());
            cpu::linear_cross_entropy(factors, x.view(), w.view(), bias.as_deref(), &labels, &weights, &mut losses, want_dx.then(|| dx.view_mut()), want_dw.then(|| dw.view_mut()), want_dbias.then_some(&mut dbias));
            (losses, dx, dw, dbias)
        };
        let (losses, dx, dw, dbias) = run();
        // Logits of a row, the bound of their error, and what that does to the gradient of each.
        let mut loss_error = vec![0.0; rows];
        let mut dz = Wide::zeros(rows, classes);
        let mut dz_error = Wide::zeros(rows, classes);
        for i in 0..rows {
            let size = |c: usize| (0..d).map(|j| (wide_x.at(i, j) * wide_w.at(c, j)).abs()).sum::<f64>() + wide_bias.as_ref().map_or(0.0, |b| b[c].abs());
            let delta = (0..classes).map(|c| (of_product + 1.01 * gamma(d + 2)) * size(c)).fold(0.0, f64::max);
            let z: Vec<f64> = (0..classes).map(|c| (0..d).map(|j| wide_x.at(i, j) * wide_w.at(c, j)).sum::<f64>() + wide_bias.as_ref().map_or(0.0, |b| b[c])).collect();
            let softmax = Softmax::of(&z);
            // Of a probability, whose logit and whose sum are off by delta each.
            let swing = 1.01 * (2.0 * delta).exp_m1();
            if labels[i] >= 0 && weights[i] != 0.0 {
                loss_error[i] = 2.02 * delta + softmax.loss_error(labels[i] as usize);
                for c in 0..classes {
                    let weight = f64::from(weights[i]);
                    let target = if labels[i] == c as i32 { 1.0 } else { 0.0 };
                    dz.data[i * classes + c] = (weight * (softmax.p[c] - target)).abs();
                    dz_error.data[i * classes + c] = weight * (softmax.p[c] * (swing + softmax.p_error(c)) + 2.0 * U);
                }
            }
        }
        assert_within("losses", &losses, &exact, |i| loss_error[i]);
        let through = |i: usize, c: usize, terms: usize| dz_error.at(i, c) + gamma(terms) * dz.at(i, c);
        // What a product of the gradient sums up: both factors rounded.
        let factor = |i: usize, c: usize, terms: usize| through(i, c, terms) * (1.0 + of_product) + of_product * dz.at(i, c);
        if want_dx {
            dx.assert_within("dx", &exact_dx, |i, j| 1.01 * (0..classes).map(|c| factor(i, c, classes + 2) * wide_w.at(c, j).abs()).sum::<f64>());
        }
        if want_dw {
            dw.assert_within("dw", &exact_dw, |c, j| 1.01 * ((0..rows).map(|i| factor(i, c, rows + 2) * wide_x.at(i, j).abs()).sum::<f64>() + gamma(rows + 2) * old_dw_wide.at(c, j).abs()));
        } else {
            prop_assert_eq!(dw.bits(), old_dw.bits());
        }
        if want_dbias {
            assert_within("dbias", &dbias, &exact_dbias, |c| 1.01 * ((0..rows).map(|i| through(i, c, rows + 2)).sum::<f64>() + gamma(rows + 2) * f64::from(old_dbias[c]).abs()));
        }
        same_bits_on_any_threads(|| {
            let (losses, dx, dw, dbias) = run();
            [losses.iter().chain(&dbias).map(|x| x.to_bits()).collect(), dx.bits(), dw.bits()].concat()
        });
    }

    #[test]
    fn squared_error_matches_the_reference(seed: u64, rows in 0usize..50, accumulate: bool) {
        let random = &mut Random(seed);
        let (x, targets) = (Matrix::random(random, rows, 1, 3, 5.0), random.values(rows, 5.0));
        let (_, weights) = labels_and_weights(random, rows, 2);
        let old = Matrix::random(random, rows, 1, 1, 1.0);
        let old_wide = old.wide();
        let (mut exact, mut exact_dx) = (vec![f64::NAN; rows], old.wide());
        reference::mean_squared_error(x.wide().view(), &wide(&targets), &wide(&weights), &mut exact, Some(exact_dx.view_mut()), accumulate);
        let (mut losses, mut dx) = (vec![f32::NAN; rows], old.clone());
        cpu::mean_squared_error(x.view(), &targets, &weights, &mut losses, Some(dx.view_mut()), accumulate);
        assert_within("losses", &losses, &exact, |i| gamma(4) * exact[i]);
        dx.assert_within("dx", &exact_dx, |i, _| gamma(5) * (exact_dx.at(i, 0).abs() + 2.0 * old_wide.at(i, 0).abs()));
    }

    #[test]
    fn span_matches_the_reference(seed: u64, sequences in 1usize..8, longest in 1usize..200) {
        let random = &mut Random(seed);
        let cu_seqlens = random.cu_seqlens(sequences, longest);
        let rows = cu_seqlens[sequences] as usize;
        let z = Matrix::random(random, rows, 2, 1, 8.0);
        let wide_z = z.wide();
        let len = |b: usize| (cu_seqlens[b + 1] - cu_seqlens[b]) as usize;
        // Some positions lie outside their sequence: those are ignored.
        let mut position = |b: usize| random.below(len(b) + 2) as i32 - 1;
        let starts: Vec<i32> = (0..sequences).map(&mut position).collect();
        let ends: Vec<i32> = (0..sequences).map(&mut position).collect();
        let (_, weights) = labels_and_weights(random, sequences, 2);
        let (mut exact, mut exact_dz) = (vec![f64::NAN; sequences], Wide::poisoned(rows, 2));
        reference::span(z.wide().view(), &starts, &ends, &cu_seqlens, &wide(&weights), &mut exact, Some(exact_dz.view_mut()));
        let (mut losses, mut dz) = (vec![f32::NAN; sequences], Matrix::poisoned(rows, 2, 2));
        cpu::span(z.view(), &starts, &ends, &cu_seqlens, &weights, &mut losses, Some(dz.view_mut()));
        let column = |b: usize, c: usize| {
            let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
            Softmax::of(&tokens.map(|t| wide_z.at(t, c)).collect::<Vec<_>>())
        };
        assert_within("losses", &losses, &exact, |b| {
            let half = |c: usize, position: i32| if (0..len(b) as i32).contains(&position) { column(b, c).loss_error(position as usize) } else { 0.0 };
            half(0, starts[b]) + half(1, ends[b]) + 2.0 * U * exact[b]
        });
        for b in 0..sequences {
            for c in 0..2 {
                let softmax = column(b, c);
                for i in 0..len(b) {
                    let t = cu_seqlens[b] as usize + i;
                    let error = (f64::from(dz.view().at(t, c)) - exact_dz.at(t, c)).abs();
                    let weight = f64::from(weights[b]);
                    prop_assert!(error <= weight * (softmax.p[i] * softmax.p_error(i) + 2.0 * U), "dz[{}, {}]", t, c);
                }
            }
        }
    }

    #[test]
    fn distillation_matches_the_reference(seed: u64, rows in 0usize..40, classes in 1usize..300, temperature in prop_oneof![Just(1.0f32), Just(2.0), Just(4.0)], accumulate: bool) {
        let random = &mut Random(seed);
        let (student, teacher) = (Matrix::random(random, rows, classes, 1, 6.0), Matrix::random(random, rows, classes, 2, 6.0));
        let (_, weights) = labels_and_weights(random, rows, 2);
        let old = Matrix::random(random, rows, classes, 1, 1.0);
        let old_wide = old.wide();
        let t = f64::from(temperature);
        let (mut exact, mut exact_ds) = (vec![f64::NAN; rows], old.wide());
        reference::distillation(student.wide().view(), teacher.wide().view(), t, &wide(&weights), &mut exact, Some(exact_ds.view_mut()), accumulate);
        let run = || {
            let (mut losses, mut ds) = (vec![f32::NAN; rows], old.clone());
            cpu::distillation(student.view(), teacher.view(), temperature, &weights, &mut losses, Some(ds.view_mut()), accumulate);
            (losses, ds)
        };
        let (losses, ds) = run();
        let (wide_student, wide_teacher) = (student.wide(), teacher.wide());
        let tempered = |x: &Wide, i: usize| Softmax::of(&x.view().row(i).iter().map(|z| z / t).collect::<Vec<_>>());
        let pairs: Vec<(Softmax, Softmax)> = (0..rows).map(|i| (tempered(&wide_teacher, i), tempered(&wide_student, i))).collect();
        assert_within("losses", &losses, &exact, |i| {
            let (p, q) = &pairs[i];
            t * t * (0..classes).map(|c| {
                let log_ratio = (p.p[c].ln() - q.p[c].ln()).abs();
                // Errors of the logarithms, of the exponential of the first, and of the sum.
                let (of_p, of_q) = (p.loss_error(c), q.loss_error(c));
                p.p[c] * ((of_p + of_q + U * log_ratio) + log_ratio * (of_p + 3.0 * U + gamma(row_sum(classes) + 4)))
            }).sum::<f64>()
        });
        ds.assert_within("ds", &exact_ds, |i, c| {
            let (p, q) = &pairs[i];
            f64::from(weights[i]) * t * (p.p[c] * p.p_error(c) + q.p[c] * q.p_error(c) + 2.0 * U * (p.p[c] + q.p[c])) + U * (old_wide.at(i, c).abs() + exact_ds.at(i, c).abs())
        });
        same_bits_on_any_threads(|| {
            let (losses, ds) = run();
            [losses.iter().map(|x| x.to_bits()).collect(), ds.bits()].concat()
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn span_distillation_matches_the_reference(seed: u64, sequences in 1usize..8, longest in 1usize..200, temperature in prop_oneof![Just(1.0f32), Just(2.0)], accumulate: bool) {
        let random = &mut Random(seed);
        let cu_seqlens = random.cu_seqlens(sequences, longest);
        let rows = cu_seqlens[sequences] as usize;
        let (student, teacher) = (Matrix::random(random, rows, 2, 1, 6.0), Matrix::random(random, rows, 2, 2, 6.0));
        let (_, weights) = labels_and_weights(random, sequences, 2);
        let old = Matrix::random(random, rows, 2, 1, 1.0);
        let (wide_student, wide_teacher) = (student.wide(), teacher.wide());
        let (mut exact, mut exact_ds) = (vec![f64::NAN; sequences], old.wide());
        reference::span_distillation(wide_student.view(), wide_teacher.view(), f64::from(temperature), &cu_seqlens, &wide(&weights), &mut exact, Some(exact_ds.view_mut()), accumulate);
        let (mut losses, mut ds) = (vec![f32::NAN; sequences], old.clone());
        cpu::span_distillation(student.view(), teacher.view(), temperature, &cu_seqlens, &weights, &mut losses, Some(ds.view_mut()), accumulate);
        let bounds = SpanDistillation { student: &wide_student, teacher: &wide_teacher, temperature: f64::from(temperature), cu_seqlens: &cu_seqlens, extra: row_sum(longest) };
        assert_within("losses", &losses, &exact, |b| bounds.of_loss(b) + 2.0 * U * exact[b]);
        let old = old.wide();
        ds.assert_within("ds", &exact_ds, |t, c| {
            f64::from(weights[bounds.sequence(t)]) * bounds.of_gradient(t, c) + U * (old.at(t, c).abs() + exact_ds.at(t, c).abs())
        });
        let mut alone = vec![f32::NAN; sequences];
        cpu::span_distillation(student.view(), teacher.view(), temperature, &cu_seqlens, &weights, &mut alone, None, accumulate);
        prop_assert_eq!(alone, losses);
    }
}

/// Error bounds of the distillation of spans: those of [`Softmax`] for each column of a sequence.
pub struct SpanDistillation<'a> {
    pub student: &'a Wide,
    pub teacher: &'a Wide,
    pub temperature: f64,
    pub cu_seqlens: &'a [i32],
    /// Roundings of a sum over a sequence.
    pub extra: usize,
}

impl SpanDistillation<'_> {
    /// The sequence of a token.
    pub fn sequence(&self, token: usize) -> usize {
        self.cu_seqlens.partition_point(|&start| start as usize <= token) - 1
    }

    fn column(&self, b: usize, c: usize) -> [Softmax; 2] {
        let tokens = self.cu_seqlens[b] as usize..self.cu_seqlens[b + 1] as usize;
        [self.teacher, self.student].map(|z| {
            let scaled: Vec<f64> = tokens.clone().map(|t| z.at(t, c) / self.temperature).collect();
            let mut softmax = Softmax::of(&scaled);
            softmax.sum_error += gamma(self.extra);
            softmax
        })
    }

    /// Of the loss of a sequence.
    pub fn of_loss(&self, b: usize) -> f64 {
        let column = |c| {
            let [p, q] = self.column(b, c);
            let term = |i: usize| {
                let log_ratio = (p.p[i].ln() - q.p[i].ln()).abs();
                let (of_p, of_q) = (p.loss_error(i), q.loss_error(i));
                p.p[i]
                    * ((of_p + of_q + U * log_ratio) + log_ratio * (of_p + 5.0 * U + gamma(self.extra + 4)))
            };
            (0..p.p.len()).map(term).sum::<f64>()
        };
        0.5 * self.temperature.powi(2) * (column(0) + column(1))
    }

    /// Of an element of the gradient, for a weight of 1.
    pub fn of_gradient(&self, token: usize, c: usize) -> f64 {
        let b = self.sequence(token);
        let [p, q] = self.column(b, c);
        let i = token - self.cu_seqlens[b] as usize;
        0.5 * self.temperature * (p.p[i] * p.p_error(i) + q.p[i] * q.p_error(i) + 3.0 * U * (p.p[i] + q.p[i]))
    }
}

/// Every reference gradient against difference quotients of the weighted loss.
#[test]
fn the_reference_gradients_are_difference_quotients() {
    let random = &mut Random(3);
    let (rows, classes, d) = (4, 5, 3);
    let z = wide(&random.values(rows * classes, 2.0));
    let teacher = Wide { data: wide(&random.values(rows * classes, 2.0)), rows, cols: classes };
    let labels = [2, -100, 0, 4];
    let weights = [0.5, 1.0, 2.0, 0.0];
    let total = |losses: &[f64]| losses.iter().zip(&weights).map(|(loss, weight)| loss * weight).sum::<f64>();
    let as_wide = |data: &[f64], rows: usize, cols: usize| Wide { data: data.to_vec(), rows, cols };

    let cross_entropy = |z: &[f64]| {
        let (mut losses, mut dz) = (vec![0.0; rows], Wide::zeros(rows, classes));
        reference::cross_entropy(
            as_wide(z, rows, classes).view(),
            &labels,
            &weights,
            &mut losses,
            Some(dz.view_mut()),
            false,
        );
        (total(&losses), dz.data)
    };
    assert_gradient("cross-entropy", &z, &cross_entropy(&z).1, |z| cross_entropy(z).0);

    let distillation = |z: &[f64]| {
        let (mut losses, mut dz) = (vec![0.0; rows], Wide::zeros(rows, classes));
        reference::distillation(
            as_wide(z, rows, classes).view(),
            teacher.view(),
            2.0,
            &weights,
            &mut losses,
            Some(dz.view_mut()),
            false,
        );
        (total(&losses), dz.data)
    };
    assert_gradient("distillation", &z, &distillation(&z).1, |z| distillation(z).0);

    let squared = |x: &[f64]| {
        let (mut losses, mut dx) = (vec![0.0; rows], Wide::zeros(rows, 1));
        reference::mean_squared_error(
            as_wide(x, rows, 1).view(),
            &[0.3, -1.0, 2.0, 0.0],
            &weights,
            &mut losses,
            Some(dx.view_mut()),
            false,
        );
        (total(&losses), dx.data)
    };
    assert_gradient("squared error", &z[..rows], &squared(&z[..rows]).1, |x| squared(x).0);

    let cu_seqlens = [0, 3, 3, 9, 10];
    let span = |z: &[f64]| {
        let (mut losses, mut dz) = (vec![0.0; rows], Wide::zeros(10, 2));
        reference::span(
            as_wide(z, 10, 2).view(),
            &[1, 0, 9, 0],
            &[2, 0, 3, 0],
            &cu_seqlens,
            &weights,
            &mut losses,
            Some(dz.view_mut()),
        );
        (total(&losses), dz.data)
    };
    assert_gradient("span", &z, &span(&z).1, |z| span(z).0);

    let spans_of_teacher = as_wide(&wide(&random.values(20, 2.0)), 10, 2);
    let span_distillation = |z: &[f64]| {
        let (mut losses, mut dz) = (vec![0.0; rows], Wide::zeros(10, 2));
        reference::span_distillation(
            as_wide(z, 10, 2).view(),
            spans_of_teacher.view(),
            2.0,
            &cu_seqlens,
            &weights,
            &mut losses,
            Some(dz.view_mut()),
            false,
        );
        (total(&losses), dz.data)
    };
    assert_gradient("span distillation", &z, &span_distillation(&z).1, |z| span_distillation(z).0);

    let (x, w, bias) = (
        wide(&random.values(rows * d, 1.0)),
        wide(&random.values(classes * d, 1.0)),
        wide(&random.values(classes, 1.0)),
    );
    let head = |x: &[f64], w: &[f64], bias: &[f64]| {
        let (mut losses, mut dx, mut dw, mut dbias) =
            (vec![0.0; rows], Wide::zeros(rows, d), Wide::zeros(classes, d), vec![0.0; classes]);
        reference::linear_cross_entropy(
            Factors::F32,
            as_wide(x, rows, d).view(),
            as_wide(w, classes, d).view(),
            Some(bias),
            &labels,
            &weights,
            &mut losses,
            Some(dx.view_mut()),
            Some(dw.view_mut()),
            Some(&mut dbias),
        );
        (total(&losses), dx.data, dw.data, dbias)
    };
    let (_, dx, dw, dbias) = head(&x, &w, &bias);
    assert_gradient("head, dx", &x, &dx, |x| head(x, &w, &bias).0);
    assert_gradient("head, dw", &w, &dw, |w| head(&x, w, &bias).0);
    assert_gradient("head, dbias", &bias, &dbias, |bias| head(&x, &w, bias).0);
}
