// Layer normalisation, forward and backward, as norm.cu and norm_backward_*.cu instantiate it (formulas and error bound:
// src/ops/norm/mod.rs).
//
// x, y, dy, dx: [rows, cols], f32 or bf16; gamma, beta, dgamma, dbeta: [cols]; mean, rstd: [rows].
//
// One warp a row, so that its reductions are shuffles. A lane holds every 32nd piece of 16 bytes; the first 1,024 columns
// stay in registers, wider rows are read again from cache for each pass. The backward gives a block a run of rows;
// a lane adds dy·x̂ and dy of its own columns in registers over its warp's rows, the warps' sums are added in order,
// and a second kernel adds the blocks'. The split into runs depends on `rows` alone, so every device gives the same bits.
// Columns beyond 1,024 are added up in the block's row of `partials` itself: such blocks have one warp.
//
// Floor, bytes an element of size s: 2s forward, 3s backward (plus 8·cols bytes a block of partial sums).
#pragma once
#include "rows.cuh"

// Columns of a row that its warp keeps in registers.
#define CACHED 1024
#define FORWARD_WARPS 8
#define BACKWARD_WARPS 4

// A warp's view of a row: calls `each(i, column)` for the pieces of this lane in registers (i known at compile time) and
// `rest(column)` for those beyond.
template <typename T, typename Each, typename Rest>
__device__ __forceinline__ void for_pieces(int cols, Each each, Rest rest) {
    constexpr int count = Lanes<T>::count, step = WARP * count;
    const int first = threadIdx.x % WARP * count;
#pragma unroll
    for (int i = 0; i < CACHED / step; ++i) {
        const int column = first + i * step;
        if (column < cols) each(i, column);
    }
    for (int column = first + CACHED; column < cols; column += step) rest(column);
}

template <typename T>
__device__ __forceinline__ void forward(const T* x, int ldx, const float* gamma, const float* beta, float epsilon, T* y,
                                        int ldy, float* mean_out, float* rstd_out, int rows, int cols) {
    constexpr int count = Lanes<T>::count;
    const int row = blockIdx.x * FORWARD_WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    const T* from = row_of(x, row, ldx);
    T* to = row_of(y, row, ldy);
    Piece<T> cached[CACHED / WARP / count];

    float sum = 0.0f;
    auto add = [&](Piece<T> piece) {
        float values[count];
        unpack(piece, values);
#pragma unroll
        for (int i = 0; i < count; ++i) sum += values[i]; // 0 beyond the end
    };
    for_pieces<T>(cols, [&](int i, int column) { cached[i] = load_piece(from, column, cols); }, [](int) {});
    for_pieces<T>(cols, [&](int i, int) { add(cached[i]); }, [&](int column) { add(load_piece(from, column, cols)); });
    const float mean = warp_reduce(sum, Sum()) / cols;

    float squares = 0.0f;
    auto add_square = [&](Piece<T> piece, int column) {
        float values[count];
        unpack(piece, values);
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const float deviation = column + i < cols ? values[i] - mean : 0.0f;
            squares = __fmaf_rn(deviation, deviation, squares);
        }
    };
    for_pieces<T>(cols, [&](int i, int column) { add_square(cached[i], column); },
                  [&](int column) { add_square(load_piece(from, column, cols), column); });
    const float rstd = 1.0f / sqrtf(warp_reduce(squares, Sum()) / cols + epsilon);
    if (threadIdx.x % WARP == 0) {
        mean_out[row] = mean;
        rstd_out[row] = rstd;
    }

    auto write = [&](Piece<T> piece, int column) {
        float values[count], scale[count], shift[count];
        unpack(piece, values);
        load_parameters(gamma, column, cols, scale);
        load_parameters(beta, column, cols, shift);
#pragma unroll
        for (int i = 0; i < count; ++i) values[i] = __fmaf_rn((values[i] - mean) * rstd, scale[i], shift[i]);
        store_columns(to, column, cols, values);
    };
    for_pieces<T>(cols, [&](int i, int column) { write(cached[i], column); },
                  [&](int column) { write(load_piece(from, column, cols), column); });
}

