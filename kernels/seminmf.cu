// The Gaussian kernel matrix of rows and one multiplicative update of kernel Semi-NMF: the semantics of ops/seminmf.
//
//   gaussian_kernel        X [n, d] f32 -> K [n, n], K_ij = exp(-|x_i - x_j|^2 / scale), upper tiles and mirror images
//   multiplicative_update  C, K, P = K C [n, m] -> C <- C sqrt(K / P) and partial sums of C before and after
//   first_update           the same from C = 1/n everywhere, where K C is the row sums of K over n
//   relative_growth        the partial sums -> (sum of the new C - sum of the old C) / sum of the old C
//
// Squared distances are sums of squared differences (two operations a step), not |x|^2 + |y|^2 - 2xy: that form loses
// all digits for neighbours, which are what the method looks for. Floors: 2 n^2 d operations in f32 halved by symmetry;
// the update is memory, 16 bytes an element, with the division, the root, the product and the sums in one pass.
#include "pair_tile.cuh"

struct Itself {
    __device__ __forceinline__ float operator()(int, float x) const { return x; }
};

/// `out [rows, rows]`, entries exp(-|x_i - x_j|^2 * inverse_scale) of the rows of `x [rows, cols]`; upper tile `blockIdx.x`
/// of `tiles` x `tiles` and its mirror image.
extern "C" __global__ void __launch_bounds__(256, 2)
gaussian_kernel(const float* x, int ld_x, int rows, int cols, float inverse_scale, int tiles, int vector, float* out,
                int ld_out) {
    const UpperTile tile(blockIdx.x, tiles);
    RowEntries<Itself> source(x, ld_x, rows, cols, tile, vector, 0.0f);
    float acc[8][8] = {};
    reduce_tile(source, cols, acc, [](float& sum, float a, float b) { sum = fmaf(a - b, a - b, sum); });
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int row = TILE * tile.row + place(ty, i);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int column = TILE * tile.column + place(tx, j);
            if (row >= rows || column >= rows) continue;
            const float value = expf(-acc[i][j] * inverse_scale);
            out[static_cast<size_t>(row) * ld_out + column] = value;
            if (tile.row != tile.column) out[static_cast<size_t>(column) * ld_out + row] = value;
        }
    }
}

/// Row `blockIdx.x` of `c <- c * sqrt(kernel / product)`, all `[rows, cols]`; 0 where `kernel` is 0. The row's sums of the
/// old and the new `c` go to `sums [rows, 2]`.
extern "C" __global__ void __launch_bounds__(256)
multiplicative_update(float* c, int ld_c, const float* kernel, int ld_kernel, const float* product, int ld_product, int cols,
                      double* sums) {
    __shared__ double partials[256 / WARP];
    const size_t row = blockIdx.x;
    double before = 0.0, after = 0.0;
    for (int j = threadIdx.x; j < cols; j += 256) {
        const float old = c[row * ld_c + j], k = kernel[row * ld_kernel + j], p = product[row * ld_product + j];
        const float updated = k == 0.0f ? 0.0f : old * sqrtf(k / p);
        c[row * ld_c + j] = updated;
        before += old;
        after += updated;
    }
    before = block_reduce<256>(before, Sum(), partials);
    after = block_reduce<256>(after, Sum(), partials);
    if (threadIdx.x != 0) return;
    sums[2 * row] = before;
    sums[2 * row + 1] = after;
}

/// Row `blockIdx.x` of `c [n, n]` = sqrt(kernel / (n * row sum of kernel)), the first update from 1/n everywhere; the row's
/// sums before and after go to `sums [n, 2]`.
extern "C" __global__ void __launch_bounds__(256)
first_update(float* c, int ld_c, const float* kernel, int ld_kernel, int n, double* sums) {
    __shared__ double partials[256 / WARP];
    const size_t row = blockIdx.x;
    double total = 0.0, after = 0.0;
    for (int j = threadIdx.x; j < n; j += 256) total += kernel[row * ld_kernel + j];
    total = block_reduce<256>(total, Sum(), partials);
    const float factor = static_cast<float>(1.0 / (n * total));
    for (int j = threadIdx.x; j < n; j += 256) {
        const float updated = sqrtf(kernel[row * ld_kernel + j] * factor);
        c[row * ld_c + j] = updated;
        after += updated;
    }
    after = block_reduce<256>(after, Sum(), partials);
    if (threadIdx.x != 0) return;
    sums[2 * row] = 1.0;
    sums[2 * row + 1] = after;
}

/// `growth[0]` = (new - old) / old of the sums over all rows of `sums [rows, 2]`. One block.
extern "C" __global__ void __launch_bounds__(256)
relative_growth(const double* sums, int rows, float* growth) {
    __shared__ double partials[256 / WARP];
    double before = 0.0, after = 0.0;
    for (int row = threadIdx.x; row < rows; row += 256) {
        before += sums[2 * row];
        after += sums[2 * row + 1];
    }
    before = block_reduce<256>(before, Sum(), partials);
    after = block_reduce<256>(after, Sum(), partials);
    if (threadIdx.x == 0) growth[0] = static_cast<float>((after - before) / before);
}
