// Products of f16 on tensor cores, summed in f32, by tiles of 64×64. What they compute, and how: gemm.cuh.
// A file for each tile: a run compiles those it uses.
#include "gemm.cuh"

/// f16 by tiles of 64×64, four warps of 32×32: small products.
extern "C" __global__ void __launch_bounds__(128, 4) gemm_f16_64x64(
    const f16* __restrict__ a, int lda, const f16* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_mma<Tile<f16, 64, 64, 32, 32, 3, 128>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}
