//! Rounds blocks of the operands to bf16, in the order of the tiles, leaving out what masks have removed.
//!
//! Tiles of A hold the pairs of a lane side by side, tiles of B the lanes of a pair. An operand whose memory runs the other
//! way is rounded in its own order first and the 16 × 16 words are transposed. What fills up a tile is 0.

use super::{PANEL_WORDS, SIDE, TILE_DEPTH, TILE_LANES, TILE_WORDS};
use crate::ops::gemm::bf16_bits;
use crate::ops::gemm::cpu::pack::{Operand, Positions};
use crate::ops::gemm::cpu::registers::Registers;

/// How words lie in a tile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `[lane][pair]`, for A.
    LanesFirst,
    /// `[pair][lane]`, for B.
    PairsFirst,
}

/// Bytes ahead of which rows are fetched; they are pages apart, too many for the hardware to look ahead in each.
const AHEAD: usize = 512;

/// Where lanes or depths behind the last are read.
static ZEROS: [f32; TILE_DEPTH] = [0.0; TILE_DEPTH];

/// What tiles pass through that memory does not hold as they are packed; one for all of an operand.
struct Scratch {
    /// The elements of a tile that reaches beyond the operand, or of which masks leave out some.
    gathered: [f32; TILE_LANES * TILE_DEPTH],
    /// A tile in the other order.
    staged: [u32; TILE_WORDS],
}

/// Packs all positions: panel i begins at word `i · tiles of depth · PANEL_WORDS`.
///
/// # Safety
/// S is present; the positions lie inside the operand; `to` has room for whole panels.
#[inline(always)]
pub(super) unsafe fn pack<S: Registers>(
    operand: Operand,
    lanes: &Positions,
    depth: &Positions,
    to: *mut u32,
    order: Order,
) {
    let mut scratch = Scratch { gathered: [0.0; TILE_LANES * TILE_DEPTH], staged: [0; TILE_WORDS] };
    let (panels, tiles) = (lanes.len().div_ceil(SIDE), depth.len().div_ceil(TILE_DEPTH));
    // Memory is read along its rows: all depth of a few lanes, or all lanes of a few depths.
    let (outer, inner) = if operand.depth_contiguous { (panels, tiles) } else { (tiles, panels) };
    for outer in 0..outer {
        for inner in 0..inner {
            let (panel, tile) = if operand.depth_contiguous { (outer, inner) } else { (inner, outer) };
            for half in 0..2 {
                // SAFETY: the caller's promises; the tile lies inside its panel.
                unsafe {
                    let to = to.add((panel * tiles + tile) * PANEL_WORDS + half * TILE_WORDS);
                    let (lane, p) = (panel * SIDE + half * TILE_LANES, tile * TILE_DEPTH);
                    if operand.depth_contiguous {
                        lanes_in_rows::<S>(operand, lanes, depth, lane, p, to, order, &mut scratch);
                    } else {
                        depths_in_rows::<S>(operand, lanes, depth, lane, p, to, order, &mut scratch);
                    }
                }
            }
        }
    }
}

/// One tile, from position `lane` and depth `p` on, of an operand whose lanes are rows of memory.
///
/// # Safety
/// As for [`pack`].
#[inline(always)]
unsafe fn lanes_in_rows<S: Registers>(
    operand: Operand,
    lanes: &Positions,
    depth: &Positions,
    lane: usize,
    p: usize,
    to: *mut u32,
    order: Order,
    scratch: &mut Scratch,
) {
    let Scratch { gathered, staged } = scratch;
    let whole = depth.live.is_none() && p + TILE_DEPTH <= depth.len();
    if !whole {
        gathered.fill(0.0);
    }
    let words = if order == Order::LanesFirst { to } else { staged.as_mut_ptr() };
    for i in 0..TILE_LANES {
        // SAFETY: reads are at positions of the operand or in the two buffers; writes in a whole tile.
        unsafe {
            let row = if lane + i >= lanes.len() {
                ZEROS.as_ptr()
            } else if whole {
                let row = operand.data.add(lanes.at(lane + i) * operand.ld + depth.at(p));
                S::prefetch(row.wrapping_byte_add(AHEAD));
                S::prefetch(row.wrapping_byte_add(AHEAD + 64));
                row
            } else {
                let from = operand.data.add(lanes.at(lane + i) * operand.ld);
                for k in 0..TILE_DEPTH.min(depth.len() - p) {
                    gathered[i * TILE_DEPTH + k] = *from.add(depth.at(p + k));
                }
                gathered.as_ptr().add(i * TILE_DEPTH)
            };
            round_neighbours(row, words.add(i * (TILE_DEPTH / 2)));
        }
    }
    if order == Order::PairsFirst {
        // SAFETY: both are whole tiles.
        unsafe { transpose::<S>(words, to) }
    }
}

