//! Vocabulary of PTX opcodes: scalar types, state spaces, rounding.

/// A PTX fundamental type (PTX ISA §5.2), with the alternate floating-point formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// Predicate.
    Pred,
    /// Untyped bits.
    B8,
    /// Untyped bits.
    B16,
    /// Untyped bits.
    B32,
    /// Untyped bits.
    B64,
    /// Unsigned.
    U8,
    /// Unsigned.
    U16,
    /// Unsigned.
    U32,
    /// Unsigned.
    U64,
    /// Signed.
    S8,
    /// Signed.
    S16,
    /// Signed.
    S32,
    /// Signed.
    S64,
    /// IEEE half.
    F16,
    /// Two halves.
    F16x2,
    /// bfloat16.
    Bf16,
    /// Two bfloat16.
    Bf16x2,
    /// TensorFloat-32 in a 32-bit register.
    Tf32,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

impl Type {
    /// Reads the spelling without its dot.
    pub fn parse(text: &str) -> Option<Type> {
        Some(match text {
            "pred" => Type::Pred,
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::Bf16,
            "bf16x2" => Type::Bf16x2,
            "tf32" => Type::Tf32,
            "f32" => Type::F32,
            "f64" => Type::F64,
            _ => return None,
        })
    }

    /// Size in memory; a predicate has none and counts as 1.
    pub fn bytes(self) -> u32 {
        match self {
            Type::Pred | Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 2,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 | Type::Tf32 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
        }
    }

    /// Size in bits.
    pub fn bits(self) -> u32 {
        8 * self.bytes()
    }

    /// Two's-complement types.
    pub fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// Floating-point types, packed ones included.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 | Type::Tf32 | Type::F32 | Type::F64
        )
    }

    /// Signed, unsigned and untyped integers.
    pub fn is_integer(self) -> bool {
        !self.is_float() && self != Type::Pred
    }

    /// Lives in the 64-bit register file.
    pub fn is_long(self) -> bool {
        self.bytes() == 8
    }
}

/// State space of an access (PTX ISA §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// Decided by the address.
    Generic,
    /// Device memory.
    Global,
    /// Memory of a block.
    Shared,
    /// Memory of a thread.
    Local,
    /// Kernel parameters.
    Param,
    /// Constant bank.
    Const,
}

impl Space {
    /// Reads the spelling without its dot; `shared::cta` is `shared`.
    pub fn parse(text: &str) -> Option<Space> {
        Some(match text {
            "global" => Space::Global,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" | "param::entry" => Space::Param,
            "const" => Space::Const,
            _ => return None,
        })
    }
}

/// Rounding of a floating-point result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero.
    NearestAway,
    /// Towards zero.
    Zero,
    /// Towards negative infinity.
    Down,
    /// Towards positive infinity.
    Up,
}

impl Rounding {
    /// Reads `rn`, `rz`, `rm`, `rp`, `rna`.
    pub fn parse(text: &str) -> Option<Rounding> {
        Some(match text {
            "rn" => Rounding::Nearest,
            "rna" => Rounding::NearestAway,
            "rz" => Rounding::Zero,
            "rm" => Rounding::Down,
            "rp" => Rounding::Up,
            _ => return None,
        })
    }

    /// Reads the integer roundings `rni`, `rzi`, `rmi`, `rpi`.
    pub fn parse_integer(text: &str) -> Option<Rounding> {
        Some(match text {
            "rni" => Rounding::Nearest,
            "rzi" => Rounding::Zero,
            "rmi" => Rounding::Down,
            "rpi" => Rounding::Up,
            _ => return None,
        })
    }
}
