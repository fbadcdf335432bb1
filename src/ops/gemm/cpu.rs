//! Fast f32 products: packed register tiles, chosen for the processor at run time, over all threads of the current rayon pool.
//!
//! Why our own kernels: on the large products of BERT they are level with the `gemm` crate or a few percent ahead (0.9 to 1.0
//! of MKL's speed), on short batches nearly twice as fast, and they do epilogues and masks in the same pass, which the
//! crate cannot. It is still ahead for one or two rows times a matrix read in place. `benches/results` has the
//! comparison; the crate is only a contestant there.

pub mod bf16;
mod block;
mod column_sums;
mod compiled;
mod finish;
mod job;
mod kernel;
mod pack;
pub(in crate::ops) mod registers;

pub use column_sums::column_sums;

use super::{Epilogue, Factors, Shape};
use crate::ops::simd::{Level, level};
use crate::ops::{View, ViewMut, parallel, scratch};
use block::Compiled;
use finish::Finish;
use job::{Job, Method, Task};
use pack::{Operand, Positions};
use registers::{Portable, Registers};

/// Products with at most this many rows or columns go by dot products where both operands are contiguous over k.
const THIN: usize = 8;

/// With at most this many rows, B is multiplied where it stands: packing it would not pay.
const THICK: usize = 28;

/// `C = epilogue(op(A)·op(B))`; see the formula and promises in [the family's module](super).
pub fn gemm(
    a: View<f32>,
    transpose_a: bool,
    b: View<f32>,
    transpose_b: bool,
    c: &mut ViewMut<f32>,
    epilogue: Epilogue<f32>,
) {
    gemm_of(Factors::F32, a, transpose_a, b, transpose_b, c, epilogue);
}

/// [`gemm`] with rounded factors.
pub fn gemm_of(
    factors: Factors,
    a: View<f32>,
    transpose_a: bool,
    b: View<f32>,
    transpose_b: bool,
    c: &mut ViewMut<f32>,
    epilogue: Epilogue<f32>,
) {
    gemm_with(level(), bf16::has_tiles(), factors, a, transpose_a, b, transpose_b, c, epilogue);
}

/// [`gemm_of`] at a given level and without matrix tiles, so that tests reach every path. Panics if the processor does not
/// have the level.
pub fn gemm_at(
    with: Level,
    factors: Factors,
    a: View<f32>,
    transpose_a: bool,
    b: View<f32>,
    transpose_b: bool,
    c: &mut ViewMut<f32>,
    epilogue: Epilogue<f32>,
) {
    gemm_with(with, false, factors, a, transpose_a, b, transpose_b, c, epilogue);
}

fn gemm_with(
    with: Level,
    on_tiles: bool,
    factors: Factors,
    a: View<f32>,
    transpose_a: bool,
    b: View<f32>,
    transpose_b: bool,
    c: &mut ViewMut<f32>,
    epilogue: Epilogue<f32>,
) {
    assert!(with <= level(), "this process does not have {with:?}");
    let shape = Shape::check(&a, transpose_a, &b, transpose_b, c, &epilogue);
    if shape.m == 0 || shape.n == 0 {
        return;
    }
    let a = Operand { data: a.data().as_ptr(), ld: a.ld(), depth_contiguous: !transpose_a };
    let b = Operand { data: b.data().as_ptr(), ld: b.ld(), depth_contiguous: transpose_b };
    let bf16 = (factors == Factors::Bf16).then_some(Method::Bf16 { on_tiles });
    match with {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => product::<registers::Avx512>(bf16, shape, a, b, c, epilogue),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => product::<registers::Avx2>(bf16, shape, a, b, c, epilogue),
        _ => product::<Portable>(bf16, shape, a, b, c, epilogue),
    }
}

/// Calls `body` with the indices where a mask is not 0; `None` if that is everywhere, so that an all-ones mask takes the
/// same path as none.
fn with_live<R>(mask: Option<&[f32]>, body: impl FnOnce(Option<&[u32]>) -> R) -> R {
    let Some(mask) = mask.filter(|mask| mask.contains(&0.0)) else { return body(None) };
    assert!(u32::try_from(mask.len()).is_ok(), "masks index with 32 bits");
    scratch::with_indices(|live| {
        live.extend((0..mask.len() as u32).filter(|&i| mask[i as usize] != 0.0));
        body(Some(live))
    })
}

