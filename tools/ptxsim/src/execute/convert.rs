//! `cvt` (PTX ISA §9.7.9.21) and comparisons.

use super::float::{directed, flush, saturate};
use super::narrow::{Format, NAN16};
use crate::instruction::{Comparison, Conversion};
use crate::types::{Rounding, Type};

/// Converts one value. Sources and results are the register's bits.
pub fn convert(conversion: Conversion, a: u64, b: u64) -> u64 {
    let Conversion { to, from, .. } = conversion;
    match to {
        Type::F16x2 | Type::Bf16x2 => {
            let part = if to == Type::F16x2 { Type::F16 } else { Type::Bf16 };
            let half = |x: u64| narrow_float(conversion, part, f64::from(f32::from_bits(x as u32)));
            return half(a) << 16 | half(b);
        }
        _ => {}
    }
    match (from.is_float(), to.is_float()) {
        (false, false) => integer_to_integer(conversion, a),
        (false, true) => integer_to_float(conversion, a),
        (true, false) => float_to_integer(conversion, read_float(conversion, a)),
        (true, true) => float_to_float(conversion, read_float(conversion, a)),
    }
}

fn extend(bits: u64, ty: Type) -> i128 {
    let shift = 64 - ty.bits();
    if ty.is_signed() {
        i128::from((bits << shift) as i64 >> shift)
    } else {
        i128::from(bits << shift >> shift)
    }
}

fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bits();
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn cut(value: i128, ty: Type) -> u64 {
    // A register wider than the target type gets the sign- or zero-extended value.
    let bits = value as u64;
    match ty.bits() {
        64 => bits,
        32 => bits & 0xffff_ffff,
        _ => extend(bits, ty) as u64 & 0xffff_ffff,
    }
}

fn integer_to_integer(conversion: Conversion, a: u64) -> u64 {
    let value = extend(a, conversion.from);
    let (low, high) = range(conversion.to);
    cut(if conversion.sat { value.clamp(low, high) } else { value }, conversion.to)
}

fn read_float(conversion: Conversion, a: u64) -> f64 {
    match conversion.from {
        Type::F16 => Format::Half.decode(a as u16),
        Type::Bf16 => Format::Brain.decode(a as u16),
        Type::F32 => {
            let x = f32::from_bits(a as u32);
            f64::from(if conversion.ftz { flush(x) } else { x })
        }
        _ => f64::from_bits(a),
    }
}

fn round_integral(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

// Out of range clamps. A NaN is 0, except where 64 bits take part: then it is the top bit alone.
fn float_to_integer(conversion: Conversion, x: f64) -> u64 {
    let to = conversion.to;
    if x.is_nan() {
        let wide = to.bits() == 64 || conversion.from == Type::F64;
        return if wide { 1 << (to.bits() - 1) } else { 0 };
    }
    let (low, high) = range(to);
    let rounded = round_integral(x, conversion.rounding);
    // `as` saturates, and an i128 holds both ranges.
    cut((rounded as i128).clamp(low, high), to)
}

fn integer_to_float(conversion: Conversion, a: u64) -> u64 {
    let value = extend(a, conversion.from);
    match conversion.to {
        Type::F64 => round_integer_to_f64(value, conversion.rounding).to_bits(),
        to => {
            // At most 64 bits: f64 with a remainder represents them exactly.
            let s = value as f64;
            let e = (value - s as i128) as f64;
            match to {
                Type::F32 if conversion.rounding == Rounding::Nearest => (value as f32).to_bits().into(),
                Type::F32 => directed(s, e, conversion.rounding).to_bits().into(),
                _ => narrow_float(conversion, to, sticky(s, e)),
            }
        }
    }
}

fn sticky(s: f64, e: f64) -> f64 {
    if e == 0.0 || s.to_bits() & 1 == 1 {
        s
    } else if (e > 0.0) == (s > 0.0) {
        f64::from_bits(s.to_bits() | 1)
    } else {
        f64::from_bits(s.to_bits() - 1)
    }
}

fn round_integer_to_f64(value: i128, rounding: Rounding) -> f64 {
    let near = value as f64;
    let difference = value - near as i128;
    match rounding {
        Rounding::Down if difference < 0 => near.next_down(),
        Rounding::Up if difference > 0 => near.next_up(),
        Rounding::Zero if difference < 0 && value > 0 => near.next_down(),
        Rounding::Zero if difference > 0 && value < 0 => near.next_up(),
        _ => near,
    }
}

fn float_to_float(conversion: Conversion, x: f64) -> u64 {
    let to = conversion.to;
    if conversion.integral {
        let x = round_integral(x, conversion.rounding);
        let exact = Conversion { integral: false, rounding: Rounding::Nearest, ..conversion };
        return float_to_float(exact, x);
    }
    match to {
        Type::F64 => (if conversion.sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x }).to_bits(),
        Type::F32 => {
            let mut value = directed(x, 0.0, conversion.rounding);
            if conversion.ftz {
                value = flush(value);
            }
            if conversion.sat {
                value = saturate(value);
            }
            if conversion.relu && (value <= 0.0) {
                value = 0.0;
            }
            u64::from(if value.is_nan() { super::float::NAN32 } else { value.to_bits() })
        }
        Type::Tf32 => to_tf32(conversion, x as f32).into(),
        to => narrow_float(conversion, to, x),
    }
}

