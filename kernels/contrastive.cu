// The contrastive loss of queries over a bank (formulas, error bound: src/ops/contrastive/mod.rs), but for its products.
//
// Three kernels around them: queries are divided by their norms; the scores of a query, dot products with K bank rows and
// with the R queries, become the gradient of the loss in them, in place; the gradient of q goes through the norm. Rows are
// f32 or bf16, everything between is f32. A row is a block's work: R is a batch, some tens, so that the grid is small
// whatever is done, and a block must be quick. Partial sums: a thread adds every THREADS-th element in order, then the
// trees of the prelude: fixed for given sizes.
#include "rows.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)

template <typename T>
__device__ __forceinline__ void normalise(const T* x, int ldx, float norm_floor, float* q, int ldq, float* scales, int cols) {
    constexpr int count = Lanes<T>::count;
    __shared__ float partials[WARPS];
    const T* from = row_of(x, blockIdx.x, ldx);
    float* to = row_of(q, blockIdx.x, ldq);
    float values[count], squares = 0.0f;
    for (int column = threadIdx.x * count; column < cols; column += THREADS * count) {
        load_columns(from, column, cols, values);
#pragma unroll
        for (int i = 0; i < count; ++i) squares = __fmaf_rn(values[i], values[i], squares); // 0 beyond the end
    }
    const float norm = sqrtf(block_reduce<THREADS>(squares, Sum(), partials));
    const float scale = norm < norm_floor ? 0.0f : 1.0f / norm;
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    for (int column = threadIdx.x * count; column < cols; column += THREADS * count) {
        load_columns(from, column, cols, values);
#pragma unroll
        for (int i = 0; i < count; ++i) values[i] *= scale;
        store_parameters(to, column, cols, values);
    }
}

/// `q = x / |x|`, `scales = 1 / |x|`, both 0 where the norm is below `norm_floor`: `x`, `q` `[rows, cols]`. A block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    normalise_f32(const float* x, int ldx, float norm_floor, float* q, int ldq, float* scales, int cols) {
    normalise(x, ldx, norm_floor, q, ldq, scales, cols);
}

/// As `normalise_f32`, of a bf16 matrix; `q` is f32.
extern "C" __global__ void __launch_bounds__(THREADS)
    normalise_bf16(const bf16* x, int ldx, float norm_floor, float* q, int ldq, float* scales, int cols) {
    normalise(x, ldx, norm_floor, q, ldq, scales, cols);
}

// The candidates of one query, bank rows first.
struct Candidates {
    float *of_bank, *of_batch;
    const int *bank_ids, *bank_labels, *ids, *labels;
    int row, banked, rows;

    // Calls `body(score, present, same_id, same_label)` for this thread's candidates, in order.
    template <typename Body>
    __device__ __forceinline__ void each(Body body) const {
        const int id = ids[row], label = labels == nullptr ? -1 : labels[row];
        for (int j = threadIdx.x; j < banked + rows; j += THREADS) {
            const bool banks = j < banked;
            const int k = banks ? j : j - banked;
            const int candidate = banks ? bank_ids[k] : ids[k];
            const bool present = banks ? candidate >= 0 : k != row;
            const bool alike = label >= 0 && label == (banks ? bank_labels[k] : labels[k]);
            body(banks ? of_bank[k] : of_batch[k], present, present && candidate == id, present && alike);
        }
    }
};