/// The same of an operand whose depths are rows of memory.
///
/// # Safety
/// As for [`pack`].
#[inline(always)]
unsafe fn depths_in_rows<S: Registers>(
    operand: Operand,
    lanes: &Positions,
    depth: &Positions,
    lane: usize,
    p: usize,
    to: *mut u32,
    order: Order,
    scratch: &mut Scratch,
) {
    let Scratch { gathered, staged } = scratch;
    let whole = lanes.live.is_none() && lane + TILE_LANES <= lanes.len();
    if !whole {
        gathered.fill(0.0);
    }
    let words = if order == Order::PairsFirst { to } else { staged.as_mut_ptr() };
    let mut rows = [ZEROS.as_ptr(); TILE_DEPTH];
    for (k, row) in rows.iter_mut().enumerate().take(depth.len() - p) {
        // SAFETY: as above.
        unsafe {
            let from = operand.data.add(depth.at(p + k) * operand.ld);
            if whole {
                *row = from.add(lanes.at(lane));
                S::prefetch(row.wrapping_byte_add(AHEAD));
            } else {
                for i in 0..TILE_LANES.min(lanes.len().saturating_sub(lane)) {
                    gathered[k * TILE_LANES + i] = *from.add(lanes.at(lane + i));
                }
                *row = gathered.as_ptr().add(k * TILE_LANES);
            }
        }
    }
    for pair in 0..TILE_DEPTH / 2 {
        // SAFETY: rows of TILE_LANES elements at least; writes in a whole tile.
        unsafe { round_pairs(rows[2 * pair], rows[2 * pair + 1], words.add(pair * TILE_LANES)) }
    }
    if order == Order::LanesFirst {
        // SAFETY: both are whole tiles.
        unsafe { transpose::<S>(words, to) }
    }
}

/// `TILE_DEPTH` elements of a lane to its row of pairs.
///
/// # Safety
/// As many elements at `row`, half as many words at `to`.
#[inline(always)]
unsafe fn round_neighbours(row: *const f32, to: *mut u32) {
    // SAFETY: the caller's promise; an f32 array may be read at any f32 address, halves of a word be written one by one.
    let (row, to) = unsafe { (&*row.cast::<[f32; TILE_DEPTH]>(), &mut *to.cast::<[u16; TILE_DEPTH]>()) };
    for k in 0..TILE_DEPTH {
        to[k] = (bf16_bits(row[k]) >> 16) as u16;
    }
}

/// `TILE_LANES` elements of an even and of an odd depth to their row of pairs.
///
/// # Safety
/// As many elements at both rows, as many words at `to`.
#[inline(always)]
unsafe fn round_pairs(even: *const f32, odd: *const f32, to: *mut u32) {
    // SAFETY: the caller's promise.
    let (even, odd, to) = unsafe {
        let (even, odd) = (&*even.cast::<[f32; TILE_LANES]>(), &*odd.cast::<[f32; TILE_LANES]>());
        (even, odd, &mut *to.cast::<[u32; TILE_LANES]>())
    };
    for lane in 0..TILE_LANES {
        to[lane] = bf16_bits(even[lane]) >> 16 | bf16_bits(odd[lane]);
    }
}

/// Transposes 16 × 16 words.
///
/// # Safety
/// S is present; both are whole tiles that do not overlap.
#[inline(always)]
unsafe fn transpose<S: Registers>(from: *const u32, to: *mut u32) {
    const SIDE: usize = TILE_LANES;
    for first in (0..SIDE).step_by(S::LANES) {
        // SAFETY: whole squares of both tiles. Words travel as f32 through loads, shuffles and stores, which change no bit.
        unsafe {
            let mut rows = [from.cast::<f32>(); SIDE];
            for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
                *row = from.add((first + i) * SIDE).cast();
            }
            for column in (0..SIDE).step_by(S::LANES) {
                S::transpose(&rows[..S::LANES], column, to.add(column * SIDE + first).cast(), SIDE);
            }
        }
    }
}
