//! Matrix products with everything that follows a product in a transformer folded in.
//!
//! `C = op(A)·op(B)` with `op(X)` = X or Xᵀ, C `[m, n]`, op(A) `[m, k]`, op(B) `[k, n]`. A linear layer `Y = X·Wᵀ + b`
//! with W stored `[out, in]` is the layout "nt", its input gradient `dX = dY·W` is "nn", its weight gradient
//! `dW = dYᵀ·X` is "tn". The [`Epilogue`] is applied while the finished tile is still in cache, in this order:
//!
//! ```text
//! z[i,j] = Σ_k op(A)[i,k]·op(B)[k,j]  (+ bias[j])  (+ C_old[i,j] if accumulate)      preactivation[i,j] ← z[i,j]
//! y[i,j] = activation(z[i,j]) · neuron_mask[j]
//! C[i,j] = dropout(y[i,j]) + residual[i,j]
//! ```
//!
//! What the CPU version keeps true:
//! - **Bits do not depend on the number of threads.** An element is one chain of multiply-adds over k in rising order (or,
//!   for products with eight or fewer rows or columns, a fixed number of such chains added up in a fixed order),
//!   however the output is cut into tasks. The choice between the two looks at the shape only.
//! - **An all-ones mask changes no bit**, and a mask with zeros takes time in proportion to what is left: dead columns and
//!   dead k are gathered away while packing, so only live ones reach the inner loop.
//! - **Error.** |z − ẑ| ≤ γ_{k+2}·(Σ|a||b| + |bias| + |C_old|), γ_q = q·u/(1 − q·u), u = 2⁻²⁴ (Higham, *Accuracy and Stability
//!   of Numerical Algorithms*, 2nd ed., section 3.1).
//! - NaN and infinity propagate as in the formula. Masked columns and masked k do not exist: what they hold is not read.
//!
//! Cost: 2·m·n·k FLOPs, m and n and k counted without what the masks remove; 4·(m·k + k·n + m·n) bytes at the least.

pub mod cpu;
pub mod cuda;
pub mod reference;

use super::activation::Activation;
use super::dropout::AppliedDropout;
use super::{View, ViewMut};

/// What a host's products round their factors to; everything else is f32 (f64 in the reference).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Factors {
    /// Not at all.
    #[default]
    F32,
    /// To bf16; sums as in [`cpu::bf16`].
    Bf16,
}

impl Factors {
    /// A factor as the reference multiplies it; by way of f32, the type in which other executors hold it.
    pub(in crate::ops) fn rounded(self, x: f64) -> f64 {
        match self {
            Factors::F32 => x,
            Factors::Bf16 => f64::from(f32::from_bits(bf16_bits(x as f32))),
        }
    }
}

/// The nearest bf16, ties to even, in the upper half of a word, the lower half 0. Subnormal numbers become 0, as products of
/// bf16 take them; NaN stays NaN.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = if magnitude > 0x7f80_0000 {
        bits | 0x0040_0000
    } else if magnitude < 0x0080_0000 {
        bits & 0x8000_0000
    } else {
        bits + 0x7fff + (bits >> 16 & 1)
    };
    rounded & 0xffff_0000
}

/// What is done with the product before it reaches memory; see the module's formula. The default does nothing.
#[derive(Debug)]
pub struct Epilogue<'a, T> {
    /// `[n]`, added to every row.
    pub bias: Option<&'a [T]>,
    /// Add the product to what C holds instead of replacing it.
    pub accumulate: bool,
    /// Applied to z elementwise.
    pub activation: Option<Activation>,
    /// `[m, n]`, receives z, which the activation's backward needs.
    pub preactivation: Option<ViewMut<'a, T>>,
    /// `[n]`; columns with mask 0 are not computed: y = 0 there, and the preactivation is written as 0.
    pub neuron_mask: Option<&'a [T]>,
    /// Computes columns with mask 0 all the same, because the gradient of the mask needs their preactivation.
    pub compute_masked: bool,
    /// Drops elements of y by their row and column in C.
    pub dropout: Option<AppliedDropout>,
    /// `[m, n]`, added last.
    pub residual: Option<View<'a, T>>,
    /// `[k]`; the promise that `op(A)[:, k] = 0` where it is 0. Those k are skipped.
    pub inner_mask: Option<&'a [T]>,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Epilogue {
            bias: None,
            accumulate: false,
            activation: None,
            preactivation: None,
            neuron_mask: None,
            compute_masked: false,
            dropout: None,
            residual: None,
            inner_mask: None,
        }
    }
}

/// Sizes of a product, checked to fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
}

impl Shape {
    /// Panics where the operands contradict each other: a bug of the program builder, never user input.
    fn check<T>(
        a: &View<T>,
        transpose_a: bool,
        b: &View<T>,
        transpose_b: bool,
        c: &ViewMut<T>,
        epilogue: &Epilogue<T>,
    ) -> Shape {
        let (m, k) = if transpose_a { (a.cols(), a.rows()) } else { (a.rows(), a.cols()) };
        let (inner, n) = if transpose_b { (b.cols(), b.rows()) } else { (b.rows(), b.cols()) };
        assert_eq!(k, inner, "op(A) has {k} columns, op(B) {inner} rows");
        assert_eq!((m, n), (c.rows(), c.cols()), "C is not [{m}, {n}]");
        for (vector, length, name) in [
            (epilogue.bias, n, "bias"),
            (epilogue.neuron_mask, n, "neuron mask"),
            (epilogue.inner_mask, k, "inner mask"),
        ] {
            assert!(vector.is_none_or(|v| v.len() == length), "the {name} does not have {length} elements");
        }
        let rectangles = [
            epilogue.preactivation.as_ref().map(|view| (view.rows(), view.cols())),
            epilogue.residual.as_ref().map(|view| (view.rows(), view.cols())),
        ];
        for shape in rectangles.into_iter().flatten() {
            assert_eq!(shape, (m, n), "preactivation and residual have the shape of C");
        }
        Shape { m, n, k }
    }
}
