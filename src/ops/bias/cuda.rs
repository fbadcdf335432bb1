//! Launches of `kernels/bias.cu`.

use crate::launch::{DropoutOperand, ElementType, Matrix, Pointer, Queue, int, kernels};
use crate::ops::rows::{assert_alike, one_piece_a_thread};

/// `y = dropout(bias) + residual`; see the [module](super).
pub fn bias_residual(
    queue: &mut Queue,
    bias: Pointer<f32>,
    dropout: Option<DropoutOperand>,
    residual: Matrix,
    y: Matrix,
) {
    assert_alike(&[y, residual]);
    if y.is_empty() {
        return;
    }
    let DropoutOperand { key, site, threshold, scale } = DropoutOperand::or_none(dropout);
    let (ldr, ldy, rows, cols) = (int(residual.ld), int(y.ld), int(y.rows), int(y.cols));
    let grid = one_piece_a_thread(&y);
    queue.push(match y.element {
        ElementType::F32 => kernels::bias::bias_residual_f32(
            grid,
            bias,
            key,
            site,
            threshold,
            scale,
            residual.f32(),
            ldr,
            y.f32(),
            ldy,
            rows,
            cols,
        ),
        ElementType::Bf16 => kernels::bias::bias_residual_bf16(
            grid,
            bias,
            key,
            site,
            threshold,
            scale,
            residual.bf16(),
            ldr,
            y.bf16(),
            ldy,
            rows,
            cols,
        ),
    });
}
