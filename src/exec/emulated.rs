//! The device that is not there: kernels compiled by NVRTC to PTX and run by `ptxsim`, every access checked.
//!
//! Slow, and worth it: the same sources, launches and plans as on a GPU, where reading what was not written, leaving a
//! range, or racing over shared memory is an error that names kernel, file and line.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use ptxsim::Approximations;
use ptxsim::{Checks, Machine, Options};

use crate::cuda::{Cache, Nvrtc, Target};
use crate::error::{Error, Result};
use crate::launch::kernels::MODULES;
use crate::launch::{Argument, Device, DeviceLimits, Launch, Step};

/// Architecture the emulator runs.
const TARGET: Target = Target::Ptx(80);

/// A small device of compute capability 8.0: few multiprocessors, so that kernels that size their grid by them are
/// exercised on small problems too. It has the shared memory of 9.0, for the largest tiles of products.
const LIMITS: DeviceLimits = DeviceLimits { multiprocessors: 4, shared_bytes: 227 << 10, capability: (8, 0) };

/// An emulated device.
pub struct Emulated {
    name: String,
    machine: Machine,
}

impl Emulated {
    /// A device with all checks on. `seed` decides the order in which warps run.
    pub fn new(seed: u64) -> Result<Emulated> {
        Emulated::with(seed, Approximations::Rounded)
    }

    /// The same, with approximate instructions at an end of their documented errors.
    pub fn with(seed: u64, approximations: Approximations) -> Result<Emulated> {
        // Asked for now, so that its absence is found before anything is emitted.
        Nvrtc::get()?;
        let machine =
            Machine::new(Options { seed, checks: Checks::all(), approximations, ..Options::default() });
        Ok(Emulated { name: format!("emulated ({})", TARGET.name()), machine })
    }

    fn failed(&self, error: ptxsim::Error) -> Error {
        Error::device(&self.name, error.to_string())
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let kernel = launch.kernel();
        let module = module(kernel.module)?;
        let arguments: Vec<ptxsim::Argument> = launch
            .arguments()
            .iter()
            .map(|argument| match *argument {
                Argument::U32(value) => ptxsim::Argument::U32(value),
                Argument::U64(value) => ptxsim::Argument::U64(value),
                Argument::F32(value) => ptxsim::Argument::F32(value),
                Argument::F64(value) => ptxsim::Argument::F64(value),
            })
            .collect();
        let grid = launch.grid();
        let report = self
            .machine
            .launch(&module, kernel.name, grid.blocks, grid.threads, grid.shared, &arguments)
            .map_err(|error| Error::device(&self.name, error.to_string()))?;
        let Some(first) = report.findings.first() else { return Ok(()) };
        let more = match report.findings.len() {
            1 => String::new(),
            count => format!(" (and {} more findings)", count - 1),
        };
        let names = kernel.parameters.iter().zip(launch.arguments());
        let shown: Vec<String> = names.map(|(name, value)| format!("{name} = {value:x?}")).collect();
        Err(Error::device(
            &self.name,
            format!("{}: {first}{more}; {grid:?}, {}", kernel.name, shown.join(", ")),
        ))
    }
}

/// The PTX of a source, compiled and parsed once a process.
fn module(index: usize) -> Result<Arc<ptxsim::Module>> {
    static PARSED: OnceLock<Mutex<Vec<Option<Arc<ptxsim::Module>>>>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| Mutex::new(vec![None; MODULES.len()]));
    let mut parsed = parsed.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = &parsed[index] {
        return Ok(module.clone());
    }
    let source = &MODULES[index];
    let (text, _) = Cache::of_user().compile(Nvrtc::get()?, source, TARGET)?;
    let text = String::from_utf8_lossy(&text);
    let module = ptxsim::Module::parse(text.trim_end_matches('\0'))
        .map_err(|error| Error::device("emulated", format!("{}: {error}", source.file)))?;
    let module = Arc::new(module);
    parsed[index] = Some(module.clone());
    Ok(module)
}

impl Device for Emulated {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_hardware(&self) -> bool {
        false
    }

    fn limits(&self) -> DeviceLimits {
        LIMITS
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn load(&mut self, modules: &[usize]) -> Result<()> {
        modules.iter().try_for_each(|&index| module(index).map(|_| ()))
    }

    fn allocate(&mut self, bytes: usize, label: &str) -> Result<u64> {
        Ok(self.machine.allocate(bytes, label))
    }

    fn free(&mut self, address: u64) -> Result<()> {
        self.machine.free(address).map_err(|error| Error::device(&self.name, error.to_string()))
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.machine.write(address, data).map_err(|error| Error::device(&self.name, error.to_string()))
    }

    fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let read = self.machine.read(address, data.len()).map_err(|error| self.failed(error))?;
        data.copy_from_slice(&read);
        Ok(())
    }

    fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.machine.fill(address, bytes, value).map_err(|error| Error::device(&self.name, error.to_string()))
    }

    fn poison(&mut self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.machine.poison(address, bytes).map_err(|error| Error::device(&self.name, error.to_string()))
    }

    fn run(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(launch)?,
                Step::FillZero { address, bytes } => self.fill(*address, 0, *bytes)?,
            }
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}
