//! What launches over matrix rows share; the twin of `kernels/rows.cuh`.

use crate::launch::{ElementType, Grid, Matrix, int};

/// Threads of a block of an element-wise kernel.
const THREADS: usize = 256;

/// Elements of 16 bytes.
pub(in crate::ops) fn lanes(element: ElementType) -> usize {
    16 / element.bytes()
}

/// The grid of an element-wise kernel: one 16-byte piece of a row of `matrix` a thread.
pub(in crate::ops) fn one_piece_a_thread(matrix: &Matrix) -> Grid {
    let pieces = matrix.rows * matrix.cols.div_ceil(lanes(matrix.element));
    int(pieces + THREADS); // Kernels number threads in 32 bits.
    Grid::linear(pieces.div_ceil(THREADS), THREADS as u32)
}

/// Panics unless the matrices are of one shape and element type, and their rows start where 16-byte access may.
pub(in crate::ops) fn assert_alike(matrices: &[Matrix]) {
    for matrix in matrices {
        let first = &matrices[0];
        assert_eq!((matrix.rows, matrix.cols), (first.rows, first.cols), "shapes differ");
        assert_eq!(matrix.element, first.element, "element types differ");
        assert_vector_access(matrix);
    }
}

/// Panics where a kernel would read 16 bytes of a row at an address that does not allow it.
pub(in crate::ops) fn assert_vector_access(matrix: &Matrix) {
    assert!(matrix.cols < 8 || matrix.aligned16(), "rows are not 16-byte aligned: {matrix:?}");
}
