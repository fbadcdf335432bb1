//! The executor over device memory: the same program, plan and promises as on the host, with kernels that are launched.
//!
//! Everything is allocated when a program is prepared: blocks, one arena and one scratch area for all programs, inputs of
//! each. Scratch is measured by queueing every operation once at the planned capacity, without running it. What does not
//! fit the device's memory is an error before anything is allocated.

mod binding;
mod dispatch;
mod memory;
mod pieces;
mod sources;
#[cfg(test)]
mod tests;
mod transfer;
mod types;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use self::binding::{Addresses, Binding};
use self::memory::Memory;
use self::pieces::PieceTables;
use super::{Block, Executor, ProgramId, blocks_of, check_mask_words, mask_words};
use crate::error::{Error, Result};
use crate::launch::{Device, ElementType, FactorType, Precision, Queue, Recording};
use crate::ops::attention::cuda::MAX_HEAD_DIM;
use crate::program::{Extents, Op, ParameterLayout, Plan, Program, SlotId};

struct Prepared {
    program: Arc<Program>,
    plan: Plan,
    types: Vec<ElementType>,
    inputs: Memory,
    ints: Memory,
}

/// An executor on a device.
pub struct DeviceExecutor<D: Device> {
    device: D,
    kind: &'static str,
    precision: Precision,
    layout: Arc<ParameterLayout>,
    blocks: [Memory; Block::COUNT],
    /// Bits of the weight masks.
    masks: Memory,
    /// The parameters in the type that products read, where that is not f32.
    shadow: Memory,
    shadow_is_stale: bool,
    /// Trained ranges, as the optimiser takes them.
    pieces: PieceTables,
    arena: Memory,
    scratch: Memory,
    /// Whether the memory that prepared programs share is all there: not after growing it has failed half-way.
    whole: bool,
    programs: Vec<Prepared>,
    queue: Queue,
    /// What ran before, by program, operations and batch size: from the second time on it is recorded.
    recordings: HashMap<(usize, Range<usize>, Extents), Option<Recording>>,
}

/// Recordings that are kept; batches of ever new sizes would collect them without end.
const MOST_RECORDINGS: usize = 64;

impl<D: Device> DeviceExecutor<D> {
    /// An executor of kind `kind` ("cuda", "emulated") with zeroed parameters.
    pub fn new(
        mut device: D,
        kind: &'static str,
        layout: Arc<ParameterLayout>,
        precision: Precision,
    ) -> Result<DeviceExecutor<D>> {
        let pieces = PieceTables::new(&layout);
        let limits = device.limits();
        let mut blocks = [Memory::NONE; Block::COUNT];
        let len = layout.block_len();
        let copied = precision.factors().map_or(0, |element| len * element.bytes());
        memory::check(&device, "the model", &[len * 4, copied])?;
        blocks[0].grow(&mut device, len * 4, "parameters")?;
        device.fill(blocks[0].address, 0, len * 4)?;
        let mut shadow = Memory::NONE;
        shadow.grow(&mut device, copied, &format!("parameters in {}", precision.name()))?;
        Ok(DeviceExecutor {
            queue: Queue::new(limits, precision, 0, 0),
            device,
            kind,
            precision,
            layout,
            blocks,
            shadow,
            shadow_is_stale: true,
            masks: Memory::NONE,
            pieces,
            arena: Memory::NONE,
            scratch: Memory::NONE,
            whole: true,
            programs: Vec::new(),
            recordings: HashMap::new(),
        })
    }

    fn addresses(&self, prepared: &Prepared) -> Addresses {
        Addresses {
            blocks: self.blocks.map(|block| block.address),
            masks: self.masks.address,
            factors: self.precision.factors(),
            shadow: self.shadow.address,
            inputs: prepared.inputs.address,
            ints: prepared.ints.address,
            arena: self.arena.address,
        }
    }

    /// Queues all of a program for a batch of `extents`, over stand-ins for its memory.
    fn queue_all(
        &self,
        queue: &mut Queue,
        program: &Program,
        plan: &Plan,
        types: &[ElementType],
        extents: &Extents,
    ) {
        let addresses = Addresses { factors: self.precision.factors(), ..Addresses::MEASURING };
        let binding = Binding { program, plan, types, extents, addresses };
        let pieces = self.pieces.measuring();
        for op in program.ops() {
            dispatch::dispatch(op, &binding, pieces, queue);
            queue.end_operation();
        }
    }

    fn forget_recordings(&mut self) -> Result<()> {
        self.device.forget(self.recordings.drain().filter_map(|(_, recording)| recording).collect())
    }

    fn ensure_block(&mut self, block: Block) -> Result<()> {
        let memory = &mut self.blocks[block as usize];
        let bytes = block.stretch(&self.layout).len() * 4;
        if memory.bytes == 0 && bytes > 0 {
            memory.grow(&mut self.device, bytes, &format!("{block:?}"))?;
            self.device.fill(memory.address, 0, bytes)?;
        }
        Ok(())
    }

