// Moving rows: picking some, adding them back, and whole-matrix sum and fill (src/ops/gather/mod.rs).
//
// The scatter-add `dx[rows[i]] += dy[i]` (also the backward of an embedding) has no atomics: the same input gives the same
// bits. `order_rows` sorts the indices i by target, ties by i. The sorted list is cut into chunks of 32; `add_chunks`
// sums runs of equal targets within a chunk and adds those that lie inside it to dx, once. A run that crosses chunks,
// such as the row of [CLS] or of token type 0, leaves a partial sum in each; `add_runs` adds these up, 16 threads
// a column, and the total to dx. So a frequent row costs no more than many rare ones.
//
// Floor, bytes an element: gather 2s; scatter-add s and, for each row named, a read and a write of dx; add 3s.
// Ordering m indices takes m² comparisons, a few µs for a batch of 8,192 tokens.
#include "rows.cuh"

#define THREADS 256
#define ORDER_THREADS 256
#define CHUNK 32
#define CHUNK_THREADS 128
// Rows that a thread loads before it adds the first.
#define AHEAD 8

template <typename T>
__device__ __forceinline__ void gather(const T* x, int ldx, const int* picked, T* y, int ldy, int rows, int cols) {
    const Place<T> at(rows, cols);
    if (!at.inside) return;
    float values[Lanes<T>::count];
    load_columns(row_of(x, picked[at.row], ldx), at.column, cols, values);
    store_columns(row_of(y, at.row, ldy), at.column, cols, values);
}

/// `y[i] = x[picked[i]]`, `y [rows, cols]`. One 16-byte piece a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_f32(const float* __restrict__ x, int ldx, const int* __restrict__ picked, float* __restrict__ y, int ldy, int rows,
               int cols) {
    gather(x, ldx, picked, y, ldy, rows, cols);
}

/// As `gather_f32`, of bf16 matrices.
extern "C" __global__ void __launch_bounds__(THREADS)
    gather_bf16(const bf16* __restrict__ x, int ldx, const int* __restrict__ picked, bf16* __restrict__ y, int ldy, int rows,
                int cols) {
    gather(x, ldx, picked, y, ldy, rows, cols);
}

template <typename T>
__device__ __forceinline__ void add(const T* x, int ldx, T* y, int ldy, int rows, int cols) {
    constexpr int count = Lanes<T>::count;
    const Place<T> at(rows, cols);
    if (!at.inside) return;
    T* to = row_of(y, at.row, ldy);
    float values[count], more[count];
    load_columns(to, at.column, cols, values);
    load_columns(row_of(x, at.row, ldx), at.column, cols, more);
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] += more[j];
    store_columns(to, at.column, cols, values);
}

/// `y += x`. One 16-byte piece a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_f32(const float* __restrict__ x, int ldx, float* __restrict__ y, int ldy, int rows, int cols) {
    add(x, ldx, y, ldy, rows, cols);
}

/// As `add_f32`, of bf16 matrices.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_bf16(const bf16* __restrict__ x, int ldx, bf16* __restrict__ y, int ldy, int rows, int cols) {
    add(x, ldx, y, ldy, rows, cols);
}

template <typename T>
__device__ __forceinline__ void fill(T* y, int ldy, float value, int rows, int cols) {
    const Place<T> at(rows, cols);
    if (!at.inside) return;
    float values[Lanes<T>::count];
#pragma unroll
    for (int j = 0; j < Lanes<T>::count; ++j) values[j] = value;
    store_columns(row_of(y, at.row, ldy), at.column, cols, values);
}

/// `y = value`. One 16-byte piece a thread.
extern "C" __global__ void __launch_bounds__(THREADS) fill_f32(float* __restrict__ y, int ldy, float value, int rows, int cols) {
    fill(y, ldy, value, rows, cols);
}

/// As `fill_f32`, of a bf16 matrix.
extern "C" __global__ void __launch_bounds__(THREADS) fill_bf16(bf16* __restrict__ y, int ldy, float value, int rows, int cols) {
    fill(y, ldy, value, rows, cols);
}

