//! The same on a device: nine launches, whatever the scores are, and nothing read back.

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

/// Sets in `keep` (a word of 64 bits for every 64 of `length` scores) the bits of the `count` largest of `scores`.
///
/// Panics for 2³¹ scores and more.
pub fn keep_largest(
    queue: &mut Queue,
    scores: Pointer<f32>,
    length: usize,
    magnitude: bool,
    count: usize,
    keep: Pointer<u64>,
) {
    let words = 2 * length.div_ceil(64);
    let count = count.min(length);
    if count == 0 {
        return queue.fill_zero(keep.address, 4 * words);
    }
    let (magnitude, runs) = (i32::from(magnitude), length.div_ceil(RUN));
    let state = queue.scratch::<u32>(2);
    let counts = queue.scratch::<u32>(COUNTERS);
    let equals = queue.scratch::<u32>(runs);
    queue.fill_zero(counts.address, 4 * COUNTERS);
    queue.push(kernels::start(Grid::linear(1, 32), int(count) as u32, state));
    let counting = Grid::linear(length.div_ceil(512 * 8).min(COUNTING_BLOCKS), 512);
    for (shift, width) in DIGITS {
        queue.push(kernels::count_digits(
            counting,
            scores,
            length as u64,
            magnitude,
            state,
            shift,
            width,
            counts,
        ));
        queue.push(kernels::choose_digit(Grid::linear(1, 32), counts, shift, state));
    }
    let (grid, length) = (Grid::linear(runs.div_ceil(WARPS), 32 * WARPS as u32), length as u64);
    queue.push(kernels::count_equal(grid, scores, length, magnitude, state, equals, int(runs)));
    queue.push(kernels::rank_equal(Grid::linear(1, 1024), equals, int(runs)));
    let keep = Pointer::<u32>::new(keep.address);
    queue.push(kernels::write_bits(
        grid,
        scores,
        length,
        magnitude,
        state,
        equals,
        int(runs),
        keep,
        words as u64,
    ));
}
