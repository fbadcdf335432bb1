//! The two inner loops: a register tile over packed panels, and dot products for thin matrices.

use super::registers::Registers;
use std::array;

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

/// Multiplies one tile. Each element is a chain of multiply-adds in rising p, whichever tile it falls into.
///
/// # Safety
/// S is present; the pointers hold what [`Tile`] says; `columns ≤ VECTORS·LANES`.
#[inline(always)]
pub(super) unsafe fn tile<S: Registers, const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
    let &Tile { depth, mut a, mut b, b_stride, c, ldc, columns, resume } = tile;
    // Lanes of vector v that lie inside C.
    let width = |v: usize| columns.saturating_sub(v * S::LANES).min(S::LANES);
    let whole = columns == VECTORS * S::LANES;
    // SAFETY: a and b advance `depth` times over the panels; c is touched in ROWS rows of `columns` elements.
    unsafe {
        let mut sums = [[S::zero(); VECTORS]; ROWS];
        if resume {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let from = c.add(r * ldc + v * S::LANES);
                    *sum = if whole { S::load(from) } else { S::load_first(from, width(v)) };
                }
            }
        }
        for _ in 0..depth {
            let right: [S::Vector; VECTORS] = array::from_fn(|v| S::load(b.add(v * S::LANES)));
            for r in 0..ROWS {
                let left = S::splat(a.add(r));
                for v in 0..VECTORS {
                    sums[r][v] = S::multiply_add(left, right[v], sums[r][v]);
                }
            }
            a = a.add(S::A_STRIDE);
            b = b.add(b_stride);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let to = c.add(r * ldc + v * S::LANES);
                if whole { S::store(to, sum) } else { S::store_first(to, sum, width(v)) }
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
            let right: [S::Vector; DOT_COLUMNS] = array::from_fn(|j| S::load(b[j].add(p)));
            for r in 0..ROWS {
                let left = S::load(a.add(r * lda + p));
                for j in 0..DOT_COLUMNS {
                    sums[r][j] = S::multiply_add(left, right[j], sums[r][j]);
                }
            }
            p += S::LANES;
        }
        if p < depth {
            let right: [S::Vector; DOT_COLUMNS] = array::from_fn(|j| S::load_first(b[j].add(p), depth - p));
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
