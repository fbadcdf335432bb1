// Backward of an activation with its neuron mask (formulas and error bounds: src/ops/activation/mod.rs).
//
// dy, preactivation, dx: [rows, cols], f32 or bf16; mask: [cols] or null; dmask: [sequences, cols] f32.
//
// Without dmask: one 16-byte piece a thread. With it, a block takes 32 pieces of columns of one sequence, each of its
// 8 warps every 8th token; dx and the sum of dy·act come from the same read, and the warps' sums are added in order.
//
// Floor, bytes an element of size s: 3s. Arithmetic: about 45 instructions for exact GELU.
#include "activation.cuh"
#include "rows.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)

// Runs the statements with `Function` as the activation; the choice stays outside their loops.
#define WITH_ACTIVATION(kind, Function, ...)                                        \
    switch (kind) {                                                                 \
        case ACTIVATION_GELU_ERF: { using Function = GeluErf; __VA_ARGS__ } break;   \
        case ACTIVATION_GELU_TANH: { using Function = GeluTanh; __VA_ARGS__ } break; \
        case ACTIVATION_RELU: { using Function = Relu; __VA_ARGS__ } break;          \
        case ACTIVATION_TANH: { using Function = Tanh; __VA_ARGS__ } break;          \
    }

// One piece: dx is written; what each column adds to dmask is added to `sum`.
template <typename Function, typename T>
__device__ __forceinline__ void piece_backward(const T* dy, const T* preactivation, const float (&mask)[Lanes<T>::count],
                                               T* dx, int column, int cols, float (&sum)[Lanes<T>::count]) {
    constexpr int count = Lanes<T>::count;
    float dys[count], xs[count];
    load_columns(dy, column, cols, dys);
    load_columns(preactivation, column, cols, xs);
#pragma unroll
    for (int j = 0; j < count; ++j) {
        const Evaluated at = Function::at(xs[j]);
        sum[j] = __fmaf_rn(dys[j], at.value, sum[j]);
        xs[j] = dys[j] * mask[j] * at.derivative;
    }
    store_columns(dx, column, cols, xs);
}

template <int COUNT>
__device__ __forceinline__ void load_mask(const float* mask, int column, int cols, float (&to)[COUNT]) {
    if (mask) {
        load_parameters(mask, column, cols, to);
    } else {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) to[j] = 1.0f;
    }
}

template <typename T>
__device__ __forceinline__ void backward(int activation, const T* dy, int lddy, const T* preactivation, int ldp,
                                         const float* mask, T* dx, int lddx, int rows, int cols) {
    const Place<T> at(rows, cols);
    if (!at.inside) return;
    float factor[Lanes<T>::count], unused[Lanes<T>::count] = {};
    load_mask(mask, at.column, cols, factor);
    WITH_ACTIVATION(activation, Function, {
        piece_backward<Function>(row_of(dy, at.row, lddy), row_of(preactivation, at.row, ldp), factor,
                                 row_of(dx, at.row, lddx), at.column, cols, unused);
    })
}

/// `dx = dy · mask · act'(preactivation)`. One 16-byte piece a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward_f32(int activation, const float* __restrict__ dy, int lddy, const float* __restrict__ preactivation,
                            int ldp, const float* __restrict__ mask, float* __restrict__ dx, int lddx, int rows, int cols) {
    backward(activation, dy, lddy, preactivation, ldp, mask, dx, lddx, rows, cols);
}

/// As `activation_backward_f32`, of bf16 matrices.
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward_bf16(int activation, const bf16* __restrict__ dy, int lddy, const bf16* __restrict__ preactivation,
                             int ldp, const float* __restrict__ mask, bf16* __restrict__ dx, int lddx, int rows, int cols) {
    backward(activation, dy, lddy, preactivation, ldp, mask, dx, lddx, rows, cols);
}

template <typename T>
__device__ __forceinline__ void backward_by_sequence(int activation, const T* dy, int lddy, const T* preactivation, int ldp,
                                                     const float* mask, T* dx, int lddx, const int* cu_seqlens,
                                                     float* dmask, int lddmask, int cols) {
    constexpr int count = Lanes<T>::count, panel = WARP * count;
    __shared__ float4 shared[WARPS * panel / 4];
    float* sums = reinterpret_cast<float*>(shared);
    const int warp = threadIdx.x / WARP, first = blockIdx.y * panel, column = first + threadIdx.x % WARP * count;
    const int start = cu_seqlens[blockIdx.x], end = cu_seqlens[blockIdx.x + 1];

    float sum[count] = {};
    if (column < cols) {
        float factor[count];
        load_mask(mask, column, cols, factor);
        WITH_ACTIVATION(activation, Function, {
            for (int row = start + warp; row < end; row += WARPS) {
                piece_backward<Function>(row_of(dy, row, lddy), row_of(preactivation, row, ldp), factor,
                                         row_of(dx, row, lddx), column, cols, sum);
            }
        })
    }
    store_parameters(sums + warp * panel, threadIdx.x % WARP * count, panel, sum);
    __syncthreads();
    const int mine = threadIdx.x;
    if (mine >= panel || first + mine >= cols) return;
    float total = sums[mine];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) total += sums[i * panel + mine];
    row_of(dmask, blockIdx.x, lddmask)[first + mine] = total;
}

/// As `activation_backward_f32`, and `dmask[b] = Σ_{t of sequence b} dy · act(preactivation)`. Blocks: sequences × panels
/// of 128 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward_by_sequence_f32(int activation, const float* __restrict__ dy, int lddy,
                                        const float* __restrict__ preactivation, int ldp, const float* __restrict__ mask,
                                        float* __restrict__ dx, int lddx, const int* __restrict__ cu_seqlens,
                                        float* __restrict__ dmask, int lddmask, int cols) {
    backward_by_sequence(activation, dy, lddy, preactivation, ldp, mask, dx, lddx, cu_seqlens, dmask, lddmask, cols);
}

/// As `activation_backward_by_sequence_f32`, of bf16 matrices; panels of 256 columns.
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward_by_sequence_bf16(int activation, const bf16* __restrict__ dy, int lddy,
                                         const bf16* __restrict__ preactivation, int ldp, const float* __restrict__ mask,
                                         bf16* __restrict__ dx, int lddx, const int* __restrict__ cu_seqlens,
                                         float* __restrict__ dmask, int lddmask, int cols) {
    backward_by_sequence(activation, dy, lddy, preactivation, ldp, mask, dx, lddx, cu_seqlens, dmask, lddmask, cols);
}
