//! `ptxsim`: run a kernel of a PTX file without a GPU, and print what the checks find.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ptxsim::{Approximations, Argument, Checks, Machine, Module, Options, Report};

#[derive(Parser)]
#[command(version, about = "Runs PTX without a GPU, and checks every access, barrier and race")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the kernels of a PTX file with the types of their parameters.
    Kernels {
        /// PTX text, for instance from NVRTC with `--generate-line-info`.
        file: PathBuf,
    },
    /// Run one kernel; exit status 1 when a check fires.
    Run(Run),
}

#[derive(clap::Args)]
struct Run {
    /// PTX text, for instance from NVRTC with `--generate-line-info`.
    file: PathBuf,
    /// Kernel; may be left out when the file has only one.
    #[arg(long)]
    kernel: Option<String>,
    /// Blocks, as `x`, `x,y` or `x,y,z`.
    #[arg(long, default_value = "1", value_parser = triple)]
    grid: [u32; 3],
    /// Threads of a block.
    #[arg(long, default_value = "32", value_parser = triple)]
    block: [u32; 3],
    /// Bytes of dynamic shared memory.
    #[arg(long, default_value_t = 0)]
    shared: u32,
    /// Orders of warps and blocks to try, each from its own seed.
    #[arg(long, default_value_t = 4)]
    orders: u64,
    /// Arguments of the kernel, in order:
    /// `u32:N` `i32:N` `u64:N` `f32:X` `f64:X` `null`,
    /// `random:COUNT` (f32 in [-1, 1)), `random-bf16:COUNT`, `zeros:BYTES`, `empty:BYTES` (undefined),
    /// `file:PATH`, `out:ROWS,COLUMNS,LD,BYTES` (must be written exactly once).
    #[arg(value_parser = specification)]
    arguments: Vec<Specification>,
    /// Write argument INDEX (from 0), a buffer, to a file after the first run, as INDEX=PATH.
    #[arg(long, value_parser = dump)]
    dump: Vec<(usize, PathBuf)>,
    /// What approximate instructions (ex2, rsqrt, rcp.approx, …) return: the exact value rounded once, or the least or
    /// greatest result that their documented errors allow.
    #[arg(long, value_enum, default_value_t = Approximate::Rounded)]
    approximations: Approximate,
    /// Only bounds, alignment and barriers.
    #[arg(long)]
    fast: bool,
    /// Print the report of the last order as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Approximate {
    Rounded,
    Least,
    Greatest,
}

#[derive(Debug, Clone)]
enum Specification {
    Scalar(Argument),
    Bytes(Vec<u8>),
    Empty(usize),
    Output { rows: usize, columns: usize, ld: usize, element: usize },
}

fn triple(text: &str) -> Result<[u32; 3], String> {
    let mut out = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err("at most three dimensions".into());
    }
    for (slot, part) in out.iter_mut().zip(parts) {
        *slot = part.trim().parse().map_err(|e| format!("`{part}`: {e}"))?;
    }
    Ok(out)
}

fn dump(text: &str) -> Result<(usize, PathBuf), String> {
    let (index, path) = text.split_once('=').ok_or("needs INDEX=PATH")?;
    Ok((index.parse().map_err(|e| format!("`{index}`: {e}"))?, path.into()))
}

fn specification(text: &str) -> Result<Specification, String> {
    let (kind, value) = text.split_once(':').unwrap_or((text, ""));
    fn number<T: std::str::FromStr>(value: &str) -> Result<T, String>
    where
        T::Err: std::fmt::Display,
    {
        value.trim().parse().map_err(|e| format!("`{value}`: {e}"))
    }
    let scalar = |argument| Ok(Specification::Scalar(argument));
    match kind {
        "u32" => scalar(Argument::U32(number(value)?)),
        "i32" => scalar(Argument::U32(number::<i32>(value)? as u32)),
        "u64" => scalar(Argument::U64(number(value)?)),
        "f32" => scalar(Argument::F32(number(value)?)),
        "f64" => scalar(Argument::F64(number(value)?)),
        "null" => scalar(Argument::U64(0)),
        "random" => Ok(Specification::Bytes(random(number(value)?).flat_map(f32::to_le_bytes).collect())),
        "random-bf16" => {
            let values = random(number(value)?).map(half::bf16::from_f32);
            Ok(Specification::Bytes(values.flat_map(half::bf16::to_le_bytes).collect()))
        }
        "zeros" => Ok(Specification::Bytes(vec![0; number(value)?])),
        "empty" => Ok(Specification::Empty(number(value)?)),
        "file" => std::fs::read(value).map(Specification::Bytes).map_err(|e| format!("`{value}`: {e}")),
        "out" => {
            let parts: Vec<usize> = value.split(',').map(number).collect::<Result<_, _>>()?;
            let [rows, columns, ld, element] = parts[..] else {
                return Err("needs ROWS,COLUMNS,LD,BYTES".into());
            };
            if ld < columns || element == 0 {
                return Err("LD must be at least COLUMNS, BYTES at least 1".into());
            }
            Ok(Specification::Output { rows, columns, ld, element })
        }
        _ => Err(format!("unknown kind of argument `{kind}`")),
    }
}

