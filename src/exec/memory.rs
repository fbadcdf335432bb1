//! Zeroed, aligned, never reallocated buffers.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::ops::Elem;

/// Start of every buffer, in bytes: a page, so that large ones can use huge pages.
const ALIGNMENT: usize = 4096;

/// A fixed number of zeroed elements. Fresh memory is dear on virtual machines (first touch costs several times a
/// warm write), so buffers are allocated once and reused.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    pointer: NonNull<T>,
    len: usize,
}

// SAFETY: a Buffer owns its elements like a boxed slice does.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: shared access gives only shared references (and raw pointers, whose use has its own reasons).
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl<T: Elem> Buffer<T> {
    pub(super) fn new(len: usize) -> Buffer<T> {
        if len == 0 {
            return Buffer { pointer: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a non-zero size.
        let pointer = unsafe { alloc_zeroed(layout) }.cast::<T>();
        let Some(pointer) = NonNull::new(pointer) else { handle_alloc_error(layout) };
        Buffer { pointer, len }
    }

    fn layout(len: usize) -> Layout {
        match Layout::array::<T>(len).and_then(|l| l.align_to(ALIGNMENT)) {
            Ok(layout) => layout,
            Err(_) => panic!("a buffer of {len} elements exceeds the address space"),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: pointer and length are those of the allocation (or dangling and zero), and zeroed floats are valid.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }

    pub(super) fn pointer(&self) -> *mut T {
        self.pointer.as_ptr()
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.len > 0
            && let Ok(layout) = Layout::array::<T>(self.len).and_then(|l| l.align_to(ALIGNMENT))
        {
            // SAFETY: allocated in `new` with this very layout.
            unsafe { dealloc(self.pointer.as_ptr().cast(), layout) };
        }
    }
}
