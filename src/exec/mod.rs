//! Executors run programs. All of them keep the same promises; they differ in speed and precision.
//!
//! | executor | arithmetic | for |
//! |---|---|---|
//! | [`Reference`] | f64, obvious loops | the truth the others are held against |
//! | [`Cpu`] | f32, AVX-512 / AVX2 chosen at run time, all cores | work |
//! | [`DeviceExecutor`] over [`Cuda`](crate::cuda::Cuda) | f32, tf32 or bf16 products | work on a GPU |
//! | [`DeviceExecutor`] over [`Emulated`] | the same kernels, run and checked without a GPU | tests |
//!
//! An executor owns the parameter, gradient and moment blocks of one model and one arena that all prepared
//! programs share. Preparing a program plans and allocates; running it allocates nothing.

mod device;
mod dispatch;
mod emulated;
mod host;
mod host_binding;
pub mod lockstep;
mod memory;

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::launch::Device;
use crate::program::{Extents, MaskFunction, Op, Parameter, ParameterLayout, Plan, Program, SlotId, Storage};

pub use device::DeviceExecutor;
pub use emulated::{Approximations, Emulated};
pub use host::{Cpu, HostExecutor, Kernels, Reference};

/// Number of a prepared program within its executor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramId(pub(crate) usize);

/// One of the flat blocks that share a [`ParameterLayout`]. All but the parameters span only a
/// stretch of it ([`Block::stretch`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Block {
    /// What products read: weights, masked ones multiplied by their mask.
    Parameters,
    /// Gradients of the parameters.
    Gradients,
    /// AdamW's first moment.
    FirstMoment,
    /// AdamW's second moment.
    SecondMoment,
    /// The weights behind the masks.
    Weights,
    /// The scores of the masks; −∞ in the padding.
    Scores,
    /// Gradients of the scores, where the weights are trained too; where they are frozen, the gradient block holds them.
    ScoreGradients,
    /// AdamW's first moment of the scores.
    ScoreFirstMoment,
    /// AdamW's second moment of the scores.
    ScoreSecondMoment,
}

impl Block {
    /// How many there are.
    pub const COUNT: usize = 9;

    /// All of them, in order.
    pub const ALL: [Block; Block::COUNT] = [
        Block::Parameters,
        Block::Gradients,
        Block::FirstMoment,
        Block::SecondMoment,
        Block::Weights,
        Block::Scores,
        Block::ScoreGradients,
        Block::ScoreFirstMoment,
        Block::ScoreSecondMoment,
    ];

    /// The elements of the layout that the block holds.
    pub fn stretch(self, layout: &ParameterLayout) -> Range<usize> {
        match self {
            Block::Parameters => 0..layout.block_len(),
            Block::Gradients => layout.stretch(Parameter::differentiated),
            Block::FirstMoment | Block::SecondMoment => layout.stretch(|p| p.trainable),
            _ => layout.stretch(|p| p.masked),
        }
    }

    /// The block that holds the gradients of the scores.
    fn of_score_gradients(layout: &ParameterLayout) -> Block {
        if layout.trains_masked() { Block::ScoreGradients } else { Block::Gradients }
    }
}

/// Blocks beyond the parameters that a program touches, and whether it touches the bits of masks.
fn blocks_of(program: &Program) -> (Vec<Block>, bool) {
    let layout = program.layout();
    let mut used = [false; Block::COUNT];
    let mut touch = |blocks: &[Block]| blocks.iter().for_each(|&block| used[block as usize] = true);
    let mut bits = false;
    if program.slots().any(|(_, slot)| matches!(slot.storage, Storage::Gradient(_))) {
        touch(&[Block::Gradients]);
    }
    for op in program.ops() {
        match op {
            Op::ZeroGradients => touch(&[Block::Gradients]),
            Op::ClipFactor { scores, .. } => {
                touch(&[Block::Gradients]);
                if *scores {
                    touch(&[Block::of_score_gradients(layout)]);
                }
            }
            Op::AdamW { scores: true, .. } => touch(&[
                Block::Scores,
                Block::of_score_gradients(layout),
                Block::ScoreFirstMoment,
                Block::ScoreSecondMoment,
            ]),
            Op::AdamW { scores: false, .. } => {
                touch(&[Block::Gradients, Block::FirstMoment, Block::SecondMoment]);
                if layout.trains_masked() {
                    touch(&[Block::Weights]);
                }
            }
            Op::SelectMasks { magnitude, .. } => {
                touch(&[if *magnitude { Block::Weights } else { Block::Scores }]);
                bits = true;
            }
            Op::ApplyMasks { function, .. } => {
                touch(&[Block::Weights]);
                match function {
                    MaskFunction::Bits => bits = true,
                    MaskFunction::HardConcrete => touch(&[Block::Scores]),
                }
            }
            Op::ScoreGradients { scores, function, .. } => {
                touch(&[Block::Weights, Block::Gradients]);
                bits |= *function == MaskFunction::Bits;
                if *scores {
                    touch(&[Block::Scores, Block::of_score_gradients(layout)]);
                }
            }
            Op::MeanSigmoid { .. } => touch(&[Block::Scores]),
            _ => {}
        }
    }
    let blocks = Block::ALL.into_iter().skip(1).filter(|&block| used[block as usize]);
    (blocks.collect(), bits)
}

