// Attention in f32 on the ordinary cores: the variant that is compared with the definition to the last bits.
//
// The same pattern as attention_bf16.cuh with plain multiply-adds: a block of 128 threads owns 32 rows (queries, or
// keys for dk and dv) and streams 32 of the other side at a time through shared memory. Thread (y, x) of 8 × 16 holds
// rows y, y + 8, y + 16, y + 24 at columns x and x + 16 of the scores, and at columns 2x, 2x + 1 and every 32nd pair
// from there of the sums. The 16 threads of a row are half a warp: what they exchange needs no block barrier.
#pragma once
#include "attention.cuh"

namespace scalar {

constexpr int THREADS = 128, TILE = 32, OWN = 4, ACROSS = 2;

// Where element (row, column) of a tile of scores lies. A warp stores two rows at a time, 16 columns of each: the halves of
// odd rows are exchanged, so that the rows meet different banks. Runs of four columns stay together.
__device__ __forceinline__ int score_place(int row, int column) { return row * TILE + (column ^ (row % 2 * 16)); }

template <int D>
constexpr int ROW_LD = D + 4;

// Copies 32 rows of a head; zeros where row ≥ rows or column ≥ head_dim.
template <int D>
__device__ __forceinline__ void load_tile(float* to, const float* __restrict__ from, int ld, int rows, int head_dim) {
#pragma unroll 4
    for (int index = threadIdx.x; index < TILE * D; index += THREADS) {
        const int row = index / D, column = index % D;
        const bool inside = row < rows && column < head_dim;
        to[row * ROW_LD<D> + column] = inside ? from[row * ld + column] : 0.0f;
    }
}

// products = left [32, D] · rightᵀ [D, 32].
template <int D>
__device__ __forceinline__ void multiply_transpose(float (&products)[OWN][ACROSS], const float* left,
                                                   const float* right) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < OWN; ++i) products[i][0] = products[i][1] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
        float a[OWN][4], b[ACROSS][4];
#pragma unroll
        for (int i = 0; i < OWN; ++i) load_vector(left + (y + 8 * i) * ROW_LD<D> + d, a[i]);
#pragma unroll
        for (int j = 0; j < ACROSS; ++j) load_vector(right + (x + 16 * j) * ROW_LD<D> + d, b[j]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int i = 0; i < OWN; ++i)
#pragma unroll
                for (int j = 0; j < ACROSS; ++j) products[i][j] += a[i][e] * b[j][e];
    }
}

// sums += weights [32, 32] · tile [32, D].
template <int D>
__device__ __forceinline__ void multiply_into(float (&sums)[OWN][D / 16], const float* weights, const float* tile) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll 2
    for (int k = 0; k < TILE; k += 4) {
        float weight[OWN][4];
#pragma unroll
        for (int i = 0; i < OWN; ++i) load_vector(weights + score_place(y + 8 * i, k), weight[i]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int c = 0; c < D / 32; ++c) {
                const float2 value = *reinterpret_cast<const float2*>(tile + (k + e) * ROW_LD<D> + 2 * x + 32 * c);
#pragma unroll
                for (int i = 0; i < OWN; ++i) {
                    sums[i][2 * c] += weight[i][e] * value.x;
                    sums[i][2 * c + 1] += weight[i][e] * value.y;
                }
            }
    }
}

__device__ __forceinline__ void store_scores(float* to, const float (&scores)[OWN][ACROSS]) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < OWN; ++i)
#pragma unroll
        for (int j = 0; j < ACROSS; ++j) to[score_place(y + 8 * i, x + 16 * j)] = scores[i][j];
}

// Writes the block's 32 rows; row y + 8·i multiplied by factor[i]. A factor of 0 writes 0, whatever the sums are.
template <int D>
__device__ __forceinline__ void store_rows(const float (&sums)[OWN][D / 16], const float (&factor)[OWN],
                                           float* __restrict__ to, int ld, int rows, int head_dim) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int row = y + 8 * i;
        if (row >= rows) continue;
