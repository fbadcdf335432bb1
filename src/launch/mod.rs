//! Kernel launches as data: which kernel, over which grid, with which operands.
//!
//! An operation's `cuda.rs` turns operands into launches and pushes them to a [`Queue`]; the queue hands them to
//! whatever runs kernels ([`Device`]: a GPU or the emulator), which know nothing of operations. Launches are made by
//! the typed functions of [`kernels`] alone, which `build.rs` writes from the signatures in `kernels/*.cu`: an argument
//! of the wrong type, or one too few, does not compile.

mod device;
mod operand;
mod queue;
#[cfg(test)]
mod signature;

pub use device::{Device, Recording};
pub use operand::{
    Bf16, DeviceLimits, DropoutOperand, ElementType, F16, Factor, FactorType, Matrix, Pointer, Precision,
    int, or_null,
};
pub use queue::{Argument, Grid, Kernel, Launch, Module, Queue, Step};

/// The launch functions, one module a file of `kernels/`, and the sources themselves.
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
