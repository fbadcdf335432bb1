// Mean absolute value of groups of columns over all rows (src/ops/reduce/mod.rs).
//
// x: [rows, cols], f32 or bf16; out: [cols / group] f32. First, blocks of 8 warps sum |x| of 32 pieces of columns over a run
// of rows, each warp every 8th row, the warps in order; then a block for each group adds what belongs to it. The
// split into runs depends on `rows` alone, so every device gives the same bits.
//
// Moments of columns, Σ x, Σ |x|, Σ x²: the same walk with three f64 sums a column; a thread then adds a column's runs.
//
// Products of columns, Σ x·y: the same walk over two matrices with an f64 sum a column.
//
// Floor: one read of each matrix.
#include "rows.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)
#define GROUP_THREADS 128

template <typename T>
__device__ __forceinline__ void absolute_sums(const T* x, int ldx, float* partials, int rows_a_block, int rows, int cols) {
    constexpr int count = Lanes<T>::count, panel = WARP * count;
    __shared__ float4 shared[WARPS * panel / 4];
    float* sums = reinterpret_cast<float*>(shared);
    const int warp = threadIdx.x / WARP, first = blockIdx.y * panel, column = first + threadIdx.x % WARP * count;
    const int start = blockIdx.x * rows_a_block, end = min(start + rows_a_block, rows);
    float sum[count] = {};
    if (column < cols) {
#pragma unroll 4
        for (int row = start + warp; row < end; row += WARPS) {
            float values[count];
            load_columns(row_of(x, row, ldx), column, cols, values);
#pragma unroll
            for (int j = 0; j < count; ++j) sum[j] += fabsf(values[j]);
        }
    }
    store_parameters(sums + warp * panel, threadIdx.x % WARP * count, panel, sum);
    __syncthreads();
    const int mine = threadIdx.x;
    if (mine >= panel || first + mine >= cols) return;
    float total = sums[mine];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) total += sums[i * panel + mine];
    row_of(partials, blockIdx.x, cols)[first + mine] = total;
}

/// `partials [blocks, cols]`: sums of |x| over each block's `rows_a_block` rows. Blocks: runs of rows × panels of 128 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    absolute_sums_f32(const float* __restrict__ x, int ldx, float* __restrict__ partials, int rows_a_block, int rows, int cols) {
    absolute_sums(x, ldx, partials, rows_a_block, rows, cols);
}

/// As `absolute_sums_f32`, of a bf16 matrix; panels of 256 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    absolute_sums_bf16(const bf16* __restrict__ x, int ldx, float* __restrict__ partials, int rows_a_block, int rows, int cols) {
    absolute_sums(x, ldx, partials, rows_a_block, rows, cols);
}

/// `out[g]` = sum of `partials [blocks, cols]` over all blocks and the `group` columns of group g, divided by `terms`. A
/// block of 128 threads a group.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    group_means_f32(const float* __restrict__ partials, int blocks, int cols, int group, float terms, float* __restrict__ out) {
    __shared__ float shared[GROUP_THREADS / WARP];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < blocks * group; i += GROUP_THREADS) {
        sum += row_of(partials, i / group, cols)[blockIdx.x * group + i % group];
    }
    sum = block_reduce<GROUP_THREADS>(sum, Sum(), shared);
    if (threadIdx.x == 0) out[blockIdx.x] = sum / terms;
}

// Σ x, Σ |x|, Σ x² of a panel of columns over a run of rows. The warps' sums meet in shared memory, one moment at a time.
template <typename T>
__device__ __forceinline__ void moment_sums(const T* x, int ldx, double* partials, int rows_a_block, int rows, int cols) {
    constexpr int count = Lanes<T>::count, panel = WARP * count;
    __shared__ double sums[WARPS * panel];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, first = blockIdx.y * panel, column = first + lane * count;
    const int start = blockIdx.x * rows_a_block, end = min(start + rows_a_block, rows);
    double sum[3][count] = {};
    if (column < cols) {
#pragma unroll 2
        for (int row = start + warp; row < end; row += WARPS) {
            float values[count];
            load_columns(row_of(x, row, ldx), column, cols, values);
#pragma unroll
            for (int j = 0; j < count; ++j) {
                const double value = values[j];
                sum[0][j] += value;
                sum[1][j] += fabs(value);
                sum[2][j] = fma(value, value, sum[2][j]);
            }
        }
    }
    const int mine = threadIdx.x;
#pragma unroll
    for (int moment = 0; moment < 3; ++moment) {
        __syncthreads();
        // Column j of every lane side by side: neighbouring lanes write neighbouring words.
#pragma unroll
        for (int j = 0; j < count; ++j) sums[warp * panel + j * WARP + lane] = sum[moment][j];
        __syncthreads();
        if (mine >= panel || first + mine >= cols) continue;
        const int at = mine % count * WARP + mine / count;
        double total = sums[at];
#pragma unroll
        for (int i = 1; i < WARPS; ++i) total += sums[i * panel + at];
        row_of(partials, 3 * blockIdx.x + moment, cols)[first + mine] = total;
    }
}

