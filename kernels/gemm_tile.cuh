// The inner part of a product: a block's tile of C as a pipeline over slices of k.
//
// A slice is 64 bytes of k (32 bf16, 16 f32). cp.async brings the slices of both operands to a ring of STAGES stages
// in shared memory; edges are filled with zeros there, so nothing after it knows of them. Each operand lies in memory
// in one of two ways: with k along its rows ("rows": tiles of 64-byte rows), or with k across ("slab": a tile has a row
// for each k). Both are copied 16 bytes at a time as they lie, and transposed, where need be, on the way from shared
// memory to registers; the swizzles of mma.cuh keep both ways free of bank conflicts.
#pragma once
#include "mma.cuh"

#define SLICE_BYTES 64

template <typename T>
constexpr int SLICE = SLICE_BYTES / sizeof(T);

// A product's operands: `a` is [m, k], or [k, m] if it is a slab; `b` is [n, k], or [k, n] if it is a slab. Rows start
// on multiples of 16 bytes.
template <typename T>
struct Factors {
    const T* a;
    const T* b;
    int lda, ldb, m, n, k;
};

// Which slices of k a block multiplies: numbers from `first` to below `last`, of all slices or of the `live` ones.
struct Slices {
    int first, last;
    const u16* live; // shared memory, or null for all
    __device__ __forceinline__ int at(int i) const { return live == nullptr ? i : live[i]; }
};

// Bytes to copy of the 16 at `column` in a row with `columns` elements.
template <typename T>
__device__ __forceinline__ int bytes_left(int column, int columns) {
    return max(0, min(16, (columns - column) * static_cast<int>(sizeof(T))));
}

// Starts the copy of slice `slice` of rows `row` to row + ROWS − 1 of x [rows, k] to a tile of 64-byte rows.
template <typename T, int ROWS, int THREADS>
__device__ __forceinline__ void copy_rows(u32 tile, const T* x, int ld, int row, int rows, int slice, int k) {
    static_assert(ROWS * 4 % THREADS == 0, "every thread copies equally much");
    constexpr int stride = THREADS / 4;
    const int local = threadIdx.x / 4, chunk = threadIdx.x % 4, column = slice * SLICE<T> + chunk * Lanes<T>::count;
    const int left = bytes_left<T>(column, k);
    const T* from = x + static_cast<long long>(row + local) * ld + column;
#pragma unroll
    for (int i = 0; i < ROWS / stride; ++i, from += static_cast<long long>(stride) * ld) {
        const bool inside = row + local + i * stride < rows && left > 0;
        copy_async(tile + swizzle_64(local + i * stride, chunk), inside ? from : x, inside ? left : 0);
    }
}

// Starts the copy of slice `slice` of columns `column` to column + COLUMNS − 1 of x [k, columns] to a slab.
template <typename T, int COLUMNS, int THREADS>
__device__ __forceinline__ void copy_slab(u32 tile, const T* x, int ld, int column, int columns, int slice, int k) {
    constexpr int row_bytes = COLUMNS * sizeof(T), chunks = row_bytes / 16;
    static_assert(SLICE<T> * chunks % THREADS == 0, "every thread copies equally much");
    if constexpr (THREADS % chunks == 0) {
        constexpr int stride = THREADS / chunks;
        const int local = threadIdx.x / chunks, chunk = threadIdx.x % chunks, first = column + chunk * Lanes<T>::count;
        const int row = slice * SLICE<T> + local, left = bytes_left<T>(first, columns);
        const T* from = x + static_cast<long long>(row) * ld + first;
#pragma unroll
        for (int i = 0; i < SLICE<T> / stride; ++i, from += static_cast<long long>(stride) * ld) {
            const bool inside = row + i * stride < k && left > 0;
            copy_async(tile + swizzle_wide<T, row_bytes>(local + i * stride, chunk), inside ? from : x, inside ? left : 0);
        }
    } else {
#pragma unroll
        for (int i = 0; i < SLICE<T> * chunks / THREADS; ++i) {
            const int index = threadIdx.x + i * THREADS, local = index / chunks, chunk = index % chunks;
            const int row = slice * SLICE<T> + local, first = column + chunk * Lanes<T>::count;
            const int left = row < k ? bytes_left<T>(first, columns) : 0;
            const T* from = x + static_cast<long long>(row) * ld + first;
            copy_async(tile + swizzle_wide<T, row_bytes>(local, chunk), left > 0 ? from : x, left);
        }
    }
}

