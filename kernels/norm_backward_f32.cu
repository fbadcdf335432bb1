// Layer normalisation, backward, of f32 rows. What it computes, and how: norm.cuh.
// A file for each element type: its code is the longest to compile, and a run needs one of them or none.
#include "norm.cuh"

/// `dx`, added to where `accumulate`; with `partials` `[blocks, 2·cols]` the sums of `dy·x̂` and of `dy` over each block's
/// `rows_a_block` rows. 4 warps a block, 1 where `cols > 1024`.
extern "C" __global__ void __launch_bounds__(BACKWARD_WARPS* WARP)
    layer_norm_backward_f32(const float* __restrict__ dy, int lddy, const float* __restrict__ x, int ldx,
                            const float* __restrict__ gamma, const float* __restrict__ mean, const float* __restrict__ rstd,
                            float* __restrict__ dx, int lddx, int accumulate, float* __restrict__ partials,
                            int rows_a_block, int rows, int cols) {
    if (partials) {
        backward<float, true>(dy, lddy, x, ldx, gamma, mean, rstd, dx, lddx, accumulate, partials, rows_a_block, rows, cols);
    } else {
        backward<float, false>(dy, lddy, x, ldx, gamma, mean, rstd, dx, lddx, accumulate, partials, rows_a_block, rows, cols);
    }
}
