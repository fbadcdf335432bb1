// Rounds the parameter block to bf16: the copy that products read (`Precision::Bf16`), while AdamW keeps the f32 block.
//
// One thread converts 8 consecutive elements: two 16-byte loads, one 16-byte store. Blocks are padded to 64 elements
// (SLOT_ALIGNMENT) and 256-byte aligned, so there is no remainder. Floor: 6 bytes an element.
#include "prelude.cuh"

/// `y[i] = bf16(x[i])`, rounded to nearest, ties to even; `octets = len / 8`, both 16-byte aligned.
extern "C" __global__ void __launch_bounds__(256) convert_bf16(const float* __restrict__ x, bf16* y, int octets) {
    const int octet = blockIdx.x * 256 + threadIdx.x;
    if (octet >= octets) return;
    float low[4], high[4];
    load_vector(x + static_cast<size_t>(octet) * 8, low);
    load_vector(x + static_cast<size_t>(octet) * 8 + 4, high);
    const float all[8] = {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]};
    store_vector(y + static_cast<size_t>(octet) * 8, all);
}
