// The losses of ops/loss, each with its gradient in the same launch.
//
//   cross_entropy_{narrow,wide}   logits [R, C] f32, labels, weights, losses [R] -> dlogits [R, C] f32 (wide: also bf16)
//   distillation_{narrow,wide}    student, teacher [R, C] -> losses [R], dstudent [R, C]
//   squared_error                 x [R, 1], targets [R] -> losses [R], dx [R, 1]
//   span_distillation             student, teacher [T, 2], cu_seqlens [B + 1] -> losses [B], dstudent [T, 2]
//   span                          logits [T, 2], cu_seqlens [B + 1] -> losses [B], dlogits [T, 2]
//
// A row of logits is turned into its gradient by one warp (narrow: up to NARROW classes, several rows a block) or by one
// block (wide: vocabularies). A row of a vocabulary is 200 KB: too large for registers or shared memory, so it is read
// twice, once for a running maximum and sum and once for the gradient; the second read comes from L2, since the rows in
// flight fit there. Floor: 8 bytes of memory and two exponentials a logit. The gradient may be the logits themselves:
// a thread rewrites only what it alone reads, and everybody has read the label's logit before anybody writes.
//
// Columns are taken in quads, one 16-byte access where `vector` says that rows are 16-byte aligned, else four scalar
// ones. Partial sums: a thread adds its quads in order, then the trees of the prelude: fixed for a given C.
#include "prelude.cuh"

#define QUAD 4

// Elements start..start + 3 of a row; `fill` stands for those beyond its end.
__device__ __forceinline__ void load_quad(const float* row, int start, int cols, bool vector, float fill, float (&to)[QUAD]) {
    if (vector && start + QUAD <= cols) {
        load_vector(row + start, to);
        return;
    }
#pragma unroll
    for (int i = 0; i < QUAD; ++i) to[i] = start + i < cols ? row[start + i] : fill;
}

__device__ __forceinline__ void store_whole_quad(float* to, const float (&from)[QUAD]) { store_vector(to, from); }
__device__ __forceinline__ void store_whole_quad(bf16* to, const float (&from)[QUAD]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]));
}
template <typename T>
__device__ __forceinline__ void store_quad(T* row, int start, int cols, bool vector, const float (&from)[QUAD]) {
    if (vector && start + QUAD <= cols) {
        store_whole_quad(row + start, from);
        return;
    }
#pragma unroll
    for (int i = 0; i < QUAD; ++i) {
        if (start + i < cols) row[start + i] = from_f32<T>(from[i]);
    }
}

// Maximum of the logits met so far and the sum of exp(scale*(z - max)) over them.
struct Softmax {
    float max = -INFINITY_F32;
    float sum = 0.0f;

    __device__ __forceinline__ void add(const float (&z)[QUAD], float scale) {
        const float high = fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3]));
        if (high > max) {
            sum *= expf(scale * (max - high));
            max = high;
        }
#pragma unroll
        for (int i = 0; i < QUAD; ++i) sum += expf(scale * (z[i] - max));
    }

    // Over the threads of a row. A thread that met no logit has maximum -inf and sum 0, and adds 0.
    template <int THREADS>
    __device__ __forceinline__ void combine(float scale, float* partials) {
        const float all = block_reduce<THREADS>(max, Max(), partials);
        sum = block_reduce<THREADS>(sum * expf(scale * (max - all)), Sum(), partials);
        max = all;
    }
};

template <int THREADS, typename T>
__device__ __forceinline__ void zero_row(T* row, int cols, bool vector) {
    const float zeros[QUAD] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int start = QUAD * (threadIdx.x % THREADS); start < cols; start += QUAD * THREADS)
        store_quad(row, start, cols, vector, zeros);
}

