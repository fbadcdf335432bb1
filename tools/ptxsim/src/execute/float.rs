//! Floating-point operations (PTX ISA §9.7.3–9.7.5), to the bit where the ISA fixes the bits.
//!
//! Approximate instructions are evaluated in f64 and rounded once, so they are better than any hardware is, unless a launch
//! asks for an end of their bounds; what the ISA says about their special cases (flushing, huge divisors) is kept. Single-precision NaN results are the canonical
//! NaN, as on the hardware.

use super::narrow::{Format, NAN16};
use crate::instruction::{FloatMode, FloatOp, FloatTest};
use crate::machine::Approximations;
use crate::registers::{LANES, Lanes32, Lanes64};
use crate::types::{Rounding, Type};

/// The only NaN that f32 arithmetic returns.
pub const NAN32: u32 = 0x7fff_ffff;

fn bits32(x: f32) -> u32 {
    if x.is_nan() { NAN32 } else { x.to_bits() }
}

/// Subnormals become zeros of their sign.
pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

macro_rules! each {
    (|$i:ident| $value:expr) => {{
        let mut out = [0u32; LANES];
        for $i in 0..LANES {
            out[$i] = bits32($value);
        }
        out
    }};
}

/// f32 operations.
pub fn single(op: FloatOp, mode: FloatMode, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    let f = f32::from_bits;
    if (FloatMode { approximate: false, ..mode }) == FloatMode::PLAIN {
        match op {
            FloatOp::Add => return each!(|i| f(a[i]) + f(b[i])),
            FloatOp::Sub => return each!(|i| f(a[i]) - f(b[i])),
            FloatOp::Mul => return each!(|i| f(a[i]) * f(b[i])),
            FloatOp::Fma => return fused(a, b, c),
            FloatOp::Div => return each!(|i| f(a[i]) / f(b[i])),
            FloatOp::Max => return each!(|i| maximum(f(a[i]), f(b[i]), false)),
            FloatOp::Min => return each!(|i| minimum(f(a[i]), f(b[i]), false)),
            FloatOp::Ex2 => return each!(|i| f64::from(f(a[i])).exp2() as f32),
            _ => {}
        }
    }
    // Sign operations on bits: they keep NaN payloads.
    match op {
        FloatOp::Neg if !mode.ftz => return std::array::from_fn(|i| a[i] ^ 1 << 31),
        FloatOp::Abs if !mode.ftz => return std::array::from_fn(|i| a[i] & !(1 << 31)),
        FloatOp::Copysign => return std::array::from_fn(|i| (a[i] & 1 << 31) | (b[i] & !(1 << 31))),
        _ => {}
    }
    let read = |x: u32| if mode.ftz { flush(f(x)) } else { f(x) };
    std::array::from_fn(|i| {
        let mut value = single_lane(op, mode.rounding, read(a[i]), read(b[i]), read(c[i]));
        if mode.ftz {
            value = flush(value);
        }
        if mode.sat {
            value = saturate(value);
        }
        bits32(value)
    })
}

/// Clamps to [0, 1]; NaN becomes +0.
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

fn single_lane(op: FloatOp, rounding: Rounding, a: f32, b: f32, c: f32) -> f32 {
    let nearest = rounding == Rounding::Nearest;
    let wide = f64::from;
    match op {
        FloatOp::Add if nearest => a + b,
        FloatOp::Sub if nearest => a - b,
        FloatOp::Mul if nearest => a * b,
        FloatOp::Fma if nearest => a.mul_add(b, c),
        FloatOp::Add => directed_sum(wide(a), wide(b), rounding),
        FloatOp::Sub => directed_sum(wide(a), -wide(b), rounding),
        // The product of two f32 is exact in f64.
        FloatOp::Mul => directed(wide(a) * wide(b), 0.0, rounding),
        FloatOp::Fma => directed_sum(wide(a) * wide(b), wide(c), rounding),
        FloatOp::Div | FloatOp::DivFull if nearest => a / b,
        FloatOp::Div | FloatOp::DivFull => directed_quotient(a, b, rounding),
        FloatOp::DivApprox => divide_approximately(a, b),
        FloatOp::Rcp if nearest => 1.0 / a,
        FloatOp::Rcp => directed_quotient(1.0, a, rounding),
        FloatOp::Sqrt if nearest => a.sqrt(),
        FloatOp::Sqrt => directed_root(a, rounding),
        FloatOp::Min => minimum(a, b, false),
        FloatOp::Max => maximum(a, b, false),
        FloatOp::MinNan => minimum(a, b, true),
        FloatOp::MaxNan => maximum(a, b, true),
        FloatOp::Neg => -a,
        FloatOp::Abs => a.abs(),
        FloatOp::Copysign => b.copysign(a),
        FloatOp::Rsqrt => (1.0 / wide(a).sqrt()) as f32,
        FloatOp::Ex2 => wide(a).exp2() as f32,
        FloatOp::Lg2 => wide(a).log2() as f32,
        FloatOp::Tanh => wide(a).tanh() as f32,
        FloatOp::Sin => wide(a).sin() as f32,
        FloatOp::Cos => wide(a).cos() as f32,
    }
}

