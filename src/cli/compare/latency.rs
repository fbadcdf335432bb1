//! The latency part of `compare`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use secateur::compare::grid::Grid;
use secateur::compare::{identity, results};
use secateur::report::RunRecord;
use secateur::{Error, Result};

use super::super::context::Context;
use super::processes;

/// What is measured besides quality.
#[derive(Args, Debug)]
#[command(next_help_heading = "Latency")]
pub struct LatencyOptions {
    /// When the cells have run, measure how long a batch takes on this device, tokens in and logits out: every pruned model
    /// of the first seed in turns with the dense one, on a machine that should do nothing else. What has been measured is
    /// not measured again.
    #[arg(long)]
    pub latency: bool,
    /// Rows of a batch. Latency at 1 and at 32 are different questions: at 1 launches and narrow products count.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 32], requires = "latency")]
    latency_batches: Vec<usize>,
    /// Tokens of every row.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [32, 128], requires = "latency")]
    latency_lengths: Vec<usize>,
    /// Timed runs of each batch size and length, at most.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "latency")]
    latency_repeats: usize,
    /// Seconds after which a batch size and length is left with fewer runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, requires = "latency")]
    latency_seconds: f64,
}

/// A pruned model to measure. Weights do not matter to it: the dense model under the masks is measured.
struct Wanted {
    dense: PathBuf,
    masks: PathBuf,
    file: PathBuf,
}

impl LatencyOptions {
    /// Fails where a latency was measured of other masks than those that are there; before more are to be measured, also where
    /// it was on another device or in another way.
    pub fn check(&self, context: &Context, grid: &Grid, measures: bool) -> Result<()> {
        for wanted in wanted(grid).iter().filter(|wanted| wanted.file.is_file()) {
            let record = RunRecord::read(&wanted.file)?;
            let place = |device: &str, threads: usize| format!("{device} with {threads} threads");
            let then = place(&record.device, record.threads);
            let now = place(&context.device.to_string(), context.threads());
            let problem = if !identity::made_of(&record, "masks", &wanted.masks)? {
                Some("is of other masks than those that are there now".to_string())
            } else if !measures {
                None
            } else if then != now {
                Some(format!("was measured on {then}, and {now} is asked for"))
            } else {
                let found = identity::difference(&record, &self.arguments(context, wanted), &grid.out);
                found.map(|difference| format!("was measured with {difference}"))
            };
            if let Some(problem) = problem {
                return Err(Error::usage(format!(
                    "the latency in {} {problem}: remove it, or begin another --out",
                    wanted.file.display()
                )));
            }
        }
        Ok(())
    }

    /// Measures what has not been measured, one model at a time.
    pub fn measure(&self, context: &Context, program: &Path, grid: &Grid) -> Result<()> {
        let mut wanted = wanted(grid);
        wanted.retain(|wanted| !wanted.file.is_file());
        let mut stage = context.progress.stage("latency", wanted.len() as u64, "models");
        for wanted in &wanted {
            let (temporary, log) = (wanted.file.with_extension("partial"), wanted.file.with_extension("log"));
            let folder = wanted.file.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "creating"))?;
            let create = |path: &Path| File::create(path).map_err(Error::io(path, "creating"));
            let mut command = Command::new(program);
            command.args(self.arguments(context, wanted)).stdout(create(&temporary)?).stderr(create(&log)?);
            if let Some(threads) = context.given_threads() {
                command.args(["--threads", &threads.to_string()]);
            }
            let child = processes::start(&mut command).map_err(Error::io(program, "starting"))?;
            let status = processes::wait(context, child)?.map_err(Error::io(program, "waiting for"))?;
            if !status.success() {
                let text = std::fs::read(&log).map_err(Error::io(&log, "reading"))?;
                let text = String::from_utf8_lossy(&text);
                return Err(Error::usage(format!("latency of {}: {}", wanted.masks.display(), text.trim())));
            }
            std::fs::rename(&temporary, &wanted.file).map_err(Error::io(&wanted.file, "renaming"))?;
            std::fs::remove_file(&log).map_err(Error::io(&log, "removing"))?;
            stage.advance(1);
        }
        Ok(())
    }

    fn arguments(&self, context: &Context, wanted: &Wanted) -> Vec<String> {
        let numbers = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let (dense, masks) = (wanted.dense.display().to_string(), wanted.masks.display().to_string());
        let mut arguments: Vec<String> = ["evaluate", "--latency", "--json"].map(String::from).into();
        let values = [
            ("--model", dense.clone()),
            ("--against", dense),
            ("--masks", masks),
            ("--latency-batches", numbers(&self.latency_batches)),
            ("--latency-lengths", numbers(&self.latency_lengths)),
            ("--latency-repeats", self.latency_repeats.to_string()),
            ("--latency-seconds", self.latency_seconds.to_string()),
        ];
        arguments.extend(values.into_iter().flat_map(|(name, value)| [name.to_string(), value]));
        arguments.extend(context.device_arguments());
        arguments
    }
}

/// The pruned models of the first seed whose masks are there.
fn wanted(grid: &Grid) -> Vec<Wanted> {
    let Some(&seed) = grid.seeds.first() else { return Vec::new() };
    let mut found = Vec::new();
    for task in &grid.tasks {
        let dense = grid.directory(&grid.dense(task, seed));
        for method in &grid.methods {
            for &keep in &grid.keep {
                let cell = Grid::name(task, seed, &format!("{}/keep-{keep}", method.label));
                let masks = grid.directory(&cell).join("masks.json");
                let file = results::latency_file(grid, task, seed, &method.label, keep);
                if masks.is_file() && dense.is_dir() {
                    found.push(Wanted { dense: dense.clone(), masks, file });
                }
            }
        }
    }
    found
}
