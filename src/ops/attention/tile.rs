//! Small matrix products on one thread, for operands that already lie in scratch.
//!
//! The general product packs both operands; here K and V are packed once and used for every tile of queries,
//! and the left operand is read in place by any strides. So a kernel of its own: six rows by up to 64
//! columns in registers, over panels of the right operand.

use std::array;

use crate::ops::View;
use crate::ops::gemm::cpu::registers::Registers;
use crate::ops::simd::{LANES, simd_fn};

/// Rows of a register tile. Results have room for a multiple of this many rows.
pub(super) const ROWS: usize = 6;
/// Columns of a panel of the right operand.
pub(super) const PANEL: usize = 64;

/// The left operand: element (i, p) at `data[i·row + p·col]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// The right operand: element (p, j) at `data[(j / 64)·panel + p·row + j % 64]`.
///
/// A row-major matrix has `panel = 64`; panels that lie one after the other have `row = 64`.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub panel: usize,
}

/// `c[i·ldc + j] (+)= Σ_p left(i, p)·right(p, j)` for i below `rows`, j below `cols`, p below `depth`.
///
/// Rows of c up to the next multiple of [`ROWS`] are overwritten with copies of the last row's result; `cols`
/// is a multiple of 16. Each element is one chain of multiply-adds in rising p.
pub(super) fn product(
    (rows, cols, depth): (usize, usize, usize),
    left: Left,
    right: Right,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert_eq!(cols % LANES, 0);
    assert!((rows.next_multiple_of(ROWS) - 1) * ldc + cols <= c.len());
    if depth > 0 {
        assert!((rows - 1) * left.row + (depth - 1) * left.col < left.data.len());
        let last = (cols - 1) / PANEL;
        assert!(last * right.panel + (depth - 1) * right.row + (cols - last * PANEL) <= right.data.len());
    }
    run((rows, cols, depth), left, right, c, ldc, accumulate);
}

simd_fn! {
    fn run<I>(shape: (usize, usize, usize), left: Left, right: Right, c: &mut [f32], ldc: usize, accumulate: bool) {
        let (rows, cols, depth) = shape;
        // The accumulators of 6 × 64 fill 24 of AVX-512's 32 registers, those of 6 × 2 vectors 12 of 16.
        let widest = if I::Registers::LANES == 16 { 4 } else { 2 };
        let mut j = 0;
        while j < cols {
            let panel = &right.data[j / PANEL * right.panel + j % PANEL..];
            let vectors = ((cols - j).min(PANEL - j % PANEL) / I::Registers::LANES).min(widest);
            for i in (0..rows).step_by(ROWS) {
                let a = array::from_fn(|r| left.data[(i + r).min(rows - 1) * left.row..].as_ptr());
                let (b, c) = (panel.as_ptr(), c[i * ldc + j..].as_mut_ptr());
                let steps = (depth, left.col, right.row, ldc);
                // SAFETY: `product` has checked the extent of all three operands; the level is the one that runs.
                unsafe {
                    match vectors {
                        4 if I::Registers::LANES == 16 => tile::<I::Registers, 4>(a, b, c, steps, accumulate),
                        3 if I::Registers::LANES == 16 => tile::<I::Registers, 3>(a, b, c, steps, accumulate),
                        2 => tile::<I::Registers, 2>(a, b, c, steps, accumulate),
                        _ => tile::<I::Registers, 1>(a, b, c, steps, accumulate),
                    }
                }
            }
            j += vectors * I::Registers::LANES;
        }
    }
}

/// One register tile; `steps` = (depth, column step of a, row step of b, row step of c).
///
/// # Safety
/// The level of R is present, and all elements named lie in their buffers.
#[inline(always)]
unsafe fn tile<R: Registers, const VECTORS: usize>(
    a: [*const f32; ROWS],
    b: *const f32,
    c: *mut f32,
    steps: (usize, usize, usize, usize),
    accumulate: bool,
) {
    let (depth, a_step, b_step, ldc) = steps;
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [[R::zero(); VECTORS]; ROWS];
        if accumulate {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = array::from_fn(|v| R::load(c.add(r * ldc + v * R::LANES)));
            }
        }
        let (mut b, mut offset) = (b, 0);
        for _ in 0..depth {
            let right: [R::Vector; VECTORS] = array::from_fn(|v| R::load(b.add(v * R::LANES)));
            for r in 0..ROWS {
                let left = R::splat(a[r].add(offset));
                for v in 0..VECTORS {
                    sums[r][v] = R::multiply_add(left, right[v], sums[r][v]);
                }
            }
            offset += a_step;
            b = b.wrapping_add(b_step);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                R::store(c.add(r * ldc + v * R::LANES), sum);
            }
        }
    }
}

simd_fn! {
    /// Copies `factor·x` to rows of `width` elements, zeros beyond x's columns.
    pub(super) fn pack_rows<I>(x: View<f32>, factor: f32, width: usize, to: &mut [f32]) {
        for (t, row) in to.chunks_exact_mut(width).take(x.rows()).enumerate() {
            let (head, gap) = row.split_at_mut(x.cols());
            for (to, &x) in head.iter_mut().zip(x.row(t)) {
                *to = factor * x;
            }
            gap.fill(0.0);
        }
    }
}

/// Elements that [`pack_transposed`] writes for `keys` rows of `dim` columns.
pub(super) fn transposed_len(keys: usize, dim: usize) -> usize {
    keys.next_multiple_of(PANEL) * dim
}

/// The transpose of `x` (`[keys, dim]`) as panels of 64 keys, zeros beyond the last key up to a multiple of 16.
pub(super) fn pack_transposed(x: View<f32>, to: &mut [f32]) {
    let (last, used) = (x.rows() / PANEL * PANEL * x.cols(), x.rows() % PANEL);
    for column in to[last..transposed_len(x.rows(), x.cols())].chunks_exact_mut(PANEL) {
        column[used..used.next_multiple_of(LANES)].fill(0.0);
    }
    transpose(x, to);
}

simd_fn! {
    fn transpose<I>(x: View<f32>, to: &mut [f32]) {
        let (keys, dim, lanes) = (x.rows(), x.cols(), I::Registers::LANES);
        assert!(to.len() >= transposed_len(keys, dim));
        for t in (0..keys).step_by(lanes) {
            let base = t / PANEL * PANEL * dim + t % PANEL;
            let mut done = 0;
            if t + lanes <= keys {
                // Sixteen pointers for the widest registers; narrower ones use the first few.
                let rows: [*const f32; 16] = array::from_fn(|r| x.row((t + r).min(keys - 1)).as_ptr());
                while done + lanes <= dim {
                    let to = to[base + done * PANEL..].as_mut_ptr();
                    // SAFETY: the level is the one that runs; rows t.. have dim columns, and their LANES keys
                    // lie in one panel, whose extent was asserted.
                    unsafe { <I::Registers as Registers>::transpose(&rows[..lanes], done, to, PANEL) };
                    done += lanes;
                }
            }
            for r in 0..lanes.min(keys - t) {
                for j in done..dim {
                    to[base + j * PANEL + r] = x.row(t + r)[j];
                }
            }
        }
    }
}