// `div.approx` is a · (1/b) in hardware: for 2^126 < |b| < 2^128 the reciprocal is flushed (PTX ISA §9.7.3.8).
fn divide_approximately(a: f32, b: f32) -> f32 {
    let huge = f32::from_bits(0x7e80_0000);
    if b.is_finite() && b.abs() > huge {
        let zero = if (a.is_sign_negative()) ^ (b.is_sign_negative()) { -0.0 } else { 0.0 };
        return if a.is_finite() { zero } else { f32::NAN };
    }
    (f64::from(a) / f64::from(b)) as f32
}

/// Moves the rounded results of an approximate instruction to an end of its error bound (PTX ISA §9.7.3), where they are
/// not among the special values that the ISA fixes. `a` is the first operand.
pub fn approximate(op: FloatOp, mode: FloatMode, a: &Lanes32, value: &mut Lanes32, to: Approximations) {
    let up = match to {
        Approximations::Rounded => return,
        Approximations::Least => false,
        Approximations::Greatest => true,
    };
    let ulps = |x: f32, count: u32| (0..count).fold(x, |x, _| if up { x.next_up() } else { x.next_down() });
    let by = |x: f32, distance: f64| {
        let moved = f64::from(x) + if up { distance } else { -distance };
        // Inside the bound: the end itself is no f32 as a rule.
        let nearest = moved as f32;
        match up {
            true if f64::from(nearest) > moved => nearest.next_down(),
            false if f64::from(nearest) < moved => nearest.next_up(),
            _ => nearest,
        }
    };
    for (value, &a) in value.iter_mut().zip(a) {
        let (x, a) = (f32::from_bits(*value), f32::from_bits(a));
        let relative = f64::from(x).abs();
        if !x.is_finite() || x == 0.0 || (op == FloatOp::Ex2 && (a == 0.0 || a.is_subnormal())) {
            continue;
        }
        let moved = match op {
            FloatOp::Ex2 | FloatOp::DivApprox | FloatOp::DivFull => ulps(x, 2),
            FloatOp::Rcp => ulps(x, 1),
            FloatOp::Sqrt => by(x, relative * 2f64.powi(-23)),
            FloatOp::Rsqrt => by(x, relative * 2f64.powf(-22.9)),
            FloatOp::Lg2 if (0.5..=2.0).contains(&a) => by(x, 2f64.powf(-22.6)),
            FloatOp::Lg2 => by(x, relative * 2f64.powf(-22.6)),
            FloatOp::Tanh => by(x, relative * 2f64.powi(-11)),
            FloatOp::Sin | FloatOp::Cos => by(x, 2f64.powf(-20.9)),
            _ => x,
        };
        *value = bits32(if mode.ftz { flush(moved) } else { moved });
    }
}

// -0 is less than +0; a NaN gives way to a number unless it must win.
fn minimum(a: f32, b: f32, nan_wins: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return nan_case(a, b, nan_wins);
    }
    if a < b || (a == b && a.is_sign_negative()) { a } else { b }
}

fn maximum(a: f32, b: f32, nan_wins: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return nan_case(a, b, nan_wins);
    }
    if a > b || (a == b && a.is_sign_positive()) { a } else { b }
}

fn nan_case(a: f32, b: f32, nan_wins: bool) -> f32 {
    match (nan_wins, a.is_nan()) {
        (true, _) => f32::NAN,
        (false, true) => b,
        (false, false) => a,
    }
}