/// Turns the dot products of each query with the bank, `bank_scores [rows, banked]`, and with the queries,
/// `own_scores [rows, rows]`, into the gradient of the loss in them; `losses [rows, 2]`. Bank rows with a negative number are
/// not there. Labels may be null. A block a query.
extern "C" __global__ void __launch_bounds__(THREADS)
    slopes(float* bank_scores, int ld_bank, float* own_scores, int ld_own, const int* bank_ids, const int* bank_labels,
           const int* ids, const int* labels, float scale, const float* weights, float* losses, int rows, int banked) {
    __shared__ float partials[WARPS];
    __shared__ int counts[WARPS];
    const int row = blockIdx.x;
    const Candidates candidates = {row_of(bank_scores, row, ld_bank), row_of(own_scores, row, ld_own),
                                   bank_ids, bank_labels, ids, labels, row, banked, rows};
    const float of_same = weights[0], of_label = weights[1];

    float max = -INFINITY_F32;
    candidates.each([&](float& score, bool present, bool, bool) {
        if (present) max = fmaxf(max, scale * score);
    });
    max = block_reduce<THREADS>(max, Max(), partials);

    float sum = 0.0f, below_same = 0.0f, below_label = 0.0f;
    int same_count = 0, label_count = 0;
    candidates.each([&](float& score, bool present, bool same, bool alike) {
        const float below = max - scale * score;
        if (present) sum += expf(-below);
        if (same) below_same += below, ++same_count;
        if (alike) below_label += below, ++label_count;
    });
    sum = block_reduce<THREADS>(sum, Sum(), partials);
    below_same = block_reduce<THREADS>(below_same, Sum(), partials);
    below_label = block_reduce<THREADS>(below_label, Sum(), partials);
    same_count = block_reduce<THREADS>(same_count, Sum(), counts);
    label_count = block_reduce<THREADS>(label_count, Sum(), counts);

    const bool counts_same = of_same != 0.0f && same_count > 0, counts_label = of_label != 0.0f && label_count > 0;
    if (threadIdx.x == 0) {
        losses[2 * row] = counts_same ? below_same / same_count + logf(sum) : 0.0f;
        losses[2 * row + 1] = counts_label ? below_label / label_count + logf(sum) : 0.0f;
    }
    const float total = (counts_same ? of_same : 0.0f) + (counts_label ? of_label : 0.0f);
    const float factor = total / sum;
    const float same_slope = counts_same ? of_same / same_count : 0.0f;
    const float label_slope = counts_label ? of_label / label_count : 0.0f;
    candidates.each([&](float& score, bool present, bool same, bool alike) {
        // Without a positive there may be no candidate and no softmax either.
        float slope = present && total > 0.0f ? factor * expf(scale * score - max) : 0.0f;
        if (same) slope -= same_slope;
        if (alike) slope -= label_slope;
        score = scale * slope;
    });
}

template <typename T>
__device__ __forceinline__ void through_norm(const float* dq, int ld_dq, const float* q, int ldq, const float* scales, T* dx,
                                             int ldx, int accumulate, int cols) {
    constexpr int count = Lanes<T>::count;
    __shared__ float partials[WARPS];
    const float *gradient = row_of(dq, blockIdx.x, ld_dq), *query = row_of(q, blockIdx.x, ldq);
    T* into = row_of(dx, blockIdx.x, ldx);
    float of_gradient[count], of_query[count], old[count];
    float along = 0.0f;
    for (int column = threadIdx.x * count; column < cols; column += THREADS * count) {
        load_parameters(gradient, column, cols, of_gradient);
        load_parameters(query, column, cols, of_query);
#pragma unroll
        for (int i = 0; i < count; ++i) along = __fmaf_rn(of_gradient[i], of_query[i], along);
    }
    along = block_reduce<THREADS>(along, Sum(), partials);
    const float scale = scales[blockIdx.x];
    for (int column = threadIdx.x * count; column < cols; column += THREADS * count) {
        load_parameters(gradient, column, cols, of_gradient);
        load_parameters(query, column, cols, of_query);
        if (accumulate) load_columns(into, column, cols, old);
#pragma unroll
        for (int i = 0; i < count; ++i) {
            of_gradient[i] = scale * (of_gradient[i] - along * of_query[i]) + (accumulate ? old[i] : 0.0f);
        }
        store_columns(into, column, cols, of_gradient);
    }
}

/// `dx = scale (dq - (dq . q) q)`, added where `accumulate`: `dq`, `q`, `dx` `[rows, cols]`. A block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    through_norm_f32(const float* dq, int ld_dq, const float* q, int ldq, const float* scales, float* dx, int ldx,
                     int accumulate, int cols) {
    through_norm(dq, ld_dq, q, ldq, scales, dx, ldx, accumulate, cols);
}

/// As `through_norm_f32`, to a bf16 matrix.
extern "C" __global__ void __launch_bounds__(THREADS)
    through_norm_bf16(const float* dq, int ld_dq, const float* q, int ldq, const float* scales, bf16* dx, int ldx,
                      int accumulate, int cols) {
    through_norm(dq, ld_dq, q, ldq, scales, dx, ldx, accumulate, cols);
}
