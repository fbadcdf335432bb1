//! The definitions, in f64, as they are written in the module's documentation.

use super::{AdamW, AdamWForm, kept};

/// √Σ g² over all blocks.
pub fn global_norm<'a>(blocks: impl IntoIterator<Item = &'a [f64]>) -> f64 {
    blocks.into_iter().flatten().map(|g| g * g).sum::<f64>().sqrt()
}

/// One step on a range of parameters; all slices have its length. Where `keep` (a bit set over the range)
/// has a 0, the parameter and both moments become 0.
pub fn adamw(
    param: &mut [f64],
    grad: &[f64],
    m: &mut [f64],
    v: &mut [f64],
    settings: &AdamW,
    keep: Option<&[u64]>,
) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, clip_factor, .. } = *settings;
    let (correction1, correction2) = (settings.bias_correction1, settings.bias_correction2);
    for i in 0..param.len() {
        if keep.is_some_and(|keep| !kept(keep, i)) {
            (param[i], m[i], v[i]) = (0.0, 0.0, 0.0);
            continue;
        }
        let g = clip_factor * grad[i];
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        match settings.form {
            AdamWForm::Torch => {
                param[i] *= 1.0 - lr * weight_decay;
                param[i] -= lr * (m[i] / correction1) / ((v[i] / correction2).sqrt() + eps);
            }
            AdamWForm::HuggingFaceUncorrected => {
                param[i] -= lr * correction2.sqrt() / correction1 * m[i] / (v[i].sqrt() + eps);
                param[i] *= 1.0 - lr * weight_decay;
            }
        }
    }
}