/// Words of the bits of all masks: one for every 64 elements of the masked stretch.
fn mask_words(layout: &ParameterLayout) -> usize {
    Block::Scores.stretch(layout).len().div_ceil(64)
}

fn check_mask_words(found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::shape("weight masks", format!("{found} words of bits for {expected}")))
}

/// Runs programs over the parameters of one model.
pub trait Executor {
    /// "reference", "cpu".
    fn name(&self) -> &'static str;

    /// Plans and allocates for batches up to `capacity`. Gradient and moment blocks are allocated by the first
    /// program that uses them.
    fn prepare(&mut self, program: Arc<Program>, capacity: Extents) -> Result<ProgramId>;

    /// Gives back the memory of `first` and of every program prepared after it; those numbers are no longer valid.
    /// For work that prepares a program for each of many sublayers.
    fn forget_from(&mut self, first: ProgramId) -> Result<()>;

    /// A prepared program.
    fn program(&self, id: ProgramId) -> &Arc<Program>;

    /// Its memory plan.
    fn plan(&self, id: ProgramId) -> &Plan;

    /// Bytes held: blocks, arena, inputs.
    fn allocated_bytes(&self) -> usize;

    /// Writes a float input: `rows × cols` values, dense, for the first `data.len() / cols` rows.
    fn write(&mut self, id: ProgramId, slot: SlotId, data: &[f32]) -> Result<()>;

    /// Writes a float slot without narrowing (lock-step comparison, f64 tests).
    fn write_wide(&mut self, id: ProgramId, slot: SlotId, data: &[f64]) -> Result<()>;

    /// Writes an integer input.
    fn write_ints(&mut self, id: ProgramId, slot: SlotId, data: &[i32]) -> Result<()>;

    /// Runs the whole program for a batch of `extents`.
    fn run(&mut self, id: ProgramId, extents: &Extents) -> Result<()> {
        let all = 0..self.program(id).ops().len();
        self.run_range(id, all, extents)
    }

    /// Runs some of its operations.
    fn run_range(&mut self, id: ProgramId, range: Range<usize>, extents: &Extents) -> Result<()>;

    /// Waits until everything asked for is done. On the host it already is.
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    /// Runs the whole program and appends the seconds of each of its operations.
    fn run_timed(&mut self, id: ProgramId, extents: &Extents, seconds: &mut Vec<f64>) -> Result<()> {
        for index in 0..self.program(id).ops().len() {
            let start = std::time::Instant::now();
            self.run_range(id, index..index + 1, extents)?;
            self.synchronize()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// The device that runs it; `None` on the host.
    fn device(&mut self) -> Option<&mut dyn Device> {
        None
    }

    /// Reads a float slot as dense rows into `out`, replacing its content.
    fn read(&self, id: ProgramId, slot: SlotId, extents: &Extents, out: &mut Vec<f32>) -> Result<()>;

    /// Reads a float slot without narrowing.
    fn read_wide(&self, id: ProgramId, slot: SlotId, extents: &Extents) -> Result<Vec<f64>>;

    /// Adds a float slot, without narrowing, to as many rows of `into`, which begin `ld` apart.
    fn add_wide(
        &self,
        id: ProgramId,
        slot: SlotId,
        extents: &Extents,
        into: &mut [f64],
        ld: usize,
    ) -> Result<()> {
        let values = self.read_wide(id, slot, extents)?;
        let cols = self.program(id).slot(slot).cols.max(1);
        for (sums, values) in into.chunks_mut(ld.max(1)).zip(values.chunks(cols)) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    /// Reads a block's stretch, layout padding included; empty if it was never allocated.
    fn read_block(&self, block: Block) -> Result<Vec<f32>>;

    /// Elements of a block; 0 if it was never allocated.
    fn block_len(&self, block: Block) -> usize;

    /// Replaces a block. Length must be that of its stretch.
    fn write_block(&mut self, block: Block, data: &[f32]) -> Result<()>;

    /// Reads the bits of the masks, a word for every 64 elements of the masked stretch; empty if they were never selected.
    fn read_masks(&self) -> Result<Vec<u64>>;

    /// Replaces the bits of the masks.
    fn write_masks(&mut self, words: &[u64]) -> Result<()>;

    /// Overwrites the arena with NaN, so that anything read before it is written shows.
    fn poison(&mut self) -> Result<()>;
}
