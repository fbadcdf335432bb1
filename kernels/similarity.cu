// Absolute cosine of columns and profile distance: the semantics of ops/similarity.
//
//   column_squares_*   x [S, n] -> f64 partial sums of squares of each column, a chunk of rows a block
//   column_scales      their sums -> what each column is multiplied by, and the diagonal of the result
//   gram_*             upper tiles of the products of scaled columns, one partial product a chunk of rows
//   cosine             sums of the partial products -> |cos|, clamped, mirrored below the diagonal
//   profile_distance   C [n, n] -> max_k |D_ik - D_jk|, D = 1 - C
//
// Both heavy kernels fill the upper tiles of pair_tile.cuh; a step is a multiply-add, or a difference and a maximum.
// Floors: S*n^2 FLOP and n^3 operations in f32 (tensor cores would cost the promised f32 error); memory is minor.
//
// Columns may be 1e-30 or 1e30 in size: a scale is kept as a power of two and a factor in (1/2, 1], so that neither it
// nor a scaled element overflows or loses digits. Partial products over chunks of rows, added in order, give small
// matrices enough blocks; their number depends on the shape alone, never on the device.
#include "pair_tile.cuh"

// What the columns of both sides of a tile are multiplied by, one after the other.
struct Scales {
    float powers[2][TILE], factors[2][TILE];
};

// Four adjacent columns of one row a thread, scaled. Rows of x are steps, so slabs are copied as they lie.
template <typename T>
struct ScaledColumns {
    const T* x;
    int ld, rows, units, columns[2];
    bool vector;
    float fetched[2][QUAD];
    Scales& scales;

    // `x`, `rows`: the chunk. `pairs`: see column_scales.
    __device__ __forceinline__ ScaledColumns(const T* x, int ld, int rows, int units, const float* pairs, Scales& scales,
                                             UpperTile tile, bool vector)
        : x(x), ld(ld), rows(rows), units(units), vector(vector), scales(scales) {
        columns[0] = TILE * tile.row + QUAD * (threadIdx.x % 32);
        columns[1] = TILE * tile.column + QUAD * (threadIdx.x % 32);
        const int side = threadIdx.x / TILE, column = threadIdx.x % TILE;
        const int unit = TILE * (side == 0 ? tile.row : tile.column) + column;
        scales.powers[side][column] = unit < units ? pairs[2 * unit] : 0.0f;
        scales.factors[side][column] = unit < units ? pairs[2 * unit + 1] : 0.0f;
        __syncthreads();
    }
    __device__ __forceinline__ void fetch(int k) {
        const int row = k + threadIdx.x / 32;
        const T* from = x + static_cast<size_t>(row) * ld;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const int column = columns[side];
            if (vector && row < rows && column + QUAD <= units) {
                load_quad(from + column, fetched[side]);
            } else {
#pragma unroll
                for (int i = 0; i < QUAD; ++i)
                    fetched[side][i] = row < rows && column + i < units ? to_f32(from[column + i]) : 0.0f;
            }
        }
    }
    __device__ __forceinline__ void store(Slab& left, Slab& right) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            float powers[QUAD], factors[QUAD];
            load_vector(&scales.powers[side][QUAD * (threadIdx.x % 32)], powers);
            load_vector(&scales.factors[side][QUAD * (threadIdx.x % 32)], factors);
#pragma unroll
            for (int i = 0; i < QUAD; ++i) fetched[side][i] = fetched[side][i] * powers[i] * factors[i];
            store_vector(&(side == 0 ? left : right)[threadIdx.x / 32][QUAD * (threadIdx.x % 32)], fetched[side]);
        }
    }
};

// D = 1 - C, and whether the rows met so far are finite. Beyond the edge D is 0 on both sides, which no maximum of
// magnitudes sees.
struct Distance {
    bool finite[2] = {true, true};

    __device__ __forceinline__ float operator()(int side, float cosine) {
        const float distance = 1.0f - cosine;
        finite[side] = finite[side] && fabsf(distance) < INFINITY_F32;
        return distance;
    }
};