// PARAMETERS: whether the sums for dgamma and dbeta are wanted; `partials`: [blocks, 2·cols], dgamma first.
template <typename T, bool PARAMETERS>
__device__ __forceinline__ void backward(const T* dy, int lddy, const T* x, int ldx, const float* gamma, const float* mean,
                                         const float* rstd, T* dx, int lddx, int accumulate, float* partials,
                                         int rows_a_block, int rows, int cols) {
    constexpr int count = Lanes<T>::count, pieces = CACHED / WARP / count;
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int first_row = blockIdx.x * rows_a_block, end = min(first_row + rows_a_block, rows);
    float* sums = partials + static_cast<long long>(blockIdx.x) * 2 * cols;
    float sum_gamma[pieces][count], sum_beta[pieces][count];
    if constexpr (PARAMETERS) {
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
#pragma unroll
            for (int j = 0; j < count; ++j) sum_gamma[i][j] = sum_beta[i][j] = 0.0f;
        }
        const float zeros[count] = {};
        for_pieces<T>(cols, [](int, int) {}, [&](int column) {
            store_parameters(sums, column, cols, zeros);
            store_parameters(sums + cols, column, cols, zeros);
        });
    }

    for (int row = first_row + warp; row < end; row += warps) {
        const T* from_dy = row_of(dy, row, lddy);
        const T* from_x = row_of(x, row, ldx);
        T* to = row_of(dx, row, lddx);
        const float mu = mean[row], sigma = rstd[row];
        Piece<T> cached_dy[pieces], cached_x[pieces];
        for_pieces<T>(cols,
                      [&](int i, int column) {
                          cached_dy[i] = load_piece(from_dy, column, cols);
                          cached_x[i] = load_piece(from_x, column, cols);
                      },
                      [](int) {});

        // dy is 0 beyond the end, and so is every term.
        float sum_g = 0.0f, sum_gx = 0.0f;
        auto add = [&](Piece<T> piece_dy, Piece<T> piece_x, int column) {
            float dys[count], xs[count], scale[count];
            unpack(piece_dy, dys);
            unpack(piece_x, xs);
            load_parameters(gamma, column, cols, scale);
#pragma unroll
            for (int j = 0; j < count; ++j) {
                const float g = dys[j] * scale[j];
                sum_g += g;
                sum_gx = __fmaf_rn(g, (xs[j] - mu) * sigma, sum_gx);
            }
        };
        for_pieces<T>(cols, [&](int i, int column) { add(cached_dy[i], cached_x[i], column); },
                      [&](int column) {
                          add(load_piece(from_dy, column, cols), load_piece(from_x, column, cols), column);
                      });
        const float mean_g = warp_reduce(sum_g, Sum()) / cols, mean_gx = warp_reduce(sum_gx, Sum()) / cols;

        auto write = [&](Piece<T> piece_dy, Piece<T> piece_x, int column, float (&to_gamma)[count], float (&to_beta)[count]) {
            float dys[count], xs[count], scale[count], out[count];
            unpack(piece_dy, dys);
            unpack(piece_x, xs);
            load_parameters(gamma, column, cols, scale);
            if (accumulate) {
                load_columns<T>(to, column, cols, out);
            } else {
#pragma unroll
                for (int j = 0; j < count; ++j) out[j] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < count; ++j) {
                const float normalised = (xs[j] - mu) * sigma;
                out[j] += sigma * (dys[j] * scale[j] - mean_g - normalised * mean_gx);
                if constexpr (PARAMETERS) {
                    to_gamma[j] = __fmaf_rn(dys[j], normalised, to_gamma[j]);
                    to_beta[j] += dys[j];
                }
            }
            store_columns(to, column, cols, out);
        };
        for_pieces<T>(cols,
                      [&](int i, int column) { write(cached_dy[i], cached_x[i], column, sum_gamma[i], sum_beta[i]); },
                      [&](int column) {
                          float to_gamma[count], to_beta[count];
                          if constexpr (PARAMETERS) {
                              load_parameters(sums, column, cols, to_gamma);
                              load_parameters(sums + cols, column, cols, to_beta);
                          }
                          write(load_piece(from_dy, column, cols), load_piece(from_x, column, cols), column, to_gamma,
                                to_beta);
                          if constexpr (PARAMETERS) {
                              store_parameters(sums, column, cols, to_gamma);
                              store_parameters(sums + cols, column, cols, to_beta);
                          }
                      });
    }

    if constexpr (PARAMETERS) {
        __shared__ float4 shared_gamma[CACHED / 4], shared_beta[CACHED / 4];
        for (int turn = 0; turn < warps; ++turn) {
            if (warp == turn) {
                for_pieces<T>(cols,
                              [&](int i, int column) {
                                  if (turn > 0) {
                                      float before[count];
                                      load_parameters(reinterpret_cast<float*>(shared_gamma), column, CACHED, before);
#pragma unroll
                                      for (int j = 0; j < count; ++j) sum_gamma[i][j] += before[j];
                                      load_parameters(reinterpret_cast<float*>(shared_beta), column, CACHED, before);
#pragma unroll
                                      for (int j = 0; j < count; ++j) sum_beta[i][j] += before[j];
                                  }
                                  if (turn + 1 < warps) {
                                      store_parameters(reinterpret_cast<float*>(shared_gamma), column, CACHED, sum_gamma[i]);
                                      store_parameters(reinterpret_cast<float*>(shared_beta), column, CACHED, sum_beta[i]);
                                  } else {
                                      store_parameters(sums, column, cols, sum_gamma[i]);
                                      store_parameters(sums + cols, column, cols, sum_beta[i]);
                                  }
                              },
                              [](int) {});
            }
            __syncthreads();
        }
    }
}