    fn ensure_masks(&mut self) -> Result<()> {
        let bytes = 8 * mask_words(&self.layout);
        if self.masks.bytes == 0 && bytes > 0 {
            self.masks.grow(&mut self.device, bytes, "bits of the weight masks")?;
            self.device.fill(self.masks.address, 0, bytes)?;
        }
        Ok(())
    }

    /// Rounds the parameters anew if they were written since.
    fn refresh_shadow(&mut self) -> Result<()> {
        if let Some(element) = self.precision.factors()
            && self.shadow_is_stale
        {
            self.queue.clear();
            let (parameters, shadow) = (self.blocks[0].address, self.shadow.address);
            let len = self.layout.block_len();
            binding::refresh_shadow(&mut self.queue, parameters, shadow, element, len);
            self.device.run(self.queue.steps())?;
            self.shadow_is_stale = false;
        }
        Ok(())
    }

    /// After operations of a program: applied masks have changed the parameters, of which the kernel keeps up a copy in
    /// bf16 and no other.
    fn note_masks_applied(&mut self, id: ProgramId, range: Range<usize>) {
        let applies = |op: &Op| matches!(op, Op::ApplyMasks { .. });
        self.shadow_is_stale |= self.precision.factors() == Some(FactorType::F16)
            && self.programs[id.0].program.ops()[range].iter().any(applies);
    }

    /// Queues operations of a program; `ends` gets the number of steps queued after each of them.
    fn queue_range(
        &mut self,
        id: ProgramId,
        range: Range<usize>,
        extents: &Extents,
        ends: &mut Vec<usize>,
    ) -> Result<()> {
        let prepared = &self.programs[id.0];
        if !self.whole {
            let message = format!(
                "{} has lost its memory: preparing another program failed half-way",
                prepared.program.name()
            );
            return Err(Error::device(self.device.name(), message));
        }
        let capacity = &prepared.plan.capacity;
        if !extents.fits(capacity) || extents.longest > capacity.longest {
            let message = format!("{extents:?} exceeds the planned {capacity:?}");
            return Err(Error::shape(prepared.program.name(), message));
        }
        let binding = Binding {
            program: &prepared.program,
            plan: &prepared.plan,
            types: &prepared.types,
            extents,
            addresses: self.addresses(prepared),
        };
        let pieces = self.pieces.on_device();
        self.queue.clear();
        for op in &prepared.program.ops()[range] {
            dispatch::dispatch(op, &binding, pieces, &mut self.queue);
            self.queue.end_operation();
            ends.push(self.queue.steps().len());
        }
        Ok(())
    }
}

