// Packed masks applied to weights: the semantics of ops/weightmask.
//
// Weights that are kept are copied, the others become 0; a bit decides, bit i mod 64 of word i / 64. Floor: memory, one
// read and one write of the weights (and a write of their bf16 copy); the mask is a 32nd of that.
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
