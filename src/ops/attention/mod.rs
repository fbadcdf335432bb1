//! Scaled dot-product attention over unpadded sequences, with head mask and dropout.
//!
//! Token-major: q, k, v and the context are `[T_total, H·d_h]` (columns of a wider buffer as a rule),
//! sequence b owns rows `cu_seqlens[b]..cu_seqlens[b + 1]`. For each sequence and head, with a row of scores
//! over the sequence's own keys (up to the query's own position where `causal`):
//!
//! ```text
//! s = scale·q kᵀ      lse = log Σ exp s      p = exp(s − lse)      unmasked = dropout(p)·v      out = mask_h·unmasked
//! ```
//!
//! Dropout acts on the probabilities: its row is `token·H + head` (token counted over the whole batch), its
//! column the key's position inside the sequence. Backward, with dctx = mask_h·dout and D the dropout factors:
//!
//! ```text
//! dmask[b, h] = Σ_t dout·unmasked     dp = D ∘ (dctx vᵀ)     ds = p ∘ (dp − Σ_j dout·out)
//! dv = (D ∘ p)ᵀ dctx                  dq = scale·ds k        dk = scale·dsᵀ q
//! ```
//!
//! `Σ_j dout·out` equals `Σ_key p·dp`, so p is recomputed from `lse` and no T × T matrix is kept; one
//! sequence, head and tile of queries is in flight on a thread at a time (Rabe and Staats 2021; Dao et al.
//! 2022). Heads whose mask is 0 are skipped, out, lse and all gradients written as 0, except that `unmasked` or
//! the mask gradient still gets its exact value where it is wanted.
//!
//! Where a loss looks at one token of each sequence alone, `dout` is zero elsewhere, and the backward of that token's query
//! is the whole backward.
//!
//! Cost: 4·T²·d_h FLOPs for each sequence and head forward, 10·T²·d_h backward (half of that if causal), 10·T·d_h of one
//! query.
//! Error: an inner product of d_h terms in the scores, then a convex combination of T values: with
//! δ = γ_{d_h + 8}·scale·Σ|q||k| the largest error of a score, |Δout| ≤ (2δ + γ_{T + 8})·Σ p|v|.
//! Every output element is one fixed chain of operations: bits do not depend on the number of threads.

pub mod cpu;
pub mod cuda;
pub mod reference;
mod tile;

use std::ops::Range;

/// The tokens of sequence `b` whose `dout` is not zero: of `tokens` the one that `rows` names. Panics if it names another
/// sequence's (a bug of the caller).
fn query_of(rows: &[i32], b: usize, tokens: Range<usize>) -> Range<usize> {
    let row = rows[b] as usize;
    assert!(tokens.contains(&row), "row {row} of sequence {b}, whose tokens are {tokens:?}");
    row..row + 1
}
