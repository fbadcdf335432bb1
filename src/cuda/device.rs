//! A GPU as a [`Device`]: one context, one stream, memory in few large allocations, kernels from the cache.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::probe::{self, DeviceInfo, MINIMUM_CAPABILITY, Unavailable, describe};
use super::{Cache, Nvrtc, Target};
use crate::error::{Error, Result};
use crate::launch::kernels::MODULES;
use crate::launch::{Argument, Device, DeviceLimits, Launch, Recording, Step};

/// An NVIDIA GPU.
pub struct Cuda {
    name: String,
    info: DeviceInfo,
    stream: sys::CUstream,
    nvrtc: &'static Nvrtc,
    target: Target,
    cache: Cache,
    modules: Vec<Option<Loaded>>,
    allocations: Vec<u64>,
    graphs: HashMap<u64, sys::CUgraphExec>,
    next_graph: u64,
    records: bool,
}

struct Loaded {
    module: sys::CUmodule,
    functions: Vec<sys::CUfunction>,
}

/// Whether GPU number `ordinal` can be used, and what its kernels are compiled to. Allocates and compiles nothing.
pub fn usable(ordinal: usize) -> Result<(DeviceInfo, Target)> {
    let found = probe::devices()?;
    let count = found.len();
    let Some(info) = found.into_iter().nth(ordinal) else {
        return Err(Unavailable::NoSuchDevice { ordinal, count }.into());
    };
    if info.capability < MINIMUM_CAPABILITY {
        return Err(Unavailable::TooOld { name: info.name, capability: info.capability }.into());
    }
    let nvrtc = Nvrtc::get()?;
    let architecture = info.capability.0 * 10 + info.capability.1;
    let known = nvrtc.architectures()?;
    if known.contains(&architecture) {
        return Ok((info, Target::Cubin(architecture)));
    }
    // A device newer than NVRTC takes the newest PTX there is, and its driver compiles that.
    let newest = known.into_iter().filter(|&known| known < architecture).max();
    let newest = newest.ok_or_else(|| {
        let (major, minor) = nvrtc.version();
        Error::NoDevice(format!("NVRTC {major}.{minor} compiles nothing that sm_{architecture} runs"))
    })?;
    Ok((info, Target::Ptx(newest)))
}

/// The sources that take longest to compile, the slowest first (benches/results/2026-12-01-cold-start.md): started last,
/// one of them would be waited for alone.
const SLOWEST: [&str; 6] =
    ["attention_bf16", "norm_backward", "gemm_tf32", "gemm_bf16", "gemm_f16", "gather"];

/// Place of a source in the order of compilation.
fn compile_rank(file: &str) -> usize {
    SLOWEST.iter().position(|slow| file.starts_with(slow)).unwrap_or(SLOWEST.len())
}

