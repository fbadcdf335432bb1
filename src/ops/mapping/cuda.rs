//! Dimension mapping on a device: all pairs of heads in one launch.

use crate::launch::kernels::mapping as kernels;
use crate::launch::{Grid, Matrix, Queue, int};

/// [H, H] head similarity from `absolute_cosine` [H·d_h, H·d_h]; see the family's contract.
pub fn dimension_mapping(queue: &mut Queue, absolute_cosine: Matrix, head_dim: usize, out: Matrix) {
    let heads = out.rows;
    assert_eq!(out.cols, heads);
    assert_eq!((absolute_cosine.rows, absolute_cosine.cols), (heads * head_dim, heads * head_dim));
    if heads == 0 {
        return;
    }
    queue.push(kernels::dimension_mapping(
        Grid::new([heads, heads, 1], 256).with_shared(9 * head_dim),
        absolute_cosine.f32(),
        int(absolute_cosine.ld),
        int(head_dim),
        out.f32(),
        int(out.ld),
    ));
}
