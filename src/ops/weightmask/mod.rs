//! Weight masks of unstructured pruning: W' = W ⊙ M, and the gradients of W and of the scores S behind M.
//!
//! A mask is a set of bits, or the real-valued mask of L0 regularisation.
//!
//! - `apply`: `out[i] = weights[i]` where bit i mod 64 of word i / 64 of the mask is 1, else 0, so that a masked weight
//!   is +0 whatever it was, NaN included. No rounding: all versions give the same bits (the device's bf16 copy rounds
//!   once, to nearest even).
//! - `apply_hard_concrete`: M = clamp(σ(z)·(r − l) + l, 0, 1) with l = −0.1, r = 1.1 (Louizos et al. 2018, equations 10
//!   to 12, with the constants of Sanh et al. 2020): z = (log u − log(1 − u) + S)/b, b = 2/3, for noise u in training,
//!   z = S without. u of element i is lane i mod 4 of Philox4x32-10 at counter (i / 4, its high word, 2³² − 1, draw) as a fraction of
//!   2³², clamped to [1e-4, 1 − 1e-4]. Because b = 2/3, σ(z) = 1/(1 + y·√y) with y = (1 − u)/u · e^(−S): no logarithm.
//! - `score_gradients`: with G = ∂L/∂W' and a penalty p = λ/(matrices·numel) of the regulariser λ·mean_matrices mean σ(S),
//!   straight through the bits (Sanh et al. 2020, section 3; SMP, section 3.1) or exactly through the hard concrete:
//!
//! ```text
//! bits:           ∂L/∂S = W·G + p·σ'(S)                   ∂L/∂W = M·G
//! hard concrete:  ∂L/∂S = W·G·∂M/∂S + p·σ'(S + SHIFT)     ∂L/∂W = M·G
//! ```
//!
//! - `sigmoid_sum`: Σ σ((S + shift)/temperature), terms in f32, pieces of 8,192 added in f64.
//!
//! Scores of −∞ (padding) have σ = σ' = 0. Bounds: σ and σ' to 8 roundings, the hard concrete mask to 24·u·|W|, products
//! to two more. Cost: memory, 8 to 20 bytes a weight; a mask of bits is a 32nd of its weights.

pub mod cpu;
pub mod cuda;
pub mod reference;

use crate::ops::dropout::{DropoutKey, philox};

/// How scores become masks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaskFunction {
    /// The bits that were selected; gradients go straight through.
    Bits,
    /// The hard concrete of L0 regularisation.
    HardConcrete,
}

/// l and r, the stretch of the hard concrete.
pub const STRETCH: [f64; 2] = [-0.1, 1.1];

/// b, its temperature in training. The formulas use b = 2/3 by its value.
pub const TEMPERATURE: f64 = 2.0 / 3.0;

/// −b·log(−l/r): what L0's regulariser adds to a score, so that σ is the probability of a mask above 0.
pub fn hard_concrete_shift() -> f64 {
    -TEMPERATURE * (-STRETCH[0] / STRETCH[1]).ln()
}

/// Third word of the noise's counter: no dropout site has this number, so that the two never share a word.
const NOISE_SITE: u32 = u32::MAX;

/// Noise of the hard concrete in one step.
#[derive(Clone, Copy, Debug)]
pub struct Noise(pub DropoutKey);

impl Noise {
    /// u of elements `4·group .. 4·group + 4` of the masked stretch, in f32.
    #[inline(always)]
    pub fn uniforms(self, group: usize) -> [f32; 4] {
        let counter = [group as u32, ((group as u64) >> 32) as u32, NOISE_SITE, self.0.draw];
        philox(counter, self.0.key())
            .map(|word| (word as f32 * (1.0 / 4_294_967_296.0)).clamp(1e-4, 1.0 - 1e-4))
    }
}

/// Where gradients of masked weights come from and go to, each a slice over one matrix.
#[derive(Debug)]
pub enum Gradients<'a, T> {
    /// Weights are frozen: ∂L/∂W' is replaced by ∂L/∂S.
    Scores(&'a mut [T]),
    /// There are no scores: ∂L/∂W' is replaced by ∂L/∂W.
    Weights(&'a mut [T]),
    /// ∂L/∂W' is replaced by ∂L/∂W, and ∂L/∂S is written.
    Both {
        /// ∂L/∂W', then ∂L/∂W.
        weights: &'a mut [T],
        /// ∂L/∂S.
        scores: &'a mut [T],
    },
}
