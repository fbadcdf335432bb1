//! The emulated device: memory, and launches on it.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use serde::Serialize;

use crate::block::{Block, BlockReport, Launch, Order};
use crate::checks::LaunchShadow;
use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::findings::{Finding, FindingKind};
use crate::instruction::Op;
use crate::memory::GlobalMemory;
use crate::module::{Kernel, Module};
use crate::shadow::outputs::Expected;
use crate::traffic::Traffic;
use crate::types::Type;

/// Which checks run. Bounds and alignment are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Reads of bytes and registers that were never written.
    pub uninitialised: bool,
    /// Races in shared memory and use of memory under a pending `cp.async`.
    pub shared_races: bool,
    /// Races in global memory, within and between blocks; blocks then run one after another.
    pub global_races: bool,
    /// Bank conflicts and sectors.
    pub traffic: bool,
}

impl Checks {
    /// Everything.
    pub fn all() -> Checks {
        Checks { uninitialised: true, shared_races: true, global_races: true, traffic: true }
    }

    /// Only what costs nothing: bounds, alignment, barriers.
    pub fn none() -> Checks {
        Checks { uninitialised: false, shared_races: false, global_races: false, traffic: false }
    }
}

/// How a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Decides the order of warps, and of blocks where they run one after another.
    pub seed: u64,
    /// Checks.
    pub checks: Checks,
    /// Warp instructions that one block may execute before the launch fails.
    pub instruction_limit: u64,
    /// What approximate instructions return.
    pub approximations: Approximations,
}

/// What the approximate instructions of f32 return: `ex2`, `lg2`, `rsqrt`, `tanh`, `sin`, `cos`, and the `.approx` and
/// `.full` forms of `rcp`, `sqrt` and `div`. A property that holds for both ends of their documented errors does not
/// depend on how well a GPU computes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Approximations {
    /// The exact value, rounded once.
    #[default]
    Rounded,
    /// The least result that the ISA's bound allows.
    Least,
    /// The greatest.
    Greatest,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            checks: Checks::all(),
            instruction_limit: 1 << 32,
            approximations: Approximations::Rounded,
        }
    }
}

/// A kernel argument; it must have the size of its parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// 32-bit integer.
    U32(u32),
    /// 64-bit integer or pointer.
    U64(u64),
    /// Single.
    F32(f32),
    /// Double.
    F64(f64),
}

/// What a launch reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Counts.
    pub counters: Counters,
    /// Findings by place; empty means none of the checks fired.
    pub findings: Vec<Finding>,
}

/// An emulated device.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    memory: GlobalMemory,
    // Addresses of module variables by module.
    modules: HashMap<u64, Vec<u64>>,
    // Outputs that the next launch must write.
    expected: Vec<Expected>,
}

impl Machine {
    /// A device without allocations.
    pub fn new(options: Options) -> Machine {
        Machine { options, memory: GlobalMemory::default(), modules: HashMap::new(), expected: Vec::new() }
    }

    /// Changes the checks of later launches.
    pub fn set_checks(&mut self, checks: Checks) {
        self.options.checks = checks;
    }

    /// Allocates device memory, aligned to any power of two, with undefined content. `name` appears in findings.
    pub fn allocate(&mut self, bytes: usize, name: &str) -> u64 {
        self.memory.allocate(bytes as u64, name)
    }

    /// Frees an allocation; later accesses to it are findings.
    ///
    /// # Errors
    /// [`Error::Memory`] if `address` is not the start of a live allocation.
    pub fn free(&mut self, address: u64) -> Result<()> {
        self.memory.free(address)
    }

