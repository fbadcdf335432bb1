// Scaled dot-product attention over unpadded sequences: the small kernels beside the products, and where the rest is.
//
// The definition is src/ops/attention/mod.rs. Token-major: q, k, v, out, dout, dq, dk, dv are [T, heads·head_dim], each
// with its own leading dimension (columns of a wider matrix as a rule); sequence b owns rows cu_seqlens[b] …
// cu_seqlens[b + 1] − 1; lse [T, heads] is f32.
//
// attention_bf16.cuh and attention_f32.cuh hold the kernels as templates over the head size, and attention_<type>_<size>.cu
// one size each, because a model has heads of one size and compiling all of them takes half a minute. A head runs in the
// smallest size that holds it, padded with zeros in shared memory.
//
// Backward is three passes: the row statistics lse and delta = Σ_j dout·out by head, then one kernel that owns keys (dk, dv) and one that owns queries (dq). Scores are
// computed twice, but every result is one chain of sums in a fixed order and no two blocks add to the same place.
//
// Floor, for each head of a sequence of n tokens (half if causal): forward 4·n²·head_dim FLOPs, backward 14·n²·head_dim;
// bytes, q, k, v, dout, out, gradients once: 4 elements a (token, column) forward, 8 backward and 2 for delta, while the
// streamed side is read from L2 once for every tile of rows. The kernels here are bound by those bytes alone.
#include "attention.cuh"

/// row_statistics [2, heads, tokens]: lse [tokens, heads], then delta = Σ_j dout·out. `lanes` threads a (token, head).
extern "C" __global__ void __launch_bounds__(256) attention_row_statistics_f32(
    const float* __restrict__ dout, int lddout, const float* __restrict__ out, int ldout, const float* __restrict__ lse,
    int ldlse, float* __restrict__ row_statistics, int tokens, int heads, int head_dim, int lanes, int vector) {
    row_statistics_of(dout, lddout, out, ldout, lse, ldlse, row_statistics, tokens, heads, head_dim, lanes, vector);
}

/// dmask [B, heads] = Σ dout·context over a sequence. One block of 256 threads a (sequence, head).
extern "C" __global__ void __launch_bounds__(256) attention_mask_gradient_f32(
    const float* __restrict__ dout, int lddout, const float* __restrict__ context, int ldcontext,
    const int* __restrict__ cu_seqlens, float* __restrict__ dmask, int lddmask, int head_dim) {
    mask_gradient<256>(dout, lddout, context, ldcontext, cu_seqlens, dmask, lddmask, head_dim);
}

/// row_statistics [2, heads, tokens]: lse [tokens, heads], then delta = Σ_j dout·out. `lanes` threads a (token, head).
extern "C" __global__ void __launch_bounds__(256) attention_row_statistics_bf16(
    const bf16* __restrict__ dout, int lddout, const bf16* __restrict__ out, int ldout, const float* __restrict__ lse,
    int ldlse, float* __restrict__ row_statistics, int tokens, int heads, int head_dim, int lanes, int vector) {
    row_statistics_of(dout, lddout, out, ldout, lse, ldlse, row_statistics, tokens, heads, head_dim, lanes, vector);
}

/// dmask [B, heads] = Σ dout·context over a sequence. One block of 256 threads a (sequence, head).
extern "C" __global__ void __launch_bounds__(256) attention_mask_gradient_bf16(
    const bf16* __restrict__ dout, int lddout, const bf16* __restrict__ context, int ldcontext,
    const int* __restrict__ cu_seqlens, float* __restrict__ dmask, int lddmask, int head_dim) {
    mask_gradient<256>(dout, lddout, context, ldcontext, cu_seqlens, dmask, lddmask, head_dim);
}
