//! What can go wrong apart from findings: a text that cannot be read, a launch that cannot be made.

use thiserror::Error;

/// A failure of the emulator or of its caller; faults of the *kernel* are [`crate::Finding`]s.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not PTX that this crate reads.
    #[error("PTX line {line}: {message}")]
    Syntax {
        /// Line in the PTX text, from 1.
        line: u32,
        /// What was expected and what stood there.
        message: String,
    },
    /// An instruction, or a form of one, outside the supported subset.
    #[error("PTX line {line}: unsupported instruction `{instruction}`: {message}")]
    Unsupported {
        /// Line in the PTX text, from 1.
        line: u32,
        /// The opcode as spelled.
        instruction: String,
        /// Which part is not supported.
        message: String,
    },
    /// The module holds no such kernel.
    #[error("no kernel `{name}` in the module (it has: {known})")]
    NoKernel {
        /// Name asked for.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// Grid, block, shared memory or arguments do not fit the kernel.
    #[error("launch of `{kernel}`: {message}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        message: String,
    },
    /// The host touched memory that is not allocated.
    #[error("host access of {bytes} bytes at {address:#x}: {message}")]
    Memory {
        /// First byte.
        address: u64,
        /// Length.
        bytes: usize,
        /// Why it is refused.
        message: String,
    },
    /// The kernel ran longer than `Options::instruction_limit` allows.
    #[error(
        "kernel `{kernel}` executed more than {limit} warp instructions in block {block:?}; last at {location}"
    )]
    Limit {
        /// The kernel.
        kernel: String,
        /// The limit.
        limit: u64,
        /// Block index.
        block: [u32; 3],
        /// Source line that was executing.
        location: String,
    },
}

/// Result with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;
