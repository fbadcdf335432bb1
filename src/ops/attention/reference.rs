//! The definitions, in f64, one query at a time.

use std::ops::Range;

use crate::ops::dropout::AppliedDropout;
use crate::ops::{View, ViewMut};

/// Probabilities before dropout and their log-sum-exp, of query `t` over `keys`, of the head in `columns`.
fn probabilities(
    q: View<f64>,
    k: View<f64>,
    t: usize,
    keys: Range<usize>,
    columns: Range<usize>,
    scale: f64,
) -> (Vec<f64>, f64) {
    let score = |key: usize| scale * columns.clone().map(|j| q.at(t, j) * k.at(key, j)).sum::<f64>();
    let scores: Vec<f64> = keys.map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
    (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
}

/// See the [module](super). `q`, `k`, `v`, `out`, `unmasked`: `[T_total, H·d_h]`, `cu_seqlens`: `[B + 1]`,
/// `head_mask`: `[H]`, `lse`: `[T_total, H]`.
pub fn forward(
    q: View<f64>,
    k: View<f64>,
    v: View<f64>,
    cu_seqlens: &[i32],
    heads: usize,
    head_dim: usize,
    scale: f64,
    causal: bool,
    head_mask: Option<&[f64]>,
    dropout: Option<AppliedDropout>,
    mut out: ViewMut<f64>,
    mut lse: ViewMut<f64>,
    mut unmasked: Option<ViewMut<f64>>,
) {
    for pair in cu_seqlens.windows(2) {
        let (start, end) = (pair[0] as usize, pair[1] as usize);
        for h in 0..heads {
            let columns = h * head_dim..(h + 1) * head_dim;
            let mask = head_mask.map_or(1.0, |mask| mask[h]);
            let skipped = mask == 0.0 && unmasked.is_none();
            for t in start..end {
                let keys = start..if causal { t + 1 } else { end };
                let (mut p, log_sum) = probabilities(q, k, t, keys.clone(), columns.clone(), scale);
                if let Some(dropout) = dropout {
                    dropout.scale_row_f64(t * heads + h, 0, &mut p);
                }
                lse.row_mut(t)[h] = if skipped { 0.0 } else { log_sum };
                for j in columns.clone() {
                    let context: f64 = keys.clone().zip(&p).map(|(key, p)| p * v.at(key, j)).sum();
                    out.row_mut(t)[j] = if mask == 0.0 { 0.0 } else { mask * context };
                    if let Some(unmasked) = &mut unmasked {
                        unmasked.row_mut(t)[j] = context;
                    }
                }
            }
        }
    }
}

/// The backward of [`forward`]. `dq`, `dk`, `dv`: `[T_total, H·d_h]` and `d_head_mask_per_sequence`: `[B, H]`
/// are overwritten. `rows [B]`: of each sequence the only token whose `dout` is not zero. `unmasked` is needed for the latter where there is a head mask.
pub fn backward(
    q: View<f64>,
    k: View<f64>,
    v: View<f64>,
    out: View<f64>,
    dout: View<f64>,
    rows: Option<&[i32]>,
    _lse: View<f64>,
    unmasked: Option<View<f64>>,
    cu_seqlens: &[i32],
    heads: usize,
    head_dim: usize,
    scale: f64,
    causal: bool,
    head_mask: Option<&[f64]>,
    dropout: Option<AppliedDropout>,
    mut dq: ViewMut<f64>,
    mut dk: ViewMut<f64>,
    mut dv: ViewMut<f64>,
    mut d_head_mask_per_sequence: Option<ViewMut<f64>>,
) {
    for (b, pair) in cu_seqlens.windows(2).enumerate() {
        let (start, end) = (pair[0] as usize, pair[1] as usize);
        for h in 0..heads {
            let columns = h * head_dim..(h + 1) * head_dim;
            let dot = |x: View<f64>, t: usize, y: View<f64>, s: usize| -> f64 {
                columns.clone().map(|j| x.at(t, j) * y.at(s, j)).sum()
            };
            if let Some(d_head_mask) = &mut d_head_mask_per_sequence {
                let context = unmasked.unwrap_or(out);
                d_head_mask.row_mut(b)[h] = (start..end).map(|t| dot(dout, t, context, t)).sum();
            }
            for t in start..end {
                for row in [dq.row_mut(t), dk.row_mut(t), dv.row_mut(t)] {
                    row[columns.clone()].fill(0.0);
                }
            }
            let mask = head_mask.map_or(1.0, |mask| mask[h]);
            if mask == 0.0 {
                continue;
            }
            let rows = rows.filter(|_| start < end);
            let queries = rows.map_or(start..end, |rows| super::query_of(rows, b, start..end));
            for t in queries {
                let keys = start..if causal { t + 1 } else { end };
                let (p, _) = probabilities(q, k, t, keys.clone(), columns.clone(), scale);
                let mut factors = vec![1.0; p.len()];
                if let Some(dropout) = dropout {
                    dropout.scale_row_f64(t * heads + h, 0, &mut factors);
                }
                let dp: Vec<f64> =
                    keys.clone().zip(&factors).map(|(key, f)| f * mask * dot(dout, t, v, key)).collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (i, key) in keys.enumerate() {
                    let ds = p[i] * (dp[i] - mean);
                    for j in columns.clone() {
                        dq.row_mut(t)[j] += scale * ds * k.at(key, j);
                        dk.row_mut(key)[j] += scale * ds * q.at(t, j);
                        dv.row_mut(key)[j] += p[i] * factors[i] * mask * dout.at(t, j);
                    }
                }
            }
        }
    }
}
