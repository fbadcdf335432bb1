//! The same in f32, a word of the mask at a time, in parallel.

use super::{Gradients, Noise, STRETCH, hard_concrete_shift};
use crate::ops::elementary::exp;
use crate::ops::gemm::cpu::registers::Registers;
use crate::ops::parallel::{self, Shared};
use crate::ops::scratch;
use crate::ops::simd::{Isa, simd_fn};

/// Weights of one piece of work: whole words of the mask, whole groups of the noise.
const PIECE: usize = 8 * 1024;

/// `value` where the lowest bit of `word >> bit` is 1, else +0, without a branch.
#[inline(always)]
fn masked(value: f32, word: u64, bit: usize) -> f32 {
    f32::from_bits(value.to_bits() & ((word >> bit & 1) as u32).wrapping_neg())
}

/// Calls `body` with the range of each piece of `len` elements, in parallel.
fn pieces(len: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
    parallel::rows(len.div_ceil(PIECE), PIECE, |numbers| {
        for number in numbers {
            body(number * PIECE..((number + 1) * PIECE).min(len));
        }
    });
}

simd_fn! {
    fn apply_piece<I>(weights: &[f32], keep: &[u64], out: &mut [f32]) {
        for ((weights, &word), out) in weights.chunks(64).zip(keep).zip(out.chunks_mut(64)) {
            for (bit, (out, &weight)) in out.iter_mut().zip(weights).enumerate() {
                *out = masked(weight, word, bit);
            }
        }
    }
}

simd_fn! {
    /// The same past the caches; `out` is aligned to a cache line.
    fn stream_piece<I>(weights: &[f32], keep: &[u64], out: &mut [f32]) {
        let (lines, rest) = weights.as_chunks::<64>();
        let (out, out_rest) = out.as_chunks_mut::<64>();
        for ((weights, &word), out) in lines.iter().zip(keep).zip(out) {
            let values: [f32; 64] = std::array::from_fn(|bit| masked(weights[bit], word, bit));
            for at in (0..64).step_by(I::Registers::LANES) {
                // SAFETY: LANES divides 64, so both pointers hold LANES elements and `to` is as aligned as `out`; the
                // level is the one that runs.
                unsafe { I::Registers::stream(out[at..].as_mut_ptr(), I::Registers::load(values[at..].as_ptr())) };
            }
        }
        for (bit, (out, &weight)) in out_rest.iter_mut().zip(rest).enumerate() {
            *out = masked(weight, keep[lines.len()], bit);
        }
        // SAFETY: the level is the one that runs.
        unsafe { I::Registers::fence() };
    }
}

/// Weights of a matrix from which on masked ones are written past the caches: a plain store first reads the line that it
/// overwrites, a third of all traffic. Smaller matrices may be read again before they leave a cache.
const STREAMED: usize = 128 * 1024;

/// `out[i]` = `weights[i]` where `keep` has bit i, else 0.
pub fn apply(weights: &[f32], keep: &[u64], out: &mut [f32]) {
    assert_eq!((out.len(), keep.len()), (weights.len(), weights.len().div_ceil(64)));
    let streamed = weights.len() >= STREAMED && out.as_ptr().align_offset(64) == 0;
    let piece: fn(&[f32], &[u64], &mut [f32]) = if streamed { stream_piece } else { apply_piece };
    let shared = Shared::slice(out);
    pieces(weights.len(), |range| {
        // SAFETY: ranges of pieces are disjoint.
        let out = unsafe { shared.range_mut(range.clone()) };
        piece(&weights[range.clone()], &keep[range.start / 64..], out);
    });
}

/// σ; 0 at −∞.
#[inline(always)]
fn sigmoid<I: Isa>(x: f32) -> f32 {
    let t = exp::<I>(-x.abs());
    let lower = t / (1.0 + t);
    if x < 0.0 { lower } else { 1.0 / (1.0 + t) }
}

/// σ', without cancellation; 0 at ±∞.
#[inline(always)]
fn sigmoid_slope<I: Isa>(x: f32) -> f32 {
    let t = exp::<I>(-x.abs());
    t / ((1.0 + t) * (1.0 + t))
}