/// Rounds the exact value `s + e` (|e| at most half an ulp of the f64 s) to f32 in a direction.
pub fn directed(s: f64, e: f64, rounding: Rounding) -> f32 {
    let near = s as f32;
    if rounding == Rounding::Nearest || !s.is_finite() {
        return near;
    }
    let excess = s - f64::from(near);
    // Sign of (exact - near): e only decides when s itself is an f32.
    let above = excess > 0.0 || (excess == 0.0 && e > 0.0);
    let below = excess < 0.0 || (excess == 0.0 && e < 0.0);
    match rounding {
        Rounding::Down if below => near.next_down(),
        Rounding::Up if above => near.next_up(),
        Rounding::Zero if below && s > 0.0 => near.next_down(),
        Rounding::Zero if above && s < 0.0 => near.next_up(),
        _ => near,
    }
}

// The exact sum of two f64 that came from f32 products and values, rounded in a direction.
fn directed_sum(a: f64, b: f64, rounding: Rounding) -> f32 {
    let s = a + b;
    if !s.is_finite() {
        return s as f32;
    }
    if s == 0.0 {
        let both_positive = a.is_sign_positive() && b.is_sign_positive();
        return if rounding == Rounding::Down && !both_positive { -0.0 } else { s as f32 };
    }
    // Knuth's two-sum: s + e is a + b exactly.
    let t = s - a;
    let e = (a - (s - t)) + (b - t);
    directed(s, e, rounding)
}

// The remainder decides on which side of the rounded quotient the exact one lies.
fn directed_quotient(a: f32, b: f32, rounding: Rounding) -> f32 {
    let q = f64::from(a) / f64::from(b);
    if !q.is_finite() || q == 0.0 {
        return q as f32;
    }
    let remainder = (-q).mul_add(f64::from(b), f64::from(a));
    directed(q, if b > 0.0 { remainder } else { -remainder }, rounding)
}

fn directed_root(a: f32, rounding: Rounding) -> f32 {
    let root = f64::from(a).sqrt();
    directed(root, (-root).mul_add(root, f64::from(a)), rounding)
}

// Without hardware FMA `mul_add` is a library call per lane; with it, four vector instructions.
fn fused(a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the two features that the function is compiled for are present, as just checked.
        return unsafe { fused_avx2(a, b, c) };
    }
    fused_plain(a, b, c)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma,avx2")]
fn fused_avx2(a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    fused_plain(a, b, c)
}

#[inline(always)]
fn fused_plain(a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    let f = f32::from_bits;
    each!(|i| f(a[i]).mul_add(f(b[i]), f(c[i])))
}

/// f64 operations; decoded only with rounding to nearest.
pub fn double(op: FloatOp, a: &Lanes64, b: &Lanes64, c: &Lanes64) -> Lanes64 {
    let f = f64::from_bits;
    std::array::from_fn(|i| {
        let (x, y, z) = (f(a[i]), f(b[i]), f(c[i]));
        let value = match op {
            FloatOp::Add => x + y,
            FloatOp::Sub => x - y,
            FloatOp::Mul => x * y,
            FloatOp::Fma => x.mul_add(y, z),
            FloatOp::Div | FloatOp::DivApprox | FloatOp::DivFull => x / y,
            FloatOp::Min => choose64(x, y, x < y || (x == y && x.is_sign_negative()), false),
            FloatOp::Max => choose64(x, y, x > y || (x == y && x.is_sign_positive()), false),
            FloatOp::MinNan => choose64(x, y, x < y || (x == y && x.is_sign_negative()), true),
            FloatOp::MaxNan => choose64(x, y, x > y || (x == y && x.is_sign_positive()), true),
            FloatOp::Neg => -x,
            FloatOp::Abs => x.abs(),
            FloatOp::Copysign => y.copysign(x),
            FloatOp::Rcp => 1.0 / x,
            FloatOp::Sqrt => x.sqrt(),
            FloatOp::Rsqrt => 1.0 / x.sqrt(),
            // The decoder makes none of these in double precision.
            FloatOp::Ex2 | FloatOp::Lg2 | FloatOp::Tanh | FloatOp::Sin | FloatOp::Cos => {
                unreachable!("{op:?}")
            }
        };
        value.to_bits()
    })
}

