// Greedy dimension mapping of all pairs of heads: the semantics of ops/mapping.
//
//   cosine [H d, H d] f32, in [0, 1]  ->  out [H, H]
//
// A block takes a pair. It keeps the largest entry left of every row; a step takes the largest of those, strikes its row
// and column out, and rescans only the rows whose largest entry stood in that column. The pair's d x d entries are read
// from L2 (16 KB at d = 64), about twice in all instead of d times. Ties go to the first entry in row-major order, which
// is the smallest row and in it the smallest column: both are the low half of the keys compared. d steps are serial, so
// the floor is latency: d times two barriers, and H (H - 1) / 2 blocks side by side.
#include "prelude.cuh"

#define WARPS 8

// Larger for the larger value, then for the smaller index; 0 stands for "nothing above zero left".
__device__ __forceinline__ u64 key(float value, int index) {
    return value > 0.0f ? static_cast<u64>(__float_as_uint(value)) << 32 | (0xffffffffu - index) : 0;
}
__device__ __forceinline__ int index_of(u64 key) {
    u32 low;
    asm("cvt.u32.u64 %0, %1;" : "=r"(low) : "l"(key));
    return 0xffffffffu - low;
}
__device__ __forceinline__ float value_of(u64 key) { return __uint_as_float(static_cast<u32>(key >> 32)); }

__device__ __forceinline__ u64 warp_max(u64 x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const u64 other = __shfl_xor_sync(FULL_MASK, x, distance);
        x = other > x ? other : x;
    }
    return x;
}

/// Similarity of heads `blockIdx.x` and `blockIdx.y` from `cosine [heads * dim, heads * dim]`, written at both places of
/// `out [heads, heads]`; 1 on the diagonal. Dynamic shared memory: 9 bytes a dimension.
extern "C" __global__ void __launch_bounds__(256, 4)
dimension_mapping(const float* cosine, int ld_cosine, int dim, float* out, int ld_out) {
    extern __shared__ u64 best[];                        // [dim], the key of a row's largest entry left
    u8* column_taken = reinterpret_cast<u8*>(best + dim);  // [dim]
    __shared__ u64 chosen;
    __shared__ u8 warp_undefined[WARPS];
    const int a = blockIdx.y, b = blockIdx.x;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (a == b && threadIdx.x == 0) out[static_cast<size_t>(a) * ld_out + a] = 1.0f;
    if (a >= b) return;
    const float* block = cosine + static_cast<size_t>(a) * dim * ld_cosine + static_cast<size_t>(b) * dim;

    bool undefined = false;
    for (int row = warp; row < dim; row += WARPS) {
        u64 largest = 0;
        for (int column = lane; column < dim; column += WARP) {
            const float value = block[static_cast<size_t>(row) * ld_cosine + column];
            undefined = undefined || value != value;
            const u64 candidate = key(value, column);
            largest = candidate > largest ? candidate : largest;
        }
        largest = warp_max(largest);
        if (lane == 0) best[row] = largest;
    }
    undefined = __any_sync(FULL_MASK, undefined);
    if (lane == 0) warp_undefined[warp] = undefined;
    for (int column = threadIdx.x; column < dim; column += WARPS * WARP) column_taken[column] = 0;
    __syncthreads();
    undefined = false;
    for (int i = 0; i < WARPS; ++i) undefined = undefined || warp_undefined[i] != 0;

    double sum = 0.0;
    for (int step = 0; step < dim && !undefined; ++step) {
        if (warp == 0) {
            u64 largest = 0;
            for (int row = lane; row < dim; row += WARP) {
                const u64 entry = best[row];
                const u64 candidate = key(value_of(entry), row);
                largest = candidate > largest ? candidate : largest;
            }
            largest = warp_max(largest);
            __syncwarp();
            if (lane == 0) {
                u64 entry = 0;
                if (largest != 0) {
                    entry = best[index_of(largest)];
                    best[index_of(largest)] = 0;
                    column_taken[index_of(entry)] = 1;
                }
                chosen = entry;
            }
        }
        __syncthreads();
        const u64 winner = chosen;
        if (winner == 0) break;
        sum += static_cast<double>(value_of(winner));
        for (int row = warp; row < dim; row += WARPS) {
            const u64 entry = best[row];
            if (entry == 0 || index_of(entry) != index_of(winner)) continue;
            u64 largest = 0;
            for (int column = lane; column < dim; column += WARP) {
                if (column_taken[column] != 0) continue;
                const u64 candidate = key(block[static_cast<size_t>(row) * ld_cosine + column], column);
                largest = candidate > largest ? candidate : largest;
            }
            largest = warp_max(largest);
            // Every lane has read the entry that is replaced: a shuffle orders no memory.
            __syncwarp();
            if (lane == 0) best[row] = largest;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const float mean = undefined ? __int_as_float(0x7fffffff) : static_cast<float>(sum / dim);
        out[static_cast<size_t>(a) * ld_out + b] = mean;
        out[static_cast<size_t>(b) * ld_out + a] = mean;
    }
}
