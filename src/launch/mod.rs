//! Kernel launches as data: which kernel, over which grid, with which operands.
//!
//! An operation's `cuda.rs` turns operands into launches and pushes them to a [`Queue`]; the queue hands them to
//! whatever runs kernels, a GPU or the emulator, which know nothing of operations. Launches are made by the typed
//! functions of [`kernels`] alone, which `build.rs` writes from the signatures in `kernels/*.cu`: an argument of the
//! wrong type, or one too few, does not compile.

mod operand;
mod queue;

pub use operand::{Bf16, Device, DeviceLimits, DropoutOperand, ElementType, Matrix, Pointer};
pub use queue::{Argument, Grid, Kernel, Launch, Module, Queue};

/// The launch functions, one module a file of `kernels/`, and the sources themselves.
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
