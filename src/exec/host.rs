//! The executors that run on the host: one memory and one way of binding slots, two sets of kernels.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::host_binding::{Binding, HostBlock};
use super::memory::Buffer;
use super::{Block, Executor, ProgramId};
use crate::error::{Error, Result};
use crate::ops::Elem;
use crate::ops::gemm::Factors;
use crate::program::{self, Element, Extents, Op, ParameterLayout, Plan, Program, SlotId};

/// The operations in one precision.
pub trait Kernels {
    /// Element type of float slots.
    type Element: Elem;
    /// Name of the executor.
    const NAME: &'static str;
    /// Runs one operation.
    fn run(op: &Op, binding: &Binding<'_, Self::Element>);
}

/// f32 kernels on all cores.
#[derive(Debug)]
pub struct CpuKernels;

/// f64 loops that restate the formulas.
#[derive(Debug)]
pub struct ReferenceKernels;

/// The fast executor of this machine's processor.
pub type Cpu = HostExecutor<CpuKernels>;

/// The f64 executor everything else is compared with.
pub type Reference = HostExecutor<ReferenceKernels>;

struct Prepared<T> {
    program: Arc<Program>,
    plan: Plan,
    inputs: Buffer<T>,
    ints: Vec<i32>,
}

/// An executor on host memory.
pub struct HostExecutor<K: Kernels> {
    layout: Arc<ParameterLayout>,
    blocks: [Buffer<K::Element>; Block::COUNT],
    /// Bits of the weight masks.
    masks: Vec<u64>,
    arena: Buffer<K::Element>,
    programs: Vec<Prepared<K::Element>>,
    factors: Factors,
    kernels: PhantomData<K>,
}

impl<K: Kernels> HostExecutor<K> {
    /// An executor with zeroed parameters.
    pub fn new(layout: Arc<ParameterLayout>) -> HostExecutor<K> {
        HostExecutor::with_factors(layout, Factors::F32)
    }

    /// The same, whose products round their factors.
    pub fn with_factors(layout: Arc<ParameterLayout>, factors: Factors) -> HostExecutor<K> {
        let blocks = Block::ALL.map(|block| match block {
            Block::Parameters => Buffer::new(layout.block_len()),
            _ => Buffer::new(0),
        });
        let (masks, programs) = (Vec::new(), Vec::new());
        HostExecutor { layout, blocks, masks, arena: Buffer::new(0), programs, factors, kernels: PhantomData }
    }

    /// The block, allocated if it was not.
    fn block(&mut self, block: Block) -> &mut Buffer<K::Element> {
        let buffer = &mut self.blocks[block as usize];
        if buffer.len() == 0 {
            *buffer = Buffer::new(block.stretch(&self.layout).len());
        }
        buffer
    }

    fn mask_words(&self) -> usize {
        super::mask_words(&self.layout)
    }

    /// Writes `len` values; `fill(row, start)` is to fill a row with those from `start` on.
    fn write_with(
        &mut self,
        id: ProgramId,
        slot: SlotId,
        len: usize,
        fill: impl Fn(&mut [K::Element], usize) + Sync,
    ) -> Result<()> {
        let prepared = &mut self.programs[id.0];
        let description = prepared.program.slot(slot);
        let capacity = prepared.plan.capacity.of(description.rows);
        let cols = description.cols;
        if !len.is_multiple_of(cols.max(1)) || len > capacity * cols {
            return Err(Error::shape(
                &description.name,
                format!("{len} values do not fill up to {capacity} rows of {cols}"),
            ));
        }
        let place = prepared.plan.place(slot);
        let buffer: &mut [K::Element] = match place.buffer {
            program::Buffer::Inputs => prepared.inputs.as_mut_slice(),
            program::Buffer::Arena => self.arena.as_mut_slice(),
            program::Buffer::Parameters => self.blocks[0].as_mut_slice(),
            program::Buffer::Gradients => self.blocks[1].as_mut_slice(),
            program::Buffer::Ints => return Err(Error::shape(&description.name, "is an integer slot")),
        };
        let count = len.checked_div(cols).unwrap_or(0);
        if count > 0 {
            let last = place.offset + (count - 1) * place.ld + cols;
            for_each_row(&mut buffer[place.offset..last], place.ld, |row, to| {
                fill(&mut to[..cols], row * cols)
            });
        }
        Ok(())
    }

