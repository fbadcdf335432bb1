//! Launches of `kernels/dropout.cu`.

use crate::launch::{DropoutOperand, ElementType, Matrix, Queue, int, kernels};
use crate::ops::rows::{assert_alike, one_piece_a_thread};

/// `out = dropout(x)`, `[T, n]`; also its backward, with `dy` for `x`.
pub fn dropout(queue: &mut Queue, x: Matrix, out: Matrix, dropout: DropoutOperand) {
    assert_alike(&[x, out]);
    if x.is_empty() {
        return;
    }
    let DropoutOperand { key, site, threshold, scale } = dropout;
    let (ldx, ldy, rows, cols) = (int(x.ld), int(out.ld), int(x.rows), int(x.cols));
    let grid = one_piece_a_thread(&x);
    queue.push(match x.element {
        ElementType::F32 => kernels::dropout::dropout_f32(
            grid,
            x.f32(),
            ldx,
            out.f32(),
            ldy,
            key,
            site,
            threshold,
            scale,
            rows,
            cols,
        ),
        ElementType::Bf16 => kernels::dropout::dropout_bf16(
            grid,
            x.bf16(),
            ldx,
            out.bf16(),
            ldy,
            key,
            site,
            threshold,
            scale,
            rows,
            cols,
        ),
    });
}
