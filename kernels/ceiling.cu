// The ceilings every figure of `secateur bench` is a share of, measured on the device itself.
//
// A table of cards would be wrong for the next card, for a laptop's power limit and for a shared server, so nothing is
// looked up: these kernels do nothing but multiply-add in registers, or nothing but copy.
//
// mma_*: THREADS / 32 warps a block, each with ACCUMULATORS independent accumulator tiles, so that no instruction waits
//        for the one before it. One m16n8k16 (m16n8k8 for tf32) is 2·16·8·16 (2·16·8·8) FLOPs. No operand is ever loaded.
// fma_f32: the same with scalar multiply-adds, 2 FLOPs an instruction and lane.
// copy: 16 bytes a thread and turn, grid-stride; moves 2·16 bytes each.
//
// The results are stored only if they are NaN (which they are not), so that the loops cannot be removed.
#include "prelude.cuh"

#define ACCUMULATORS 8

template <typename Multiply>
__device__ __forceinline__ void mma_loop(float* sink, int turns, Multiply multiply) {
    float c[ACCUMULATORS][4];
    u32 a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = threadIdx.x * 0x9E3779B9u + i;
#pragma unroll
    for (int i = 0; i < 2; ++i) b[i] = threadIdx.x * 0x85EBCA6Bu + i;
    // Small exponents: sums stay finite however many turns there are.
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] &= 0x1fff1fffu;
#pragma unroll
    for (int i = 0; i < 2; ++i) b[i] &= 0x1fff1fffu;
#pragma unroll
    for (int j = 0; j < ACCUMULATORS; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[j][i] = 0.0f;
    for (int turn = 0; turn < turns; ++turn)
#pragma unroll
        for (int j = 0; j < ACCUMULATORS; ++j) multiply(c[j], a, b);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < ACCUMULATORS; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += c[j][i];
    if (sum != sum) sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

/// `turns`·8 bf16 products m16n8k16 a warp.
extern "C" __global__ void __launch_bounds__(256) mma_bf16(float* sink, int turns) {
    mma_loop(sink, turns, [](float(&c)[4], const u32(&a)[4], const u32(&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    });
}

/// `turns`·8 f16 products m16n8k16 a warp, summed in f32.
extern "C" __global__ void __launch_bounds__(256) mma_f16(float* sink, int turns) {
    mma_loop(sink, turns, [](float(&c)[4], const u32(&a)[4], const u32(&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    });
}

/// `turns`·8 tf32 products m16n8k8 a warp.
extern "C" __global__ void __launch_bounds__(256) mma_tf32(float* sink, int turns) {
    mma_loop(sink, turns, [](float(&c)[4], const u32(&a)[4], const u32(&b)[2]) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    });
}

/// `turns`·32 multiply-adds a thread.
extern "C" __global__ void __launch_bounds__(256) fma_f32(float* sink, int turns) {
    mma_loop(sink, turns, [](float(&c)[4], const u32(&a)[4], const u32(&b)[2]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] = fmaf(__uint_as_float(a[i]), __uint_as_float(b[i & 1]), c[i]);
    });
}

/// `to[i] = from[i]` for `vectors` groups of four floats.
extern "C" __global__ void __launch_bounds__(256) copy(const float* __restrict__ from, float* __restrict__ to, unsigned long long vectors) {
    const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += stride) {
        float v[4];
        load_vector(from + 4 * i, v);
        store_vector(to + 4 * i, v);
    }
}

/// Does nothing: what a launch costs.
extern "C" __global__ void nothing() {}
