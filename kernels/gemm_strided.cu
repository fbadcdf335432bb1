// Products of operands of any alignment and layout; see gemm.cuh.
#include "gemm.cuh"

/// bf16 operands of any alignment and layout, summed in f32 on the CUDA cores. Grid: tiles of 64×64, 256 threads.
extern "C" __global__ void __launch_bounds__(256) gemm_strided_bf16(
    const bf16* __restrict__ a, int a_row, int a_k, const bf16* __restrict__ b, int b_k, int b_column, int m, int n, int k,
    const float* inner_mask, unsigned char* c, int ldc, unsigned char* preactivation, int ld_preactivation,
    const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask, const int* key,
    unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_strided(a, a_row, a_k, b, b_k, b_column, k, inner_mask, EPILOGUE);
}

/// f16 operands of any alignment and layout, summed in f32 on the CUDA cores. Grid: tiles of 64×64, 256 threads.
extern "C" __global__ void __launch_bounds__(256) gemm_strided_f16(
    const f16* __restrict__ a, int a_row, int a_k, const f16* __restrict__ b, int b_k, int b_column, int m, int n, int k,
    const float* inner_mask, unsigned char* c, int ldc, unsigned char* preactivation, int ld_preactivation,
    const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask, const int* key,
    unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_strided(a, a_row, a_k, b, b_k, b_column, k, inner_mask, EPILOGUE);
}

/// f32 operands of any alignment and layout, summed in f32 on the CUDA cores. Grid: tiles of 64×64, 256 threads.
extern "C" __global__ void __launch_bounds__(256) gemm_strided_f32(
    const float* __restrict__ a, int a_row, int a_k, const float* __restrict__ b, int b_k, int b_column, int m, int n, int k,
    const float* inner_mask, unsigned char* c, int ldc, unsigned char* preactivation, int ld_preactivation,
    const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask, const int* key,
    unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_strided(a, a_row, a_k, b, b_k, b_column, k, inner_mask, EPILOGUE);
}
