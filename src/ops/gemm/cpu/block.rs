//! One task: a rectangle of C, computed block by block so that the panels stay in cache.
//!
//! B blocks of `DEPTH × WIDTH` are packed for the L2 cache. Past each go panels of `TILE_ROWS` rows of A, packed a few at a
//! time; one stays in the L1 cache while it is multiplied with every panel of B. So a whole strip of `TILE_ROWS × WIDTH`
//! finished elements is at hand for the epilogue. C itself holds the sums between blocks of depth.

use super::bf16;
use super::job::{Job, Method, PANELS, Task, grow};
use super::kernel::{DOT_COLUMNS, Dots, Tile};
use super::pack::{Panels, Positions, pack};
use super::registers::Registers;
use std::ops::Range;

/// Largest depth of a block: a panel of A, 8 × 384 × 4 B = 12 KiB, stays in the L1 cache while B streams past.
const DEPTH: usize = 384;
/// Largest width of a block in columns: 384 × 768 × 4 B = 1.1 MiB of B, about half of a 2 MiB L2 cache.
const WIDTH: usize = 768;

/// Panels of A packed together: 16 × 12 KiB, so that rows of a transposed A are read half a kilobyte at a time.
const STRIPS: usize = 16;

/// Kernels of one level, compiled with its target features.
pub(super) trait Compiled: Registers {
    /// Most rows of one call of [`Compiled::dots`].
    const DOT_ROWS: usize;
    /// [`super::kernel::tile`] for 1 ≤ rows ≤ `TILE_ROWS` and 1 ≤ vectors ≤ `TILE_VECTORS`.
    ///
    /// # Safety
    /// As for that function.
    unsafe fn tile(rows: usize, vectors: usize, tile: &Tile);
    /// [`super::kernel::dots`] for 1 ≤ rows ≤ `DOT_ROWS`.
    ///
    /// # Safety
    /// As for that function.
    unsafe fn dots(rows: usize, dots: &Dots);
    /// [`run`].
    ///
    /// # Safety
    /// As for that function.
    unsafe fn run(job: &Job, task: &Task);
}

/// Computes one task.
///
/// # Safety
/// S is present; the job's pointers hold its operands; nobody else touches the task's rectangle of C and preactivation.
#[inline(always)]
pub(super) unsafe fn run<S: Compiled>(job: &Job, task: &Task) {
    let mut first = task.columns.start;
    loop {
        let width = if job.method == Method::Dots { task.columns.len() } else { WIDTH };
        let positions = first..(first + width).min(task.columns.end);
        first = positions.end;
        let (columns, live) = job.span(&positions);
        if let (Some(live), true) = (live, job.accumulate) {
            for i in task.rows.clone() {
                // SAFETY: row i of the task's rectangle.
                let row = unsafe {
                    std::slice::from_raw_parts_mut(job.c.add(i * job.ldc + columns.start), columns.len())
                };
                for (place, &column) in live.iter().enumerate() {
                    row[place] = row[column as usize - columns.start];
                }
            }
        }
        // SAFETY: the caller's promises.
        unsafe {
            match job.method {
                Method::Dots => dot_products::<S>(job, &task.rows, &positions, &columns),
                Method::Bf16 { on_tiles } => {
                    bf16::tiles::<S>(on_tiles, job, &task.rows, &positions, &columns);
                }
                Method::Packed | Method::Direct => tiles::<S>(job, &task.rows, &positions, &columns),
            }
        }
        if first == task.columns.end {
            break;
        }
    }
}