// Sizes of a kernel: the block's tile of C, the warps that share it, and the stages in flight.
template <int TILE_ROWS, int TILE_COLUMNS, int WARP_ROWS, int WARP_COLUMNS, int DEPTH>
struct Tile {
    static constexpr int rows = TILE_ROWS, columns = TILE_COLUMNS, warp_rows = WARP_ROWS, warp_columns = WARP_COLUMNS;
    static constexpr int warps_across = TILE_COLUMNS / WARP_COLUMNS;
    static constexpr int threads = TILE_ROWS / WARP_ROWS * warps_across * WARP;
    static constexpr int stages = DEPTH, a_bytes = TILE_ROWS * SLICE_BYTES;
    static constexpr int stage_bytes = (TILE_ROWS + TILE_COLUMNS) * SLICE_BYTES;
    static __device__ __forceinline__ int warp_row() { return threadIdx.x / WARP / warps_across * warp_rows; }
    static __device__ __forceinline__ int warp_column() { return threadIdx.x / WARP % warps_across * warp_columns; }
};

// Starts the copies of one slice to the stage at `stage`.
template <typename S, bool A_SLAB, bool B_SLAB, typename T>
__device__ __forceinline__ void copy_slice(u32 stage, const Factors<T>& f, int row, int column, int slice) {
    if constexpr (A_SLAB)
        copy_slab<T, S::rows, S::threads>(stage, f.a, f.lda, row, f.m, slice, f.k);
    else
        copy_rows<T, S::rows, S::threads>(stage, f.a, f.lda, row, f.m, slice, f.k);
    if constexpr (B_SLAB)
        copy_slab<T, S::columns, S::threads>(stage + S::a_bytes, f.b, f.ldb, column, f.n, slice, f.k);
    else
        copy_rows<T, S::columns, S::threads>(stage + S::a_bytes, f.b, f.ldb, column, f.n, slice, f.k);
}

// The registers of one step (half a slice: 16 k of bf16, 8 of tf32) of a warp's factors: a tile of 16 rows of A is four
// registers, a pair of tiles of 8 columns of B is four.
template <typename S>
struct Fragments {
    static constexpr int tall = S::warp_rows / 16, wide = S::warp_columns / 16;
    u32 a[tall][4], b[wide][4];
};