#pragma unroll
        for (int c = 0; c < D / 16; ++c) {
            const int column = 2 * x + 32 * (c / 2) + c % 2;
            if (column < head_dim)
                to[row * ld + column] = factor[i] == 0.0f ? 0.0f : sums[i][c] * factor[i];
        }
    }
}

__device__ __forceinline__ void store_zeros(float* __restrict__ to, int ld, int rows, int head_dim) {
    for (int index = threadIdx.x; index < rows * head_dim; index += THREADS)
        to[index / head_dim * ld + index % head_dim] = 0.0f;
}

template <typename Op>
__device__ __forceinline__ float half_warp_reduce(float x, Op op) {
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) x = op(x, __shfl_xor_sync(FULL_MASK, x, distance));
    return x;
}

// Which of a thread's scores dropout keeps: bit i for row y + 8·i at column x + 16·j. Four neighbouring threads share
// groups of four keys with each other: each makes the words of one (row, group) and they exchange the bits.
// `first_row` is dropout's row of the tile's first query; keys and queries are relative to the sequence.
template <bool KEY_ROWS>
__device__ __forceinline__ u32 kept_bits(const Dropout& dropout, int first_row, int row_step, int key, int j) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16, lane = threadIdx.x % WARP;
    u32 kept = 0;
    if constexpr (KEY_ROWS) { // a thread's four keys are in four groups: nothing to share
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int own_key = key + y + 8 * i;
            kept |= (kept_of_four(dropout, first_row + (x + 16 * j) * row_step, own_key / 4) >> own_key % 4 & 1u) << i;
        }
    } else {
        const u32 mine = kept_of_four(dropout, first_row + (y + 8 * (x % 4)) * row_step, (key + x + 16 * j) / 4);
#pragma unroll
        for (int i = 0; i < OWN; ++i)
            kept |= (__shfl_sync(FULL_MASK, mine, lane / 4 * 4 + i) >> x % 4 & 1u) << i;
    }
    return kept;
}

