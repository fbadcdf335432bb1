//! Copies blocks of the operands into the order the tile kernel reads, leaving out what masks have removed.
//!
//! Both operands are seen as lanes × depth: a lane is a row of op(A) or a column of op(B), depth is k. A panel holds
//! `panel[p·stride + lane]` for a few lanes, so one routine packs either operand in either layout.

use super::registers::Registers;
use std::ops::Range;

/// Lanes of the widest register.
const MOST_LANES: usize = 16;

/// Elements of a cache line.
const LINE: usize = 16;
/// Rows of an operand fetched before they are packed: they are pages apart, where the hardware does not look ahead.
const ROWS_AHEAD: usize = 8;
/// Cache lines of each lane fetched before they are transposed.
const LINES_AHEAD: usize = 4;

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
    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    /// Index of the `i`-th position of the range.
    #[inline(always)]
    pub(super) fn at(&self, i: usize) -> usize {
        self.live.map_or(self.range.start + i, |live| live[self.range.start + i] as usize)
    }
}

/// How panels lie in a packed block: panel i holds `lanes` lanes and begins at element `i · depth · stride`.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub lanes: usize,
    /// Distance between the elements of a lane; a multiple of `LANES`, at least `lanes`.
    pub stride: usize,
}

/// Packs all positions, panel after panel. What it writes between the last lane of a panel and its stride is unspecified.
///
/// # Safety
/// S is present; the positions lie inside the operand; `to` has room for whole panels.
#[inline(always)]
pub(super) unsafe fn pack<S: Registers>(
    operand: Operand,
    lanes: &Positions,
    depth: &Positions,
    to: *mut f32,
    panels: Panels,
) {
    // SAFETY: the caller's promises.
    unsafe {
        if !operand.depth_contiguous {
            return pack_rows::<S>(operand, lanes, depth, to, panels);
        }
        for (i, first) in (0..lanes.len()).step_by(panels.lanes).enumerate() {
            let start = lanes.range.start + first;
            let lanes =
                Positions { live: lanes.live, range: start..(start + panels.lanes).min(lanes.range.end) };
            let to = to.add(i * depth.len() * panels.stride);
            if depth.live.is_none() {
                transpose_panel::<S>(operand, &lanes, depth, to, panels.stride);
            } else {
                gather_panel(operand, &lanes, depth, to, panels.stride);
            }
        }
    }
}

/// Operands whose lanes are neighbours: row by row over all panels, since neighbouring rows are pages apart.
///
/// # Safety
/// As for [`pack`].
#[inline(always)]
unsafe fn pack_rows<S: Registers>(
    operand: Operand,
    lanes: &Positions,
    depth: &Positions,
    to: *mut f32,
    panels: Panels,
) {
    for p in 0..depth.len() {
        // SAFETY: reads are at positions of the operand, writes in whole panels.
        unsafe {
            let from = operand.data.add(depth.at(p) * operand.ld);
            let ahead = operand.data.add(depth.at((p + ROWS_AHEAD).min(depth.len() - 1)) * operand.ld);
            for line in (0..lanes.len()).step_by(LINE) {
                S::prefetch(ahead.add(lanes.at(line)));
            }
            for (i, first) in (0..lanes.len()).step_by(panels.lanes).enumerate() {
                let to = to.add((i * depth.len() + p) * panels.stride);
                let count = panels.lanes.min(lanes.len() - first);
                if lanes.live.is_some() {
                    for lane in 0..count {
                        *to.add(lane) = *from.add(lanes.at(first + lane));
                    }
                    continue;
                }
                let from = from.add(lanes.at(first));
                for lane in (0..count).step_by(S::LANES) {
                    if lane + S::LANES <= count {
                        S::store(to.add(lane), S::load(from.add(lane)));
                    } else {
                        S::store(to.add(lane), S::load_first(from.add(lane), count - lane));
                    }
                }
            }
        }
    }
}

/// One panel of an operand whose lanes are contiguous.
///
/// # Safety
/// As for [`pack`], one panel.
#[inline(always)]
unsafe fn transpose_panel<S: Registers>(
    operand: Operand,
    lanes: &Positions,
    depth: &Positions,
    to: *mut f32,
    stride: usize,
) {
    for first in (0..lanes.len()).step_by(S::LANES) {
        // SAFETY: reads are at positions of the operand, writes in one whole panel.
        unsafe {
            // Lanes behind the last repeat it: they fill a register whose result nobody stores.
            let mut rows = [operand.data; MOST_LANES];
            for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
                *row = operand.data.add(lanes.at((first + i).min(lanes.len() - 1)) * operand.ld);
            }
            let mut p = 0;
            while p + S::LANES <= depth.len() {
                let to = to.add(p * stride + first);
                for row in &rows[..S::LANES] {
                    S::prefetch(row.wrapping_add(depth.range.start + p + LINES_AHEAD * LINE));
                }
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
}

/// One panel of an operand whose lanes are contiguous, live depths only.
///
/// # Safety
/// As for [`pack`], one panel.
#[inline(always)]
unsafe fn gather_panel(operand: Operand, lanes: &Positions, depth: &Positions, to: *mut f32, stride: usize) {
    for lane in 0..lanes.len() {
        // SAFETY: reads are at positions of the operand, writes in one whole panel.
        unsafe {
            let from = operand.data.add(lanes.at(lane) * operand.ld);
            for p in 0..depth.len() {
                *to.add(p * stride + lane) = *from.add(depth.at(p));
            }
        }
    }
}
