//! The slots of a prepared program as operands: addresses in device memory for one batch.

use crate::exec::Block;
use crate::launch::Grid;
use crate::launch::{
    Bf16, DropoutOperand, ElementType, Factor, FactorType, Matrix, Pointer, Queue, int, kernels,
};
use crate::program::{self, DropoutSite, Extents, Parameter, Plan, Program, SlotId, Storage};

/// Where the buffers of a program are.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The blocks, in their order.
    pub blocks: [u64; Block::COUNT],
    /// Bits of the weight masks.
    pub masks: u64,
    /// What products read instead of f32, if they do.
    pub factors: Option<FactorType>,
    /// The parameters in that type.
    pub shadow: u64,
    /// Float inputs.
    pub inputs: u64,
    /// Integer inputs.
    pub ints: u64,
    /// The arena.
    pub arena: u64,
}

impl Addresses {
    /// Stand-ins for measuring: nothing is allocated there, but everything is aligned as it will be.
    pub const MEASURING: Addresses = Addresses {
        blocks: [1 << 41, 2 << 41, 3 << 41, 4 << 41, 5 << 41, 6 << 41, 7 << 41, 8 << 41, 9 << 41],
        masks: 10 << 41,
        factors: None,
        shadow: 11 << 41,
        inputs: 12 << 41,
        ints: 13 << 41,
        arena: 14 << 41,
    };
}

/// Slots bound to addresses and to the extents of one batch.
pub struct Binding<'a> {
    pub program: &'a Program,
    pub plan: &'a Plan,
    pub types: &'a [ElementType],
    pub extents: &'a Extents,
    pub addresses: Addresses,
}

impl Binding<'_> {
    /// A float slot.
    pub fn matrix(&self, slot: SlotId) -> Matrix {
        let (mut root, mut column) = (slot, 0);
        while let Storage::Alias { of, column: first } = self.program.slot(root).storage {
            root = of;
            column += first;
        }
        let place = self.plan.place(root);
        let base = match place.buffer {
            program::Buffer::Parameters => self.addresses.blocks[0],
            program::Buffer::Gradients => self.addresses.blocks[1],
            program::Buffer::Inputs => self.addresses.inputs,
            program::Buffer::Arena => self.addresses.arena,
            program::Buffer::Ints => panic!("{} is an integer slot", self.program.slot(root).name),
        };
        let element = self.types[slot.index()];
        let description = self.program.slot(slot);
        Matrix {
            address: base + (place.offset * 4 + column * element.bytes()) as u64,
            element,
            rows: self.extents.of(description.rows),
            cols: description.cols,
            ld: place.ld,
        }
    }

    /// A slot of one row or one column, in f32.
    pub fn vector(&self, slot: SlotId) -> Pointer<f32> {
        let matrix = self.matrix(slot);
        assert!(matrix.rows <= 1 || matrix.cols == 1 && matrix.ld == 1);
        matrix.f32()
    }

    /// An integer slot.
    pub fn ints(&self, slot: SlotId) -> Pointer<i32> {
        Pointer::new(self.addresses.ints + self.plan.place(slot).offset as u64 * 4)
    }

    /// Number of sequences that the row offsets `cu_seqlens` delimit.
    pub fn sequences(&self, cu_seqlens: SlotId) -> usize {
        self.extents.of(self.program.slot(cu_seqlens).rows).saturating_sub(1)
    }

    /// The dropout of a site under the key of this run.
    pub fn dropout(&self, site: &Option<DropoutSite>) -> Option<DropoutOperand> {
        site.map(|site| DropoutOperand::new(site.dropout, self.ints(site.key)))
    }

    /// Where element 0 of the layout would be in a block: kernels of the optimiser are given offsets within the layout, which
    /// a block that spans a stretch only holds from its start on.
    pub fn origin(&self, block: Block) -> Pointer<f32> {
        let start = block.stretch(self.program.layout()).start as u64;
        Pointer::new(self.addresses.blocks[block as usize].wrapping_sub(4 * start))
    }

    /// A parameter's elements in a block.
    pub fn part(&self, block: Block, parameter: &Parameter) -> Pointer<f32> {
        let start = block.stretch(self.program.layout()).start;
        Pointer::new(self.addresses.blocks[block as usize]).offset(parameter.offset - start)
    }

    /// The copy of the parameters in bf16, which operations that write parameters keep up to date; null where there is
    /// none. (One in f16 is made anew before the next program.)
    pub fn copy_in_bf16(&self) -> Pointer<Bf16> {
        match self.addresses.factors {
            Some(FactorType::Bf16) => Pointer::new(self.addresses.shadow),
            _ => Pointer::NULL,
        }
    }

    /// A parameter's elements in the bf16 copy of the parameters; null where there is none.
    pub fn part_in_bf16(&self, parameter: &Parameter) -> Pointer<Bf16> {
        let copy = self.copy_in_bf16();
        if copy.is_null() { copy } else { copy.offset(parameter.offset) }
    }

    /// The masked matrices, each with the number of its first element in the masked stretch.
    pub fn masked(&self) -> impl Iterator<Item = (&Parameter, usize)> {
        let layout = self.program.layout();
        let start = Block::Scores.stretch(layout).start;
        layout.masked().map(move |parameter| (parameter, parameter.offset - start))
    }

    /// The words of a masked matrix, by the number of its first element.
    pub fn bits(&self, first: usize) -> Pointer<u64> {
        Pointer::new(self.addresses.masks).offset(first / 64)
    }

    /// A factor of a product: as it is, or rounded to what products read. Parameters have a rounded copy, anything else
    /// is rounded to scratch.
    pub fn factor(&self, queue: &mut Queue, slot: SlotId) -> Factor {
        let matrix = self.matrix(slot);
        let element = self.addresses.factors.unwrap_or(matrix.element.into());
        let factor = Factor { element, ..matrix.into() };
        if factor == matrix.into() {
            return factor;
        }
        if let program::Buffer::Parameters = self.plan.place(self.program.root(slot)).buffer {
            let elements = (matrix.address - self.addresses.blocks[0]) / 4;
            return Factor { address: self.addresses.shadow + elements * element.bytes() as u64, ..factor };
        }
        let ld = matrix.cols.next_multiple_of(8);
        let address = queue.scratch::<u8>(matrix.rows * ld * element.bytes()).address;
        let copy = Factor { address, ld, ..factor };
        round(queue, matrix, copy);
        copy
    }
}