/// `partials [blocks, 3, cols]`: sums of x, |x| and x² over each block's `rows_a_block` rows. Blocks: runs of rows × panels
/// of 128 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    moment_sums_f32(const float* __restrict__ x, int ldx, double* __restrict__ partials, int rows_a_block, int rows, int cols) {
    moment_sums(x, ldx, partials, rows_a_block, rows, cols);
}

/// As `moment_sums_f32`, of a bf16 matrix; panels of 256 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    moment_sums_bf16(const bf16* __restrict__ x, int ldx, double* __restrict__ partials, int rows_a_block, int rows, int cols) {
    moment_sums(x, ldx, partials, rows_a_block, rows, cols);
}

/// `out [3, cols]` = sums of `partials [blocks, 3, cols]` over the blocks, in order. A thread an element.
extern "C" __global__ void __launch_bounds__(THREADS)
    moments_f32(const double* __restrict__ partials, int blocks, int cols, float* __restrict__ out, int ld_out) {
    const int index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= 3 * cols) return;
    double sum = 0.0;
    for (int block = 0; block < blocks; ++block) sum += partials[static_cast<long long>(block) * 3 * cols + index];
    row_of(out, index / cols, ld_out)[index % cols] = static_cast<float>(sum);
}

// Σ x·y of a panel of columns over a run of rows; the warps' sums meet in shared memory and are added in order.
template <typename T>
__device__ __forceinline__ void product_sums(const T* x, int ldx, const T* y, int ldy, double* partials, int rows_a_block,
                                             int rows, int cols) {
    constexpr int count = Lanes<T>::count, panel = WARP * count;
    __shared__ double sums[WARPS * panel];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, first = blockIdx.y * panel, column = first + lane * count;
    const int start = blockIdx.x * rows_a_block, end = min(start + rows_a_block, rows);
    double sum[count] = {};
    if (column < cols) {
#pragma unroll 2
        for (int row = start + warp; row < end; row += WARPS) {
            float xs[count], ys[count];
            load_columns(row_of(x, row, ldx), column, cols, xs);
            load_columns(row_of(y, row, ldy), column, cols, ys);
#pragma unroll
            for (int j = 0; j < count; ++j) sum[j] = fma(static_cast<double>(xs[j]), static_cast<double>(ys[j]), sum[j]);
        }
    }
    // Column j of every lane side by side: neighbouring lanes write neighbouring words.
#pragma unroll
    for (int j = 0; j < count; ++j) sums[warp * panel + j * WARP + lane] = sum[j];
    __syncthreads();
    const int mine = threadIdx.x;
    if (mine >= panel || first + mine >= cols) return;
    const int at = mine % count * WARP + mine / count;
    double total = sums[at];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) total += sums[i * panel + at];
    row_of(partials, blockIdx.x, cols)[first + mine] = total;
}

/// `partials [blocks, cols]`: sums of x·y over each block's `rows_a_block` rows. Blocks: runs of rows × panels of 128 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    product_sums_f32(const float* __restrict__ x, int ldx, const float* __restrict__ y, int ldy, double* __restrict__ partials,
                     int rows_a_block, int rows, int cols) {
    product_sums(x, ldx, y, ldy, partials, rows_a_block, rows, cols);
}

/// As `product_sums_f32`, of bf16 matrices; panels of 256 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    product_sums_bf16(const bf16* __restrict__ x, int ldx, const bf16* __restrict__ y, int ldy, double* __restrict__ partials,
                      int rows_a_block, int rows, int cols) {
    product_sums(x, ldx, y, ldy, partials, rows_a_block, rows, cols);
}

/// `out [cols]` = sums of `partials [blocks, cols]` over the blocks, in order. A thread a column.
extern "C" __global__ void __launch_bounds__(THREADS)
    column_totals(const double* __restrict__ partials, int blocks, int cols, float* __restrict__ out) {
    const int column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= cols) return;
    double sum = 0.0;
    for (int block = 0; block < blocks; ++block) sum += row_of(partials, block, cols)[column];
    out[column] = static_cast<float>(sum);
}