template <typename T>
__device__ __forceinline__ void column_squares(const T* x, int ld, int samples, int units, int rows_per_chunk, double* sums) {
    __shared__ double partials[8][32];
    const int column = 32 * blockIdx.x + threadIdx.x % 32, lane = threadIdx.x / 32;
    const int first = blockIdx.y * rows_per_chunk, last = min(first + rows_per_chunk, samples);
    double sum = 0.0;
    if (column < units) {
        for (int row = first + lane; row < last; row += 8) {
            const double value = to_f32(x[static_cast<size_t>(row) * ld + column]);
            sum += value * value;
        }
    }
    partials[lane][threadIdx.x % 32] = sum;
    __syncthreads();
    if (lane != 0 || column >= units) return;
    for (int other = 1; other < 8; ++other) sum += partials[other][threadIdx.x];
    sums[static_cast<size_t>(blockIdx.y) * units + column] = sum;
}

/// Sums of squares of the columns of `x [samples, units]` over chunk `blockIdx.y`: `sums [chunks, units]`.
extern "C" __global__ void __launch_bounds__(256)
column_squares_f32(const float* x, int ld, int samples, int units, int rows_per_chunk, double* sums) {
    column_squares(x, ld, samples, units, rows_per_chunk, sums);
}

/// The same of bf16.
extern "C" __global__ void __launch_bounds__(256)
column_squares_bf16(const bf16* x, int ld, int samples, int units, int rows_per_chunk, double* sums) {
    column_squares(x, ld, samples, units, rows_per_chunk, sums);
}

/// From `sums [chunks, units]`: `scales [units, 2]` whose product is 1 / max(norm, floor), a power of two and a factor,
/// and `diagonal [units]` = (norm / max(norm, floor))^2.
extern "C" __global__ void __launch_bounds__(256)
column_scales(const double* sums, int chunks, int units, double floor, float* scales, float* diagonal) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= units) return;
    double sum = 0.0;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += sums[static_cast<size_t>(chunk) * units + column];
    const double norm = sqrt(sum), divisor = fmax(norm, floor);
    // Norms of f32 columns are below 2^149, so the power is an f32, if need be a subnormal one.
    const int exponent = min(static_cast<int>(__double_as_longlong(divisor) >> 52) - 1023, 149);
    const double power = __longlong_as_double(static_cast<long long>(1023 - exponent) << 52);
    scales[2 * column] = static_cast<float>(power);
    scales[2 * column + 1] = static_cast<float>(1.0 / (divisor * power));
    const double ratio = norm / divisor;
    diagonal[column] = static_cast<float>(ratio * ratio);
}

template <typename T>
__device__ __forceinline__ void gram(const T* x, int ld, int samples, int units, int rows_per_chunk, const float* scales,
                                     float* products, int tiles, int vector) {
    const int first = blockIdx.y * rows_per_chunk, rows = min(rows_per_chunk, samples - first);
    __shared__ __align__(16) Scales of_tile;
    ScaledColumns<T> source(x + static_cast<size_t>(first) * ld, ld, rows, units, scales, of_tile,
                            UpperTile(blockIdx.x, tiles), vector);
    float acc[8][8] = {};
    reduce_tile(source, rows, acc, [](float& sum, float a, float b) { sum = fmaf(a, b, sum); });
    float* to = products + (static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * (TILE * TILE);
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float quad[QUAD] = {acc[i][QUAD * half], acc[i][QUAD * half + 1], acc[i][QUAD * half + 2],
                                      acc[i][QUAD * half + 3]};
            store_vector(to + place(ty, i) * TILE + place(tx, QUAD * half), quad);
        }
    }
}

/// Products of the scaled columns of `x [samples, units]` over chunk `blockIdx.y`, upper tile `blockIdx.x` of
/// `tiles` x `tiles`: `products [chunks, tiles (tiles + 1) / 2, 128, 128]`.
extern "C" __global__ void __launch_bounds__(256, 2)
gram_f32(const float* x, int ld, int samples, int units, int rows_per_chunk, const float* scales, float* products,
         int tiles, int vector) {
    gram(x, ld, samples, units, rows_per_chunk, scales, products, tiles, vector);
}

