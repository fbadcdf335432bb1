//! Launches of `kernels/activation.cu`.

use super::Activation;
use crate::launch::kernels::activation;
use crate::launch::{ElementType, Grid, Matrix, Pointer, Queue, int, or_null};
use crate::ops::rows::{assert_alike, lanes, one_piece_a_thread};

/// The activation as kernels are told it (`kernels/activation.cuh`); 0 is none.
pub fn code(kind: Activation) -> i32 {
    match kind {
        Activation::GeluErf => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Tanh => 4,
    }
}

/// `dx = dy · mask · act'(preactivation)`, and the gradient of the mask; see the [module](super).
///
/// `dy`, `preactivation`, `dx`: `[T, n]`; `dmask_per_sequence`: `cu_seqlens` (`[B + 1]`) and the `[B, n]` gradient
/// of the mask in f32, overwritten. The sequences cover all T tokens.
pub fn backward(
    queue: &mut Queue,
    kind: Activation,
    dy: Matrix,
    preactivation: Matrix,
    mask: Option<Pointer<f32>>,
    dx: Matrix,
    dmask_per_sequence: Option<(Pointer<i32>, Matrix)>,
) {
    assert_alike(&[dx, dy, preactivation]);
    let (kind, mask) = (code(kind), or_null(mask));
    let (lddy, ldp, lddx) = (int(dy.ld), int(preactivation.ld), int(dx.ld));
    let (rows, cols) = (int(dx.rows), int(dx.cols));
    if let Some((cu_seqlens, dmask)) = dmask_per_sequence {
        assert_eq!(dmask.cols, dx.cols);
        if dmask.is_empty() {
            return;
        }
        let grid = Grid::new([dmask.rows, dx.cols.div_ceil(32 * lanes(dx.element)), 1], 256);
        let (to, ld) = (dmask.f32(), int(dmask.ld));
        queue.push(match dx.element {
            ElementType::F32 => activation::activation_backward_by_sequence_f32(
                grid,
                kind,
                dy.f32(),
                lddy,
                preactivation.f32(),
                ldp,
                mask,
                dx.f32(),
                lddx,
                cu_seqlens,
                to,
                ld,
                cols,
            ),
            ElementType::Bf16 => activation::activation_backward_by_sequence_bf16(
                grid,
                kind,
                dy.bf16(),
                lddy,
                preactivation.bf16(),
                ldp,
                mask,
                dx.bf16(),
                lddx,
                cu_seqlens,
                to,
                ld,
                cols,
            ),
        });
    } else if !dx.is_empty() {
        let grid = one_piece_a_thread(&dx);
        queue.push(match dx.element {
            ElementType::F32 => activation::activation_backward_f32(
                grid,
                kind,
                dy.f32(),
                lddy,
                preactivation.f32(),
                ldp,
                mask,
                dx.f32(),
                lddx,
                rows,
                cols,
            ),
            ElementType::Bf16 => activation::activation_backward_bf16(
                grid,
                kind,
                dy.bf16(),
                lddy,
                preactivation.bf16(),
                ldp,
                mask,
                dx.bf16(),
                lddx,
                rows,
                cols,
            ),
        });
    }
}
