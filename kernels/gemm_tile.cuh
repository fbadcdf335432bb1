// The inner part of a product: a block's tile of C as a pipeline over slices of k.
//
// A slice is 64 or 128 bytes of k (32 or 64 bf16 or f16, 16 or 32 f32). cp.async brings the slices of both operands to a ring of
// stages in shared memory; the edge of k is filled with zeros there, so nothing after it knows of it. Each operand lies in
// memory in one of two ways: with k along its rows ("rows": tiles with rows of a slice), or with k across ("slab": a tile
// has a row for each k). Both are copied 16 bytes at a time as they lie, and transposed, where need be, on the way from
// shared memory to registers; the swizzles of mma.cuh keep both ways free of bank conflicts.
#pragma once
#include "mma.cuh"

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

// Sizes of a kernel: the block's tile of C, the warps that share it, the stages in flight, and bytes of k in a slice.
template <typename ELEMENT, int TILE_ROWS, int TILE_COLUMNS, int WARP_ROWS, int WARP_COLUMNS, int DEPTH, int SLICE_BYTES>
struct Tile {
    using T = ELEMENT;
    static constexpr int rows = TILE_ROWS, columns = TILE_COLUMNS, warp_rows = WARP_ROWS, warp_columns = WARP_COLUMNS;
    static constexpr int warps_across = TILE_COLUMNS / WARP_COLUMNS;
    static constexpr int threads = TILE_ROWS / WARP_ROWS * warps_across * WARP;
    static constexpr int slice_bytes = SLICE_BYTES, slice = SLICE_BYTES / sizeof(T);
    static constexpr int stages = DEPTH, a_bytes = TILE_ROWS * SLICE_BYTES;
    static constexpr int stage_bytes = (TILE_ROWS + TILE_COLUMNS) * SLICE_BYTES;
    static __device__ __forceinline__ int warp_row() { return threadIdx.x / WARP / warps_across * warp_rows; }
    static __device__ __forceinline__ int warp_column() { return threadIdx.x / WARP % warps_across * warp_columns; }
};

// Bytes to copy of the 16 at `column` in a row with `columns` elements.
template <typename T>
__device__ __forceinline__ int bytes_left(int column, int columns) {
    return max(0, min(16, (columns - column) * static_cast<int>(sizeof(T))));
}

// One operand's way to shared memory: x [length, k], or [k, length] if it is a SLAB, of which the block multiplies LENGTH
// rows (columns of a slab) from `first` on. A thread copies `count` chunks of 16 bytes a slice. It is one column of chunks
// and every `stride`-th row; of a slab, which is a row of parts of 128 bytes, in each part.
template <typename S, int LENGTH, bool SLAB>
struct Copies {
    using T = typename S::T;
    static constexpr int lanes = Lanes<T>::count, row_bytes = SLAB ? LENGTH * sizeof(T) : S::slice_bytes;
    static constexpr int across = SLAB ? 8 : row_bytes / 16, stride = S::threads / across;
    static constexpr int parts = SLAB ? row_bytes / 128 : 1, down = (SLAB ? S::slice : LENGTH) / stride, count = parts * down;
    static_assert(stride % 8 == 0 && down * stride == (SLAB ? S::slice : LENGTH), "every thread copies equally much");

    const T* x;
    int ld, first, length, k;
    bool plain; // whether a whole slice needs no 16 bytes of which only a part may be read

    __device__ __forceinline__ Copies(const T* x, int ld, int first, int length, int k)
        : x(x), ld(ld), first(first), length(length), k(k),
          plain(!SLAB || length % lanes == 0 || first + LENGTH <= length) {}

    static __device__ __forceinline__ int local() { return threadIdx.x / across; }
    static __device__ __forceinline__ int chunk() { return threadIdx.x % across; }
    // Where copy 0 goes; the others lie at constant distances, for the swizzles repeat after 8 rows.
    static __device__ __forceinline__ u32 place() {
        if constexpr (SLAB) return swizzle_wide<T, row_bytes>(local(), chunk());
        return swizzle_rows<S::slice_bytes>(local(), chunk());
    }
    static __device__ constexpr int distance(int i) { return i / parts * stride * row_bytes + i % parts * 128; }

