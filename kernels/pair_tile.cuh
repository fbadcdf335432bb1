// 128 x 128 tiles of pairwise results: out[i][j] = a reduction over k of something of left[i][k] and right[j][k], in f32.
//
// 256 threads with an 8 x 8 tile each in registers, from slabs of 8 steps that alternate between two buffers in shared
// memory while the next is on its way. What a step does is the caller's: a multiply-add, a difference and a maximum.
// Every result is one chain over k in rising order, and symmetric steps give symmetric results to the bit, so a symmetric
// result needs its upper tiles only.
#pragma once
#include "prelude.cuh"

#define TILE 128
#define DEPTH 8
// Rows of a slab are 16-byte aligned, and 4 rows apart is 16 banks apart: transposing stores do not conflict.
#define STRIDE (TILE + 4)
#define QUAD 4

// Tile `index` of the upper triangle of tiles x tiles, row by row.
struct UpperTile {
    int row, column;
    __device__ __forceinline__ UpperTile(int index, int tiles) : row(0) {
        while (index >= tiles - row) index -= tiles - row++;
        column = row + index;
    }
};

typedef float Slab[DEPTH][STRIDE];

// Row (or column) of the tile that element i of a thread's 8 stands for: two runs of 4, so that loads are conflict-free.
__device__ __forceinline__ int place(int thread, int i) { return (i / QUAD) * (TILE / 2) + QUAD * thread + i % QUAD; }

// acc[i][j] = combine(acc[i][j], left[k][i], right[k][j]) for k in 0..depth. `source` fetches a slab of both sides from
// memory to registers and stores it to shared memory.
template <typename Source, typename Combine>
__device__ __forceinline__ void reduce_tile(Source& source, int depth, float (&acc)[8][8], Combine combine) {
    __shared__ __align__(16) Slab left[2], right[2];
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    source.fetch(0);
    source.store(left[0], right[0]);
    __syncthreads();
    int current = 0;
    for (int k = 0; k < depth; k += DEPTH) {
        const bool more = k + DEPTH < depth;
        if (more) source.fetch(k + DEPTH);
#pragma unroll
        for (int step = 0; step < DEPTH; ++step) {
            float a[2][QUAD], b[2][QUAD];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                load_vector(&left[current][step][place(ty, QUAD * half)], a[half]);
                load_vector(&right[current][step][place(tx, QUAD * half)], b[half]);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < 8; ++j) combine(acc[i][j], a[i / QUAD][i % QUAD], b[j / QUAD][j % QUAD]);
            }
        }
        current ^= 1;
        // The other buffer was read before the last barrier.
        if (more) source.store(left[current], right[current]);
        __syncthreads();
    }
}

template <typename T>
__device__ __forceinline__ void load_quad(const T* from, float (&to)[QUAD]);
template <>
__device__ __forceinline__ void load_quad<float>(const float* from, float (&to)[QUAD]) {
    load_vector(from, to);
}
template <>
__device__ __forceinline__ void load_quad<bf16>(const bf16* from, float (&to)[QUAD]) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = __uint_as_float(v.x << 16), to[1] = __uint_as_float(v.x & 0xffff0000u);
    to[2] = __uint_as_float(v.y << 16), to[3] = __uint_as_float(v.y & 0xffff0000u);
}

// Four adjacent entries of one row on either side a thread, transposed on the way: rows are as long as the reduction.
// `Transform` makes of a side (0, 1) and an entry what goes to shared memory. Beyond the edge entries are `fill`.
template <typename Transform>
struct RowEntries {
    const float* x;
    int ld, units, depth, rows[2];
    bool vector;
    float fill;
    Transform transform;
    float fetched[2][QUAD];

    __device__ __forceinline__ RowEntries(const float* x, int ld, int units, int depth, UpperTile tile, bool vector, float fill)
        : x(x), ld(ld), units(units), depth(depth), vector(vector), fill(fill) {
        rows[0] = TILE * tile.row + threadIdx.x / 2;
        rows[1] = TILE * tile.column + threadIdx.x / 2;
    }
    __device__ __forceinline__ void fetch(int k) {
        const int column = k + QUAD * (threadIdx.x % 2);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const float* from = x + static_cast<size_t>(rows[side]) * ld;
            if (vector && rows[side] < units && column + QUAD <= depth) {
                load_vector(from + column, fetched[side]);
            } else {
#pragma unroll
                for (int i = 0; i < QUAD; ++i)
                    fetched[side][i] = rows[side] < units && column + i < depth ? from[column + i] : fill;
            }
        }
    }
    __device__ __forceinline__ void store(Slab& left, Slab& right) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
#pragma unroll
            for (int i = 0; i < QUAD; ++i) {
                (side == 0 ? left : right)[QUAD * (threadIdx.x % 2) + i][threadIdx.x / 2] =
                    transform(side, fetched[side][i]);
            }
        }
    }
};
