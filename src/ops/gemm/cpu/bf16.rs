//! Products of factors rounded to bf16, on the processor's matrix tiles (Intel AMX) where it has them.
//!
//! Why: a core with AMX multiplies bf16 tiles at sixteen times the rate of its f32 registers, so a product is bound by
//! memory and a training step by everything else. Memory holds f32 as before; factors are rounded while they are packed.
//!
//! What it keeps true:
//! - **The same bits on every processor.** The order of the sums is that of the instruction (TDPBF16PS, *Intel 64 and IA-32
//!   Architectures Software Developer's Manual*, volume 2): for every 32 consecutive live k, the products of even k and those of
//!   odd k are two chains that start at 0; their sum is added to the element. A product of two bf16 is exact in f32, so a fused
//!   and an unfused multiply-add round alike, and vector registers follow the same order. Only results below 2⁻¹²⁶ can
//!   differ: AMX makes them 0.
//! - Bits depend neither on threads nor on the cut into tasks, as for f32 products.
//! - **Error**, of the sums of rounded factors: |z − ẑ| ≤ γ_q·(Σ|a||b| + |bias| + |C_old|) with q = min(k/2, 16) + ⌈k/32⌉ + 3.
//!
//! A block of C is 32 × 32: two tiles of either operand. The panel of A stays in the L1 cache, B streams past from the L2.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod pack;
mod vector;

use super::job::{Job, PANELS, grow};
use super::pack::Positions;
use super::registers::Registers;
use pack::{Order, pack};
use std::ops::Range;

/// Rows of op(A) or columns of op(B) in a tile.
const TILE_LANES: usize = 16;
/// k of a tile: as many chains of even and of odd k as it has pairs.
const TILE_DEPTH: usize = 32;
/// Words of a tile; a word is a pair of bf16, the even k in its lower half.
const TILE_WORDS: usize = TILE_LANES * TILE_DEPTH / 2;
/// Rows and columns of a block of C.
pub(super) const SIDE: usize = 2 * TILE_LANES;
/// Words of a panel, of `SIDE` lanes, for one tile's depth.
const PANEL_WORDS: usize = 2 * TILE_WORDS;

/// Largest depth of packed panels: one of A, 32 × 384 × 2 B = 24 KiB, stays in the L1 cache while B streams past.
const DEPTH: usize = 384;
/// Panels of A packed together, so that rows of a transposed A are read half a kilobyte at a time.
const STRIPS: usize = 4;

/// Whether products of bf16 factors run on the processor's matrix tiles. Else they are slower than products of f32.
pub fn has_tiles() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return false;
}

/// `C[32, 32] (+)= A_panel · B_panel`.
#[derive(Clone, Copy)]
struct Block {
    /// Tiles of depth.
    tiles: usize,
    /// `PANEL_WORDS` for each tile of depth: two tiles `[lane][pair]`.
    a: *const u32,
    /// The same with tiles `[pair][lane]`.
    b: *const u32,
    /// Top left element of the block.
    c: *mut f32,
    /// Leading dimension of C.
    ldc: usize,
    /// Start the sums from what C holds instead of from 0.
    resume: bool,
}