impl Cuda {
    /// Opens GPU number `ordinal`. With `SECATEUR_GRAPHS=0` in the environment it records no graphs.
    pub fn open(ordinal: usize, cache: Cache) -> Result<Cuda> {
        let (info, target) = usable(ordinal)?;
        let nvrtc = Nvrtc::get()?;
        let failed = |error| Error::from(Unavailable::from(error));
        let device = result::device::get(ordinal as i32).map_err(failed)?;
        // SAFETY: the device exists; the context, of which there is one a device, lives as long as the process.
        let stream = unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed)?;
            result::ctx::set_current(context).map_err(failed)?;
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?
        };
        let name = format!("{} (cuda:{ordinal}, {})", info.name, target.name());
        let modules = MODULES.iter().map(|_| None).collect();
        Ok(Cuda {
            name,
            info,
            stream,
            nvrtc,
            target,
            cache,
            modules,
            allocations: Vec::new(),
            graphs: HashMap::new(),
            next_graph: 0,
            // Debuggers and profilers see single launches only without graphs.
            records: std::env::var_os("SECATEUR_GRAPHS").is_none_or(|value| value != "0"),
        })
    }

    /// What the driver says about it.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn check<T>(&self, what: impl FnOnce() -> String, outcome: Result<T, result::DriverError>) -> Result<T> {
        outcome.map_err(|error| Error::device(&self.name, format!("{}: {}", what(), describe(error))))
    }

    /// What to say of a driver that refuses what NVRTC made: nothing, unless it is of an older generation.
    fn mismatch(&self) -> String {
        let (compiler, minor) = self.nvrtc.version();
        match probe::driver_version() {
            Ok((driver, of)) if driver < compiler => format!(
                " (the driver supports CUDA {driver}.{of}, NVRTC is {compiler}.{minor}: update the driver, or set \
                 SECATEUR_NVRTC to the folder of an NVRTC {driver})"
            ),
            _ => String::new(),
        }
    }

    /// Hands machine code to the driver and raises its kernels' shared memory limits.
    fn load_image(&self, module: usize, mut image: Vec<u8>) -> Result<Loaded> {
        let source = &MODULES[module];
        image.push(0); // PTX is a text that ends in zero; machine code knows its own length.
        let what = || format!("loading {}{}", source.file, self.mismatch());
        // SAFETY: the image is what NVRTC made for this device, and the driver copies it.
        let handle = self.check(what, unsafe { result::module::load_data(image.as_ptr().cast()) })?;
        use sys::CUfunction_attribute_enum as Attribute;
        let function = |name: &str| -> Result<sys::CUfunction, result::DriverError> {
            let Ok(name) = CString::new(name) else { unreachable!("kernel names are identifiers") };
            // SAFETY: the module is loaded, the function is its own.
            unsafe {
                let function = result::module::get_function(handle, name)?;
                let fixed = result::function::get_function_attribute(
                    function,
                    Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                )?;
                result::function::set_function_attribute(
                    function,
                    Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    self.info.shared_bytes as i32 - fixed,
                )?;
                Ok(function)
            }
        };
        let functions = source
            .kernels
            .iter()
            .map(|kernel| self.check(|| format!("finding {}", kernel.name), function(kernel.name)))
            .collect::<Result<_>>()?;
        Ok(Loaded { module: handle, functions })
    }

    /// Compiles and loads sources that are not loaded yet, in parallel, those that take longest first. Returns how many
    /// had to be compiled.
    pub fn load(&mut self, modules: &[usize]) -> Result<usize> {
        let mut missing: Vec<usize> =
            modules.iter().copied().filter(|&module| self.modules[module].is_none()).collect();
        missing.sort_by_key(|&module| compile_rank(MODULES[module].file));
        let (nvrtc, cache, target) = (self.nvrtc, &self.cache, self.target);
        let images = Mutex::new(Vec::new());
        rayon::scope_fifo(|scope| {
            for module in missing {
                let images = &images;
                scope.spawn_fifo(move |_| {
                    let image = cache.compile(nvrtc, &MODULES[module], target);
                    images.lock().unwrap_or_else(PoisonError::into_inner).push((module, image));
                });
            }
        });
        let mut compiled = 0;
        for (module, image) in images.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let (image, found) = image?;
            compiled += usize::from(!found);
            self.modules[module] = Some(self.load_image(module, image)?);
        }
        Ok(compiled)
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let kernel = launch.kernel();
        if self.modules[kernel.module].is_none() {
            self.load(&[kernel.module])?;
        }
        let Some(loaded) = &self.modules[kernel.module] else { unreachable!("loaded above") };
        let arguments = launch.arguments();
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::U64(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::F64(value) => std::ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let grid = launch.grid();
        let triple = |[x, y, z]: [u32; 3]| (x, y, z);
        // SAFETY: arguments have the number and types of the kernel's parameters, since only the functions generated
        // from its signature make launches; the driver copies them before it returns. That the addresses are those of
        // live memory is what the plan and the emulated tests of every operation establish.
        let outcome = unsafe {
            result::launch_kernel(
                loaded.functions[kernel.index],
                triple(grid.blocks),
                triple(grid.threads),
                grid.shared,
                self.stream,
                &mut pointers,
            )
        };
        self.check(|| format!("launching {} over {grid:?}", kernel.name), outcome)
    }
}

