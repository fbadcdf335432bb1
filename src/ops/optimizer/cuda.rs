//! The optimiser on a device: two launches for the norm, two for a step, whatever the number of parameters.

use std::ops::Range;

use super::AdamWForm;
use crate::launch::kernels::optimizer as kernels;
use crate::launch::{Bf16, Grid, Pointer, Queue, int};

/// Elements of one piece: the fixed blocks of the sums of squares.
const PIECE: usize = 8 * 1024;
/// Scalars of a step; their order is the kernels' own business.
const SCALARS: usize = 10;

/// Which parts of the flat block are trained, cut into pieces, as it is uploaded to a device once.
///
/// Pieces of decaying parameters (matrices) come first, then those of vectors; within each, in the order of the block.
/// The sum of squares adds pieces in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PieceTable {
    /// First element of each piece in the block, a multiple of 4.
    pub starts: Vec<u64>,
    /// Elements of each piece, at most 8,192, a multiple of 4.
    pub lengths: Vec<u32>,
    /// How many of the pieces decay.
    pub decaying: usize,
}

impl PieceTable {
    /// The table of `trained` ranges of the block, each with whether it is a vector, which takes no weight decay.
    ///
    /// Panics on a range that does not begin and end on a multiple of 4 elements (layouts pad to 8).
    pub fn new(trained: impl IntoIterator<Item = (Range<usize>, bool)>) -> PieceTable {
        let (vectors, matrices): (Vec<_>, Vec<_>) = trained.into_iter().partition(|&(_, vector)| vector);
        let mut table = PieceTable::default();
        for (range, vector) in matrices.into_iter().chain(vectors) {
            assert!(range.start.is_multiple_of(4) && range.end.is_multiple_of(4), "{range:?} is not padded");
            for start in range.clone().step_by(PIECE) {
                table.starts.push(start as u64);
                table.lengths.push(PIECE.min(range.end - start) as u32);
                table.decaying += usize::from(!vector);
            }
        }
        table
    }

    /// The table as kernels take it, once `starts` and `lengths` have been copied to the device.
    pub fn on_device(&self, starts: Pointer<u64>, lengths: Pointer<u32>) -> Pieces {
        Pieces { starts, lengths, count: self.starts.len(), decaying: self.decaying }
    }
}

/// A [`PieceTable`] in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    /// `[count]`.
    pub starts: Pointer<u64>,
    /// `[count]`.
    pub lengths: Pointer<u32>,
    /// Number of pieces.
    pub count: usize,
    /// How many of them decay.
    pub decaying: usize,
}

/// The flat blocks of a model in device memory; all share one layout and are 16-byte aligned.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Weights, updated.
    pub parameters: Pointer<f32>,
    /// Their gradients.
    pub gradients: Pointer<f32>,
    /// AdamW's first moment, updated.
    pub first_moment: Pointer<f32>,
    /// AdamW's second moment, updated.
    pub second_moment: Pointer<f32>,
    /// Receives the new weights rounded to bf16; null for none.
    pub copy: Pointer<Bf16>,
    /// A bit set over the block (bit i mod 64 of word i / 64): where it has a 0, weight and moments become 0. Null keeps
    /// everything.
    pub keep: Pointer<u64>,
}

/// `norm [2]` = √Σ g² over the pieces of each block of gradients, and the factor that clips it to `max_norm`.
pub fn clip_factor(queue: &mut Queue, blocks: &[(Pointer<f32>, Pieces)], max_norm: f32, norm: Pointer<f32>) {
    let count = blocks.iter().map(|(_, pieces)| pieces.count).sum();
    let sums = queue.scratch::<f64>(count);
    let mut first = 0;
    for &(gradients, pieces) in blocks.iter().filter(|(_, pieces)| pieces.count > 0) {
        let grid = Grid::linear(pieces.count, 256);
        queue.push(kernels::squares(grid, gradients, pieces.starts, pieces.lengths, sums.offset(first)));
        first += pieces.count;
    }
    queue.push(kernels::clip_factor(Grid::linear(1, 1024), sums, int(count), max_norm, norm));
}

/// One step on every piece; `hyper [7]` = learning rate, β₁, β₂, ε, weight decay, 1 − β₁ᵗ, 1 − β₂ᵗ, and `norm [2]` as
/// [`clip_factor`] wrote it.
pub fn adamw(
    queue: &mut Queue,
    blocks: Blocks,
    pieces: Pieces,
    form: AdamWForm,
    hyper: Pointer<f32>,
    norm: Pointer<f32>,
) {
    if pieces.count == 0 {
        return;
    }
    let scalars = queue.scratch::<f32>(SCALARS);
    let hugging_face = i32::from(form == AdamWForm::HuggingFaceUncorrected);
    queue.push(kernels::adamw_scalars(Grid::linear(1, 32), hyper, norm, hugging_face, scalars));
    queue.push(kernels::adamw(
        Grid::linear(pieces.count, 256),
        blocks.parameters,
        blocks.gradients,
        blocks.first_moment,
        blocks.second_moment,
        blocks.copy,
        blocks.keep,
        pieces.starts,
        pieces.lengths,
        int(pieces.decaying) as u32,
        scalars,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_trained_ranges_matrices_first() {
        let table =
            PieceTable::new([(64..128, true), (128..128 + PIECE + 8, false), (32_768..32_768, false)]);
        assert_eq!(table.starts, [128, (128 + PIECE) as u64, 64]);
        assert_eq!(table.lengths, [PIECE as u32, 8, 64]);
        assert_eq!(table.decaying, 2);
    }
}
