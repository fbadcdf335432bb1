// y = dropout(bias) + residual: a sublayer of which only the output bias is left (src/ops/bias/mod.rs).
//
// bias: [cols] f32; residual, y: [rows, cols], f32 or bf16. One 16-byte piece a thread.
//
// Floor, bytes an element of size s: 2s.
#include "philox.cuh"
#include "rows.cuh"

#define THREADS 256

template <typename T>
__device__ __forceinline__ void bias_residual(const float* bias, const int* key, u32 site, u64 threshold, float scale,
                                              const T* residual, int ldr, T* y, int ldy, int rows, int cols) {
    constexpr int count = Lanes<T>::count;
    const Place<T> at(rows, cols);
    if (!at.inside) return;
    float values[count], base[count];
    load_columns(row_of(residual, at.row, ldr), at.column, cols, base);
    load_parameters(bias, at.column, cols, values);
    dropout_of(key, site, threshold, scale).apply(at.row, at.column, values);
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] += base[j];
    store_columns(row_of(y, at.row, ldy), at.column, cols, values);
}

/// `y = dropout(bias) + residual`. One 16-byte piece a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    bias_residual_f32(const float* __restrict__ bias, const int* __restrict__ key, unsigned site,
                      unsigned long long threshold, float scale, const float* __restrict__ residual, int ldr,
                      float* __restrict__ y, int ldy, int rows, int cols) {
    bias_residual(bias, key, site, threshold, scale, residual, ldr, y, ldy, rows, cols);
}

/// As `bias_residual_f32`, of bf16 matrices.
extern "C" __global__ void __launch_bounds__(THREADS)
    bias_residual_bf16(const float* __restrict__ bias, const int* __restrict__ key, unsigned site,
                       unsigned long long threshold, float scale, const bf16* __restrict__ residual, int ldr,
                       bf16* __restrict__ y, int ldy, int rows, int cols) {
    bias_residual(bias, key, site, threshold, scale, residual, ldr, y, ldy, rows, cols);
}
