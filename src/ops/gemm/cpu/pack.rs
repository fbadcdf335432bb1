//! Copies blocks of the operands into the order the tile kernel reads, leaving out what masks have removed.
//!
//! Both operands are seen as lanes × depth: a lane is a row of op(A) or a column of op(B), depth is k. A panel holds
//! `panel[p·stride + lane]` for a few lanes, so one routine packs either operand in either layout.

use super::registers::Registers;
use std::ops::Range;

/// An operand as lanes × depth.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    /// First element.
    pub data: *const f32,
    /// Leading dimension.
    pub ld: usize,
    /// Whether elements of a lane are neighbours (element at `lane·ld + depth`) or those of a depth (`depth·ld + lane`).
    pub depth_contiguous: bool,
}

/// A range of positions, through a list of the live ones where there is a mask.
#[derive(Clone)]
pub(super) struct Positions<'a> {
    /// Live indices in rising order; `None`: all.
    pub live: Option<&'a [u32]>,
    /// Range of positions among the live ones.
    pub range: Range<usize>,
}

impl Positions<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.range.len()
    }

    /// Index of the `i`-th position of the range.
    #[inline(always)]
    pub(super) fn at(&self, i: usize) -> usize {
        self.live.map_or(self.range.start + i, |live| live[self.range.start + i] as usize)
    }
}

/// Writes `to[p·stride + lane]` for all positions; up to `stride` lanes. What it writes behind the last lane is unspecified.
///
/// # Safety
/// S is present; `stride` is a multiple of `LANES`, at least `lanes.len()` and at most `4·LANES`; the positions lie inside
/// the operand; `to` has room for `depth.len()·stride` elements.
#[inline(always)]
pub(super) unsafe fn pack<S: Registers>(
    operand: Operand,
    lanes: Positions,
    depth: Positions,
    to: *mut f32,
    stride: usize,
) {
    let Operand { data, ld, depth_contiguous } = operand;
    // SAFETY: reads are at (lane, depth) positions of the operand, writes below depth.len()·stride.
    unsafe {
        match (depth_contiguous, depth.live) {
            (true, None) => {
                for first in (0..lanes.len()).step_by(S::LANES) {
                    // Lanes behind the last repeat it: they fill a register whose result nobody stores.
                    let mut rows = [data; 16];
                    for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
                        *row = data.add(lanes.at((first + i).min(lanes.len() - 1)) * ld);
                    }
                    let mut p = 0;
                    while p + S::LANES <= depth.len() {
                        let to = to.add(p * stride + first);
                        S::transpose(&rows[..S::LANES], depth.range.start + p, to, stride);
                        p += S::LANES;
                    }
                    for p in p..depth.len() {
                        for (i, row) in rows[..S::LANES].iter().enumerate() {
                            *to.add(p * stride + first + i) = *row.add(depth.range.start + p);
                        }
                    }
                }
            }
            (true, Some(_)) => {
                let mut rows = [data; 64];
                for (i, row) in rows.iter_mut().enumerate().take(lanes.len()) {
                    *row = data.add(lanes.at(i) * ld);
                }
                for p in 0..depth.len() {
                    let (k, to) = (depth.at(p), to.add(p * stride));
                    for (i, row) in rows.iter().enumerate().take(lanes.len()) {
                        *to.add(i) = *row.add(k);
                    }
                }
            }
            (false, _) if lanes.live.is_none() => {
                for p in 0..depth.len() {
                    let from = data.add(depth.at(p) * ld + lanes.range.start);
                    let to = to.add(p * stride);
                    for first in (0..lanes.len()).step_by(S::LANES) {
                        let count = lanes.len() - first;
                        let vector = if count >= S::LANES {
                            S::load(from.add(first))
                        } else {
                            S::load_first(from.add(first), count)
                        };
                        S::store(to.add(first), vector);
                    }
                }
            }
            (false, _) => {
                for p in 0..depth.len() {
                    let (from, to) = (data.add(depth.at(p) * ld), to.add(p * stride));
                    for i in 0..lanes.len() {
                        *to.add(i) = *from.add(lanes.at(i));
                    }
                }
            }
        }
    }
}
