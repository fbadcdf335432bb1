//! Device memory of an executor, and whether a program fits it.

use crate::error::{Error, Result};
use crate::launch::Device;
use crate::ops::attention::cuda::MAX_HEAD_DIM;
use crate::program::{self, Element, Extents, Op, Program};

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
