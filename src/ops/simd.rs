//! One source, several instruction sets.
//!
//! A loop written once as a `simd_fn!` is compiled for AVX-512, for AVX2 with FMA and for the baseline of
//! the target, and the copy to run is chosen from what the processor reports. The body sees the
//! instruction set as a type `I:` `Isa`, which tells it whether a fused multiply-add is one instruction
//! (a fused one on a processor that lacks it is a slow library call).
//!
//! Results on one machine depend neither on the number of threads nor on the vector width: sums run over
//! `LANES` partial sums whatever the registers hold. Only fused or unfused multiply-adds differ between
//! machines. `SECATEUR_SIMD=portable|avx2|avx512` lowers the choice, so that one machine can test all three.

use std::sync::OnceLock;

use super::gemm::cpu::registers::{self, Registers};

/// Partial sums of every vectorised reduction, and the padding unit of packed buffers.
pub(super) const LANES: usize = 16;

/// What the loops were compiled for, worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// The baseline of the target: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2 and FMA, eight lanes.
    Avx2,
    /// AVX-512 F, VL, BW and DQ, sixteen lanes.
    Avx512,
}

/// The level in use in this process.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let found = detect();
        match std::env::var("SECATEUR_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => found.min(Level::Avx2),
            _ => found,
        }
    })
}

/// Whether `SECATEUR_SIMD` names a level: matrix tiles, which are none of them, then stay unused.
pub(super) fn is_lowered() -> bool {
    std::env::var("SECATEUR_SIMD").is_ok_and(|name| ["portable", "avx2", "avx512"].contains(&name.as_str()))
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// An instruction set, as the body of a `simd_fn!` sees it.
pub(super) trait Isa: Copy {
    /// Its explicit vectors, for the loops that must be sure of their registers.
    type Registers: Registers;

    /// `a · b + c`, rounded once where the processor does so in one instruction, else twice.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// See [`Level::Avx512`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512;
/// See [`Level::Avx2`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2;
/// See [`Level::Portable`].
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512 {
    type Registers = registers::Avx512;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(target_arch = "x86_64")]
impl Isa for Avx2 {
    type Registers = registers::Avx2;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Isa for Portable {
    type Registers = registers::Portable;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Partial results of [`fold`]: two AVX-512 registers, four of AVX2, so that additions overlap.
const PARTIALS: usize = 2 * LANES;

/// Folds `step` over two rows of equal length with 32 partial results, then combines those as a tree.
///
/// Element `i` goes to partial result `i mod 32`, so an n-element sum has ⌈n/32⌉ + 4 roundings on any path.
#[inline(always)]
pub(super) fn fold2<T: Copy>(
    a: &[T],
    b: &[T],
    start: T,
    step: impl Fn(T, T, T) -> T,
    combine: impl Fn(T, T) -> T,
) -> T {
    let mut partial = [start; PARTIALS];
    let (whole_a, tail_a) = a.as_chunks::<PARTIALS>();
    let (whole_b, tail_b) = b.as_chunks::<PARTIALS>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for l in 0..PARTIALS {
            partial[l] = step(partial[l], a[l], b[l]);
        }
    }
    for ((p, &a), &b) in partial.iter_mut().zip(tail_a).zip(tail_b) {
        *p = step(*p, a, b);
    }
    let mut width = PARTIALS / 2;
    while width > 0 {
        for l in 0..width {
            partial[l] = combine(partial[l], partial[l + width]);
        }
        width /= 2;
    }
    partial[0]
}

/// [`fold2`] over one row.
#[inline(always)]
pub(super) fn fold(
    a: &[f32],
    start: f32,
    step: impl Fn(f32, f32) -> f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    fold2(a, a, start, |p, x, _| step(p, x), combine)
}

/// Σ f(x).
#[inline(always)]
pub(super) fn sum_of(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    fold(a, 0.0, |p, x| p + f(x), |p, q| p + q)
}

/// Σ a·b.
#[inline(always)]
pub(super) fn dot<I: Isa>(a: &[f32], b: &[f32]) -> f32 {
    fold2(a, b, 0.0, |p, x, y| I::mul_add(x, y, p), |p, q| p + q)
}

/// The largest element, −∞ of none; NaN elements are passed over.
#[inline(always)]
pub(super) fn maximum(a: &[f32]) -> f32 {
    let larger = |p: f32, x: f32| if x > p { x } else { p };
    fold(a, f32::NEG_INFINITY, larger, larger)
}

/// Defines a function whose body is compiled once for each [`Level`] and chosen at run time.
///
/// ```ignore
/// simd_fn! {
///     /// y += a·x
///     fn axpy<I>(a: f32, x: &[f32], y: &mut [f32]) {
///         for (y, &x) in y.iter_mut().zip(x) {
///             *y = I::mul_add(a, x, *y);
///         }
///     }
/// }
/// ```
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$isa:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters)]
            fn body<$isa: $crate::ops::simd::Isa>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::ops::simd::{Avx2, Avx512, Level};
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body::<Avx512>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body::<Avx2>($($arg),*) }
                match $crate::ops::simd::level() {
                    // SAFETY: `level` answers Avx512 only after the processor confirmed these features.
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above, for AVX2 and FMA.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable => {}
                }
            }
            body::<$crate::ops::simd::Portable>($($arg),*)
        }
    };
}
pub(super) use simd_fn;

simd_fn! {
    /// Σ a·b in f64, the same bits for all levels.
    pub(crate) fn dot_wide<I>(a: &[f64], b: &[f64]) -> f64 {
        fold2(a, b, 0.0, |p, x, y| p + x * y, |p, q| p + q)
    }
}

simd_fn! {
    /// y += Σ_k a[k]·x[k] in f64, in this order, the same bits for all levels.
    pub(crate) fn add_scaled_wide<I>(a: [f64; 4], x: [&[f64]; 4], y: &mut [f64]) {
        let x = x.map(|row| &row[..y.len()]);
        for i in 0..y.len() {
            y[i] = y[i] + a[0] * x[0][i] + a[1] * x[1][i] + a[2] * x[2][i] + a[3] * x[3][i];
        }
    }
}

simd_fn! {
    /// y += a·row and Σ row·x in one pass in f64, the same bits for all levels: a row above the diagonal of a symmetric matrix,
    /// which is a column below it.
    pub(crate) fn symmetric_row_wide<I>(row: &[f64], a: f64, x: &[f64], y: &mut [f64]) -> f64 {
        let (rows, row_rest) = row.as_chunks::<PARTIALS>();
        let (xs, x_rest) = x.as_chunks::<PARTIALS>();
        let (ys, y_rest) = y.as_chunks_mut::<PARTIALS>();
        let mut sums = [0.0; PARTIALS];
        for ((row, x), y) in rows.iter().zip(xs).zip(ys) {
            for l in 0..PARTIALS {
                sums[l] += row[l] * x[l];
                y[l] += a * row[l];
            }
        }
        let mut sum: f64 = sums.iter().sum();
        for ((row, x), y) in row_rest.iter().zip(x_rest).zip(y_rest) {
            sum += row * x;
            *y += a * row;
        }
        sum
    }
}
