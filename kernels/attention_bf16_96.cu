// Attention in bf16 on tensor cores, heads of up to 96 elements: see attention_bf16.cuh.
#include "attention_bf16.cuh"

/// Context and log-sum-exp. One block: 64 queries of a head.
extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_bf16_96(
    const bf16* __restrict__ q, int ldq, const bf16* __restrict__ k, int ldk, const bf16* __restrict__ v, int ldv,
    const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim, float scale, int causal, int vector,
    const float* __restrict__ head_mask, const int* __restrict__ dropout_key, unsigned site,
    unsigned long long threshold, float dropout_scale, bf16* __restrict__ out, int ldout, float* __restrict__ lse,
    int ldlse, bf16* __restrict__ unmasked, int ldunmasked) {
    tensor::forward<96, 1>(q, ldq, k, ldk, v, ldv, cu_seqlens, sequences, heads, head_dim, scale, causal, vector,
        head_mask, DropoutArguments{dropout_key, site, threshold, dropout_scale}, out, ldout, lse, ldlse, unmasked,
        ldunmasked);
}

/// dk and dv. One block: 64 keys of a head.
extern "C" __global__ void __launch_bounds__(128, 2) attention_keys_bf16_96(
    const bf16* __restrict__ q, int ldq, const bf16* __restrict__ k, int ldk, const bf16* __restrict__ v, int ldv,
    const bf16* __restrict__ dout, int lddout, const float* __restrict__ row_statistics, int tokens,
    const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim,
    float scale, int causal, int vector, const float* __restrict__ head_mask, const int* __restrict__ dropout_key,
    unsigned site, unsigned long long threshold, float dropout_scale, bf16* __restrict__ dk, int lddk,
    bf16* __restrict__ dv, int lddv) {
    tensor::backward<96, true>(k, ldk, v, ldv, q, ldq, dout, lddout, row_statistics, tokens, cu_seqlens, sequences, heads,
        head_dim, scale, causal, vector, head_mask, DropoutArguments{dropout_key, site, threshold, dropout_scale}, dk,
        lddk, dv, lddv);
}

/// dq. One block: 64 queries of a head.
extern "C" __global__ void __launch_bounds__(128, 2) attention_queries_bf16_96(
    const bf16* __restrict__ q, int ldq, const bf16* __restrict__ k, int ldk, const bf16* __restrict__ v, int ldv,
    const bf16* __restrict__ dout, int lddout, const float* __restrict__ row_statistics, int tokens,
    const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim,
    float scale, int causal, int vector, const float* __restrict__ head_mask, const int* __restrict__ dropout_key,
    unsigned site, unsigned long long threshold, float dropout_scale, bf16* __restrict__ dq, int lddq) {
    tensor::backward<96, false>(q, ldq, dout, lddout, k, ldk, v, ldv, row_statistics, tokens, cu_seqlens, sequences, heads,
        head_dim, scale, causal, vector, head_mask, DropoutArguments{dropout_key, site, threshold, dropout_scale}, dq,
        lddq, nullptr, 0);
}
