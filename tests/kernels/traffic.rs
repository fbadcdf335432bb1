//! Launches on the emulator with no checks but its counters: bank conflicts and sectors as numbers.

use ptxsim::{Checks, Counters, Machine, Options};
use secateur::cuda::{Cache, Nvrtc, Target};
use secateur::launch::kernels::MODULES;
use secateur::launch::{Argument, Launch};

/// An emulated device that counts.
pub struct Traffic(Machine);

impl Traffic {
    pub fn new() -> Traffic {
        let checks = Checks { traffic: true, ..Checks::none() };
        Traffic(Machine::new(Options { checks, ..Options::default() }))
    }

    /// Address of zeroed memory.
    pub fn zeros(&mut self, bytes: usize) -> u64 {
        let address = self.0.allocate(bytes, "operand");
        self.0.fill(address, bytes, 0).expect("memory");
        address
    }

    /// Replaces integers.
    pub fn write(&mut self, address: u64, values: &[i32]) {
        self.0.write(address, bytemuck::cast_slice(values)).expect("memory");
    }

    /// Runs a launch and says what it did.
    pub fn launch(&mut self, launch: &Launch) -> Counters {
        let nvrtc = Nvrtc::get().unwrap_or_else(|error| panic!("{error}"));
        let source = &MODULES[launch.kernel().module];
        let (text, _) = Cache::of_user().compile(nvrtc, source, Target::Ptx(80)).expect("PTX");
        let text = String::from_utf8_lossy(&text);
        let module = ptxsim::Module::parse(text.trim_end_matches('\0')).expect("PTX that parses");
        let arguments: Vec<_> = launch
            .arguments()
            .iter()
            .map(|argument| match *argument {
                Argument::U32(value) => ptxsim::Argument::U32(value),
                Argument::U64(value) => ptxsim::Argument::U64(value),
                Argument::F32(value) => ptxsim::Argument::F32(value),
                Argument::F64(value) => ptxsim::Argument::F64(value),
            })
            .collect();
        let (grid, name) = (launch.grid(), launch.kernel().name);
        let report = self.0.launch(&module, name, grid.blocks, grid.threads, grid.shared, &arguments);
        report.unwrap_or_else(|error| panic!("{error}")).counters
    }
}
