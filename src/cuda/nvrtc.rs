//! NVRTC: compiles the kernels at run time. Needs no GPU and no driver, only the library.
//!
//! The library is opened here and not through a binding crate, because those panic when it is absent and take whatever
//! version the loader finds first. Its companion `libnvrtc-builtins` is opened by its path before: NVRTC asks for it by
//! name only, and would miss it in a folder that is not on the loader's path.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::{Library, Symbol};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::launch::Module;
use crate::launch::kernels::HEADERS;

/// What to do about a missing NVRTC.
const ADVICE: &str = "install the CUDA toolkit, or run tools/nvrtc in a checkout (needs pip), or set SECATEUR_NVRTC to \
                      the folder that holds libnvrtc.so";

/// What a source is compiled to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// Assembly for a virtual architecture, 80 for `compute_80`: for the emulator, and for devices newer than NVRTC.
    Ptx(u32),
    /// Machine code for an architecture, 90 for `sm_90`.
    Cubin(u32),
}

impl Target {
    /// `compute_80`, `sm_90`.
    pub fn name(self) -> String {
        match self {
            Target::Ptx(architecture) => format!("compute_{architecture}"),
            Target::Cubin(architecture) => format!("sm_{architecture}"),
        }
    }
}

/// The library.
#[derive(Debug)]
pub struct Nvrtc {
    library: Library,
    path: PathBuf,
    version: (i32, i32),
    _builtins: Option<Library>,
}

/// What a kernel needs of a multiprocessor.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Name of the kernel.
    pub kernel: String,
    /// Registers a thread.
    pub registers: usize,
    /// Bytes of static shared memory a block.
    pub shared: usize,
    /// Bytes of local memory a thread that registers were spilled to, written and read.
    pub spilled: usize,
    /// Bytes of local memory a thread in all.
    pub stack: usize,
}

impl Resources {
    /// Reads the assembler's report: for each kernel a line that names it, one on its stack, one on its registers.
    fn parse(log: &str) -> Vec<Resources> {
        // The number before a word, as in "Used 44 registers, 1024 bytes smem".
        let before = |line: &str, word: &str| -> usize {
            let text = line.find(word).map_or("", |at| line[..at].trim_end());
            let digits = text.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
            digits.parse().unwrap_or(0)
        };
        let mut found: Vec<Resources> = Vec::new();
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let kernel = rest.split('\'').next().unwrap_or("").to_owned();
                found.push(Resources { kernel, ..Resources::default() });
            } else if let Some(last) = found.last_mut() {
                if line.contains("bytes stack frame") {
                    last.stack = before(line, "bytes stack frame");
                    last.spilled = before(line, "bytes spill stores").max(before(line, "bytes spill loads"));
                } else if line.contains("registers") {
                    last.registers = before(line, "registers");
                    last.shared = before(line, "bytes smem");
                }
            }
        }
        found.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        found
    }
}

type Program = *mut c_void;
type Status = c_int;

