// What follows a product: the epilogue of src/ops/gemm/mod.rs, applied to quads of neighbouring columns.
//
// A finished tile goes through shared memory, 16 rows of a warp at a time, so that a lane gets quads (global memory is
// then read and written in whole sectors, and a quad is one Philox call) and so that the code of the activations is in
// a loop over quads, not unrolled over the accumulators.
#pragma once
#include "activation.cuh"
#include "philox.cuh"

// Bits of `flags`; the activation is in bits 4 to 6.
#define GEMM_BF16_OUTPUT 1    // C, preactivation and residual are bf16, not f32
#define GEMM_ACCUMULATE 2     // the old content of C is added
#define GEMM_COMPUTE_MASKED 4 // masked columns have a preactivation
#define GEMM_VECTORS 8        // every operand of the epilogue allows access by quads

struct GemmEpilogue {
    u8* c;                     // [m, n] of f32 or bf16
    u8* preactivation;         // [m, n] or null
    const u8* residual;        // [m, n] or null
    const float* bias;         // [n] or null
    const float* neuron_mask;  // [n] or null
    int ldc, ld_preactivation, ld_residual;
    int m, n;
    const int* key; // null: no dropout
    u32 site;
    u64 threshold;
    float scale;
    int flags;

    __device__ __forceinline__ bool has(int flag) const { return (flags & flag) != 0; }
    __device__ __forceinline__ int activation() const { return flags >> 4 & 7; }
    // Nothing but additions: z, and nothing that looks at z on its own.
    __device__ __forceinline__ bool only_adds() const {
        return activation() == ACTIVATION_NONE && preactivation == nullptr && neuron_mask == nullptr && key == nullptr &&
               !(has(GEMM_ACCUMULATE) && residual != nullptr);
    }
};

// Element `index` of a matrix of the outputs' type.
__device__ __forceinline__ float load_element(const u8* base, long long index, int flags) {
    if (flags & GEMM_BF16_OUTPUT) return to_f32(reinterpret_cast<const bf16*>(base)[index]);
    return reinterpret_cast<const float*>(base)[index];
}
__device__ __forceinline__ void store_element(u8* base, long long index, int flags, float value) {
    if (flags & GEMM_BF16_OUTPUT)
        reinterpret_cast<bf16*>(base)[index] = from_f32<bf16>(value);
    else
        reinterpret_cast<float*>(base)[index] = value;
}

// Four neighbouring values of a row, at an address for access by quads.
__device__ __forceinline__ void load_quad(const float* from, float (&to)[4]) { load_vector(from, to); }
__device__ __forceinline__ void load_quad(const bf16* from, float (&to)[4]) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    to[0] = __uint_as_float(words.x << 16), to[1] = __uint_as_float(words.x & 0xffff0000u);
    to[2] = __uint_as_float(words.y << 16), to[3] = __uint_as_float(words.y & 0xffff0000u);
}
__device__ __forceinline__ void load_quad(const u8* base, long long index, int flags, float (&to)[4]) {
    if (flags & GEMM_BF16_OUTPUT)
        load_quad(reinterpret_cast<const bf16*>(base) + index, to);
    else
        load_quad(reinterpret_cast<const float*>(base) + index, to);
}
__device__ __forceinline__ void store_quad(u8* base, long long index, int flags, const float (&from)[4]) {
    if (flags & GEMM_BF16_OUTPUT)
        *reinterpret_cast<uint2*>(base + 2 * index) = make_uint2(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]));
    else
        *reinterpret_cast<float4*>(base + 4 * index) = make_float4(from[0], from[1], from[2], from[3]);
}

// The whole epilogue of one element, any alignment: the definition, and what the edges of matrices get.
__device__ __forceinline__ void finish_element(const GemmEpilogue& e, const Dropout& dropout, int row, int column, float z) {
    const long long at = static_cast<long long>(row) * e.ldc + column;
    const float mask = e.neuron_mask == nullptr ? 1.0f : e.neuron_mask[column];
    const bool hidden = mask == 0.0f && !e.has(GEMM_COMPUTE_MASKED);
    if (e.bias != nullptr) z += e.bias[column];
    if (e.has(GEMM_ACCUMULATE)) z += load_element(e.c, at, e.flags);
    if (hidden) z = 0.0f;
    if (e.preactivation != nullptr)
        store_element(e.preactivation, static_cast<long long>(row) * e.ld_preactivation + column, e.flags, z);
    float y = hidden ? 0.0f : activation_value(e.activation(), z) * mask;
    y = dropout.apply_one(row, column, y);
    if (e.residual != nullptr) y += load_element(e.residual, static_cast<long long>(row) * e.ld_residual + column, e.flags);
    store_element(e.c, at, e.flags, y);
}

template <typename F>
__device__ __forceinline__ void apply(float (&z)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) z[j] = F::at(z[j]).value;
}

// What the epilogue knows of the columns `column` to column + 3, a multiple of 4; the same for every row.
struct GemmQuad {
    int column;
    bool inside, whole; // whether the first column is a column of C; whether quads may be used
    float bias[4], mask[4];

