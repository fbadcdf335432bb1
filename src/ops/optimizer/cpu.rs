//! The optimiser in f32: one pass over memory, less of it where nothing has happened yet.

use super::{AdamW, kept};
use crate::ops::parallel::{self, Shared};
use crate::ops::scratch;
use crate::ops::simd::simd_fn;

/// Elements of one piece of work; a multiple of 64, so that pieces begin at words of the bit set.
const PIECE: usize = 8 * 1024;

simd_fn! {
    /// Σ g² in f64; every square is exact.
    fn squares<I>(values: &[f32]) -> f64 {
        let mut partial = [0.0f64; 16];
        let (whole, tail) = values.as_chunks::<16>();
        for chunk in whole {
            for l in 0..16 {
                partial[l] += f64::from(chunk[l]) * f64::from(chunk[l]);
            }
        }
        for (p, &g) in partial.iter_mut().zip(tail) {
            *p += f64::from(g) * f64::from(g);
        }
        partial.iter().sum()
    }
}

/// √Σ g² over all blocks.
pub fn global_norm<'a>(blocks: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    let mut total = 0.0;
    for block in blocks {
        let pieces = block.len().div_ceil(PIECE);
        total += scratch::with_doubles(pieces, |sums| {
            let shared = Shared::slice(&mut *sums);
            parallel::items(pieces, |i| {
                let piece = &block[i * PIECE..((i + 1) * PIECE).min(block.len())];
                // SAFETY: one element for each piece of work.
                let sum = unsafe { shared.range_mut(i..i + 1) };
                sum[0] = squares(piece);
            });
            sums.iter().sum::<f64>()
        });
    }
    total.sqrt()
}

/// Elements that are passed over together where nothing moves them.
const GROUP: usize = 64;

/// [`AdamW`] and its derived scalars, rounded to f32.
#[derive(Clone, Copy)]
struct Rounded {
    /// Whether a parameter whose gradient and moments are 0 keeps its bits.
    rests: bool,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
    clip_factor: f32,
    decay_before: f32,
    decay_after: f32,
    rate: f32,
    root: f32,
}

simd_fn! {
    fn step<I>(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], s: Rounded) {
        let groups = param.chunks_mut(GROUP).zip(grad.chunks(GROUP));
        for (((param, grad), m), v) in groups.zip(m.chunks_mut(GROUP)).zip(v.chunks_mut(GROUP)) {
            // Embeddings of tokens that never occurred: most of a vocabulary in fine-tuning. Reading 12 bytes shows that the
            // other 16 need not move.
            let mut bits = 0;
            for ((g, m), v) in grad.iter().zip(&*m).zip(&*v) {
                bits |= g.to_bits() | m.to_bits() | v.to_bits();
            }
            if s.rests && bits == 0 {
                continue;
            }
            for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
                let g = g * s.clip_factor;
                *m = I::mul_add(s.beta1, *m, s.rest1 * g);
                *v = I::mul_add(s.beta2, *v, s.rest2 * g * g);
                let update = s.rate * *m / I::mul_add(v.sqrt(), s.root, s.eps);
                *p = I::mul_add(*p, s.decay_before, -update) * s.decay_after;
            }
        }
    }
}

/// One step on a range of parameters; all slices have its length. Where `keep` (a bit set over the range)
/// has a 0, the parameter and both moments become 0.
pub fn adamw(
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    settings: &AdamW,
    keep: Option<&[u64]>,
) {
    let len = param.len();
    assert_eq!((grad.len(), m.len(), v.len()), (len, len, len));
    assert!(keep.is_none_or(|keep| keep.len() >= len.div_ceil(64)));
    let scalars = settings.scalars();
    let finite = settings.clip_factor.is_finite() && scalars.rate.is_finite() && scalars.root.is_finite();
    let rounded = Rounded {
        rests: finite
            && settings.eps as f32 > 0.0
            && scalars.decay_before == 1.0
            && scalars.decay_after == 1.0,
        beta1: settings.beta1 as f32,
        beta2: settings.beta2 as f32,
        rest1: (1.0 - settings.beta1) as f32,
        rest2: (1.0 - settings.beta2) as f32,
        eps: settings.eps as f32,
        clip_factor: settings.clip_factor as f32,
        decay_before: scalars.decay_before as f32,
        decay_after: scalars.decay_after as f32,
        rate: scalars.rate as f32,
        root: scalars.root as f32,
    };
    let (param, m, v) = (Shared::slice(param), Shared::slice(m), Shared::slice(v));
    parallel::rows(len.div_ceil(PIECE), PIECE, |pieces| {
        let range = pieces.start * PIECE..(pieces.end * PIECE).min(len);
        // SAFETY: ranges of pieces are disjoint.
        let (param, m, v) = unsafe {
            (param.range_mut(range.clone()), m.range_mut(range.clone()), v.range_mut(range.clone()))
        };
        step(param, &grad[range.clone()], m, v, rounded);
        if let Some(keep) = keep {
            let keep = &keep[range.start / 64..];
            for i in 0..range.len() {
                if !kept(keep, i) {
                    (param[i], m[i], v[i]) = (0.0, 0.0, 0.0);
                }
            }
        }
    });
}
