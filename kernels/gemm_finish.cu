// The second half of a product of which k was cut into parts; see gemm.cuh.
#include "gemm.cuh"

/// Adds the parts of a product, in order, and applies its epilogue. One thread a quad of columns; 256 threads a block.
extern "C" __global__ void __launch_bounds__(256) gemm_finish(
    int m, int n, int splits, const float* __restrict__ partials, unsigned char* c, int ldc, unsigned char* preactivation,
    int ld_preactivation, const unsigned char* residual, int ld_residual, const float* bias, const float* neuron_mask,
    const int* key, unsigned site, unsigned long long threshold, float scale, int flags) {
    const GemmEpilogue e = EPILOGUE;
    const int ld = partials_ld(n), quads = ld / 4;
    const int id = blockIdx.x * 256 + threadIdx.x, row = id / quads;
    if (row >= m) return;
    const GemmQuad quad(e, id % quads * 4);
    const Dropout dropout = dropout_of(e.key, e.site, e.threshold, e.scale);
    float addend[4] = {}, sum[4];
    if (quad.whole) quad.load_addend(e, row, addend);
    const float* part = partials + static_cast<long long>(row) * ld + quad.column;
    load_vector(part, sum);
#pragma unroll 4
    for (int i = 1; i < splits; ++i) {
        float next[4];
        load_vector(part + static_cast<long long>(i) * m * ld, next);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += next[j];
    }
    if (quad.whole) {
        if (e.only_adds()) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[j] += quad.bias[j];
        } else {
            quad.transform(e, dropout, row, sum);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += addend[j];
        store_quad(e.c, static_cast<long long>(row) * e.ldc + quad.column, e.flags, sum);
    } else {
#pragma unroll 1
        for (int j = 0; j < 4; ++j) {
            if (quad.column + j < n) finish_element(e, dropout, row, quad.column + j, sum[0]);
            sum[0] = sum[1], sum[1] = sum[2], sum[2] = sum[3];
        }
    }
}
