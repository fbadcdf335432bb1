//! Attention in f32: one thread works on one (sequence, head) at a time, longest sequences first.

use std::cmp::Reverse;
use std::ops::Range;

use super::tile::{Left, PANEL, ROWS, Right, pack_rows, pack_transposed, product, transposed_len};
use crate::ops::dropout::AppliedDropout;
use crate::ops::elementary::exp;
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::{LANES, dot, maximum, simd_fn, sum_of};
use crate::ops::{View, ViewMut, scratch};

/// Scores that one tile of queries may hold: 128 kB, so that the backward's two tiles stay in a second-level
/// cache beside the packed keys and values.
const TILE: usize = 32 * 1024;
/// Most queries of a tile: more would only push the tile out of the first-level cache.
const MOST_QUERIES: usize = 96;

/// What every (sequence, head) of a call has in common.
#[derive(Clone, Copy)]
struct Problem<'a> {
    cu_seqlens: &'a [i32],
    heads: usize,
    head_dim: usize,
    scale: f32,
    causal: bool,
    head_mask: Option<&'a [f32]>,
    dropout: Option<AppliedDropout>,
}

/// One (sequence, head).
#[derive(Clone, Copy)]
struct Item {
    sequence: usize,
    head: usize,
    /// First token of the sequence in the batch.
    start: usize,
    /// Tokens in the sequence.
    len: usize,
    mask: f32,
}

/// Sizes of an item's scratch, functions of its length and the head size alone.
#[derive(Clone, Copy)]
struct Sizes {
    /// Queries of a tile, a multiple of [`ROWS`].
    queries: usize,
    /// Distance between rows of a score tile. Not a power of two, which would map rows to the same cache sets.
    ld: usize,
    /// Head size rounded up to whole vectors.
    width: usize,
}

impl Sizes {
    fn of(len: usize, head_dim: usize) -> Sizes {
        let ld = len.next_multiple_of(LANES) + LANES;
        let queries = (TILE / ld).min(MOST_QUERIES).min(len.next_multiple_of(ROWS)) / ROWS * ROWS;
        Sizes { queries: queries.max(ROWS), ld, width: head_dim.next_multiple_of(LANES) }
    }
}

impl Problem<'_> {
    /// Calls `body` with every (sequence, head), in parallel, long sequences first.
    fn for_each_item(&self, body: impl Fn(Item) + Sync) {
        let bounds = |b: usize| (self.cu_seqlens[b] as usize, self.cu_seqlens[b + 1] as usize);
        scratch::with_pieces(|order| {
            let sequences = self.cu_seqlens.len().saturating_sub(1);
            order.extend((0..sequences).map(|b| ((bounds(b).1 - bounds(b).0) as u32, b as u32)));
            order.sort_unstable_by_key(|&(len, b)| (Reverse(len), b));
            let order = &order[..];
            parallel::items(sequences * self.heads, |i| {
                let (len, sequence) = order[i / self.heads];
                let (head, sequence) = (i % self.heads, sequence as usize);
                let mask = self.head_mask.map_or(1.0, |mask| mask[head]);
                body(Item { sequence, head, start: bounds(sequence).0, len: len as usize, mask });
            });
        });
    }

    /// The item's rows and columns of a `[T_total, H·d_h]` matrix.
    fn part<'v>(&self, x: View<'v, f32>, item: &Item) -> View<'v, f32> {
        x.rows_at(item.start, item.len).cols_at(item.head * self.head_dim, self.head_dim)
    }

    /// Keys that any of the queries `first..first + count` sees.
    fn visible(&self, item: &Item, first: usize, count: usize) -> usize {
        if self.causal { first + count } else { item.len }
    }

    /// The item's part of row `t` of a shared `[T_total, H·d_h]` matrix.
    ///
    /// # Safety
    /// Only the thread that has this item may call this.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row_of<'s>(&self, x: &'s Shared<f32>, item: &Item, t: usize) -> &'s mut [f32] {
        let columns = item.head * self.head_dim..(item.head + 1) * self.head_dim;
        // SAFETY: items are disjoint in (rows, columns).
        unsafe { x.row_mut(item.start + t, columns) }
    }
}

