//! Per-thread buffers that live as long as the thread, so that a steady-state step allocates nothing.

use std::cell::Cell;
use std::thread::LocalKey;

/// Buffers that are not in use. A nested call on the same thread (an operation that runs on a worker of the pool shares it
/// with its own pieces of work) takes another one, and each call of a repeated nest finds the buffer it had before.
type Spare<T> = Cell<Vec<Vec<T>>>;

thread_local! {
    static FLOATS: Spare<f32> = const { Cell::new(Vec::new()) };
    static DOUBLES: Spare<f64> = const { Cell::new(Vec::new()) };
    static PIECES: Spare<(u32, u32)> = const { Cell::new(Vec::new()) };
    static INDICES: Spare<u32> = const { Cell::new(Vec::new()) };
}

/// Takes a buffer for the time of `body`.
fn lend<T, R>(cell: &'static LocalKey<Spare<T>>, body: impl FnOnce(&mut Vec<T>) -> R) -> R {
    let mut spare = cell.take();
    let mut buffer = spare.pop().unwrap_or_default();
    cell.set(spare);
    let result = body(&mut buffer);
    let mut spare = cell.take();
    spare.push(buffer);
    cell.set(spare);
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

/// Calls `body` with an empty list of this thread's, to fill with indices.
pub(crate) fn with_indices<R>(body: impl FnOnce(&mut Vec<u32>) -> R) -> R {
    lend(&INDICES, |list| {
        list.clear();
        body(list)
    })
}
