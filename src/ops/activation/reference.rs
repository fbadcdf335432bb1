//! The definitions, in f64.

use super::Activation;
use crate::ops::{View, ViewMut};

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

/// ½(1 + tanh u), as the sigmoid of 2u: the sum would lose all digits where tanh u is near −1.
fn half_one_plus_tanh(u: f64) -> f64 {
    1.0 / (1.0 + (-2.0 * u).exp())
}

/// `x ↦ act(x)`.
pub fn value(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::GeluErf => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        Activation::GeluTanh => x * half_one_plus_tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
    }
}

/// `x ↦ act'(x)`.
pub fn derivative(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::GeluErf => {
            let distribution = 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            distribution + x * density
        }
        Activation::GeluTanh => {
            let u = SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
            let du = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * x * x);
            half_one_plus_tanh(u) + x * 2.0 * half_one_plus_tanh(u) * half_one_plus_tanh(-u) * du
        }
        Activation::Relu => {
            if x > 0.0 {
                1.0
            } else {
                0.0
            }
        }
        Activation::Tanh => 1.0 - x.tanh() * x.tanh(),
    }
}

/// Applies the activation to every element.
pub fn forward_in_place(kind: Activation, values: &mut [f64]) {
    for x in values {
        *x = value(kind, *x);
    }
}

/// `y = mask · act(x)`; `x`, `y`: `[T, n]`, `mask`: `[n]`.
pub fn forward(kind: Activation, x: View<f64>, mask: Option<&[f64]>, mut y: ViewMut<f64>) {
    for t in 0..x.rows() {
        for j in 0..x.cols() {
            y.row_mut(t)[j] = value(kind, x.at(t, j)) * mask.map_or(1.0, |m| m[j]);
        }
    }
}

/// The backward of [`forward`]; see the [module](super) for the formulas.
///
/// `dy`, `pre`, `dx`: `[T, n]`; `dx` is added to where `accumulate`, else overwritten;
/// `dmask_per_sequence`: `cu_seqlens` (`[B + 1]`) and the `[B, n]` gradient of the mask, overwritten.
pub fn backward(
    kind: Activation,
    dy: View<f64>,
    pre: View<f64>,
    mask: Option<&[f64]>,
    mut dx: ViewMut<f64>,
    accumulate: bool,
    dmask_per_sequence: Option<(&[i32], ViewMut<f64>)>,
) {
    for t in 0..dy.rows() {
        for j in 0..dy.cols() {
            let gradient = dy.at(t, j) * mask.map_or(1.0, |m| m[j]) * derivative(kind, pre.at(t, j));
            let into = &mut dx.row_mut(t)[j];
            *into = if accumulate { *into + gradient } else { gradient };
        }
    }
    if let Some((cu_seqlens, mut dmask)) = dmask_per_sequence {
        for b in 0..cu_seqlens.len() - 1 {
            for j in 0..dy.cols() {
                let tokens = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
                dmask.row_mut(b)[j] = tokens.map(|t| dy.at(t, j) * value(kind, pre.at(t, j))).sum();
            }
        }
    }
}
