//! A product and its tasks, as every way of computing it sees them.

use super::finish::Finish;
use super::pack::{Operand, Positions};
use std::cell::Cell;
use std::ops::Range;

/// How a product is computed; depends on nothing but its shape, layout and masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Pack panels of A and of B.
    Packed,
    /// Pack panels of A, read B in place: few rows, rows of op(B) contiguous.
    Direct,
    /// Dot products of rows of A and columns of B in place: few rows or columns, both contiguous over k.
    Dots,
    /// Pack both operands rounded to bf16.
    Bf16 {
        /// Multiply on matrix tiles, which this process has, instead of vector registers.
        on_tiles: bool,
    },
}

/// A product, as all its tasks see it.
pub(super) struct Job<'a> {
    pub method: Method,
    pub a: Operand,
    pub b: Operand,
    /// First element of C.
    pub c: *mut f32,
    /// Leading dimension of C.
    pub ldc: usize,
    /// Columns of C.
    pub n: usize,
    /// Live k.
    pub depth: Positions<'a>,
    /// Live columns in rising order, `None`: all.
    pub live: Option<&'a [u32]>,
    /// Start from what C holds.
    pub accumulate: bool,
    pub finish: Finish<'a>,
}

// SAFETY: the pointers lead to operands that nobody writes during the product, and to C and the preactivation, of which
// tasks touch disjoint rectangles.
unsafe impl Sync for Job<'_> {}

/// A rectangle of C.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub rows: Range<usize>,
    /// Positions among the live columns.
    pub columns: Range<usize>,
}

impl<'a> Job<'a> {
    /// The columns of C that belong to a range of live ones; dead columns go with the live one before them.
    pub(super) fn span(&self, positions: &Range<usize>) -> (Range<usize>, Option<&'a [u32]>) {
        let Some(live) = self.live else { return (positions.clone(), None) };
        let start = if positions.start == 0 { 0 } else { live[positions.start] as usize };
        let end = live.get(positions.end).map_or(self.n, |&column| column as usize);
        (start..end, Some(&live[positions.clone()]))
    }
}

/// A cache line; makes the buffers aligned.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(#[expect(dead_code, reason = "only its address is used")] [f32; 16]);

thread_local! {
    /// Packed panels; grown to the largest block seen, so a training step allocates only the first time.
    pub(super) static PANELS: Cell<(Vec<Line>, Vec<Line>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

pub(super) fn grow(buffer: &mut Vec<Line>, elements: usize) -> *mut f32 {
    let lines = elements.div_ceil(16);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0.0; 16]));
    }
    buffer.as_mut_ptr().cast()
}
