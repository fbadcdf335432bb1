// Weight masks of unstructured pruning: the semantics of ops/weightmask.
//
//   mask_weights           W' = W where a bit is 1, else 0
//   apply_hard_concrete    W' = W times the mask of L0 regularisation
//   score_gradients        gradients of scores and weights from those of W'
//   sigmoid_sums, mean     mean of sigmoid((S + shift) / temperature)
//
// A bit decides, bit i mod 64 of word i / 64; kept weights are copied, the others become 0. Floor: memory, one read and one
// write of the weights (and a write of their bf16 copy), 20 bytes a weight for the gradients; the mask is a 32nd of that.
#include "philox.cuh"
#include "prelude.cuh"

#define QUAD 4

/// `out[i]` (or null) and `copy[i]` (or null) = `keep` bit i ? `weights[i]` : 0 for `length` weights; `out` may be `weights`.
/// A thread takes four; `vector` says that all are 16-byte aligned.
extern "C" __global__ void __launch_bounds__(256)
mask_weights(const float* weights, const unsigned long long* keep, float* out, bf16* copy, unsigned long long length, int vector) {
    const u64 at = QUAD * (static_cast<u64>(blockIdx.x) * 256 + threadIdx.x);
    if (at >= length) return;
    const u32 kept = static_cast<u32>(keep[at / 64] >> (at % 64));
    if (vector && at + QUAD <= length) {
        float quad[QUAD];
        load_vector(weights + at, quad);
#pragma unroll
        for (int i = 0; i < QUAD; ++i) {
            if ((kept >> i & 1) == 0) quad[i] = 0.0f;
        }
        if (out != nullptr) store_vector(out + at, quad);
        if (copy != nullptr) *reinterpret_cast<uint2*>(copy + at) = make_uint2(pack_bf16(quad[0], quad[1]), pack_bf16(quad[2], quad[3]));
        return;
    }
    for (int i = 0; i < QUAD && at + i < length; ++i) {
        const float value = (kept >> i & 1) != 0 ? weights[at + i] : 0.0f;
        if (out != nullptr) out[at + i] = value;
        if (copy != nullptr) copy[at + i] = from_f32<bf16>(value);
    }
}

// The mask of L0 regularisation: what a score becomes.
struct HardConcrete {
    float mask, slope;
};

// sigmoid(x); 0 at minus infinity.
__device__ __forceinline__ float sigmoid(float x) {
    const float t = expf(-fabsf(x));
    return x < 0.0f ? t / (1.0f + t) : 1.0f / (1.0f + t);
}

// Its derivative, without cancellation.
__device__ __forceinline__ float sigmoid_slope(float x) {
    const float t = expf(-fabsf(x));
    return t / ((1.0f + t) * (1.0f + t));
}

// With noise: sigma = 1 / (1 + q), q = y sqrt(y), y = (1 - u) / u exp(-score), because the temperature is 2/3.
__device__ __forceinline__ HardConcrete hard_concrete(float score, float uniform, bool noisy) {
    float s, slope;
    if (noisy) {
        const float y = (1.0f - uniform) / uniform * expf(-score);
        const float q = y * sqrtf(y);
        s = 1.0f / (1.0f + q);
        slope = 1.5f * s * (q < 1.0f ? q * s : 1.0f - s);
    } else {
        s = sigmoid(score);
        slope = sigmoid_slope(score);
    }
    const float low = -0.1f, wide = 1.1f - low;
    const float stretched = fmaf(s, wide, low);
    const bool inside = stretched >= 0.0f && stretched <= 1.0f;
    return {fminf(fmaxf(stretched, 0.0f), 1.0f), inside ? wide * slope : 0.0f};
}

// Noise of elements 4 group .. 4 group + 4 of the masked stretch; `key` is [seed low, seed high, draw].
__device__ __forceinline__ void fill_uniforms(const int* key, u64 group, float (&out)[QUAD]) {
    const uint4 counter = make_uint4(static_cast<u32>(group), static_cast<u32>(group >> 32), 0xffffffffu, key[2]);
    const uint4 words = philox(counter, make_uint2(key[0], key[1]));
    const u32 lanes[QUAD] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < QUAD; ++i) {
        const float uniform = static_cast<float>(lanes[i]) * (1.0f / 4294967296.0f);
        out[i] = fminf(fmaxf(uniform, 1e-4f), 1.0f - 1e-4f);
    }
}

