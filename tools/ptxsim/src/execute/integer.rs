//! Integer and bit operations (PTX ISA §9.7.1, §9.7.8), to the bit.

use crate::instruction::{IntOp, PrmtMode};
use crate::registers::{LANES, Lanes32, Lanes64};
use crate::types::Type;

macro_rules! lanes {
    ($zero:expr, |$i:ident| $value:expr) => {{
        let mut out = [$zero; LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

/// Operations on 8-, 16- and 32-bit types.
pub fn word(op: IntOp, ty: Type, a: &Lanes32, b: &Lanes32, c: &Lanes32, e: &Lanes32) -> Lanes32 {
    if ty.bits() < 32 {
        return lanes!(0u32, |i| narrow(op, ty, a[i], b[i], c[i]));
    }
    let signed = ty.is_signed();
    match op {
        IntOp::Add => lanes!(0u32, |i| a[i].wrapping_add(b[i])),
        IntOp::AddSat => lanes!(0u32, |i| (a[i] as i32).saturating_add(b[i] as i32) as u32),
        IntOp::Sub => lanes!(0u32, |i| a[i].wrapping_sub(b[i])),
        IntOp::SubSat => lanes!(0u32, |i| (a[i] as i32).saturating_sub(b[i] as i32) as u32),
        IntOp::MulLo => lanes!(0u32, |i| a[i].wrapping_mul(b[i])),
        IntOp::MadLo => lanes!(0u32, |i| a[i].wrapping_mul(b[i]).wrapping_add(c[i])),
        IntOp::MulHi => lanes!(0u32, |i| high32(signed, a[i], b[i])),
        IntOp::MadHi => lanes!(0u32, |i| high32(signed, a[i], b[i]).wrapping_add(c[i])),
        IntOp::Mul24Lo => lanes!(0u32, |i| product24(signed, a[i], b[i]) as u32),
        IntOp::Mul24Hi => lanes!(0u32, |i| (product24(signed, a[i], b[i]) >> 16) as u32),
        IntOp::Mad24Lo => lanes!(0u32, |i| (product24(signed, a[i], b[i]) as u32).wrapping_add(c[i])),
        IntOp::Sad if signed => {
            lanes!(0u32, |i| (a[i] as i32).abs_diff(b[i] as i32).wrapping_add(c[i]))
        }
        IntOp::Sad => lanes!(0u32, |i| a[i].abs_diff(b[i]).wrapping_add(c[i])),
        IntOp::Div if signed => {
            lanes!(0u32, |i| if b[i] == 0 {
                u32::MAX
            } else {
                (a[i] as i32).wrapping_div(b[i] as i32) as u32
            })
        }
        IntOp::Div => lanes!(0u32, |i| a[i].checked_div(b[i]).unwrap_or(u32::MAX)),
        IntOp::Rem if signed => {
            lanes!(0u32, |i| if b[i] == 0 { a[i] } else { (a[i] as i32).wrapping_rem(b[i] as i32) as u32 })
        }
        IntOp::Rem => lanes!(0u32, |i| a[i].checked_rem(b[i]).unwrap_or(a[i])),
        IntOp::Min if signed => lanes!(0u32, |i| (a[i] as i32).min(b[i] as i32) as u32),
        IntOp::Min => lanes!(0u32, |i| a[i].min(b[i])),
        IntOp::Max if signed => lanes!(0u32, |i| (a[i] as i32).max(b[i] as i32) as u32),
        IntOp::Max => lanes!(0u32, |i| a[i].max(b[i])),
        IntOp::And => lanes!(0u32, |i| a[i] & b[i]),
        IntOp::Or => lanes!(0u32, |i| a[i] | b[i]),
        IntOp::Xor => lanes!(0u32, |i| a[i] ^ b[i]),
        IntOp::Not => lanes!(0u32, |i| !a[i]),
        IntOp::Cnot => lanes!(0u32, |i| u32::from(a[i] == 0)),
        IntOp::Neg => lanes!(0u32, |i| a[i].wrapping_neg()),
        IntOp::Abs => lanes!(0u32, |i| (a[i] as i32).wrapping_abs() as u32),
        IntOp::Shl => lanes!(0u32, |i| if b[i] > 31 { 0 } else { a[i] << b[i] }),
        IntOp::Shr if signed => lanes!(0u32, |i| ((a[i] as i32) >> b[i].min(31)) as u32),
        IntOp::Shr => lanes!(0u32, |i| if b[i] > 31 { 0 } else { a[i] >> b[i] }),
        IntOp::Popc => lanes!(0u32, |i| a[i].count_ones()),
        IntOp::Clz => lanes!(0u32, |i| a[i].leading_zeros()),
        IntOp::Brev => lanes!(0u32, |i| a[i].reverse_bits()),
        IntOp::Bfind | IntOp::BfindShift => {
            lanes!(0u32, |i| highest(extend(a[i].into(), 32, signed), 32, signed, op == IntOp::BfindShift))
        }
        IntOp::Bfe => lanes!(0u32, |i| extract(a[i].into(), b[i], c[i], 32, signed) as u32),
        IntOp::Bfi => lanes!(0u32, |i| insert(a[i].into(), b[i].into(), c[i], e[i], 32) as u32),
        IntOp::Lop3(table) => lanes!(0u32, |i| lop3(a[i], b[i], c[i], table)),
        IntOp::Prmt(mode) => lanes!(0u32, |i| permute(a[i], b[i], c[i], mode)),
        IntOp::ShfLeft { wrap } => {
            lanes!(0u32, |i| {
                let amount = if wrap { c[i] & 31 } else { c[i].min(32) };
                ((joined(a[i], b[i]) << amount) >> 32) as u32
            })
        }
        IntOp::ShfRight { wrap } => {
            lanes!(0u32, |i| {
                let amount = if wrap { c[i] & 31 } else { c[i].min(32) };
                (joined(a[i], b[i]) >> amount) as u32
            })
        }
    }
}

fn joined(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn high32(signed: bool, a: u32, b: u32) -> u32 {
    if signed {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    } else {
        ((u64::from(a) * u64::from(b)) >> 32) as u32
    }
}

fn product24(signed: bool, a: u32, b: u32) -> u64 {
    if signed {
        let cut = |x: u32| i64::from((x << 8) as i32 >> 8);
        (cut(a) * cut(b)) as u64
    } else {
        u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)
    }
}

fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    let mut out = 0;
    for case in 0..8 {
        if table >> case & 1 != 0 {
            let a = if case & 4 != 0 { a } else { !a };
            let b = if case & 2 != 0 { b } else { !b };
            let c = if case & 1 != 0 { c } else { !c };
            out |= a & b & c;
        }
    }
    out
}

fn permute(a: u32, b: u32, c: u32, mode: PrmtMode) -> u32 {
    let bytes = joined(a, b).to_le_bytes();
    let s = (c & 3) as usize;
    let pick: [usize; 4] = match mode {
        PrmtMode::Index => {
            let mut out = 0;
            for i in 0..4 {
                let nibble = c >> (4 * i) & 0xf;
                let byte = bytes[(nibble & 7) as usize];
                // The high bit of the nibble asks for the byte's sign instead of the byte.
                let byte = if nibble & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
                out |= u32::from(byte) << (8 * i);
            }
            return out;
        }
        PrmtMode::F4e => [s, s + 1, s + 2, s + 3],
        PrmtMode::B4e => [s, (s + 7) & 7, (s + 6) & 7, (s + 5) & 7],
        PrmtMode::Rc8 => [s; 4],
        PrmtMode::Ecl => [s, s.max(1), s.max(2), 3],
        PrmtMode::Ecr => [0, s.min(1), s.min(2), s],
        PrmtMode::Rc16 => {
            let half = 2 * (s & 1);
            [half, half + 1, half, half + 1]
        }
    };
    u32::from_le_bytes(pick.map(|i| bytes[i]))
}

fn extend(value: u64, bits: u32, signed: bool) -> u64 {
    let shift = 64 - bits;
    if signed { ((value << shift) as i64 >> shift) as u64 } else { value << shift >> shift }
}

fn highest(value: u64, bits: u32, signed: bool, from_top: bool) -> u32 {
    let value = if signed && (value as i64) < 0 { !value } else { value };
    if value == 0 {
        return u32::MAX;
    }
    let position = 63 - value.leading_zeros();
    if from_top { bits - 1 - position } else { position }
}

// The sign of the field is its highest bit inside the register; a field of length 0 is 0.
fn extract(a: u64, position: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let a = extend(a, bits, false);
    let top = (position + length - 1).min(bits - 1);
    let sign = if signed && a >> top & 1 != 0 { u64::MAX } else { 0 };
    let field = if position >= bits { 0 } else { a >> position };
    let present = if position >= bits { 0 } else { (bits - position).min(length) };
    let mask = if present >= 64 { u64::MAX } else { (1 << present) - 1 };
    (field & mask) | (sign & !mask)
}

fn insert(a: u64, b: u64, position: u32, length: u32, bits: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= bits || length == 0 {
        return b;
    }
    let length = length.min(bits - position);
    let mask = (if length >= 64 { u64::MAX } else { (1u64 << length) - 1 }) << position;
    (b & !mask) | (a << position & mask)
}

// 8- and 16-bit types: extend, compute wide, cut.
fn narrow(op: IntOp, ty: Type, a: u32, b: u32, c: u32) -> u32 {
    let bits = ty.bits();
    let signed = ty.is_signed();
    let wide = |x: u32| extend(x.into(), bits, signed) as i64;
    let (x, y, z) = (wide(a), wide(b), wide(c));
    let value = match op {
        IntOp::Add => x + y,
        IntOp::Sub => x - y,
        IntOp::MulLo => x.wrapping_mul(y),
        IntOp::MulHi => x.wrapping_mul(y) >> bits,
        IntOp::MadLo => x.wrapping_mul(y) + z,
        IntOp::MadHi => (x.wrapping_mul(y) >> bits) + z,
        IntOp::Sad => (x - y).abs() + z,
        IntOp::Div => {
            if y == 0 {
                -1
            } else {
                x / y
            }
        }
        IntOp::Rem => {
            if y == 0 {
                x
            } else {
                x % y
            }
        }
        IntOp::Min => x.min(y),
        IntOp::Max => x.max(y),
        IntOp::And => x & y,
        IntOp::Or => x | y,
        IntOp::Xor => x ^ y,
        IntOp::Not => !x,
        IntOp::Cnot => i64::from(extend(a.into(), bits, false) == 0),
        IntOp::Neg => -x,
        IntOp::Abs => x.abs(),
        // The amount is a whole word.
        IntOp::Shl => {
            if b >= bits {
                0
            } else {
                x << b
            }
        }
        IntOp::Shr => x >> b.min(63),
        _ => {
            return word(
                op,
                if signed { Type::S32 } else { Type::U32 },
                &[a; LANES],
                &[b; LANES],
                &[c; LANES],
                &[0; LANES],
            )[0];
        }
    };
    extend(value as u64, bits, false) as u32
}

/// Shift amounts, positions and lengths of 64-bit operations, which are words.
pub struct WordOperands<'r> {
    /// Operand b as a word.
    pub b: &'r Lanes32,
    /// Operand c as a word.
    pub c: &'r Lanes32,
    /// Operand e as a word.
    pub e: &'r Lanes32,
}

/// Operations on 64-bit types with 64-bit results.
pub fn long(op: IntOp, ty: Type, a: &Lanes64, b: &Lanes64, c: &Lanes64, words: &WordOperands<'_>) -> Lanes64 {
    let signed = ty.is_signed();
    match op {
        IntOp::Add => lanes!(0u64, |i| a[i].wrapping_add(b[i])),
        IntOp::Sub => lanes!(0u64, |i| a[i].wrapping_sub(b[i])),
        IntOp::MulLo => lanes!(0u64, |i| a[i].wrapping_mul(b[i])),
        IntOp::MadLo => lanes!(0u64, |i| a[i].wrapping_mul(b[i]).wrapping_add(c[i])),
        IntOp::MulHi => lanes!(0u64, |i| high64(signed, a[i], b[i])),
        IntOp::MadHi => lanes!(0u64, |i| high64(signed, a[i], b[i]).wrapping_add(c[i])),
        IntOp::Sad if signed => lanes!(0u64, |i| (a[i] as i64).abs_diff(b[i] as i64).wrapping_add(c[i])),
        IntOp::Sad => lanes!(0u64, |i| a[i].abs_diff(b[i]).wrapping_add(c[i])),
        IntOp::Div if signed => {
            lanes!(0u64, |i| if b[i] == 0 {
                u64::MAX
            } else {
                (a[i] as i64).wrapping_div(b[i] as i64) as u64
            })
        }
        IntOp::Div => lanes!(0u64, |i| a[i].checked_div(b[i]).unwrap_or(u64::MAX)),
        IntOp::Rem if signed => {
            lanes!(0u64, |i| if b[i] == 0 { a[i] } else { (a[i] as i64).wrapping_rem(b[i] as i64) as u64 })
        }
        IntOp::Rem => lanes!(0u64, |i| a[i].checked_rem(b[i]).unwrap_or(a[i])),
        IntOp::Min if signed => lanes!(0u64, |i| (a[i] as i64).min(b[i] as i64) as u64),
        IntOp::Min => lanes!(0u64, |i| a[i].min(b[i])),
        IntOp::Max if signed => lanes!(0u64, |i| (a[i] as i64).max(b[i] as i64) as u64),
        IntOp::Max => lanes!(0u64, |i| a[i].max(b[i])),
        IntOp::And => lanes!(0u64, |i| a[i] & b[i]),
        IntOp::Or => lanes!(0u64, |i| a[i] | b[i]),
        IntOp::Xor => lanes!(0u64, |i| a[i] ^ b[i]),
        IntOp::Not => lanes!(0u64, |i| !a[i]),
        IntOp::Cnot => lanes!(0u64, |i| u64::from(a[i] == 0)),
        IntOp::Neg => lanes!(0u64, |i| a[i].wrapping_neg()),
        IntOp::Abs => lanes!(0u64, |i| (a[i] as i64).wrapping_abs() as u64),
        IntOp::Shl => lanes!(0u64, |i| if words.b[i] > 63 { 0 } else { a[i] << words.b[i] }),
        IntOp::Shr if signed => lanes!(0u64, |i| ((a[i] as i64) >> words.b[i].min(63)) as u64),
        IntOp::Shr => lanes!(0u64, |i| if words.b[i] > 63 { 0 } else { a[i] >> words.b[i] }),
        IntOp::Brev => lanes!(0u64, |i| a[i].reverse_bits()),
        IntOp::Bfe => lanes!(0u64, |i| extract(a[i], words.b[i], words.c[i], 64, signed)),
        IntOp::Bfi => lanes!(0u64, |i| insert(a[i], b[i], words.c[i], words.e[i], 64)),
        // The decoder makes none of the rest with a 64-bit type.
        _ => unreachable!("{op:?} on {ty:?}"),
    }
}

/// Operations on 64-bit types that count bits into a word.
pub fn long_to_word(op: IntOp, ty: Type, a: &Lanes64) -> Lanes32 {
    match op {
        IntOp::Popc => lanes!(0u32, |i| a[i].count_ones()),
        IntOp::Clz => lanes!(0u32, |i| a[i].leading_zeros()),
        _ => lanes!(0u32, |i| highest(a[i], 64, ty.is_signed(), op == IntOp::BfindShift)),
    }
}

fn high64(signed: bool, a: u64, b: u64) -> u64 {
    if signed {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    } else {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    }
}

/// `mul.wide` of 32-bit types.
pub fn wide32(signed: bool, a: &Lanes32, b: &Lanes32) -> Lanes64 {
    if signed {
        lanes!(0u64, |i| (i64::from(a[i] as i32) * i64::from(b[i] as i32)) as u64)
    } else {
        lanes!(0u64, |i| u64::from(a[i]) * u64::from(b[i]))
    }
}

/// `mul.wide` of 16-bit types.
pub fn wide16(signed: bool, a: &Lanes32, b: &Lanes32) -> Lanes32 {
    if signed {
        lanes!(0u32, |i| (i32::from(a[i] as i16) * i32::from(b[i] as i16)) as u32)
    } else {
        lanes!(0u32, |i| u32::from(a[i] as u16) * u32::from(b[i] as u16))
    }
}
