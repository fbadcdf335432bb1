// Rows of a head as tiles in shared memory, and a warp's way from there to the operands of tensor cores and back.
//
// A tile is [rows][D] bf16 in chunks of 16 bytes, named by its address in shared memory. Chunks are permuted within a
// row so that one chunk of eight rows in turn (what ldmatrix reads at once) lies in different banks. Only this file
// knows where a chunk lies. Rows and columns beyond the matrix are zeros in a tile, and are never written back.
#pragma once
#include "mma.cuh"
#include "prelude.cuh"

namespace tensor {

constexpr int THREADS = 128, WARPS = THREADS / WARP, MMA_ROWS = 16;

// Bytes of a row of a tile.
template <int D>
constexpr u32 ROW_BYTES = 2 * D;

// Offset of a chunk, 8 elements, in a tile.
template <int D>
__device__ __forceinline__ u32 at(int row, int chunk) {
    constexpr int chunks = D / 8;
    const int shift = chunks % 8 == 0 ? row & 7 : chunks % 4 == 0 ? row >> 1 & 3 : row >> 2 & 1;
    return row * ROW_BYTES<D> + ((chunk ^ shift) << 4);
}

__device__ __forceinline__ void store_shared(u32 to, u32 word) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
}
__device__ __forceinline__ void store_shared(u32 to, const u32 (&words)[4]) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
}
__device__ __forceinline__ void load_shared(u32 (&words)[4], u32 from) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
}

// Eight elements one by one, zeros from `count` on.
__device__ __forceinline__ void gather_chunk(u32 (&words)[4], const bf16* __restrict__ from, int count) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 low = 2 * i < count ? from[2 * i].bits : 0, high = 2 * i + 1 < count ? from[2 * i + 1].bits : 0;
        words[i] = low | high << 16;
    }
}

// Copies `ROWS` rows of a head to a tile; zeros where row ≥ rows or column ≥ head_dim. Asynchronous where `vector`
// says that every chunk of the matrix is aligned to 16 bytes; part of the caller's group in any case.
template <int D, int ROWS>
__device__ __forceinline__ void load_tile(u32 to, const bf16* __restrict__ from, int ld, int rows, int head_dim,
                                          bool vector) {
    constexpr int CHUNKS = D / 8, ROWS_AT_ONCE = THREADS / CHUNKS; // D = 96 leaves 8 threads idle
    if (vector) {
        const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const bool used = chunk * 8 < head_dim;
        const bf16* source = from + (first * ld + chunk * 8); // of no effect where no byte is copied
#pragma unroll
        for (int row = first; row < ROWS + first; row += ROWS_AT_ONCE) {
            if ((ROWS % ROWS_AT_ONCE == 0 && THREADS % CHUNKS == 0) || (row < ROWS && first < ROWS_AT_ONCE))
                copy_async(to + at<D>(row, chunk), source, used && row < rows ? 16 : 0);
            source += ROWS_AT_ONCE * ld;
        }
    } else {
#pragma unroll 1
        for (int index = threadIdx.x; index < ROWS * CHUNKS; index += THREADS) {
            const int row = index / CHUNKS, chunk = index % CHUNKS;
            u32 words[4];
            gather_chunk(words, from + row * ld + chunk * 8,
                         row < rows ? head_dim - chunk * 8 : 0);
            store_shared(to + at<D>(row, chunk), words);
        }
    }
}

// Writes a warp's 16 rows, row r of lane group g = r mod 8 multiplied by factor[r / 8], by way of `stage`, a tile of
// 16 rows that no other warp uses. A factor of 0 writes 0, whatever the sums are.
template <int D>
__device__ __forceinline__ void store_rows(u32 stage, const float (&sums)[D / 8][4], const float (&factor)[2],
                                           bf16* __restrict__ to, int ld, int rows, int head_dim, bool vector) {
    const int lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float low = factor[half] == 0.0f ? 0.0f : sums[n][2 * half] * factor[half];
            const float high = factor[half] == 0.0f ? 0.0f : sums[n][2 * half + 1] * factor[half];
            store_shared(stage + at<D>(group + 8 * half, n) + 4 * pair, pack_bf16(low, high));
        }
    }
    __syncwarp();
#pragma unroll
    for (int base = 0; base < MMA_ROWS * (D / 8); base += WARP) {
        const int index = base + lane, row = index / (D / 8), chunk = index % (D / 8);
        const int inside = row < rows ? head_dim - chunk * 8 : 0;
        u32 words[4];
        load_shared(words, stage + at<D>(row, chunk));
        bf16* const target = to + row * ld + chunk * 8;
        if (vector) {
            if (inside > 0) *reinterpret_cast<uint4*>(target) = make_uint4(words[0], words[1], words[2], words[3]);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i)
                if (i < inside) target[i] = bf16{static_cast<u16>(words[i / 2] >> i % 2 * 16)};
        }
    }
}

template <int D>
__device__ __forceinline__ void store_zeros(bf16* __restrict__ to, int ld, int rows, int head_dim) {
    for (int index = threadIdx.x; index < rows * head_dim; index += THREADS)
        to[index / head_dim * ld + index % head_dim] = bf16{0};
}

// The left operand of an mma from 16 rows of a tile: columns 16·k … 16·k + 15.
template <int D>
__device__ __forceinline__ void load_left(u32 (&to)[4], u32 tile, int row, int k) {
    const int lane = threadIdx.x % WARP;
    load_matrices(to, tile + at<D>(row + lane % 16, 2 * k + lane / 16));
}

// Right operands of two mmas that multiply with the transpose of the tile: rows row … row + 15 of the tile become the
// 2 × 8 columns, its columns 16·k … 16·k + 15 the depth. Words 0, 1 are the first mma's, 2, 3 the second's.
template <int D>
__device__ __forceinline__ void load_transpose(u32 (&to)[4], u32 tile, int row, int k) {
    const int lane = threadIdx.x % WARP;
    load_matrices(to, tile + at<D>(row + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
}

// Right operands of two mmas that multiply with the tile itself: rows row … row + 15 are the depth, columns 16·n …
// 16·n + 15 the 2 × 8 columns.
template <int D>
__device__ __forceinline__ void load_right(u32 (&to)[4], u32 tile, int row, int n) {
    const int lane = threadIdx.x % WARP;
    load_matrices_transposed(to, tile + at<D>(row + lane % 16, 2 * n + lane / 16));
}

// Two neighbouring 16 × 8 tiles of results as the left operand of depth 16.
__device__ __forceinline__ void pack_left(u32 (&to)[4], const float (&first)[4], const float (&second)[4]) {
    to[0] = pack_bf16(first[0], first[1]);
    to[1] = pack_bf16(first[2], first[3]);
    to[2] = pack_bf16(second[0], second[1]);
    to[3] = pack_bf16(second[2], second[3]);
}

// sums += probabilities [16, 8·N] · tile [8·N, D].
template <int D, int N>
__device__ __forceinline__ void multiply_into(float (&sums)[D / 8][4], const float (&left)[N][4], u32 tile) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
        u32 a[4];
        pack_left(a, left[2 * k], left[2 * k + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            u32 b[4];
            load_right<D>(b, tile, 16 * k, n);
            multiply_bf16(sums[2 * n], a, b[0], b[1]);
            multiply_bf16(sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

} // namespace tensor
