// The body of the product kernels, of all gemm_*.cu.
//
// C = epilogue(op(A)·op(B)); src/ops/gemm/mod.rs has the formula, src/ops/gemm/cuda.rs chooses kernel, tile and split.
//
// C [m, n] is cut into tiles, one a block; a block goes through k in slices (gemm_tile.cuh) and finishes its tile from
// registers (gemm_epilogue.cuh). Where the tiles are too few for the device, k is cut into `splits` parts as well: their
// sums go to scratch memory, and `gemm_finish` adds them in order, so the result depends on no schedule.
// Layouts: 0: A [m, k], B [n, k] (a linear layer); 1: A [m, k], B [k, n] (its input gradient); 2: A [k, m], B [k, n]
// (its weight gradient). All are paths of one kernel, for they share the epilogue, which is most of the code.
//
// Floor: 2·m·n·k FLOPs (tensor cores for bf16, f16 and tf32, multiply-adds of the CUDA cores for f32); bytes of A and B once,
// C once. From L2 each block reads (1/rows + 1/columns) elements a multiply-add: at 128×128 1/64.
// From shared memory a warp reads (1/warp_rows + 1/warp_columns): with 64×64 a warp the reads take about 2/3 of
// the time of the products on a GPU with 1024 dense multiply-adds a cycle and multiprocessor, with 64×32 all of it.
#pragma once
#include "gemm_epilogue.cuh"
#include "gemm_tile.cuh"

extern __shared__ __align__(128) u8 shared_bytes[];

// The place of a block's tile. Blocks that run at the same time, whose numbers are close, should share rows of A and
// columns of B in L2: they go down groups of GROUP tiles before they go right.
#define GROUP 8
struct Corner {
    int row, column;
    __device__ __forceinline__ Corner(int m, int n, int tile_rows, int tile_columns) {
        const int down = (m + tile_rows - 1) / tile_rows, right = (n + tile_columns - 1) / tile_columns;
        const int id = blockIdx.x, group = id / (GROUP * right), first = group * GROUP;
        const int height = min(down - first, GROUP), within = id - first * right;
        row = (first + within % height) * tile_rows;
        column = within / height * tile_columns;
    }
};

// Whether any of the COLUMNS columns from `column` on is to be computed. Every warp finds out for itself.
template <int COLUMNS>
__device__ __forceinline__ bool any_live(const GemmEpilogue& e, int column) {
    if (e.neuron_mask == nullptr || e.has(GEMM_COMPUTE_MASKED)) return true;
    bool live = false;
    for (int j = column + threadIdx.x % WARP; j < min(column + COLUMNS, e.n); j += WARP) live |= e.neuron_mask[j] != 0.0f;
    return __any_sync(FULL_MASK, live);
}

// Lists the slices of LENGTH k in which `inner_mask` is not all 0 to `list`; `list` holds one entry more than there are
// slices, and the last receives their number. Begins and ends with a barrier.
template <int LENGTH, int THREADS>
__device__ __forceinline__ int list_live(const float* inner_mask, int k, u16* list) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, count = (k + LENGTH - 1) / LENGTH;
    for (int slice = warp; slice < count; slice += THREADS / WARP) {
        bool live = false;
        for (int p = slice * LENGTH + lane; p < min((slice + 1) * LENGTH, k); p += WARP) live |= inner_mask[p] != 0.0f;
        const bool any = __any_sync(FULL_MASK, live);
        if (lane == 0) list[slice] = any;
    }
    __syncthreads();
    if (warp == 0) {
        // In place: what is written lies at or before what has been read.
        int listed = 0;
        for (int first = 0; first < count; first += WARP) {
            const bool live = first + lane < count && list[first + lane] != 0;
            const u32 ballot = __ballot_sync(FULL_MASK, live);
            __syncwarp(); // a vote orders no memory
            if (live) list[listed + __popc(ballot & ((1u << lane) - 1))] = first + lane;
            listed += __popc(ballot);
            __syncwarp();
        }
        if (lane == 0) list[count] = listed;
    }
    __syncthreads();
    return list[count];
}

// Part `blockIdx.y` of `splits` of the slices.
template <typename S>
__device__ __forceinline__ Slices my_slices(int k, int splits, const float* inner_mask) {
    Slices slices = {0, (k + S::slice - 1) / S::slice, nullptr};
    if (inner_mask != nullptr) {
        u16* list = reinterpret_cast<u16*>(shared_bytes + S::stages * S::stage_bytes);
        slices.last = list_live<S::slice, S::threads>(inner_mask, k, list);
        slices.live = list;
    }
    const int count = slices.last, part = blockIdx.y;
    slices.first = static_cast<int>(static_cast<long long>(count) * part / splits);
    slices.last = static_cast<int>(static_cast<long long>(count) * (part + 1) / splits);
    return slices;
}

// Where part `blockIdx.y` leaves its sums [m, ld], or null if there is but one part.
__device__ __forceinline__ float* my_partials(float* partials, int splits, int m, int ld) {
    return splits == 1 ? nullptr : partials + static_cast<long long>(blockIdx.y) * m * ld;
}
__device__ __forceinline__ int partials_ld(int n) { return (n + 3) / 4 * 4; }

