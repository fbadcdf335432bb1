// Attention on tensor cores: bf16 operands, f32 scores, statistics and sums.
//
// One pattern serves all three kernels. A block of four warps owns tiles of 16 rows (queries, or keys for dk and dv)
// and streams tiles of the other side through two stages of shared memory. A warp multiplies its rows with the
// streamed ones, turns the 16 × n scores it holds in registers into probabilities, and these, rounded to bf16, are
// already laid out as the left operand of the second product: nothing but the streamed tiles passes through shared
// memory, and warps meet once a tile. Keys as rows give the transposed scores directly, which dk and dv need.
#pragma once
#include "attention.cuh"
#include "attention_bf16_tile.cuh"

namespace tensor {

// Bits of the four scores of one 16 × 8 tile that dropout keeps, where rows are queries: bit 0, 1 for row g at columns
// 2c, 2c + 1 and bit 2, 3 for row g + 8 (g = lane / 4, c = lane mod 4). Two neighbouring lanes share both rows' groups
// of four keys: each makes the words of one row.
__device__ __forceinline__ u32 kept_query_rows(const Dropout& dropout, int row, int row_step, int key) {
    const int lane = threadIdx.x % WARP;
    const bool odd = lane % 2 != 0;
    const u32 mine = kept_of_four(dropout, odd ? row + 8 * row_step : row, key / 4 + lane % 4 / 2);
    const u32 other = __shfl_xor_sync(FULL_MASK, mine, 1);
    return odd ? other >> 2 | (mine & 12u) : (mine & 3u) | (other & 3u) << 2;
}

// The same where rows are keys and columns queries; `row` is dropout's row of the tile's first query, `key` the key of
// its first row. Four lanes hold the keys of one group of four, for the same two queries and two groups: each makes
// the words of one (query, group).
__device__ __forceinline__ u32 kept_key_rows(const Dropout& dropout, int row, int row_step, int key) {
    const int lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4, mine_is = group % 4;
    const u32 mine = kept_of_four(dropout, row + (2 * pair + mine_is % 2) * row_step,
                                  (key + mine_is / 2 * 8) / 4 + group / 4);
    u32 kept = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 bits = __shfl_sync(FULL_MASK, mine, (group / 4 * 4 + i) * 4 + pair);
        kept |= (bits >> mine_is & 1u) << i;
    }
    return kept;
}