    /// The rows of a float slot, where they lie.
    fn rows_of(&self, id: ProgramId, slot: SlotId, extents: &Extents) -> Rows<'_, K::Element> {
        let prepared = &self.programs[id.0];
        let description = prepared.program.slot(slot);
        let place = prepared.plan.place(slot);
        let buffer: &[K::Element] = match place.buffer {
            program::Buffer::Inputs => prepared.inputs.as_slice(),
            program::Buffer::Arena => self.arena.as_slice(),
            program::Buffer::Parameters => self.blocks[0].as_slice(),
            program::Buffer::Gradients => self.blocks[1].as_slice(),
            program::Buffer::Ints => panic!("{} is an integer slot", description.name),
        };
        let (count, cols) = (extents.of(description.rows), description.cols);
        Rows { values: &buffer[place.offset..], ld: place.ld, count, cols }
    }
}

/// Rows in a buffer, `ld` apart.
struct Rows<'a, T> {
    values: &'a [T],
    ld: usize,
    count: usize,
    cols: usize,
}

impl<'a, T> Rows<'a, T> {
    fn row(&self, row: usize) -> &'a [T] {
        &self.values[row * self.ld..][..self.cols]
    }
}

/// Elements above which copying is worth a second thread.
const LARGE: usize = 64 * 1024;

/// Calls `body` with every row of `to`, which are `ld` apart, and its number; in parallel where there is much to do.
fn for_each_row<T: Send>(to: &mut [T], ld: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    let ld = ld.max(1);
    if to.len() <= LARGE {
        to.chunks_mut(ld).enumerate().for_each(|(row, to)| body(row, to));
    } else {
        let rows = to.par_chunks_mut(ld).with_min_len((LARGE / 4).div_ceil(ld));
        rows.enumerate().for_each(|(row, to)| body(row, to));
    }
}

impl<K: Kernels> Executor for HostExecutor<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn prepare(&mut self, program: Arc<Program>, capacity: Extents) -> Result<ProgramId> {
        if !Arc::ptr_eq(program.layout(), &self.layout) {
            return Err(Error::shape(program.name(), "was emitted for another parameter layout"));
        }
        let plan = Plan::new(&program, capacity);
        if plan.arena_len > self.arena.len() {
            // Never two at once.
            self.arena = Buffer::new(0);
            self.arena = Buffer::new(plan.arena_len);
        }
        let (blocks, bits) = super::blocks_of(&program);
        for block in blocks {
            self.block(block);
        }
        if bits && self.masks.is_empty() {
            self.masks = vec![0; self.mask_words()];
        }
        let inputs = Buffer::new(plan.inputs_len);
        let ints = vec![0; plan.ints_len];
        self.programs.push(Prepared { program, plan, inputs, ints });
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn forget_from(&mut self, first: ProgramId) -> Result<()> {
        self.programs.truncate(first.0);
        Ok(())
    }

    fn program(&self, id: ProgramId) -> &Arc<Program> {
        &self.programs[id.0].program
    }

    fn plan(&self, id: ProgramId) -> &Plan {
        &self.programs[id.0].plan
    }

    fn allocated_bytes(&self) -> usize {
        let element = size_of::<K::Element>();
        let blocks: usize = self.blocks.iter().map(Buffer::len).sum();
        let programs: usize = self.programs.iter().map(|p| p.inputs.len() * element + p.ints.len() * 4).sum();
        (blocks + self.arena.len()) * element + programs + 8 * self.masks.len()
    }

    fn write(&mut self, id: ProgramId, slot: SlotId, data: &[f32]) -> Result<()> {
        self.write_with(id, slot, data.len(), |row, start| {
            K::Element::fill_from_f32(row, &data[start..start + row.len()]);
        })
    }

    fn write_wide(&mut self, id: ProgramId, slot: SlotId, data: &[f64]) -> Result<()> {
        self.write_with(id, slot, data.len(), |row, start| {
            let values = &data[start..start + row.len()];
            row.iter_mut().zip(values).for_each(|(to, from)| *to = K::Element::from_f64(*from));
        })
    }

