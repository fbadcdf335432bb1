// What the attention kernels of both element types share: which rows a block works on, and the bits of dropout.
#pragma once
#include "philox.cuh"
#include "prelude.cuh"

#define LOG2_E 1.44269504088896341f

// Rows of one sequence that a block works on: `first ..` of the sequence's `length`, which begin at token `start`.
struct Rows {
    int sequence, start, length, first;
};

// Deals tiles of `TILE` rows to the blocks: a sequence of n tokens has at most n / TILE + 1 tiles, and
// floor(end / TILE) − floor(start / TILE) + 1 block numbers are set aside for it, so that sequence b's tiles begin at
// number floor(cu_seqlens[b] / TILE) + b. No list has to be made, and no more than one block a sequence finds nothing
// to do. Every warp of the block asks for itself, all 32 lanes together.
//
// `last_first` deals a sequence's last tiles first: those see the most keys where attention is causal.
template <int TILE>
__device__ __forceinline__ Rows find_rows(const int* __restrict__ cu_seqlens, int sequences, int block,
                                          bool last_first) {
    int begun = 0;
    for (int base = 0; base < sequences; base += WARP) {
        const int b = base + static_cast<int>(threadIdx.x) % WARP;
        const bool before = b < sequences && cu_seqlens[b] / TILE + b <= block;
        begun += __popc(__ballot_sync(FULL_MASK, before));
    }
    const int sequence = begun - 1;
    const int start = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - start;
    const int tile = block - start / TILE - sequence, tiles = (length + TILE - 1) / TILE;
    return {sequence, start, length, (last_first && tile < tiles ? tiles - 1 - tile : tile) * TILE};
}

// A dropout layer as the kernel was told it. What lies in device memory is read anew for every tile, rather than held in
// registers that the products need.
struct DropoutArguments {
    const int* key;
    u32 site;
    u64 threshold;
    float scale;

    __device__ __forceinline__ bool active() const { return key != nullptr; }
    __device__ __forceinline__ Dropout in_this_run() const { return dropout_of(key, site, threshold, scale); }
    // What kept probabilities are multiplied by. With p = 1 nothing is kept and 1 / (1 − p) is no number to multiply
    // with.
    __device__ __forceinline__ float kept_factor() const {
        return !active() ? 1.0f : threshold > 0xffffffffull ? 0.0f : scale;
    }
};

// Which of the four probabilities of a query at keys 4·group … 4·group + 3 dropout keeps: bit i for key i.
__device__ __forceinline__ u32 kept_of_four(const Dropout& dropout, int row, int group) {
    const uint4 word = dropout.words(row, group);
    return dropout.keeps(word.x) | dropout.keeps(word.y) << 1 | dropout.keeps(word.z) << 2 |
           dropout.keeps(word.w) << 3;
}

// 2^x, to 2 ulp; 2^−∞ is 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// row_statistics [2, heads, tokens]: lse, then delta = Σ_j dout·out over the head's columns. `lanes` neighbouring threads,
// a power of two up to 32, share a (token, head). Where `vector` says that every head of every row is aligned to 16 bytes, they read that much each and
// are enough for the head.
template <typename T>
__device__ __forceinline__ void row_statistics_of(const T* __restrict__ dout, int lddout, const T* __restrict__ out,
                                                  int ldout, const float* __restrict__ lse, int ldlse,
                                                  float* __restrict__ row_statistics, int tokens, int heads,
                                                  int head_dim, int lanes, int vector) {
    const long long item = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
    const bool inside = item < static_cast<long long>(tokens) * heads;
    const long long token = inside ? item / heads : 0;
    const int head = inside ? static_cast<int>(item % heads) : 0;
    const int column = head * head_dim, lane = threadIdx.x % lanes;
    const T* const left = dout + token * lddout + column;
    const T* const right = out + token * ldout + column;
    float sum = 0.0f;
    if (vector) {
        constexpr int COUNT = Lanes<T>::count;
        if (lane * COUNT < head_dim) {
            float a[COUNT], b[COUNT];
            load_vector(left + lane * COUNT, a);
            load_vector(right + lane * COUNT, b);
#pragma unroll
            for (int i = 0; i < COUNT; ++i) sum += a[i] * b[i];
        }
    } else {
        for (int j = lane; j < head_dim; j += lanes) sum += to_f32(left[j]) * to_f32(right[j]);
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, distance);
    if (inside && lane == 0) {
        float* const to = row_statistics + static_cast<long long>(head) * tokens + token;
        to[0] = lse[token * ldlse + head];
        to[static_cast<long long>(heads) * tokens] = sum;
    }
}

// dmask[b, h] = Σ_t Σ_j dout·context over the tokens of sequence b = blockIdx.x and the columns of head h =
// blockIdx.y. Warps take every (THREADS / 32)-th token; their sums are added in order.
template <int THREADS, typename T>
__device__ __forceinline__ void mask_gradient(const T* __restrict__ dout, int lddout, const T* __restrict__ context,
                                              int ldcontext, const int* __restrict__ cu_seqlens,
                                              float* __restrict__ dmask, int lddmask, int head_dim) {
    __shared__ float partials[THREADS / WARP];
    const int head = blockIdx.y, sequence = blockIdx.x, lane = threadIdx.x % WARP;
    const int end = cu_seqlens[sequence + 1];
    float sum = 0.0f;
    for (int token = cu_seqlens[sequence] + threadIdx.x / WARP; token < end; token += THREADS / WARP) {
        const T* const left = dout + static_cast<long long>(token) * lddout + head * head_dim;
        const T* const right = context + static_cast<long long>(token) * ldcontext + head * head_dim;
        for (int j = lane; j < head_dim; j += WARP) sum += to_f32(left[j]) * to_f32(right[j]);
    }
    sum = block_reduce<THREADS>(sum, Sum(), partials);
    if (threadIdx.x == 0) dmask[static_cast<long long>(sequence) * lddmask + head] = sum;
}