impl Nvrtc {
    /// The process's NVRTC: `SECATEUR_NVRTC`, the folder `.nvrtc` that `tools/nvrtc` fills, the system's loader, the
    /// usual places of a toolkit, in this order.
    pub fn get() -> Result<&'static Nvrtc> {
        static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        NVRTC.get_or_init(Nvrtc::find).as_ref().map_err(|message| Error::NoDevice(message.clone()))
    }

    fn find() -> Result<Nvrtc, String> {
        if let Some(asked) = std::env::var_os("SECATEUR_NVRTC") {
            let asked = PathBuf::from(asked);
            let library = library_in(&asked, 8)
                .ok_or_else(|| format!("SECATEUR_NVRTC: no libnvrtc.so* under {}", asked.display()))?;
            return Nvrtc::open(&library);
        }
        let mut candidates: Vec<PathBuf> = Vec::new();
        // Cargo sets CARGO_MANIFEST_DIR for what it runs: tests find the checkout's library from any directory.
        let roots = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).into_iter();
        for root in roots.chain(std::env::current_dir().ok()) {
            candidates.extend(library_in(&root.join(".nvrtc"), 4));
        }
        for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"] {
            candidates.push(name.into());
        }
        for root in ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/opt/cuda/lib64"] {
            candidates.extend(library_in(Path::new(root), 1));
        }
        let mut reasons = Vec::new();
        for candidate in candidates {
            match Nvrtc::open(&candidate) {
                Ok(found) => return Ok(found),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(format!("NVRTC, which compiles the kernels, was not found ({}): {ADVICE}", reasons.join("; ")))
    }

    fn open(path: &Path) -> Result<Nvrtc, String> {
        let builtins = path.parent().and_then(|folder| file_in(folder, "libnvrtc-builtins.so"));
        let open = |path: &Path| {
            // SAFETY: initialisers of NVIDIA's libraries have no preconditions.
            unsafe { Library::new(path) }.map_err(|e| format!("{}: {e}", path.display()))
        };
        let builtins = builtins.map(|path| open(&path)).transpose()?;
        let library = open(path)?;
        let (mut major, mut minor) = (0, 0);
        {
            // SAFETY: the signature is that of nvrtc.h.
            let version: Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status> =
                unsafe { library.get(b"nvrtcVersion\0") }.map_err(|e| format!("{}: {e}", path.display()))?;
            // SAFETY: both pointers are to integers.
            unsafe { version(&mut major, &mut minor) };
        }
        if major < 12 {
            return Err(format!("{}: NVRTC {major}.{minor} is too old (12.0 at least)", path.display()));
        }
        Ok(Nvrtc { library, path: path.to_path_buf(), version: (major, minor), _builtins: builtins })
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The file, or the name that the system's loader resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn symbol<T>(&self, name: &CStr) -> Result<Symbol<'_, T>> {
        // SAFETY: every caller names the type that nvrtc.h declares.
        unsafe { self.library.get(name.to_bytes_with_nul()) }
            .map_err(|e| Error::NoDevice(format!("{}: {e}", self.path.display())))
    }

    /// Architectures it can make machine code for: 80, 86, 90, …
    pub fn architectures(&self) -> Result<Vec<u32>> {
        let count: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> Status> =
            self.symbol(c"nvrtcGetNumSupportedArchs")?;
        let list: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> Status> =
            self.symbol(c"nvrtcGetSupportedArchs")?;
        let mut number = 0;
        // SAFETY: a pointer to an integer.
        unsafe { count(&mut number) };
        let mut found = vec![0; number.max(0) as usize];
        // SAFETY: the list has as many elements as NVRTC said it would write.
        unsafe { list(found.as_mut_ptr()) };
        Ok(found.into_iter().map(|a| a as u32).collect())
    }

    /// Options of every compilation.
    pub fn options(target: Target) -> Vec<String> {
        vec![
            format!("--gpu-architecture={}", target.name()),
            "--std=c++17".into(),
            // Findings and profiles then name lines; the code is the same.
            "--generate-line-info".into(),
        ]
    }

    /// Compiles a source. The error is NVRTC's log.
    pub fn compile(&self, module: &Module, target: Target) -> Result<Vec<u8>> {
        Ok(self.build(module, target, &[])?.0)
    }

    /// What the kernels of a source cost on `architecture` (90 for `sm_90`), as the assembler reports it.
    pub fn resources(&self, module: &Module, architecture: u32) -> Result<Vec<Resources>> {
        let (_, log) = self.build(module, Target::Cubin(architecture), &["--ptxas-options=-v"])?;
        let found = Resources::parse(&log);
        if found.len() != module.kernels.len() {
            let message =
                format!("{}: {} kernels, a report on {}", module.file, module.kernels.len(), found.len());
            return Err(Error::device("NVRTC", message));
        }
        Ok(found)
    }

    /// The program and the log.
    fn build(&self, module: &Module, target: Target, more: &[&str]) -> Result<(Vec<u8>, String)> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status;
        let create: Symbol<'_, Create> = self.symbol(c"nvrtcCreateProgram")?;
        let destroy: Symbol<'_, unsafe extern "C" fn(*mut Program) -> Status> =
            self.symbol(c"nvrtcDestroyProgram")?;
        let compile: Symbol<'_, unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status> =
            self.symbol(c"nvrtcCompileProgram")?;
        let text = |text: &str| {
            CString::new(text).map_err(|_| Error::shape(module.file, "a source holds a zero byte"))
        };
        let texts = |texts: &mut dyn Iterator<Item = &str>| texts.map(text).collect::<Result<Vec<_>>>();
        let (source, file) = (text(module.source)?, text(module.file)?);
        let headers = texts(&mut HEADERS.iter().map(|(_, text)| *text))?;
        let names = texts(&mut HEADERS.iter().map(|(name, _)| *name))?;
        let options = Nvrtc::options(target);
        let options = texts(&mut options.iter().map(String::as_str).chain(more.iter().copied()))?;
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
        let (headers_at, names_at, options_at) = (pointers(&headers), pointers(&names), pointers(&options));
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: all texts end in zero and outlive the call; the two lists have HEADERS.len() elements.
        let status = unsafe {
            create(
                &mut program,
                source.as_ptr(),
                file.as_ptr(),
                HEADERS.len() as c_int,
                headers_at.as_ptr(),
                names_at.as_ptr(),
            )
        };
        if status != 0 {
            return Err(Error::device("NVRTC", format!("{}: nvrtcCreateProgram gave {status}", module.file)));
        }
        // SAFETY: the program was just made; the options outlive the call.
        let status = unsafe { compile(program, options_at.len() as c_int, options_at.as_ptr()) };
        let log = self
            .output(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")
            .map(|log| String::from_utf8_lossy(&log).trim_end_matches('\0').to_string());
        let outcome = log.and_then(|log| match (status, target) {
            (0, Target::Ptx(_)) => Ok((self.output(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX")?, log)),
            (0, Target::Cubin(_)) => Ok((self.output(program, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?, log)),
            _ => {
                Err(Error::device(format!("NVRTC for {}", target.name()), format!("{}:\n{log}", module.file)))
            }
        });
        // SAFETY: made above, destroyed once.
        unsafe { destroy(&mut program) };
        outcome
    }

    fn output(&self, program: Program, size: &CStr, get: &CStr) -> Result<Vec<u8>> {
        let size: Symbol<'_, unsafe extern "C" fn(Program, *mut usize) -> Status> = self.symbol(size)?;
        let get: Symbol<'_, unsafe extern "C" fn(Program, *mut c_char) -> Status> = self.symbol(get)?;
        let mut bytes = 0;
        // SAFETY: a live program, a pointer to an integer.
        if unsafe { size(program, &mut bytes) } != 0 {
            return Err(Error::device("NVRTC", "it does not say how large its result is"));
        }
        let mut out = vec![0u8; bytes];
        // SAFETY: NVRTC writes as many bytes as it said.
        if unsafe { get(program, out.as_mut_ptr().cast()) } != 0 {
            return Err(Error::device("NVRTC", "it does not hand out its result"));
        }
        Ok(out)
    }
}

/// A file of `folder` whose name starts with `prefix`; the newest by name. The `.alt` builds are slower twins.
fn file_in(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: &PathBuf| {
        path.file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(prefix) && !n.contains(".alt"))
    };
    files.filter(named).max()
}

/// libnvrtc in `folder` or at most `depth` folders below it.
fn library_in(folder: &Path, depth: usize) -> Option<PathBuf> {
    if let Some(found) = file_in(folder, "libnvrtc.so") {
        return Some(found);
    }
    let inside = std::fs::read_dir(folder).ok().filter(|_| depth > 0)?;
    let mut folders: Vec<PathBuf> =
        inside.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.iter().find_map(|folder| library_in(folder, depth - 1))
}
