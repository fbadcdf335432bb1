//! `secateur doctor`: what this machine has for computing, and what to do about what it lacks.

use std::time::Instant;

use clap::Args;
use secateur::cuda::{self, Cache, Cuda, Nvrtc};
use secateur::launch::Device as _;
use secateur::launch::kernels::MODULES;
use secateur::ops::gemm::cpu::bf16::has_tiles;
use secateur::ops::simd;
use secateur::report::format;
use secateur::{Error, Result};
use serde_json::{Value, json};

use super::context::Context;

/// Say what computes here: processor, GPU, driver, kernel compiler, cache; and what to do for what is missing.
#[derive(Args, Debug)]
pub struct Doctor {}

/// What was found, line by line.
#[derive(Default)]
struct Findings {
    text: String,
    json: serde_json::Map<String, Value>,
    missing: usize,
}

impl Findings {
    fn found(&mut self, what: &str, text: String, value: Value) {
        self.text += &format!("  {what:<10} {text}\n");
        self.json.insert(what.into(), value);
    }

    fn missing(&mut self, what: &str, reason: &Error) {
        self.missing += 1;
        self.text += &format!("- {what:<10} {reason}\n");
        self.json.insert(what.into(), json!({ "missing": reason.to_string() }));
    }
}

impl Doctor {
    pub fn run(self, context: &mut Context) -> Result<()> {
        let mut findings = Findings::default();
        let threads = rayon::current_num_threads();
        let level = format!("{:?}", simd::level());
        let tiles = has_tiles();
        let bf16 = if tiles {
            "matrix tiles make --precision bf16 the fastest"
        } else {
            "no matrix tiles, so --precision bf16 is slower than f32"
        };
        findings.found(
            "processor",
            format!("{level}, {threads} threads: --device cpu works; {bf16}"),
            json!({ "vectors": level, "threads": threads, "bf16_tiles": tiles }),
        );
        match cuda::driver_version() {
            Ok((major, minor)) => {
                findings.found("driver", format!("supports CUDA {major}.{minor}"), json!([major, minor]))
            }
            Err(reason) => findings.missing("driver", &reason.into()),
        }
        match Nvrtc::get() {
            Ok(nvrtc) => {
                let (major, minor) = nvrtc.version();
                let path = nvrtc.path().display().to_string();
                let text = format!("{major}.{minor}, {path}: --device emulated works");
                findings.found("NVRTC", text, json!({ "version": [major, minor], "path": path }));
            }
            Err(reason) => findings.missing("NVRTC", &reason),
        }
        let cache = Cache::of_user();
        match cache.check() {
            Ok(()) => {
                let folder = cache.folder().map(|f| f.display().to_string()).unwrap_or_default();
                let files = cache.folder().and_then(|f| std::fs::read_dir(f).ok()).map_or(0, Iterator::count);
                findings.found(
                    "cache",
                    format!("{folder}, {files} compiled sources"),
                    json!({ "folder": folder, "files": files }),
                );
            }
            Err(reason) => findings.missing("cache", &reason),
        }
        // Without a driver there is nothing to add: its line says what to do.
        for info in cuda::devices().unwrap_or_default() {
            let what = format!("cuda:{}", info.ordinal);
            match check(info.ordinal, &cache) {
                Ok((text, value)) => findings.found(&what, text, value),
                Err(reason) => findings.missing(&what, &reason),
            }
        }
        let (device, _) = secateur::session::Device::best(secateur::launch::Precision::F32);
        findings.json.insert("auto".into(), json!(device.to_string()));
        findings.text += &format!("  {:<10} --device auto is {device}\n", "auto");
        context.print(&Value::Object(findings.json), &findings.text);
        Ok(())
    }
}

/// Opens a GPU, compiles every kernel for it, and moves data there and back.
fn check(ordinal: usize, cache: &Cache) -> Result<(String, Value)> {
    let started = Instant::now();
    let mut gpu = Cuda::open(ordinal, cache.clone())?;
    let all: Vec<usize> = (0..MODULES.len()).collect();
    let compiled = gpu.load(&all)?;
    let seconds = started.elapsed().as_secs_f64();
    let sent: Vec<u8> = (0..=255).collect();
    let address = gpu.allocate(sent.len(), "check")?;
    gpu.upload(address, &sent)?;
    let mut received = vec![0; sent.len()];
    gpu.download(address, &mut received)?;
    gpu.free(address)?;
    if sent != received {
        return Err(Error::device(gpu.name(), "memory does not hold what was written to it"));
    }
    let info = gpu.info().clone();
    let free = gpu.free_bytes()?.unwrap_or(info.memory);
    let text = format!(
        "{}, sm_{}{}, {} multiprocessors, {} of {} free; kernels ready in {seconds:.2} s ({compiled} of {} compiled \
         now)",
        info.name,
        info.capability.0,
        info.capability.1,
        info.multiprocessors,
        format::bytes(free as u64),
        format::bytes(info.memory as u64),
        MODULES.len(),
    );
    let value = json!({
        "name": info.name, "capability": [info.capability.0, info.capability.1],
        "multiprocessors": info.multiprocessors, "memory": info.memory, "free": free,
        "sources": MODULES.len(), "compiled_now": compiled, "seconds": seconds,
    });
    Ok((text, value))
}
