//! `secateur compare`

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use clap::Args;
use secateur::compare::grid::{self, Cell, Grid, MethodEntry, TaskEntry};
use secateur::compare::page;
use secateur::compare::results::{self, Results};
use secateur::{Error, Result};

use super::context::Context;
use super::latency::LatencyOptions;
use super::options::TrainOptions;
use super::prune_options::{Method, StageName};

/// Run methods side by side on the same tasks, seeds and budgets, and draw the curves.
///
/// The grid is cut into cells, each one command of this program. What cells share is computed once: the fine-tuned model
/// of a task and seed, a method's scores for all budgets. A finished cell is never run again, so the same command
/// continues after an interruption, and more tasks, methods and seeds add to a grid that has run. With --list the cells
/// are printed as commands for a scheduler; --gather then makes the tables of whatever has run.
///
/// Writes compare.csv, compare.json and compare.html to the output directory, the cells below `cells`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur compare --model bert-base-uncased --tasks mrpc=MRPC,rte=RTE --methods dual-cp,kcm,mask-tuning \\\n      \
                  --keep-flops 0.8,0.6,0.4 --seeds 1,2,3 --jobs 2 --out compared\n  \
                  secateur compare … --list    the cells as commands, in blocks that may run side by side\n  \
                  secateur compare … --gather  tables and page of the cells that are there"
)]
pub struct Compare {
    /// Directory of the pre-trained model, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: String,
    /// Tasks with their data, `mrpc=PATH`; the built-in task `agreement` needs none.
    #[arg(long, value_name = "TASK[=PATH]", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Methods.
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    methods: Vec<Method>,
    /// Prune before or after fine-tuning, whatever a method was published for.
    #[arg(long, value_enum)]
    stage: Option<StageName>,
    /// Budgets: fractions of the blocks' FLOPs to keep. Those a method cannot reach are left out and said.
    #[arg(long, value_name = "F", value_delimiter = ',', required = true)]
    keep_flops: Vec<f64>,
    /// Seeds of calibration, fine-tuning and controls.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1])]
    seeds: Vec<u64>,
    /// Fine-tune one dense model a task, with this seed, and prune it under every seed: deviations are then of the
    /// calibration alone, as where methods prune one published checkpoint. Default: a dense model for each seed.
    #[arg(long, value_name = "N")]
    dense_seed: Option<u64>,
    /// Most tokens of a row; longer ones are cut.
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Use only the first N training rows.
    #[arg(long, value_name = "N")]
    train_rows: Option<usize>,
    /// Use only the first N evaluation rows.
    #[arg(long, value_name = "N")]
    eval_rows: Option<usize>,
    /// Calibration rows, in place of each method's own number.
    #[arg(long, value_name = "N")]
    calibration_rows: Option<usize>,
    #[command(flatten)]
    train: TrainOptions,
    #[command(flatten)]
    latency: LatencyOptions,
    /// Cells that run at the same time; the worker threads are shared out among them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: u32,
    /// Print the cells that have not run as commands, one a line, and stop. Lines of a block need those of the blocks
    /// before.
    #[arg(long, conflicts_with = "gather")]
    list: bool,
    /// Run nothing; make tables and page of the cells that are there.
    #[arg(long)]
    gather: bool,
    /// Keep the pruned models, not only their masks and records.
    #[arg(long)]
    keep_models: bool,
    /// Directory of the comparison; an existing one is continued.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Compare {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let grid = self.grid(context)?;
        grid.check()?;
        let program = std::env::current_exe().map_err(Error::io(Path::new("secateur"), "finding"))?;
        let cells = grid.cells();
        if self.list {
            context.write(&list(&program, &cells));
            return Ok(());
        }
        let mut failed = Vec::new();
        if !self.gather {
            grid.check_budgets()?;
            std::fs::create_dir_all(&grid.out).map_err(Error::io(&grid.out, "creating"))?;
            failed = Runner { context, program: &program, jobs: self.jobs as usize }.run(&grid, &cells)?;
            if self.latency.latency {
                self.measure_latency(context, &program, &grid)?;
            }
        }
        let found = Results::gather(&grid)?;
        if found.rows.is_empty() {
            return Err(Error::usage(format!("{}: no cell has run", grid.out.display())));
        }
        let json = serde_json::to_value(&found).map_err(|e| Error::format(&grid.out, e.to_string()))?;
        for (name, text) in [
            ("compare.csv", found.csv()?),
            ("compare.json", format!("{json:#}\n")),
            ("compare.html", page::render(&found)),
        ] {
            let path = grid.out.join(name);
            std::fs::write(&path, text).map_err(Error::io(&path, "writing"))?;
        }
        context.print(&json, &format!("{}\nin {}\n", page::text(&found, false), grid.out.display()));
        match failed.as_slice() {
            [] => Ok(()),
            failed => {
                let message =
                    format!("{} cells failed, this is their output: {}", failed.len(), failed.join(", "));
                Err(Error::format(grid.out.join("logs"), message))
            }
        }
    }

    fn grid(&self, context: &Context) -> Result<Grid> {
        let task = |text: &String| match text.split_once('=') {
            Some((name, data)) => TaskEntry { name: name.into(), data: Some(data.into()) },
            None => TaskEntry { name: text.clone(), data: None },
        };
        let method = |method: &Method| MethodEntry {
            name: method.name(),
            stage: self.stage.map_or(method.stage(), Into::into),
        };
        let mut common = context.device_arguments();
        let threads = (context.threads() / self.jobs as usize).max(1);
        common.extend(["--threads".into(), threads.to_string()]);
        let number = |name: &str, value: Option<usize>| {
            value.map_or(Vec::new(), |value| vec![name.to_string(), value.to_string()])
        };
        Ok(Grid {
            model: self.model.clone(),
            tasks: self.tasks.iter().map(task).collect(),
            methods: self.methods.iter().map(method).collect(),
            keep: self.keep_flops.clone(),
            seeds: self.seeds.clone(),
            dense_seed: self.dense_seed,
            out: self.out.clone(),
            common,
            task_arguments: [
                number("--max-length", self.max_length),
                number("--train-rows", self.train_rows),
                number("--eval-rows", self.eval_rows),
            ]
            .concat(),
            train_arguments: self.train.arguments(),
            prune_arguments: number("--calibration-rows", self.calibration_rows),
            keep_models: self.keep_models,
        })
    }

    /// Latency of every pruned model beside the dense one of its task and seed, one at a time, on a machine that does
    /// nothing else. Weights do not matter to it: the dense model under the masks is measured.
    fn measure_latency(&self, context: &Context, program: &Path, grid: &Grid) -> Result<()> {
        let Some(&seed) = grid.seeds.first() else { return Ok(()) };
        let mut wanted = Vec::new();
        for task in &grid.tasks {
            let dense = grid.directory(&grid.dense(task, seed));
            for method in &grid.methods {
                for &keep in &grid.keep {
                    let cell = Grid::name(task, seed, &format!("{}/keep-{keep}", method.name));
                    let masks = grid.directory(&cell).join("masks.json");
                    let file = results::latency_file(grid, task, seed, &method.name, keep);
                    if masks.is_file() && dense.is_dir() && !file.is_file() {
                        wanted.push((dense.clone(), masks, file));
                    }
                }
            }
        }
        let mut stage = context.progress.stage("latency", wanted.len() as u64, "models");
        for (dense, masks, file) in wanted {
            context.progress.check(|| "the same command continues".into())?;
            let folder = file.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "creating"))?;
            let numbers =
                |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            let output = Command::new(program)
                .args(["evaluate", "--latency", "--json", "--model"])
                .arg(&dense)
                .arg("--against")
                .arg(&dense)
                .arg("--masks")
                .arg(&masks)
                .args(["--latency-batches", &numbers(&self.latency.latency_batches)])
                .args(["--latency-lengths", &numbers(&self.latency.latency_lengths)])
                .args(["--latency-repeats", &self.latency.latency_repeats.to_string()])
                .args(["--latency-seconds", &self.latency.latency_seconds.to_string()])
                .args(context.device_arguments())
                .output()
                .map_err(Error::io(program, "running"))?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr);
                return Err(Error::usage(format!("latency of {}: {}", masks.display(), text.trim())));
            }
            let temporary = file.with_extension("partial");
            std::fs::write(&temporary, &output.stdout).map_err(Error::io(&temporary, "writing"))?;
            std::fs::rename(&temporary, &file).map_err(Error::io(&file, "renaming"))?;
            stage.advance(1);
        }
        Ok(())
    }
}

