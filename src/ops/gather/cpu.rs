//! Moving rows in f32.

use crate::ops::parallel::{self, Shared};
use crate::ops::simd::simd_fn;
use crate::ops::{View, ViewMut};

simd_fn! {
    /// `y += x`, on the calling thread.
    pub(in crate::ops) fn add_row<I>(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// `y[i] = x[rows[i]]`; `x`: `[R, n]`, `rows`: `[m]`, `y`: `[m, n]`.
pub fn gather_rows(x: View<f32>, rows: &[i32], mut y: ViewMut<f32>) {
    assert_eq!((rows.len(), x.cols()), (y.rows(), y.cols()));
    let y = Shared::new(&mut y);
    parallel::rows(rows.len(), x.cols(), |range| {
        for i in range {
            // SAFETY: ranges of rows are disjoint.
            unsafe { y.whole_row(i) }.copy_from_slice(x.row(rows[i] as usize));
        }
    });
}

/// `dx[rows[i]] += dy[i]`; `dy`: `[m, n]`, `rows`: `[m]`, `dx`: `[R, n]`.
pub fn scatter_rows_add(dy: View<f32>, rows: &[i32], mut dx: ViewMut<f32>) {
    assert_eq!((rows.len(), dx.cols()), (dy.rows(), dy.cols()));
    let dx = Shared::new(&mut dx);
    parallel::columns(dy.cols(), rows.len(), |cols| {
        for (i, &row) in rows.iter().enumerate() {
            // SAFETY: ranges of columns are disjoint.
            let into = unsafe { dx.row_mut(row as usize, cols.clone()) };
            add_row(&dy.row(i)[cols.clone()], into);
        }
    });
}

/// `y = x`, `[T, n]`.
pub fn copy(x: View<f32>, mut y: ViewMut<f32>) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
    let y = Shared::new(&mut y);
    parallel::rows(x.rows(), x.cols(), |range| {
        for t in range {
            // SAFETY: ranges of rows are disjoint.
            unsafe { y.whole_row(t) }.copy_from_slice(x.row(t));
        }
    });
}

/// `y += x`, `[T, n]`.
pub fn add_in_place(mut y: ViewMut<f32>, x: View<f32>) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
    let y = Shared::new(&mut y);
    parallel::rows(x.rows(), x.cols(), |range| {
        for t in range {
            // SAFETY: ranges of rows are disjoint.
            add_row(x.row(t), unsafe { y.whole_row(t) });
        }
    });
}

/// `y = value` everywhere.
pub fn fill(mut y: ViewMut<f32>, value: f32) {
    let (rows, cols) = (y.rows(), y.cols());
    if y.ld() == cols {
        // One row: whole pieces are set at once, zeros by `memset`, which need not read what it overwrites.
        let y = Shared::slice(y.data_mut());
        parallel::rows(rows * cols, 1, |range| {
            // SAFETY: the ranges are disjoint.
            let piece = unsafe { y.range_mut(range) };
            if value.to_bits() == 0 {
                piece.fill(0.0);
            } else {
                piece.fill(value);
            }
        });
        return;
    }
    let y = Shared::new(&mut y);
    parallel::rows(rows, cols, |range| {
        for t in range {
            // SAFETY: ranges of rows are disjoint.
            unsafe { y.whole_row(t) }.fill(value);
        }
    });
}