/// `out[i]` and `copy[i]` (or null) = `weights[i]` times the hard concrete of `scores[i]`, with noise under `key` or without
/// (null). Element i is number `first` + i of the masked stretch; `length` and `first` are multiples of 4, all is 16-byte
/// aligned.
extern "C" __global__ void __launch_bounds__(256)
apply_hard_concrete(const float* weights, const float* scores, const int* key, unsigned long long first, float* out, bf16* copy,
                    unsigned long long length) {
    const u64 at = QUAD * (static_cast<u64>(blockIdx.x) * 256 + threadIdx.x);
    if (at >= length) return;
    float w[QUAD], s[QUAD], u[QUAD] = {};
    load_vector(weights + at, w);
    load_vector(scores + at, s);
    if (key != nullptr) fill_uniforms(key, (first + at) / QUAD, u);
#pragma unroll
    for (int i = 0; i < QUAD; ++i) w[i] *= hard_concrete(s[i], u[i], key != nullptr).mask;
    store_vector(out + at, w);
    if (copy != nullptr) *reinterpret_cast<uint2*>(copy + at) = make_uint2(pack_bf16(w[0], w[1]), pack_bf16(w[2], w[3]));
}

/// From `gradients` with respect to the masked weights: with respect to the scores, to `of_scores` (or null), which may be
/// `gradients` itself, and with respect to the weights, in place, where `trained`. `keep` has the mask's bits, or is null for
/// the hard concrete under `key` (null without noise). `penalty[0]` times `share` weighs the slope of the sigmoid at score +
/// `shift`. Numbering and alignment as in apply_hard_concrete.
extern "C" __global__ void __launch_bounds__(256)
score_gradients(const float* weights, const float* scores, const unsigned long long* keep, const int* key,
                unsigned long long first, const float* penalty, float share, float shift, float* gradients, float* of_scores,
                int trained, unsigned long long length) {
    const u64 at = QUAD * (static_cast<u64>(blockIdx.x) * 256 + threadIdx.x);
    if (at >= length) return;
    const float factor = penalty[0] * share;
    float g[QUAD], out[QUAD], mask[QUAD], slope[QUAD] = {1.0f, 1.0f, 1.0f, 1.0f};
    load_vector(gradients + at, g);
    if (keep != nullptr) {
        const u32 kept = static_cast<u32>(keep[at / 64] >> (at % 64));
#pragma unroll
        for (int i = 0; i < QUAD; ++i) mask[i] = static_cast<float>(kept >> i & 1);
    }
    if (of_scores != nullptr) {
        float w[QUAD], s[QUAD];
        load_vector(weights + at, w);
        load_vector(scores + at, s);
        if (keep == nullptr) {
            float u[QUAD] = {};
            if (key != nullptr) fill_uniforms(key, (first + at) / QUAD, u);
#pragma unroll
            for (int i = 0; i < QUAD; ++i) {
                const HardConcrete found = hard_concrete(s[i], u[i], key != nullptr);
                mask[i] = found.mask;
                slope[i] = found.slope;
            }
        }
#pragma unroll
        for (int i = 0; i < QUAD; ++i) {
            const float product = keep != nullptr ? w[i] : w[i] * slope[i];
            out[i] = fmaf(product, g[i], factor == 0.0f ? 0.0f : factor * sigmoid_slope(s[i] + shift));
        }
        store_vector(of_scores + at, out);
    }
    if (trained) {
#pragma unroll
        for (int i = 0; i < QUAD; ++i) g[i] = mask[i] == 0.0f ? 0.0f : g[i] * mask[i];
        store_vector(gradients + at, g);
    }
}

#define RUN 8192

/// `sums[blockIdx.x]`: sum of sigmoid((score + shift) * rate) over piece `blockIdx.x`, of 8,192 scores.
extern "C" __global__ void __launch_bounds__(256)
sigmoid_sums(const float* scores, unsigned long long length, float shift, float rate, double* sums) {
    __shared__ double partials[256 / WARP];
    double sum = 0.0;
    for (int i = threadIdx.x; i < RUN; i += 256) {
        const u64 at = static_cast<u64>(blockIdx.x) * RUN + i;
        if (at < length) sum += static_cast<double>(sigmoid((scores[at] + shift) * rate));
    }
    sum = block_reduce<256>(sum, Sum(), partials);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// `out[0]` = sum of `sums[0..count]` / `elements`. One block.
extern "C" __global__ void __launch_bounds__(256)
mean(const double* sums, int count, double elements, float* out) {
    __shared__ double partials[256 / WARP];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += 256) sum += sums[i];
    sum = block_reduce<256>(sum, Sum(), partials);
    if (threadIdx.x == 0) out[0] = static_cast<float>(sum / elements);
}