impl Device for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            multiprocessors: self.info.multiprocessors,
            shared_bytes: self.info.shared_bytes,
            capability: self.info.capability,
        }
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        let (free, _) = self.check(|| "asking for free memory".into(), result::mem_get_info())?;
        Ok(Some(free))
    }

    fn load(&mut self, modules: &[usize]) -> Result<()> {
        Cuda::load(self, modules).map(|_| ())
    }

    fn allocate(&mut self, bytes: usize, label: &str) -> Result<u64> {
        // SAFETY: the context is current.
        let outcome = unsafe { result::malloc_sync(bytes.max(1)) };
        let address = self.check(|| format!("allocating {bytes} bytes for {label}"), outcome)?;
        self.allocations.push(address);
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Result<()> {
        self.synchronize()?;
        self.allocations.retain(|&held| held != address);
        // SAFETY: allocated by `allocate`, forgotten above, and no work is under way.
        self.check(|| "freeing memory".into(), unsafe { result::free_sync(address) })
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's range is allocated. The source is pageable, so the driver has taken it when it returns.
        let outcome = unsafe { result::memcpy_htod_async(address, data, self.stream) };
        self.check(|| format!("copying {} bytes to the device", data.len()), outcome)
    }

    fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let bytes = data.len();
        // SAFETY: the caller's range is allocated; the stream is waited for before `data` is looked at.
        let outcome = unsafe {
            result::memcpy_dtoh_async(data, address, self.stream)
                .and_then(|()| result::stream::synchronize(self.stream))
        };
        self.check(|| format!("copying {bytes} bytes from the device"), outcome)
    }

    fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's range is allocated.
        let outcome = unsafe { result::memset_d8_async(address, value, bytes, self.stream) };
        self.check(|| format!("setting {bytes} bytes"), outcome)
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

    fn record(&mut self, steps: &[Step]) -> Result<Option<Recording>> {
        if !self.records {
            return Ok(None);
        }
        let what = || String::from("recording a graph");
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this value's own, and capture ends below whatever the steps do.
        self.check(what, unsafe { result::stream::begin_capture(self.stream, mode) })?;
        let queued = self.run(steps);
        // SAFETY: capture has begun.
        let graph = self.check(what, unsafe { result::stream::end_capture(self.stream) });
        queued?;
        let graph = graph?;
        // SAFETY: the graph was just made; instantiated, it is not needed any more.
        let outcome = unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).and(executable)
        };
        let executable = self.check(what, outcome)?;
        self.next_graph += 1;
        self.graphs.insert(self.next_graph, executable);
        Ok(Some(Recording(self.next_graph)))
    }

    fn replay(&mut self, recording: &Recording) -> Result<()> {
        let executable = self.graphs[&recording.0];
        // SAFETY: recorded above and not forgotten, since the recording is still held.
        self.check(|| "replaying a graph".into(), unsafe { result::graph::launch(executable, self.stream) })
    }

    fn forget(&mut self, recordings: Vec<Recording>) -> Result<()> {
        self.synchronize()?;
        for recording in recordings {
            if let Some(executable) = self.graphs.remove(&recording.0) {
                // SAFETY: recorded above, forgotten once, and no work is under way.
                self.check(|| "forgetting a graph".into(), unsafe {
                    result::graph::exec_destroy(executable)
                })?;
            }
        }
        Ok(())
    }

    fn run_timed(&mut self, steps: &[Step], ends: &[usize], seconds: &mut Vec<f64>) -> Result<()> {
        self.run(steps)?;
        let what = || String::from("timing");
        let mut events = Events(Vec::with_capacity(ends.len() + 1));
        let mut begin = 0;
        for end in std::iter::once(0).chain(ends.iter().copied()) {
            self.run(&steps[begin..end])?;
            begin = end;
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            let event = self.check(what, result::event::create(flags))?;
            events.0.push(event);
            // SAFETY: event and stream are live.
            self.check(what, unsafe { result::event::record(event, self.stream) })?;
        }
        self.synchronize()?;
        for pair in events.0.windows(2) {
            // SAFETY: both events were recorded and have been reached.
            let milliseconds = self.check(what, unsafe { result::event::elapsed(pair[0], pair[1]) })?;
            seconds.push(f64::from(milliseconds) / 1e3);
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        // SAFETY: the stream is this value's own.
        self.check(|| "waiting for the device".into(), unsafe { result::stream::synchronize(self.stream) })
    }
}

/// Events, given back when done with.
struct Events(Vec<sys::CUevent>);

impl Drop for Events {
    fn drop(&mut self) {
        for &event in &self.0 {
            // SAFETY: made by `run_timed`, destroyed once.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Failures have nowhere to go, and the process gives everything back anyway.
        // SAFETY: every handle is this value's own and is given back once.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for &executable in self.graphs.values() {
                let _ = result::graph::exec_destroy(executable);
            }
            for loaded in self.modules.iter().flatten() {
                let _ = result::module::unload(loaded.module);
            }
            for &address in &self.allocations {
                let _ = result::free_sync(address);
            }
            let _ = result::stream::destroy(self.stream);
            // The context stays for the rest of the process: making one takes longer than everything else here.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_sources_are_there() {
        for slow in SLOWEST {
            assert!(
                MODULES.iter().any(|module| module.file.starts_with(slow)),
                "no source begins with {slow}"
            );
        }
        assert!(compile_rank("norm_backward_f32.cu") < compile_rank("norm.cu"));
    }
}