// TF32 keeps 10 bits of mantissa in the layout of f32; the low 13 bits are zero.
fn to_tf32(conversion: Conversion, x: f32) -> u32 {
    if x.is_nan() {
        return super::float::NAN32;
    }
    let bits = x.to_bits();
    if conversion.relu && x <= 0.0 {
        return 0;
    }
    if x.is_infinite() {
        return bits;
    }
    let half = 1 << 12;
    let rounded = match conversion.rounding {
        Rounding::NearestAway => bits + half,
        Rounding::Nearest => bits + half - 1 + (bits >> 13 & 1),
        _ => bits,
    };
    rounded & !0x1fff
}

// f64 to f16 or bf16 in any direction, with saturation and relu.
fn narrow_float(conversion: Conversion, to: Type, x: f64) -> u64 {
    let mut x = x;
    if x.is_nan() {
        // Saturation has no NaN: it becomes +0.
        return if conversion.sat { 0 } else { NAN16.into() };
    }
    if conversion.sat {
        x = if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    if conversion.relu && x <= 0.0 {
        x = 0.0;
    }
    let format = if to == Type::Bf16 { Format::Brain } else { Format::Half };
    format.encode(x, conversion.rounding).into()
}

/// Evaluates a comparison of floats.
pub fn compare_floats(comparison: Comparison, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match comparison {
        Comparison::Eq => a == b,
        Comparison::Ne => a != b && !unordered,
        Comparison::Lt => a < b,
        Comparison::Le => a <= b,
        Comparison::Gt => a > b,
        Comparison::Ge => a >= b,
        Comparison::Equ => a == b || unordered,
        Comparison::Neu => a != b,
        Comparison::Ltu => a < b || unordered,
        Comparison::Leu => a <= b || unordered,
        Comparison::Gtu => a > b || unordered,
        Comparison::Geu => a >= b || unordered,
        Comparison::Num => !unordered,
        Comparison::Nan => unordered,
    }
}

/// Lanes in which a comparison of floats holds, given those in which each relation does.
pub fn relation(comparison: Comparison, less: u32, equal: u32, greater: u32) -> u32 {
    let ordered = less | equal | greater;
    match comparison {
        Comparison::Eq => equal,
        Comparison::Ne => less | greater,
        Comparison::Lt => less,
        Comparison::Le => less | equal,
        Comparison::Gt => greater,
        Comparison::Ge => greater | equal,
        Comparison::Equ => equal | !ordered,
        Comparison::Neu => !equal,
        Comparison::Ltu => less | !ordered,
        Comparison::Leu => less | equal | !ordered,
        Comparison::Gtu => greater | !ordered,
        Comparison::Geu => greater | equal | !ordered,
        Comparison::Num => ordered,
        Comparison::Nan => !ordered,
    }
}

/// An f32 rounded to the nearest bf16, on bits: the carry of the rounding runs into the exponent as it should.
pub fn bf16_bits(bits: u32) -> u64 {
    if f32::from_bits(bits).is_nan() {
        return NAN16.into();
    }
    u64::from((bits + 0x7fff + (bits >> 16 & 1)) >> 16)
}

/// Evaluates a comparison of integers.
pub fn compare_integers(comparison: Comparison, ordering: std::cmp::Ordering) -> bool {
    match comparison {
        Comparison::Eq => ordering.is_eq(),
        Comparison::Ne => ordering.is_ne(),
        Comparison::Lt => ordering.is_lt(),
        Comparison::Le => ordering.is_le(),
        Comparison::Gt => ordering.is_gt(),
        Comparison::Ge => ordering.is_ge(),
        // The decoder makes the unordered relations for floats only.
        _ => unreachable!("{comparison:?} on integers"),
    }
}

/// Value of a 16-, 32- or 64-bit float register.
pub fn float_value(ty: Type, bits: u64, ftz: bool) -> f64 {
    let conversion = Conversion {
        to: Type::F64,
        from: ty,
        from_long: ty.is_long(),
        rounding: Rounding::Nearest,
        integral: false,
        ftz,
        sat: false,
        relu: false,
    };
    read_float(conversion, bits)
}
