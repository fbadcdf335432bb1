//! What the tests of row-wise kernels on a device (emulated, or a GPU) share: matrices of both element types, there and
//! back, and what storing a result costs.
//!
//! Inputs in bf16 are exact in f64, arithmetic is f32, and a result is rounded to bf16 once: its bound is the f32 bound
//! and half an ulp of bf16. Every matrix has unwritten gaps between its rows, which nothing may read or write.

use proptest::prelude::*;
use secateur::launch::ElementType::{self, Bf16, F32};
use secateur::launch::Matrix as DeviceMatrix;

use crate::common::{Matrix, Random};
use crate::support::device::TestDevice;

const ELEMENTS: [ElementType; 2] = [F32, Bf16];

/// Half an ulp of the element type beyond f32, relative: what storing a result costs.
fn stored(element: ElementType) -> f64 {
    match element {
        F32 => 0.0,
        Bf16 => 1.0 / 256.0,
    }
}

/// The bound of a result that is within `bound` of `exact` before it is stored.
pub fn rounded(element: ElementType, bound: f64, exact: f64) -> f64 {
    bound + stored(element) * (exact.abs() + bound)
}

/// A random matrix of values that the element type holds exactly.
pub fn random_matrix(
    random: &mut Random,
    element: ElementType,
    rows: usize,
    cols: usize,
    scale: f32,
) -> Matrix {
    let mut matrix = Matrix::random(random, rows, cols, 0, scale);
    store(element, &mut matrix);
    matrix
}

/// Rounds every value to the element type.
pub fn store(element: ElementType, matrix: &mut Matrix) {
    if element == Bf16 {
        for t in 0..matrix.view().rows() {
            matrix.view_mut().row_mut(t).iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
    }
}

/// Copies a matrix to the device.
pub fn put(device: &mut TestDevice, matrix: &Matrix, element: ElementType) -> DeviceMatrix {
    let view = matrix.view();
    let values: Vec<f32> = (0..view.rows()).flat_map(|t| view.row(t).to_vec()).collect();
    device.matrix(view.rows(), view.cols(), &values, element)
}

/// Copies a matrix from the device.
pub fn get(device: &TestDevice, matrix: DeviceMatrix) -> Matrix {
    let mut out = Matrix::poisoned(matrix.rows, matrix.cols, 0);
    for (t, row) in device.read(&matrix).chunks(matrix.cols).enumerate() {
        out.view_mut().row_mut(t).copy_from_slice(row);
    }
    out
}

/// Column counts around the boundaries of the kernels: pieces, warps, registers of a row.
pub fn columns() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1usize..300, 1 => prop::sample::select(vec![8, 128, 255, 256, 257, 1023, 1024, 1025, 1300])]
}

pub fn element() -> impl Strategy<Value = ElementType> {
    prop::sample::select(&ELEMENTS[..])
}