/// One block column of a task: all of depth, all rows.
///
/// # Safety
/// As for [`super::block::run`]; tiles are there if they are to be used.
#[inline(always)]
pub(super) unsafe fn tiles<S: Registers>(
    on_tiles: bool,
    job: &Job,
    rows: &Range<usize>,
    positions: &Range<usize>,
    columns: &Range<usize>,
) {
    let live = job.live.map(|live| &live[positions.clone()]);
    let depth = job.depth.range.len();
    let blocks = depth.div_ceil(DEPTH).max(1);
    let step = depth.div_ceil(blocks).next_multiple_of(TILE_DEPTH).max(TILE_DEPTH);
    let panels = |lanes: usize| lanes.div_ceil(SIDE) * (step / TILE_DEPTH) * PANEL_WORDS;
    let mut buffers = PANELS.take();
    let a_block = grow(&mut buffers.0, panels(STRIPS * SIDE)).cast::<u32>();
    let b_block = grow(&mut buffers.1, panels(positions.len())).cast::<u32>();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: the caller's promise.
    let _configured = on_tiles.then(|| unsafe { amx::Configured::new() });
    let mut p = 0;
    loop {
        let slice = Positions { live: job.depth.live, range: p..(p + step).min(depth) };
        let tiles = slice.len().div_ceil(TILE_DEPTH);
        let last = slice.range.end == depth;
        let lanes = Positions { live: job.live, range: positions.clone() };
        // SAFETY: these are positions of B, and the block has room for them in whole panels.
        unsafe { pack::<S>(job.b, &lanes, &slice, b_block, Order::PairsFirst) };
        for first in rows.clone().step_by(STRIPS * SIDE) {
            let strip = Positions { live: None, range: first..(first + STRIPS * SIDE).min(rows.end) };
            // SAFETY: these are positions of A, and the block has room for STRIPS panels.
            unsafe { pack::<S>(job.a, &strip, &slice, a_block, Order::LanesFirst) };
            for (panel, i) in strip.range.step_by(SIDE).enumerate() {
                let count = SIDE.min(rows.end - i);
                for j in (0..positions.len()).step_by(SIDE) {
                    // SAFETY: panels are packed for this slice; blocks lie inside the task's rectangle.
                    unsafe {
                        let block = Block {
                            tiles,
                            a: a_block.add(panel * tiles * PANEL_WORDS),
                            b: b_block.add(j / SIDE * tiles * PANEL_WORDS),
                            c: job.c.add(i * job.ldc + columns.start + j),
                            ldc: job.ldc,
                            resume: p > 0 || job.accumulate,
                        };
                        block_of::<S>(on_tiles, &block, count, SIDE.min(positions.len() - j));
                    }
                }
                if last {
                    // SAFETY: the caller's promises.
                    unsafe { job.finish.apply(job.c, job.ldc, i..i + count, columns.clone(), live) }
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

/// Multiplies one block, of which only `rows × columns` lie inside C.
///
/// # Safety
/// The panels hold what [`Block`] says, C the rows and columns; tiles are there if they are to be used.
#[inline(always)]
unsafe fn block_of<S: Registers>(on_tiles: bool, block: &Block, rows: usize, columns: usize) {
    // SAFETY: the caller's promises; the copy has a whole block.
    unsafe {
        // The next block's part of C comes from memory: asked for now, it is there when this one is done.
        for i in 0..rows {
            let next = block.c.wrapping_add(i * block.ldc + SIDE);
            S::prefetch_to_write(next);
            S::prefetch_to_write(next.wrapping_add(TILE_LANES));
        }
        if rows == SIDE && columns == SIDE {
            return multiply::<S>(on_tiles, block);
        }
        let mut whole = [0.0; SIDE * SIDE];
        if block.resume {
            for i in 0..rows {
                let from = block.c.add(i * block.ldc);
                std::ptr::copy_nonoverlapping(from, whole.as_mut_ptr().add(i * SIDE), columns);
            }
        }
        multiply::<S>(on_tiles, &Block { c: whole.as_mut_ptr(), ldc: SIDE, ..*block });
        for i in 0..rows {
            let to = block.c.add(i * block.ldc);
            std::ptr::copy_nonoverlapping(whole.as_ptr().add(i * SIDE), to, columns);
        }
    }
}

/// # Safety
/// As for [`block_of`], with a whole block of C.
#[inline(always)]
unsafe fn multiply<S: Registers>(on_tiles: bool, block: &Block) {
    // SAFETY: the caller's promises.
    unsafe {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if on_tiles {
            return amx::multiply(block);
        }
        debug_assert!(!on_tiles);
        vector::multiply::<S>(block);
    }
}
