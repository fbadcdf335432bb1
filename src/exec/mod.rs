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
pub mod lockstep;
mod memory;

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::launch::Device;
use crate::program::{Extents, Plan, Program, SlotId};

pub use device::DeviceExecutor;
pub use emulated::Emulated;
pub use host::{Cpu, HostExecutor, Kernels, Reference};

/// Number of a prepared program within its executor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramId(pub(crate) usize);

/// One of the flat blocks that share a [`ParameterLayout`](crate::program::ParameterLayout).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Block {
    /// Weights.
    Parameters,
    /// Their gradients.
    Gradients,
    /// AdamW's first moment.
    FirstMoment,
    /// AdamW's second moment.
    SecondMoment,
}

impl Block {
    /// All four.
    pub const ALL: [Block; 4] =
        [Block::Parameters, Block::Gradients, Block::FirstMoment, Block::SecondMoment];
}

/// Runs programs over the parameters of one model.
pub trait Executor {
    /// "reference", "cpu".
    fn name(&self) -> &'static str;

    /// Plans and allocates for batches up to `capacity`. Gradient and moment blocks are allocated by the first
    /// program that uses them.
    fn prepare(&mut self, program: Arc<Program>, capacity: Extents) -> Result<ProgramId>;

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

    /// Reads a block, layout padding included; empty if it was never allocated.
    fn read_block(&self, block: Block) -> Result<Vec<f32>>;

    /// Replaces a block. Length must be the layout's.
    fn write_block(&mut self, block: Block, data: &[f32]) -> Result<()>;

    /// Overwrites the arena with NaN, so that anything read before it is written shows.
    fn poison(&mut self) -> Result<()>;
}
