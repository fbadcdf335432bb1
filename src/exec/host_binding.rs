//! Slots of a host program bound to memory: the only place where the plan's offsets become pointers.
//!
//! What it keeps true: a slot is read and written where the plan put it, for the rows of one batch, and an operation gets
//! no two operands that share an element which it writes (`validate` has proved that of the program).

use std::marker::PhantomData;
use std::ops::Range;

use super::Block;
use crate::ops::gemm::Factors;
use crate::ops::{Elem, View, ViewMut};
use crate::program::{self, Extents, Parameter, ParameterLayout, Plan, Program, SlotId};

/// A block in memory.
#[derive(Clone, Copy)]
pub(super) struct HostBlock<T> {
    pub pointer: *mut T,
    /// Elements.
    pub len: usize,
    /// Its first element's number in the layout.
    pub start: usize,
}

/// A masked matrix: its parameter, its elements in the layout, the number of the first within the masked stretch.
pub struct Masked<'a> {
    /// Name and shape.
    pub parameter: &'a Parameter,
    /// Elements in the layout, padding included.
    pub range: Range<usize>,
    /// The first element's number within the masked stretch, a multiple of 64.
    pub first: usize,
}

/// The slots of a prepared program, bound to memory and to the extents of one batch.
pub struct Binding<'a, T> {
    pub(super) program: &'a Program,
    pub(super) plan: &'a Plan,
    pub(super) extents: &'a Extents,
    pub(super) ints: &'a [i32],
    pub(super) inputs: *mut T,
    pub(super) arena: *mut T,
    pub(super) blocks: [HostBlock<T>; Block::COUNT],
    pub(super) masks: (*mut u64, usize),
    pub(super) factors: Factors,
    pub(super) executor: PhantomData<&'a mut T>,
}

// SAFETY: the pointers lead to the buffers of an executor that is borrowed exclusively for 'a, so a binding may move to
// another thread as that borrow may.
unsafe impl<T: Send> Send for Binding<'_, T> {}

impl<'a, T: Elem> Binding<'a, T> {
    /// What products round their factors to.
    pub fn factors(&self) -> Factors {
        self.factors
    }

