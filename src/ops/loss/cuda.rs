//! The losses on a device. A row is a warp's work up to 512 classes, a block's beyond.

mod linear;

pub use linear::{linear_cross_entropy, linear_cross_entropy_by};

use crate::launch::kernels::loss as kernels;
use crate::launch::{Grid, Matrix, Pointer, Queue, int};

/// Most classes for which a warp takes a row.
const NARROW: usize = 512;
/// Threads of a narrow block, and the rows they take.
const NARROW_THREADS: u32 = 128;
const NARROW_ROWS: usize = 4;
const WIDE_THREADS: u32 = 512;

fn pointer_and_ld(matrix: Option<Matrix>) -> (Pointer<f32>, i32) {
    matrix.map_or((Pointer::NULL, 0), |m| (m.f32(), int(m.ld)))
}

fn all_aligned16(matrices: &[Option<Matrix>]) -> i32 {
    i32::from(matrices.iter().flatten().all(Matrix::aligned16))
}

/// Cross-entropy; `logits`, `dlogits`: `[R, C]`, `labels`, `weights`, `losses`: `[R]`. `dlogits` may be `logits`.
pub fn cross_entropy(
    queue: &mut Queue,
    logits: Matrix,
    labels: Pointer<i32>,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dlogits: Option<Matrix>,
    accumulate: bool,
) {
    let (rows, classes) = (logits.rows, logits.cols);
    assert!(dlogits.is_none_or(|d| (d.rows, d.cols) == (rows, classes)));
    if rows == 0 {
        return;
    }
    let vector = all_aligned16(&[Some(logits), dlogits]);
    let (gradient, ld) = pointer_and_ld(dlogits);
    let (z, ld_z, accumulate) = (logits.f32(), int(logits.ld), i32::from(accumulate));
    queue.push(if classes <= NARROW {
        let grid = Grid::linear(rows.div_ceil(NARROW_ROWS), NARROW_THREADS);
        let (rows, classes) = (int(rows), int(classes));
        kernels::cross_entropy_narrow(
            grid, z, ld_z, labels, weights, losses, gradient, ld, accumulate, rows, classes, vector,
        )
    } else {
        let grid = Grid::linear(rows, WIDE_THREADS);
        let classes = int(classes);
        kernels::cross_entropy_wide(
            grid, z, ld_z, labels, weights, losses, gradient, ld, accumulate, classes, vector,
        )
    });
}

/// [`cross_entropy`] whose gradient is bf16: the operand of the fused head's products.
fn cross_entropy_bf16(
    queue: &mut Queue,
    logits: Matrix,
    labels: Pointer<i32>,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dlogits: Matrix,
) {
    assert_eq!((dlogits.rows, dlogits.cols), (logits.rows, logits.cols));
    if logits.rows == 0 {
        return;
    }
    queue.push(kernels::cross_entropy_wide_bf16(
        Grid::linear(logits.rows, WIDE_THREADS),
        logits.f32(),
        int(logits.ld),
        labels,
        weights,
        losses,
        dlogits.bf16(),
        int(dlogits.ld),
        int(logits.cols),
        all_aligned16(&[Some(logits), Some(dlogits)]),
    ));
}

/// Squared error; `x`, `dx`: `[R, 1]`, `targets`, `weights`, `losses`: `[R]`.
pub fn mean_squared_error(
    queue: &mut Queue,
    x: Matrix,
    targets: Pointer<f32>,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dx: Option<Matrix>,
    accumulate: bool,
) {
    assert!(x.cols == 1 && dx.is_none_or(|d| (d.rows, d.cols) == (x.rows, 1)));
    if x.rows == 0 {
        return;
    }
    let (gradient, ld) = pointer_and_ld(dx);
    let grid = Grid::linear(x.rows.div_ceil(256), 256);
    let (rows, accumulate) = (int(x.rows), i32::from(accumulate));
    queue.push(kernels::squared_error(
        grid,
        x.f32(),
        int(x.ld),
        targets,
        weights,
        losses,
        gradient,
        ld,
        accumulate,
        rows,
    ));
}