/// The same of bf16.
extern "C" __global__ void __launch_bounds__(256, 2)
gram_bf16(const bf16* x, int ld, int samples, int units, int rows_per_chunk, const float* scales, float* products,
          int tiles, int vector) {
    gram(x, ld, samples, units, rows_per_chunk, scales, products, tiles, vector);
}

/// `out [units, units]` from `products` summed over `chunks`: a 32 x 32 part (`blockIdx.y`) of upper tile `blockIdx.x`
/// and its mirror image, through shared memory so that both are written along rows.
extern "C" __global__ void __launch_bounds__(256)
cosine(const float* products, int chunks, const float* diagonal, int units, int tiles, float* out, int ld) {
    __shared__ float part[32][33];
    const UpperTile tile(blockIdx.x, tiles);
    const int row_start = 32 * (blockIdx.y / (TILE / 32)), column_start = 32 * (blockIdx.y % (TILE / 32));
    const int first_row = TILE * tile.row + row_start, first_column = TILE * tile.column + column_start;
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < 32; row += 256 / 32) {
        const size_t at = (row_start + row) * TILE + column_start + lane;
        float sum = 0.0f;
        for (int chunk = 0; chunk < chunks; ++chunk)
            sum += products[(static_cast<size_t>(chunk) * gridDim.x + blockIdx.x) * (TILE * TILE) + at];
        const int i = first_row + row, j = first_column + lane;
        float value = fabsf(sum);
        value = value > 1.0f ? 1.0f : value;
        if (i == j && i < units) value = diagonal[i];
        part[row][lane] = value;
        if (i < units && j < units) out[static_cast<size_t>(i) * ld + j] = value;
    }
    // A tile on the diagonal holds both halves, equal to the bit: products commute.
    if (tile.row == tile.column) return;
    __syncthreads();
    for (int row = threadIdx.x / 32; row < 32; row += 256 / 32) {
        const int i = first_column + row, j = first_row + lane;
        if (i < units && j < units) out[static_cast<size_t>(i) * ld + j] = part[lane][row];
    }
}

/// `out [units, units]` = max_k |D_ik - D_jk| with D = 1 - `cosine [units, units]`, upper tile `blockIdx.x` and its mirror
/// image. A row of `cosine` that is not finite gives NaN in its row and column.
extern "C" __global__ void __launch_bounds__(256, 2)
profile_distance(const float* cosine, int ld_cosine, int units, int tiles, int vector, float* out, int ld_out) {
    __shared__ unsigned char infinite[2][TILE][2];
    const UpperTile tile(blockIdx.x, tiles);
    RowEntries<Distance> source(cosine, ld_cosine, units, units, tile, vector, 1.0f);
    float acc[8][8] = {};
    reduce_tile(source, units, acc, [](float& widest, float a, float b) { widest = fmaxf(widest, fabsf(a - b)); });
    infinite[0][threadIdx.x / 2][threadIdx.x % 2] = !source.transform.finite[0];
    infinite[1][threadIdx.x / 2][threadIdx.x % 2] = !source.transform.finite[1];
    __syncthreads();
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int row_place = place(ty, i), row = TILE * tile.row + row_place;
        const bool row_infinite = infinite[0][row_place][0] || infinite[0][row_place][1];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int column_place = place(tx, j), column = TILE * tile.column + column_place;
            if (row >= units || column >= units) continue;
            const bool undefined = row_infinite || infinite[1][column_place][0] || infinite[1][column_place][1];
            const float value = undefined ? __int_as_float(0x7fffffff) : acc[i][j];
            out[static_cast<size_t>(row) * ld_out + column] = value;
            if (tile.row != tile.column) out[static_cast<size_t>(column) * ld_out + row] = value;
        }
    }
}
