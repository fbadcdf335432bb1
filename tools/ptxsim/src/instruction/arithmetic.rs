//! What arithmetic instructions compute, and how they round: the parameters of the arithmetic variants of
//! [`Op`](super::Op).
//!
//! One entry is one function of its operands, whatever the spelling in PTX: modifiers that change the function are here,
//! types and registers are the operation's.

use crate::types::{Rounding, Type};

/// Integer and bit operations; the type says width and signedness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntOp {
    /// `a + b`
    Add,
    /// Saturating, s32 only.
    AddSat,
    /// `a - b`
    Sub,
    /// Saturating, s32 only.
    SubSat,
    /// Low half of the product.
    MulLo,
    /// High half.
    MulHi,
    /// Low half of the product plus c.
    MadLo,
    /// High half plus c.
    MadHi,
    /// 24-bit product, low 32 bits.
    Mul24Lo,
    /// 24-bit product, bits 47..16.
    Mul24Hi,
    /// `mul24.lo + c`
    Mad24Lo,
    /// `|a - b| + c`
    Sad,
    /// Quotient; division by zero gives all ones.
    Div,
    /// Remainder; by zero gives a.
    Rem,
    /// Lesser.
    Min,
    /// Greater.
    Max,
    /// Bitwise.
    And,
    /// Bitwise.
    Or,
    /// Bitwise.
    Xor,
    /// Bitwise.
    Not,
    /// `a == 0`
    Cnot,
    /// Two's complement.
    Neg,
    /// Absolute value.
    Abs,
    /// Left shift, clamped.
    Shl,
    /// Right shift, clamped, arithmetic when signed.
    Shr,
    /// Set bits; the result is a word.
    Popc,
    /// Leading zeros; the result is a word.
    Clz,
    /// Reversed bits.
    Brev,
    /// Highest significant bit; the result is a word.
    Bfind,
    /// Distance of that bit from the top.
    BfindShift,
    /// Bit field extract (b = position, c = length).
    Bfe,
    /// Bit field insert (a into b; c = position, e = length).
    Bfi,
    /// Any function of three bits.
    Lop3(u8),
    /// Byte permutation.
    Prmt(PrmtMode),
    /// Funnel shift left.
    ShfLeft {
        /// Wrap the amount at 32, else clamp.
        wrap: bool,
    },
    /// Funnel shift right.
    ShfRight {
        /// Wrap the amount at 32, else clamp.
        wrap: bool,
    },
}

/// Mode of `prmt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrmtMode {
    /// A selector nibble per byte.
    Index,
    /// Forward 4 extract.
    F4e,
    /// Backward 4 extract.
    B4e,
    /// Replicate 8.
    Rc8,
    /// Edge clamp left.
    Ecl,
    /// Edge clamp right.
    Ecr,
    /// Replicate 16.
    Rc16,
}

/// Floating-point operations, of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatOp {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a * b + c`, rounded once.
    Fma,
    /// Correctly rounded quotient.
    Div,
    /// `div.approx`
    DivApprox,
    /// `div.full`
    DivFull,
    /// Lesser; a NaN loses.
    Min,
    /// Greater; a NaN loses.
    Max,
    /// Lesser; a NaN wins.
    MinNan,
    /// Greater; a NaN wins.
    MaxNan,
    /// `-a`
    Neg,
    /// `|a|`
    Abs,
    /// Sign of a, magnitude of b.
    Copysign,
    /// `1 / a`
    Rcp,
    /// Square root.
    Sqrt,
    /// `1 / sqrt a`
    Rsqrt,
    /// `2^a`
    Ex2,
    /// `log2 a`
    Lg2,
    /// Hyperbolic tangent.
    Tanh,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
}

/// How a floating-point operation rounds and clamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatMode {
    /// Rounding of the result.
    pub rounding: Rounding,
    /// Subnormal operands and results become zeros of their sign.
    pub ftz: bool,
    /// Clamp to [0, 1], NaN to 0.
    pub sat: bool,
    /// Clamp negative results (and NaN to canonical) at 0: `.relu` of half `fma`.
    pub relu: bool,
    /// An approximation, within the ISA's bound of the exact value.
    pub approximate: bool,
}

impl FloatMode {
    /// Round to nearest, nothing else.
    pub const PLAIN: FloatMode =
        FloatMode { rounding: Rounding::Nearest, ftz: false, sat: false, relu: false, approximate: false };
}

/// Comparison of `setp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal (false on NaN).
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Equal or unordered.
    Equ,
    /// Not equal or unordered.
    Neu,
    /// Less or unordered.
    Ltu,
    /// Less, equal or unordered.
    Leu,
    /// Greater or unordered.
    Gtu,
    /// Greater, equal or unordered.
    Geu,
    /// Both are numbers.
    Num,
    /// One is NaN.
    Nan,
}

/// Logic on predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logic {
    /// Both.
    And,
    /// Either.
    Or,
    /// One of them.
    Xor,
}

/// A conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    /// Target type.
    pub to: Type,
    /// Source type.
    pub from: Type,
    /// The source register is a long, whatever the type; the type takes its low bits.
    pub from_long: bool,
    /// Rounding to the target's precision, or to an integer.
    pub rounding: Rounding,
    /// Round a float to an integral value (`rni` and so on).
    pub integral: bool,
    /// Flush subnormals.
    pub ftz: bool,
    /// Clamp to the target's range, or to [0, 1].
    pub sat: bool,
    /// Clamp negatives to 0.
    pub relu: bool,
}

impl Conversion {
    /// Rounds to nearest, and nothing else.
    pub fn is_plain(&self) -> bool {
        self.rounding == Rounding::Nearest && !self.integral && !self.ftz && !self.sat && !self.relu
    }
}

/// Test of `testp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatTest {
    /// Neither infinite nor NaN.
    Finite,
    /// Infinite.
    Infinite,
    /// Not NaN.
    Number,
    /// NaN.
    NotNumber,
    /// Normal.
    Normal,
    /// Subnormal.
    Subnormal,
}
