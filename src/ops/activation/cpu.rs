//! The f32 activations: one pass over memory, vectorised.

use super::Activation;
use crate::ops::elementary::{exp, normal, tanh};
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::{Isa, simd_fn};
use crate::ops::{View, ViewMut};

const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
/// 2√(2/π): twice the argument of the tanh in GELU's approximation is `x·(A + B·x²)`.
const A: f32 = 1.595_769;
/// 2√(2/π) · 0.044715.
const B: f32 = 0.071_354_814;
/// Beyond this |x| the sigmoid of GELU's approximation is 0 or 1 in f32; the bound keeps x² finite.
const SATURATED: f32 = 16.0;

#[inline(always)]
fn gelu_erf<I: Isa>(x: f32) -> (f32, f32) {
    let (distribution, density) = normal::<I>(x);
    (x * distribution, I::mul_add(x * FRAC_1_SQRT_2PI, density, distribution))
}

#[inline(always)]
fn gelu_tanh<I: Isa>(x: f32) -> (f32, f32) {
    let c = x.clamp(-SATURATED, SATURATED);
    let s = c * c;
    // ½(1 + tanh u) is the sigmoid of 2u, and 1 − sigmoid is sigmoid·e^(−2u), which does not cancel.
    let power = exp::<I>(-c * I::mul_add(B, s, A));
    let sigmoid = 1.0 / (1.0 + power);
    let finite = if power > f32::MAX { f32::MAX } else { power };
    let slope = c * I::mul_add(3.0 * B, s, A);
    (x * sigmoid, I::mul_add(sigmoid * finite * sigmoid, slope, sigmoid))
}

#[inline(always)]
fn relu<I: Isa>(x: f32) -> (f32, f32) {
    // Written so that NaN stays NaN.
    (if x < 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 })
}

#[inline(always)]
fn tanh_pair<I: Isa>(x: f32) -> (f32, f32) {
    let y = tanh::<I>(x);
    (y, I::mul_add(-y, y, 1.0))
}

/// Evaluates `$run` once for each kind, `$function` being its (value, derivative) pair: the choice stays outside
/// the loops, and the half that a loop does not use is dropped by the compiler.
macro_rules! with_function {
    ($kind:expr, $function:ident => $run:expr) => {
        match $kind {
            Activation::GeluErf => {
                let $function = gelu_erf::<I>;
                $run
            }
            Activation::GeluTanh => {
                let $function = gelu_tanh::<I>;
                $run
            }
            Activation::Relu => {
                let $function = relu::<I>;
                $run
            }
            Activation::Tanh => {
                let $function = tanh_pair::<I>;
                $run
            }
        }
    };
}

simd_fn! {
    /// Applies the activation to every element, on the calling thread.
    pub fn forward_in_place<I>(kind: Activation, values: &mut [f32]) {
        #[inline(always)]
        fn run(values: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
            for x in values {
                *x = f(*x).0;
            }
        }
        with_function!(kind, f => run(values, f))
    }
}

simd_fn! {
    fn forward_row<I>(kind: Activation, x: &[f32], mask: Option<&[f32]>, y: &mut [f32]) {
        #[inline(always)]
        fn run(x: &[f32], mask: Option<&[f32]>, y: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
            match mask {
                None => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = f(x).0;
                    }
                }
                Some(mask) => {
                    for ((y, &x), &m) in y.iter_mut().zip(x).zip(mask) {
                        *y = f(x).0 * m;
                    }
                }
            }
        }
        with_function!(kind, f => run(x, mask, y, f))
    }
}

simd_fn! {
    fn backward_row<I>(kind: Activation, dy: &[f32], pre: &[f32], mask: Option<&[f32]>, dx: &mut [f32], accumulate: bool) {
        #[inline(always)]
        fn run(dy: &[f32], pre: &[f32], mask: Option<&[f32]>, dx: &mut [f32], keep: f32, f: impl Fn(f32) -> (f32, f32)) {
            match mask {
                None => {
                    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(pre) {
                        *dx = dy * f(x).1 + if keep != 0.0 { *dx } else { 0.0 };
                    }
                }
                Some(mask) => {
                    for (((dx, &dy), &x), &m) in dx.iter_mut().zip(dy).zip(pre).zip(mask) {
                        *dx = dy * m * f(x).1 + if keep != 0.0 { *dx } else { 0.0 };
                    }
                }
            }
        }
        let keep = if accumulate { 1.0 } else { 0.0 };
        with_function!(kind, f => run(dy, pre, mask, dx, keep, f))
    }
}

simd_fn! {
    /// `sum[j] += dy[j] · act(pre[j])`
    fn mask_gradient_row<I>(kind: Activation, dy: &[f32], pre: &[f32], sum: &mut [f32]) {
        #[inline(always)]
        fn run<I: Isa>(dy: &[f32], pre: &[f32], sum: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
            for ((sum, &dy), &x) in sum.iter_mut().zip(dy).zip(pre) {
                *sum = I::mul_add(dy, f(x).0, *sum);
            }
        }
        with_function!(kind, f => run::<I>(dy, pre, sum, f))
    }
}

/// `y = mask · act(x)`; `x`, `y`: `[T, n]`, `mask`: `[n]`.
pub fn forward(kind: Activation, x: View<f32>, mask: Option<&[f32]>, mut y: ViewMut<f32>) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
    assert!(mask.is_none_or(|m| m.len() == x.cols()));
    let y = Shared::new(&mut y);
    parallel::rows(x.rows(), x.cols(), |rows| {
        for t in rows {
            // SAFETY: ranges of rows are disjoint.
            forward_row(kind, x.row(t), mask, unsafe { y.whole_row(t) });
        }
    });
}

/// The backward of [`forward`]; see the [module](super) for the formulas.
///
/// `dy`, `pre`, `dx`: `[T, n]`; `dx` is added to where `accumulate`, else overwritten;
/// `dmask_per_sequence`: `cu_seqlens` (`[B + 1]`) and the `[B, n]` gradient of the mask, overwritten,
/// each element summed over the tokens in their order.
pub fn backward(
    kind: Activation,
    dy: View<f32>,
    pre: View<f32>,
    mask: Option<&[f32]>,
    mut dx: ViewMut<f32>,
    accumulate: bool,
    dmask_per_sequence: Option<(&[i32], ViewMut<f32>)>,
) {
    assert_eq!((dy.rows(), dy.cols()), (dx.rows(), dx.cols()));
    assert_eq!((dy.rows(), dy.cols()), (pre.rows(), pre.cols()));
    assert!(mask.is_none_or(|m| m.len() == dy.cols()));
    let dx = Shared::new(&mut dx);
    parallel::rows(dy.rows(), dy.cols(), |rows| {
        for t in rows {
            // SAFETY: ranges of rows are disjoint.
            backward_row(kind, dy.row(t), pre.row(t), mask, unsafe { dx.whole_row(t) }, accumulate);
        }
    });
    if let Some((cu_seqlens, mut dmask)) = dmask_per_sequence {
        assert_eq!((dmask.rows(), dmask.cols()), (cu_seqlens.len() - 1, dy.cols()));
        let dmask = Shared::new(&mut dmask);
        parallel::items(cu_seqlens.len() - 1, |b| {
            // SAFETY: one piece of work for each sequence.
            let sum = unsafe { dmask.whole_row(b) };
            sum.fill(0.0);
            for t in cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize {
                mask_gradient_row(kind, dy.row(t), pre.row(t), sum);
            }
        });
    }
}