/// `order` = the indices 0 … count − 1 sorted by `targets[i]`, then by i. A block places 32 of them: each of its warps counts,
/// in every 8th index of the list, those that come before.
extern "C" __global__ void __launch_bounds__(ORDER_THREADS)
    order_rows(const int* __restrict__ targets, int count, int* __restrict__ order) {
    constexpr int warps = ORDER_THREADS / WARP;
    __shared__ int before[warps][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int first = blockIdx.x * WARP, index = first + lane, end = min(first + WARP, count);
    const int target = index < count ? targets[index] : 0;
    int smaller = 0;
    // Equal targets come before when their index does: all of those below this block's, none of those above.
#pragma unroll 8
    for (int i = warp; i < first; i += warps) smaller += targets[i] <= target;
    for (int i = first + warp; i < end; i += warps) smaller += targets[i] < target + (i < index);
#pragma unroll 8
    for (int i = first + WARP + warp; i < count; i += warps) smaller += targets[i] < target;
    before[warp][lane] = smaller;
    __syncthreads();
    if (warp > 0 || index >= count) return;
#pragma unroll
    for (int i = 1; i < warps; ++i) smaller += before[i][lane];
    order[smaller] = index;
}

// row[column …] += sum, in f32, rounded once.
template <int COUNT>
__device__ __forceinline__ void add_to(float* row, int column, int cols, const float (&sum)[COUNT]) {
    float values[COUNT];
    load_parameters(row, column, cols, values);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) values[j] += sum[j];
    store_parameters(row, column, cols, values);
}
__device__ __forceinline__ void add_to(bf16* row, int column, int cols, const float (&sum)[8]) {
    float values[8];
    load_columns(row, column, cols, values);
#pragma unroll
    for (int j = 0; j < 8; ++j) values[j] += sum[j];
    store_columns(row, column, cols, values);
}

// `partials`: [chunks, 2, ldp] f32: the sum of a run that began in an earlier chunk, then of one that begins here and goes on.
template <typename From, typename To>
__device__ __forceinline__ void add_chunks(const From* dy, int lddy, const int* targets, const int* order, int count, To* dx,
                                           int lddx, float* partials, int ldp, int cols) {
    constexpr int lanes = Lanes<From>::count;
    __shared__ int source[CHUNK];
    __shared__ int target[CHUNK + 2]; // of the position before the chunk, of its own, of the one after; −1 where there is none
    const int first = blockIdx.x * CHUNK, length = min(CHUNK, count - first);
    if (threadIdx.x < CHUNK + 2) {
        const int position = first - 1 + static_cast<int>(threadIdx.x);
        const bool exists = position >= 0 && position < count;
        const int index = exists ? order[position] : 0;
        target[threadIdx.x] = exists ? targets[index] : -1;
        if (threadIdx.x > 0 && threadIdx.x <= CHUNK) source[threadIdx.x - 1] = index;
    }
    __syncthreads();
    const int column = (blockIdx.y * CHUNK_THREADS + threadIdx.x) * lanes;
    if (column >= cols) return;
    float* into = row_of(partials, 2 * blockIdx.x, ldp);

    bool began_before = target[0] == target[1];
    float sum[lanes] = {};
    for (int start = 0; start < length; start += AHEAD) {
        Piece<From> ahead[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            if (start + i < length) ahead[i] = load_piece(row_of(dy, source[start + i], lddy), column, cols);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int at = start + i;
            if (at >= length) break;
            float values[lanes];
            unpack(ahead[i], values);
#pragma unroll
            for (int j = 0; j < lanes; ++j) sum[j] += values[j];
            const bool goes_on = target[at + 2] == target[at + 1];
            if (goes_on && at + 1 < length) continue;
            // The run ends here, or the chunk does.
            if (began_before) {
                store_parameters(into, column, ldp, sum);
            } else if (goes_on) {
                store_parameters(into + ldp, column, ldp, sum);
            } else {
                add_to(row_of(dx, target[at + 1], lddx), column, cols, sum);
            }
            began_before = false;
#pragma unroll
            for (int j = 0; j < lanes; ++j) sum[j] = 0.0f;
        }
    }
}