impl<D: Device> Executor for DeviceExecutor<D> {
    fn name(&self) -> &'static str {
        self.kind
    }

    fn prepare(&mut self, program: Arc<Program>, capacity: Extents) -> Result<ProgramId> {
        if !Arc::ptr_eq(program.layout(), &self.layout) {
            return Err(Error::shape(program.name(), "was emitted for another parameter layout"));
        }
        if let Some(slot) = memory::too_large(&program, &capacity) {
            let message = "has more elements than a kernel can count; a smaller token budget is needed";
            return Err(Error::shape(slot, message));
        }
        if let Some(size) = memory::too_wide(&program) {
            let message = format!(
                "has heads of {size} elements; a device's kernels hold {MAX_HEAD_DIM}, --device cpu any"
            );
            return Err(Error::shape(program.name(), message));
        }
        if !self.precision.differentiates() && program.differentiates() {
            return Err(Error::usage(format!(
                "{} computes gradients, which would underflow in {}: bf16, tf32 and f32 train",
                program.name(),
                self.precision.name()
            )));
        }
        let types = types::assign(&program, self.precision);
        let (plan, scratch) = self.measure(&program, &types, capacity);
        let (blocks, bits) = blocks_of(&program);
        let needs = self.needs(&plan, scratch, &blocks, bits);
        self.check_memory(&program, &types, capacity, &needs, (&blocks, bits))?;
        self.device.load(&self.sources(&program, &plan, &types))?;
        // Memory may move.
        self.whole = false;
        self.forget_recordings()?;
        for block in blocks {
            self.ensure_block(block)?;
        }
        if bits {
            self.ensure_masks()?;
        }
        self.pieces.upload(&mut self.device)?;
        self.arena.grow(&mut self.device, needs.arena, "arena")?;
        self.scratch.grow(&mut self.device, needs.scratch, "scratch")?;
        let limits = self.device.limits();
        self.queue = Queue::new(limits, self.precision, self.scratch.address, self.scratch.bytes);
        let (mut inputs, mut ints) = (Memory::NONE, Memory::NONE);
        inputs.grow(&mut self.device, needs.inputs, &format!("inputs of {}", program.name()))?;
        ints.grow(&mut self.device, needs.ints, &format!("integer inputs of {}", program.name()))?;
        self.device.fill(inputs.address, 0, needs.inputs)?;
        self.device.fill(ints.address, 0, needs.ints)?;
        self.whole = true;
        self.programs.push(Prepared { program, plan, types, inputs, ints });
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn forget_from(&mut self, first: ProgramId) -> Result<()> {
        self.forget_recordings()?;
        for prepared in self.programs.drain(first.0.min(self.programs.len())..) {
            for memory in [prepared.inputs, prepared.ints].into_iter().filter(|memory| memory.bytes > 0) {
                self.device.free(memory.address)?;
            }
        }
        Ok(())
    }

    fn program(&self, id: ProgramId) -> &Arc<Program> {
        &self.programs[id.0].program
    }

    fn plan(&self, id: ProgramId) -> &Plan {
        &self.programs[id.0].plan
    }

    fn allocated_bytes(&self) -> usize {
        let programs = self.programs.iter().flat_map(|p| [&p.inputs, &p.ints]);
        let own = [&self.shadow, &self.masks, &self.arena, &self.scratch];
        self.blocks
            .iter()
            .chain(own)
            .chain(self.pieces.memory())
            .chain(programs)
            .map(|memory| memory.bytes)
            .sum()
    }

    fn write(&mut self, id: ProgramId, slot: SlotId, data: &[f32]) -> Result<()> {
        self.write_floats(id, slot, data)
    }

    fn write_wide(&mut self, id: ProgramId, slot: SlotId, data: &[f64]) -> Result<()> {
        self.write_with(id, slot, data.len(), |i| data[i] as f32)
    }

    fn write_ints(&mut self, id: ProgramId, slot: SlotId, data: &[i32]) -> Result<()> {
        self.write_integers(id, slot, data)
    }

    fn run_range(&mut self, id: ProgramId, range: Range<usize>, extents: &Extents) -> Result<()> {
        self.refresh_shadow()?;
        let key = (id.0, range.clone(), *extents);
        if let Some(Some(recording)) = self.recordings.get(&key) {
            self.device.replay(recording)?;
            self.note_masks_applied(id, range);
            return Ok(());
        }
        self.queue_range(id, range.clone(), extents, &mut Vec::new())?;
        if self.recordings.len() >= MOST_RECORDINGS && !self.recordings.contains_key(&key) {
            self.forget_recordings()?;
        }
        // Most batches have a size of their own: only what comes again is worth recording.
        let recording = match self.recordings.get(&key) {
            Some(_) => self.device.record(self.queue.steps())?,
            None => None,
        };
        let outcome = match &recording {
            Some(recording) => self.device.replay(recording),
            None => self.device.run(self.queue.steps()),
        };
        self.recordings.insert(key, recording);
        outcome?;
        self.note_masks_applied(id, range);
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.device.synchronize()
    }

    fn run_timed(&mut self, id: ProgramId, extents: &Extents, seconds: &mut Vec<f64>) -> Result<()> {
        let mut ends = Vec::new();
        let all = 0..self.programs[id.0].program.ops().len();
        self.refresh_shadow()?;
        self.queue_range(id, all, extents, &mut ends)?;
        self.device.run_timed(self.queue.steps(), &ends, seconds)
    }

    fn device(&mut self) -> Option<&mut dyn Device> {
        Some(&mut self.device)
    }

    fn read(&self, id: ProgramId, slot: SlotId, extents: &Extents, out: &mut Vec<f32>) -> Result<()> {
        self.read_floats(id, slot, extents, out)
    }

    fn read_wide(&self, id: ProgramId, slot: SlotId, extents: &Extents) -> Result<Vec<f64>> {
        let mut out = Vec::new();
        self.read_with(id, slot, extents, |value| out.push(f64::from(value)))?;
        Ok(out)
    }

    fn read_block(&self, block: Block) -> Result<Vec<f32>> {
        let memory = self.blocks[block as usize];
        let mut out = vec![0.0f32; memory.bytes / 4];
        self.device.download(memory.address, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    fn block_len(&self, block: Block) -> usize {
        self.blocks[block as usize].bytes / 4
    }

    fn write_block(&mut self, block: Block, data: &[f32]) -> Result<()> {
        let expected = block.stretch(&self.layout).len();
        if data.len() != expected {
            let message = format!("{} values for a block of {expected}", data.len());
            return Err(Error::shape(format!("{block:?}"), message));
        }
        self.ensure_block(block)?;
        self.shadow_is_stale |= block == Block::Parameters;
        self.device.upload(self.blocks[block as usize].address, bytemuck::cast_slice(data))
    }

    fn read_masks(&self) -> Result<Vec<u64>> {
        let mut words = vec![0u64; self.masks.bytes / 8];
        self.device.download(self.masks.address, bytemuck::cast_slice_mut(&mut words))?;
        Ok(words)
    }

    fn write_masks(&mut self, words: &[u64]) -> Result<()> {
        check_mask_words(words.len(), mask_words(&self.layout))?;
        self.ensure_masks()?;
        self.device.upload(self.masks.address, bytemuck::cast_slice(words))
    }

    fn poison(&mut self) -> Result<()> {
        self.device.poison(self.arena.address, self.arena.bytes)
    }
}
