// Dropout of a matrix; also its backward, with dy for x (definition: src/ops/dropout/mod.rs).
//
// x, y: [rows, cols], f32 or bf16. One 16-byte piece a thread: one Philox for each of its groups of four columns.
//
// Floor, bytes an element of size s: 2s; about 17 integer instructions.
#include "philox.cuh"
#include "rows.cuh"

#define THREADS 256

template <typename T>
__device__ __forceinline__ void dropout(const T* x, int ldx, T* y, int ldy, const int* key, u32 site, u64 threshold, float scale,
                                        int rows, int cols) {
    const Place<T> at(rows, cols);
    if (!at.inside) return;
    float values[Lanes<T>::count];
    load_columns(row_of(x, at.row, ldx), at.column, cols, values);
    dropout_of(key, site, threshold, scale).apply(at.row, at.column, values);
    store_columns(row_of(y, at.row, ldy), at.column, cols, values);
}

/// `y = dropout(x)`. One 16-byte piece a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    dropout_f32(const float* __restrict__ x, int ldx, float* __restrict__ y, int ldy, const int* __restrict__ key,
                unsigned site, unsigned long long threshold, float scale, int rows, int cols) {
    dropout(x, ldx, y, ldy, key, site, threshold, scale, rows, cols);
}

/// As `dropout_f32`, of bf16 matrices.
extern "C" __global__ void __launch_bounds__(THREADS)
    dropout_bf16(const bf16* __restrict__ x, int ldx, bf16* __restrict__ y, int ldy, const int* __restrict__ key,
                 unsigned site, unsigned long long threshold, float scale, int rows, int cols) {
    dropout(x, ldx, y, ldy, key, site, threshold, scale, rows, cols);
}
