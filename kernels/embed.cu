// Token, position and segment embeddings, summed in this order (src/ops/embed/mod.rs). The backward is the
// scatter-add of gather.cu, once a table.
//
// ids, positions, types: [rows]; tables: [entries, cols] f32; out: [rows, cols], f32 or bf16. One 16-byte piece of `out`
// a thread.
//
// Floor, bytes an element of size s: 4 for each table, as far as its rows are not in cache, and s.
#include "rows.cuh"

#define THREADS 256

template <typename T>
__device__ __forceinline__ void embed(const int* ids, const int* positions, const int* types, const float* word, int ldw,
                                      const float* position, int ldp, const float* type, int ldt, T* out, int ldo, int rows,
                                      int cols) {
    constexpr int count = Lanes<T>::count;
    const Place<T> at(rows, cols);
    if (!at.inside) return;
    float sum[count], more[count];
    load_parameters(row_of(word, ids[at.row], ldw), at.column, cols, sum);
    if (position) {
        load_parameters(row_of(position, positions[at.row], ldp), at.column, cols, more);
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += more[j];
    }
    if (type) {
        load_parameters(row_of(type, types[at.row], ldt), at.column, cols, more);
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += more[j];
    }
    store_columns(row_of(out, at.row, ldo), at.column, cols, sum);
}

/// `out[t] = word[ids[t]] + position[positions[t]] + type[types[t]]`; a null table is left out.
extern "C" __global__ void __launch_bounds__(THREADS)
    embed_f32(const int* __restrict__ ids, const int* __restrict__ positions, const int* __restrict__ types,
              const float* __restrict__ word, int ldw, const float* __restrict__ position, int ldp,
              const float* __restrict__ type, int ldt, float* __restrict__ out, int ldo, int rows, int cols) {
    embed(ids, positions, types, word, ldw, position, ldp, type, ldt, out, ldo, rows, cols);
}

/// As `embed_f32`, to bf16.
extern "C" __global__ void __launch_bounds__(THREADS)
    embed_bf16(const int* __restrict__ ids, const int* __restrict__ positions, const int* __restrict__ types,
               const float* __restrict__ word, int ldw, const float* __restrict__ position, int ldp,
               const float* __restrict__ type, int ldt, bf16* __restrict__ out, int ldo, int rows, int cols) {
    embed(ids, positions, types, word, ldw, position, ldp, type, ldt, out, ldo, rows, cols);
}
