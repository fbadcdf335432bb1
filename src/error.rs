//! The library's one error type.
//!
//! Every failure a user can cause is a variant or a message here that says what went wrong, where
//! (file, line, tensor, operation) and what to do about it. The command line prints the `Display` text
//! as is and exits with [`Error::exit_code`].

use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {action} failed: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done, as a noun: "reading", "writing", "renaming".
        action: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file was read but its content is not what it must be.
    #[error("{}: {message}", path.display())]
    Format {
        /// The offending file.
        path: PathBuf,
        /// What is wrong, where in the file, and what was expected.
        message: String,
    },
    /// Tensors, masks or batches whose shapes contradict each other.
    #[error("{what}: {message}")]
    Shape {
        /// The tensor or operation.
        what: String,
        /// Expected and found shapes.
        message: String,
    },
    /// An argument or a combination of arguments that cannot work.
    #[error("{0}")]
    Usage(String),
    /// A budget no mask of this method can reach; carries the range that it can.
    #[error(
        "--keep-flops {asked} cannot be reached by {method}: {reason}; \
         feasible here: {minimum:.4} to 1 (or use --on-infeasible shift where the method offers it)"
    )]
    Infeasible {
        /// The method that was asked.
        method: String,
        /// Fraction of FLOPs asked for.
        asked: f64,
        /// Smallest fraction the method can reach on this model and task.
        minimum: f64,
        /// Which part runs out first.
        reason: String,
    },
    /// NaN or infinity where a finite number is required.
    #[error("{what} is not finite ({value}) {place}")]
    NotFinite {
        /// Loss, score, weight, …
        what: String,
        /// The value found.
        value: f64,
        /// Step, layer, tensor.
        place: String,
    },
    /// A compute device that cannot be used here; says what is missing and what to do.
    #[error("{0}")]
    NoDevice(String),
    /// A device, its driver or a kernel failed.
    #[error("{device}: {message}")]
    Device {
        /// Which device.
        device: String,
        /// What failed: kernel and source line where known.
        message: String,
    },
    /// A plan that does not fit the device's memory, found before anything is allocated.
    #[error(
        "{program} needs {} MiB on {device}, but {} MiB are free{}",
        needed.div_ceil(1 << 20), free >> 20,
        fitting.map_or(String::new(), |tokens| format!("; batches of {tokens} tokens would fit"))
    )]
    OutOfMemory {
        /// The program that was to be prepared.
        program: String,
        /// The device.
        device: String,
        /// Bytes it needs beyond what is allocated already.
        needed: usize,
        /// Bytes that are free.
        free: usize,
        /// Largest token budget whose plan would fit, if any does.
        fitting: Option<usize>,
    },
    /// The user asked the process to stop (Ctrl-C, SIGTERM); what was saved is named.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    /// Wraps an I/O error with its path.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, action, source }
    }

    /// A content error of `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Error {
        Error::Format { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// A shape error of `what`.
    pub fn shape(what: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Shape { what: what.into(), message: message.into() }
    }

    /// A usage error.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::Usage(message.into())
    }

    /// A failure of a device.
    pub fn device(device: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Device { device: device.into(), message: message.into() }
    }

    /// Exit status of the process: 2 for usage errors, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Infeasible { .. } => 2,
            _ => 1,
        }
    }
}
