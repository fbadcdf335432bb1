// Attention in f32, heads of up to 64 elements: see attention_f32.cuh.
#include "attention_f32.cuh"

/// Context and log-sum-exp. One block: 32 queries of a head.
extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_f32_64(
    const float* __restrict__ q, int ldq, const float* __restrict__ k, int ldk, const float* __restrict__ v, int ldv,
    const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim, float scale, int causal,
    const float* __restrict__ head_mask, const int* __restrict__ dropout_key, unsigned site,
    unsigned long long threshold, float dropout_scale, float* __restrict__ out, int ldout, float* __restrict__ lse,
    int ldlse, float* __restrict__ unmasked, int ldunmasked) {
    scalar::forward<64>(q, ldq, k, ldk, v, ldv, cu_seqlens, sequences, heads, head_dim, scale, causal, head_mask,
        DropoutArguments{dropout_key, site, threshold, dropout_scale}, out, ldout, lse, ldlse, unmasked, ldunmasked);
}

/// dk and dv. One block: 32 keys of a head.
extern "C" __global__ void __launch_bounds__(128, 3) attention_keys_f32_64(
    const float* __restrict__ q, int ldq, const float* __restrict__ k, int ldk, const float* __restrict__ v, int ldv,
    const float* __restrict__ dout, int lddout, const float* __restrict__ row_statistics, int tokens,
    const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim,
    float scale, int causal, const float* __restrict__ head_mask, const int* __restrict__ dropout_key, unsigned site,
    unsigned long long threshold, float dropout_scale, float* __restrict__ dk, int lddk, float* __restrict__ dv,
    int lddv) {
    scalar::backward<64, true>(k, ldk, v, ldv, q, ldq, dout, lddout, row_statistics, tokens, cu_seqlens, sequences, heads,
        head_dim, scale, causal, head_mask, DropoutArguments{dropout_key, site, threshold, dropout_scale}, dk, lddk,
        dv, lddv);
}

/// dq. One block: 32 queries of a head.
extern "C" __global__ void __launch_bounds__(128, 4) attention_queries_f32_64(
    const float* __restrict__ q, int ldq, const float* __restrict__ k, int ldk, const float* __restrict__ v, int ldv,
    const float* __restrict__ dout, int lddout, const float* __restrict__ row_statistics, int tokens,
    const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim,
    float scale, int causal, const float* __restrict__ head_mask, const int* __restrict__ dropout_key, unsigned site,
    unsigned long long threshold, float dropout_scale, float* __restrict__ dq, int lddq) {
    scalar::backward<64, false>(q, ldq, dout, lddout, k, ldk, v, ldv, row_statistics, tokens, cu_seqlens, sequences, heads,
        head_dim, scale, causal, head_mask, DropoutArguments{dropout_key, site, threshold, dropout_scale}, dq, lddq,
        nullptr, 0);
}
