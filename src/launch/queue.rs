//! The list of launches of an operation, and the scratch memory they share.

use super::operand::{DeviceLimits, Pointer, Precision};

/// A CUDA source.
#[derive(Debug)]
pub struct Module {
    /// Its file name in `kernels/`.
    pub file: &'static str,
    /// Its text.
    pub source: &'static str,
    /// Its entry points, in order.
    pub kernels: &'static [Kernel],
}

/// An entry point.
#[derive(Debug)]
pub struct Kernel {
    /// Index of its source in [`kernels::MODULES`](super::kernels::MODULES).
    pub module: usize,
    /// Index within its source.
    pub index: usize,
    /// Its name.
    pub name: &'static str,
    /// Line of its signature.
    pub line: usize,
    /// Names of its parameters.
    pub parameters: &'static [&'static str],
}

/// A kernel's argument, passed by value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Argument {
    /// `int`, `unsigned`.
    U32(u32),
    /// A pointer, `unsigned long long`, `long long`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
}

impl<T> From<Pointer<T>> for Argument {
    fn from(pointer: Pointer<T>) -> Argument {
        Argument::U64(pointer.address)
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Argument {
        Argument::U32(value as u32)
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Argument {
        Argument::U32(value)
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Argument {
        Argument::U64(value)
    }
}

impl From<i64> for Argument {
    fn from(value: i64) -> Argument {
        Argument::U64(value as u64)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Argument {
        Argument::F32(value)
    }
}

impl From<f64> for Argument {
    fn from(value: f64) -> Argument {
        Argument::F64(value)
    }
}

/// Blocks, threads of a block, and dynamic shared memory of a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    /// Blocks in x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block in x, y, z.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Grid {
    /// `blocks` blocks in x of `threads` threads in x.
    pub fn linear(blocks: usize, threads: u32) -> Grid {
        Grid::new([blocks, 1, 1], threads)
    }

    /// Blocks in x, y, z of `threads` threads in x.
    pub fn new(blocks: [usize; 3], threads: u32) -> Grid {
        Grid { blocks: blocks.map(|n| super::int(n) as u32), threads: [threads, 1, 1], shared: 0 }
    }

    /// The grid with `bytes` of dynamic shared memory.
    pub fn with_shared(self, bytes: usize) -> Grid {
        Grid { shared: super::int(bytes) as u32, ..self }
    }
}

/// A kernel, its grid and its arguments. Only the generated functions of [`super::kernels`] make one.
#[derive(Clone, Debug)]
pub struct Launch {
    kernel: &'static Kernel,
    grid: Grid,
    arguments: Vec<Argument>,
}

impl Launch {
    pub(in crate::launch) fn new(kernel: &'static Kernel, grid: Grid, arguments: Vec<Argument>) -> Launch {
        debug_assert_eq!(kernel.parameters.len(), arguments.len());
        Launch { kernel, grid, arguments }
    }

    /// Which kernel.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Over which grid.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// With which arguments.
    pub fn arguments(&self) -> &[Argument] {
        &self.arguments
    }
}

/// One thing a device does, in order.
#[derive(Clone, Debug)]
pub enum Step {
    /// Runs a kernel.
    Launch(Launch),
    /// Writes zeros.
    FillZero {
        /// First byte.
        address: u64,
        /// How many.
        bytes: usize,
    },
}

/// What an operation's `cuda.rs` writes to: launches in order, and scratch memory for partial results.
///
/// Scratch is handed out anew to every operation. Its size is measured when a program is planned, by queueing every
/// operation at the planned capacity; hence the promise that operations must keep: a smaller batch asks for no more.
#[derive(Debug)]
pub struct Queue {
    limits: DeviceLimits,
    precision: Precision,
    steps: Vec<Step>,
    scratch: u64,
    scratch_len: usize,
    used: usize,
    peak: usize,
}

/// Scratch ranges start on multiples of this many bytes.
const SCRATCH_ALIGNMENT: usize = 256;

impl Queue {
    /// A queue whose operations share `scratch_len` bytes at `scratch`.
    pub fn new(limits: DeviceLimits, precision: Precision, scratch: u64, scratch_len: usize) -> Queue {
        Queue { limits, precision, steps: Vec::new(), scratch, scratch_len, used: 0, peak: 0 }
    }

    /// A queue that only measures scratch. Its launches must not be run.
    pub fn measuring(limits: DeviceLimits, precision: Precision) -> Queue {
        Queue::new(limits, precision, 1 << 40, usize::MAX)
    }

    /// What launches may count on.
    pub fn device(&self) -> DeviceLimits {
        self.limits
    }

    /// What products of f32 matrices are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Appends a launch. A grid without blocks or threads is a bug of the operation, which returns early when there is
    /// nothing to do.
    pub fn push(&mut self, launch: Launch) {
        let grid = launch.grid;
        assert!(
            grid.blocks.iter().chain(&grid.threads).all(|&n| n > 0),
            "{}: an empty grid {grid:?}",
            launch.kernel.name
        );
        self.steps.push(Step::Launch(launch));
    }

    /// Appends the writing of `bytes` zeros. Address and count are multiples of 4.
    pub fn fill_zero(&mut self, address: u64, bytes: usize) {
        assert!(address.is_multiple_of(4) && bytes.is_multiple_of(4), "zeros are written by the word");
        if bytes > 0 {
            self.steps.push(Step::FillZero { address, bytes });
        }
    }

    /// Uninitialised memory for `len` elements, until the end of the operation.
    pub fn scratch<T>(&mut self, len: usize) -> Pointer<T> {
        let start = self.used.next_multiple_of(SCRATCH_ALIGNMENT);
        let end = start + len * size_of::<T>();
        assert!(
            end <= self.scratch_len,
            "an operation asks for {end} bytes of scratch but {} were measured at the planned capacity",
            self.scratch_len
        );
        self.used = end;
        self.peak = self.peak.max(end);
        Pointer::new(self.scratch + start as u64)
    }

    /// How much scratch is handed out, for [`Queue::release_scratch`].
    pub fn scratch_mark(&self) -> usize {
        self.used
    }

    /// Takes back what was handed out since `mark`. Launches run in order, so those queued next may overwrite it.
    pub fn release_scratch(&mut self, mark: usize) {
        assert!(mark <= self.used, "a mark of another operation");
        self.used = mark;
    }

    /// Ends an operation: its scratch is free again. Launches run in order, so the next may overwrite it.
    pub fn end_operation(&mut self) {
        self.used = 0;
    }

    /// Most bytes of scratch an operation has asked for.
    pub fn scratch_peak(&self) -> usize {
        self.peak.next_multiple_of(SCRATCH_ALIGNMENT)
    }

    /// What was queued, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Forgets what was queued.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DeviceLimits =
        DeviceLimits { multiprocessors: 4, shared_bytes: 100 << 10, capability: (8, 0) };

    #[test]
    fn scratch_is_aligned_reused_by_the_next_operation_and_measured() {
        let mut queue = Queue::measuring(LIMITS, Precision::F32);
        let first = queue.scratch::<f32>(3);
        let second = queue.scratch::<u8>(300);
        assert_eq!(second.address - first.address, 256);
        queue.end_operation();
        assert_eq!(queue.scratch::<f64>(1).address, first.address);
        assert_eq!(queue.scratch_peak(), 768);
    }

    #[test]
    #[should_panic(expected = "bytes of scratch but 256 were measured")]
    fn more_scratch_than_measured_is_a_bug_that_shows() {
        Queue::new(LIMITS, Precision::F32, 4096, 256).scratch::<f32>(65);
    }
}
