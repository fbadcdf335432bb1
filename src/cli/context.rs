//! What every command does around its work: threads, signals, progress, the record, and how results are shown.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use secateur::ops::gemm::cpu::bf16::has_tiles;
use secateur::progress::{Interrupt, Progress};
use secateur::report::RunRecord;
use secateur::report::listener::{self, Verbosity};
use secateur::session::Device;
use secateur::{Error, Result};

use super::options::{GlobalOptions, value_name};

/// The seed of a command that is given none.
const SEED: u64 = 42;

/// The surroundings of a command.
pub struct Context {
    pub seed: u64,
    pub device: Device,
    pub progress: Progress,
    threads: usize,
    global: GlobalOptions,
    json: bool,
    quiet: bool,
    started: Instant,
}

impl Context {
    /// Sets up threads, signals and progress. A command that `computes` says on what, where nobody chose.
    pub fn new(global: GlobalOptions, computes: bool) -> Result<Context> {
        let mut pool = rayon::ThreadPoolBuilder::new();
        if let Some(threads) = global.threads {
            pool = pool.num_threads(threads as usize);
        }
        pool.build_global().map_err(|e| Error::usage(format!("starting the worker threads: {e}")))?;
        let interrupt = Interrupt::new();
        let flag = interrupt.clone();
        ctrlc::set_handler(move || {
            if flag.request() {
                // Asked twice: what is on disk is a `.partial` directory, which the next run recognises as left over.
                std::process::exit(1);
            }
            eprintln!("stopping; once more to stop at once");
        })
        .map_err(|e| Error::usage(format!("installing the signal handler: {e}")))?;
        let verbosity = match (global.json, global.quiet) {
            (true, _) => Verbosity::Json,
            (_, true) => Verbosity::Quiet,
            _ => Verbosity::Normal,
        };
        let (device, reason) = global.device()?;
        let progress = Progress::with(listener::for_stderr(verbosity), interrupt);
        if let Some(reason) = reason.filter(|_| computes) {
            progress.note(format!("computing on the CPU: {reason}"));
        }
        if computes && device == Device::CpuBf16 && !has_tiles() {
            progress.note("bf16 is slower than f32 on this processor, which has no matrix tiles (the bits are the same)");
        }
        Ok(Context {
            seed: global.seed.unwrap_or(SEED),
            device,
            progress,
            threads: rayon::current_num_threads(),
            global: global.clone(),
            json: global.json,
            quiet: global.quiet,
            started: Instant::now(),
        })
    }

    /// Arguments that make another command compute on the same device.
    pub fn device_arguments(&self) -> Vec<String> {
        let precision = value_name(&self.global.precision);
        ["--device".into(), self.global.device.to_string(), "--precision".into(), precision].into()
    }

    /// Refuses a precision that gradients cannot be computed in, before any work.
    pub fn check_trains(&self) -> Result<()> {
        match self.device {
            Device::Cuda { precision, .. } | Device::Emulated { precision }
                if !precision.differentiates() =>
            {
                Err(Error::usage(format!(
                    "--precision {} is for forward passes (evaluate, forward, prune, bench --no-training): gradients \
                     would underflow; bf16, tf32 and f32 train",
                    precision.name()
                )))
            }
            _ => Ok(()),
        }
    }

    /// The seed, where one was given.
    pub fn given_seed(&self) -> Option<u64> {
        self.global.seed
    }

    /// The number of worker threads, where one was given.
    pub fn given_threads(&self) -> Option<u32> {
        self.global.threads
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The record of a command that begins now.
    pub fn record(&self, command: &str) -> RunRecord {
        let arguments = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
        RunRecord::begin(command, arguments, self.seed, self.threads, &self.device.to_string())
    }

    /// Completes a record with stages, warnings, memory and time.
    pub fn finish(&self, record: &mut RunRecord) {
        record.finish(&self.progress, self.started.elapsed().as_secs_f64());
    }

    /// Shows something that is no run: `value` as one JSON object, or `text`.
    pub fn print(&self, value: &serde_json::Value, text: &str) {
        let shown = if self.json { format!("{value:#}\n") } else { text.to_string() };
        write_out(&shown);
    }

    /// Writes text to standard output, as it is.
    pub fn write(&self, text: &str) {
        write_out(text);
    }

    /// Shows the results: the records as one JSON object, or `text`.
    pub fn show(&self, records: &[RunRecord], text: impl FnOnce(bool) -> String) {
        let shown = match records {
            _ if !self.json && self.quiet => return,
            _ if !self.json => text(std::io::stdout().is_terminal()),
            [record] => record.to_json(),
            records => {
                let runs: Vec<serde_json::Value> =
                    records.iter().filter_map(|record| serde_json::to_value(record).ok()).collect();
                format!("{:#}\n", serde_json::json!({ "runs": runs }))
            }
        };
        write_out(&shown);
    }
}

/// To standard output. A closed pipe is the reader's choice, not a failure.
fn write_out(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
