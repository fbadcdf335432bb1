//! The same on a device, with a bf16 copy of the result in the same pass for those who multiply in bf16.

use crate::launch::kernels::weightmask as kernels;
use crate::launch::{Bf16, Grid, Pointer, Queue};

/// `out[i]` = `weights[i]` where `keep` (a word for every 64 of `length`) has bit i, else 0; `out` may be `weights`.
/// `copy` receives the same rounded to bf16. Either may be null.
pub fn apply(
    queue: &mut Queue,
    weights: Pointer<f32>,
    keep: Pointer<u64>,
    length: usize,
    out: Pointer<f32>,
    copy: Pointer<Bf16>,
) {
    if length == 0 {
        return;
    }
    let vector = i32::from(weights.aligned16() && out.aligned16() && copy.aligned16());
    let grid = Grid::linear(length.div_ceil(4 * 256), 256);
    queue.push(kernels::mask_weights(grid, weights, keep, out, copy, length as u64, vector));
}