// Context, log-sum-exp: 64 queries a tile and TILES tiles a block; 64 keys (32 for wide heads) a step.
// The running maximum and sum of a row are kept by the four lanes that hold it; sums are divided at the end.
template <int D, int TILES>
__device__ __forceinline__ void forward(const bf16* __restrict__ q, int ldq, const bf16* __restrict__ k, int ldk,
                                        const bf16* __restrict__ v, int ldv, const int* __restrict__ cu_seqlens,
                                        int sequences, int heads, int head_dim, float scale, bool causal, bool vector,
                                        const float* __restrict__ head_mask, const DropoutArguments& dropout,
                                        bf16* __restrict__ out, int ldout, float* __restrict__ lse, int ldlse,
                                        bf16* __restrict__ unmasked, int ldunmasked) {
    constexpr int QUERIES = WARPS * MMA_ROWS * TILES, KEYS = D <= 64 ? 64 : 32;
    extern __shared__ uint4 shared[];
    const u32 queries = shared_address(shared), stages = queries + QUERIES * ROW_BYTES<D>;

    const Rows rows = find_rows<QUERIES>(cu_seqlens, sequences, blockIdx.x, causal);
    if (rows.first >= rows.length) return;
    const int head = blockIdx.y, column = head * head_dim, count = min(QUERIES, rows.length - rows.first);
    const int token = rows.start + rows.first;
    const float mask = head_mask == nullptr ? 1.0f : head_mask[head];
    if (mask == 0.0f && unmasked == nullptr) {
        store_zeros<D>(out + static_cast<long long>(token) * ldout + column, ldout, count, head_dim);
        for (int row = threadIdx.x; row < count; row += THREADS)
            lse[static_cast<long long>(token + row) * ldlse + head] = 0.0f;
        return;
    }

    const bf16* const keys = k + static_cast<long long>(rows.start) * ldk + column;
    const bf16* const values = v + static_cast<long long>(rows.start) * ldv + column;
    const auto load_stage = [&](int step) {
        const u32 to = stages + step % 2 * (2 * KEYS * ROW_BYTES<D>);
        const int key = step * KEYS;
        load_tile<D, KEYS>(to, keys + static_cast<long long>(key) * ldk, ldk, rows.length - key, head_dim, vector);
        load_tile<D, KEYS>(to + KEYS * ROW_BYTES<D>, values + static_cast<long long>(key) * ldv, ldv, rows.length - key, head_dim,
                           vector);
        commit_copies();
    };
    load_tile<D, QUERIES>(queries, q + static_cast<long long>(token) * ldq + column, ldq, count, head_dim, vector);
    load_stage(0);

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    const int own = warp * MMA_ROWS * TILES; // first row of this warp within the block
    const int visible = causal ? rows.first + count : rows.length, steps = (visible + KEYS - 1) / KEYS;
    const float scale2 = scale * LOG2_E;
    u32 left[TILES][D / 16][4];
    float sums[TILES][D / 8][4] = {}, maximum[TILES][2], total[TILES][2] = {};
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) maximum[tile][0] = maximum[tile][1] = -INFINITY_F32;

    for (int step = 0; step < steps; ++step) {
        wait_copies<0>();
        __syncthreads();
        if (step == 0) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                for (int d = 0; d < D / 16; ++d) load_left<D>(left[tile][d], queries, own + tile * MMA_ROWS, d);
        }
        if (step + 1 < steps) load_stage(step + 1);
        const u32 key_tile = stages + step % 2 * (2 * KEYS * ROW_BYTES<D>);
        const u32 value_tile = key_tile + KEYS * ROW_BYTES<D>;
        const int first_key = step * KEYS;
        if (causal && first_key >= rows.first + own + MMA_ROWS * TILES) continue; // nothing that this warp sees

        float scores[TILES][KEYS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; ++d)
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 b[4];
                load_transpose<D>(b, key_tile, 16 * n, d);
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    multiply_bf16(scores[tile][2 * n], left[tile][d], b[0], b[1]);
                    multiply_bf16(scores[tile][2 * n + 1], left[tile][d], b[2], b[3]);
                }
            }

        const bool partial = first_key + KEYS > rows.length || (causal && first_key + KEYS > rows.first + own + 1);
        if (partial) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int query = rows.first + own + tile * MMA_ROWS + group + 8 * half;
                    const int end = (causal ? min(rows.length, query + 1) : rows.length) - first_key - 2 * pair;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n) {
                        if (8 * n >= end) scores[tile][n][2 * half] = -INFINITY_F32;
                        if (8 * n + 1 >= end) scores[tile][n][2 * half + 1] = -INFINITY_F32;
                    }
                }
        }

#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = maximum[tile][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
                    top = fmaxf(top, fmaxf(scores[tile][n][2 * half], scores[tile][n][2 * half + 1]));
                top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 1));
                top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 2));
                // Key 0 is in the first step and every query sees it: from then on the maximum is finite.
                const float shrink = exp2_fast((maximum[tile][half] - top) * scale2), offset = top * scale2;
                maximum[tile][half] = top;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[tile][n][i] = exp2_fast(scores[tile][n][i] * scale2 - offset);
                        sum += scores[tile][n][i];
                    }
                total[tile][half] = total[tile][half] * shrink + sum;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    sums[tile][n][2 * half] *= shrink;
                    sums[tile][n][2 * half + 1] *= shrink;
                }
            }
            if (dropout.active()) {
                const Dropout run = dropout.in_this_run();
                const int row = (token + own + tile * MMA_ROWS + group) * heads + head;
                u32 kept = 0;
#pragma unroll 2
                for (int n = 0; n < KEYS / 8; ++n)
                    kept |= kept_query_rows(run, row, heads, first_key + 8 * n) << 4 * n;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (!(kept >> (4 * n + i) & 1u)) scores[tile][n][i] = 0.0f;
            }
        }

#pragma unroll
        for (int key = 0; key < KEYS / 16; ++key) {
            u32 a[TILES][4];
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) pack_left(a[tile], scores[tile][2 * key], scores[tile][2 * key + 1]);
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 b[4];
                load_right<D>(b, value_tile, 16 * key, n);
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    multiply_bf16(sums[tile][2 * n], a[tile], b[0], b[1]);
                    multiply_bf16(sums[tile][2 * n + 1], a[tile], b[2], b[3]);
                }
            }
        }
    }

