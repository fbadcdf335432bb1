//! The language-model head and its loss as one operation: chunks of rows, as on the CPU.

use super::{cross_entropy, cross_entropy_bf16};
use crate::launch::{ElementType, Factor, FactorType, Matrix, Pointer, Queue};
use crate::ops::gemm::cuda::{Epilogue, column_sums, gemm};

/// Elements of the logits that are held at a time: 256 MB of f32, and half as much of their gradient where that is
/// bf16. Fewer rows would leave the products of a chunk too small for a large device.
const CHUNK: usize = 64 << 20;
/// Chunks are whole tiles of rows.
const TILE: usize = 128;

/// Cross-entropy of `z = x·wᵀ + bias`; `x`: `[R, d]`, `w`: `[V, d]`, of one type; `bias`: `[V]`, `labels`,
/// `weights`, `losses`: `[R]`. `dx` (of the type of `x`) is overwritten, `dw` and `dbias` (f32) are added to; there are
/// none where the factors are f16.
///
/// Logits are f32 whatever the operands are. Their gradient takes their place, or is stored in bf16 if the operands are,
/// so that its products run on tensor cores; f32 operands are multiplied in the queue's precision.
pub fn linear_cross_entropy(
    queue: &mut Queue,
    x: impl Into<Factor>,
    w: impl Into<Factor>,
    bias: Option<Pointer<f32>>,
    labels: Pointer<i32>,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dx: Option<Matrix>,
    dw: Option<Matrix>,
    dbias: Option<Pointer<f32>>,
) {
    let w: Factor = w.into();
    let step = (CHUNK / w.rows.max(1) / TILE * TILE).max(TILE);
    linear_cross_entropy_by(queue, step, x, w, bias, labels, weights, losses, dx, dw, dbias);
}

/// [`linear_cross_entropy`] with `step` rows of logits at a time, so that tests need no gigabytes to get two chunks.
pub fn linear_cross_entropy_by(
    queue: &mut Queue,
    step: usize,
    x: impl Into<Factor>,
    w: impl Into<Factor>,
    bias: Option<Pointer<f32>>,
    labels: Pointer<i32>,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dx: Option<Matrix>,
    dw: Option<Matrix>,
    dbias: Option<Pointer<f32>>,
) {
    let (x, w): (Factor, Factor) = (x.into(), w.into());
    let (rows, classes) = (x.rows, w.rows);
    assert_eq!((w.cols, w.element), (x.cols, x.element));
    if rows == 0 {
        return;
    }
    let step = step.min(rows);
    let ld = classes.next_multiple_of(8);
    let logits = queue.scratch::<f32>(step * ld).address;
    let wanted = dx.is_some() || dw.is_some() || dbias.is_some();
    assert!(!wanted || x.element != FactorType::F16, "gradients are f32 or bf16");
    let narrow = x.element == FactorType::Bf16 && wanted;
    let gradient = if narrow { queue.scratch::<u16>(step * ld).address } else { logits };
    let mark = queue.scratch_mark();
    for start in (0..rows).step_by(step) {
        queue.release_scratch(mark);
        let count = step.min(rows - start);
        let chunk = x.rows_at(start, count);
        let z = Matrix { address: logits, element: ElementType::F32, rows: count, cols: classes, ld };
        gemm(queue, chunk, false, w, true, z, Epilogue { bias, ..Epilogue::default() });
        let (labels, weights, losses) = (labels.offset(start), weights.offset(start), losses.offset(start));
        let dz =
            Matrix { address: gradient, element: if narrow { ElementType::Bf16 } else { z.element }, ..z };
        if narrow {
            cross_entropy_bf16(queue, z, labels, weights, losses, dz);
        } else {
            cross_entropy(queue, z, labels, weights, losses, wanted.then_some(dz), false);
        }
        if let Some(dx) = dx {
            gemm(queue, dz, false, w, false, rows_at(dx, start, count), Epilogue::default());
        }
        if let Some(dw) = dw {
            gemm(queue, dz, true, chunk, false, dw, Epilogue { accumulate: true, ..Epilogue::default() });
        }
        if let Some(dbias) = dbias {
            column_sums(queue, dz, dbias, true);
        }
    }
}

/// `count` rows of `matrix` from `start` on.
fn rows_at(matrix: Matrix, start: usize, count: usize) -> Matrix {
    let offset = start * matrix.ld * matrix.element.bytes();
    Matrix { address: matrix.address + offset as u64, rows: count, ..matrix }
}