    /// The parameter table.
    pub fn layout(&self) -> &'a ParameterLayout {
        self.program.layout()
    }

    /// The trained parameters with their ranges in the blocks.
    pub fn trained_parameters(&self) -> impl Iterator<Item = (&'a Parameter, Range<usize>)> {
        let trained = self.layout().iter().map(|(_, p)| p).filter(|p| p.trainable);
        trained.map(|p| (p, p.range()))
    }

    /// The masked matrices in order.
    pub fn masked(&self) -> impl Iterator<Item = Masked<'a>> {
        let start = self.blocks[Block::Scores as usize].start;
        let masked = self.layout().masked();
        masked.map(move |parameter| Masked {
            parameter,
            range: parameter.range(),
            first: parameter.offset - start,
        })
    }

    /// The words of a masked matrix to read.
    pub fn bits(&self, matrix: &Masked) -> &'a [u64] {
        let words = matrix.first / 64..(matrix.first + matrix.range.len()).div_ceil(64);
        assert!(words.end <= self.masks.1);
        // SAFETY: inside the words by the assertion; an operation that writes them does not read them here.
        unsafe { std::slice::from_raw_parts(self.masks.0.add(words.start), words.len()) }
    }

    /// The words of a masked matrix to write.
    #[allow(clippy::mut_from_ref)]
    pub fn bits_mut(&self, matrix: &Masked) -> &'a mut [u64] {
        let words = matrix.first / 64..(matrix.first + matrix.range.len()).div_ceil(64);
        assert!(words.end <= self.masks.1);
        // SAFETY: as above; matrices begin at words of their own, and the operation takes each once.
        unsafe { std::slice::from_raw_parts_mut(self.masks.0.add(words.start), words.len()) }
    }

    /// The block that holds the gradients of the scores.
    pub fn score_gradients(&self) -> Block {
        Block::of_score_gradients(self.layout())
    }

    fn locate(&self, slot: SlotId) -> (*mut T, usize, usize, usize) {
        let description = self.program.slot(slot);
        let place = self.plan.place(slot);
        let base = match place.buffer {
            program::Buffer::Parameters => self.blocks[0].pointer,
            program::Buffer::Gradients => self.blocks[1].pointer,
            program::Buffer::Inputs => self.inputs,
            program::Buffer::Arena => self.arena,
            program::Buffer::Ints => panic!("{} is an integer slot", description.name),
        };
        // SAFETY: the plan placed the slot inside the buffer, which has at least the planned length.
        let pointer = unsafe { base.add(place.offset) };
        (pointer, self.extents.of(description.rows), description.cols, place.ld)
    }

    /// A slot to read.
    pub fn view(&self, slot: SlotId) -> View<'a, T> {
        let (pointer, rows, cols, ld) = self.locate(slot);
        let len = if rows == 0 { 0 } else { (rows - 1) * ld + cols };
        // SAFETY: the elements were placed by the plan inside a buffer this executor holds borrowed, and `validate`
        // proved that the running operation writes to no slot whose memory this one shares.
        let data = unsafe { std::slice::from_raw_parts(pointer, len) };
        View::new(data, rows, cols, ld)
    }

    /// A slot to write.
    pub fn view_mut(&self, slot: SlotId) -> ViewMut<'a, T> {
        let (pointer, rows, cols, ld) = self.locate(slot);
        // SAFETY: as in `view`; no other operand of the running operation shares these elements.
        unsafe { ViewMut::from_raw(pointer, rows, cols, ld) }
    }

    /// A one-row (or one-column) slot to read, as a slice.
    pub fn slice(&self, slot: SlotId) -> &'a [T] {
        let view = self.view(slot);
        assert!(view.rows() == 1 || view.cols() == 1 && view.ld() == 1 || view.rows() == 0);
        view.data()
    }

    /// A one-row (or one-column) slot to write, as a slice.
    pub fn slice_mut(&self, slot: SlotId) -> &'a mut [T] {
        let (pointer, rows, cols, ld) = self.locate(slot);
        assert!(rows == 1 || cols == 1 && ld == 1 || rows == 0);
        let len = if rows == 0 { 0 } else { (rows - 1) * ld + cols };
        // SAFETY: as in `view_mut`.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }

    /// An integer slot.
    pub fn ints(&self, slot: SlotId) -> &'a [i32] {
        let description = self.program.slot(slot);
        let offset = self.plan.place(slot).offset;
        &self.ints[offset..offset + self.extents.of(description.rows) * description.cols]
    }

    /// A whole block to write.
    #[allow(clippy::mut_from_ref)]
    pub fn block_mut(&self, block: Block) -> &'a mut [T] {
        let HostBlock { pointer, len, .. } = self.blocks[block as usize];
        // SAFETY: blocks are distinct buffers held by the executor; the operation takes each once.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }

    /// Elements `range` of the layout, of a block, to read.
    pub fn part(&self, block: Block, range: &Range<usize>) -> &'a [T] {
        let HostBlock { pointer, len, start } = self.blocks[block as usize];
        assert!(start <= range.start && range.end - start <= len, "{block:?} does not hold {range:?}");
        // SAFETY: inside the block by the assertion; an operation that writes these elements does not read them here.
        unsafe { std::slice::from_raw_parts(pointer.add(range.start - start), range.len()) }
    }

    /// Elements `range` of the layout, of a block, to write.
    #[allow(clippy::mut_from_ref)]
    pub fn part_mut(&self, block: Block, range: &Range<usize>) -> &'a mut [T] {
        let HostBlock { pointer, len, start } = self.blocks[block as usize];
        assert!(start <= range.start && range.end - start <= len, "{block:?} does not hold {range:?}");
        // SAFETY: as in `part`; the operation takes these elements once.
        unsafe { std::slice::from_raw_parts_mut(pointer.add(range.start - start), range.len()) }
    }
}
