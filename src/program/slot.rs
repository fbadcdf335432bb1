//! Slots: the named matrices a program reads and writes, and where each of them lives.

/// Number of a slot within its program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotId(pub u32);

impl SlotId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A number of rows that may depend on the batch. A program is emitted and planned once and run on
/// batches of any size up to its capacity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extent {
    /// Always this many.
    Fixed(usize),
    /// One row a token of the unpadded batch.
    Tokens,
    /// One row a sequence of the batch.
    Sequences,
    /// `Sequences + 1`: the row offsets `cu_seqlens`.
    Boundaries,
    /// One row a predicted position of a language-modelling loss.
    Targets,
    /// One row a sampled token of a calibration tap.
    Samples,
}

/// The numbers the extents of a program stand for: of one batch, or the capacity planned for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Extents {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Sequences of the batch.
    pub sequences: usize,
    /// Predicted positions.
    pub targets: usize,
    /// Sampled tokens.
    pub samples: usize,
    /// Length of the longest sequence. Bounds attention scratch and cost, not slot sizes.
    pub longest: usize,
}

impl Extents {
    /// The number `extent` stands for.
    pub fn of(&self, extent: Extent) -> usize {
        match extent {
            Extent::Fixed(rows) => rows,
            Extent::Tokens => self.tokens,
            Extent::Sequences => self.sequences,
            Extent::Boundaries => self.sequences + 1,
            Extent::Targets => self.targets,
            Extent::Samples => self.samples,
        }
    }

    /// Whether a batch of this size fits a plan made for `capacity`.
    pub fn fits(&self, capacity: &Extents) -> bool {
        self.tokens <= capacity.tokens
            && self.sequences <= capacity.sequences
            && self.targets <= capacity.targets
            && self.samples <= capacity.samples
    }
}

/// Element type of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Element {
    /// `f32` on every executor but the reference, which computes in `f64`.
    Float,
    /// `i32`: token ids, positions, row offsets, labels, the random key.
    Int,
}

/// Where a slot's elements live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Storage {
    /// A range of the flat parameter block.
    Parameter(ParameterId),
    /// The same range of the gradient block.
    Gradient(ParameterId),
    /// Written by the host, kept between runs: token ids, masks, hyper-parameters.
    Input,
    /// In the arena, alive from its first write to its last use.
    Temporary,
    /// In the arena, never reused within a run, so that the host can read it afterwards.
    Output,
    /// Columns `column ..` of another slot, with that slot's leading dimension.
    Alias {
        /// The slot whose columns these are.
        of: SlotId,
        /// Its first column.
        column: usize,
    },
}

/// Number of a parameter within its [`ParameterLayout`](super::ParameterLayout).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ParameterId(pub u32);

impl ParameterId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A named matrix, row-major. The leading dimension is `cols` rounded up to [`COLUMN_ALIGNMENT`] for float
/// slots, so that every row starts on a 32-byte boundary; integer slots are dense.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Unique within the program; `layer.3.ffn.activation`.
    pub name: String,
    /// Number of rows.
    pub rows: Extent,
    /// Number of columns.
    pub cols: usize,
    /// Element type.
    pub element: Element,
    /// Where it lives.
    pub storage: Storage,
}

/// Float columns are padded to this many elements (32 bytes of f32, 16 of bf16).
pub const COLUMN_ALIGNMENT: usize = 8;

/// Blocks and slots start on multiples of this many elements (256 bytes of f32).
pub const SLOT_ALIGNMENT: usize = 64;

/// Leading dimension of a float matrix with `cols` columns.
pub fn leading_dimension(cols: usize) -> usize {
    cols.next_multiple_of(COLUMN_ALIGNMENT)
}
