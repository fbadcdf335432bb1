// Layer normalisation, backward, of bf16 rows. What it computes, and how: norm.cuh.
// A file for each element type: its code is the longest to compile, and a run needs one of them or none.
#include "norm.cuh"

/// As `layer_norm_backward_f32`, of bf16 rows.
extern "C" __global__ void __launch_bounds__(BACKWARD_WARPS* WARP)
    layer_norm_backward_bf16(const bf16* __restrict__ dy, int lddy, const bf16* __restrict__ x, int ldx,
                             const float* __restrict__ gamma, const float* __restrict__ mean, const float* __restrict__ rstd,
                             bf16* __restrict__ dx, int lddx, int accumulate, float* __restrict__ partials,
                             int rows_a_block, int rows, int cols) {
    if (partials) {
        backward<bf16, true>(dy, lddy, x, ldx, gamma, mean, rstd, dx, lddx, accumulate, partials, rows_a_block, rows, cols);
    } else {
        backward<bf16, false>(dy, lddy, x, ldx, gamma, mean, rstd, dx, lddx, accumulate, partials, rows_a_block, rows, cols);
    }
}
