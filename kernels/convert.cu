// Element types of whole matrices: f32 to bf16 or f16, rounded to nearest (ties to even), and bf16 to f32, exactly.
//
// Parameters have a bf16 copy that products read while AdamW keeps the f32 block (or an f16 copy, for forward passes
// alone), and a product with one f32 factor rounds it first. One thread converts 8 neighbouring elements of a row, so that every access is 16 bytes wide where the
// operands are aligned. Floor: 6 bytes an element.
#include "prelude.cuh"

template <typename From, typename To>
__device__ __forceinline__ void convert(const From* __restrict__ x, int ld_x, To* __restrict__ y, int ld_y, int rows,
                                        int cols, int vector) {
    const int octets = (cols + 7) / 8;
    const u32 thread = blockIdx.x * 256u + threadIdx.x;
    const int row = static_cast<int>(thread / octets);
    if (row >= rows) return;
    const int first = static_cast<int>(thread % octets) * 8;
    x += static_cast<u64>(row) * ld_x + first;
    y += static_cast<u64>(row) * ld_y + first;
    if (vector && first + 8 <= cols) {
        constexpr int narrow = sizeof(From) == 2 ? Lanes<To>::count : Lanes<From>::count;
        float values[8];
        if constexpr (sizeof(From) == 2) {
            load_vector(x, values);
        } else {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float part[narrow];
                load_vector(x + half * narrow, part);
#pragma unroll
                for (int i = 0; i < narrow; ++i) values[half * narrow + i] = part[i];
            }
        }
        if constexpr (sizeof(To) == 2) {
            store_vector(y, values);
        } else {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float part[narrow];
#pragma unroll
                for (int i = 0; i < narrow; ++i) part[i] = values[half * narrow + i];
                store_vector(y + half * narrow, part);
            }
        }
    } else {
        for (int i = 0; i < min(8, cols - first); ++i) y[i] = from_f32<To>(to_f32(x[i]));
    }
}

/// `y = bf16(x)`, `[rows, cols]`; `vector`: every row of both starts on a 16-byte boundary.
extern "C" __global__ void __launch_bounds__(256) to_bf16_matrix(const float* x, int ld_x, bf16* y, int ld_y, int rows,
                                                          int cols, int vector) {
    convert(x, ld_x, y, ld_y, rows, cols, vector);
}

/// `y = f16(x)`, `[rows, cols]`; `vector`: every row of both starts on a 16-byte boundary.
extern "C" __global__ void __launch_bounds__(256) to_f16_matrix(const float* x, int ld_x, f16* y, int ld_y, int rows,
                                                         int cols, int vector) {
    convert(x, ld_x, y, ld_y, rows, cols, vector);
}

/// `y = f32(x)`, `[rows, cols]`; `vector`: every row of both starts on a 16-byte boundary.
extern "C" __global__ void __launch_bounds__(256) to_f32_matrix(const bf16* x, int ld_x, float* y, int ld_y, int rows,
                                                                int cols, int vector) {
    convert(x, ld_x, y, ld_y, rows, cols, vector);
}
