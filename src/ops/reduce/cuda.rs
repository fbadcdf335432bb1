//! Launches of `kernels/reduce.cu`.

use crate::launch::{ElementType, Grid, Matrix, Pointer, Queue, int, kernels::reduce};
use crate::ops::rows::{assert_vector_access, lanes};

/// The fewest rows that a block sums, and the most blocks down the rows.
const FEWEST_ROWS: usize = 64;
const MOST_BLOCKS: usize = 128;

/// `out[g]` = mean of `|x|` over rows and the columns of group g; `x`: `[T, n]`, `out`: `[n / group]`.
pub fn mean_absolute(queue: &mut Queue, x: Matrix, group: usize, out: Pointer<f32>) {
    assert!(x.cols.is_multiple_of(group));
    assert_vector_access(&x);
    if x.cols == 0 {
        return;
    }
    let rows_a_block = x.rows.div_ceil(MOST_BLOCKS).max(FEWEST_ROWS);
    let blocks = x.rows.div_ceil(rows_a_block);
    let partials = queue.scratch(x.rows.div_ceil(FEWEST_ROWS).min(MOST_BLOCKS) * x.cols);
    let cols = int(x.cols);
    if blocks > 0 {
        let grid = Grid::new([blocks, x.cols.div_ceil(32 * lanes(x.element)), 1], 256);
        let (ld, rows_a_block, rows) = (int(x.ld), int(rows_a_block), int(x.rows));
        queue.push(match x.element {
            ElementType::F32 => {
                reduce::absolute_sums_f32(grid, x.f32(), ld, partials, rows_a_block, rows, cols)
            }
            ElementType::Bf16 => {
                reduce::absolute_sums_bf16(grid, x.bf16(), ld, partials, rows_a_block, rows, cols)
            }
        });
    }
    let terms = (x.rows * group).max(1) as f32;
    let grid = Grid::linear(x.cols / group, 128);
    queue.push(reduce::group_means_f32(grid, partials, int(blocks), cols, int(group), terms, out));
}

/// `out` `[3, n]` f32 = Σ x, Σ |x|, Σ x² over the rows of `x` `[T, n]`, summed in f64.
pub fn column_moments(queue: &mut Queue, x: Matrix, out: Matrix) {
    assert_eq!((out.rows, out.cols), (3, x.cols));
    assert_vector_access(&x);
    if x.cols == 0 {
        return;
    }
    let rows_a_block = x.rows.div_ceil(MOST_BLOCKS).max(FEWEST_ROWS);
    let blocks = x.rows.div_ceil(rows_a_block);
    let partials = queue.scratch::<f64>(x.rows.div_ceil(FEWEST_ROWS).min(MOST_BLOCKS) * 3 * x.cols);
    let cols = int(x.cols);
    if blocks > 0 {
        let grid = Grid::new([blocks, x.cols.div_ceil(32 * lanes(x.element)), 1], 256);
        let (ld, rows_a_block, rows) = (int(x.ld), int(rows_a_block), int(x.rows));
        queue.push(match x.element {
            ElementType::F32 => {
                reduce::moment_sums_f32(grid, x.f32(), ld, partials, rows_a_block, rows, cols)
            }
            ElementType::Bf16 => {
                reduce::moment_sums_bf16(grid, x.bf16(), ld, partials, rows_a_block, rows, cols)
            }
        });
    }
    let grid = Grid::linear((3 * x.cols).div_ceil(256), 256);
    queue.push(reduce::moments_f32(grid, partials, int(blocks), cols, out.f32(), int(out.ld)));
}

/// `out[j]` = Σ_t x[t, j]·y[t, j], summed in f64; `x`, `y`: `[T, n]` of one element type, `out`: `[n]`.
pub fn column_products(queue: &mut Queue, x: Matrix, y: Matrix, out: Pointer<f32>) {
    assert_eq!((x.rows, x.cols, x.element), (y.rows, y.cols, y.element));
    assert_vector_access(&x);
    assert_vector_access(&y);
    if x.cols == 0 {
        return;
    }
    let rows_a_block = x.rows.div_ceil(MOST_BLOCKS).max(FEWEST_ROWS);
    let blocks = x.rows.div_ceil(rows_a_block);
    let partials = queue.scratch::<f64>(x.rows.div_ceil(FEWEST_ROWS).min(MOST_BLOCKS) * x.cols);
    let cols = int(x.cols);
    if blocks > 0 {
        let grid = Grid::new([blocks, x.cols.div_ceil(32 * lanes(x.element)), 1], 256);
        let (ldx, ldy, run, rows) = (int(x.ld), int(y.ld), int(rows_a_block), int(x.rows));
        queue.push(match x.element {
            ElementType::F32 => {
                reduce::product_sums_f32(grid, x.f32(), ldx, y.f32(), ldy, partials, run, rows, cols)
            }
            ElementType::Bf16 => {
                reduce::product_sums_bf16(grid, x.bf16(), ldx, y.bf16(), ldy, partials, run, rows, cols)
            }
        });
    }
    queue.push(reduce::column_totals(
        Grid::linear(x.cols.div_ceil(256), 256),
        partials,
        int(blocks),
        cols,
        out,
    ));
}
