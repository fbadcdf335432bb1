// Products of bf16 on tensor cores, summed in f32. What they compute, and how: gemm.cuh. One file a type, so that a run compiles what it uses.
#include "gemm.cuh"

/// bf16 by tiles of 128×256, eight warps of 64×64: the fewest bytes a product.
extern "C" __global__ void __launch_bounds__(256, 1) gemm_bf16_128x256(
    const bf16* __restrict__ a, int lda, const bf16* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_mma<bf16, Tile<128, 256, 64, 64, 4>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}

/// bf16 by tiles of 128×192, eight warps of 64×48: hidden sizes that are multiples of 192, 768 among them, on 128 multiprocessors and more.
extern "C" __global__ void __launch_bounds__(256, 1) gemm_bf16_128x192(
    const bf16* __restrict__ a, int lda, const bf16* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_mma<bf16, Tile<128, 192, 64, 48, 4>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}

/// bf16 by tiles of 128×128, four warps of 64×64, two blocks a multiprocessor.
extern "C" __global__ void __launch_bounds__(128, 2) gemm_bf16_128x128(
    const bf16* __restrict__ a, int lda, const bf16* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_mma<bf16, Tile<128, 128, 64, 64, 3>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}

/// bf16 by tiles of 128×64, four warps of 64×32.
extern "C" __global__ void __launch_bounds__(128, 3) gemm_bf16_128x64(
    const bf16* __restrict__ a, int lda, const bf16* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_mma<bf16, Tile<128, 64, 64, 32, 4>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}

/// bf16 by tiles of 64×64, four warps of 32×32: small products.
extern "C" __global__ void __launch_bounds__(128, 4) gemm_bf16_64x64(
    const bf16* __restrict__ a, int lda, const bf16* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_mma<bf16, Tile<64, 64, 32, 32, 4>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}

/// bf16 operands of any alignment and layout, summed in f32 on the CUDA cores. Grid: tiles of 64×64, 256 threads.
extern "C" __global__ void __launch_bounds__(256) gemm_strided_bf16(
    const bf16* __restrict__ a, int a_row, int a_k, const bf16* __restrict__ b, int b_k, int b_column, int m, int n, int k,
    const float* inner_mask, unsigned char* c, int ldc, unsigned char* preactivation, int ld_preactivation,
    const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask, const int* key,
    unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_strided(a, a_row, a_k, b, b_k, b_column, k, inner_mask, EPILOGUE);
}
