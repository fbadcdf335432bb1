//! The definition.

/// `out[i]` = `weights[i]` where `keep` has bit i, else 0.
pub fn apply(weights: &[f64], keep: &[u64], out: &mut [f64]) {
    for i in 0..weights.len() {
        out[i] = if keep[i / 64] >> (i % 64) & 1 == 1 { weights[i] } else { 0.0 };
    }
}