/// One block column: all of depth, all rows of the task.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn tiles<S: Compiled>(
    job: &Job,
    rows: &Range<usize>,
    positions: &Range<usize>,
    columns: &Range<usize>,
) {
    let live = job.live.map(|live| &live[positions.clone()]);
    let depth = job.depth.range.len();
    let blocks = depth.div_ceil(DEPTH).max(1);
    let step = depth.div_ceil(blocks).next_multiple_of(16).max(1);
    let mut buffers = PANELS.take();
    let a_block = grow(&mut buffers.0, STRIPS * S::A_STRIDE * step);
    let b_block = grow(&mut buffers.1, positions.len().next_multiple_of(S::TILE_COLUMNS) * step);
    let a_panels = Panels { lanes: S::TILE_ROWS, stride: S::A_STRIDE };
    let b_panels = Panels { lanes: S::TILE_COLUMNS, stride: S::TILE_COLUMNS };
    // Columns read in place: whole panels only, so that no read passes the end of a row.
    let in_place = match job.method {
        Method::Direct => positions.len() - positions.len() % S::TILE_COLUMNS,
        _ => 0,
    };
    let mut p = 0;
    loop {
        let slice = Positions { live: job.depth.live, range: p..(p + step).min(depth) };
        let last = slice.range.end == depth;
        let packed = Positions { live: job.live, range: positions.start + in_place..positions.end };
        // SAFETY: these are positions of B, and the block has room for them in whole panels.
        unsafe { pack::<S>(job.b, &packed, &slice, b_block, b_panels) };
        for first in rows.clone().step_by(STRIPS * S::TILE_ROWS) {
            let block = Positions { live: None, range: first..(first + STRIPS * S::TILE_ROWS).min(rows.end) };
            // SAFETY: these are positions of A, and the block has room for STRIPS panels.
            unsafe { pack::<S::Narrow>(job.a, &block, &slice, a_block, a_panels) };
            for (strip, i) in block.range.step_by(S::TILE_ROWS).enumerate() {
                let count = S::TILE_ROWS.min(rows.end - i);
                // SAFETY: the caller's promises; tiles lie inside the task's rectangle, panels are packed for this slice.
                unsafe {
                    for j in (0..positions.len()).step_by(S::TILE_COLUMNS) {
                        let (b, b_stride) = if j < in_place {
                            (job.b.data.add(p * job.b.ld + positions.start + j), job.b.ld)
                        } else {
                            (b_block.add((j - in_place) * slice.len()).cast_const(), S::TILE_COLUMNS)
                        };
                        let width = S::TILE_COLUMNS.min(positions.len() - j);
                        let tile = Tile {
                            depth: slice.len(),
                            a: a_block.add(strip * slice.len() * S::A_STRIDE),
                            b,
                            b_stride,
                            c: job.c.add(i * job.ldc + columns.start + j),
                            ldc: job.ldc,
                            columns: width,
                            resume: p > 0 || job.accumulate,
                        };
                        S::tile(count, width.div_ceil(S::LANES), &tile);
                    }
                    if last {
                        job.finish.apply(job.c, job.ldc, i..i + count, columns.clone(), live);
                    }
                }
            }
        }
        p = slice.range.end;
        if last {
            break;
        }
    }
    PANELS.set(buffers);
}

/// Thin products: one operand is so small that it stays in cache while the other streams past.
///
/// # Safety
/// As for [`run`]; both operands are contiguous over k and k is not masked.
#[inline(always)]
unsafe fn dot_products<S: Compiled>(
    job: &Job,
    rows: &Range<usize>,
    positions: &Range<usize>,
    columns: &Range<usize>,
) {
    let live = job.live.map(|live| &live[positions.clone()]);
    let lanes = Positions { live: job.live, range: positions.clone() };
    let group = |i: usize, j: usize| {
        let count = DOT_COLUMNS.min(positions.len() - j);
        let column = |offset: usize| lanes.at((j + offset).min(positions.len() - 1));
        // SAFETY: rows i.. of A and columns of B, as the caller promises; columns behind the last repeat it.
        unsafe {
            let dots = Dots {
                depth: job.depth.range.len(),
                a: job.a.data.add(i * job.a.ld),
                lda: job.a.ld,
                b: std::array::from_fn(|offset| job.b.data.add(column(offset) * job.b.ld)),
                c: job.c.add(i * job.ldc + columns.start + j),
                ldc: job.ldc,
                columns: count,
                accumulate: job.accumulate,
            };
            S::dots(S::DOT_ROWS.min(rows.end - i), &dots);
        }
    };
    if rows.len() <= positions.len() {
        for j in (0..positions.len()).step_by(DOT_COLUMNS) {
            rows.clone().step_by(S::DOT_ROWS).for_each(|i| group(i, j));
        }
    } else {
        for i in rows.clone().step_by(S::DOT_ROWS) {
            (0..positions.len()).step_by(DOT_COLUMNS).for_each(|j| group(i, j));
        }
    }
    // SAFETY: the caller's promises.
    unsafe { job.finish.apply(job.c, job.ldc, rows.clone(), columns.clone(), live) }
}