simd_fn! {
    /// Replaces scores by exp(s − max), 0 from `visible` on; returns (max, sum).
    fn softmax_row<I>(scores: &mut [f32], visible: usize) -> (f32, f32) {
        scores[visible..].fill(f32::NEG_INFINITY);
        let max = maximum(scores);
        for s in scores.iter_mut() {
            *s = exp::<I>(*s - max);
        }
        (max, sum_of(scores, |s| s))
    }
}

simd_fn! {
    /// From scores and dctx·vᵀ to (dropped probabilities, gradient of the scores), 0 from `visible` on.
    fn backward_row<I>(scores: &mut [f32], dp: &mut [f32], factors: Option<&[f32]>, visible: usize, lse: f32, mean: f32) {
        match factors {
            None => {
                for (s, dp) in scores.iter_mut().zip(dp.iter_mut()) {
                    let p = exp::<I>(*s - lse);
                    *s = p;
                    *dp = p * (*dp - mean);
                }
            }
            Some(factors) => {
                for ((s, dp), &factor) in scores.iter_mut().zip(dp.iter_mut()).zip(factors) {
                    let p = exp::<I>(*s - lse);
                    *s = p * factor;
                    *dp = p * I::mul_add(*dp, factor, -mean);
                }
            }
        }
        scores[visible..].fill(0.0);
        dp[visible..].fill(0.0);
    }
}

simd_fn! {
    /// `to = (x·factor)·mask`, or 0 where the mask is 0 (x may then be infinite).
    fn scale_row<I>(x: &[f32], factor: f32, mask: f32, to: &mut [f32]) {
        if mask == 0.0 {
            return to.fill(0.0);
        }
        for (to, &x) in to.iter_mut().zip(x) {
            *to = x * factor * mask;
        }
    }
}

simd_fn! {
    fn inner_product<I>(x: &[f32], y: &[f32]) -> f32 {
        dot::<I>(x, y)
    }
}

/// See the [module](super). `q`, `k`, `v`, `out`, `unmasked`: `[T_total, H·d_h]`, `cu_seqlens`: `[B + 1]`,
/// `head_mask`: `[H]`, `lse`: `[T_total, H]`.
pub fn forward(
    q: View<f32>,
    k: View<f32>,
    v: View<f32>,
    cu_seqlens: &[i32],
    heads: usize,
    head_dim: usize,
    scale: f32,
    causal: bool,
    head_mask: Option<&[f32]>,
    dropout: Option<AppliedDropout>,
    mut out: ViewMut<f32>,
    mut lse: ViewMut<f32>,
    mut unmasked: Option<ViewMut<f32>>,
) {
    let problem = Problem { cu_seqlens, heads, head_dim, scale, causal, head_mask, dropout };
    assert!([q.cols(), k.cols(), v.cols(), out.cols()] == [heads * head_dim; 4]);
    let (out, lse) = (Shared::new(&mut out), Shared::new(&mut lse));
    let unmasked = unmasked.as_mut().map(Shared::new);
    problem.for_each_item(|item| {
        if item.mask == 0.0 && unmasked.is_none() {
            for t in 0..item.len {
                // SAFETY: this thread has the item.
                unsafe { problem.row_of(&out, &item, t).fill(0.0) };
                // SAFETY: as above.
                unsafe { lse.row_mut(item.start + t, item.head..item.head + 1).fill(0.0) };
            }
        } else if item.len > 0 {
            let parts = [q, k, v].map(|x| problem.part(x, &item));
            forward_item(&problem, &item, parts, &out, &lse, unmasked.as_ref());
        }
    });
}

