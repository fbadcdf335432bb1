// Absolute cosine of columns and profile distance: the semantics of ops/similarity.
//
//   column_squares_*   x [S, n] -> f64 partial sums of squares of each column, a chunk of rows a block
//   column_scales      their sums -> what each column is multiplied by, and the diagonal of the result
//   gram_*             upper tiles of the products of scaled columns, one partial product a chunk of rows
//   cosine             sums of the partial products -> |cos|, clamped, mirrored below the diagonal
//   profile_distance   C [n, n] -> max_k |D_ik - D_jk|, D = 1 - C
//
// Both heavy kernels fill 128 x 128 tiles of a symmetric result, tiles on and above the diagonal only, by 256 threads
// with an 8 x 8 tile each in registers, from slabs of 8 steps that alternate between two buffers in shared memory while
// the next is on its way. They differ in what a step does: a multiply-add, or a difference and a maximum.
// Floors: S*n^2 FLOP and n^3 operations in f32 (tensor cores would cost the promised f32 error); memory is minor.
//
// Columns may be 1e-30 or 1e30 in size: a scale is kept as a power of two and a factor in (1/2, 1], so that neither it
// nor a scaled element overflows or loses digits. Partial products over chunks of rows, added in order, give small
// matrices enough blocks; their number depends on the shape alone, never on the device.
#include "prelude.cuh"

#define TILE 128
#define DEPTH 8
// Rows of a slab are 16-byte aligned, and 4 rows apart is 16 banks apart: transposing stores do not conflict.
#define STRIDE (TILE + 4)
#define THREADS 256
#define QUAD 4

// Tile `index` of the upper triangle of tiles x tiles, row by row.
struct UpperTile {
    int row, column;
    __device__ __forceinline__ UpperTile(int index, int tiles) : row(0) {
        while (index >= tiles - row) index -= tiles - row++;
        column = row + index;
    }
};

typedef float Slab[DEPTH][STRIDE];

// Row (or column) of the tile that element i of a thread's 8 stands for: two runs of 4, so that loads are conflict-free.
__device__ __forceinline__ int place(int thread, int i) { return (i / QUAD) * (TILE / 2) + QUAD * thread + i % QUAD; }

// acc[i][j] = combine(acc[i][j], left[k][i], right[k][j]) for k in 0..depth. `source` fetches a slab of both sides from
// memory to registers and stores it to shared memory.
template <typename Source, typename Combine>
__device__ __forceinline__ void reduce_tile(Source& source, int depth, float (&acc)[8][8], Combine combine) {
    __shared__ __align__(16) Slab left[2], right[2];
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    source.fetch(0);
    source.store(left[0], right[0]);
    __syncthreads();
    int current = 0;
    for (int k = 0; k < depth; k += DEPTH) {
        const bool more = k + DEPTH < depth;
        if (more) source.fetch(k + DEPTH);
#pragma unroll
        for (int step = 0; step < DEPTH; ++step) {
            float a[2][QUAD], b[2][QUAD];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                load_vector(&left[current][step][place(ty, QUAD * half)], a[half]);
                load_vector(&right[current][step][place(tx, QUAD * half)], b[half]);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < 8; ++j) combine(acc[i][j], a[i / QUAD][i % QUAD], b[j / QUAD][j % QUAD]);
            }
        }
        current ^= 1;
        // The other buffer was read before the last barrier.
        if (more) source.store(left[current], right[current]);
        __syncthreads();
    }
}

template <typename T>
__device__ __forceinline__ void load_quad(const T* from, float (&to)[QUAD]);
template <>
__device__ __forceinline__ void load_quad<float>(const float* from, float (&to)[QUAD]) {
    load_vector(from, to);
}
template <>
__device__ __forceinline__ void load_quad<bf16>(const bf16* from, float (&to)[QUAD]) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = __uint_as_float(v.x << 16), to[1] = __uint_as_float(v.x & 0xffff0000u);
    to[2] = __uint_as_float(v.y << 16), to[3] = __uint_as_float(v.y & 0xffff0000u);
}

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

// Four adjacent entries of one row of D on either side a thread, transposed on the way: steps are columns of D. Beyond
// the edge D is 0 on both sides, which no maximum of magnitudes sees.
struct DistanceRows {
    const float* cosine;
    int ld, units, rows[2];
    bool vector;
    float fetched[2][QUAD];
    bool finite[2] = {true, true};

    __device__ __forceinline__ DistanceRows(const float* cosine, int ld, int units, UpperTile tile, bool vector)
        : cosine(cosine), ld(ld), units(units), vector(vector) {
        rows[0] = TILE * tile.row + threadIdx.x / 2;
        rows[1] = TILE * tile.column + threadIdx.x / 2;
    }
    __device__ __forceinline__ void fetch(int k) {
        const int column = k + QUAD * (threadIdx.x % 2);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const float* from = cosine + static_cast<size_t>(rows[side]) * ld;
            if (vector && rows[side] < units && column + QUAD <= units) {
                load_vector(from + column, fetched[side]);
            } else {
#pragma unroll
                for (int i = 0; i < QUAD; ++i)
                    fetched[side][i] = rows[side] < units && column + i < units ? from[column + i] : 1.0f;
            }
        }
    }
    __device__ __forceinline__ void store(Slab& left, Slab& right) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
#pragma unroll
            for (int i = 0; i < QUAD; ++i) {
                const float distance = 1.0f - fetched[side][i];
                finite[side] = finite[side] && fabsf(distance) < INFINITY_F32;
                (side == 0 ? left : right)[QUAD * (threadIdx.x % 2) + i][threadIdx.x / 2] = distance;
            }
        }
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
    for (int row = threadIdx.x / 32; row < 32; row += THREADS / 32) {
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
    for (int row = threadIdx.x / 32; row < 32; row += THREADS / 32) {
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
    DistanceRows source(cosine, ld_cosine, units, tile, vector);
    float acc[8][8] = {};
    reduce_tile(source, units, acc, [](float& widest, float a, float b) { widest = fmaxf(widest, fabsf(a - b)); });
    infinite[0][threadIdx.x / 2][threadIdx.x % 2] = !source.finite[0];
    infinite[1][threadIdx.x / 2][threadIdx.x % 2] = !source.finite[1];
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
