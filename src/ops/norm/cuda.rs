//! Launches of `kernels/norm.cu` and `kernels/norm_backward_*.cu`.

use crate::launch::kernels::{norm, norm_backward_bf16, norm_backward_f32};
use crate::launch::{ElementType, Grid, Matrix, Pointer, Queue, int, or_null};
use crate::ops::rows::assert_alike;

/// Columns that a warp of the backward keeps in registers; wider rows take blocks of one warp.
const CACHED: usize = 1024;

/// `y = γ·(x − mean)·rstd + β`; `x`, `y`: `[T, n]`, `gamma`, `beta`: `[n]`, `mean`, `rstd`: `[T]`, written.
pub fn layer_norm(
    queue: &mut Queue,
    x: Matrix,
    gamma: Pointer<f32>,
    beta: Pointer<f32>,
    epsilon: f32,
    y: Matrix,
    mean: Pointer<f32>,
    rstd: Pointer<f32>,
) {
    assert_alike(&[x, y]);
    if x.is_empty() {
        return;
    }
    let (ldx, ldy, rows, cols) = (int(x.ld), int(y.ld), int(x.rows), int(x.cols));
    let grid = Grid::linear(x.rows.div_ceil(8), 256);
    queue.push(match x.element {
        ElementType::F32 => norm::layer_norm_f32(
            grid,
            x.f32(),
            ldx,
            gamma,
            beta,
            epsilon,
            y.f32(),
            ldy,
            mean,
            rstd,
            rows,
            cols,
        ),
        ElementType::Bf16 => norm::layer_norm_bf16(
            grid,
            x.bf16(),
            ldx,
            gamma,
            beta,
            epsilon,
            y.bf16(),
            ldy,
            mean,
            rstd,
            rows,
            cols,
        ),
    });
}

/// The backward of [`layer_norm`]; `dx` is added to where `accumulate_dx`, `dgamma` and `dbeta` always.
pub fn layer_norm_backward(
    queue: &mut Queue,
    dy: Matrix,
    x: Matrix,
    gamma: Pointer<f32>,
    mean: Pointer<f32>,
    rstd: Pointer<f32>,
    dx: Matrix,
    accumulate_dx: bool,
    dgamma: Option<Pointer<f32>>,
    dbeta: Option<Pointer<f32>>,
) {
    assert_alike(&[x, dy, dx]);
    if x.is_empty() {
        return;
    }
    let wanted = dgamma.is_some() || dbeta.is_some();
    let warps = if x.cols <= CACHED { 4 } else { 1 };
    // The fewest rows of a block and the most blocks: their partial sums stay small beside x, whatever the batch.
    let (fewest, most) = if x.cols <= CACHED { (16, 384) } else { (4, 1024) };
    let rows_a_block = if wanted { x.rows.div_ceil(most).max(fewest) } else { warps };
    let blocks = x.rows.div_ceil(rows_a_block);
    let partials =
        if wanted { queue.scratch(x.rows.div_ceil(fewest).min(most) * 2 * x.cols) } else { Pointer::NULL };
    let grid = Grid::linear(blocks, 32 * warps as u32);
    let (lddy, ldx, lddx) = (int(dy.ld), int(x.ld), int(dx.ld));
    let (rows_a_block, rows, cols) = (int(rows_a_block), int(x.rows), int(x.cols));
    let accumulate = i32::from(accumulate_dx);
    queue.push(match x.element {
        ElementType::F32 => norm_backward_f32::layer_norm_backward_f32(
            grid,
            dy.f32(),
            lddy,
            x.f32(),
            ldx,
            gamma,
            mean,
            rstd,
            dx.f32(),
            lddx,
            accumulate,
            partials,
            rows_a_block,
            rows,
            cols,
        ),
        ElementType::Bf16 => norm_backward_bf16::layer_norm_backward_bf16(
            grid,
            dy.bf16(),
            lddy,
            x.bf16(),
            ldx,
            gamma,
            mean,
            rstd,
            dx.bf16(),
            lddx,
            accumulate,
            partials,
            rows_a_block,
            rows,
            cols,
        ),
    });
    if wanted {
        let grid = Grid::linear((2 * x.cols).div_ceil(32), 512);
        let (dgamma, dbeta) = (or_null(dgamma), or_null(dbeta));
        queue.push(norm::layer_norm_parameters_f32(grid, partials, int(blocks), cols, dgamma, dbeta));
    }
}