fn forward_item(
    problem: &Problem,
    item: &Item,
    [q, k, v]: [View<f32>; 3],
    out: &Shared<f32>,
    lse: &Shared<f32>,
    unmasked: Option<&Shared<f32>>,
) {
    let (len, dim) = (item.len, problem.head_dim);
    let Sizes { queries, ld, width } = Sizes::of(len, dim);
    let parts = [transposed_len(len, dim), len * width, queries * width, queries * ld, queries * width];
    scratch::with(parts.iter().sum(), |buffer| {
        let [keys, values, query, scores, context] = split(buffer, parts);
        pack_transposed(k, keys);
        pack_rows(v, 1.0, width, values);
        let keys = Right { data: keys, row: PANEL, panel: PANEL * dim };
        let values = Right { data: values, row: width, panel: PANEL };
        for first in (0..len).step_by(queries) {
            let count = queries.min(len - first);
            let seen = problem.visible(item, first, count);
            let padded = seen.next_multiple_of(LANES);
            pack_rows(q.rows_at(first, count), problem.scale, width, query);
            let query = Left { data: query, row: width, col: 1 };
            product((count, padded, dim), query, keys, scores, ld, false);
            let mut inverse = [0.0; MOST_QUERIES];
            for i in 0..count {
                let (t, row) = (item.start + first + i, &mut scores[i * ld..i * ld + padded]);
                let visible = problem.visible(item, first + i, 1);
                let (max, sum) = softmax_row(row, visible);
                inverse[i] = 1.0 / sum;
                // SAFETY: this thread has the item.
                unsafe { lse.row_mut(t, item.head..item.head + 1)[0] = max + sum.ln() };
                if let Some(dropout) = problem.dropout {
                    dropout.scale_row(t * problem.heads + item.head, 0, &mut row[..visible]);
                }
            }
            let scores = Left { data: scores, row: ld, col: 1 };
            product((count, width, seen), scores, values, context, width, false);
            for i in 0..count {
                let context = &context[i * width..i * width + dim];
                // SAFETY: this thread has the item.
                scale_row(context, inverse[i], item.mask, unsafe { problem.row_of(out, item, first + i) });
                if let Some(unmasked) = unmasked {
                    // SAFETY: as above.
                    scale_row(context, inverse[i], 1.0, unsafe { problem.row_of(unmasked, item, first + i) });
                }
            }
        }
    });
}

/// The backward of [`forward`]. `dq`, `dk`, `dv`: `[T_total, H·d_h]` and `d_head_mask_per_sequence`: `[B, H]`
/// are overwritten. `rows [B]`: of each sequence the only token whose `dout` is not zero. `unmasked` is needed for the latter
/// where there is a head mask.
pub fn backward(
    q: View<f32>,
    k: View<f32>,
    v: View<f32>,
    out: View<f32>,
    dout: View<f32>,
    rows: Option<&[i32]>,
    lse: View<f32>,
    unmasked: Option<View<f32>>,
    cu_seqlens: &[i32],
    heads: usize,
    head_dim: usize,
    scale: f32,
    causal: bool,
    head_mask: Option<&[f32]>,
    dropout: Option<AppliedDropout>,
    mut dq: ViewMut<f32>,
    mut dk: ViewMut<f32>,
    mut dv: ViewMut<f32>,
    mut d_head_mask_per_sequence: Option<ViewMut<f32>>,
) {
    let problem = Problem { cu_seqlens, heads, head_dim, scale, causal, head_mask, dropout };
    assert!([q.cols(), k.cols(), v.cols(), dout.cols()] == [heads * head_dim; 4]);
    assert!(d_head_mask_per_sequence.is_none() || unmasked.is_some() || head_mask.is_none());
    let gradients = [Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv)];
    let d_head_mask = d_head_mask_per_sequence.as_mut().map(Shared::new);
    problem.for_each_item(|item| {
        let [q, k, v, out, dout] = [q, k, v, out, dout].map(|x| problem.part(x, &item));
        if let Some(d_head_mask) = &d_head_mask {
            let context = unmasked.map_or(out, |x| problem.part(x, &item));
            let sum = (0..item.len).map(|t| inner_product(dout.row(t), context.row(t))).sum();
            // SAFETY: one element for each item.
            unsafe { d_head_mask.row_mut(item.sequence, item.head..item.head + 1)[0] = sum };
        }
        if item.mask == 0.0 {
            for t in 0..item.len {
                for gradient in &gradients {
                    // SAFETY: this thread has the item.
                    unsafe { problem.row_of(gradient, &item, t).fill(0.0) };
                }
            }
        } else if item.len > 0 {
            let tokens = item.start..item.start + item.len;
            let asked = rows.map_or(tokens.clone(), |rows| super::query_of(rows, item.sequence, tokens));
            let asked = asked.start - item.start..asked.end - item.start;
            for t in (0..asked.start).chain(asked.end..item.len) {
                // SAFETY: this thread has the item.
                unsafe { problem.row_of(&gradients[0], &item, t).fill(0.0) };
            }
            backward_item(&problem, &item, asked, [q, k, v, out, dout], lse, &gradients);
        }
    });
}