/// Copies `matrix`, of bf16, to scratch in f32.
pub fn widened(queue: &mut Queue, matrix: Matrix) -> Matrix {
    let (element, ld) = (ElementType::F32, matrix.cols.next_multiple_of(8));
    let address = queue.scratch::<f32>(matrix.rows * ld).address;
    let copy = Matrix { address, element, ld, ..matrix };
    if !matrix.is_empty() {
        let (grid, vector) = by_octets(matrix.into(), copy.into());
        let (rows, cols, ld_from, ld_to) = (int(copy.rows), int(copy.cols), int(matrix.ld), int(ld));
        let (from, to) = (matrix.bf16(), copy.f32());
        queue.push(kernels::convert::to_f32_matrix(grid, from, ld_from, to, ld_to, rows, cols, vector));
    }
    copy
}

/// `to = from`, rounded to bf16 or f16.
fn round(queue: &mut Queue, from: Matrix, to: Factor) {
    assert_eq!((from.rows, from.cols), (to.rows, to.cols));
    if from.is_empty() {
        return;
    }
    let (grid, vector) = by_octets(from.into(), to);
    let (rows, cols, ld_from, ld_to) = (int(from.rows), int(from.cols), int(from.ld), int(to.ld));
    let x = from.f32();
    queue.push(match to.element {
        FactorType::Bf16 => {
            let y = Pointer::new(to.address);
            kernels::convert::to_bf16_matrix(grid, x, ld_from, y, ld_to, rows, cols, vector)
        }
        FactorType::F16 => {
            let y = Pointer::new(to.address);
            kernels::convert::to_f16_matrix(grid, x, ld_from, y, ld_to, rows, cols, vector)
        }
        FactorType::F32 => unreachable!("f32 is not rounded to f32"),
    });
}

/// The grid of a conversion, 8 elements a thread, and whether it may go by 16 bytes.
fn by_octets(from: Factor, to: Factor) -> (Grid, i32) {
    let octets = from.cols.div_ceil(8);
    let grid = Grid::linear((from.rows * octets).div_ceil(256), 256);
    (grid, i32::from(from.aligned16() && to.aligned16()))
}

/// Rounds the whole block of `parameters`, `len` elements (a multiple of 8), to the copy that products read.
pub fn refresh_shadow(queue: &mut Queue, parameters: u64, shadow: u64, element: FactorType, len: usize) {
    if len > 0 {
        let (rows, cols, ld) = (len / 8, 8, 8);
        let from = Matrix { address: parameters, element: ElementType::F32, rows, cols, ld };
        round(queue, from, Factor { address: shadow, element, rows, cols, ld });
    }
}