    // Starts all copies of a slice, with zeros for what lies outside of x.
    __device__ __forceinline__ void edge(u32 tile, int slice) const {
        // The CUDA cores' loop has no other way; the tensor cores' need their registers.
#pragma unroll(S::slice_bytes == 64 ? count : 1)
        for (int i = 0; i < count; ++i) {
            const int row = SLAB ? slice * S::slice + local() + i / parts * stride : first + local() + i * stride;
            const int column = SLAB ? first + (i % parts * 8 + chunk()) * lanes : slice * S::slice + chunk() * lanes;
            const int left = row < (SLAB ? k : length) ? bytes_left<T>(column, SLAB ? length : k) : 0;
            copy_async(tile + place() + distance(i), left > 0 ? x + static_cast<long long>(row) * ld + column : x, left);
        }
    }

    // Starts all copies of a slice that lies in k as a whole, if `wanted`, of a plain operand. What lies past `length` adds
    // to nothing that is kept: anything may stand there, and it is a copy of the last.
    __device__ __forceinline__ void whole(bool wanted, u32 tile, int slice) const {
        const int start = SLAB ? chunk() * lanes : local(), last = length - first - (SLAB ? lanes : 1);
        const long long corner = SLAB ? static_cast<long long>(slice * S::slice + local()) * ld + first
                                      : static_cast<long long>(first) * ld + slice * S::slice + chunk() * lanes;
        const int ld_bytes = ld * static_cast<int>(sizeof(T));
        tile += place();
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const int down = SLAB ? i / parts * stride : 0, right = SLAB ? i % parts * 8 * lanes : i * stride;
            copy_async_if(wanted, tile + distance(i), x + corner, down, ld_bytes, start + right, last, SLAB ? sizeof(T) : ld_bytes);
        }
    }
};

// A step is 32 bytes of k (16 of bf16 or f16, 8 of tf32). The registers of a step of a warp's factors: a tile of 16 rows of A is
// four registers, a pair of tiles of 8 columns of B is four.
template <typename S>
struct Fragments {
    static constexpr int tall = S::warp_rows / 16, wide = S::warp_columns / 16;
    u32 a[tall][4], b[wide][4];
};

// How a lane reads the fragments of COUNT times 16 rows (columns) of one operand from `first` on, of a tile with LENGTH.
template <typename S, int LENGTH, int COUNT, bool IS_A, bool SLAB>
struct Reader {
    using T = typename S::T;
    static constexpr bool elements = SLAB && sizeof(T) == 4; // ldmatrix transposes 16 bits only
    static constexpr int row_bytes = SLAB ? LENGTH * sizeof(T) : S::slice_bytes;
    u32 offset[SLAB ? COUNT * (elements ? 2 : 1) : 1];

    __device__ __forceinline__ explicit Reader(int first) {
        const int lane = threadIdx.x % WARP, low = lane % 16, high = lane / 16, eighth = lane % 8, odd = lane / 8 % 2;
        if constexpr (elements) {
            for (int i = 0; i < COUNT * 2; ++i)
                offset[i] = swizzle_wide<T, row_bytes>(lane % 4, (first + i * 8 + lane / 4) / 4) + lane / 4 % 4 * 4;
        } else if constexpr (SLAB) {
            for (int i = 0; i < COUNT; ++i)
                offset[i] = swizzle_wide<T, row_bytes>(IS_A ? high * 8 + eighth : low, first / 8 + i * 2 + (IS_A ? odd : high));
        } else {
            // An 8×4 matrix of 32 bits is to ldmatrix what an 8×8 one of 16 bits is.
            offset[0] = swizzle_rows<S::slice_bytes>(first + (IS_A ? low : high * 8 + eighth), IS_A ? high : odd);
        }
    }