// Context and log-sum-exp of 32 queries. The running maximum of a row is known to its 16 threads, each of which sums
// the exponentials of its own columns; the sums are added and divided by at the end.
template <int D>
__device__ __forceinline__ void forward(const float* __restrict__ q, int ldq, const float* __restrict__ k, int ldk,
                                        const float* __restrict__ v, int ldv, const int* __restrict__ cu_seqlens,
                                        int sequences, int heads, int head_dim, float scale, bool causal,
                                        const float* __restrict__ head_mask, const DropoutArguments& dropout,
                                        float* __restrict__ out, int ldout, float* __restrict__ lse, int ldlse,
                                        float* __restrict__ unmasked, int ldunmasked) {
    extern __shared__ uint4 shared[];
    float* const queries = reinterpret_cast<float*>(shared);
    float* const keys = queries + TILE * ROW_LD<D>;
    float* const values = keys + TILE * ROW_LD<D>;
    float* const weights = values + TILE * ROW_LD<D>;

    const Rows rows = find_rows<TILE>(cu_seqlens, sequences, blockIdx.x, causal);
    if (rows.first >= rows.length) return;
    const int head = blockIdx.y, column = head * head_dim, count = min(TILE, rows.length - rows.first);
    const int token = rows.start + rows.first;
    float* const to = out + static_cast<long long>(token) * ldout + column;
    const float mask = head_mask == nullptr ? 1.0f : head_mask[head];
    if (mask == 0.0f && unmasked == nullptr) {
        store_zeros(to, ldout, count, head_dim);
        for (int row = threadIdx.x; row < count; row += THREADS)
            lse[static_cast<long long>(token + row) * ldlse + head] = 0.0f;
        return;
    }
    load_tile<D>(queries, q + static_cast<long long>(token) * ldq + column, ldq, count, head_dim);

    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    const int visible = causal ? rows.first + count : rows.length;
    float sums[OWN][D / 16] = {}, total[OWN] = {}, maximum[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) maximum[i] = -INFINITY_F32;

    for (int key = 0; key < visible; key += TILE) {
        const long long first = rows.start + key;
        __syncthreads(); // the tiles before are used up
        load_tile<D>(keys, k + first * ldk + column, ldk, rows.length - key, head_dim);
        load_tile<D>(values, v + first * ldv + column, ldv, rows.length - key, head_dim);
        __syncthreads();
        float scores[OWN][ACROSS];
        multiply_transpose<D>(scores, queries, keys);
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int query = rows.first + y + 8 * i, end = causal ? min(rows.length, query + 1) : rows.length;
            float top = maximum[i];
#pragma unroll
            for (int j = 0; j < ACROSS; ++j) {
                scores[i][j] = key + x + 16 * j < end ? scores[i][j] * scale : -INFINITY_F32;
                top = fmaxf(top, scores[i][j]);
            }
            // Key 0 is in the first step and every query sees it: from then on the maximum is finite.
            top = half_warp_reduce(top, Max());
            const float shrink = expf(maximum[i] - top);
            maximum[i] = top;
#pragma unroll
            for (int j = 0; j < ACROSS; ++j) scores[i][j] = expf(scores[i][j] - top);
            total[i] = total[i] * shrink + (scores[i][0] + scores[i][1]);
#pragma unroll
            for (int c = 0; c < D / 16; ++c) sums[i][c] *= shrink;
        }
        if (dropout.active()) {
            const Dropout run = dropout.in_this_run();
#pragma unroll
            for (int j = 0; j < ACROSS; ++j) {
                const u32 kept = kept_bits<false>(run, token * heads + head, heads, key, j);
#pragma unroll
                for (int i = 0; i < OWN; ++i)
                    if (!(kept >> i & 1u)) scores[i][j] = 0.0f;
            }
        }
        __syncwarp();
        store_scores(weights, scores);
        __syncwarp();
        multiply_into<D>(sums, weights, values);
    }

    float factor[OWN], masked[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const float sum = half_warp_reduce(total[i], Sum());
        factor[i] = dropout.kept_factor() / sum;
        masked[i] = factor[i] * mask;
        if (x == 0 && y + 8 * i < count)
            lse[static_cast<long long>(token + y + 8 * i) * ldlse + head] = maximum[i] + logf(sum);
    }
    store_rows<D>(sums, masked, to, ldout, count, head_dim);
    if (unmasked != nullptr)
        store_rows<D>(sums, factor, unmasked + static_cast<long long>(token) * ldunmasked + column, ldunmasked, count,
                      head_dim);
}

