// Layer normalisation, forward, and the sums of its parameters' gradients. What they compute, and how: norm.cuh.
#include "norm.cuh"

/// `y = gamma·(x − mean)·rstd + beta`; `mean` and `rstd` are written. Blocks of 8 rows.
extern "C" __global__ void __launch_bounds__(FORWARD_WARPS* WARP)
    layer_norm_f32(const float* __restrict__ x, int ldx, const float* __restrict__ gamma, const float* __restrict__ beta,
                   float epsilon, float* __restrict__ y, int ldy, float* __restrict__ mean, float* __restrict__ rstd,
                   int rows, int cols) {
    forward(x, ldx, gamma, beta, epsilon, y, ldy, mean, rstd, rows, cols);
}

/// As `layer_norm_f32`, of bf16 rows.
extern "C" __global__ void __launch_bounds__(FORWARD_WARPS* WARP)
    layer_norm_bf16(const bf16* __restrict__ x, int ldx, const float* __restrict__ gamma, const float* __restrict__ beta,
                    float epsilon, bf16* __restrict__ y, int ldy, float* __restrict__ mean, float* __restrict__ rstd,
                    int rows, int cols) {
    forward(x, ldx, gamma, beta, epsilon, y, ldy, mean, rstd, rows, cols);
}

/// `dgamma` and `dbeta += Σ_blocks partials`, either of them null where not wanted. Blocks of 32 columns × 16 threads,
/// over 2·cols columns.
extern "C" __global__ void __launch_bounds__(SUMMED_BY* WARP)
    layer_norm_parameters_f32(const float* __restrict__ partials, int blocks, int cols, float* __restrict__ dgamma,
                              float* __restrict__ dbeta) {
    __shared__ float shared[SUMMED_BY * WARP];
    const int column = blockIdx.x * WARP + threadIdx.x % WARP;
    const bool inside = column < 2 * cols;
    const float sum = column_total(inside ? blocks : 0, shared, [&](int block) {
        return partials[static_cast<long long>(block) * 2 * cols + column];
    });
    if (!inside || threadIdx.x >= WARP) return;
    float* to = column < cols ? dgamma : dbeta;
    if (to) to[column % cols] += sum;
}
