// Tensor-core products and what feeds them, as wrappers of single PTX instructions, all present from sm_80 on; and the
// swizzles that keep shared memory free of bank conflicts.
//
// Shared memory has 32 banks of 4 bytes; 16-byte accesses go by in phases of 8 lanes, and a phase is free of conflicts
// if its 8 chunks of 16 bytes lie in 8 different columns of the 128-byte rows that the banks form.
#pragma once
#include "prelude.cuh"

// Address of shared memory as ldmatrix and cp.async take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    u32 address;
    asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(address) : "l"(pointer));
    return address;
}

// Starts the copy of 16 bytes to shared memory past the registers and L1; only the first `bytes` are read, the rest
// become 0. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(u32 to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// Starts the copy of 16 bytes from base + down·ld + min(start, last)·scale bytes if `wanted`. The address is computed here
// and not in C++, for the compiler would keep parts of it in registers from turn to turn, and there are none left.
__device__ __forceinline__ void copy_async_if(bool wanted, u32 to, const void* base, int down, int ld, int start, int last,
                                              int scale) {
    asm volatile(
        "{ .reg .pred wanted; .reg .s32 place; .reg .u64 from; setp.ne.u32 wanted, %0, 0; mad.wide.s32 from, %3, %4, %2;"
        " min.s32 place, %5, %6; mad.wide.s32 from, place, %7, from; @wanted cp.async.cg.shared.global [%1], [from], 16; }" ::"r"(
            static_cast<u32>(wanted)),
        "r"(to), "l"(base), "r"(down), "r"(ld), "r"(start), "r"(last), "r"(scale)
        : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's groups of copies are under way.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8×8 matrices of 16-bit elements (or 8×4 of 32 bits). Lane l gives the address of row l % 8 of matrix l / 8 and
// receives the 32 bits at row l / 4, 32-bit column l % 4 of each.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
// The same of the transposes, of 16-bit elements only.
__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ u32 load_shared(u32 address) {
    u32 value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
__device__ __forceinline__ float4 load_shared_vector(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// c [16, 8] += a [16, 16] · b [16, 8] in bf16 or f16, all of a warp. With g = lane / 4, t = lane % 4 a lane holds of
// c: rows g, g, g + 8, g + 8, columns 2t, 2t + 1, 2t, 2t + 1; of a: pairs of k at (row g, k 2t), (g + 8, 2t), (g, 2t + 8),
// (g + 8, 2t + 8); of b: pairs of k at (k 2t, column g), (2t + 8, g).
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c [16, 8] += a [16, 8] · b [8, 8] in tf32: as above with single elements at k t and t + 4 in place of the pairs.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Rounds an f32 to tf32 (10 bits of fraction), ties away from zero.
__device__ __forceinline__ u32 to_tf32(u32 bits) {
    u32 out;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(__uint_as_float(bits)));
    return out;
}

// Where chunk `chunk` (16 bytes) of row `row` lies in a tile with rows of 64 or 128 bytes. Two rows of 64 bytes fill the
// banks once, so their four chunks are permuted by the number of the pair, those of 128 bytes by the row. The same chunk
// of 8 rows in turn, and 8 chunks in turn, lie in 8 different columns.
template <int ROW_BYTES>
__device__ __forceinline__ u32 swizzle_rows(int row, int chunk) {
    static_assert(ROW_BYTES == 64 || ROW_BYTES == 128, "a slice");
    return row * ROW_BYTES + ((chunk ^ (ROW_BYTES == 64 ? row >> 1 & 3 : row & 7)) << 4);
}

// The same for rows of ROW_BYTES, a multiple of 128; the 8 chunks of each 128 bytes are permuted by the row. With
// elements of 2 bytes the same chunk of 8 rows in turn lies in 8 different columns. With 4 bytes an aligned pair of
// chunks (8 elements) of 4 rows in turn does: 32 lanes that read 4 bytes each then meet 32 banks.
template <typename T, int ROW_BYTES>
__device__ __forceinline__ u32 swizzle_wide(int row, int chunk) {
    static_assert(ROW_BYTES % 128 == 0, "whole turns of the banks");
    return row * ROW_BYTES + ((chunk ^ (sizeof(T) == 2 ? row & 7 : 2 * (row & 3))) << 4);
}
