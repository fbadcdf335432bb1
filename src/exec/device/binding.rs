//! The slots of a prepared program as operands: addresses in device memory for one batch.

use crate::exec::Block;
use crate::launch::Grid;
use crate::launch::{Bf16, DropoutOperand, ElementType, Matrix, Pointer, Queue, int, kernels};
use crate::program::{self, DropoutSite, Extents, Parameter, Plan, Program, SlotId, Storage};

/// Where the buffers of a program are.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The blocks, in their order.
    pub blocks: [u64; Block::COUNT],
    /// Bits of the weight masks.
    pub masks: u64,
    /// The parameters rounded to bf16; 0 where products read f32.
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

    /// A parameter's elements in the bf16 copy of the parameters; null where there is none.
    pub fn shadow(&self, parameter: &Parameter) -> Pointer<Bf16> {
        match self.addresses.shadow {
            0 => Pointer::NULL,
            shadow => Pointer::new(shadow).offset(parameter.offset),
        }
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

    /// A factor of a product: as it is, or rounded to bf16 where products read bf16. Parameters have a rounded copy,
    /// anything else is rounded to scratch.
    pub fn factor(&self, queue: &mut Queue, slot: SlotId) -> Matrix {
        let matrix = self.matrix(slot);
        if self.addresses.shadow == 0 || matrix.element == ElementType::Bf16 {
            return matrix;
        }
        if let program::Buffer::Parameters = self.plan.place(self.program.root(slot)).buffer {
            let elements = (matrix.address - self.addresses.blocks[0]) / 4;
            return Matrix {
                address: self.addresses.shadow + elements * 2,
                element: ElementType::Bf16,
                ..matrix
            };
        }
        converted(queue, matrix, ElementType::Bf16)
    }
}

/// Copies `matrix` to scratch in another element type.
pub fn converted(queue: &mut Queue, matrix: Matrix, element: ElementType) -> Matrix {
    let ld = matrix.cols.next_multiple_of(8);
    let address = queue.scratch::<u8>(matrix.rows * ld * element.bytes()).address;
    let copy = Matrix { address, element, ld, ..matrix };
    convert(queue, matrix, copy);
    copy
}

/// `to = from`, of one shape but different element types.
pub fn convert(queue: &mut Queue, from: Matrix, to: Matrix) {
    assert_eq!((from.rows, from.cols), (to.rows, to.cols));
    if from.is_empty() {
        return;
    }
    let (rows, cols, ld_from, ld_to) = (int(from.rows), int(from.cols), int(from.ld), int(to.ld));
    let octets = from.cols.div_ceil(8);
    let grid = Grid::linear((from.rows * octets).div_ceil(256), 256);
    let vector = i32::from(from.aligned16() && to.aligned16());
    queue.push(match to.element {
        ElementType::Bf16 => {
            kernels::convert::to_bf16_matrix(grid, from.f32(), ld_from, to.bf16(), ld_to, rows, cols, vector)
        }
        ElementType::F32 => {
            kernels::convert::to_f32_matrix(grid, from.bf16(), ld_from, to.f32(), ld_to, rows, cols, vector)
        }
    });
}

/// Rounds the whole block of `parameters`, `len` elements (a multiple of 8), to its bf16 copy.
pub fn refresh_shadow(queue: &mut Queue, parameters: u64, shadow: u64, len: usize) {
    if len > 0 {
        let matrix = |address, element| Matrix { address, element, rows: len / 8, cols: 8, ld: 8 };
        convert(queue, matrix(parameters, ElementType::F32), matrix(shadow, ElementType::Bf16));
    }
}
