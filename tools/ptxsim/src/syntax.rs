//! The syntactic form of a module: what the parser hands to the decoder.

use std::collections::HashMap;

use crate::types::{Space, Type};

/// Which register file holds a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum File {
    /// 8, 16 and 32 bits.
    Word,
    /// 64 bits.
    Long,
    /// One bit.
    Predicate,
}

/// A declared register after scope resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register {
    /// Its file.
    pub file: File,
    /// Its place in the file.
    pub index: u32,
    /// Declared size in bits (1 for predicates).
    pub bits: u8,
}

/// Where the base of an address comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Base<'a> {
    /// `[%rd1+4]`
    Register(Register),
    /// `[name+4]`
    Symbol(&'a str),
    /// `[16]`
    Absolute,
}

/// One operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand<'a> {
    /// A declared register.
    Register(Register),
    /// `!%p`
    Negated(Register),
    /// `%tid.x` and the like.
    Special(&'a str),
    /// Variable, label or parameter, with a byte offset.
    Symbol(&'a str, i64),
    /// Integer literal, two's complement.
    Integer(u64),
    /// `0f` literal.
    Single(u32),
    /// `0d` literal.
    Double(u64),
    /// `[base+offset]`
    Address(Base<'a>, i64),
    /// `{a, b, …}`
    Vector(Vec<Operand<'a>>),
    /// `d|p`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `_`
    Sink,
}

/// A place in the source files, from `.loc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Location {
    /// Number from `.file`, 0 when unknown.
    pub file: u32,
    /// Line from 1, 0 when unknown.
    pub line: u32,
    /// File and line of the call this code was inlined at.
    pub inlined_at: Option<(u32, u32)>,
}

/// One instruction as written.
#[derive(Debug, Clone)]
pub struct Statement<'a> {
    /// Guard predicate and whether it is negated.
    pub guard: Option<(Register, bool)>,
    /// Opcode with modifiers.
    pub opcode: &'a str,
    /// Operands in order.
    pub operands: Vec<Operand<'a>>,
    /// Line in the PTX text.
    pub line: u32,
    /// Line in the CUDA text.
    pub location: Location,
}

/// A variable of a module or of a kernel.
#[derive(Debug, Clone)]
pub struct Variable<'a> {
    /// Name.
    pub name: &'a str,
    /// Where it lives.
    pub space: Space,
    /// Alignment in bytes.
    pub align: u32,
    /// Size in bytes; 0 for `extern` arrays.
    pub bytes: u32,
    /// Initial bytes, when given; shorter than `bytes` means zeros follow.
    pub initial: Option<Vec<u8>>,
    /// Line of the declaration.
    pub line: u32,
}

/// A kernel parameter.
#[derive(Debug, Clone)]
pub struct Parameter<'a> {
    /// Name.
    pub name: &'a str,
    /// Type; `B8` with `bytes` > 1 for aggregates.
    pub ty: Type,
    /// Offset in the parameter block.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
}

/// A kernel before decoding.
#[derive(Debug, Clone, Default)]
pub struct KernelText<'a> {
    /// Name.
    pub name: &'a str,
    /// Parameters in order.
    pub parameters: Vec<Parameter<'a>>,
    /// Shared and local variables declared inside.
    pub variables: Vec<Variable<'a>>,
    /// Instructions in order.
    pub statements: Vec<Statement<'a>>,
    /// Statement index of each label.
    pub labels: HashMap<&'a str, u32>,
    /// Label lists of `.branchtargets`.
    pub branch_targets: HashMap<&'a str, Vec<&'a str>>,
    /// Registers used in the word, long and predicate files.
    pub registers: [u32; 3],
    /// `.maxntid`: the product is the limit.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the exact block shape.
    pub required_threads: Option<[u32; 3]>,
}

/// A module before decoding.
#[derive(Debug, Clone, Default)]
pub struct ModuleText<'a> {
    /// `.target`.
    pub target: String,
    /// `.file` numbers and names.
    pub files: HashMap<u32, String>,
    /// Module-level variables.
    pub variables: Vec<Variable<'a>>,
    /// Kernels in order.
    pub kernels: Vec<KernelText<'a>>,
}