/// Adds rows of f32 to rows of f32: the runs within each chunk of 32 of `order`. `partials [chunks, 2, ldp]`. Blocks: chunks ×
/// panels of 512 columns.
extern "C" __global__ void __launch_bounds__(CHUNK_THREADS)
    add_chunks_f32(const float* __restrict__ dy, int lddy, const int* __restrict__ targets, const int* __restrict__ order,
                   int count, float* __restrict__ dx, int lddx, float* __restrict__ partials, int ldp, int cols) {
    add_chunks(dy, lddy, targets, order, count, dx, lddx, partials, ldp, cols);
}

/// As `add_chunks_f32`, bf16 to bf16; panels of 1,024 columns.
extern "C" __global__ void __launch_bounds__(CHUNK_THREADS)
    add_chunks_bf16(const bf16* __restrict__ dy, int lddy, const int* __restrict__ targets, const int* __restrict__ order,
                    int count, bf16* __restrict__ dx, int lddx, float* __restrict__ partials, int ldp, int cols) {
    add_chunks(dy, lddy, targets, order, count, dx, lddx, partials, ldp, cols);
}

/// As `add_chunks_bf16`, to f32.
extern "C" __global__ void __launch_bounds__(CHUNK_THREADS)
    add_chunks_bf16_to_f32(const bf16* __restrict__ dy, int lddy, const int* __restrict__ targets,
                           const int* __restrict__ order, int count, float* __restrict__ dx, int lddx,
                           float* __restrict__ partials, int ldp, int cols) {
    add_chunks(dy, lddy, targets, order, count, dx, lddx, partials, ldp, cols);
}

template <typename To>
__device__ __forceinline__ void add_runs(const float* partials, int ldp, const int* targets, const int* order, int count, To* dx,
                                         int lddx, int cols) {
    __shared__ float shared[SUMMED_BY * WARP];
    const int first = blockIdx.x * CHUNK, last = first + CHUNK - 1;
    if (last + 1 >= count) return;
    const int target = targets[order[last]];
    // Only a run that begins in this chunk and goes on: the block that it begins in adds it up.
    if (targets[order[last + 1]] != target || (first > 0 && targets[order[first - 1]] == target)) return;
    int end = last + 1, beyond = count; // the run's last position is in [end, beyond)
    while (beyond - end > 1) {
        const int middle = end + (beyond - end) / 2;
        if (targets[order[middle]] == target) {
            end = middle;
        } else {
            beyond = middle;
        }
    }
    const int column = blockIdx.y * WARP + threadIdx.x % WARP;
    const bool inside = column < cols;
    const int chunks = end / CHUNK - blockIdx.x + 1;
    const float sum = column_total(inside ? chunks : 0, shared, [&](int i) {
        return row_of(partials, 2 * (blockIdx.x + i) + (i == 0), ldp)[column];
    });
    if (!inside || threadIdx.x >= WARP) return;
    To* to = row_of(dx, target, lddx) + column;
    *to = from_f32<To>(to_f32(*to) + sum);
}

/// Adds the runs that cross chunks, from their `partials`, to rows of f32. Blocks: chunks × panels of 32 columns.
extern "C" __global__ void __launch_bounds__(SUMMED_BY* WARP)
    add_runs_f32(const float* __restrict__ partials, int ldp, const int* __restrict__ targets, const int* __restrict__ order,
                 int count, float* __restrict__ dx, int lddx, int cols) {
    add_runs(partials, ldp, targets, order, count, dx, lddx, cols);
}

/// As `add_runs_f32`, to rows of bf16.
extern "C" __global__ void __launch_bounds__(SUMMED_BY* WARP)
    add_runs_bf16(const float* __restrict__ partials, int ldp, const int* __restrict__ targets, const int* __restrict__ order,
                  int count, bf16* __restrict__ dx, int lddx, int cols) {
    add_runs(partials, ldp, targets, order, count, dx, lddx, cols);
}