#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        const int row = own + tile * MMA_ROWS;
        float factor[2], masked[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = total[tile][half];
            sum += __shfl_xor_sync(FULL_MASK, sum, 1);
            sum += __shfl_xor_sync(FULL_MASK, sum, 2);
            factor[half] = dropout.kept_factor() / sum;
            masked[half] = factor[half] * mask;
            if (pair == 0 && row + group + 8 * half < count)
                lse[static_cast<long long>(token + row + group + 8 * half) * ldlse + head] =
                    maximum[tile][half] * scale + logf(sum);
        }
        const u32 stage = queries + row * ROW_BYTES<D>;
        store_rows<D>(stage, sums[tile], masked, out + static_cast<long long>(token + row) * ldout + column, ldout,
                      count - row, head_dim, vector);
        if (unmasked != nullptr)
            store_rows<D>(stage, sums[tile], factor,
                          unmasked + static_cast<long long>(token + row) * ldunmasked + column, ldunmasked,
                          count - row, head_dim, vector);
    }
}

// Gradients: dq where a block owns 64 queries and streams keys and values, dk and dv where it owns 64 keys and streams
// queries and dout. `row_statistics` [2, H, tokens] are lse and delta = Σ_j dout·out of every query: a block reads those
// of one head, so they lie along the tokens.
//
// With first = q, second = dout (or k, v) the block's rows and the streamed ones the other way round:
//   s = first·streamed_firstᵀ   dp = second·streamed_secondᵀ   p = exp(scale·s − lse)   ds = p ∘ (D ∘ mask·dp − delta)
//   dfirst = scale·ds·streamed_first        where rows are keys also dsecond = mask·(D ∘ p)·streamed_second
template <int D, bool KEY_ROWS>
__device__ __forceinline__ void backward(const bf16* __restrict__ first, int ldfirst, const bf16* __restrict__ second,
                                         int ldsecond, const bf16* __restrict__ streamed_first, int ldstreamed_first,
                                         const bf16* __restrict__ streamed_second, int ldstreamed_second,
                                         const float* __restrict__ row_statistics, int tokens,
                                         const int* __restrict__ cu_seqlens, int sequences, int heads, int head_dim,
                                         float scale, bool causal, bool vector, const float* __restrict__ head_mask,
                                         const DropoutArguments& dropout, bf16* __restrict__ dfirst, int lddfirst,
                                         bf16* __restrict__ dsecond, int lddsecond) {
    // Streamed rows of a stage, and how many of them a warp works on at a time.
    constexpr int OWN = WARPS * MMA_ROWS, STREAMED = D <= 64 ? 64 : 32, PART = 32, UNROLLED = KEY_ROWS ? 1 : 2;
    // Whether the block's own operands stay in registers beside the sums; measured on an H100 where both would fit.
    constexpr bool HELD = D <= (KEY_ROWS ? 32 : 64);
    extern __shared__ uint4 shared[];
    // Of each streamed query of a stage: lse·log₂e, +∞ beyond the sequence so that p is 0 there, then delta.
    __shared__ float statistics[2 * 2 * STREAMED];
    const u32 own_first = shared_address(shared), own_second = own_first + OWN * ROW_BYTES<D>;
    const u32 stages = own_second + OWN * ROW_BYTES<D>;

    const Rows rows = find_rows<OWN>(cu_seqlens, sequences, blockIdx.x, causal && !KEY_ROWS);
    if (rows.first >= rows.length) return;
    const int head = blockIdx.y, column = head * head_dim, count = min(OWN, rows.length - rows.first);
    const int token = rows.start + rows.first;
    bf16* const to_first = dfirst + static_cast<long long>(token) * lddfirst + column;
    bf16* const to_second = KEY_ROWS ? dsecond + static_cast<long long>(token) * lddsecond + column : nullptr;
    const float mask = head_mask == nullptr ? 1.0f : head_mask[head];
    if (mask == 0.0f) {
        store_zeros<D>(to_first, lddfirst, count, head_dim);
        if constexpr (KEY_ROWS) store_zeros<D>(to_second, lddsecond, count, head_dim);
        return;
    }

    const float* const lse = row_statistics + static_cast<long long>(head) * tokens + rows.start;
    const float* const delta = lse + static_cast<long long>(heads) * tokens;
    const auto statistic = [&](const float* from, int query, float factor, float beyond) {
        return query < rows.length ? from[query] * factor : beyond;
    };
    const auto streamed_statistic = [&](int query) { // lse for the first threads, delta for as many after them
        return threadIdx.x < STREAMED ? statistic(lse, query + threadIdx.x, LOG2_E, INFINITY_F32)
                                      : statistic(delta, query + threadIdx.x - STREAMED, 1.0f, 0.0f);
    };
    const bf16* const from_first = streamed_first + static_cast<long long>(rows.start) * ldstreamed_first + column;
    const bf16* const from_second = streamed_second + static_cast<long long>(rows.start) * ldstreamed_second + column;
    const auto load_stage = [&](int step) {
        const u32 to = stages + step % 2 * (2 * STREAMED * ROW_BYTES<D>);
        const int row = step * STREAMED;
        load_tile<D, STREAMED>(to, from_first + static_cast<long long>(row) * ldstreamed_first, ldstreamed_first,
                               rows.length - row, head_dim, vector);
        load_tile<D, STREAMED>(to + STREAMED * ROW_BYTES<D>, from_second + static_cast<long long>(row) * ldstreamed_second,
                               ldstreamed_second, rows.length - row, head_dim, vector);
        commit_copies();
    };
    const int begin = KEY_ROWS && causal ? rows.first / STREAMED : 0;
    const int visible = !KEY_ROWS && causal ? rows.first + count : rows.length;
    const int end = (visible + STREAMED - 1) / STREAMED;
    load_tile<D, OWN>(own_first, first + static_cast<long long>(token) * ldfirst + column, ldfirst, count, head_dim,
                      vector);
    load_tile<D, OWN>(own_second, second + static_cast<long long>(token) * ldsecond + column, ldsecond, count,
                      head_dim, vector);
    load_stage(begin);
    if (KEY_ROWS && threadIdx.x < 2 * STREAMED)
        statistics[begin % 2 * 2 * STREAMED + threadIdx.x] = streamed_statistic(begin * STREAMED);

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    const int own = warp * MMA_ROWS, own_row = rows.first + own + group; // position of row g; g + 8 is the other one
    const float scale2 = scale * LOG2_E, kept_scale = dropout.kept_factor() * mask;
    float row_lse[2] = {}, row_delta[2] = {};
    if constexpr (!KEY_ROWS) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            row_lse[half] = statistic(lse, own_row + 8 * half, LOG2_E, INFINITY_F32);
            row_delta[half] = statistic(delta, own_row + 8 * half, 1.0f, 0.0f);
        }
    }
    u32 held_first[HELD ? D / 16 : 1][4], held_second[HELD ? D / 16 : 1][4];
    float sums_first[D / 8][4] = {}, sums_second[KEY_ROWS ? D / 8 : 1][4] = {};

    for (int step = begin; step < end; ++step) {
        wait_copies<0>();
        __syncthreads();
        if (HELD && step == begin) {
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                load_left<D>(held_first[HELD ? d : 0], own_first, own, d);
                load_left<D>(held_second[HELD ? d : 0], own_second, own, d);
            }
        }
        const bool more = step + 1 < end;
        float next_statistic = 0.0f;
        if (more) {
            load_stage(step + 1);
            if (KEY_ROWS && threadIdx.x < 2 * STREAMED) next_statistic = streamed_statistic((step + 1) * STREAMED);
        }
        const u32 tile_first = stages + step % 2 * (2 * STREAMED * ROW_BYTES<D>);
        const u32 tile_second = tile_first + STREAMED * ROW_BYTES<D>;
        const float* const column_lse = statistics + step % 2 * (2 * STREAMED);
        const float* const column_delta = column_lse + STREAMED;