// Weyl sequence of the golden ratio: even over [-1, 1), and the same every time.
fn random(count: usize) -> impl Iterator<Item = f32> {
    (1..=count).map(|i| (2.0 * (i as f64 * 0.618_033_988_749_895).fract() - 1.0) as f32)
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Kernels { file } => kernels(&file).map(|()| true),
        Command::Run(run) => execute(&run),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("ptxsim: {message}");
            ExitCode::from(2)
        }
    }
}

fn load(file: &PathBuf) -> Result<Module, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Module::parse(&text).map_err(|e| format!("{}: {e}", file.display()))
}

fn kernels(file: &PathBuf) -> Result<(), String> {
    let module = load(file)?;
    for name in module.kernel_names() {
        let types = module.parameter_types(name).map_err(|e| e.to_string())?;
        let types: Vec<String> = types.iter().map(|t| format!("{t:?}").to_lowercase()).collect();
        show(&format!("{name}({})\n", types.join(", ")));
    }
    Ok(())
}

fn execute(run: &Run) -> Result<bool, String> {
    let module = load(&run.file)?;
    let names: Vec<&str> = module.kernel_names().collect();
    let kernel = match (&run.kernel, &names[..]) {
        (Some(name), _) => name.as_str(),
        (None, [only]) => only,
        (None, _) => return Err(format!("choose one with --kernel: {}", names.join(", "))),
    };
    let mut clean = true;
    let mut last = Report::default();
    for seed in 0..run.orders.max(1) {
        let report = once(run, &module, kernel, seed).map_err(|e| e.to_string())?;
        clean &= report.findings.is_empty();
        if !run.json {
            for finding in &report.findings {
                show(&format!("seed {seed}: {finding}\n"));
            }
        }
        last = report;
    }
    if run.json {
        show(&(serde_json::to_string_pretty(&last).map_err(|e| e.to_string())? + "\n"));
    } else {
        show(&summary(&last));
    }
    Ok(clean)
}

fn once(run: &Run, module: &Module, kernel: &str, seed: u64) -> Result<Report, Box<dyn std::error::Error>> {
    let checks = if run.fast { Checks::none() } else { Checks::all() };
    let approximations = match run.approximations {
        Approximate::Rounded => Approximations::Rounded,
        Approximate::Least => Approximations::Least,
        Approximate::Greatest => Approximations::Greatest,
    };
    let mut machine = Machine::new(Options { seed, checks, approximations, ..Options::default() });
    let mut arguments = Vec::new();
    let mut buffers = Vec::new();
    for (index, specification) in run.arguments.iter().enumerate() {
        let name = format!("argument {index}");
        let (argument, bytes) = match specification {
            Specification::Scalar(argument) => (*argument, 0),
            Specification::Bytes(data) => {
                let address = machine.allocate(data.len(), &name);
                machine.write(address, data)?;
                (Argument::U64(address), data.len())
            }
            Specification::Empty(bytes) => (Argument::U64(machine.allocate(*bytes, &name)), *bytes),
            &Specification::Output { rows, columns, ld, element } => {
                let address = machine.allocate(rows * ld * element, &name);
                machine.expect_written(address, rows, columns, ld, element)?;
                (Argument::U64(address), rows * ld * element)
            }
        };
        arguments.push(argument);
        buffers.push(bytes);
    }
    let report = machine.launch(module, kernel, run.grid, run.block, run.shared, &arguments)?;
    if seed == 0 {
        for (index, path) in &run.dump {
            let (Some(Argument::U64(address)), Some(&bytes)) = (arguments.get(*index), buffers.get(*index))
            else {
                return Err(format!("--dump {index}: not a buffer").into());
            };
            std::fs::write(path, machine.read(*address, bytes)?)?;
        }
    }
    Ok(report)
}

// A reader that has seen enough (`| head`) closes the pipe; that is no failure of the run.
fn show(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn summary(report: &Report) -> String {
    let counters = &report.counters;
    let mut out = String::new();
    out += &format!("warp instructions  {}\n", counters.warp_instructions);
    out += &format!("lane instructions  {}\n", counters.lane_instructions);
    out += &format!("mma.sync           {}\n", counters.mma);
    out += &format!("shared accesses    {}\n", counters.shared_accesses);
    out += &format!("bank conflicts     {} replays\n", counters.bank_conflict_replays);
    out += &format!("32-byte sectors    {} (packed: {})\n", counters.sectors, counters.minimum_sectors);
    let mut list: Vec<_> = counters.by_opcode.iter().collect();
    list.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
    for (name, count) in list.into_iter().take(20) {
        out += &format!("{count:>12}  {name}\n");
    }
    out
}