// One row by THREADS threads: all of a block, or one warp of it. `old` is added to the gradient, null for none.
template <int THREADS, typename T>
__device__ __forceinline__ void cross_entropy_row(const float* z, int label, float weight, float* loss, T* gradient,
                                                  const float* old, int cols, bool vector, float* partials) {
    const int thread = threadIdx.x % THREADS;
    if (label < 0 || weight == 0.0f) {
        if (thread == 0) *loss = 0.0f;
        if (gradient != nullptr && old == nullptr) zero_row<THREADS>(gradient, cols, vector);
        return;
    }
    const float z_label = z[label];
    Softmax softmax;
    float quad[QUAD], sum[QUAD];
    for (int start = QUAD * thread; start < cols; start += QUAD * THREADS) {
        load_quad(z, start, cols, vector, -INFINITY_F32, quad);
        softmax.add(quad, 1.0f);
    }
    softmax.combine<THREADS>(1.0f, partials);
    if (thread == 0) *loss = (softmax.max - z_label) + logf(softmax.sum);
    if (gradient == nullptr) return;
    // A reduction over a block ended with a barrier; one over a warp orders no memory.
    __syncwarp();
    const float factor = weight / softmax.sum;
    for (int start = QUAD * thread; start < cols; start += QUAD * THREADS) {
        load_quad(z, start, cols, vector, -INFINITY_F32, quad);
#pragma unroll
        for (int i = 0; i < QUAD; ++i) {
            quad[i] = factor * expf(quad[i] - softmax.max) - (start + i == label ? weight : 0.0f);
        }
        if (old != nullptr) {
            load_quad(old, start, cols, vector, 0.0f, sum);
#pragma unroll
            for (int i = 0; i < QUAD; ++i) quad[i] += sum[i];
        }
        store_quad(gradient, start, cols, vector, quad);
    }
}

/// Cross-entropy of up to a few hundred classes, a warp a row: `logits`, `dlogits` `[rows, cols]`, one value a row for
/// `labels`, `weights` and `losses`. `dlogits` may be null or `logits`; it is added to where `accumulate`.
extern "C" __global__ void __launch_bounds__(128)
cross_entropy_narrow(const float* logits, int ld_logits, const int* labels, const float* weights, float* losses,
                     float* dlogits, int ld_dlogits, int accumulate, int rows, int cols, int vector) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    float* gradient = dlogits == nullptr ? nullptr : dlogits + static_cast<size_t>(row) * ld_dlogits;
    cross_entropy_row<WARP>(logits + static_cast<size_t>(row) * ld_logits, labels[row], weights[row], losses + row,
                            gradient, accumulate ? gradient : nullptr, cols, vector, static_cast<float*>(nullptr));
}

/// The same for many classes, a block a row.
extern "C" __global__ void __launch_bounds__(512)
cross_entropy_wide(const float* logits, int ld_logits, const int* labels, const float* weights, float* losses,
                   float* dlogits, int ld_dlogits, int accumulate, int cols, int vector) {
    __shared__ float partials[512 / WARP];
    const int row = blockIdx.x;
    float* gradient = dlogits == nullptr ? nullptr : dlogits + static_cast<size_t>(row) * ld_dlogits;
    cross_entropy_row<512>(logits + static_cast<size_t>(row) * ld_logits, labels[row], weights[row], losses + row,
                           gradient, accumulate ? gradient : nullptr, cols, vector, partials);
}

/// The same with the gradient as bf16, the operand of the matrix products of the fused language-model head.
extern "C" __global__ void __launch_bounds__(512)
cross_entropy_wide_bf16(const float* logits, int ld_logits, const int* labels, const float* weights, float* losses,
                        bf16* dlogits, int ld_dlogits, int cols, int vector) {
    __shared__ float partials[512 / WARP];
    const int row = blockIdx.x;
    cross_entropy_row<512>(logits + static_cast<size_t>(row) * ld_logits, labels[row], weights[row], losses + row,
                           dlogits + static_cast<size_t>(row) * ld_dlogits, static_cast<const float*>(nullptr), cols,
                           vector, partials);
}

