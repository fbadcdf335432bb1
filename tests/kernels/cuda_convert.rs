//! Conversion of whole matrices: every element is the one `half` gives, whatever the shape and alignment.

use half::{bf16, f16};
use proptest::prelude::*;
use secateur::launch::{ElementType, FactorType, Grid, Pointer, int, kernels::convert};

use crate::support::device::TestDevice;
use crate::support::numbers::Random;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn matrices_convert_as_their_elements_do(rows in 1usize..20, cols in 1usize..40, seed: u64) {
        let mut random = Random(seed);
        let mut values: Vec<f32> = (0..rows * cols).map(|_| random.normal() as f32 * 1e3).collect();
        // Ties, what rounds to infinity and the last that does not, subnormals.
        let special = [
            1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, -1e-40, 0.0, -0.0,
            1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65_520.0, -65_519.996, 3e-8, 1e-7,
        ];
        values.iter_mut().zip(special).for_each(|(value, special)| *value = special);
        let rounded: Vec<f32> = values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect();
        let mut device = TestDevice::new();
        let x = device.matrix(rows, cols, &values, ElementType::F32);
        let narrow = device.output(rows, cols, ElementType::Bf16);
        let wide = device.output(rows, cols, ElementType::F32);
        let half = device.factor(rows, cols, FactorType::F16);
        let grid = Grid::linear((rows * cols.div_ceil(8)).div_ceil(256), 256);
        let (ld, vector) = (int(x.ld), i32::from(x.aligned16() && narrow.aligned16()));
        device.run(|queue| {
            let (rows, cols, halves) = (int(rows), int(cols), Pointer::new(half.address));
            queue.push(convert::to_f16_matrix(grid, x.f32(), ld, halves, ld, rows, cols, vector));
            queue.push(convert::to_bf16_matrix(grid, x.f32(), ld, narrow.bf16(), ld, rows, cols, vector));
            queue.push(convert::to_f32_matrix(grid, narrow.bf16(), ld, wide.f32(), ld, rows, cols, vector));
        });
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&device.read(&narrow)), bits(&rounded));
        prop_assert_eq!(bits(&device.read(&wide)), bits(&rounded));
        let halves: Vec<u16> = values.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
        prop_assert_eq!(device.read_bits(&half), halves);
    }
}