    __device__ __forceinline__ GemmQuad(const GemmEpilogue& e, int column) : column(column), inside(column < e.n) {
        // An old C that goes through an activation is never asked for; it takes the way of single elements.
        whole = e.has(GEMM_VECTORS) && column + 4 <= e.n && (!e.has(GEMM_ACCUMULATE) || e.only_adds());
#pragma unroll
        for (int j = 0; j < 4; ++j) bias[j] = 0.0f, mask[j] = 1.0f;
        if (whole && e.bias != nullptr) load_vector(e.bias + column, bias);
        if (whole && e.neuron_mask != nullptr) load_vector(e.neuron_mask + column, mask);
    }

    // What is added last: the residual, or the old content of C where the epilogue only adds.
    __device__ __forceinline__ void load_addend(const GemmEpilogue& e, int row, float (&addend)[4]) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) addend[j] = 0.0f;
        const u8* from = e.residual != nullptr ? e.residual : e.has(GEMM_ACCUMULATE) ? e.c : nullptr;
        const int ld = e.residual != nullptr ? e.ld_residual : e.ldc;
        if (from != nullptr && row < e.m) load_quad(from, static_cast<long long>(row) * ld + column, e.flags, addend);
    }

    // From z to dropout(y) where it is more than adding the bias.
    __device__ __forceinline__ void transform(const GemmEpilogue& e, const Dropout& dropout, int row, float (&z)[4]) const {
        const bool hide = !e.has(GEMM_COMPUTE_MASKED);
#pragma unroll
        for (int j = 0; j < 4; ++j) z[j] = hide && mask[j] == 0.0f ? 0.0f : z[j] + bias[j];
        if (e.preactivation != nullptr)
            store_quad(e.preactivation, static_cast<long long>(row) * e.ld_preactivation + column, e.flags, z);
        switch (e.activation()) {
            case ACTIVATION_GELU_ERF: apply<GeluErf>(z); break;
            case ACTIVATION_GELU_TANH: apply<GeluTanh>(z); break;
            case ACTIVATION_RELU: apply<Relu>(z); break;
            case ACTIVATION_TANH: apply<Tanh>(z); break;
            default: break;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) z[j] = hide && mask[j] == 0.0f ? 0.0f : z[j] * mask[j];
        dropout.apply(row, column, z);
    }
};

// Floats from a row of a warp's 16 staged rows to the next: 8 more than its columns, so that the rows of an accumulator
// tile lie in different banks.
template <int COLUMNS>
constexpr int STAGED_LD = COLUMNS + 8;

// A lane's share of the epilogue of 16 rows from `row` on of a warp's COLUMNS columns, of which the warp has put the
// products to `staged`, [16, STAGED_LD]: the four columns of `quad`, and every WARP / (COLUMNS / 4)-th row. `partials`, if
// not null, is [m, ld_partials], to which the products go as they are.
template <int COLUMNS>
__device__ __forceinline__ void finish_rows(const GemmEpilogue& e, const Dropout& dropout, float* staged, int row,
                                            const GemmQuad& quad, float* partials, int ld_partials) {
    constexpr int quads = COLUMNS / 4, together = WARP / quads, turns = 16 / together, step = together * STAGED_LD<COLUMNS>;
    const int lane = threadIdx.x % WARP;
    if (lane >= quads * together || !quad.inside) return; // 48 columns occupy 24 lanes
    staged += lane / quads * STAGED_LD<COLUMNS> + lane % quads * 4;
    row += lane / quads;
    if (partials != nullptr) {
        for (int turn = 0; turn < turns; ++turn) {
            const int y = row + turn * together;
            const float4 z = *reinterpret_cast<const float4*>(staged + turn * step);
            if (y < e.m) *reinterpret_cast<float4*>(partials + static_cast<long long>(y) * ld_partials + quad.column) = z;
        }
    } else if (quad.whole) {
        // All loads before any use: one wait for memory instead of one a row.
        float addend[turns][4];
#pragma unroll
        for (int turn = 0; turn < turns; ++turn) quad.load_addend(e, row + turn * together, addend[turn]);
        const bool only_adds = e.only_adds();
        if (!only_adds) {
#pragma unroll 1
            for (int turn = 0; turn < turns && row + turn * together < e.m; ++turn) {
                float z[4];
                load_vector(staged + turn * step, z);
                quad.transform(e, dropout, row + turn * together, z);
                store_vector(staged + turn * step, z);
            }
        }
#pragma unroll
        for (int turn = 0; turn < turns; ++turn) {
            const int y = row + turn * together;
            float z[4];
            load_vector(staged + turn * step, z);
#pragma unroll
            for (int j = 0; j < 4; ++j) z[j] = (only_adds ? z[j] + quad.bias[j] : z[j]) + addend[turn][j];
            if (y < e.m) store_quad(e.c, static_cast<long long>(y) * e.ldc + quad.column, e.flags, z);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < turns * 4; ++i) {
            const int y = row + i / 4 * together, column = quad.column + i % 4;
            if (y < e.m && column < e.n) finish_element(e, dropout, y, column, staged[i / 4 * step + i % 4]);
        }
    }
}
