//! The definitions.

use super::{Gradients, Noise, STRETCH, TEMPERATURE, hard_concrete_shift};

/// `out[i]` = `weights[i]` where `keep` has bit i, else 0.
pub fn apply(weights: &[f64], keep: &[u64], out: &mut [f64]) {
    for i in 0..weights.len() {
        out[i] = if keep[i / 64] >> (i % 64) & 1 == 1 { weights[i] } else { 0.0 };
    }
}

/// σ.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// σ' = σ·(1 − σ).
pub fn sigmoid_slope(x: f64) -> f64 {
    let t = (-x.abs()).exp();
    t / ((1.0 + t) * (1.0 + t))
}

/// M of a score, and ∂M/∂S; with noise `uniform` as in training, without as in evaluation.
pub fn hard_concrete(score: f64, uniform: Option<f64>) -> (f64, f64) {
    let [low, high] = STRETCH;
    let (z, rate) = match uniform {
        Some(u) => ((u.ln() - (1.0 - u).ln() + score) / TEMPERATURE, 1.0 / TEMPERATURE),
        None => (score, 1.0),
    };
    let stretched = sigmoid(z) * (high - low) + low;
    let inside = (0.0..=1.0).contains(&stretched);
    (stretched.clamp(0.0, 1.0), if inside { (high - low) * rate * sigmoid_slope(z) } else { 0.0 })
}

fn uniform(noise: Option<Noise>, element: usize) -> Option<f64> {
    noise.map(|noise| f64::from(noise.uniforms(element / 4)[element % 4]))
}

/// `out[i]` = `weights[i]`·M; element i is number `first + i` of the masked stretch.
pub fn apply_hard_concrete(
    weights: &[f64],
    scores: &[f64],
    noise: Option<Noise>,
    first: usize,
    out: &mut [f64],
) {
    for i in 0..weights.len() {
        out[i] = weights[i] * hard_concrete(scores[i], uniform(noise, first + i)).0;
    }
}

/// Writes ∂L/∂S and ∂L/∂W of bits (`scores` may be empty where no gradient of them is wanted).
pub fn score_gradients(
    weights: &[f64],
    scores: &[f64],
    keep: &[u64],
    penalty: f64,
    gradients: Gradients<f64>,
) {
    let bit = |i: usize| keep[i / 64] >> (i % 64) & 1 == 1;
    let of_score = |i: usize, g: f64| {
        let slope = if penalty == 0.0 { 0.0 } else { sigmoid_slope(scores[i]) };
        weights[i] * g + penalty * slope
    };
    write(gradients, of_score, |i, g| if bit(i) { g } else { 0.0 });
}

/// The same of the hard concrete.
pub fn hard_concrete_gradients(
    weights: &[f64],
    scores: &[f64],
    noise: Option<Noise>,
    first: usize,
    penalty: f64,
    gradients: Gradients<f64>,
) {
    let mask = |i: usize| hard_concrete(scores[i], uniform(noise, first + i));
    let of_score = |i: usize, g: f64| {
        weights[i] * g * mask(i).1 + penalty * sigmoid_slope(scores[i] + hard_concrete_shift())
    };
    write(gradients, of_score, |i, g| g * mask(i).0);
}

fn write(
    gradients: Gradients<f64>,
    of_score: impl Fn(usize, f64) -> f64,
    of_weight: impl Fn(usize, f64) -> f64,
) {
    match gradients {
        Gradients::Scores(both) => both.iter_mut().enumerate().for_each(|(i, g)| *g = of_score(i, *g)),
        Gradients::Weights(both) => both.iter_mut().enumerate().for_each(|(i, g)| *g = of_weight(i, *g)),
        Gradients::Both { weights, scores } => {
            for (i, (g, score)) in weights.iter_mut().zip(scores).enumerate() {
                *score = of_score(i, *g);
                *g = of_weight(i, *g);
            }
        }
    }
}

/// Σ σ((S + shift)/temperature).
pub fn sigmoid_sum(scores: &[f64], shift: f64, temperature: f64) -> f64 {
    scores.iter().map(|score| sigmoid((score + shift) / temperature)).sum()
}