/// M and ∂M/∂S.
#[inline(always)]
fn hard_concrete<I: Isa>(score: f32, uniform: Option<f32>) -> (f32, f32) {
    let [low, high] = STRETCH.map(|v| v as f32);
    let wide = high - low;
    let (s, slope) = match uniform {
        Some(u) => {
            // q = y^(1/b): σ = 1/(1 + q), σ' = q/(1 + q)² = σ·(1 − σ); q overflows only where σ is 0.
            let y = (1.0 - u) / u * exp::<I>(-score);
            let q = y * y.sqrt();
            let s = 1.0 / (1.0 + q);
            (s, 1.5 * s * if q < 1.0 { q * s } else { 1.0 - s })
        }
        None => (sigmoid::<I>(score), sigmoid_slope::<I>(score)),
    };
    let stretched = I::mul_add(s, wide, low);
    let inside = (0.0..=1.0).contains(&stretched);
    (stretched.clamp(0.0, 1.0), if inside { wide * slope } else { 0.0 })
}

/// u of the elements from `first`, a multiple of 4, on.
fn fill_uniforms(noise: Noise, first: usize, out: &mut [f32]) {
    for (group, out) in out.chunks_mut(4).enumerate() {
        let uniforms = noise.uniforms(first / 4 + group);
        out.copy_from_slice(&uniforms[..out.len()]);
    }
}

/// Calls `body` with the noise of the elements from `first` on, or with none.
fn with_uniforms(noise: Option<Noise>, first: usize, len: usize, body: impl FnOnce(&[f32])) {
    let Some(noise) = noise else { return body(&[]) };
    scratch::with(len, |uniforms| {
        fill_uniforms(noise, first, uniforms);
        body(uniforms);
    });
}

simd_fn! {
    fn apply_hard_concrete_piece<I>(weights: &[f32], scores: &[f32], uniforms: &[f32], out: &mut [f32]) {
        let both = weights.iter().zip(scores).zip(out);
        if uniforms.is_empty() {
            both.for_each(|((w, s), out)| *out = w * hard_concrete::<I>(*s, None).0);
        } else {
            both.zip(uniforms).for_each(|(((w, s), out), u)| *out = w * hard_concrete::<I>(*s, Some(*u)).0);
        }
    }
}

/// `out[i]` = `weights[i]`·M; element i is number `first + i` of the masked stretch, `first` a multiple of 64.
pub fn apply_hard_concrete(
    weights: &[f32],
    scores: &[f32],
    noise: Option<Noise>,
    first: usize,
    out: &mut [f32],
) {
    assert_eq!((scores.len(), out.len(), first % 64), (weights.len(), weights.len(), 0));
    let shared = Shared::slice(out);
    pieces(weights.len(), |range| {
        // SAFETY: ranges of pieces are disjoint.
        let out = unsafe { shared.range_mut(range.clone()) };
        with_uniforms(noise, first + range.start, range.len(), |uniforms| {
            apply_hard_concrete_piece(&weights[range.clone()], &scores[range.clone()], uniforms, out);
        });
    });
}

simd_fn! {
    /// ∂L/∂S straight through: W·G + p·σ'(S).
    fn straight<I>(weights: &[f32], scores: &[f32], penalty: f32, gradients: &[f32], out: &mut [f32]) {
        let products = weights.iter().zip(gradients).zip(out);
        if penalty == 0.0 {
            products.for_each(|((w, g), out)| *out = w * g);
        } else {
            products.zip(scores).for_each(|(((w, g), out), s)| {
                *out = I::mul_add(*w, *g, penalty * sigmoid_slope::<I>(*s));
            });
        }
    }
}

simd_fn! {
    /// The same in place.
    fn straight_in_place<I>(weights: &[f32], scores: &[f32], penalty: f32, gradients: &mut [f32]) {
        let products = weights.iter().zip(gradients);
        if penalty == 0.0 {
            products.for_each(|(w, g)| *g *= w);
        } else {
            products.zip(scores).for_each(|((w, g), s)| {
                *g = I::mul_add(*w, *g, penalty * sigmoid_slope::<I>(*s));
            });
        }
    }
}

simd_fn! {
    fn mask_in_place<I>(keep: &[u64], values: &mut [f32]) {
        for (values, &word) in values.chunks_mut(64).zip(keep) {
            for (bit, value) in values.iter_mut().enumerate() {
                *value = masked(*value, word, bit);
            }
        }
    }
}