/// Start and end of an answer; `logits`, `dlogits`: `[T, 2]` (start, end), `starts`, `ends`: `[B]` token
/// numbers within the sequence, `cu_seqlens`: `[B + 1]`, `weights`, `losses`: `[B]`; `sequences` is B.
pub fn span(
    queue: &mut Queue,
    logits: Matrix,
    starts: Pointer<i32>,
    ends: Pointer<i32>,
    cu_seqlens: Pointer<i32>,
    sequences: usize,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dlogits: Option<Matrix>,
) {
    assert!(logits.cols == 2 && dlogits.is_none_or(|d| (d.rows, d.cols) == (logits.rows, 2)));
    if sequences == 0 {
        return;
    }
    let (gradient, ld) = pointer_and_ld(dlogits);
    let grid = Grid::linear(sequences, 128);
    let (z, ld_z) = (logits.f32(), int(logits.ld));
    queue.push(kernels::span(grid, z, ld_z, starts, ends, cu_seqlens, weights, losses, gradient, ld));
}

/// Distillation of class probabilities; `student`, `teacher`, `dstudent`: `[R, C]`, `weights`, `losses`:
/// `[R]`. The teacher gets no gradient.
pub fn distillation(
    queue: &mut Queue,
    student: Matrix,
    teacher: Matrix,
    temperature: f32,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dstudent: Option<Matrix>,
    accumulate: bool,
) {
    let (rows, classes) = (student.rows, student.cols);
    assert_eq!((teacher.rows, teacher.cols), (rows, classes));
    assert!(dstudent.is_none_or(|d| (d.rows, d.cols) == (rows, classes)));
    if rows == 0 {
        return;
    }
    let vector = all_aligned16(&[Some(student), Some(teacher), dstudent]);
    let (s, ld_s, t, ld_t) = (student.f32(), int(student.ld), teacher.f32(), int(teacher.ld));
    let (gradient, ld) = pointer_and_ld(dstudent);
    let (accumulate, classes) = (i32::from(accumulate), int(classes));
    queue.push(if student.cols <= NARROW {
        let grid = Grid::linear(rows.div_ceil(NARROW_ROWS), NARROW_THREADS);
        let rows = int(rows);
        kernels::distillation_narrow(
            grid,
            s,
            ld_s,
            t,
            ld_t,
            temperature,
            weights,
            losses,
            gradient,
            ld,
            accumulate,
            rows,
            classes,
            vector,
        )
    } else {
        let grid = Grid::linear(rows, WIDE_THREADS);
        kernels::distillation_wide(
            grid,
            s,
            ld_s,
            t,
            ld_t,
            temperature,
            weights,
            losses,
            gradient,
            ld,
            accumulate,
            classes,
            vector,
        )
    });
}

/// Distillation of the start and the end of an answer over each sequence's own tokens; `student`, `teacher`,
/// `dstudent`: `[T, 2]` (start, end), `cu_seqlens`: `[B + 1]`, `weights`, `losses`: `[B]`.
pub fn span_distillation(
    queue: &mut Queue,
    student: Matrix,
    teacher: Matrix,
    temperature: f32,
    cu_seqlens: Pointer<i32>,
    sequences: usize,
    weights: Pointer<f32>,
    losses: Pointer<f32>,
    dstudent: Option<Matrix>,
    accumulate: bool,
) {
    assert_eq!((student.cols, teacher.cols, teacher.rows), (2, 2, student.rows));
    assert!(dstudent.is_none_or(|d| (d.rows, d.cols) == (student.rows, 2)));
    if sequences == 0 {
        return;
    }
    let (gradient, ld) = pointer_and_ld(dstudent);
    queue.push(kernels::span_distillation(
        Grid::linear(sequences, 128),
        student.f32(),
        int(student.ld),
        teacher.f32(),
        int(teacher.ld),
        temperature,
        cu_seqlens,
        weights,
        losses,
        gradient,
        ld,
        i32::from(accumulate),
    ));
}
