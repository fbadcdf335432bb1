//! Absolute cosine, profile distance and mean magnitude against their f64 definitions.

use proptest::prelude::*;
use secateur::ops::similarity::{NORM_FLOOR, cpu, reference};
use secateur::ops::{View, ViewMut};

use crate::support;
use crate::support::numbers::{Random, U32, U64, gamma};
use crate::support::tensors::Tensors;

pub fn cosine_f64(x: &[f64], samples: usize, units: usize) -> Vec<f64> {
    let mut out = vec![f64::NAN; units * units];
    reference::absolute_cosine(View::dense(x, samples, units), &mut ViewMut::dense(&mut out, units, units));
    out
}

fn cosine_f32(x: &[f32], samples: usize, units: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; units * units];
    cpu::absolute_cosine(View::dense(x, samples, units), &mut ViewMut::dense(&mut out, units, units));
    out
}

fn profile_f32(cosine: &[f32], units: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; units * units];
    cpu::profile_distance(View::dense(cosine, units, units), &mut ViewMut::dense(&mut out, units, units));
    out
}

pub fn profile_f64(cosine: &[f64], units: usize) -> Vec<f64> {
    let mut out = vec![f64::NAN; units * units];
    reference::profile_distance(
        View::dense(cosine, units, units),
        &mut ViewMut::dense(&mut out, units, units),
    );
    out
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Random activations whose columns are now and then dead, copies, negated copies, tiny or huge.
pub fn activations(random: &mut Random, samples: usize, units: usize) -> Vec<f32> {
    let mut x = random.normals(samples * units);
    for unit in 0..units {
        let (kind, other) = (random.below(12), random.below(units));
        for s in 0..samples {
            let at = s * units + unit;
            x[at] = match kind {
                0 => 0.0,
                1 => x[s * units + other],
                2 => -3.0 * x[s * units + other],
                3 => x[at] * 1e-9,
                4 => x[at] * 1e-25,
                5 => x[at] * 1e18,
                _ => x[at],
            };
        }
    }
    x
}

fn check_cosine(x: &[f32], samples: usize, units: usize) {
    let exact = cosine_f64(&widen(x), samples, units);
    let fast = cosine_f32(x, samples, units);
    let bound = gamma(samples + 4, U32);
    for i in 0..units {
        let norm = (0..samples).map(|s| f64::from(x[s * units + i]).powi(2)).sum::<f64>().sqrt();
        let diagonal = fast[i * units + i];
        if norm == 0.0 {
            assert!((0..units).all(|j| fast[i * units + j] == 0.0), "a dead column is not all zero");
        } else if norm > 1.01 * NORM_FLOOR {
            assert_eq!(diagonal, 1.0, "diagonal of a live column");
        }
        for j in 0..units {
            let (found, expected) = (fast[i * units + j], exact[i * units + j]);
            assert!((0.0..=1.0).contains(&found));
            assert_eq!(found.to_bits(), fast[j * units + i].to_bits(), "not symmetric");
            assert!(
                (f64::from(found) - expected).abs() <= bound,
                "({i}, {j}): {found} for {expected}, bound {bound:e}"
            );
        }
    }
}

#[test]
fn reference_equals_the_restated_cosine() {
    let tensors = Tensors::read(&support::reference("optim_and_ops/cosine_gram.safetensors"));
    let cases = tensors.names().iter().filter(|name| name.ends_with(".x")).count();
    assert_eq!(cases, 3);
    for case in 0..cases {
        let x = tensors.f64(&format!("case{case}.x"));
        let shape = tensors.shape(&format!("case{case}.x"));
        let cosine = cosine_f64(&x, shape[0], shape[1]);
        let expected = tensors.f64(&format!("case{case}.cos"));
        let distance = tensors.f64(&format!("case{case}.dist"));
        let bound = 2.0 * gamma(shape[0] + 4, U64);
        for (index, found) in cosine.iter().enumerate() {
            assert!((found - expected[index].abs()).abs() <= bound, "case {case}, {index}: {found}");
            assert!((1.0 - found - distance[index]).abs() <= bound + U64);
        }
        let narrow: Vec<f32> = x.iter().map(|v| *v as f32).collect();
        check_cosine(&narrow, shape[0], shape[1]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn cosine_stays_within_its_bound(seed: u64, samples in 1usize..40, units in 1usize..50) {
        check_cosine(&activations(&mut Random(seed), samples, units), samples, units);
    }

    #[test]
    fn profile_of_the_same_distances_is_exact(seed: u64, units in 1usize..70) {
        // C with 1 − C exact in f32: the multiples of 2⁻²⁴ in [0, 1].
        let mut random = Random(seed);
        let mut cosine = vec![0.0f32; units * units];
        for i in 0..units {
            for j in 0..=i {
                let value = (random.unit() * (1 << 24) as f64).round() as f32 * U32 as f32;
                cosine[i * units + j] = value;
                cosine[j * units + i] = value;
            }
        }
        let expected = profile_f64(&widen(&cosine), units);
        prop_assert_eq!(widen(&profile_f32(&cosine, units)), expected);
    }

    #[test]
    fn profile_of_any_similarity_is_within_one_rounding(seed: u64, samples in 1usize..30, units in 1usize..60) {
        let cosine = cosine_f32(&activations(&mut Random(seed), samples, units), samples, units);
        let expected = profile_f64(&widen(&cosine), units);
        for (found, expected) in profile_f32(&cosine, units).iter().zip(&expected) {
            prop_assert!((f64::from(*found) - expected).abs() <= U32);
        }
    }

    #[test]
    fn profile_marks_rows_that_are_not_finite(seed: u64, units in 2usize..40, bad in 0usize..40) {
        let mut random = Random(seed);
        let bad = bad % units;
        let mut cosine: Vec<f32> = (0..units * units).map(|_| random.unit() as f32).collect();
        let column = random.below(units);
        cosine[bad * units + column] = if seed % 2 == 0 { f32::NAN } else { f32::INFINITY };
        let profile = profile_f32(&cosine, units);
        for i in 0..units {
            for j in 0..units {
                prop_assert_eq!(profile[i * units + j].is_nan(), i == bad || j == bad);
            }
        }
    }

    #[test]
    fn mean_absolute_is_rounded_once(seed: u64, samples in 1usize..40, groups in 1usize..9, width in 1usize..9) {
        let x = activations(&mut Random(seed), samples, groups * width);
        let (mut exact, mut fast) = (vec![f64::NAN; groups], vec![f32::NAN; groups]);
        reference::mean_absolute(View::dense(&widen(&x), samples, groups * width), width, &mut exact);
        cpu::mean_absolute(View::dense(&x, samples, groups * width), width, &mut fast);
        for (found, expected) in fast.iter().zip(&exact) {
            let bound = expected * (U32 + gamma(2 * samples * width, U64)) + f64::from(f32::MIN_POSITIVE);
            prop_assert!((f64::from(*found) - expected).abs() <= bound);
        }
    }
}

#[test]
fn strided_views_are_read_and_written_in_place() {
    let (samples, units, ld) = (7, 19, 24);
    let mut random = Random(5);
    let dense = random.normals(samples * units);
    let mut padded = vec![f32::NAN; samples * ld];
    for s in 0..samples {
        padded[s * ld..s * ld + units].copy_from_slice(&dense[s * units..(s + 1) * units]);
    }
    let mut cosine = vec![-7.0f32; units * ld];
    cpu::absolute_cosine(
        View::new(&padded, samples, units, ld),
        &mut ViewMut::new(&mut cosine, units, units, ld),
    );
    let mut profile = vec![-7.0f32; units * ld];
    cpu::profile_distance(
        View::new(&cosine, units, units, ld),
        &mut ViewMut::new(&mut profile, units, units, ld),
    );
    let expected = cosine_f32(&dense, samples, units);
    let expected_profile = profile_f32(&expected, units);
    for i in 0..units {
        assert_eq!(cosine[i * ld..i * ld + units], expected[i * units..(i + 1) * units]);
        assert_eq!(profile[i * ld..i * ld + units], expected_profile[i * units..(i + 1) * units]);
        assert!(cosine[i * ld + units..(i + 1) * ld].iter().all(|v| *v == -7.0), "the gap was written");
        assert!(profile[i * ld + units..(i + 1) * ld].iter().all(|v| *v == -7.0), "the gap was written");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (samples, units) = (60, 613);
    let x = activations(&mut Random(11), samples, units);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let cosine = cosine_f32(&x, samples, units);
            let profile = profile_f32(&cosine, units);
            cosine.into_iter().chain(profile).map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

#[test]
fn empty_matrices_are_defined() {
    assert_eq!(cosine_f32(&[], 0, 3), vec![0.0; 9]);
    assert!(cosine_f32(&[], 4, 0).is_empty() && profile_f32(&[], 0).is_empty());
    let mut mean = [f32::NAN; 3];
    cpu::mean_absolute(View::dense(&[], 0, 6), 2, &mut mean);
    assert_eq!(mean, [0.0; 3]);
}
