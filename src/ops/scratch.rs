//! Per-thread buffers that live as long as the thread, so that a steady-state step allocates nothing.

use std::cell::Cell;
use std::thread::LocalKey;

thread_local! {
    static FLOATS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static DOUBLES: Cell<Vec<f64>> = const { Cell::new(Vec::new()) };
    static PIECES: Cell<Vec<(u32, u32)>> = const { Cell::new(Vec::new()) };
}

/// Takes the buffer for the time of `body`. A nested call on the same thread (work stealing can cause one)
/// finds an empty buffer and makes its own.
fn lend<T, R>(cell: &'static LocalKey<Cell<Vec<T>>>, body: impl FnOnce(&mut Vec<T>) -> R) -> R {
    let mut buffer = cell.take();
    let result = body(&mut buffer);
    cell.set(buffer);
    result
}

/// Calls `body` with `len` f32 of this thread's; their content is whatever was left there.
pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    lend(&FLOATS, |buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        body(&mut buffer[..len])
    })
}

/// Calls `body` with `len` f64 of this thread's; their content is whatever was left there.
pub(crate) fn with_doubles<R>(len: usize, body: impl FnOnce(&mut [f64]) -> R) -> R {
    lend(&DOUBLES, |buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        body(&mut buffer[..len])
    })
}

/// Calls `body` with an empty list of this thread's, to fill with pieces of work.
pub(crate) fn with_pieces<R>(body: impl FnOnce(&mut Vec<(u32, u32)>) -> R) -> R {
    lend(&PIECES, |list| {
        list.clear();
        body(list)
    })
}
