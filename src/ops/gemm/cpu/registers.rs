//! The few vector instructions a matrix product needs, for each [`Level`](crate::ops::simd::Level).
//!
//! Plain loops vectorise well from one source (`simd_fn!`), but a register tile must be sure that its accumulators are
//! registers of a known width: so this trait. The kernels are written once over it and compiled three times. Methods are
//! `#[inline(always)]` because they only become single instructions inside a caller that has the target feature.

/// Vectors of `LANES` f32 and the tile that fits their register file.
///
/// # Safety
/// Every method needs the level to be present, and pointers that are valid for the lanes it names.
pub(in crate::ops) trait Registers: 'static {
    /// One register.
    type Vector: Copy;
    /// f32 in a register.
    const LANES: usize;
    /// Rows of a full tile; its accumulators, a row of B and one element of A fill the register file.
    const TILE_ROWS: usize;
    /// Registers in a row of a full tile.
    const TILE_VECTORS: usize;
    /// Registers that suit the columns of a packed panel of A, which are `TILE_ROWS` long.
    type Narrow: Registers;
    /// Distance between the columns of a packed panel of A: `TILE_ROWS` rounded up to whole narrow registers.
    const A_STRIDE: usize = Self::TILE_ROWS.next_multiple_of(Self::Narrow::LANES);
    /// Columns of a full tile, and the distance between the rows of a packed panel of B.
    const TILE_COLUMNS: usize = Self::TILE_VECTORS * Self::LANES;

    unsafe fn zero() -> Self::Vector;
    unsafe fn splat(from: *const f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    /// Asks for the cache line of an address, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// The same, in order to write there.
    #[inline(always)]
    unsafe fn prefetch_to_write(_: *const f32) {}
    /// Reads `count ≤ LANES` elements; the other lanes are 0 and their memory is not touched.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::Vector;
    unsafe fn store(to: *mut f32, vector: Self::Vector);
    /// The same past the caches, where the set can: `to` is aligned to the register. Other threads see it after [`Registers::fence`].
    #[inline(always)]
    unsafe fn stream(to: *mut f32, vector: Self::Vector) {
        // SAFETY: the caller's promises.
        unsafe { Self::store(to, vector) }
    }
    /// Orders this thread's streamed stores before what it writes next.
    #[inline(always)]
    unsafe fn fence() {}
    /// Writes the first `count ≤ LANES` lanes.
    unsafe fn store_first(to: *mut f32, vector: Self::Vector, count: usize);
    /// `a·b + c`, in one rounding where the set has it.
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Sum of all lanes, by halving.
    unsafe fn sum(vector: Self::Vector) -> f32;
    /// Reads `LANES` elements from each of the `LANES` pointers `rows[i].add(offset)` and writes element `p` of row `i` to
    /// `to[p·stride + i]`.
    unsafe fn transpose(rows: &[*const f32], offset: usize, to: *mut f32, stride: usize);
}

/// See [`Level::Portable`](crate::ops::simd::Level::Portable): whatever the compiler makes of four lanes, tiles of 6 × 8.
pub(in crate::ops) struct Portable;