    fn write_ints(&mut self, id: ProgramId, slot: SlotId, data: &[i32]) -> Result<()> {
        let prepared = &mut self.programs[id.0];
        let description = prepared.program.slot(slot);
        let capacity = prepared.plan.capacity.of(description.rows) * description.cols;
        if description.element != Element::Int || data.len() > capacity {
            let message = format!("{} integers do not fit {capacity}", data.len());
            return Err(Error::shape(&description.name, message));
        }
        let offset = prepared.plan.place(slot).offset;
        prepared.ints[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn run_range(&mut self, id: ProgramId, range: Range<usize>, extents: &Extents) -> Result<()> {
        let prepared = &self.programs[id.0];
        if !extents.fits(&prepared.plan.capacity) {
            let message = format!("{extents:?} exceeds the planned {:?}", prepared.plan.capacity);
            return Err(Error::shape(prepared.program.name(), message));
        }
        let binding = Binding {
            program: &prepared.program,
            plan: &prepared.plan,
            extents,
            ints: &prepared.ints,
            inputs: prepared.inputs.pointer(),
            arena: self.arena.pointer(),
            blocks: Block::ALL.map(|block| {
                let buffer = &self.blocks[block as usize];
                let start = block.stretch(&self.layout).start;
                HostBlock { pointer: buffer.pointer(), len: buffer.len(), start }
            }),
            masks: (self.masks.as_mut_ptr(), self.masks.len()),
            factors: self.factors,
            executor: PhantomData,
        };
        let ops = &prepared.program.ops()[range];
        // On a worker of the pool: operations then hand pieces of work to its neighbours, which are still looking for more
        // from the operation before, instead of waking the pool and sleeping themselves once for each operation.
        rayon::scope(move |_| ops.iter().for_each(|op| K::run(op, &binding)));
        Ok(())
    }

    fn read(&self, id: ProgramId, slot: SlotId, extents: &Extents, out: &mut Vec<f32>) -> Result<()> {
        let rows = self.rows_of(id, slot, extents);
        // Every element is overwritten: what is there already need not be written twice.
        out.resize(rows.count * rows.cols, 0.0);
        for_each_row(out, rows.cols, |row, to| K::Element::copy_to_f32(rows.row(row), to));
        Ok(())
    }

    fn read_wide(&self, id: ProgramId, slot: SlotId, extents: &Extents) -> Result<Vec<f64>> {
        let rows = self.rows_of(id, slot, extents);
        let mut out = Vec::with_capacity(rows.count * rows.cols);
        (0..rows.count).for_each(|row| out.extend(rows.row(row).iter().map(|value| value.to_f64())));
        Ok(out)
    }

    fn add_wide(
        &self,
        id: ProgramId,
        slot: SlotId,
        extents: &Extents,
        into: &mut [f64],
        ld: usize,
    ) -> Result<()> {
        let rows = self.rows_of(id, slot, extents);
        let end = into.len().min(rows.count * ld);
        for_each_row(&mut into[..end], ld, |row, sums| {
            sums.iter_mut().zip(rows.row(row)).for_each(|(sum, value)| *sum += value.to_f64());
        });
        Ok(())
    }

    fn read_block(&self, block: Block) -> Result<Vec<f32>> {
        Ok(self.blocks[block as usize].as_slice().iter().map(|value| value.to_f64() as f32).collect())
    }

    fn block_len(&self, block: Block) -> usize {
        self.blocks[block as usize].len()
    }

    fn write_block(&mut self, block: Block, data: &[f32]) -> Result<()> {
        let expected = block.stretch(&self.layout).len();
        if data.len() != expected {
            let message = format!("{} values for a block of {expected}", data.len());
            return Err(Error::shape(format!("{block:?}"), message));
        }
        let buffer = self.block(block).as_mut_slice();
        for (to, &from) in buffer.iter_mut().zip(data) {
            *to = K::Element::from_f64(f64::from(from));
        }
        Ok(())
    }

    fn read_masks(&self) -> Result<Vec<u64>> {
        Ok(self.masks.clone())
    }

    fn write_masks(&mut self, words: &[u64]) -> Result<()> {
        super::check_mask_words(words.len(), self.mask_words())?;
        self.masks.clear();
        self.masks.extend_from_slice(words);
        Ok(())
    }

    fn poison(&mut self) -> Result<()> {
        self.arena.as_mut_slice().fill(K::Element::from_f64(f64::NAN));
        Ok(())
    }
}
