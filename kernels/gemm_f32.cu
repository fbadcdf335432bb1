// Products of f32 on the CUDA cores, exact to the rounding of f32. What they compute, and how: gemm.cuh.
#include "gemm.cuh"

template <typename S>
__device__ __forceinline__ void gemm_fma(const Factors<float>& f, int layout, const float* inner_mask, int splits,
                                         float* partials, const GemmEpilogue& e) {
    static_assert(S::threads / WARP * 16 * STAGED_LD<64> * 4 <= S::stages * S::stage_bytes, "staging fits");
    const Corner corner(e.m, e.n, S::rows, S::columns);
    float sum[8][8] = {};
    if (any_live<S::columns>(e, corner.column)) {
        const Slices slices = my_slices<S>(f.k, splits, inner_mask);
        const u32 shared = shared_address(shared_bytes);
        if (layout == 0)
            multiply_slices_f32<S, false, false>(sum, shared, f, corner.row, corner.column, slices);
        else if (layout == 1)
            multiply_slices_f32<S, false, true>(sum, shared, f, corner.row, corner.column, slices);
        else
            multiply_slices_f32<S, true, true>(sum, shared, f, corner.row, corner.column, slices);
    }
    constexpr int ld = STAGED_LD<64>;
    const int lane = threadIdx.x % WARP, tx = lane % 8, ty = lane / 8;
    int row = corner.row + S::warp_row();
    float* staged = reinterpret_cast<float*>(shared_bytes) + threadIdx.x / WARP * 16 * ld;
    float* mine = my_partials(partials, splits, e.m, partials_ld(e.n));
    const GemmQuad quad(e, corner.column + S::warp_column() + lane % 16 * 4);
    const Dropout dropout = dropout_of(e.key, e.site, e.threshold, e.scale);
#pragma unroll 1
    for (int half = 0; half < 2; ++half, row += 16) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int y = layout == 2 ? lane_index<true, 4>(ty, i) : lane_index<false, 4>(ty, i);
                const int x = layout == 0 ? lane_index<false, 8>(tx, j) : lane_index<true, 8>(tx, j);
                staged[y * ld + x] = sum[i][j];
                sum[i][j] = sum[i + 4][j];
            }
        __syncwarp();
        finish_rows<64>(e, dropout, staged, row, quad, mine, partials_ld(e.n));
        __syncwarp();
    }
}

/// f32 by tiles of 64×128, four warps of 32×64, 8×8 a thread.
extern "C" __global__ void __launch_bounds__(128, 3) gemm_f32_64x128(
    const float* __restrict__ a, int lda, const float* __restrict__ b, int ldb, int m, int n, int k, int layout,
    const float* inner_mask, int splits, float* partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    gemm_fma<Tile<float, 64, 128, 32, 64, 3, 64>>({a, b, lda, ldb, m, n, k}, layout, inner_mask, splits, partials, EPILOGUE);
}