// temperature^2 * KL(teacher || student) of one row and weight * temperature * (q - p) as its gradient.
template <int THREADS>
__device__ __forceinline__ void distillation_row(const float* student, const float* teacher, float temperature, float weight,
                                                 float* loss, float* gradient, bool accumulate, int cols, bool vector,
                                                 float* partials) {
    const int thread = threadIdx.x % THREADS;
    if (weight == 0.0f) {
        if (thread == 0) *loss = 0.0f;
        if (gradient != nullptr && !accumulate) zero_row<THREADS>(gradient, cols, vector);
        return;
    }
    const float scale = 1.0f / temperature;
    Softmax p, q;
    float of_teacher[QUAD], of_student[QUAD], old[QUAD];
    for (int start = QUAD * thread; start < cols; start += QUAD * THREADS) {
        load_quad(teacher, start, cols, vector, -INFINITY_F32, of_teacher);
        load_quad(student, start, cols, vector, -INFINITY_F32, of_student);
        p.add(of_teacher, scale);
        q.add(of_student, scale);
    }
    p.combine<THREADS>(scale, partials);
    q.combine<THREADS>(scale, partials);
    const float log_sum_p = logf(p.sum), log_sum_q = logf(q.sum);
    const float factor = weight * temperature;
    const float of_p = factor / p.sum, of_q = factor / q.sum;
    float divergence = 0.0f;
    for (int start = QUAD * thread; start < cols; start += QUAD * THREADS) {
        load_quad(teacher, start, cols, vector, p.max, of_teacher);
        load_quad(student, start, cols, vector, q.max, of_student);
#pragma unroll
        for (int i = 0; i < QUAD; ++i) {
            const float a = scale * (of_teacher[i] - p.max), b = scale * (of_student[i] - q.max);
            const float log_p = a - log_sum_p, log_q = b - log_sum_q;
            if (start + i < cols) divergence += expf(log_p) * (log_p - log_q);
            of_student[i] = of_q * expf(b) - of_p * expf(a);
        }
        if (gradient == nullptr) continue;
        if (accumulate) {
            load_quad(gradient, start, cols, vector, 0.0f, old);
#pragma unroll
            for (int i = 0; i < QUAD; ++i) of_student[i] += old[i];
        }
        store_quad(gradient, start, cols, vector, of_student);
    }
    divergence = block_reduce<THREADS>(divergence, Sum(), partials);
    if (thread == 0) *loss = temperature * temperature * divergence;
}

/// Distillation over up to a few hundred classes, a warp a row: `student`, `teacher`, `dstudent` (or null)
/// `[rows, cols]`, `weights`, `losses` `[rows]`.
extern "C" __global__ void __launch_bounds__(128)
distillation_narrow(const float* student, int ld_student, const float* teacher, int ld_teacher, float temperature,
                    const float* weights, float* losses, float* dstudent, int ld_dstudent, int accumulate, int rows,
                    int cols, int vector) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    distillation_row<WARP>(student + static_cast<size_t>(row) * ld_student, teacher + static_cast<size_t>(row) * ld_teacher,
                           temperature, weights[row], losses + row,
                           dstudent == nullptr ? nullptr : dstudent + static_cast<size_t>(row) * ld_dstudent, accumulate,
                           cols, vector, static_cast<float*>(nullptr));
}

/// The same for many classes, a block a row.
extern "C" __global__ void __launch_bounds__(512)
distillation_wide(const float* student, int ld_student, const float* teacher, int ld_teacher, float temperature,
                  const float* weights, float* losses, float* dstudent, int ld_dstudent, int accumulate, int cols,
                  int vector) {
    __shared__ float partials[512 / WARP];
    const int row = blockIdx.x;
    distillation_row<512>(student + static_cast<size_t>(row) * ld_student, teacher + static_cast<size_t>(row) * ld_teacher,
                          temperature, weights[row], losses + row,
                          dstudent == nullptr ? nullptr : dstudent + static_cast<size_t>(row) * ld_dstudent, accumulate,
                          cols, vector, partials);
}

/// `(x - target)^2`, a thread a row: `x`, `dx` (or null) `[rows, 1]`, `targets`, `weights`, `losses` `[rows]`.
extern "C" __global__ void __launch_bounds__(256)
squared_error(const float* x, int ld_x, const float* targets, const float* weights, float* losses, float* dx, int ld_dx,
              int accumulate, int rows) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const float weight = weights[row];
    const float difference = weight != 0.0f ? x[static_cast<size_t>(row) * ld_x] - targets[row] : 0.0f;
    losses[row] = difference * difference;
    if (dx != nullptr) {
        float* into = dx + static_cast<size_t>(row) * ld_dx;
        *into = 2.0f * weight * difference + (accumulate ? *into : 0.0f);
    }
}

