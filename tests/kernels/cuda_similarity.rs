//! Similarities and the dimension mapping on a device (emulated, or a GPU) against their f64 definitions.

use proptest::prelude::*;
use secateur::launch::ElementType::{Bf16, F32};
use secateur::ops::similarity::{NORM_FLOOR, cuda};
use secateur::ops::{View, ViewMut, mapping};

use crate::common::wide;
use crate::mapping::similarity;
use crate::similarity::{activations, cosine_f64, profile_f64};
use crate::support::device::TestDevice;
use crate::support::numbers::{Random, U32, gamma};

fn check_cosine(seed: u64, samples: usize, units: usize, narrow: bool) {
    let mut x = activations(&mut Random(seed), samples, units);
    let element = if narrow { Bf16 } else { F32 };
    if narrow {
        x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
    }
    let exact = cosine_f64(&wide(&x), samples, units);
    let mut device = TestDevice::new();
    let (on_x, out) = (device.matrix(samples, units, &x, element), device.output(units, units, F32));
    device.run(|queue| cuda::absolute_cosine(queue, on_x, out));
    let found = device.read(&out);
    let bound = gamma(samples + 4, U32);
    for i in 0..units {
        let norm = (0..samples).map(|s| f64::from(x[s * units + i]).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            assert!((0..units).all(|j| found[i * units + j] == 0.0), "a dead column is not all zero");
        } else if norm > 1.01 * NORM_FLOOR {
            assert_eq!(found[i * units + i], 1.0, "diagonal of a live column");
        }
        for j in 0..units {
            let (value, expected) = (found[i * units + j], exact[i * units + j]);
            assert!((0.0..=1.0).contains(&value), "({i}, {j}): {value}");
            assert_eq!(value.to_bits(), found[j * units + i].to_bits(), "not symmetric");
            assert!(
                (f64::from(value) - expected).abs() <= bound,
                "({i}, {j}): {value} for {expected}, bound {bound:e}"
            );
        }
    }
}

fn profile(cosine: &[f32], units: usize) -> Vec<f32> {
    let mut device = TestDevice::new();
    let (on_cosine, out) = (device.matrix(units, units, cosine, F32), device.output(units, units, F32));
    device.run(|queue| cuda::profile_distance(queue, on_cosine, out));
    device.read(&out)
}

/// Around the edges of a tile too.
fn units() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..40, 1 => prop::sample::select(vec![127usize, 128, 129, 150])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn cosine_on_a_device_stays_within_its_bound(seed: u64, samples in 0usize..40, units in units(), narrow: bool) {
        check_cosine(seed, samples, units, narrow);
    }

    #[test]
    fn profile_on_a_device_is_exact_where_distances_are(seed: u64, units in units()) {
        // C with 1 − C exact in f32: the multiples of 2⁻²⁴ in [0, 1]. Not symmetric: rows are compared, not columns.
        let mut random = Random(seed);
        let cosine: Vec<f32> = (0..units * units).map(|_| (random.unit() * (1 << 24) as f64).round() as f32 * U32 as f32).collect();
        prop_assert_eq!(wide(&profile(&cosine, units)), profile_f64(&wide(&cosine), units));
    }

    #[test]
    fn profile_on_a_device_marks_rows_that_are_not_finite(seed: u64, units in 2usize..40, bad in 0usize..40) {
        let mut random = Random(seed);
        let bad = bad % units;
        let mut cosine: Vec<f32> = (0..units * units).map(|_| random.unit() as f32).collect();
        let column = random.below(units);
        cosine[bad * units + column] = if seed % 2 == 0 { f32::NAN } else { f32::INFINITY };
        let profile = profile(&cosine, units);
        for i in 0..units {
            for j in 0..units {
                prop_assert_eq!(profile[i * units + j].is_nan(), i == bad || j == bad);
            }
        }
    }

    #[test]
    fn mapping_on_a_device_gives_the_bits_of_the_cpu(seed: u64, heads in 0usize..5, head_dim in prop_oneof![1usize..20, 30usize..40, Just(64)], levels in 0usize..5, undefined: bool) {
        let n = heads * head_dim;
        let mut random = Random(seed);
        let mut matrix = similarity(&mut random, n, levels);
        if undefined && n > 0 {
            let at = random.below(n * n);
            matrix[at] = f32::NAN;
        }
        let mut expected = vec![f32::NAN; heads * heads];
        mapping::cpu::dimension_mapping(View::dense(&matrix, n, n), head_dim, &mut ViewMut::dense(&mut expected, heads, heads));
        let mut device = TestDevice::new();
        let (on_matrix, out) = (device.matrix(n, n, &matrix, F32), device.output(heads, heads, F32));
        device.run(|queue| mapping::cuda::dimension_mapping(queue, on_matrix, head_dim, out));
        for (found, expected) in device.read(&out).iter().zip(&expected) {
            // All NaNs are one.
            prop_assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{} for {}", found, expected);
        }
    }
}

#[test]
fn sums_over_several_chunks_of_rows_keep_the_bound() {
    check_cosine(1, 700, 9, false);
    check_cosine(2, 513, 3, true);
}