    __device__ __forceinline__ void load(u32 (&to)[COUNT][4], u32 tile, int step) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if constexpr (elements) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const int later = IS_A ? r / 2 : r % 2, next = IS_A ? r % 2 : r / 2;
                    to[i][r] = to_tf32(load_shared(tile + offset[i * 2 + next] + (step * 8 + later * 4) * row_bytes));
                }
            } else if constexpr (SLAB) {
                load_matrices_transposed(to[i], tile + offset[i] + step * 16 * row_bytes);
            } else {
                // A step is two chunks, and the swizzle an exclusive or; the next 16 rows repeat it.
                load_matrices(to[i], ((tile + offset[0]) ^ (step * 32)) + i * 16 * row_bytes);
                if constexpr (sizeof(T) == 4)
                    for (int r = 0; r < 4; ++r) to[i][r] = to_tf32(to[i][r]);
            }
        }
    }
};

__device__ __forceinline__ void multiply(const bf16*, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_bf16(c, a, b0, b1);
}
__device__ __forceinline__ void multiply(const f16*, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_f16(c, a, b0, b1);
}
__device__ __forceinline__ void multiply(const float*, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_tf32(c, a, b0, b1);
}

// sum += the product of the slices, on tensor cores: tf32 if T is float. (row, column) is the tile's corner in C. In
// sum[i][j] a lane holds the elements that multiply_bf16 states, of the 16×8 tile (i, j) of its warp.
template <typename S, bool A_SLAB, bool B_SLAB, typename T>
__device__ __forceinline__ void multiply_slices(float (&sum)[S::warp_rows / 16][S::warp_columns / 8][4], u32 shared,
                                                const Factors<T>& f, int row, int column, const Slices& slices) {
    constexpr int ring = S::stages * S::stage_bytes, ahead = S::stages - 1, steps = S::slice_bytes / 32;
    static_assert(steps >= 4 && steps % 2 == 0, "copies in the first two, and two sets of fragments");
    constexpr int tall = S::warp_rows / 16, wide = S::warp_columns / 16;
    const auto after = [&](u32 stage) { return stage + S::stage_bytes == shared + ring ? shared : stage + S::stage_bytes; };
    const Copies<S, S::rows, A_SLAB> a(f.a, f.lda, row, f.m, f.k);
    const Copies<S, S::columns, B_SLAB> b(f.b, f.ldb, column, f.n, f.k);
    const Reader<S, S::rows, tall, true, A_SLAB> read_a(S::warp_row());
    const Reader<S, S::columns, wide, false, B_SLAB> read_b(S::warp_column());
    // Slices below this one are copied without a look at edges.
    const int plain = a.plain && b.plain ? f.k / S::slice : 0;
    Fragments<S> fragments[2];
    const auto load = [&](Fragments<S>& to, u32 stage, int step) {
        read_a.load(to.a, stage, step);
        read_b.load(to.b, stage + S::a_bytes, step);
    };
    const auto copy_edge = [&](bool wanted, u32 stage, int slice) {
        if (!wanted) return;
        a.edge(stage, slice);
        b.edge(stage + S::a_bytes, slice);
    };
    u32 filling = shared, stage = shared;
#pragma unroll 1
    for (int slice = slices.first; slice < slices.first + ahead; ++slice, filling = after(filling)) {
        const bool wanted = slice < slices.last;
        const int number = wanted ? slices.at(slice) : 0;
        copy_edge(wanted && number >= plain, filling, number);
        a.whole(wanted && number < plain, filling, number);
        b.whole(wanted && number < plain, filling + S::a_bytes, number);
        // A group even if it is empty: waiting counts groups.
        commit_copies();
    }
    wait_copies<S::stages - 2>();
    __syncthreads();
    if (slices.first < slices.last) load(fragments[0], stage, 0);
    // While one step is multiplied the next is on its way to registers, and the copies of a later slice start: into the
    // stage of the slice before, with which all warps were done at the barrier.
#pragma unroll 1
    for (int slice = slices.first; slice < slices.last; ++slice) {
        const bool more = slice + ahead < slices.last;
        const int later = more ? slices.at(slice + ahead) : 0;
        const bool whole = more && later < plain;
        copy_edge(more && !whole, filling, later);
        const u32 next = slice + 1 < slices.last ? after(stage) : stage;
#pragma unroll
        for (int step = 0; step < steps; ++step) {
            const bool end = step == steps - 1;
            const auto multiply_rows = [&](int from, int to) {
#pragma unroll
                for (int i = from; i < to; ++i)
#pragma unroll
                    for (int j = 0; j < wide * 2; ++j) {
                        const Fragments<S>& x = fragments[step % 2];
                        multiply(f.a, sum[i][j], x.a[i], x.b[j / 2][j % 2 * 2], x.b[j / 2][j % 2 * 2 + 1]);
                    }
            };
            if (end) {
                // In the middle of a step: its products go on while warps wait for each other and for the next fragments.
                multiply_rows(0, tall / 2);
                wait_copies<S::stages - 2>();
                __syncthreads();
                load(fragments[0], next, 0);
                multiply_rows(tall / 2, tall);
            } else {
                load(fragments[(step + 1) % 2], stage, step + 1);
                if (step == 0) a.whole(whole, filling, later);
                if (step == 1) {
                    b.whole(whole, filling + S::a_bytes, later);
                    // A group even if it is empty: waiting counts groups.
                    commit_copies();
                }
                multiply_rows(0, tall);
            }
        }
        filling = after(filling);
        stage = next;
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
            const float4 v = load_shared_vector(tile + swizzle_rows<64>(first + lane_index<false, LANES>(lane, i), quarter));
            x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
        }
    }
}