/// Start and end of an answer, a block a sequence: `logits`, `dlogits` (or null) `[tokens, 2]`, one value a sequence for
/// `starts`, `ends`, `weights`, `losses`. A position outside its sequence is ignored.
extern "C" __global__ void __launch_bounds__(128)
span(const float* logits, int ld_logits, const int* starts, const int* ends, const int* cu_seqlens,
     const float* weights, float* losses, float* dlogits, int ld_dlogits) {
    __shared__ float partials[128 / WARP];
    const int sequence = blockIdx.x;
    const int first = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - first;
    const float weight = weights[sequence];
    float loss = 0.0f;
    for (int column = 0; column < 2; ++column) {
        const int position = column == 0 ? starts[sequence] : ends[sequence];
        const float* z = logits + static_cast<size_t>(first) * ld_logits + column;
        float* gradient = dlogits == nullptr ? nullptr : dlogits + static_cast<size_t>(first) * ld_dlogits + column;
        const bool counted = weight != 0.0f && position >= 0 && position < length;
        float max = -INFINITY_F32, sum = 0.0f;
        if (counted) {
            for (int t = threadIdx.x; t < length; t += blockDim.x)
                max = fmaxf(max, z[static_cast<size_t>(t) * ld_logits]);
            max = block_reduce<128>(max, Max(), partials);
            for (int t = threadIdx.x; t < length; t += blockDim.x)
                sum += expf(z[static_cast<size_t>(t) * ld_logits] - max);
            sum = block_reduce<128>(sum, Sum(), partials);
            loss += 0.5f * ((max - z[static_cast<size_t>(position) * ld_logits]) + logf(sum));
        }
        if (gradient == nullptr) continue;
        // In place is allowed: the label's logit has been read by all.
        __syncthreads();
        for (int t = threadIdx.x; t < length; t += blockDim.x) {
            const float p = counted ? 0.5f * weight / sum * expf(z[static_cast<size_t>(t) * ld_logits] - max) : 0.0f;
            gradient[static_cast<size_t>(t) * ld_dlogits] = counted && t == position ? p - 0.5f * weight : p;
        }
    }
    if (threadIdx.x == 0) losses[sequence] = loss;
}

// Maximum and Σ exp(scale*(z - max)) of `length` logits, one every `ld`, over a block of 128 threads.
__device__ __forceinline__ Softmax softmax_of_column(const float* z, int ld, int length, float scale, float* partials) {
    Softmax softmax;
    for (int t = threadIdx.x; t < length; t += 128) softmax.max = fmaxf(softmax.max, z[static_cast<size_t>(t) * ld]);
    softmax.max = block_reduce<128>(softmax.max, Max(), partials);
    for (int t = threadIdx.x; t < length; t += 128)
        softmax.sum += expf(scale * (z[static_cast<size_t>(t) * ld] - softmax.max));
    softmax.sum = block_reduce<128>(softmax.sum, Sum(), partials);
    return softmax;
}

/// Distillation of the start and the end of an answer, a block a sequence: `student`, `teacher`, `dstudent` (or null)
/// `[tokens, 2]`, `weights`, `losses` one value a sequence.
extern "C" __global__ void __launch_bounds__(128)
span_distillation(const float* student, int ld_student, const float* teacher, int ld_teacher, float temperature,
                  const int* cu_seqlens, const float* weights, float* losses, float* dstudent, int ld_dstudent,
                  int accumulate) {
    __shared__ float partials[128 / WARP];
    const int sequence = blockIdx.x;
    const size_t first = cu_seqlens[sequence];
    const int length = cu_seqlens[sequence + 1] - cu_seqlens[sequence];
    const float weight = weights[sequence], scale = 1.0f / temperature;
    const bool counted = weight != 0.0f && length > 0;
    float loss = 0.0f;
    for (int column = 0; column < 2; ++column) {
        const float* of_student = student + first * ld_student + column;
        const float* of_teacher = teacher + first * ld_teacher + column;
        float* gradient = dstudent == nullptr ? nullptr : dstudent + first * ld_dstudent + column;
        Softmax p, q;
        if (counted) {
            p = softmax_of_column(of_teacher, ld_teacher, length, scale, partials);
            q = softmax_of_column(of_student, ld_student, length, scale, partials);
        }
        const float log_sum_p = logf(p.sum), log_sum_q = logf(q.sum);
        const float factor = 0.5f * weight * temperature, of_p = factor / p.sum, of_q = factor / q.sum;
        float divergence = 0.0f;
        for (int t = threadIdx.x; t < length; t += 128) {
            float slope = 0.0f;
            if (counted) {
                const float a = scale * (of_teacher[static_cast<size_t>(t) * ld_teacher] - p.max);
                const float b = scale * (of_student[static_cast<size_t>(t) * ld_student] - q.max);
                const float log_p = a - log_sum_p, log_q = b - log_sum_q;
                divergence += expf(log_p) * (log_p - log_q);
                slope = of_q * expf(b) - of_p * expf(a);
            }
            if (gradient == nullptr) continue;
            float* into = gradient + static_cast<size_t>(t) * ld_dstudent;
            *into = slope + (accumulate ? *into : 0.0f);
        }
        if (counted) loss += 0.5f * temperature * temperature * block_reduce<128>(divergence, Sum(), partials);
    }
    if (threadIdx.x == 0) losses[sequence] = loss;
}
