//! Faults of a kernel: what, where in its source, and which thread.

use std::fmt;

use serde::Serialize;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Access outside its allocation, its block's shared memory or its thread's local memory.
    OutOfBounds,
    /// Address not a multiple of the access's size.
    Misaligned,
    /// A value that was never written decides a branch, forms an address, or reaches global memory.
    Uninitialised,
    /// Two warps touch the same shared memory without a barrier between, one of them writing.
    SharedRace,
    /// The same for global memory, within a block or between blocks.
    GlobalRace,
    /// Threads of a warp reach a barrier or a warp-wide operation apart from each other.
    BarrierDivergence,
    /// Every thread that is left waits for a thread that never comes.
    Deadlock,
    /// Shared memory is touched while an asynchronous copy into it is pending.
    MissingCopyWait,
    /// An element of a declared output is never written.
    NotWritten,
    /// An element of a declared output is written more than once.
    WrittenTwice,
    /// A write between the columns of a declared output and its leading dimension.
    PaddingWritten,
    /// The kernel executed `trap`.
    Trap,
}

impl FindingKind {
    /// Short name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::OutOfBounds => "out-of-bounds",
            FindingKind::Misaligned => "misaligned",
            FindingKind::Uninitialised => "uninitialised",
            FindingKind::SharedRace => "shared-race",
            FindingKind::GlobalRace => "global-race",
            FindingKind::BarrierDivergence => "barrier-divergence",
            FindingKind::Deadlock => "deadlock",
            FindingKind::MissingCopyWait => "missing-copy-wait",
            FindingKind::NotWritten => "not-written",
            FindingKind::WrittenTwice => "written-twice",
            FindingKind::PaddingWritten => "padding-written",
            FindingKind::Trap => "trap",
        }
    }
}

/// One fault; repeats of the same kind at the same instruction are counted, the first is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// Source file, empty when the PTX has no line information.
    pub file: String,
    /// Source line, 0 when unknown.
    pub line: u32,
    /// `file:line` of the call that this line was inlined into.
    pub inlined_at: Option<String>,
    /// Line in the PTX text, 0 when the fault has no instruction.
    pub ptx_line: u32,
    /// Kernel.
    pub kernel: String,
    /// Block of the first occurrence.
    pub block: [u32; 3],
    /// Thread of the first occurrence.
    pub thread: [u32; 3],
    /// Details of the first occurrence.
    pub message: String,
    /// Occurrences, one per thread and execution.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}", self.file, self.line)?;
        } else {
            write!(f, "PTX line {}", self.ptx_line)?;
        }
        if let Some(call) = &self.inlined_at {
            write!(f, " (inlined at {call})")?;
        }
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(
            f,
            ": {} in `{}`, block ({bx},{by},{bz}), thread ({tx},{ty},{tz}): {}",
            self.kind.name(),
            self.kernel,
            self.message
        )?;
        if self.count > 1 { write!(f, " [{} times]", self.count) } else { Ok(()) }
    }
}