impl Registers for Portable {
    type Vector = [f32; 4];
    type Narrow = Portable;
    const LANES: usize = 4;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller's pointer holds one element.
        [unsafe { *from }; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller's pointer holds four elements; f32 arrays may be read at any f32 address.
        unsafe { *from.cast() }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> [f32; 4] {
        // SAFETY: only lanes below `count` are read.
        std::array::from_fn(|lane| if lane < count { unsafe { *from.add(lane) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, vector: [f32; 4]) {
        // SAFETY: the caller's pointer has room for four elements.
        unsafe { *to.cast() = vector }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, vector: [f32; 4], count: usize) {
        for (lane, value) in vector.into_iter().enumerate().take(count) {
            // SAFETY: only lanes below `count` are written.
            unsafe { *to.add(lane) = value }
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // `mul_add` without hardware behind it is a slow library call; AArch64 always has the hardware.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
        } else {
            std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
        }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn sum(vector: [f32; 4]) -> f32 {
        (vector[0] + vector[2]) + (vector[1] + vector[3])
    }
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], offset: usize, to: *mut f32, stride: usize) {
        for (i, row) in rows.iter().enumerate() {
            for p in 0..Self::LANES {
                // SAFETY: the caller's rows hold LANES elements from `offset` on, and `to` LANES rows of `stride`.
                unsafe { *to.add(p * stride + i) = *row.add(offset + p) }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(in crate::ops) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Registers;
    use std::arch::x86_64::*;

    /// See [`Level::Avx512`](crate::ops::simd::Level::Avx512): 32 registers, tiles of 8 × 48.
    pub(in crate::ops) struct Avx512;

    impl Registers for Avx512 {
        type Vector = __m512;
        type Narrow = Avx2;
        const LANES: usize = 16;
        // 14 × 32 would load less for each multiplication, but takes more instructions for it, and loses 5 % where
        // a hyperthread shares the core.
        const TILE_ROWS: usize = 8;
        const TILE_VECTORS: usize = 3;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the level is present (contract of the trait), here and in the methods below, which add
            // nothing to the pointers their callers vouch for.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(from: *const f32) -> __m512 {
            // SAFETY: as for `zero`.
            unsafe { _mm512_set1_ps(*from) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: as for `zero`.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn prefetch(from: *const f32) {
            // SAFETY: as for `zero`; a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_to_write(to: *const f32) {
            // SAFETY: as for `prefetch`.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast()) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
            // SAFETY: as for `zero`; masked lanes do not touch memory.
            unsafe { _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, vector: __m512) {
            // SAFETY: as for `zero`.
            unsafe { _mm512_storeu_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn stream(to: *mut f32, vector: __m512) {
            // SAFETY: as for `zero`, and the caller's pointer is aligned.
            unsafe { _mm512_stream_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn fence() {
            // SAFETY: as for `zero`.
            unsafe { _mm_sfence() }
        }
        #[inline(always)]
        unsafe fn store_first(to: *mut f32, vector: __m512, count: usize) {
            // SAFETY: as for `zero`; masked lanes do not touch memory.
            unsafe { _mm512_mask_storeu_ps(to, ((1u32 << count) - 1) as u16, vector) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as for `zero`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as for `zero`.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sum(vector: __m512) -> f32 {
            // SAFETY: as for `zero`.
            unsafe { _mm512_reduce_add_ps(vector) }
        }
        #[inline(always)]
        unsafe fn transpose(rows: &[*const f32], offset: usize, to: *mut f32, stride: usize) {
            debug_assert_eq!(rows.len(), 16);
            // SAFETY: as for `zero`; 16 elements are read from each row and written to each of 16 columns.
            unsafe {
                // Four rows at a time: quad[4g + c], 128-bit lane l = rows 4g..4g+4 of column 4l + c.
                let mut quad = [_mm512_setzero_ps(); 16];
                for group in 0..4 {
                    let mut row = [_mm512_setzero_ps(); 4];
                    for (i, row) in row.iter_mut().enumerate() {
                        *row = _mm512_loadu_ps(rows.get_unchecked(4 * group + i).add(offset));
                    }
                    let low = [_mm512_unpacklo_ps(row[0], row[1]), _mm512_unpacklo_ps(row[2], row[3])];
                    let high = [_mm512_unpackhi_ps(row[0], row[1]), _mm512_unpackhi_ps(row[2], row[3])];
                    for (half, [first, second]) in [low, high].into_iter().enumerate() {
                        let (first, second) = (_mm512_castps_pd(first), _mm512_castps_pd(second));
                        quad[4 * group + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
                        quad[4 * group + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
                    }
                }
                // Then the 4 × 4 matrix of 128-bit lanes of each c.
                for c in 0..4 {
                    let (q0, q1, q2, q3) = (quad[c], quad[4 + c], quad[8 + c], quad[12 + c]);
                    let even = [_mm512_shuffle_f32x4::<0x88>(q0, q1), _mm512_shuffle_f32x4::<0x88>(q2, q3)];
                    let odd = [_mm512_shuffle_f32x4::<0xdd>(q0, q1), _mm512_shuffle_f32x4::<0xdd>(q2, q3)];
                    _mm512_storeu_ps(to.add(c * stride), _mm512_shuffle_f32x4::<0x88>(even[0], even[1]));
                    _mm512_storeu_ps(to.add((4 + c) * stride), _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]));
                    _mm512_storeu_ps(
                        to.add((8 + c) * stride),
                        _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]),
                    );
                    _mm512_storeu_ps(to.add((12 + c) * stride), _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]));
                }
            }
        }
    }

    /// See [`Level::Avx2`](crate::ops::simd::Level::Avx2): 16 registers, tiles of 6 × 16.
    pub(in crate::ops) struct Avx2;

    impl Avx2 {
        /// All bits set in the first `count` lanes.
        #[inline(always)]
        unsafe fn first(count: usize) -> __m256i {
            const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
            // SAFETY: the level is present and count ≤ 8 (the callers' contract), so the eight entries lie in the window.
            unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - count).cast()) }
        }
    }

    impl Registers for Avx2 {
        type Vector = __m256;
        type Narrow = Avx2;
        const LANES: usize = 8;
        const TILE_ROWS: usize = 6;
        const TILE_VECTORS: usize = 2;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            // SAFETY: the level is present (contract of the trait), here and in the methods below, which add
            // nothing to the pointers their callers vouch for.
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(from: *const f32) -> __m256 {
            // SAFETY: as for `zero`.
            unsafe { _mm256_set1_ps(*from) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            // SAFETY: as for `zero`.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn prefetch(from: *const f32) {
            // SAFETY: as for `zero`; a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_to_write(to: *const f32) {
            // SAFETY: as for `prefetch`.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast()) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> __m256 {
            // SAFETY: as for `zero`; masked lanes do not touch memory.
            unsafe { _mm256_maskload_ps(from, Self::first(count)) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, vector: __m256) {
            // SAFETY: as for `zero`.
            unsafe { _mm256_storeu_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn stream(to: *mut f32, vector: __m256) {
            // SAFETY: as for `zero`, and the caller's pointer is aligned.
            unsafe { _mm256_stream_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn fence() {
            // SAFETY: as for `zero`.
            unsafe { _mm_sfence() }
        }
        #[inline(always)]
        unsafe fn store_first(to: *mut f32, vector: __m256, count: usize) {
            // SAFETY: as for `zero`; masked lanes do not touch memory.
            unsafe { _mm256_maskstore_ps(to, Self::first(count), vector) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: as for `zero`.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: as for `zero`.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sum(vector: __m256) -> f32 {
            // SAFETY: as for `zero`.
            unsafe {
                let half = _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps::<1>(vector));
                let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
            }
        }
        #[inline(always)]
        unsafe fn transpose(rows: &[*const f32], offset: usize, to: *mut f32, stride: usize) {
            debug_assert_eq!(rows.len(), 8);
            // SAFETY: as for `zero`; 8 elements are read from each row and written to each of 8 columns.
            unsafe {
                // quad[4g + c], 128-bit lane l = rows 4g..4g+4 of column 4l + c.
                let mut quad = [_mm256_setzero_ps(); 8];
                for group in 0..2 {
                    let mut row = [_mm256_setzero_ps(); 4];
                    for (i, row) in row.iter_mut().enumerate() {
                        *row = _mm256_loadu_ps(rows.get_unchecked(4 * group + i).add(offset));
                    }
                    let low = [_mm256_unpacklo_ps(row[0], row[1]), _mm256_unpacklo_ps(row[2], row[3])];
                    let high = [_mm256_unpackhi_ps(row[0], row[1]), _mm256_unpackhi_ps(row[2], row[3])];
                    for (half, [first, second]) in [low, high].into_iter().enumerate() {
                        let (first, second) = (_mm256_castps_pd(first), _mm256_castps_pd(second));
                        quad[4 * group + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(first, second));
                        quad[4 * group + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(first, second));
                    }
                }
                for c in 0..4 {
                    let (upper, lower) = (quad[c], quad[4 + c]);
                    _mm256_storeu_ps(to.add(c * stride), _mm256_permute2f128_ps::<0x20>(upper, lower));
                    _mm256_storeu_ps(to.add((4 + c) * stride), _mm256_permute2f128_ps::<0x31>(upper, lower));
                }
            }
        }
    }
}
