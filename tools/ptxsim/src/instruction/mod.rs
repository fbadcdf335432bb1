//! The decoded form: dense operations over numbered registers, which is all that the interpreter sees.
//!
//! Immediates and addresses of variables are constant registers, filled once per launch, so that an operation reads
//! every operand in the same way.

mod arithmetic;

pub use arithmetic::{Comparison, Conversion, FloatMode, FloatOp, FloatTest, IntOp, Logic, PrmtMode};

use crate::syntax::Location;
use crate::types::{Space, Type};

/// A register or constant of the word or the long file; which file, the operation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg(u32);

impl Reg {
    const CONSTANT: u32 = 1 << 31;
    /// Reads zero, swallows writes: the sink `_` and unused operands.
    pub const NONE: Reg = Reg(u32::MAX);

    /// A variable register.
    pub fn variable(index: u32) -> Reg {
        debug_assert!(index < Reg::CONSTANT);
        Reg(index)
    }

    /// A constant.
    pub fn constant(index: u32) -> Reg {
        Reg(index | Reg::CONSTANT)
    }

    /// Index into the constants, if it is one.
    #[inline]
    pub fn as_constant(self) -> Option<usize> {
        (self.0 & Reg::CONSTANT != 0).then_some((self.0 & !Reg::CONSTANT) as usize)
    }

    /// Index into the register file; meaningful for variables only.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A predicate operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pred {
    /// Index in the predicate file.
    pub index: u32,
    /// Read through a `!`.
    pub negated: bool,
}

/// What a constant register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Constant {
    /// Fixed bits.
    Bits(u64),
    /// Address of a module variable plus an offset.
    Variable {
        /// Index in the module's variables.
        index: u32,
        /// Bytes.
        offset: i64,
    },
    /// Bytes of the parameter block, sign-extended when asked.
    Parameter {
        /// First byte.
        offset: u32,
        /// 1, 2, 4 or 8.
        bytes: u32,
        /// Sign-extend.
        signed: bool,
    },
}

/// Memory operand: base register plus offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Base.
    pub base: Reg,
    /// Base is in the long file.
    pub long: bool,
    /// Bytes to add.
    pub offset: i64,
}

/// Registers of a vector access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The registers, [`Reg::NONE`] beyond `count`.
    pub regs: [Reg; 4],
    /// 1, 2 or 4.
    pub count: u8,
    /// They are in the long file.
    pub long: bool,
}

/// Shape of one `ld` or `st`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Where.
    pub space: Space,
    /// Bytes per element: 1, 2, 4 or 8.
    pub width: u8,
    /// Elements.
    pub count: u8,
    /// Sign-extend loads into wider registers.
    pub signed: bool,
    /// `.volatile`, `.relaxed`, `.acquire`, `.release`: exempt from the race checks.
    pub strong: bool,
}

impl Access {
    /// Bytes of the whole access, which is also its alignment.
    pub fn bytes(&self) -> u32 {
        u32::from(self.width) * u32::from(self.count)
    }
}

/// Read-modify-write of an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicOp {
    /// Sum.
    Add,
    /// Bitwise.
    And,
    /// Bitwise.
    Or,
    /// Bitwise.
    Xor,
    /// Exchange.
    Exch,
    /// Compare and swap.
    Cas,
    /// Lesser.
    Min,
    /// Greater.
    Max,
    /// Count up, wrap at the operand.
    Inc,
    /// Count down, wrap at the operand.
    Dec,
}

/// Lane pattern of `shfl.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShuffleMode {
    /// From a lower lane.
    Up,
    /// From a higher lane.
    Down,
    /// From the lane with flipped bits.
    Butterfly,
    /// From a given lane.
    Index,
}

/// Kind of `vote.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// True everywhere.
    All,
    /// True somewhere.
    Any,
    /// The same everywhere.
    Uniform,
    /// Mask of the true lanes.
    Ballot,
}

/// Reduction of `bar.red`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarrierReduction {
    /// Number of true predicates into a word.
    Popc(Reg),
    /// Conjunction.
    And(u32),
    /// Disjunction.
    Or(u32),
}

/// Shape and types of `mma.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmaShape {
    /// Inner dimension: 4, 8 or 16; the tile is 16×8.
    pub k: u8,
    /// Type of A and B: F16, Bf16 or Tf32.
    pub input: Type,
    /// Type of C and D: F32 or F16.
    pub output: Type,
}

