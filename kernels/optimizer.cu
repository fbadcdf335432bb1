// Gradient norm, clip factor and AdamW over the flat parameter block: the semantics of ops/optimizer.
//
//   squares            one f64 partial sum of g^2 for each piece of a trained range
//   clip_factor        [norm, factor] from the partial sums, one block
//   adamw_scalars      the scalars of a step, in f64, rounded once
//   adamw              one pass over p, g, m, v of every trained piece, optionally writing a bf16 copy of p
//
// A piece is at most 8,192 elements of one trained parameter; its start (a multiple of 64) and length (a multiple of 8)
// stand in device memory, matrices before vectors, so that a block finds its work by its number and knows from it alone
// whether the weights decay. Frozen parameters have no pieces. Pieces are the fixed blocks over which ops/optimizer
// promises its f64 sums: squares of f32 are exact in f64, and partial sums are added in an order fixed by the table.
//
// Floor: memory. The norm reads 4 bytes an element; AdamW reads p, g, m, v and writes p, m, v: 28 bytes, 30 with the copy.
#include "prelude.cuh"

#define QUAD 4

/// Sum of squares of piece `blockIdx.x` of `gradients`, to `sums[blockIdx.x]`.
extern "C" __global__ void __launch_bounds__(256)
squares(const float* gradients, const unsigned long long* starts, const unsigned* lengths, double* sums) {
    __shared__ double partials[256 / WARP];
    const float* piece = gradients + starts[blockIdx.x];
    const u32 length = lengths[blockIdx.x];
    double sum = 0.0;
    for (u32 i = QUAD * threadIdx.x; i < length; i += QUAD * 256) {
        float quad[QUAD];
        load_vector(piece + i, quad);
#pragma unroll
        for (int j = 0; j < QUAD; ++j) sum += static_cast<double>(quad[j]) * static_cast<double>(quad[j]);
    }
    sum = block_reduce<256>(sum, Sum(), partials);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// `norm[0]` = root of the sum of `sums[0..pieces]`, `norm[1]` = min(1, max_norm / (norm[0] + 1e-6)). One block.
extern "C" __global__ void __launch_bounds__(1024)
clip_factor(const double* sums, int pieces, float max_norm, float* norm) {
    __shared__ double partials[1024 / WARP];
    double sum = 0.0;
    for (int i = threadIdx.x; i < pieces; i += 1024) sum += sums[i];
    sum = block_reduce<1024>(sum, Sum(), partials);
    if (threadIdx.x != 0) return;
    const double total = sqrt(sum);
    norm[0] = static_cast<float>(total);
    norm[1] = static_cast<float>(fmin(static_cast<double>(max_norm) / (total + 1e-6), 1.0));
}

// Places in the array of scalars; each formula of ops/optimizer in the one shape both forms share:
// p <- (p * decay_before - rate * m / (sqrt(v) * root + epsilon)) * decay_after.
enum Scalar { BETA1, BETA2, REST1, REST2, EPSILON, CLIP, DECAY_BEFORE, DECAY_AFTER, RATE, ROOT };

/// The scalars of one step from `hyper [7]` and `norm [2]` to `scalars [10]`; `hugging_face` selects the form. One thread.
extern "C" __global__ void __launch_bounds__(32)
adamw_scalars(const float* hyper, const float* norm, int hugging_face, float* scalars) {
    if (threadIdx.x != 0) return;
    const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], weight_decay = hyper[4];
    const double correction1 = hyper[5], correction2 = hyper[6];
    // No fused multiply-add: the host rounds the product too.
    const double decay = __dsub_rn(1.0, __dmul_rn(lr, weight_decay));
    scalars[BETA1] = hyper[1];
    scalars[BETA2] = hyper[2];
    scalars[REST1] = static_cast<float>(1.0 - beta1);
    scalars[REST2] = static_cast<float>(1.0 - beta2);
    scalars[EPSILON] = hyper[3];
    scalars[CLIP] = norm[1];
    scalars[DECAY_BEFORE] = hugging_face ? 1.0f : static_cast<float>(decay);
    scalars[DECAY_AFTER] = hugging_face ? static_cast<float>(decay) : 1.0f;
    scalars[RATE] = static_cast<float>(hugging_face ? lr * sqrt(correction2) / correction1 : lr / correction1);
    scalars[ROOT] = hugging_face ? 1.0f : static_cast<float>(1.0 / sqrt(correction2));
}

/// One AdamW step on piece `blockIdx.x` of the block: `parameters`, `gradients`, `first`, `second` and the optional `copy`
/// share its layout. Pieces below `decaying` decay. `keep` (null for none) is a bit set over the block, bit i mod 64 of
/// word i / 64: where it has a 0, the parameter and both moments become 0.
extern "C" __global__ void __launch_bounds__(256)
adamw(float* parameters, const float* gradients, float* first, float* second, bf16* copy, const unsigned long long* keep,
      const unsigned long long* starts, const unsigned* lengths, unsigned decaying, const float* scalars) {
    const u64 start = starts[blockIdx.x];
    const u32 length = lengths[blockIdx.x];
    const bool decays = blockIdx.x < decaying;
    const float beta1 = scalars[BETA1], beta2 = scalars[BETA2], rest1 = scalars[REST1], rest2 = scalars[REST2];
    const float epsilon = scalars[EPSILON], clip = scalars[CLIP], rate = scalars[RATE], root = scalars[ROOT];
    const float before = decays ? scalars[DECAY_BEFORE] : 1.0f, after = decays ? scalars[DECAY_AFTER] : 1.0f;
    for (u32 i = QUAD * threadIdx.x; i < length; i += QUAD * 256) {
        const u64 at = start + i;
        float p[QUAD], g[QUAD], m[QUAD], v[QUAD];
        load_vector(parameters + at, p);
        load_vector(gradients + at, g);
        load_vector(first + at, m);
        load_vector(second + at, v);
        const u32 kept = keep == nullptr ? 15 : static_cast<u32>(keep[at / 64] >> (at % 64));
#pragma unroll
        for (int j = 0; j < QUAD; ++j) {
            const float clipped = g[j] * clip;
            m[j] = fmaf(beta1, m[j], rest1 * clipped);
            v[j] = fmaf(beta2, v[j], rest2 * clipped * clipped);
            const float update = rate * m[j] / fmaf(sqrtf(v[j]), root, epsilon);
            p[j] = fmaf(p[j], before, -update) * after;
            if ((kept >> j & 1) == 0) p[j] = m[j] = v[j] = 0.0f;
        }
        store_vector(parameters + at, p);
        store_vector(first + at, m);
        store_vector(second + at, v);
        if (copy != nullptr) *reinterpret_cast<uint2*>(copy + at) = make_uint2(pack_bf16(p[0], p[1]), pack_bf16(p[2], p[3]));
    }
}