fn choose64(a: f64, b: f64, first: bool, nan_wins: bool) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f64::NAN,
        (true, false) if !nan_wins => b,
        (false, true) if !nan_wins => a,
        (false, false) => {
            if first {
                a
            } else {
                b
            }
        }
        _ => f64::NAN,
    }
}

/// f16 and bf16 operations, plain and packed.
pub fn half_precision(
    op: FloatOp,
    ty: Type,
    mode: FloatMode,
    a: &Lanes32,
    b: &Lanes32,
    c: &Lanes32,
) -> Lanes32 {
    let packed = matches!(ty, Type::F16x2 | Type::Bf16x2);
    let brain = matches!(ty, Type::Bf16 | Type::Bf16x2);
    std::array::from_fn(|i| {
        let lane = |shift: u32| {
            half_lane(op, brain, mode, (a[i] >> shift) as u16, (b[i] >> shift) as u16, (c[i] >> shift) as u16)
        };
        let low = u32::from(lane(0));
        if packed { u32::from(lane(16)) << 16 | low } else { low }
    })
}

// Products of two 16-bit floats are exact in f64; a sum is rounded to odd, so that the one rounding to 16 bits that
// follows sees whatever f64 could not hold.
fn half_lane(op: FloatOp, brain: bool, mode: FloatMode, a: u16, b: u16, c: u16) -> u16 {
    let sign = 0x8000;
    match op {
        FloatOp::Neg => return a ^ sign,
        FloatOp::Abs => return a & !sign,
        _ => {}
    }
    let format = if brain { Format::Brain } else { Format::Half };
    let read = |x: u16| format.decode(x);
    let subnormal = |x: f64| !brain && x != 0.0 && x.abs() < 2f64.powi(-14);
    let flushed = |x: f64| if mode.ftz && subnormal(x) { 0f64.copysign(x) } else { x };
    let (x, y, z) = (flushed(read(a)), flushed(read(b)), flushed(read(c)));
    let exact = match op {
        FloatOp::Add => odd_sum(x, y),
        FloatOp::Sub => odd_sum(x, -y),
        FloatOp::Mul => x * y,
        FloatOp::Fma => odd_sum(x * y, z),
        FloatOp::Min | FloatOp::MinNan | FloatOp::Max | FloatOp::MaxNan => {
            let (x32, y32) = (x as f32, y as f32);
            let nan_wins = matches!(op, FloatOp::MinNan | FloatOp::MaxNan);
            let least = matches!(op, FloatOp::Min | FloatOp::MinNan);
            f64::from(if least { minimum(x32, y32, nan_wins) } else { maximum(x32, y32, nan_wins) })
        }
        FloatOp::Ex2 => x.exp2(),
        FloatOp::Tanh => x.tanh(),
        // The decoder makes none of the rest in half precision.
        _ => unreachable!("{op:?}"),
    };
    let mut value = exact;
    if value.is_nan() {
        return if mode.sat { 0 } else { NAN16 };
    }
    if mode.sat {
        value = value.clamp(0.0, 1.0);
    }
    if mode.relu {
        value = value.max(0.0);
    }
    format.encode(flushed(value), Rounding::Nearest)
}

// Sum rounded to odd: when f64 cannot hold it, the last bit is set, so that a later rounding to few bits sees that
// something was left below.
fn odd_sum(a: f64, b: f64) -> f64 {
    let s = a + b;
    if !s.is_finite() || s == 0.0 {
        return s;
    }
    let t = s - a;
    let e = (a - (s - t)) + (b - t);
    if e == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    if (e > 0.0) == (s > 0.0) { f64::from_bits(s.to_bits() | 1) } else { f64::from_bits(s.to_bits() - 1) }
}

/// `testp`.
pub fn test(test: FloatTest, x: f64, subnormal: bool) -> bool {
    match test {
        FloatTest::Finite => x.is_finite(),
        FloatTest::Infinite => x.is_infinite(),
        FloatTest::Number => !x.is_nan(),
        FloatTest::NotNumber => x.is_nan(),
        FloatTest::Normal => x.is_finite() && x != 0.0 && !subnormal,
        FloatTest::Subnormal => subnormal,
    }
}