/// One decoded operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Copy a word or a long.
    Move { long: bool, d: Reg, a: Reg },
    /// Copy a predicate.
    MovePredicate { d: u32, a: Pred },
    /// Join parts of `part_bits` each.
    Pack { long: bool, d: Reg, parts: Group, part_bits: u8 },
    /// Split into parts of `part_bits` each.
    Unpack { long: bool, parts: Group, a: Reg, part_bits: u8 },
    /// Integer arithmetic in the file of `ty`.
    Int { op: IntOp, ty: Type, d: Reg, a: Reg, b: Reg, c: Reg, e: Reg },
    /// Product of two words (or 16-bit halves) in twice the width, plus c if it is there.
    MulWide { ty: Type, d: Reg, a: Reg, b: Reg, c: Option<Reg> },
    /// Floating-point arithmetic.
    Float { op: FloatOp, ty: Type, mode: FloatMode, d: Reg, a: Reg, b: Reg, c: Reg },
    /// Conversion; `b` is the low half of packed results.
    Convert { conversion: Conversion, d: Reg, a: Reg, b: Reg },
    /// Comparison, combined with a predicate if given; `e` receives the complement's combination.
    Compare {
        comparison: Comparison,
        ty: Type,
        ftz: bool,
        combine: Option<(Logic, Pred)>,
        d: u32,
        e: u32,
        a: Reg,
        b: Reg,
    },
    /// Comparison into a word: all ones or 1.0.
    Set {
        comparison: Comparison,
        ty: Type,
        ftz: bool,
        combine: Option<(Logic, Pred)>,
        float: bool,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    /// `p ? a : b`
    Select { long: bool, d: Reg, a: Reg, b: Reg, p: Pred },
    /// `c >= 0 ? a : b` with c an s32 or f32.
    SelectSign { long: bool, float: bool, d: Reg, a: Reg, b: Reg, c: Reg },
    /// NaN, infinity and so on, as a predicate.
    TestFloat { test: FloatTest, ty: Type, d: u32, a: Reg },
    /// Logic on predicates.
    PredicateLogic { logic: Logic, d: u32, a: Pred, b: Pred },
    /// Memory to registers.
    Load { access: Access, d: Group, address: Address },
    /// Registers to memory.
    Store { access: Access, a: Group, address: Address },
    /// Atomic read-modify-write; `d` is [`Reg::NONE`] for `red`.
    Atomic { op: AtomicOp, ty: Type, space: Space, d: Reg, address: Address, b: Reg, c: Reg },
    /// Between generic and specific addresses.
    ConvertAddress { space: Space, to_generic: bool, long: bool, d: Reg, a: Reg },
    /// Which space a generic address is in.
    IsSpace { space: Space, d: u32, a: Reg },
    /// Asynchronous copy of `bytes` from global to shared.
    CopyAsync { bytes: u8, source: Address, target: Address, source_bytes: Option<Reg>, ignore: Option<Pred> },
    /// Close the group of copies.
    CopyCommit,
    /// Wait until at most this many groups are pending; `None` waits for every copy.
    CopyWait { pending: Option<u32> },
    /// 8×8 matrices of 16-bit elements from shared memory.
    LoadMatrix { transposed: bool, d: Group, address: Address },
    /// 8×8 matrices of 16-bit elements to shared memory.
    StoreMatrix { transposed: bool, a: Group, address: Address },
    /// Transposes one 8×8 matrix held by the warp.
    MoveMatrix { d: Reg, a: Reg },
    /// Tensor-core product.
    Mma { shape: MmaShape, d: Group, a: Group, b: Group, c: Group },
    /// Exchange between lanes.
    Shuffle { mode: ShuffleMode, d: Reg, p: Option<u32>, a: Reg, b: Reg, c: Reg, members: Reg },
    /// Vote; the result is a predicate or, for a ballot, a word.
    Vote { vote: Vote, d: Reg, p: u32, a: Pred, members: Reg },
    /// `match.any` / `match.all`.
    Match { all: bool, long: bool, d: Reg, p: Option<u32>, a: Reg, members: Reg },
    /// Reduction over lanes.
    Redux { op: IntOp, ty: Type, d: Reg, a: Reg, members: Reg },
    /// Mask of the lanes executing this.
    ActiveMask { d: Reg },
    /// `bar.sync`, `bar.red`.
    Barrier { id: Reg, threads: Option<Reg>, reduction: Option<(BarrierReduction, Pred)> },
    /// `bar.arrive`
    BarrierArrive { id: Reg, threads: Reg },
    /// `bar.warp.sync`
    WarpBarrier { members: Reg },
    /// Memory fence.
    Fence,
    /// `elect.sync`-free no-operation: `prefetch`, `discard`, `nanosleep`, `griddepcontrol`.
    Nothing,
    /// A counter that only moves on: `%clock`.
    Clock { long: bool, d: Reg },
    /// Jump.
    Branch { target: u32 },
    /// Jump through a table.
    BranchIndex { index: Reg, targets: Box<[u32]> },
    /// End of the thread.
    Exit,
    /// Abort.
    Trap,
}

/// A register as the checks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Word file.
    Word(u32),
    /// Long file.
    Long(u32),
    /// Predicate file.
    Predicate(u32),
}

/// A decoded instruction with everything that reports need.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// Guard.
    pub guard: Option<Pred>,
    /// Registers read, guard excluded.
    pub reads: Box<[Slot]>,
    /// Registers written.
    pub writes: Box<[Slot]>,
    /// Opcode as spelled, index into the module's opcodes.
    pub opcode: u32,
    /// Line in the PTX text.
    pub line: u32,
    /// Line in the CUDA text.
    pub location: Location,
}
