//! Parallel loops whose results do not depend on the number of threads.
//!
//! Work is cut by shape alone, never by thread count, each output element is written by one piece of work,
//! and no floating-point reduction crosses pieces here.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::ViewMut;

/// Elements of a piece of work.
const GRAIN: usize = 16 * 1024;

/// Elements touched below which another thread costs more than it saves: some 20 µs of work, about what waking one takes.
const ALONE: usize = 2 * GRAIN;

/// Calls `body` with consecutive ranges that cover `0..rows`, in parallel; `cost` is elements a row.
pub(crate) fn rows(rows: usize, cost: usize, body: impl Fn(Range<usize>) + Sync) {
    let step = (GRAIN / cost.max(1)).max(1);
    if rows.saturating_mul(cost) <= ALONE {
        if rows > 0 {
            body(0..rows);
        }
        return;
    }
    (0..rows.div_ceil(step)).into_par_iter().for_each(|i| body(i * step..((i + 1) * step).min(rows)));
}

/// Calls `body` with consecutive blocks of columns (whole cache lines) that cover `0..cols`, in parallel;
/// `cost` is elements a column.
pub(crate) fn columns(cols: usize, cost: usize, body: impl Fn(Range<usize>) + Sync) {
    let step = (GRAIN / cost.max(1)).max(64).next_multiple_of(64);
    if cols <= step || cols.saturating_mul(cost) <= ALONE {
        if cols > 0 {
            body(0..cols);
        }
        return;
    }
    (0..cols.div_ceil(step)).into_par_iter().for_each(|i| body(i * step..((i + 1) * step).min(cols)));
}

/// Calls `body` once with each of `0..count`, in parallel, starting them in this order.
///
/// For pieces of unequal size, longest first: each thread takes the next piece when it is free, where
/// splitting the range in halves would hand all long pieces to one thread.
pub(crate) fn items(count: usize, body: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let drain = || {
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= count {
                return;
            }
            body(item);
        }
    };
    let threads = rayon::current_num_threads().min(count);
    if threads <= 1 {
        drain();
    } else {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| drain());
    }
}

/// A matrix that several pieces of work write, each its own elements.
pub(crate) struct Shared<'a, T> {
    data: *mut T,
    rows: usize,
    cols: usize,
    ld: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `row_mut`, whose caller promises disjoint elements.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as for `&mut [T]`.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `view` for as long as it stays borrowed.
    pub(crate) fn new(view: &'a mut ViewMut<'_, T>) -> Shared<'a, T> {
        let (rows, cols, ld) = (view.rows(), view.cols(), view.ld());
        Shared { data: view.as_mut_ptr(), rows, cols, ld, borrow: PhantomData }
    }

    /// Shares a slice as a matrix of one column.
    pub(crate) fn slice(data: &'a mut [T]) -> Shared<'a, T> {
        Shared { data: data.as_mut_ptr(), rows: data.len(), cols: 1, ld: 1, borrow: PhantomData }
    }

    /// Columns `cols` of row `row`.
    ///
    /// # Safety
    /// No two pieces of work may hold the same element at the same time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row_mut(&self, row: usize, cols: Range<usize>) -> &mut [T] {
        assert!(row < self.rows && cols.start <= cols.end && cols.end <= self.cols);
        // SAFETY: inside the view by the assertion; unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.ld + cols.start), cols.len()) }
    }

    /// The whole of row `row`.
    ///
    /// # Safety
    /// As for [`Shared::row_mut`].
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn whole_row(&self, row: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.row_mut(row, 0..self.cols) }
    }

    /// Elements `range` of a matrix that is one slice.
    ///
    /// # Safety
    /// As for [`Shared::row_mut`].
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(self.cols == 1 && self.ld == 1 && range.start <= range.end && range.end <= self.rows);
        // SAFETY: inside the slice by the assertion; unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}
