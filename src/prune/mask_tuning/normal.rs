//! Normal equations of a sublayer's projection: Gram matrix of its features and their products with a target.
//!
//! With features X `[T, k]` and a target B `[T, d]` over all calibration tokens, XᵀX and XᵀB are all that any least-squares
//! problem over scales or weights of the projection needs: nothing of size T·k·d is ever made. They are products on
//! the executor, f32 within a batch, and summed in f64 over the batches. Of the symmetric XᵀX only block columns down to the
//! diagonal are computed.

use rayon::prelude::*;

use crate::error::Result;
use crate::exec::{Executor, ProgramId};
use crate::program::{Builder, Epilogue, Extent, Extents, Op, SlotId};

/// Block columns of a large Gram matrix: 9/16 of the full product are computed.
const BLOCKS: usize = 8;

/// Columns of a block are a multiple of this: whole register tiles on the host, whole blocks of threads on devices.
const COLUMNS: usize = 192;

/// Slots of [`NormalEquations`] in a program.
#[derive(Clone, Debug)]
pub struct NormalSlots {
    /// Input `[T, d]`.
    pub target: SlotId,
    /// Input `[T, 1]`, all 1.
    ones: SlotId,
    /// First column and product `[first column + width, width]` of each block column.
    blocks: Vec<(usize, SlotId)>,
    /// `[k, d]`
    cross: SlotId,
    /// `[1, k]`
    sums: SlotId,
}

impl NormalSlots {
    /// Appends the products of `features` with themselves and with a new input `target` of `hidden` columns.
    pub fn emit(b: &mut Builder, features: SlotId, hidden: usize) -> NormalSlots {
        let (rows, columns) = b.shape(features);
        let target = b.input("target", rows, hidden);
        let ones = b.input("ones", rows, 1);
        let mut product = |name: String, left: SlotId, right: SlotId| {
            let (_, m) = b.shape(left);
            let (_, n) = b.shape(right);
            let c = b.temporary(name, Extent::Fixed(m), n);
            b.keep(c);
            let epilogue = Epilogue::default();
            b.emit(Op::Gemm { a: left, transpose_a: true, b: right, transpose_b: false, c, epilogue });
            c
        };
        let cross = product("cross".into(), features, target);
        let sums = product("sums".into(), ones, features);
        let width = columns.div_ceil(BLOCKS).next_multiple_of(COLUMNS).min(columns);
        let blocks = (0..columns).step_by(width.max(1)).map(|start| {
            let width = width.min(columns - start);
            let left = b.columns(format!("features to {}", start + width), features, 0, start + width);
            let right = b.columns(format!("features from {start}"), features, start, width);
            let c = b.temporary(format!("gram from {start}"), Extent::Fixed(start + width), width);
            b.keep(c);
            let epilogue = Epilogue::default();
            b.emit(Op::Gemm { a: left, transpose_a: true, b: right, transpose_b: false, c, epilogue });
            (start, c)
        });
        NormalSlots { target, ones, blocks: blocks.collect(), cross, sums }
    }

    /// Writes the target of a batch, `[T, d]` for `rows` tokens.
    pub fn write(
        &self,
        executor: &mut dyn Executor,
        id: ProgramId,
        target: &[f32],
        rows: usize,
    ) -> Result<()> {
        executor.write(id, self.target, target)?;
        executor.write(id, self.ones, &vec![1.0; rows])
    }
}

/// Sums over all tokens of all batches.
#[derive(Clone, Debug, PartialEq)]
pub struct NormalEquations {
    /// Features k.
    pub columns: usize,
    /// Hidden size d.
    pub hidden: usize,
    /// Tokens.
    pub rows: usize,
    /// XᵀX `[k, k]`; only elements on and above the diagonal are meant to be read.
    pub gram: Vec<f64>,
    /// XᵀB `[k, d]`.
    pub cross: Vec<f64>,
    /// Σ_t X `[k]`.
    pub sums: Vec<f64>,
    /// Σ B over all elements.
    pub target_sum: f64,
    /// Σ B² over all elements.
    pub target_square: f64,
}

impl NormalEquations {
    /// No token yet.
    pub fn new(columns: usize, hidden: usize) -> NormalEquations {
        NormalEquations {
            columns,
            hidden,
            rows: 0,
            gram: vec![0.0; columns * columns],
            cross: vec![0.0; columns * hidden],
            sums: vec![0.0; columns],
            target_sum: 0.0,
            target_square: 0.0,
        }
    }

    /// Adds a batch that has just run with `target`.
    pub fn add(
        &mut self,
        executor: &dyn Executor,
        id: ProgramId,
        slots: &NormalSlots,
        extents: &Extents,
        target: &[f32],
    ) -> Result<()> {
        self.rows += target.len() / self.hidden;
        let [sum, square] = moments(target);
        self.target_sum += sum;
        self.target_square += square;
        executor.add_wide(id, slots.cross, extents, &mut self.cross, self.hidden)?;
        executor.add_wide(id, slots.sums, extents, &mut self.sums, self.columns)?;
        for &(start, slot) in &slots.blocks {
            executor.add_wide(id, slot, extents, &mut self.gram[start..], self.columns)?;
        }
        Ok(())
    }
}

/// Σ x and Σ x², by pieces whose sums do not depend on the number of threads.
fn moments(values: &[f32]) -> [f64; 2] {
    const PIECE: usize = 16 * 1024;
    let piece = |values: &[f32]| {
        let mut sums = [[0.0; 8]; 2];
        for values in values.chunks(8) {
            for (lane, value) in values.iter().enumerate() {
                let value = f64::from(*value);
                sums[0][lane] += value;
                sums[1][lane] += value * value;
            }
        }
        sums.map(|lanes| lanes.iter().sum::<f64>())
    };
    let pieces: Vec<[f64; 2]> = values.par_chunks(PIECE).map(piece).collect();
    pieces.iter().fold([0.0; 2], |[sum, square], piece| [sum + piece[0], square + piece[1]])
}