    /// Copies to the device.
    ///
    /// # Errors
    /// [`Error::Memory`] outside the allocations.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<()> {
        self.memory.write(address, data)
    }

    /// Copies from the device.
    ///
    /// # Errors
    /// [`Error::Memory`] outside the allocations.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        self.memory.read(address, bytes)
    }

    /// Sets bytes of the device.
    ///
    /// # Errors
    /// [`Error::Memory`] outside the allocations.
    pub fn fill(&mut self, address: u64, bytes: usize, value: u8) -> Result<()> {
        self.memory.fill(address, bytes, value, false)
    }

    /// Makes bytes count as never written, and their content NaN-like.
    ///
    /// # Errors
    /// [`Error::Memory`] outside the allocations.
    pub fn poison(&mut self, address: u64, bytes: usize) -> Result<()> {
        self.memory.fill(address, bytes, 0xff, true)
    }

    /// Which bytes hold a defined value.
    ///
    /// # Errors
    /// [`Error::Memory`] outside the allocations.
    pub fn written(&self, address: u64, bytes: usize) -> Result<Vec<bool>> {
        self.memory.written(address, bytes)
    }

    /// Declares an output of the next launch: every element of a row-major matrix must be written exactly once, and
    /// nothing between its columns and its leading dimension. `ld` is in elements, and at least `columns`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the matrix does not lie in one allocation.
    pub fn expect_written(
        &mut self,
        address: u64,
        rows: usize,
        columns: usize,
        ld: usize,
        element_bytes: usize,
    ) -> Result<()> {
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let bytes = ((rows - 1) * ld + columns) * element_bytes;
        if ld < columns || element_bytes == 0 {
            let message = format!("leading dimension {ld} for {columns} columns of {element_bytes} bytes");
            return Err(Error::Memory { address, bytes, message });
        }
        self.memory.check(address, bytes)?;
        let n = |v: usize| v as u64;
        self.expected.push(Expected::new(address, n(rows), n(columns), n(ld), n(element_bytes)));
        Ok(())
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::NoKernel`], [`Error::Launch`] when the shapes or arguments do not fit, [`Error::Limit`] when it runs too
    /// long. Faults of the kernel are findings of the report, not errors.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        arguments: &[Argument],
    ) -> Result<Report> {
        let kernel = module.kernel(kernel)?;
        check_shape(kernel, grid, block, dynamic_shared)?;
        let parameters = parameter_block(kernel, arguments)?;
        let variables = self.place_variables(module)?;
        let expected = std::mem::take(&mut self.expected);
        let launch = Launch {
            module,
            kernel,
            memory: &self.memory,
            constants: Launch::constants(kernel, &variables, &parameters),
            grid,
            threads: block,
            dynamic_shared,
            options: self.options,
        };
        let mut list: Vec<u64> = (0..grid.iter().map(|&n| u64::from(n)).product()).collect();
        let run = |linear: u64, shadow| {
            let order = Order::new(self.options.seed ^ linear.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            Block::new(&launch, launch.block(linear), shadow).run(order)
        };
        let serial = kernel.global_atomics || self.options.checks.global_races || !expected.is_empty();
        let total = if serial {
            Order::new(self.options.seed).shuffle(&mut list);
            let mut total = Total::new(kernel);
            let mut shadow = Some(Box::new(LaunchShadow { expected, ..LaunchShadow::default() }));
            for linear in list {
                let (report, back) = run(linear, shadow);
                total.add(report);
                shadow = back;
            }
            let expected = shadow.map(|s| s.expected).unwrap_or_default();
            total.missing = expected.iter().filter_map(|e| not_written(kernel, &self.memory, e)).collect();
            total
        } else {
            // Counts add up in any order, and a finding shown is the one of the lowest block.
            list.into_par_iter()
                .map(|linear| run(linear, None).0)
                .fold(
                    || Total::new(kernel),
                    |mut total, report| {
                        total.add(report);
                        total
                    },
                )
                .reduce(
                    || Total::new(kernel),
                    |mut a, b| {
                        a.merge(b);
                        a
                    },
                )
        };
        if let Some((block, pc)) = total.limit_at {
            let instruction = &kernel.code[pc as usize];
            return Err(Error::Limit {
                kernel: kernel.name.clone(),
                limit: self.options.instruction_limit,
                block,
                location: module.describe(instruction.location, instruction.line),
            });
        }
        Ok(total.report(module, kernel))
    }

    fn place_variables(&mut self, module: &Module) -> Result<Vec<u64>> {
        if let Some(known) = self.modules.get(&module.id) {
            return Ok(known.clone());
        }
        let mut addresses = Vec::with_capacity(module.variables.len());
        for variable in &module.variables {
            let address = self.memory.allocate(variable.bytes.into(), &variable.name);
            self.memory.fill(address, variable.bytes as usize, 0, false)?;
            self.memory.write(address, &variable.initial)?;
            addresses.push(address);
        }
        self.modules.insert(module.id, addresses.clone());
        Ok(addresses)
    }
}

// An output that the launch left incomplete; it has no instruction to point at.
fn not_written(kernel: &Kernel, memory: &GlobalMemory, expected: &Expected) -> Option<Finding> {
    let (count, (row, column)) = expected.missing()?;
    let what = memory.describe(expected.address + (row * expected.ld + column) * expected.element_bytes);
    let first = &kernel.code[0];
    Some(Finding {
        kind: FindingKind::NotWritten,
        file: String::new(),
        line: 0,
        inlined_at: None,
        ptx_line: first.line,
        kernel: kernel.name.clone(),
        block: [0; 3],
        thread: [0; 3],
        message: format!(
            "{count} of {} elements of an output are not written; the first is ({row}, {column}), {what}",
            expected.rows * expected.columns
        ),
        count,
    })
}

fn launch_error<T>(kernel: &Kernel, message: String) -> Result<T> {
    Err(Error::Launch { kernel: kernel.name.clone(), message })
}

fn check_shape(kernel: &Kernel, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32) -> Result<()> {
    if grid.contains(&0) || block.contains(&0) {
        return launch_error(kernel, format!("an empty grid {grid:?} or block {block:?}"));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return launch_error(kernel, format!("grid {grid:?} is larger than a device allows"));
    }
    let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
    if threads > 1024 || block[2] > 64 {
        return launch_error(kernel, format!("block {block:?} has more than 1024 threads, or 64 in z"));
    }
    if let Some(limit) = kernel.max_threads
        && threads > limit.iter().map(|&n| u64::from(n)).product()
    {
        return launch_error(kernel, format!("block {block:?} exceeds `.maxntid` {limit:?}"));
    }
    if let Some(required) = kernel.required_threads
        && required != block
    {
        return launch_error(kernel, format!("block {block:?} is not `.reqntid` {required:?}"));
    }
    let shared = u64::from(kernel.shared_bytes) + u64::from(dynamic_shared);
    // The largest of any device to date is 227 KiB a block.
    if shared > 227 << 10 {
        return launch_error(kernel, format!("{shared} bytes of shared memory"));
    }
    Ok(())
}

fn parameter_block(kernel: &Kernel, arguments: &[Argument]) -> Result<Vec<u8>> {
    if arguments.len() != kernel.parameters.len() {
        return launch_error(
            kernel,
            format!("{} arguments for {} parameters", arguments.len(), kernel.parameters.len()),
        );
    }
    let mut block = vec![0; kernel.parameter_bytes as usize];
    for (i, (argument, parameter)) in arguments.iter().zip(&kernel.parameters).enumerate() {
        let raw = match *argument {
            Argument::U32(v) => v.to_le_bytes().to_vec(),
            Argument::F32(v) => v.to_le_bytes().to_vec(),
            Argument::U64(v) => v.to_le_bytes().to_vec(),
            Argument::F64(v) => v.to_le_bytes().to_vec(),
        };
        let mismatch = matches!(
            (argument, parameter.ty),
            (Argument::U32(_) | Argument::U64(_), Type::F32 | Type::F64)
                | (Argument::F32(_) | Argument::F64(_), Type::U32 | Type::S32 | Type::U64 | Type::S64)
        );
        if raw.len() != parameter.bytes as usize || mismatch {
            return launch_error(
                kernel,
                format!("argument {i} is {argument:?}, the parameter is {:?}", parameter.ty),
            );
        }
        block[parameter.offset as usize..][..raw.len()].copy_from_slice(&raw);
    }
    Ok(block)
}

// Sum over the blocks of a launch.
struct Total {
    executed: Vec<[u64; 2]>,
    findings: BTreeMap<(u32, FindingKind), Finding>,
    traffic: Traffic,
    missing: Vec<Finding>,
    limit_at: Option<([u32; 3], u32)>,
}

impl Total {
    fn new(kernel: &Kernel) -> Total {
        Total {
            executed: vec![[0; 2]; kernel.code.len()],
            findings: BTreeMap::new(),
            traffic: Traffic::default(),
            missing: Vec::new(),
            limit_at: None,
        }
    }

    fn add(&mut self, report: BlockReport) {
        let findings = report.findings.into_iter().map(|((kind, pc), f)| ((pc, kind), f)).collect();
        self.merge(Total {
            executed: report.executed,
            findings,
            traffic: report.traffic,
            missing: Vec::new(),
            limit_at: report.limit_at.map(|pc| (report.index, pc)),
        });
    }

    fn merge(&mut self, other: Total) {
        for (a, b) in self.executed.iter_mut().zip(other.executed) {
            a[0] += b[0];
            a[1] += b[1];
        }
        self.traffic.add(&other.traffic);
        self.missing.extend(other.missing);
        let place = |f: &Finding| [f.block[2], f.block[1], f.block[0]];
        for (key, finding) in other.findings {
            match self.findings.get_mut(&key) {
                None => {
                    self.findings.insert(key, finding);
                }
                Some(known) => {
                    let count = known.count + finding.count;
                    if place(&finding) < place(known) {
                        *known = finding;
                    }
                    known.count = count;
                }
            }
        }
        self.limit_at = match (self.limit_at, other.limit_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn report(self, module: &Module, kernel: &Kernel) -> Report {
        let mut counters = Counters {
            bank_conflict_replays: self.traffic.replays,
            shared_accesses: self.traffic.shared_accesses,
            sectors: self.traffic.sectors,
            minimum_sectors: self.traffic.minimum_sectors,
            global_bytes: self.traffic.bytes,
            ..Counters::default()
        };
        for (instruction, [warps, lanes]) in kernel.code.iter().zip(self.executed) {
            counters.warp_instructions += warps;
            counters.lane_instructions += lanes;
            if warps > 0 {
                *counters
                    .by_opcode
                    .entry(module.opcodes[instruction.opcode as usize].clone())
                    .or_default() += warps;
            }
            if matches!(instruction.op, Op::Mma { .. }) {
                counters.mma += warps;
            }
        }
        let findings = self.findings.into_values().chain(self.missing).collect();
        Report { counters, findings }
    }
}