#pragma unroll UNROLLED
        for (int part = 0; part < STREAMED; part += PART) {
            const int base = step * STREAMED + part;
            const bool none_seen = KEY_ROWS ? base + PART <= rows.first + own : base >= rows.first + own + MMA_ROWS;
            if (base >= rows.length || (causal && none_seen)) continue;

            float s[PART / 8][4] = {}, dp[PART / 8][4] = {};
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                u32 a[4], c[4];
                if constexpr (!HELD) {
                    load_left<D>(a, own_first, own, d);
                    load_left<D>(c, own_second, own, d);
                }
                const u32(&left)[4] = HELD ? held_first[HELD ? d : 0] : a;
                const u32(&right)[4] = HELD ? held_second[HELD ? d : 0] : c;
#pragma unroll
                for (int n = 0; n < PART / 16; ++n) {
                    u32 b[4];
                    load_transpose<D>(b, tile_first, part + 16 * n, d);
                    multiply_bf16(s[2 * n], left, b[0], b[1]);
                    multiply_bf16(s[2 * n + 1], left, b[2], b[3]);
                    load_transpose<D>(b, tile_second, part + 16 * n, d);
                    multiply_bf16(dp[2 * n], right, b[0], b[1]);
                    multiply_bf16(dp[2 * n + 1], right, b[2], b[3]);
                }
            }

            u32 kept = 0; // 4 bits a tile of 16 × 8 scores
            if (dropout.active()) {
                const Dropout run = dropout.in_this_run();
                const int query = rows.start + (KEY_ROWS ? base : own_row), key = KEY_ROWS ? rows.first + own : base;
#pragma unroll 2
                for (int n = 0; n < PART / 8; ++n) {
                    const u32 bits = KEY_ROWS ? kept_key_rows(run, (query + 8 * n) * heads + head, heads, key)
                                              : kept_query_rows(run, query * heads + head, heads, key + 8 * n);
                    kept |= bits << 4 * n;
                }
#pragma unroll
                for (int n = 0; n < PART / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (!(kept >> (4 * n + i) & 1u)) dp[n][i] = 0.0f;
            }
            // Whether this warp's rows do not see all streamed ones. Queries beyond the sequence need no care: see above.
            const bool partial = KEY_ROWS ? causal && base < rows.first + own + MMA_ROWS - 1
                                          : base + PART > rows.length || (causal && base + PART > rows.first + own + 1);
            if (partial) {
#pragma unroll
                for (int n = 0; n < PART / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int row = own_row + i / 2 * 8, position = base + 8 * n + 2 * pair + i % 2;
                        const bool seen = KEY_ROWS ? row <= position
                                                   : position < rows.length && (!causal || position <= row);
                        if (!seen) s[n][i] = -INFINITY_F32;
                    }
            }
            // dp becomes ds and s becomes D ∘ p without D's factor.
#pragma unroll
            for (int n = 0; n < PART / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int at_column = 8 * n + 2 * pair + i % 2;
                    const float log_sum = KEY_ROWS ? column_lse[part + at_column] : row_lse[i / 2];
                    const float mean = KEY_ROWS ? column_delta[part + at_column] : row_delta[i / 2];
                    s[n][i] = exp2_fast(s[n][i] * scale2 - log_sum);
                    dp[n][i] = s[n][i] * (dp[n][i] * kept_scale - mean);
                }
            }
            if (KEY_ROWS && dropout.active()) {
#pragma unroll
                for (int n = 0; n < PART / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (!(kept >> (4 * n + i) & 1u)) s[n][i] = 0.0f;
            }
            multiply_into<D>(sums_first, dp, tile_first + part * ROW_BYTES<D>);
            if constexpr (KEY_ROWS) multiply_into<D>(sums_second, s, tile_second + part * ROW_BYTES<D>);
        }
        if (KEY_ROWS && more && threadIdx.x < 2 * STREAMED)
            statistics[(step + 1) % 2 * 2 * STREAMED + threadIdx.x] = next_statistic;
    }

    store_rows<D>(own_first + own * ROW_BYTES<D>, sums_first, {scale, scale}, to_first + static_cast<long long>(own) * lddfirst,
                  lddfirst, count - own, head_dim, vector);
    if constexpr (KEY_ROWS)
        store_rows<D>(own_second + own * ROW_BYTES<D>, sums_second, {kept_scale, kept_scale},
                      to_second + static_cast<long long>(own) * lddsecond, lddsecond, count - own, head_dim, vector);
}

} // namespace tensor
