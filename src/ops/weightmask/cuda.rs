//! The same on a device, with a bf16 copy of the result in the same pass for those who multiply in bf16.

use super::hard_concrete_shift;
use crate::launch::kernels::weightmask as kernels;

use crate::launch::{Bf16, Grid, Pointer, Queue, int};

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

/// The masked matrices and their scores in device memory: one stretch, 16-byte aligned, numbers of elements multiples of 4.
#[derive(Clone, Copy, Debug)]
pub struct Scored {
    /// Underlying weights.
    pub weights: Pointer<f32>,
    /// Scores; null where only weights are trained.
    pub scores: Pointer<f32>,
    /// Elements, padding included.
    pub length: usize,
    /// Number of the first element within the masked stretch.
    pub first: usize,
}

/// `out` = weights · hard concrete, and the same rounded to bf16 in `copy` (or null). `key` is null without noise.
pub fn apply_hard_concrete(
    queue: &mut Queue,
    matrix: Scored,
    key: Pointer<i32>,
    out: Pointer<f32>,
    copy: Pointer<Bf16>,
) {
    if matrix.length == 0 {
        return;
    }
    let grid = Grid::linear(matrix.length.div_ceil(4 * 256), 256);
    let (first, length) = (matrix.first as u64, matrix.length as u64);
    queue.push(kernels::apply_hard_concrete(
        grid,
        matrix.weights,
        matrix.scores,
        key,
        first,
        out,
        copy,
        length,
    ));
}

/// How the gradients of one matrix are computed.
#[derive(Clone, Copy, Debug)]
pub struct ScoreGradients {
    /// The mask's bits; null for the hard concrete.
    pub keep: Pointer<u64>,
    /// Random key of the hard concrete's noise; null without.
    pub key: Pointer<i32>,
    /// `[1]`; the penalty is this times `share`.
    pub penalty: Pointer<f32>,
    /// 1 / elements of the matrix.
    pub share: f32,
    /// ∂L/∂W'; becomes ∂L/∂W where `trained`.
    pub gradients: Pointer<f32>,
    /// Receives ∂L/∂S (may be `gradients`); null for none.
    pub of_scores: Pointer<f32>,
    /// Whether the weights are trained.
    pub trained: bool,
}

/// See [`reference`](super::reference): both gradients of one matrix.
pub fn score_gradients(queue: &mut Queue, matrix: Scored, how: ScoreGradients) {
    if matrix.length == 0 {
        return;
    }
    assert!(!(how.trained && how.of_scores == how.gradients), "one place cannot hold both gradients");
    let shift = if how.keep.is_null() { hard_concrete_shift() as f32 } else { 0.0 };
    queue.push(kernels::score_gradients(
        Grid::linear(matrix.length.div_ceil(4 * 256), 256),
        matrix.weights,
        matrix.scores,
        how.keep,
        how.key,
        matrix.first as u64,
        how.penalty,
        how.share,
        shift,
        how.gradients,
        how.of_scores,
        i32::from(how.trained),
        matrix.length as u64,
    ));
}

/// Scores whose sigmoids a block adds.
const RUN: usize = 8 * 1024;

/// `out [1]` = Σ σ((S + shift)/temperature) / `elements` over `length` scores.
pub fn mean_sigmoid(
    queue: &mut Queue,
    scores: Pointer<f32>,
    length: usize,
    elements: usize,
    shift: f32,
    temperature: f32,
    out: Pointer<f32>,
) {
    let runs = length.div_ceil(RUN);
    let sums = queue.scratch::<f64>(runs);
    if runs > 0 {
        let grid = Grid::linear(runs, 256);
        queue.push(kernels::sigmoid_sums(grid, scores, length as u64, shift, 1.0 / temperature, sums));
    }
    queue.push(kernels::mean(Grid::linear(1, 256), sums, int(runs), elements.max(1) as f64, out));
}
