//! The two inner loops: a register tile over packed panels, and dot products for thin matrices.
//!
//! No closures here nor in [`super::registers`]: a closure does not inherit the target features of its caller, so it is
//! not inlined, and every vector goes through memory.

use super::registers::Registers;

/// One register tile: `C[ROWS, columns] (+)= A_panel · B_panel`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Length of the sums.
    pub depth: usize,
    /// Packed panel of op(A): column p at `a[p·A_STRIDE ..][..ROWS]`.
    pub a: *const f32,
    /// Panel of op(B): row p at `b[p·b_stride ..]`, whole registers readable.
    pub b: *const f32,
    /// `TILE_COLUMNS` when B is packed, its leading dimension when it is read in place.
    pub b_stride: usize,
    /// Top left element of the tile in C.
    pub c: *mut f32,
    /// Leading dimension of C.
    pub ldc: usize,
    /// Columns to write.
    pub columns: usize,
    /// Start the sums from what C holds instead of from 0.
    pub resume: bool,
}

/// Rows of B fetched before they are needed: the panel comes from the L2 cache.
const AHEAD: usize = 8;
/// Steps of depth between two looks at the loop counter.
const UNROLLED: usize = 4;

/// Multiplies one tile. Each element is a chain of multiply-adds in rising p, whichever tile it falls into.
///
/// # Safety
/// S is present; the pointers hold what [`Tile`] says; `columns ≤ VECTORS·LANES`.
#[inline(always)]
pub(super) unsafe fn tile<S: Registers, const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
    let &Tile { depth, mut a, mut b, b_stride, c, ldc, columns, resume } = tile;
    let whole = columns == VECTORS * S::LANES;
    // SAFETY: a and b advance `depth` times over the panels; c is touched in ROWS rows of `columns` elements.
    unsafe {
        let mut sums = [[S::zero(); VECTORS]; ROWS];
        if resume {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let from = c.add(r * ldc + v * S::LANES);
                    *sum = if whole { S::load(from) } else { S::load_first(from, width::<S>(columns, v)) };
                }
            }
        }
        // The next tile's part of C comes from memory: asked for now, it is there when this tile is done.
        for r in 0..ROWS {
            for v in 0..VECTORS {
                S::prefetch_to_write(c.wrapping_add(r * ldc + (VECTORS + v) * S::LANES));
            }
        }
        for _ in 0..depth / UNROLLED {
            for p in 0..UNROLLED {
                step::<S, ROWS, VECTORS>(a.add(p * S::A_STRIDE), b.add(p * b_stride), b_stride, &mut sums);
            }
            a = a.add(UNROLLED * S::A_STRIDE);
            b = b.add(UNROLLED * b_stride);
        }
        for _ in 0..depth % UNROLLED {
            step::<S, ROWS, VECTORS>(a, b, b_stride, &mut sums);
            a = a.add(S::A_STRIDE);
            b = b.add(b_stride);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let to = c.add(r * ldc + v * S::LANES);
                if whole { S::store(to, sum) } else { S::store_first(to, sum, width::<S>(columns, v)) }
            }
        }
    }
}

/// Lanes of vector `v` that lie inside C.
#[inline(always)]
fn width<S: Registers>(columns: usize, v: usize) -> usize {
    columns.saturating_sub(v * S::LANES).min(S::LANES)
}

/// One column of A's panel times one row of B's.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn step<S: Registers, const ROWS: usize, const VECTORS: usize>(
    a: *const f32,
    b: *const f32,
    b_stride: usize,
    sums: &mut [[S::Vector; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promises; what is fetched ahead is not read.
    unsafe {
        let mut right = [S::zero(); VECTORS];
        for (v, right) in right.iter_mut().enumerate() {
            S::prefetch(b.wrapping_add(AHEAD * b_stride + v * S::LANES));
            *right = S::load(b.add(v * S::LANES));
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let left = S::splat(a.add(r));
            for (sum, &right) in sums.iter_mut().zip(&right) {
                *sum = S::multiply_add(left, right, *sum);
            }
        }
    }
}

/// Columns of one call of [`dots`].
pub(super) const DOT_COLUMNS: usize = 4;

/// `ROWS × DOT_COLUMNS` dot products of vectors that are contiguous over k.
#[derive(Clone, Copy)]
pub(super) struct Dots {
    /// Length of the sums.
    pub depth: usize,
    /// Row r of op(A) at `a[r·lda ..][..depth]`.
    pub a: *const f32,
    /// Leading dimension of A.
    pub lda: usize,
    /// Columns of op(B), each `depth` elements; those from `columns` on only have to be readable.
    pub b: [*const f32; DOT_COLUMNS],
    /// First element of the result.
    pub c: *mut f32,
    /// Leading dimension of C.
    pub ldc: usize,
    /// Columns to write.
    pub columns: usize,
    /// Add to what C holds.
    pub accumulate: bool,
}

/// Multiplies row vectors with column vectors: `LANES` interleaved chains for each element, added up by halving.
///
/// # Safety
/// S is present; the pointers hold what [`Dots`] says.
#[inline(always)]
pub(super) unsafe fn dots<S: Registers, const ROWS: usize>(dots: &Dots) {
    let &Dots { depth, a, lda, b, c, ldc, columns, accumulate } = dots;
    // SAFETY: every read lies below `depth` of a row of A or a column of B, every write in ROWS × columns of C.
    unsafe {
        let mut sums = [[S::zero(); DOT_COLUMNS]; ROWS];
        let mut p = 0;
        while p + S::LANES <= depth {
            let mut right = [S::zero(); DOT_COLUMNS];
            for j in 0..DOT_COLUMNS {
                right[j] = S::load(b[j].add(p));
            }
            for r in 0..ROWS {
                let left = S::load(a.add(r * lda + p));
                for j in 0..DOT_COLUMNS {
                    sums[r][j] = S::multiply_add(left, right[j], sums[r][j]);
                }
            }
            p += S::LANES;
        }
        if p < depth {
            let mut right = [S::zero(); DOT_COLUMNS];
            for j in 0..DOT_COLUMNS {
                right[j] = S::load_first(b[j].add(p), depth - p);
            }
            for r in 0..ROWS {
                let left = S::load_first(a.add(r * lda + p), depth - p);
                for j in 0..DOT_COLUMNS {
                    sums[r][j] = S::multiply_add(left, right[j], sums[r][j]);
                }
            }
        }
        for r in 0..ROWS {
            for j in 0..DOT_COLUMNS {
                if j < columns {
                    let to = c.add(r * ldc + j);
                    let sum = S::sum(sums[r][j]);
                    *to = if accumulate { *to + sum } else { sum };
                }
            }
        }
    }
}
