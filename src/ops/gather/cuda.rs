//! Launches of `kernels/gather.cu`.

use crate::launch::ElementType::{Bf16, F32};
use crate::launch::{Grid, Matrix, Pointer, Queue, int, kernels::gather};
use crate::ops::rows::{assert_alike, assert_vector_access, lanes, one_piece_a_thread};

/// Positions of the sorted list that a block of the scatter-add takes.
const CHUNK: usize = 32;

/// `y[i] = x[rows[i]]`; `x`: `[R, n]`, `rows`: `[m]`, `y`: `[m, n]`, of x's element type.
pub fn gather_rows(queue: &mut Queue, x: Matrix, rows: Pointer<i32>, y: Matrix) {
    assert_eq!(x.cols, y.cols);
    assert_vector_access(&x);
    assert_vector_access(&y);
    if y.is_empty() {
        return;
    }
    let (ldx, ldy, count, cols) = (int(x.ld), int(y.ld), int(y.rows), int(y.cols));
    let grid = one_piece_a_thread(&y);
    queue.push(match y.element {
        F32 => gather::gather_f32(grid, x.f32(), ldx, rows, y.f32(), ldy, count, cols),
        Bf16 => gather::gather_bf16(grid, x.bf16(), ldx, rows, y.bf16(), ldy, count, cols),
    });
}

/// `dx[rows[i]] += dy[i]`; `dy`: `[m, n]`, `rows`: `[m]`, `dx`: `[R, n]`, of dy's element type or f32. Each element of
/// dx is summed in f32 and rounded once.
pub fn scatter_rows_add(queue: &mut Queue, dy: Matrix, rows: Pointer<i32>, dx: Matrix) {
    assert_eq!(dy.cols, dx.cols);
    assert_vector_access(&dy);
    assert_vector_access(&dx);
    if dy.is_empty() {
        return;
    }
    let (m, n) = (dy.rows, dy.cols);
    let chunks = m.div_ceil(CHUNK);
    let (count, lddy, lddx, cols) = (int(m), int(dy.ld), int(dx.ld), int(n));
    let order = queue.scratch::<i32>(m);
    queue.push(gather::order_rows(Grid::linear(m.div_ceil(32), 256), rows, count, order));

    let width = n.next_multiple_of(8);
    let partials = queue.scratch::<f32>(chunks * 2 * width);
    let ldp = int(width);
    let grid = Grid::new([chunks, n.div_ceil(128 * lanes(dy.element)), 1], 128);
    queue.push(match (dy.element, dx.element) {
        (F32, F32) => gather::add_chunks_f32(
            grid,
            dy.f32(),
            lddy,
            rows,
            order,
            count,
            dx.f32(),
            lddx,
            partials,
            ldp,
            cols,
        ),
        (Bf16, Bf16) => gather::add_chunks_bf16(
            grid,
            dy.bf16(),
            lddy,
            rows,
            order,
            count,
            dx.bf16(),
            lddx,
            partials,
            ldp,
            cols,
        ),
        (Bf16, F32) => gather::add_chunks_bf16_to_f32(
            grid,
            dy.bf16(),
            lddy,
            rows,
            order,
            count,
            dx.f32(),
            lddx,
            partials,
            ldp,
            cols,
        ),
        (F32, Bf16) => panic!("rows of f32 are not added to rows of bf16"),
    });
    if chunks > 1 {
        let grid = Grid::new([chunks, n.div_ceil(32), 1], 512);
        queue.push(match dx.element {
            F32 => gather::add_runs_f32(grid, partials, ldp, rows, order, count, dx.f32(), lddx, cols),
            Bf16 => gather::add_runs_bf16(grid, partials, ldp, rows, order, count, dx.bf16(), lddx, cols),
        });
    }
}

/// `y += x`, `[T, n]`.
pub fn add_in_place(queue: &mut Queue, y: Matrix, x: Matrix) {
    assert_alike(&[y, x]);
    if y.is_empty() {
        return;
    }
    let (ldx, ldy, rows, cols) = (int(x.ld), int(y.ld), int(y.rows), int(y.cols));
    let grid = one_piece_a_thread(&y);
    queue.push(match y.element {
        F32 => gather::add_f32(grid, x.f32(), ldx, y.f32(), ldy, rows, cols),
        Bf16 => gather::add_bf16(grid, x.bf16(), ldx, y.bf16(), ldy, rows, cols),
    });
}

/// `y = value` everywhere.
pub fn fill(queue: &mut Queue, y: Matrix, value: f32) {
    assert_vector_access(&y);
    if y.is_empty() {
        return;
    }
    let (ld, rows, cols) = (int(y.ld), int(y.rows), int(y.cols));
    let grid = one_piece_a_thread(&y);
    queue.push(match y.element {
        F32 => gather::fill_f32(grid, y.f32(), ld, value, rows, cols),
        Bf16 => gather::fill_bf16(grid, y.bf16(), ld, value, rows, cols),
    });
}