template <typename S, bool A_SLAB, bool B_SLAB>
__device__ __forceinline__ void multiply_slices_f32(float (&sum)[8][8], u32 shared, const Factors<float>& f, int row,
                                                    int column, const Slices& slices) {
    static_assert(S::slice_bytes == 64, "four quarters of 4 k");
    static_assert(S::warp_rows == 32 && S::warp_columns == 64, "8×8 a lane, 4×8 lanes");
    constexpr int ring = S::stages * S::stage_bytes, ahead = S::stages - 1;
    const auto after = [&](u32 stage) { return stage + S::stage_bytes == shared + ring ? shared : stage + S::stage_bytes; };
    const Copies<S, S::rows, A_SLAB> a(f.a, f.lda, row, f.m, f.k);
    const Copies<S, S::columns, B_SLAB> b(f.b, f.ldb, column, f.n, f.k);
    const int lane = threadIdx.x % WARP;
    u32 filling = shared, stage = shared;
#pragma unroll 1
    for (int slice = slices.first - ahead; slice < slices.last; ++slice) {
        const bool begun = slice >= slices.first;
        if (begun) {
            wait_copies<S::stages - 2>();
            __syncthreads();
        }
        if (slice + ahead < slices.last) {
            a.edge(filling, slices.at(slice + ahead));
            b.edge(filling + S::a_bytes, slices.at(slice + ahead));
        }
        commit_copies();
        filling = after(filling);
        if (!begun) continue;
#pragma unroll 1
        for (int quarter = 0; quarter < 4; ++quarter) {
            float x[8][4], y[8][4];
            load_quarter<A_SLAB, S::rows, 4>(x, stage, S::warp_row(), lane / 8, quarter);
            load_quarter<B_SLAB, S::columns, 8>(y, stage + S::a_bytes, S::warp_column(), lane % 8, quarter);
#pragma unroll
            for (int p = 0; p < 4; ++p)
#pragma unroll
                for (int i = 0; i < 8; ++i)
#pragma unroll
                    for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(x[i][p], y[j][p], sum[i][j]);
        }
        stage = after(stage);
    }
    wait_copies<0>();
    __syncthreads();
}
