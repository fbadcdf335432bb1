//! A parsed and decoded PTX module: what a launch needs, nothing of one launch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::decode;
use crate::error::{Error, Result};
use crate::instruction::{Constant, Instruction};
use crate::parser;
use crate::syntax::Location;
use crate::types::Type;

/// A module: kernels and module-level variables.
#[derive(Debug)]
pub struct Module {
    /// Distinguishes modules of one process, so that a machine places each module's variables once.
    pub(crate) id: u64,
    /// Names of source files by `.file` number, the last path component only.
    pub(crate) files: HashMap<u32, String>,
    /// Opcodes as spelled; instructions index it.
    pub(crate) opcodes: Vec<String>,
    /// Module variables in device memory (global and constant space).
    pub(crate) variables: Vec<DeviceVariable>,
    /// Kernels in order of appearance.
    pub(crate) kernels: Vec<Kernel>,
}

/// A variable that the machine allocates in device memory.
#[derive(Debug, Clone)]
pub(crate) struct DeviceVariable {
    pub name: String,
    pub bytes: u32,
    /// Zeros follow what is given; `.global` and `.const` start as zeros (PTX ISA §5.4.4).
    pub initial: Vec<u8>,
}

/// A kernel parameter.
#[derive(Debug, Clone)]
pub(crate) struct ParameterSlot {
    pub ty: Type,
    pub offset: u32,
    pub bytes: u32,
}

/// A decoded kernel.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) parameters: Vec<ParameterSlot>,
    pub(crate) parameter_bytes: u32,
    pub(crate) code: Vec<Instruction>,
    pub(crate) constants: Vec<Constant>,
    /// Registers of the word, long and predicate files.
    pub(crate) registers: [u32; 3],
    /// Special registers and the word register that holds each.
    pub(crate) specials: Vec<(Special, u32)>,
    /// Bytes of shared memory that the kernel declares; dynamic shared memory follows.
    pub(crate) shared_bytes: u32,
    /// Bytes of local memory per thread.
    pub(crate) local_bytes: u32,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    /// Atomics on global memory tie blocks together, so they run one after another.
    pub(crate) global_atomics: bool,
    /// Smallest element that an access to shared memory has: the granule of its race shadow.
    pub(crate) shared_granule: u32,
    /// The same for global memory.
    pub(crate) global_granule: u32,
}

/// Read-only registers of PTX ISA §10, filled when a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSharedSize,
    TotalSharedSize,
}

impl Module {
    /// Reads PTX text.
    ///
    /// # Errors
    /// [`Error::Syntax`] or [`Error::Unsupported`], both with the line: nothing is skipped.
    pub fn parse(text: &str) -> Result<Module> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let parsed = parser::parse(text)?;
        decode::module(&parsed, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Names of the kernels, in order of appearance.
    pub fn kernel_names(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.name.as_str())
    }

    /// Types of a kernel's parameters.
    ///
    /// # Errors
    /// [`Error::NoKernel`].
    pub fn parameter_types(&self, kernel: &str) -> Result<Vec<Type>> {
        Ok(self.kernel(kernel)?.parameters.iter().map(|p| p.ty).collect())
    }

    pub(crate) fn kernel(&self, name: &str) -> Result<&Kernel> {
        self.kernels.iter().find(|k| k.name == name).ok_or_else(|| Error::NoKernel {
            name: name.into(),
            known: self.kernel_names().collect::<Vec<_>>().join(", "),
        })
    }

    /// `file:line` of a place, or the PTX line when there is no `.loc`.
    pub(crate) fn describe(&self, location: Location, ptx_line: u32) -> String {
        match self.files.get(&location.file) {
            Some(file) if location.line > 0 => format!("{file}:{}", location.line),
            _ => format!("PTX line {ptx_line}"),
        }
    }
}

/// Where a named thing lives, as the decoder needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Symbol {
    /// Fixed address in shared or local memory.
    Fixed(u64),
    /// Module variable in device memory.
    Device(u32),
    /// Parameter: offset and size.
    Parameter { offset: u32, bytes: u32 },
}
