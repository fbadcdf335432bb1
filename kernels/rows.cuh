// What kernels over matrix rows share: 16-byte pieces of a row, where a thread works, sums of partial sums.
//
// A piece is 16 bytes of a row: 4 f32 or 8 bf16. Rows of matrices of 8 columns and more start 16-byte aligned, so a
// piece that lies inside the row is one access; the ragged last one, and narrower matrices, are read and written element by
// element, and columns beyond the row's end not at all.
#pragma once
#include "prelude.cuh"

// Whether all COUNT columns from `column` on lie in a row of `cols` that starts 16-byte aligned.
template <int COUNT>
__device__ __forceinline__ bool whole(int column, int cols) {
    return column + COUNT <= cols && cols >= 8;
}

// A piece as it lies in memory.
template <typename T>
struct Piece {
    uint4 raw;
};

__device__ __forceinline__ void unpack(Piece<float> piece, float (&to)[4]) {
    to[0] = __uint_as_float(piece.raw.x), to[1] = __uint_as_float(piece.raw.y);
    to[2] = __uint_as_float(piece.raw.z), to[3] = __uint_as_float(piece.raw.w);
}
__device__ __forceinline__ void unpack(Piece<bf16> piece, float (&to)[8]) {
    const u32 words[4] = {piece.raw.x, piece.raw.y, piece.raw.z, piece.raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

// The columns from `column` (a multiple of the piece's length) on of a row of `cols`; 0 beyond its end.
__device__ __forceinline__ Piece<float> load_piece(const float* row, int column, int cols) {
    if (whole<4>(column, cols)) return {*reinterpret_cast<const uint4*>(row + column)};
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = column + i < cols ? __float_as_uint(row[column + i]) : 0;
    return {make_uint4(words[0], words[1], words[2], words[3])};
}
__device__ __forceinline__ Piece<bf16> load_piece(const bf16* row, int column, int cols) {
    if (whole<8>(column, cols)) return {*reinterpret_cast<const uint4*>(row + column)};
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int at = column + 2 * i;
        const u32 low = at < cols ? row[at].bits : 0, high = at + 1 < cols ? row[at + 1].bits : 0;
        words[i] = low | high << 16;
    }
    return {make_uint4(words[0], words[1], words[2], words[3])};
}

template <typename T>
__device__ __forceinline__ void load_columns(const T* row, int column, int cols, float (&to)[Lanes<T>::count]) {
    unpack(load_piece(row, column, cols), to);
}

template <typename T>
__device__ __forceinline__ void store_columns(T* row, int column, int cols, const float (&from)[Lanes<T>::count]) {
    constexpr int count = Lanes<T>::count;
    if (whole<count>(column, cols)) {
        store_vector(row + column, from);
        return;
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
        if (column + i < cols) row[column + i] = from_f32<T>(from[i]);
    }
}

// The same columns of an f32 vector with one element a column (bias, gamma, mask), which may lie anywhere.
template <int COUNT>
__device__ __forceinline__ void load_parameters(const float* vector, int column, int cols, float (&to)[COUNT]) {
    if (column + COUNT <= cols && reinterpret_cast<u64>(vector) % 16 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(vector + column + i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) to[i] = column + i < cols ? vector[column + i] : 0.0f;
    }
}
// f32 output of COUNT columns of a row that may lie anywhere.
template <int COUNT>
__device__ __forceinline__ void store_parameters(float* vector, int column, int cols, const float (&from)[COUNT]) {
    if (column + COUNT <= cols && reinterpret_cast<u64>(vector) % 16 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            *reinterpret_cast<float4*>(vector + column + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (column + i < cols) vector[column + i] = from[i];
        }
    }
}

// The row of a matrix with leading dimension `ld`; products of the two may exceed 2³¹.
template <typename T>
__device__ __forceinline__ T* row_of(T* matrix, int row, int ld) {
    return matrix + static_cast<long long>(row) * ld;
}

// Element-wise kernels: one piece of a `rows` × `cols` matrix a thread, row by row.
template <typename T>
struct Place {
    int row, column;
    bool inside;

    __device__ __forceinline__ Place(int rows, int cols) {
        constexpr u32 count = Lanes<T>::count;
        const u32 pieces = (cols + count - 1) / count;
        const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
        row = index / pieces;
        column = (index - row * pieces) * count;
        inside = row < rows;
    }
};

// Sums of columns by a block of 32 columns × SUMMED_BY threads: thread (lane, by) adds every SUMMED_BY-th of `count`
// values of its column, then the SUMMED_BY sums are added in their order. The result is that of threads with by = 0.
// `values(i)` is value i of this thread's column. `shared`: SUMMED_BY × 32 floats.
#define SUMMED_BY 16
template <typename Values>
__device__ __forceinline__ float column_total(int count, float* shared, Values values) {
    const int lane = threadIdx.x % WARP, by = threadIdx.x / WARP;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = by; i < count; i += SUMMED_BY) sum += values(i);
    __syncthreads();
    shared[by * WARP + lane] = sum;
    __syncthreads();
    if (by != 0) return 0.0f;
#pragma unroll
    for (int i = 1; i < SUMMED_BY; ++i) sum += shared[i * WARP + lane];
    return sum;
}