// Gradients, with the operands of tensor::backward: dq where rows are queries, dk and dv where rows are keys.
template <int D, bool KEY_ROWS>
__device__ __forceinline__ void backward(const float* __restrict__ first, int ldfirst, const float* __restrict__ second,
                                         int ldsecond, const float* __restrict__ streamed_first, int ldstreamed_first,
                                         const float* __restrict__ streamed_second, int ldstreamed_second,
                                         const float* __restrict__ row_statistics, int tokens,
                                         const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim,
                                         float scale, bool causal, const float* __restrict__ head_mask,
                                         const DropoutArguments& dropout, float* __restrict__ dfirst, int lddfirst,
                                         float* __restrict__ dsecond, int lddsecond) {
    extern __shared__ uint4 shared[];
    float* const own_first = reinterpret_cast<float*>(shared);
    float* const own_second = own_first + TILE * ROW_LD<D>;
    float* const tile_first = own_second + TILE * ROW_LD<D>;
    float* const tile_second = tile_first + TILE * ROW_LD<D>;
    float* const weights_first = tile_second + TILE * ROW_LD<D>;
    float* const weights_second = weights_first + TILE * TILE; // only where rows are keys

    const Rows rows = find_rows<TILE>(cu_seqlens, sequences, blockIdx.x, causal && !KEY_ROWS);
    if (rows.first >= rows.length) return;
    const int head = blockIdx.y, column = head * head_dim, count = min(TILE, rows.length - rows.first);
    const int token = rows.start + rows.first;
    float* const to_first = dfirst + static_cast<long long>(token) * lddfirst + column;
    float* const to_second = KEY_ROWS ? dsecond + static_cast<long long>(token) * lddsecond + column : nullptr;
    const float mask = head_mask == nullptr ? 1.0f : head_mask[head];
    if (mask == 0.0f) {
        store_zeros(to_first, lddfirst, count, head_dim);
        if constexpr (KEY_ROWS) store_zeros(to_second, lddsecond, count, head_dim);
        return;
    }
    load_tile<D>(own_first, first + static_cast<long long>(token) * ldfirst + column, ldfirst, count, head_dim);
    load_tile<D>(own_second, second + static_cast<long long>(token) * ldsecond + column, ldsecond, count, head_dim);

    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    const int begin = KEY_ROWS && causal ? rows.first : 0;
    const int end = !KEY_ROWS && causal ? rows.first + count : rows.length;
    const float kept_scale = dropout.kept_factor() * mask;
    // Of a thread's queries, which are its rows or its columns. Beyond the sequence p is 0: its log-sum is +∞.
    constexpr int QUERIES = KEY_ROWS ? ACROSS : OWN;
    float log_sum[QUERIES], mean[QUERIES];
    const float* const lse = row_statistics + static_cast<long long>(head) * tokens + rows.start;
    const float* const delta = lse + static_cast<long long>(heads) * tokens;
    const auto load_statistics = [&](int query, int step) {
#pragma unroll
        for (int i = 0; i < QUERIES; ++i) {
            const int place = query + step * i;
            const bool inside = place < rows.length;
            log_sum[i] = inside ? lse[place] : INFINITY_F32;
            mean[i] = inside ? delta[place] : 0.0f;
        }
    };
    if constexpr (!KEY_ROWS) load_statistics(rows.first + y, 8);
    float sums_first[OWN][D / 16] = {}, sums_second[OWN][KEY_ROWS ? D / 16 : 1] = {};

    for (int base = begin; base < end; base += TILE) {
        const long long at = rows.start + base;
        __syncthreads(); // the tiles before are used up
        load_tile<D>(tile_first, streamed_first + at * ldstreamed_first + column, ldstreamed_first, rows.length - base,
                     head_dim);
        load_tile<D>(tile_second, streamed_second + at * ldstreamed_second + column, ldstreamed_second,
                     rows.length - base, head_dim);
        if constexpr (KEY_ROWS) load_statistics(base + x, 16);
        __syncthreads();
        float s[OWN][ACROSS], dp[OWN][ACROSS];
        multiply_transpose<D>(s, own_first, tile_first);
        multiply_transpose<D>(dp, own_second, tile_second);
        // s becomes D ∘ p without D's factor, dp becomes ds.
#pragma unroll
        for (int j = 0; j < ACROSS; ++j) {
            u32 kept = 15u;
            if (dropout.active()) {
                const Dropout run = dropout.in_this_run();
                const int query = KEY_ROWS ? base : rows.first, key = KEY_ROWS ? rows.first : base;
                kept = kept_bits<KEY_ROWS>(run, (rows.start + query) * heads + head, heads, key, j);
            }
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int row = rows.first + y + 8 * i, across = base + x + 16 * j;
                const bool seen = KEY_ROWS ? !causal || row <= across
                                           : across < rows.length && (!causal || across <= row);
                const float p = seen ? expf(s[i][j] * scale - log_sum[KEY_ROWS ? j : i]) : 0.0f;
                const bool keep = kept >> i & 1u;
                s[i][j] = keep ? p : 0.0f;
                dp[i][j] = p * ((keep ? dp[i][j] * kept_scale : 0.0f) - mean[KEY_ROWS ? j : i]);
            }
        }
        __syncwarp();
        store_scores(weights_first, dp);
        if constexpr (KEY_ROWS) store_scores(weights_second, s);
        __syncwarp();
        multiply_into<D>(sums_first, weights_first, tile_first);
        if constexpr (KEY_ROWS) multiply_into<D>(sums_second, weights_second, tile_second);
    }

    store_rows<D>(sums_first, {scale, scale, scale, scale}, to_first, lddfirst, count, head_dim);
    if constexpr (KEY_ROWS)
        store_rows<D>(sums_second, {kept_scale, kept_scale, kept_scale, kept_scale}, to_second, lddsecond, count,
                      head_dim);
}

} // namespace scalar
