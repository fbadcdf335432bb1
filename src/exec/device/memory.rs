//! Device memory of an executor, and whether a program fits it.
//!
//! What a program needs is known before anything is allocated: its plan says how long the arena and the inputs are, and
//! scratch is measured by queueing its operations. What does not fit is refused with the token budget that would.

use super::DeviceExecutor;
use crate::error::{Error, Result};
use crate::exec::{Block, mask_words};
use crate::launch::{Device, ElementType, Queue};
use crate::ops::attention::cuda::MAX_HEAD_DIM;
use crate::program::{self, Element, Extents, Op, Plan, Program};

/// An allocation; none if it has no bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// First byte; 0 for none.
    pub address: u64,
    /// Length.
    pub bytes: usize,
}

impl Memory {
    /// No allocation.
    pub const NONE: Memory = Memory { address: 0, bytes: 0 };

    /// Replaces the allocation by one of at least `bytes`; its content is lost.
    pub fn grow(&mut self, device: &mut impl Device, bytes: usize, label: &str) -> Result<()> {
        if bytes > self.bytes {
            if self.bytes > 0 {
                device.free(self.address)?;
                *self = Memory::NONE;
            }
            *self = Memory { address: device.allocate(bytes, label)?, bytes };
        }
        Ok(())
    }
}

/// Bytes of everything a program needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needs {
    /// The arena, shared by all programs.
    pub arena: usize,
    /// Scratch, shared by all operations.
    pub scratch: usize,
    /// Float inputs.
    pub inputs: usize,
    /// Integer inputs.
    pub ints: usize,
    /// Blocks that are not there yet.
    pub blocks: usize,
}

/// Of `free` bytes, those to count on: allocations are rounded up by the driver, which also needs some itself.
pub fn usable(free: usize) -> usize {
    free - free / 32
}

/// Fails if allocations of these sizes would not fit.
pub fn check(device: &impl Device, what: &str, sizes: &[usize]) -> Result<()> {
    let needed: usize = sizes.iter().sum();
    match device.free_bytes()? {
        Some(free) if needed > usable(free) => Err(Error::OutOfMemory {
            program: what.into(),
            device: device.name().into(),
            needed,
            free,
            fitting: None,
        }),
        _ => Ok(()),
    }
}

/// Size of the heads of an attention operation that are larger than the kernels hold.
pub fn too_wide(program: &Program) -> Option<usize> {
    let heads = program.ops().iter().filter_map(|op| match op {
        Op::Attention { shape, .. } | Op::AttentionBackward { shape, .. } => Some(shape.head_dim),
        _ => None,
    });
    heads.max().filter(|&size| size > MAX_HEAD_DIM)
}

/// Name of a slot with more elements than an `int` counts, which kernels index with.
pub fn too_large(program: &Program, capacity: &Extents) -> Option<String> {
    let large = |(_, slot): &(_, &program::Slot)| {
        let elements = capacity.of(slot.rows).saturating_mul(slot.cols.next_multiple_of(8));
        slot.element == Element::Float && elements > i32::MAX as usize
    };
    program.slots().find(large).map(|(_, slot)| slot.name.clone())
}

impl<D: Device> DeviceExecutor<D> {
    /// What a program needs at `capacity`: its plan and scratch.
    pub(super) fn measure(
        &self,
        program: &Program,
        types: &[ElementType],
        capacity: Extents,
    ) -> (Plan, usize) {
        let plan = Plan::with_halves(program, capacity, |slot| types[slot.index()] == ElementType::Bf16);
        let mut queue = Queue::measuring(self.device.limits(), self.precision);
        self.queue_all(&mut queue, program, &plan, types, &capacity);
        (plan, queue.scratch_peak())
    }

    /// What a program of this plan needs, with `blocks` and, where told so, the bits of the weight masks.
    pub(super) fn needs(&self, plan: &Plan, scratch: usize, blocks: &[Block], bits: bool) -> Needs {
        let missing = blocks.iter().filter(|&&block| self.blocks[block as usize].bytes == 0);
        let floats: usize = missing.map(|block| block.stretch(&self.layout).len()).sum();
        let words = if bits && self.masks.bytes == 0 { mask_words(&self.layout) } else { 0 };
        Needs {
            arena: plan.arena_len * 4,
            scratch,
            inputs: plan.inputs_len * 4,
            ints: plan.ints_len * 4,
            blocks: 4 * floats + 8 * words,
        }
    }

    /// Bytes beyond those held: the arena and scratch are replaced when they grow.
    fn beyond(&self, needs: &Needs) -> usize {
        needs.arena.saturating_sub(self.arena.bytes)
            + needs.scratch.saturating_sub(self.scratch.bytes)
            + needs.inputs
            + needs.ints
            + needs.blocks
    }

    /// Fails if the program would not fit, naming the token budget that would.
    pub(super) fn check_memory(
        &self,
        program: &Program,
        types: &[ElementType],
        capacity: Extents,
        needs: &Needs,
        (blocks, bits): (&[Block], bool),
    ) -> Result<()> {
        let Some(free) = self.device.free_bytes()? else { return Ok(()) };
        let available = usable(free);
        let needed = self.beyond(needs);
        if needed <= available {
            return Ok(());
        }
        let fits = |tokens: usize| {
            let smaller = Extents {
                tokens,
                sequences: capacity.sequences.min(tokens),
                targets: capacity.targets.min(tokens),
                longest: capacity.longest.min(tokens),
                ..capacity
            };
            let (plan, scratch) = self.measure(program, types, smaller);
            self.beyond(&self.needs(&plan, scratch, blocks, bits)) <= available
        };
        let (mut low, mut high) = (0, capacity.tokens);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        Err(Error::OutOfMemory {
            program: program.name().into(),
            device: self.device.name().into(),
            needed,
            free,
            fitting: (low > 0).then_some(low),
        })
    }
}