template <typename S, bool A_SLAB, bool B_SLAB>
__device__ __forceinline__ void load_fragments(const bf16*, Fragments<S>& to, u32 stage, int step) {
    const int lane = threadIdx.x % WARP, row = S::warp_row(), column = S::warp_column();
#pragma unroll
    for (int i = 0; i < Fragments<S>::tall; ++i) {
        if constexpr (A_SLAB)
            load_matrices_transposed(to.a[i], stage + swizzle_wide<bf16, S::rows * 2>(step * 16 + lane / 16 * 8 + lane % 8,
                                                                                      row / 8 + i * 2 + lane / 8 % 2));
        else
            load_matrices(to.a[i], stage + swizzle_64(row + i * 16 + lane % 16, step * 2 + lane / 16));
    }
    stage += S::a_bytes;
#pragma unroll
    for (int j = 0; j < Fragments<S>::wide; ++j) {
        if constexpr (B_SLAB)
            load_matrices_transposed(to.b[j], stage + swizzle_wide<bf16, S::columns * 2>(step * 16 + lane % 16,
                                                                                         column / 8 + j * 2 + lane / 16));
        else
            load_matrices(to.b[j], stage + swizzle_64(column + j * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
    }
}

// Element (k, x) of a slab of f32.
template <int COLUMNS>
__device__ __forceinline__ u32 load_slab_element(u32 tile, int k, int x) {
    return load_shared(tile + swizzle_wide<float, COLUMNS * 4>(k, x / 4) + x % 4 * 4);
}

template <typename S, bool A_SLAB, bool B_SLAB>
__device__ __forceinline__ void load_fragments(const float*, Fragments<S>& to, u32 stage, int step) {
    const int lane = threadIdx.x % WARP, row = S::warp_row(), column = S::warp_column();
    const int g = lane / 4, k = step * 8 + lane % 4;
#pragma unroll
    for (int i = 0; i < Fragments<S>::tall; ++i) {
        if constexpr (A_SLAB) {
#pragma unroll
            for (int r = 0; r < 4; ++r)
                to.a[i][r] = load_slab_element<S::rows>(stage, k + r / 2 * 4, row + i * 16 + r % 2 * 8 + g);
        } else {
            // An 8×4 matrix of 32 bits is to ldmatrix what an 8×8 one of 16 bits is.
            load_matrices(to.a[i], stage + swizzle_64(row + i * 16 + lane % 16, step * 2 + lane / 16));
        }
    }
    stage += S::a_bytes;
#pragma unroll
    for (int j = 0; j < Fragments<S>::wide; ++j) {
        if constexpr (B_SLAB) {
#pragma unroll
            for (int r = 0; r < 4; ++r)
                to.b[j][r] = load_slab_element<S::columns>(stage, k + r % 2 * 4, column + j * 16 + r / 2 * 8 + g);
        } else {
            load_matrices(to.b[j], stage + swizzle_64(column + j * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
        }
    }
#pragma unroll
    for (int i = 0; i < Fragments<S>::tall * 4; ++i) to.a[i / 4][i % 4] = to_tf32(to.a[i / 4][i % 4]);
#pragma unroll
    for (int j = 0; j < Fragments<S>::wide * 4; ++j) to.b[j / 4][j % 4] = to_tf32(to.b[j / 4][j % 4]);
}

__device__ __forceinline__ void multiply(const bf16*, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_bf16(c, a, b0, b1);
}
__device__ __forceinline__ void multiply(const float*, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_tf32(c, a, b0, b1);
}

// sum += the product of the slices, on tensor cores: tf32 if T is float. (row, column) is the tile's corner in C. In
// sum[i][j] a lane holds the elements that multiply_bf16 states, of the 16×8 tile (i, j) of its warp.
template <typename S, bool A_SLAB, bool B_SLAB, typename T>
__device__ __forceinline__ void multiply_slices(float (&sum)[S::warp_rows / 16][S::warp_columns / 8][4], u32 shared,
                                                const Factors<T>& f, int row, int column, const Slices& slices) {
    constexpr int ring = S::stages * S::stage_bytes, ahead = S::stages - 1;
    const auto after = [&](u32 stage) { return stage + S::stage_bytes == shared + ring ? shared : stage + S::stage_bytes; };
    const T* type = nullptr;
    Fragments<S> fragments[2];
    const auto multiply_half = [&](const Fragments<S>& half) {
#pragma unroll
        for (int i = 0; i < Fragments<S>::tall; ++i)
#pragma unroll
            for (int j = 0; j < Fragments<S>::wide * 2; ++j)
                multiply(type, sum[i][j], half.a[i], half.b[j / 2][j % 2 * 2], half.b[j / 2][j % 2 * 2 + 1]);
    };
    // Turns before the first slice only fetch. While one half of a slice is multiplied the other half is on its way to
    // registers.
    u32 filling = shared, stage = shared;
#pragma unroll 1
    for (int slice = slices.first - ahead; slice < slices.last; ++slice) {
        const bool begun = slice >= slices.first;
        // Into the stage read in the turn before: the barrier in it says that all warps are done with that stage.
        if (slice + ahead < slices.last) copy_slice<S, A_SLAB, B_SLAB>(filling, f, row, column, slices.at(slice + ahead));
        // A group even if it is empty: waiting counts groups.
        commit_copies();
        filling = after(filling);
        if (begun) {
            load_fragments<S, A_SLAB, B_SLAB>(type, fragments[1], stage, 1);
            multiply_half(fragments[0]);
            stage = after(stage);
        }
        wait_copies<S::stages - 2>();
        __syncthreads();
        if (slice + 1 >= slices.first && slice + 1 < slices.last)
            load_fragments<S, A_SLAB, B_SLAB>(type, fragments[0], stage, 0);
        if (begun) multiply_half(fragments[1]);
    }
    // The stages become the epilogue's.
    wait_copies<0>();
    __syncthreads();
}

// The same in f32 on the CUDA cores: one multiply-add after the other, k rising. A warp's tile is 32×64, a lane's 8×8. Its
// row i is (ty + 4 i) where A has k along its rows, so that lanes read chunks of different rows, and
// 4 ty + i % 4 + 16 (i / 4) where it is a slab, so that they read neighbouring chunks; columns are the same with tx and
// 8 in place of 4 lanes. tx = lane % 8, ty = lane / 8.
template <bool SLAB, int LANES>
__device__ __forceinline__ int lane_index(int lane, int i) {
    return SLAB ? 4 * lane + i % 4 + 4 * LANES * (i / 4) : lane + LANES * i;
}

// x[i][p] = element (lane_index(lane, i), 4 quarter + p) of a tile of which the warp's part starts at `first`.
template <bool SLAB, int LENGTH, int LANES>
__device__ __forceinline__ void load_quarter(float (&x)[8][4], u32 tile, int first, int lane, int quarter) {
    if constexpr (SLAB) {
#pragma unroll
        for (int p = 0; p < 4; ++p)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int at = first + lane_index<true, LANES>(lane, 4 * h);
                const float4 v = load_shared_vector(tile + swizzle_wide<float, LENGTH * 4>(quarter * 4 + p, at / 4));
                x[4 * h][p] = v.x, x[4 * h + 1][p] = v.y, x[4 * h + 2][p] = v.z, x[4 * h + 3][p] = v.w;
            }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float4 v = load_shared_vector(tile + swizzle_64(first + lane_index<false, LANES>(lane, i), quarter));
            x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
        }
    }
}

template <typename S, bool A_SLAB, bool B_SLAB>
__device__ __forceinline__ void multiply_slices_f32(float (&sum)[8][8], u32 shared, const Factors<float>& f, int row,
                                                    int column, const Slices& slices) {
    static_assert(S::warp_rows == 32 && S::warp_columns == 64, "8×8 a lane, 4×8 lanes");
    constexpr int ring = S::stages * S::stage_bytes, ahead = S::stages - 1;
    const auto after = [&](u32 stage) { return stage + S::stage_bytes == shared + ring ? shared : stage + S::stage_bytes; };
    const int lane = threadIdx.x % WARP;
    u32 filling = shared, stage = shared;
#pragma unroll 1
    for (int slice = slices.first - ahead; slice < slices.last; ++slice) {
        const bool begun = slice >= slices.first;
        if (begun) {
            wait_copies<S::stages - 2>();
            __syncthreads();
        }
        if (slice + ahead < slices.last) copy_slice<S, A_SLAB, B_SLAB>(filling, f, row, column, slices.at(slice + ahead));
        commit_copies();
        filling = after(filling);
        if (!begun) continue;
#pragma unroll 1
        for (int quarter = 0; quarter < 4; ++quarter) {
            float a[8][4], b[8][4];
            load_quarter<A_SLAB, S::rows, 4>(a, stage, S::warp_row(), lane / 8, quarter);
            load_quarter<B_SLAB, S::columns, 8>(b, stage + S::a_bytes, S::warp_column(), lane % 8, quarter);
#pragma unroll
            for (int p = 0; p < 4; ++p)
#pragma unroll
                for (int i = 0; i < 8; ++i)
#pragma unroll
                    for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(a[i][p], b[j][p], sum[i][j]);
        }
        stage = after(stage);
    }
    wait_copies<0>();
    __syncthreads();
}
