// Products of f16 on tensor cores, summed in f32, by tiles of 128×192. What they compute, and how: gemm.cuh.
// A file for each tile: a run compiles those it uses.
#include "gemm.cuh"

/// f16 by tiles of 128×192, eight warps of 64×48: hidden sizes that are multiples of 192, 768 among
/// them, on 128 multiprocessors and more. 160 KiB of shared memory.
extern "C" __global__ void __launch_bounds__(256, 1) gemm_f16_128x192(
    const f16* __restrict__ a, int lda, const f16* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_mma<Tile<f16, 128, 192, 64, 48, 4, 128>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}
