// What every kernel file starts from: element types, conversions, vector access, reductions.
//
// No CUDA or standard header is included anywhere: NVRTC alone, without a toolkit, has none. bf16 and f16 are converted
// by inline PTX. Reductions are fixed trees, so a result does not depend on how blocks or warps are scheduled.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// A bfloat16 in memory. Arithmetic is f32: load, compute, store.
struct bf16 {
    u16 bits;
};

// An IEEE half in memory, for factors of products alone: beyond ±65504 it is infinite.
struct f16 {
    u16 bits;
};

#define WARP 32
#define FULL_MASK 0xffffffffu
#define INFINITY_F32 __int_as_float(0x7f800000)

// Elements that 16 bytes hold.
template <typename T>
struct Lanes {
    static constexpr int count = 16 / sizeof(T);
};

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

__device__ __forceinline__ float to_f32(f16 x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}

template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}

// Two values to one register of bf16 (f16), `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// 16-byte vector access: 4 floats, 8 bf16 or 8 f16. The address must be 16-byte aligned.
__device__ __forceinline__ void load_vector(const float* from, float (&to)[4]) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
__device__ __forceinline__ void load_vector(const bf16* from, float (&to)[8]) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void store_vector(float* to, const float (&from)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
__device__ __forceinline__ void store_vector(bf16* to, const float (&from)[8]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]),
                                               pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7]));
}

__device__ __forceinline__ void store_vector(f16* to, const float (&from)[8]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_f16(from[0], from[1]), pack_f16(from[2], from[3]),
                                               pack_f16(from[4], from[5]), pack_f16(from[6], from[7]));
}

struct Sum {
    template <typename T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Butterfly over the warp: every lane gets the result.
template <typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T x, Op op) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = op(x, __shfl_xor_sync(FULL_MASK, x, distance));
    return x;
}

// Over a block of THREADS (a multiple of 32, at most 1024): every thread gets the result. `partials` is shared memory
// for THREADS / 32 values; the function begins and ends with a barrier, so it may be reused at once.
template <int THREADS, typename T, typename Op>
__device__ __forceinline__ T block_reduce(T x, Op op, T* partials) {
    constexpr int warps = THREADS / WARP;
    x = warp_reduce(x, op);
    if constexpr (warps == 1) return x;
    __syncthreads();
    if (threadIdx.x % WARP == 0) partials[threadIdx.x / WARP] = x;
    __syncthreads();
    x = partials[0];
#pragma unroll
    for (int warp = 1; warp < warps; ++warp) x = op(x, partials[warp]);
    __syncthreads();
    return x;
}
