// Dropout from a counter: whether an element is kept is a function of where it is, so nothing is stored and forward,
// backward and every other executor agree. The definition is src/ops/dropout/mod.rs.
//
// Cost: one Philox4x32-10 (about 60 integer instructions) for four neighbouring columns.
#pragma once
#include "prelude.cuh"

// Philox4x32-10 (Salmon et al., SC 2011): four random words from a counter and a key.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 p_high = __umulhi(counter.x, 0xd2511f53u), p_low = counter.x * 0xd2511f53u;
        const u32 q_high = __umulhi(counter.z, 0xcd9e8d57u), q_low = counter.z * 0xcd9e8d57u;
        counter = make_uint4(q_high ^ counter.y ^ key.x, q_low, p_high ^ counter.w ^ key.y, p_low);
        key.x += 0x9e3779b9u;
        key.y += 0xbb67ae85u;
    }
    return counter;
}

// A dropout layer in one run. Make it once a thread with `dropout_of`; without a key it does nothing.
struct Dropout {
    uint2 seed;
    u32 draw, site, threshold;
    float scale;
    bool active;    // there is a key
    bool drops_all; // p = 1: no 32-bit threshold can say so

    __device__ __forceinline__ bool keeps(u32 word) const { return word >= threshold && !drops_all; }
    __device__ __forceinline__ float scaled(float value, u32 word) const { return keeps(word) ? value * scale : 0.0f; }

    // The words of columns 4·group … 4·group + 3 of a row.
    __device__ __forceinline__ uint4 words(u32 row, u32 group) const {
        return philox(make_uint4(group, row, site, draw), seed);
    }

    // Values of neighbouring columns from `column`, a multiple of 4, on; COUNT is a multiple of 4.
    template <int COUNT>
    __device__ __forceinline__ void apply(int row, int column, float (&values)[COUNT]) const {
        static_assert(COUNT % 4 == 0, "whole groups of four columns");
        if (!active) return;
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const uint4 word = words(row, (column + i) / 4);
            values[i] = scaled(values[i], word.x);
            values[i + 1] = scaled(values[i + 1], word.y);
            values[i + 2] = scaled(values[i + 2], word.z);
            values[i + 3] = scaled(values[i + 3], word.w);
        }
    }

    // The values of columns `column`, which is even, and `column + 1`: what a thread holds of a row of an mma tile.
    __device__ __forceinline__ void apply_pair(int row, int column, float& first, float& second) const {
        if (!active) return;
        const uint4 word = words(row, column / 4);
        first = scaled(first, column % 4 == 0 ? word.x : word.z);
        second = scaled(second, column % 4 == 0 ? word.y : word.w);
    }

    // One element.
    __device__ __forceinline__ float apply_one(int row, int column, float value) const {
        if (!active) return value;
        const uint4 word = words(row, column / 4);
        const u32 low = column % 2 == 0 ? word.x : word.y, high = column % 2 == 0 ? word.z : word.w;
        return scaled(value, column % 4 < 2 ? low : high);
    }
};

// `key`: [seed low, seed high, draw] in device memory, or null for no dropout. Words below `threshold`, in [0, 2³²],
// are dropped; kept values are multiplied by `scale`.
__device__ __forceinline__ Dropout dropout_of(const int* key, u32 site, u64 threshold, float scale) {
    Dropout dropout = {};
    dropout.active = key != nullptr;
    if (dropout.active) {
        dropout.seed = make_uint2(key[0], key[1]);
        dropout.draw = key[2];
        dropout.site = site;
        dropout.threshold = static_cast<u32>(threshold);
        dropout.scale = scale;
        dropout.drops_all = threshold > 0xffffffffull;
    }
    return dropout;
}
