//! The tile instructions' sums on vector registers, to the same bits.

use super::{Block, PANEL_WORDS, SIDE, TILE_DEPTH, TILE_LANES, TILE_WORDS};
use crate::ops::gemm::cpu::registers::Registers;

/// Rows multiplied together: with two chains each, as many as hide the latency of a multiply-add.
const ROWS: usize = 4;

/// See [`super::multiply`].
///
/// # Safety
/// S is present; the block's panels and the whole of its 32 × 32 C are there.
#[inline(always)]
pub(super) unsafe fn multiply<S: Registers>(block: &Block) {
    let &Block { tiles, a, b, c, ldc, resume } = block;
    // Both panels at one tile's depth, as f32: `[half][lane][k]` and `[half][k][lane]`.
    let (mut left, mut right) = ([0.0; 2 * PANEL_WORDS], [0.0; 2 * PANEL_WORDS]);
    // SAFETY: reads inside the panels, writes inside C, as the caller promises.
    unsafe {
        if !resume {
            for i in 0..SIDE {
                std::ptr::write_bytes(c.add(i * ldc), 0, SIDE);
            }
        }
        for tile in 0..tiles {
            widen_neighbours(std::slice::from_raw_parts(a.add(tile * PANEL_WORDS), PANEL_WORDS), &mut left);
            widen_rows(std::slice::from_raw_parts(b.add(tile * PANEL_WORDS), PANEL_WORDS), &mut right);
            for i in (0..SIDE).step_by(ROWS) {
                let left = left.as_ptr().add(i * TILE_DEPTH);
                for j in (0..SIDE).step_by(S::LANES) {
                    let right = right.as_ptr().add(j / TILE_LANES * 2 * TILE_WORDS + j % TILE_LANES);
                    chains::<S>(left, right, c.add(i * ldc + j), ldc);
                }
            }
        }
    }
}

/// `ROWS × LANES` elements: Σ of even k and Σ of odd k from 0, their sum added to C.
///
/// # Safety
/// S is present; `left` has `ROWS` rows of `TILE_DEPTH`, `right` as many rows of `TILE_LANES` in which LANES are readable.
#[inline(always)]
unsafe fn chains<S: Registers>(left: *const f32, right: *const f32, c: *mut f32, ldc: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut even = [S::zero(); ROWS];
        let mut odd = [S::zero(); ROWS];
        for k in (0..TILE_DEPTH).step_by(2) {
            let (first, second) =
                (S::load(right.add(k * TILE_LANES)), S::load(right.add((k + 1) * TILE_LANES)));
            for r in 0..ROWS {
                even[r] = S::multiply_add(S::splat(left.add(r * TILE_DEPTH + k)), first, even[r]);
                odd[r] = S::multiply_add(S::splat(left.add(r * TILE_DEPTH + k + 1)), second, odd[r]);
            }
        }
        for r in 0..ROWS {
            let to = c.add(r * ldc);
            S::store(to, S::add(S::load(to), S::add(even[r], odd[r])));
        }
    }
}

/// Words of a lane's pairs to f32 in the order of k.
#[inline(always)]
fn widen_neighbours(words: &[u32], to: &mut [f32]) {
    for (pair, &word) in to.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        *pair = [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)];
    }
}

/// Rows of words to two rows of f32 each: even k, odd k.
#[inline(always)]
fn widen_rows(words: &[u32], to: &mut [f32]) {
    let rows = to.as_chunks_mut::<{ 2 * TILE_LANES }>().0;
    for (rows, words) in rows.iter_mut().zip(words.as_chunks::<TILE_LANES>().0) {
        let (even, odd) = rows.split_at_mut(TILE_LANES);
        for lane in 0..TILE_LANES {
            even[lane] = f32::from_bits(words[lane] << 16);
            odd[lane] = f32::from_bits(words[lane] & 0xffff_0000);
        }
    }
}