fn product<S: Compiled>(
    rounded: Option<Method>,
    shape: Shape,
    a: Operand,
    b: Operand,
    c: &mut ViewMut<f32>,
    epilogue: Epilogue<f32>,
) {
    let computed = epilogue.neuron_mask.filter(|_| !epilogue.compute_masked);
    let inner = epilogue.inner_mask;
    with_live(computed, |columns| {
        with_live(inner, |depth| masked_product::<S>(rounded, shape, a, b, c, epilogue, columns, depth));
    });
}

fn masked_product<S: Compiled>(
    rounded: Option<Method>,
    shape: Shape,
    a: Operand,
    b: Operand,
    c: &mut ViewMut<f32>,
    epilogue: Epilogue<f32>,
    live_columns: Option<&[u32]>,
    live_depth: Option<&[u32]>,
) {
    let Shape { m, n, k } = shape;
    let depth = live_depth.map_or(k, <[u32]>::len);
    let columns = live_columns.map_or(n, <[u32]>::len);
    let method = if let Some(method) = rounded {
        method
    } else if a.depth_contiguous && b.depth_contiguous && m.min(n) <= THIN && live_depth.is_none() {
        Method::Dots
    } else if !b.depth_contiguous && m <= THICK && live_columns.is_none() && live_depth.is_none() {
        Method::Direct
    } else {
        Method::Packed
    };
    let job = Job {
        method,
        a,
        b,
        c: c.as_mut_ptr(),
        ldc: c.ld(),
        n,
        depth: Positions { live: live_depth, range: 0..depth },
        live: live_columns,
        accumulate: epilogue.accumulate,
        finish: Finish::new(epilogue),
    };
    let (row_parts, column_parts) = parts::<S>(m, columns, depth, rayon::current_num_threads());
    let (row_step, column_step) = steps::<S>(m, columns, row_parts, column_parts);
    let tasks = |index: usize| {
        let (row, column) = (index % row_parts * row_step, index / row_parts * column_step);
        Task {
            rows: row.min(m)..(row + row_step).min(m),
            columns: column.min(columns)..(column + column_step).min(columns),
        }
    };
    // Tasks of rounding leftovers can be empty; the first column of tasks never is, even if no column is live.
    let work = |index: usize| {
        let task = tasks(index);
        if !task.rows.is_empty() && (!task.columns.is_empty() || index < row_parts) {
            // SAFETY: the level is present; the operands' views are alive; the tasks' rectangles are disjoint.
            unsafe { S::run(&job, &task) }
        }
    };
    parallel::items(row_parts * column_parts, work);
}

/// Rows and columns of a task, in whole tiles.
fn steps<S: Registers>(m: usize, columns: usize, row_parts: usize, column_parts: usize) -> (usize, usize) {
    (
        m.div_ceil(row_parts).next_multiple_of(S::TILE_ROWS),
        columns.div_ceil(column_parts).next_multiple_of(S::TILE_COLUMNS).max(1),
    )
}

/// In how many parts rows and columns are cut: the cheapest grid of at most four tasks a thread, by a model that counts whole
/// tiles, packing, and rounds of tasks. More tasks at nearly the same price are preferred, since another process
/// may hold up one of the threads.
fn parts<S: Registers>(m: usize, columns: usize, depth: usize, threads: usize) -> (usize, usize) {
    /// Cycles to start a task on another thread.
    const START: f64 = 20_000.0;
    /// Cycles to pack an element.
    const PACK: f64 = 0.4;
    let cost = |row_parts: usize, column_parts: usize| {
        let (rows, width) = steps::<S>(m, columns, row_parts, column_parts);
        let rounds = (row_parts * column_parts).div_ceil(threads) as f64;
        let tiles = (rows * width) as f64 / (2 * S::LANES) as f64;
        let packing = PACK * (width + rows) as f64;
        rounds * (tiles + packing) * depth.max(8) as f64
            + if row_parts * column_parts > 1 { START } else { 0.0 }
    };
    let mut best = (1, 1);
    if threads == 1 {
        return best;
    }
    let mut least = cost(1, 1);
    for row_parts in 1..=4 * threads {
        for column_parts in 1..=4 * threads / row_parts {
            let cost = cost(row_parts, column_parts);
            let allowance = if row_parts * column_parts > best.0 * best.1 { 1.01 } else { 1.0 };
            if cost < least * allowance {
                (best, least) = ((row_parts, column_parts), cost.min(least));
            }
        }
    }
    best
}
