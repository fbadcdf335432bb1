//! The contrastive loss on a device: products of the product family with the kernels of `kernels/contrastive.cu` around
//! them.

use super::NORM_FLOOR;
use crate::launch::kernels::contrastive as kernels;
use crate::launch::{ElementType, Grid, Matrix, Pointer, Queue, int, or_null};
use crate::ops::gemm::cuda::{Epilogue, gemm};
use crate::ops::rows::assert_vector_access;

/// A block a row.
const THREADS: u32 = 256;

/// What queries and bank rows are; see [`super::Keys`].
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// Example of each query, `[R]`.
    pub ids: Pointer<i32>,
    /// Example of each bank row, `[K]`; negative where there is none.
    pub bank_ids: Pointer<i32>,
    /// Labels of the queries and of the bank.
    pub labels: Option<(Pointer<i32>, Pointer<i32>)>,
}

/// A matrix `[rows, cols]` of scratch whose rows may be read in vectors.
fn scratch(queue: &mut Queue, rows: usize, cols: usize) -> Matrix {
    let ld = cols.next_multiple_of(8);
    let address = queue.scratch::<f32>(rows * ld).address;
    Matrix { address, element: ElementType::F32, rows, cols, ld }
}

/// The contrastive loss; `x`, `dx`: `[R, d]`, both f32 or both bf16, `bank`: `[K, d]`, `weights`: `[2]`, `losses`: `[R, 2]`,
/// `scales`: `[R]`, all f32. The gradient is added to `dx` where `accumulate`.
pub fn contrastive(
    queue: &mut Queue,
    x: Matrix,
    bank: Matrix,
    keys: Keys,
    temperature: f32,
    weights: Pointer<f32>,
    losses: Matrix,
    scales: Pointer<f32>,
    dx: Option<Matrix>,
    accumulate: bool,
) {
    let (rows, d, banked) = (x.rows, x.cols, bank.rows);
    assert_eq!((bank.cols, losses.rows, losses.cols, losses.ld), (d, rows, 2, 2));
    assert!(dx.is_none_or(|dx| (dx.rows, dx.cols, dx.element) == (rows, d, x.element)));
    [Some(x), dx].iter().flatten().for_each(assert_vector_access);
    if rows == 0 {
        return;
    }
    let grid = Grid::linear(rows, THREADS);
    let queries = scratch(queue, rows, d);
    let (q, ldq, floor) = (queries.f32(), int(queries.ld), NORM_FLOOR as f32);
    queue.push(match x.element {
        ElementType::F32 => kernels::normalise_f32(grid, x.f32(), int(x.ld), floor, q, ldq, scales, int(d)),
        ElementType::Bf16 => {
            kernels::normalise_bf16(grid, x.bf16(), int(x.ld), floor, q, ldq, scales, int(d))
        }
    });
    let (of_bank, of_batch) = (scratch(queue, rows, banked), scratch(queue, rows, rows));
    gemm(queue, queries, false, bank, true, of_bank, Epilogue::default());
    gemm(queue, queries, false, queries, true, of_batch, Epilogue::default());
    let (labels, bank_labels) = keys.labels.unzip();
    queue.push(kernels::slopes(
        grid,
        of_bank.f32(),
        int(of_bank.ld),
        of_batch.f32(),
        int(of_batch.ld),
        keys.bank_ids,
        or_null(bank_labels),
        keys.ids,
        or_null(labels),
        1.0 / temperature,
        weights,
        losses.f32(),
        int(rows),
        int(banked),
    ));
    let Some(dx) = dx else { return };
    let gradient = scratch(queue, rows, d);
    gemm(queue, of_bank, false, bank, false, gradient, Epilogue::default());
    let added = Epilogue { accumulate: true, ..Epilogue::default() };
    gemm(queue, of_batch, false, queries, false, gradient, added);
    let (dq, ld_dq, accumulate) = (gradient.f32(), int(gradient.ld), i32::from(accumulate));
    queue.push(match dx.element {
        ElementType::F32 => kernels::through_norm_f32(
            grid,
            dq,
            ld_dq,
            q,
            ldq,
            scales,
            dx.f32(),
            int(dx.ld),
            accumulate,
            int(d),
        ),
        ElementType::Bf16 => kernels::through_norm_bf16(
            grid,
            dq,
            ld_dq,
            q,
            ldq,
            scales,
            dx.bf16(),
            int(dx.ld),
            accumulate,
            int(d),
        ),
    });
}
