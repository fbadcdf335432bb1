//! The same on a device: a fixed list of launches, whatever the scores and counts are, and nothing read back.

use crate::launch::kernels::select as kernels;
use crate::launch::{Grid, Pointer, Queue, int};

/// Shift and width of each digit, most significant first.
const DIGITS: [(i32, i32); 3] = [(21, 11), (10, 11), (0, 10)];
/// Counters of a digit.
const COUNTERS: usize = 2048;
/// Scores of which a warp writes the bits.
const RUN: usize = 1024;
/// Warps of a block that writes bits.
const WARPS: usize = 8;
/// Most blocks that count: enough for any device, few enough that adding their counters up is cheap.
const COUNTING_BLOCKS: usize = 1024;

/// Scores of one matrix in padded rows, and their bits.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// The first of `values`.
    pub scores: Pointer<f32>,
    /// Scores and padding, fewer than 2³¹.
    pub values: usize,
    /// Scores of a row.
    pub cols: usize,
    /// Distance between the starts of two rows.
    pub ld: usize,
    /// A word of 64 bits for every 64 values.
    pub keep: Pointer<u64>,
}

impl Matrix {
    /// Scores without padding.
    pub fn dense(scores: Pointer<f32>, length: usize, keep: Pointer<u64>) -> Matrix {
        Matrix { scores, values: length, cols: length.max(1), ld: length.max(1), keep }
    }

    fn runs(&self) -> usize {
        self.values.div_ceil(RUN)
    }

    fn counting_grid(&self) -> Grid {
        Grid::linear(self.values.div_ceil(512 * 8).min(COUNTING_BLOCKS), 512)
    }
}

/// How many scores to keep, known to the device alone.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// `[1]`: this many,
    pub count: Pointer<i32>,
    /// `[1]` or null: or all above this, if those are more.
    pub threshold: Pointer<f32>,
    /// `[1]` or null: receives how many are kept.
    pub kept: Pointer<f32>,
}

/// Sets in each `keep` the bits of the largest scores of all `matrices` together.
pub fn keep_largest(queue: &mut Queue, matrices: &[Matrix], magnitude: bool, budget: Budget) {
    let scores: usize = matrices.iter().map(|m| m.values / m.ld * m.cols).sum();
    let matrices = || matrices.iter().filter(|matrix| matrix.values > 0);
    let (magnitude, runs) = (i32::from(magnitude), matrices().map(Matrix::runs).sum::<usize>());
    let state = queue.scratch::<u32>(2);
    let counts = queue.scratch::<u32>(COUNTERS);
    let equals = queue.scratch::<u32>(runs);
    let mut above = Pointer::NULL;
    if !budget.threshold.is_null() {
        above = queue.scratch::<u32>(1);
        queue.fill_zero(above.address, 4);
        for m in matrices() {
            let (values, cols, ld) = (m.values as u64, int(m.cols), int(m.ld));
            queue.push(kernels::count_above(
                m.counting_grid(),
                m.scores,
                values,
                cols,
                ld,
                budget.threshold,
                above,
            ));
        }
    }
    queue.fill_zero(counts.address, 4 * COUNTERS);
    queue.push(kernels::start(
        Grid::linear(1, 32),
        budget.count,
        above,
        int(scores) as u32,
        state,
        budget.kept,
    ));
    if runs == 0 {
        return;
    }
    for (shift, width) in DIGITS {
        for m in matrices() {
            queue.push(kernels::count_digits(
                m.counting_grid(),
                m.scores,
                m.values as u64,
                int(m.cols),
                int(m.ld),
                magnitude,
                state,
                shift,
                width,
                counts,
            ));
        }
        queue.push(kernels::choose_digit(Grid::linear(1, 32), counts, shift, state));
    }
    let mut first = 0;
    for m in matrices() {
        queue.push(kernels::count_equal(
            Grid::linear(m.runs().div_ceil(WARPS), 32 * WARPS as u32),
            m.scores,
            m.values as u64,
            int(m.cols),
            int(m.ld),
            magnitude,
            state,
            equals.offset(first),
            int(m.runs()),
        ));
        first += m.runs();
    }
    queue.push(kernels::rank_equal(Grid::linear(1, 1024), equals, int(runs)));
    let mut first = 0;
    for m in matrices() {
        queue.push(kernels::write_bits(
            Grid::linear(m.runs().div_ceil(WARPS), 32 * WARPS as u32),
            m.scores,
            m.values as u64,
            int(m.cols),
            int(m.ld),
            magnitude,
            state,
            equals.offset(first),
            int(m.runs()),
            Pointer::<u32>::new(m.keep.address),
            2 * m.values.div_ceil(64) as u64,
        ));
        first += m.runs();
    }
}
