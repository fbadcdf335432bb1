//! Per-thread buffers that live as long as the thread, so that a steady-state step allocates nothing.

use std::cell::Cell;

thread_local! {
    static BUFFER: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `body` with `len` elements of this thread's buffer; their content is whatever was left there.
///
/// A nested call on the same thread (work stealing can cause one) gets a buffer of its own.
pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = BUFFER.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = body(&mut buffer[..len]);
    BUFFER.set(buffer);
    result
}
