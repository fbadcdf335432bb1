//! Selection, packed masks and Semi-NMF on a device (emulated, or a GPU).

use proptest::prelude::*;
use secateur::launch::ElementType::{Bf16, F32};
use secateur::launch::Pointer;
use secateur::ops::select::cuda::Budget;
use secateur::ops::{select, seminmf, weightmask};

use crate::common::{Matrix, Random, Wide, assert_within};
use crate::select::{Padded, by_sorting, by_sorting_together, cases, scores};
use crate::seminmf::{kernel_error, rows, update_error};
use crate::support::device::TestDevice;

/// Words of 64 bits from the device.
pub fn read_words(device: &TestDevice, at: Pointer<u64>, len: usize) -> Vec<u64> {
    let halves = device.read_floats(Pointer::new(at.address), 2 * len);
    halves.chunks(2).map(|half| u64::from(half[0].to_bits()) | u64::from(half[1].to_bits()) << 32).collect()
}

fn dense(matrix: &Matrix) -> Vec<f32> {
    (0..matrix.view().rows()).flat_map(|r| matrix.view().row(r).to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn digits_on_a_device_choose_what_the_sort_chooses(seed: u64, len in prop_oneof![0usize..300, 1000usize..3100, 9000usize..9100], levels in 0usize..4, odd: bool, magnitude: bool, share in 0.0f64..1.2) {
        let scores = scores(&mut Random(seed), len, levels, odd);
        let count = (share * len as f64) as usize;
        let mut device = TestDevice::new();
        let on_scores = device.floats(&scores);
        let keep = Pointer::<u64>::new(device.output_floats(2 * len.div_ceil(64)).address);
        let (counts, kept) = (device.ints(&[count as i32]), device.output_floats(1));
        let budget = Budget { count: counts, threshold: Pointer::NULL, kept };
        let matrix = select::cuda::Matrix::dense(on_scores, len, keep);
        device.run(|queue| select::cuda::keep_largest(queue, &[matrix], magnitude, budget));
        prop_assert_eq!(device.read_floats(kept, 1), vec![count.min(len) as f32]);
        prop_assert_eq!(read_words(&device, keep, len.div_ceil(64)), by_sorting(&scores, magnitude, count));
    }

    #[test]
    fn matrices_with_padded_rows_share_one_budget_on_a_device(seed: u64, shapes in prop::collection::vec((0usize..40, 1usize..40), 0..4), levels in 0usize..4, magnitude: bool, share in 0.0f64..1.2, threshold in prop::option::of(-2.0f32..2.0)) {
        let matrices = Padded::random(&mut Random(seed), &shapes, levels, true);
        let total: usize = shapes.iter().map(|(rows, cols)| rows * cols).sum();
        let count = (share * total as f64) as usize;
        let above = threshold.map_or(0, |threshold| matrices.iter().map(|m| m.above(threshold)).sum());
        let (exact, exact_kept) = by_sorting_together(&matrices, magnitude, count.max(above));
        let mut device = TestDevice::new();
        let on_device: Vec<select::cuda::Matrix> = matrices
            .iter()
            .map(|m| {
                let values = m.values.len();
                let keep = Pointer::<u64>::new(device.output_floats(2 * values.div_ceil(64)).address);
                select::cuda::Matrix { scores: device.floats(&m.values), values, cols: m.cols, ld: m.ld, keep }
            })
            .collect();
        let threshold = threshold.map(|threshold| device.floats(&[threshold])).unwrap_or(Pointer::NULL);
        let budget = Budget { count: device.ints(&[count as i32]), threshold, kept: device.output_floats(1) };
        device.run(|queue| select::cuda::keep_largest(queue, &on_device, magnitude, budget));
        prop_assert_eq!(device.read_floats(budget.kept, 1), vec![exact_kept as f32]);
        for (matrix, exact) in on_device.iter().zip(exact) {
            prop_assert_eq!(read_words(&device, matrix.keep, exact.len()), exact);
        }
    }

    #[test]
    fn masked_weights_on_a_device_are_the_cpus(seed: u64, len in prop_oneof![0usize..300, 2000usize..2100], shift in 0usize..2, wanted in 1usize..4) {
        let random = &mut Random(seed);
        let weights = scores(random, len, 0, true);
        let keep: Vec<u64> = (0..len.div_ceil(64)).map(|_| random.next()).collect();
        let mut expected = vec![f32::NAN; len];
        weightmask::cpu::apply(&weights, &keep, &mut expected);
        let mut device = TestDevice::new();
        // A block whose first element is or is not 16-byte aligned.
        let on_weights = device.floats(&[vec![0.0; shift], weights].concat()).offset(shift);
        let (on_keep, out, copy) = (device.words(&keep), device.output_floats(len), device.output(1, len, Bf16));
        let out_or_null = if wanted & 1 == 1 { out } else { Pointer::NULL };
        let copy_or_null = if wanted & 2 == 2 { copy.bf16() } else { Pointer::NULL };
        device.run(|queue| weightmask::cuda::apply(queue, on_weights, on_keep, len, out_or_null, copy_or_null));
        let same = |found: f32, expected: f32| found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        if wanted & 1 == 1 {
            for (found, &expected) in device.read_floats(out, len).into_iter().zip(&expected) {
                prop_assert!(same(found, expected), "{} for {}", found, expected);
            }
        }
        if wanted & 2 == 2 {
            for (found, &expected) in device.read(&copy).into_iter().zip(&expected) {
                prop_assert!(same(found, half::bf16::from_f32(expected).to_f32()), "{} for {}", found, expected);
            }
        }
    }

    #[test]
    fn the_gaussian_kernel_on_a_device_matches_the_reference(seed: u64, n in prop_oneof![4 => 0usize..40, 1 => 126usize..140], d in 1usize..40, scale in prop_oneof![Just(1.0f32), Just(2.0), Just(0.3)]) {
        let x = rows(&mut Random(seed), n, d);
        let mut exact = Wide::poisoned(n, n);
        seminmf::reference::gaussian_kernel(x.wide().view(), f64::from(scale), exact.view_mut());
        let mut device = TestDevice::new();
        let (on_x, out) = (device.matrix(n, d, &dense(&x), F32), device.output(n, n, F32));
        device.run(|queue| seminmf::cuda::gaussian_kernel(queue, on_x, scale, out));
        let found = device.read(&out);
        assert_within("K", &found, &exact.data, |at| kernel_error(&x.wide(), f64::from(scale), at / n, at % n));
        for i in 0..n {
            prop_assert_eq!(found[i * n + i], 1.0);
            for j in 0..i {
                prop_assert_eq!(found[i * n + j], found[j * n + i]);
            }
        }
    }

    #[test]
    fn an_update_on_a_device_matches_the_reference(seed: u64, n in 1usize..40, d in 1usize..30) {
        let random = &mut Random(seed);
        let mut kernel = Matrix::poisoned(n, n, 0);
        seminmf::cpu::gaussian_kernel(rows(random, n, d).view(), 1.0, kernel.view_mut());
        let c: Vec<f32> = random.values(n * n, 0.5).iter().map(|c| c + 0.6).collect();
        let wide_c: Vec<f64> = c.iter().map(|&c| f64::from(c)).collect();
        let mut exact = Wide { data: wide_c.clone(), rows: n, cols: n };
        let exact_growth = seminmf::reference::multiplicative_update(kernel.wide().view(), exact.view_mut());
        let mut device = TestDevice::new();
        let (on_kernel, on_c) = (device.matrix(n, n, &dense(&kernel), F32), device.matrix(n, n, &c, F32));
        let growth = device.output_floats(1);
        device.run(|queue| seminmf::cuda::multiplicative_update(queue, on_kernel, on_c, growth));
        assert_within("C", &device.read(&on_c), &exact.data, |at| update_error(n, exact.data[at]));
        let ratio = exact.data.iter().sum::<f64>() / wide_c.iter().sum::<f64>();
        assert_within("growth", &device.read_floats(growth, 1), &[exact_growth], |_| update_error(n, ratio) + 1e-7 * exact_growth.abs());
    }

    #[test]
    fn the_first_update_on_a_device_matches_the_reference(seed: u64, n in prop_oneof![4 => 1usize..40, 1 => 250usize..260], d in 1usize..30) {
        let mut kernel = Matrix::poisoned(n, n, 0);
        seminmf::cpu::gaussian_kernel(rows(&mut Random(seed), n, d).view(), 1.0, kernel.view_mut());
        let mut exact = Wide::poisoned(n, n);
        let exact_growth = seminmf::reference::first_update(kernel.wide().view(), exact.view_mut());
        let mut device = TestDevice::new();
        let (on_kernel, on_c) = (device.matrix(n, n, &dense(&kernel), F32), device.output(n, n, F32));
        let growth = device.output_floats(1);
        device.run(|queue| seminmf::cuda::first_update(queue, on_kernel, on_c, growth));
        assert_within("C", &device.read(&on_c), &exact.data, |at| update_error(n, exact.data[at]));
        assert_within("growth", &device.read_floats(growth, 1), &[exact_growth], |_| update_error(n, 1.0 + exact_growth) + 1e-7 * exact_growth.abs());
    }
}

#[test]
fn the_edges_of_a_selection_on_a_device() {
    for case in cases() {
        for padded in case.matrices() {
            let expected = case.words(&padded);
            let mut device = TestDevice::new();
            let keep = Pointer::<u64>::new(device.output_floats(2 * expected.len()).address);
            let scores = device.floats(&padded.values);
            let Padded { values, cols, ld } = padded;
            let matrix = select::cuda::Matrix { scores, values: values.len(), cols, ld, keep };
            let budget = Budget {
                count: device.ints(&[case.count as i32]),
                threshold: Pointer::NULL,
                kept: device.output_floats(1),
            };
            device.run(|queue| select::cuda::keep_largest(queue, &[matrix], case.magnitude, budget));
            let kept = device.read_floats(budget.kept, 1)[0];
            let found = (kept as usize, read_words(&device, keep, expected.len()));
            assert_eq!(found, (case.kept.len(), expected), "{}, rows of {ld}", case.name);
        }
    }
}