/// Gradients of the queries `asked`, and through them of all keys and values.
fn backward_item(
    problem: &Problem,
    item: &Item,
    asked: Range<usize>,
    [q, k, v, out, dout]: [View<f32>; 5],
    lse: View<f32>,
    gradients: &[Shared<f32>; 3],
) {
    let (len, dim) = (item.len, problem.head_dim);
    let Sizes { queries, ld, width } = Sizes::of(len, dim);
    let queries = queries.min(asked.len().next_multiple_of(ROWS));
    let (transposed, tile) = (transposed_len(len, dim), queries * ld);
    let sums = len.next_multiple_of(ROWS) * width;
    let rows = queries * width;
    let parts = [transposed, transposed, len * width, rows, rows, rows, tile, tile, ld, sums, sums];
    scratch::with(parts.iter().sum(), |buffer| {
        let [keys_t, values_t, keys, query, dcontext, dquery, scores, dscores, factors, dkeys, dvalues] =
            split(buffer, parts);
        pack_transposed(k, keys_t);
        pack_transposed(v, values_t);
        pack_rows(k, 1.0, width, keys);
        dkeys.fill(0.0);
        dvalues.fill(0.0);
        for first in asked.clone().step_by(queries) {
            let count = queries.min(asked.end - first);
            let seen = problem.visible(item, first, count);
            let padded = seen.next_multiple_of(LANES);
            pack_rows(q.rows_at(first, count), problem.scale, width, query);
            pack_rows(dout.rows_at(first, count), item.mask, width, dcontext);
            let across = |data| Left { data, row: width, col: 1 };
            let panels = |data| Right { data, row: PANEL, panel: PANEL * dim };
            product((count, padded, dim), across(query), panels(keys_t), scores, ld, false);
            product((count, padded, dim), across(dcontext), panels(values_t), dscores, ld, false);
            for i in 0..count {
                let t = item.start + first + i;
                let visible = problem.visible(item, first + i, 1);
                let range = i * ld..i * ld + padded;
                let factors = problem.dropout.map(|dropout| {
                    factors[..padded].fill(1.0);
                    dropout.scale_row(t * problem.heads + item.head, 0, &mut factors[..visible]);
                    &factors[..padded]
                });
                let mean = inner_product(dout.row(first + i), out.row(first + i));
                let (scores, dscores) = (&mut scores[range.clone()], &mut dscores[range]);
                backward_row(scores, dscores, factors, visible, lse.at(t, item.head), mean);
            }
            // All tiles but the last end at a multiple of ROWS, so the rows that a product writes beyond `seen` never
            // become real ones later.
            let down = |data| Left { data, row: 1, col: ld };
            let rows = |data| Right { data, row: width, panel: PANEL };
            product((seen, width, count), down(scores), rows(dcontext), dvalues, width, true);
            product((seen, width, count), down(dscores), rows(query), dkeys, width, true);
            let dscores = Left { data: dscores, row: ld, col: 1 };
            product((count, width, seen), dscores, rows(keys), dquery, width, false);
            for i in 0..count {
                // SAFETY: this thread has the item.
                let dq = unsafe { problem.row_of(&gradients[0], item, first + i) };
                let from = &dquery[i * width..i * width + dim];
                scale_row(from, problem.scale, 1.0, dq);
            }
        }
        let seen = problem.visible(item, asked.end - 1, 1);
        for (gradient, sums) in gradients[1..].iter().zip([dkeys, dvalues]) {
            for t in 0..len {
                // SAFETY: this thread has the item.
                let row = unsafe { problem.row_of(gradient, item, t) };
                match t < seen {
                    true => row.copy_from_slice(&sums[t * width..t * width + dim]),
                    false => row.fill(0.0),
                }
            }
        }
    });
}

/// Cuts a buffer into parts of the given lengths.
fn split<const N: usize>(mut buffer: &mut [f32], lengths: [usize; N]) -> [&mut [f32]; N] {
    lengths.map(|len| {
        let (part, rest) = std::mem::take(&mut buffer).split_at_mut(len);
        buffer = rest;
        part
    })
}
