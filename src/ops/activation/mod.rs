//! Activations of the feed-forward sublayer and of the task heads, with the neuron mask.
//!
//! Forward: `y[t, j] = mask[j] · act(x[t, j])`. Backward, with the saved input `pre`:
//! `dx[t, j] = mask[j] · dy[t, j] · act'(pre[t, j])` and, exact for each example (sequence `b`),
//! `dmask[b, j] = Σ_{t in b} dy[t, j] · act(pre[t, j])`, which is defined where the mask is 0 as well.
//!
//! Cost: one pass over memory. Error of the f32 values relative to the exact ones, in units of u = 2⁻²⁴, as
//! `tests/kernels/activation.rs` asserts it:
//!
//! | kind | error |
//! |---|---|
//! | `GeluErf` | 10 u while the result is normal, in the lower tail too |
//! | `GeluTanh` | (8 + 6·2\|w\|) u with w = √(2/π)(x + 0.044715 x³): the exponent magnifies the rounding of its argument |
//! | `Relu` | exact |
//! | `Tanh` | 5 u |

pub mod cpu;
pub mod cuda;
pub mod reference;

/// Which function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// x·Φ(x), Φ the standard normal distribution function (Hendrycks and Gimpel 2016): BERT, RoBERTa.
    GeluErf,
    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³))), its approximation: GPT-2.
    GeluTanh,
    /// max(x, 0); its derivative at 0 is 0: OPT.
    Relu,
    /// Hyperbolic tangent: the pooler.
    Tanh,
}