/// Writes ∂L/∂S and ∂L/∂W of bits (`scores` may be empty where no gradient of them is wanted).
pub fn score_gradients(
    weights: &[f32],
    scores: &[f32],
    keep: &[u64],
    penalty: f32,
    gradients: Gradients<f32>,
) {
    let len = weights.len();
    match gradients {
        Gradients::Scores(both) => {
            let shared = Shared::slice(both);
            pieces(len, |range| {
                // SAFETY: ranges of pieces are disjoint.
                let gradients = unsafe { shared.range_mut(range.clone()) };
                straight_in_place(&weights[range.clone()], &scores[range], penalty, gradients);
            });
        }
        Gradients::Weights(both) => {
            let shared = Shared::slice(both);
            pieces(len, |range| {
                // SAFETY: as above.
                mask_in_place(&keep[range.start / 64..], unsafe { shared.range_mut(range.clone()) });
            });
        }
        Gradients::Both { weights: of_weights, scores: of_scores } => {
            let (of_weights, of_scores) = (Shared::slice(of_weights), Shared::slice(of_scores));
            pieces(len, |range| {
                // SAFETY: as above, for each of the two.
                let (gradients, out) =
                    unsafe { (of_weights.range_mut(range.clone()), of_scores.range_mut(range.clone())) };
                straight(&weights[range.clone()], &scores[range.clone()], penalty, gradients, out);
                mask_in_place(&keep[range.start / 64..], gradients);
            });
        }
    }
}

simd_fn! {
    /// ∂L/∂S to `out` and ∂L/∂W to `gradients`.
    fn hard_concrete_piece<I>(weights: &[f32], scores: &[f32], uniforms: &[f32], penalty: f32, shift: f32, gradients: &mut [f32], out: &mut [f32]) {
        let step = |w: f32, s: f32, u: Option<f32>, g: &mut f32, out: &mut f32| {
            let (mask, slope) = hard_concrete::<I>(s, u);
            *out = I::mul_add(w * *g, slope, penalty * sigmoid_slope::<I>(s + shift));
            *g *= mask;
        };
        let all = weights.iter().zip(scores).zip(gradients).zip(out);
        if uniforms.is_empty() {
            all.for_each(|(((w, s), g), out)| step(*w, *s, None, g, out));
        } else {
            all.zip(uniforms).for_each(|((((w, s), g), out), u)| step(*w, *s, Some(*u), g, out));
        }
    }
}

/// The same of the hard concrete; numbering as in [`apply_hard_concrete`].
pub fn hard_concrete_gradients(
    weights: &[f32],
    scores: &[f32],
    noise: Option<Noise>,
    first: usize,
    penalty: f32,
    gradients: Gradients<f32>,
) {
    let shift = hard_concrete_shift() as f32;
    let (of_weights, of_scores) = match gradients {
        Gradients::Both { weights, scores } => (weights, Some(scores)),
        Gradients::Scores(both) => (both, None),
        Gradients::Weights(_) => panic!("the hard concrete has scores"),
    };
    let in_place = of_scores.is_none();
    let of_weights = Shared::slice(of_weights);
    let of_scores = Shared::slice(of_scores.unwrap_or_default());
    pieces(weights.len(), |range| {
        // SAFETY: ranges of pieces are disjoint.
        let gradients = unsafe { of_weights.range_mut(range.clone()) };
        let (weights, scores) = (&weights[range.clone()], &scores[range.clone()]);
        with_uniforms(noise, first + range.start, range.len(), |uniforms| {
            if in_place {
                scratch::with(range.len(), |out| {
                    hard_concrete_piece(weights, scores, uniforms, penalty, shift, gradients, out);
                    gradients.copy_from_slice(out);
                });
            } else {
                // SAFETY: as above.
                let out = unsafe { of_scores.range_mut(range.clone()) };
                hard_concrete_piece(weights, scores, uniforms, penalty, shift, gradients, out);
            }
        });
    });
}

simd_fn! {
    fn sigmoid_piece<I>(scores: &[f32], shift: f32, rate: f32) -> f64 {
        let mut partial = [0.0f32; 32];
        let (whole, tail) = scores.as_chunks::<32>();
        for chunk in whole {
            for l in 0..32 {
                partial[l] += sigmoid::<I>((chunk[l] + shift) * rate);
            }
        }
        for (p, &score) in partial.iter_mut().zip(tail) {
            *p += sigmoid::<I>((score + shift) * rate);
        }
        partial.iter().map(|p| f64::from(*p)).sum()
    }
}

/// Σ σ((S + shift)/temperature).
pub fn sigmoid_sum(scores: &[f32], shift: f32, temperature: f32) -> f64 {
    let count = scores.len().div_ceil(PIECE);
    scratch::with_doubles(count, |sums| {
        let shared = Shared::slice(&mut *sums);
        pieces(scores.len(), |range| {
            let piece = range.start / PIECE;
            // SAFETY: one element for each piece.
            let sum = unsafe { shared.range_mut(piece..piece + 1) };
            sum[0] = sigmoid_piece(&scores[range], shift, 1.0 / temperature);
        });
        sums.iter().sum()
    })
}
