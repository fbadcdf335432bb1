// out[j] = Σ_i x[i, j] (+ out[j]): gradients of biases.
//
// A block sums a strip of 128 columns over `rows_per_block` rows: warp w takes rows w, w + 8, …, a lane four neighbouring
// columns, and the eight sums are added in order through shared memory. With several blocks down a strip their sums,
// a matrix [blocks, cols], go through the same kernel again; the order of all additions depends on the shape alone.
// Error: γ_q·Σ|x| with q = rows_per_block/8 + 8 each time. Floor: the bytes of x once.
#include "gemm_epilogue.cuh"

template <typename T>
__device__ __forceinline__ void column_sums(const T* x, int ld, int rows, int cols, int rows_per_block, float* out,
                                            int accumulate, int vectors) {
    __shared__ float sums[8][128];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * 128 + lane * 4;
    const int first = blockIdx.y * rows_per_block, last = min(rows, first + rows_per_block);
    float sum[4] = {};
    if (column < cols) {
#pragma unroll 4
        for (int row = first + warp; row < last; row += 8) {
            float next[4];
            const T* from = x + static_cast<long long>(row) * ld + column;
            if (vectors && column + 4 <= cols) {
                load_quad(from, next);
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) next[j] = column + j < cols ? to_f32(from[j]) : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[j] += next[j];
        }
    }
    store_vector(&sums[warp][lane * 4], sum);
    __syncthreads();
    const int mine = blockIdx.x * 128 + threadIdx.x;
    if (threadIdx.x >= 128 || mine >= cols) return;
    float total = sums[0][threadIdx.x];
#pragma unroll
    for (int i = 1; i < 8; ++i) total += sums[i][threadIdx.x];
    float* to = out + static_cast<long long>(blockIdx.y) * cols + mine;
    *to = accumulate ? *to + total : total;
}

/// Sums of columns of f32. Grid: [strips of 128 columns, parts of `rows_per_block` rows], 256 threads. `out`: [parts, cols].
extern "C" __global__ void __launch_bounds__(256) column_sums_f32(const float* __restrict__ x, int ld, int rows, int cols,
                                                                  int rows_per_block, float* out, int accumulate, int vectors) {
    column_sums(x, ld, rows, cols, rows_per_block, out, accumulate, vectors);
}

/// The same of bf16.
extern "C" __global__ void __launch_bounds__(256) column_sums_bf16(const bf16* __restrict__ x, int ld, int rows, int cols,
                                                                   int rows_per_block, float* out, int accumulate, int vectors) {
    column_sums(x, ld, rows, cols, rows_per_block, out, accumulate, vectors);
}