/// The cells that have not run, in blocks by what they wait for.
fn list(program: &Path, cells: &[Cell]) -> String {
    let depths = grid::depths(cells);
    let mut text = String::new();
    for depth in 0..=depths.iter().copied().max().unwrap_or(0) {
        text.push_str(&format!("# block {}\n", depth + 1));
        for (cell, _) in cells.iter().zip(&depths).filter(|(cell, d)| **d == depth && !cell.finished()) {
            text.push_str(&grid::shell_line(program, &cell.arguments));
            text.push('\n');
        }
    }
    text
}

/// Runs cells as processes.
struct Runner<'a> {
    context: &'a Context,
    program: &'a Path,
    jobs: usize,
}

/// A cell that runs.
struct Running {
    index: usize,
    child: Child,
    started: Instant,
}

/// How often running cells are looked at.
const POLL: Duration = Duration::from_millis(100);

impl Runner<'_> {
    /// Runs what has not run; names of cells that failed. What waits for a failed cell does not run.
    fn run(&self, grid: &Grid, cells: &[Cell]) -> Result<Vec<String>> {
        let mut waiting: Vec<usize> = (0..cells.len()).filter(|&i| !cells[i].finished()).collect();
        let mut stage = self.context.progress.stage("cells", waiting.len() as u64, "cells");
        let (mut running, mut failed): (Vec<Running>, Vec<usize>) = (Vec::new(), Vec::new());
        let outcome = loop {
            if let Err(stopped) = self.context.progress.check(|| "the same command continues".into()) {
                break Err(stopped);
            }
            let mut still = Vec::new();
            for mut one in running {
                let Some(status) = one.child.try_wait().map_err(Error::io(self.program, "waiting for"))?
                else {
                    still.push(one);
                    continue;
                };
                let (name, seconds) = (&cells[one.index].name, one.started.elapsed().as_secs_f64());
                if status.success() {
                    self.context.progress.note(format!("{name} in {seconds:.0} s"));
                } else {
                    self.context.progress.warn(format!("{name} failed after {seconds:.0} s"));
                    failed.push(one.index);
                }
                stage.advance(1);
            }
            running = still;
            // A budget out of reach left no masks; and nothing can follow a failure.
            let before = waiting.len();
            waiting.retain(|&index| {
                let cell = &cells[index];
                let after_failure = cell.after.is_some_and(|before| failed.contains(&before));
                let out_of_reach = cell.after.is_none_or(|before| cells[before].finished())
                    && cell.needs.as_ref().is_some_and(|file| !file.is_file());
                !after_failure && !out_of_reach
            });
            stage.advance((before - waiting.len()) as u64);
            while running.len() < self.jobs {
                let ready = |&index: &usize| cells[index].after.is_none_or(|before| cells[before].finished());
                let Some(at) = waiting.iter().position(ready) else { break };
                let index = waiting.remove(at);
                running.push(self.start(grid, &cells[index], index)?);
            }
            if running.is_empty() {
                break Ok(());
            }
            std::thread::sleep(POLL);
        };
        // Children got the same signal from the terminal; they save their checkpoints and end.
        for mut one in running {
            let _ = one.child.wait();
        }
        outcome?;
        Ok(failed.into_iter().map(|index| cells[index].name.clone()).collect())
    }

    fn start(&self, grid: &Grid, cell: &Cell, index: usize) -> Result<Running> {
        let folder = grid.out.join("logs");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "creating"))?;
        let parent = cell.directory.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(Error::io(parent, "creating"))?;
        let path = folder.join(format!("{}.log", cell.name.replace('/', "_")));
        let mut log =
            File::options().create(true).append(true).open(&path).map_err(Error::io(&path, "opening"))?;
        writeln!(log, "$ {}", grid::shell_line(self.program, &cell.arguments))
            .map_err(Error::io(&path, "writing"))?;
        let errors = log.try_clone().map_err(Error::io(&path, "opening"))?;
        let mut command = Command::new(self.program);
        command.args(&cell.arguments).stdin(std::process::Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().map_err(Error::io(self.program, "starting"))?;
        Ok(Running { index, child, started: Instant::now() })
    }
}
