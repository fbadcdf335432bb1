//! AdamW (Loshchilov and Hutter 2019), gradient clipping by global norm, and the linear schedule.
//!
//! One step on a parameter p with gradient g, t counted from 1, g' = clip_factor·g:
//!
//! ```text
//! m ← β₁m + (1 − β₁)g'      v ← β₂v + (1 − β₂)g'²      m̂ = m/(1 − β₁ᵗ)      v̂ = v/(1 − β₂ᵗ)
//! Torch:                    p ← p(1 − lr·λ);   p ← p − lr·m̂/(√v̂ + ε)
//! HuggingFaceUncorrected:   p ← p − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε);   p ← p(1 − lr·λ)
//! ```
//!
//! The second form, of transformers' own (removed) optimiser, adds ε before the bias correction, so that its
//! effective ε at step 1 is about 30 times larger; SMP and movement pruning were published with it.
//!
//! The norm is the root of a sum of squares held in f64, over fixed blocks of 8,192 elements: exact to
//! f64 rounding and independent of the number of threads. Scalars are computed in f64 and rounded once.
//! Cost: AdamW reads p, g, m, v and writes p, m, v once: 28 bytes an element.

pub mod cpu;
pub mod cuda;
pub mod reference;

/// Where ε goes and when the weights decay; see the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdamWForm {
    /// torch.optim.AdamW.
    Torch,
    /// transformers.AdamW with `correct_bias`.
    HuggingFaceUncorrected,
}

/// Settings of one AdamW step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamW {
    /// Learning rate of this step, schedule included.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ, decoupled.
    pub weight_decay: f64,
    /// 1 − β₁ᵗ; see [`bias_correction`].
    pub bias_correction1: f64,
    /// 1 − β₂ᵗ.
    pub bias_correction2: f64,
    /// Multiplies the gradient; see [`clip_factor`].
    pub clip_factor: f64,
    /// Which of the two forms.
    pub form: AdamWForm,
}

/// The scalars of a step in the one formula both forms share:
/// `p ← (p·decay_before − rate·m/(√v·root + ε))·decay_after`.
#[derive(Clone, Copy, Debug)]
struct Scalars {
    decay_before: f64,
    decay_after: f64,
    rate: f64,
    root: f64,
}

impl AdamW {
    fn scalars(&self) -> Scalars {
        let (correction1, correction2) = (self.bias_correction1, self.bias_correction2);
        let decay = 1.0 - self.lr * self.weight_decay;
        match self.form {
            AdamWForm::Torch => Scalars {
                decay_before: decay,
                decay_after: 1.0,
                rate: self.lr / correction1,
                root: 1.0 / correction2.sqrt(),
            },
            AdamWForm::HuggingFaceUncorrected => Scalars {
                decay_before: 1.0,
                decay_after: decay,
                rate: self.lr * correction2.sqrt() / correction1,
                root: 1.0,
            },
        }
    }
}

/// `1 − betaᵗ` at step `t`, counted from 1.
pub fn bias_correction(beta: f64, step: u64) -> f64 {
    1.0 - beta.powf(step as f64)
}

/// `min(1, max_norm/(norm + 1e-6))`, as torch.nn.utils.clip_grad_norm_ does.
pub fn clip_factor(max_norm: f64, norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// Factor of the learning rate at `step` (counted from 0): linear from 0 to 1 over `warmup` steps, then
/// linear to 0 at `total`.
pub fn linear_schedule(step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        step as f64 / warmup as f64
    } else {
        total.saturating_sub(step) as f64 / total.saturating_sub(warmup).max(1) as f64
    }
}

/// Whether element `i` of a range is kept, by a bit set that starts at the range: bit `i mod 64` of word
/// `i / 64`.
fn kept(keep: &[u64], i: usize) -> bool {
    keep[i / 64] >> (i % 64) & 1 == 1
}