template <typename S>
__device__ __forceinline__ void gemm_mma(const Factors<typename S::T>& f, int layout, const float* inner_mask, int splits, float* partials,
                                         const GemmEpilogue& e) {
    static_assert(S::threads / WARP * 16 * STAGED_LD<S::warp_columns> * 4 <= S::stages * S::stage_bytes, "staging fits");
    constexpr int tall = S::warp_rows / 16, wide = S::warp_columns / 8;
    const Corner corner(e.m, e.n, S::rows, S::columns);
    float sum[tall][wide][4] = {};
    if (any_live<S::columns>(e, corner.column)) {
        const Slices slices = my_slices<S>(f.k, splits, inner_mask);
        const u32 shared = shared_address(shared_bytes);
        if (layout == 0)
            multiply_slices<S, false, false>(sum, shared, f, corner.row, corner.column, slices);
        else if (layout == 1)
            multiply_slices<S, false, true>(sum, shared, f, corner.row, corner.column, slices);
        else
            multiply_slices<S, true, true>(sum, shared, f, corner.row, corner.column, slices);
    }
    constexpr int ld = STAGED_LD<S::warp_columns>;
    const int lane = threadIdx.x % WARP, column = corner.column + S::warp_column();
    int row = corner.row + S::warp_row();
    float* staged = reinterpret_cast<float*>(shared_bytes) + threadIdx.x / WARP * 16 * ld;
    float* mine = my_partials(partials, splits, e.m, partials_ld(e.n));
    const GemmQuad quad(e, column + lane % (S::warp_columns / 4) * 4);
    const Dropout dropout = dropout_of(e.key, e.site, e.threshold, e.scale);
#pragma unroll 1
    for (int i = 0; i < tall; ++i, row += 16) {
        float* at = staged + lane / 4 * ld + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < wide; ++j) {
            *reinterpret_cast<float2*>(at + j * 8) = make_float2(sum[0][j][0], sum[0][j][1]);
            *reinterpret_cast<float2*>(at + j * 8 + 8 * ld) = make_float2(sum[0][j][2], sum[0][j][3]);
        }
        // Registers have no index: the next 16 rows move to where these were.
#pragma unroll
        for (int r = 1; r < tall; ++r)
#pragma unroll
            for (int j = 0; j < wide; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[r - 1][j][c] = sum[r][j][c];
        __syncwarp();
        finish_rows<S::warp_columns>(e, dropout, staged, row, quad, mine, partials_ld(e.n));
        __syncwarp();
    }
}

// Any layout and alignment, f32 arithmetic, one element at a time: for operands whose rows do not start on 16 bytes (column
// slices after pruning) and for op(A) = Aᵀ with op(B) = Bᵀ, which no model needs. Element (i, p) of op(A) is at
// i·a_row + p·a_k, (p, j) of op(B) at p·b_k + j·b_column. 64×64 a block of 256 threads, 4×4 a thread, 16 k at a time.
template <typename T>
__device__ __forceinline__ void gemm_strided(const T* a, int a_row, int a_k, const T* b, int b_k, int b_column, int k,
                                             const float* inner_mask, const GemmEpilogue& e) {
    __shared__ float a_tile[16][68], b_tile[16][68];
    const Corner corner(e.m, e.n, 64, 64);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[16] = {};
    const int depth = any_live<64>(e, corner.column) ? k : 0;
    for (int first = 0; first < depth; first += 16) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            // Neighbouring threads read along whichever way is contiguous.
            const int index = threadIdx.x + i * 256;
            const int ax = a_k == 1 ? index / 16 : index % 64, ap = a_k == 1 ? index % 16 : index / 64;
            const int bx = b_k == 1 ? index / 16 : index % 64, bp = b_k == 1 ? index % 16 : index / 64;
            const bool a_live = first + ap < k && corner.row + ax < e.m && (inner_mask == nullptr || inner_mask[first + ap] != 0.0f);
            const bool b_live = first + bp < k && corner.column + bx < e.n && (inner_mask == nullptr || inner_mask[first + bp] != 0.0f);
            const long long a_at = static_cast<long long>(corner.row + ax) * a_row + static_cast<long long>(first + ap) * a_k;
            const long long b_at = static_cast<long long>(corner.column + bx) * b_column + static_cast<long long>(first + bp) * b_k;
            a_tile[ap][ax] = a_live ? to_f32(a[a_at]) : 0.0f;
            b_tile[bp][bx] = b_live ? to_f32(b[b_at]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int p = 0; p < 16; ++p) {
            float x[4], y[4];
            load_vector(&a_tile[p][ty * 4], x);
            load_vector(&b_tile[p][tx * 4], y);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i * 4 + j] = fmaf(x[i], y[j], sum[i * 4 + j]);
        }
        __syncthreads();
    }
    const Dropout dropout = dropout_of(e.key, e.site, e.threshold, e.scale);
    // Registers have no index: element (0, 0) is finished, and the others move up.
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
        const int row = corner.row + ty * 4 + i / 4, column = corner.column + tx * 4 + i % 4;
        if (row < e.m && column < e.n) finish_element(e, dropout, row, column, sum[0]);
#pragma unroll
        for (int r = 1; r < 16; ++r) sum[r - 1] = sum[r];
    }
}

// The parameters that all products share. A: `a` with leading dimension `lda` and so on; `inner_mask`: [k] or null, k at
// most 1023 slices; `partials`: scratch memory for splits·m·(n rounded up to 4) floats, looked at if splits > 1; the
// rest is the epilogue's, see gemm_epilogue.cuh. Grid: [tiles, splits]; dynamic shared memory: the stages, and with an inner
// mask 2 bytes for each slice and one more.
#define EPILOGUE                                                                                                           \
    { c, preactivation, residual, bias, neuron_mask, ldc, ld_preactivation, ld_residual, m, n, key, site, threshold, scale, flags }
