//! `secateur compare`

mod latency;
mod processes;
mod runner;

use std::path::{Path, PathBuf};

use clap::{Args, Parser as _, ValueEnum as _};
use secateur::compare::grid::{self, Cell, Grid, MethodEntry, TaskEntry};
use secateur::compare::results::Results;
use secateur::compare::{identity, page};
use secateur::data::Task;
use secateur::report::format::shell_word;
use secateur::{Error, Result};

use super::context::Context;
use super::dual_cp::control;
use super::options::{Profile, RecipeOptions, value_name};
use super::prune_options::{Method, StageName};
use super::{load, training};
use latency::LatencyOptions;
use runner::Runner;

/// Run methods side by side on the same tasks, seeds and budgets, and draw the curves.
///
/// The grid is cut into cells, each one command of this program. Two things are computed once: the fine-tuned model of a
/// task and seed, which all methods are measured against, and a method's scores, which serve all its budgets. Dual-CP and
/// its controls are cut from the same trees; every other method calibrates for itself. A finished cell is never run again,
/// so the same command continues after an interruption, and more tasks, methods and seeds add to a grid that has run; a
/// finished cell that was run with other arguments is an error, not mixed in. With --list the cells are printed as commands
/// for a scheduler; --gather then makes the tables of whatever has run.
///
/// Writes compare.csv, compare.json and compare.html to the output directory, the cells below `cells`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur compare --model bert-base-uncased --tasks mrpc=MRPC,rte=RTE --methods dual-cp,kcm,mask-tuning \\\n      \
                  --keep-flops 0.8,0.6,0.4 --seeds 1,2,3 --jobs 2 --out compared\n  \
                  secateur compare --model gpt2 --tasks lm:wikitext-2=WIKI,lm:ptb=PTB --methods mask-tuning --choose mask-tuning:rearrange=false \\\n      \
                  --keep-flops 0.8 --out compared\n  \
                  secateur compare … --list    the cells as commands, in blocks that may run side by side\n  \
                  secateur compare … --gather  tables and page of the cells that are there"
)]
pub struct Compare {
    /// Directory of the pre-trained model, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: String,
    /// Tasks with their data, `mrpc=PATH`; the built-in task `agreement` needs none. A task that stands more than once, on other
    /// data each time, is told apart by labels: `lm:wikitext-2=PATH,lm:ptb=PATH`. Cells and tables go by the label.
    #[arg(long, value_name = "TASK[:LABEL][=PATH]", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Methods.
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    methods: Vec<Method>,
    /// Prune before or after fine-tuning, whatever a method was published for; `pre,post` does both. A method that is turned
    /// round is called after its stage too: kcm-pre.
    #[arg(long, value_enum, value_delimiter = ',')]
    stage: Vec<StageName>,
    /// Set of choices that every method starts from.
    #[arg(long, value_enum, default_value_t = Profile::Default)]
    profile: Profile,
    /// Change one choice of one method; repeatable. `secateur methods METHOD` lists a method's choices; those of dual-cp,
    /// which its controls follow, are the dual-cp options of `secateur prune`: `dual-cp:lambda=3`.
    #[arg(long, value_name = "METHOD:NAME=VALUE")]
    choose: Vec<String>,
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
    recipe: RecipeOptions,
    #[command(flatten)]
    latency: LatencyOptions,
    /// Cells that run at the same time; the worker threads are shared out among them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: u32,
    /// Print the cells that have not run as commands for a shell, one a line, and stop. Lines of a block need those of the
    /// blocks before. Latency is not among them.
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
        if let Some(seed) = context.given_seed() {
            return Err(Error::usage(format!(
                "compare takes --seeds {seed}, not --seed: every cell has its own"
            )));
        }
        let grid = self.grid(context)?;
        grid.check()?;
        if !self.gather {
            self.check_inputs(&grid)?;
        }
        let program = std::env::current_exe().map_err(Error::io(Path::new("secateur"), "finding"))?;
        let cells = grid.cells();
        identity::check(&grid, &cells)?;
        if self.list {
            context.write(&list(&program, &cells, context.given_threads()));
            return Ok(());
        }
        self.latency.check(context, &grid, self.latency.latency && !self.gather)?;
        let runner =
            Runner { context, program: &program, jobs: self.jobs as usize, grid: &grid, cells: &cells };
        let mut failed = Vec::new();
        if !self.gather {
            std::fs::create_dir_all(&grid.out).map_err(Error::io(&grid.out, "creating"))?;
            failed = runner.run()?;
        }
        // Of the failures first: what follows may fail for want of those cells.
        let tables = self.tables(context, &program, &grid, &cells);
        if failed.is_empty() { tables } else { Err(runner.failure(&failed)) }
    }

    /// Measures latencies, where asked for, and writes and shows what there is.
    fn tables(&self, context: &Context, program: &Path, grid: &Grid, cells: &[Cell]) -> Result<()> {
        // Again: a model that was made anew may not be the one that older cells pruned.
        identity::check(grid, cells)?;
        if self.latency.latency && !self.gather {
            self.latency.measure(context, program, grid)?;
        }
        let found = Results::gather(grid)?;
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
        Ok(())
    }

    /// Fails on what every cell would fail on.
    fn check_inputs(&self, grid: &Grid) -> Result<()> {
        load::source(&self.model)?;
        for entry in &grid.tasks {
            let task = Task::by_name(&entry.name)?;
            match &entry.data {
                None if task.name != "agreement" => {
                    let name = &entry.name;
                    return Err(Error::usage(format!("the task {name} needs data: --tasks {name}=PATH")));
                }
                Some(_) if task.name == "agreement" => {
                    return Err(Error::usage("the task agreement is built in and reads no data"));
                }
                Some(path) if !path.exists() => {
                    let message =
                        format!("the data of the task {}: {} does not exist", entry.label, path.display());
                    return Err(Error::usage(message));
                }
                _ => {}
            }
            training::recipe(&self.recipe, training::usual_recipe(&task)?)?;
        }
        Ok(())
    }

    fn grid(&self, context: &Context) -> Result<Grid> {
        let number = |name: &str, value: Option<usize>| {
            value.map_or(Vec::new(), |value| vec![name.to_string(), value.to_string()])
        };
        Ok(Grid {
            // A directory, or a name that is looked up in the cache.
            model: if Path::new(&self.model).is_dir() {
                absolute(Path::new(&self.model))?.display().to_string()
            } else {
                self.model.clone()
            },
            tasks: self.tasks.iter().map(|text| task(text)).collect::<Result<_>>()?,
            methods: self.methods()?,
            keep: self.keep_flops.clone(),
            seeds: self.seeds.clone(),
            dense_seed: self.dense_seed,
            out: std::path::absolute(&self.out).map_err(Error::io(&self.out, "finding"))?,
            common: context.device_arguments(),
            task_arguments: [
                number("--max-length", self.max_length),
                number("--train-rows", self.train_rows),
                number("--eval-rows", self.eval_rows),
            ]
            .concat(),
            train_arguments: self.recipe.arguments(),
            prune_arguments: number("--calibration-rows", self.calibration_rows),
            keep_models: self.keep_models,
        })
    }

    /// Every method at every stage asked for, with its choices.
    fn methods(&self) -> Result<Vec<MethodEntry>> {
        let choices = self.choices()?;
        let mut found = Vec::new();
        for method in &self.methods {
            let (name, own) = (method.name(), method.stage());
            let mut arguments = Vec::new();
            if self.profile != Profile::Default {
                arguments.extend(["--profile".to_string(), value_name(&self.profile)]);
            }
            // A control is one of the very Dual-CP it stands beside.
            let trees = if is_of_dual_cp(*method) { Method::DualCp } else { *method };
            for (_, choice, value) in choices.iter().filter(|(chosen, ..)| *chosen == trees) {
                arguments.extend(method_argument(*method, self.profile, choice, value)?);
            }
            let asked = self.stage.iter().map(|&stage| stage.into());
            let stages: Vec<_> = if self.stage.is_empty() { vec![own] } else { asked.collect() };
            found.extend(stages.into_iter().map(|stage| MethodEntry {
                name: name.clone(),
                label: MethodEntry::label_of(&name, stage, own),
                stage,
                arguments: arguments.clone(),
                trees: is_of_dual_cp(*method).then(|| Method::DualCp.name()),
            }));
        }
        Ok(found)
    }

    /// The choices given: method, name, value.
    fn choices(&self) -> Result<Vec<(Method, &str, &str)>> {
        let mut found: Vec<(Method, &str, &str)> = Vec::new();
        for text in &self.choose {
            let wrong = |why: String| Error::usage(format!("--choose {text}: {why}"));
            let parts =
                text.split_once(':').and_then(|(method, choice)| Some((method, choice.split_once('=')?)));
            let Some((method, (name, value))) = parts else {
                return Err(wrong("expected METHOD:NAME=VALUE".into()));
            };
            let given = |method: &Method| match method {
                Method::DualCp => self.methods.iter().any(|&method| is_of_dual_cp(method)),
                method => self.methods.contains(method),
            };
            let method = Method::from_str(method, false)
                .ok()
                .filter(given)
                .ok_or_else(|| wrong(format!("{method} is not among the --methods")))?;
            if control(method).is_some() {
                return Err(wrong("it is cut from the trees of dual-cp: choose for that".into()));
            }
            if found.iter().any(|(m, n, _)| (*m, *n) == (method, name)) {
                return Err(wrong("chosen twice".into()));
            }
            found.push((method, name, value));
        }
        Ok(found)
    }
}

/// Whether a method is Dual-CP or one of its controls.
fn is_of_dual_cp(method: Method) -> bool {
    method == Method::DualCp || control(method).is_some()
}

/// A task of the command line, with its data where it has some.
fn task(text: &str) -> Result<TaskEntry> {
    let (names, data) = match text.split_once('=') {
        Some((names, data)) => (names, Some(absolute(Path::new(data))?)),
        None => (text, None),
    };
    let (name, label) = names.split_once(':').unwrap_or((names, names));
    Ok(TaskEntry { name: name.into(), label: label.into(), data })
}

/// The same place from any directory, whatever links lead to it; a place that is not there as it was typed.
fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().or_else(|_| std::path::absolute(path)).map_err(Error::io(path, "finding"))
}

/// The arguments of a command that prunes by `method` with one choice changed; fails where it has no such choice.
fn method_argument(method: Method, profile: Profile, name: &str, value: &str) -> Result<Vec<String>> {
    if let Some(mut job) = method.job(profile) {
        job.choose(name, value)?;
        return Ok(vec!["--choose".into(), format!("{name}={value}")]);
    }
    // Dual-CP and its controls have options of their own, which the command knows best.
    let arguments = vec![format!("--{name}"), value.to_string()];
    const OF_DUAL_CP: [&str; 7] =
        ["lambda", "delta", "calibration-tokens", "linkage", "space", "centroid", "on-infeasible"];
    let wrong = |why: &str| Error::usage(format!("--choose {}:{name}={value}: {why}", method.name()));
    if !OF_DUAL_CP.contains(&name) {
        return Err(wrong(&format!("it has {}", OF_DUAL_CP.join(", "))));
    }
    let command = ["secateur", "prune", "--model", "m", "--out", "o", "--keep-flops", "1"].map(String::from);
    match super::Cli::try_parse_from(command.into_iter().chain(arguments.iter().cloned())) {
        Ok(_) => Ok(arguments),
        Err(error) => {
            let text = error.to_string();
            Err(wrong(text.lines().next().unwrap_or_default().trim_start_matches("error: ")))
        }
    }
}

/// The cells that have not run, in blocks by what they wait for, as lines that a shell runs from any directory.
fn list(program: &Path, cells: &[Cell], threads: Option<u32>) -> String {
    let depths = grid::depths(cells);
    let mut text = String::new();
    for depth in 0..=depths.iter().copied().max().unwrap_or(0) {
        text.push_str(&format!("# block {}\n", depth + 1));
        for (cell, _) in cells.iter().zip(&depths).filter(|(_, d)| **d == depth) {
            if cell.finished() || cell.out_of_reach(cells) {
                continue;
            }
            let mut arguments = cell.arguments.clone();
            arguments.extend(threads.iter().flat_map(|n| ["--threads".to_string(), n.to_string()]));
            // A budget that turns out to be out of reach leaves nothing to do, and is no failure.
            if let (Some(before), Some(file)) = (cell.after, &cell.needs) {
                let words =
                    [&cells[before].directory, file].map(|path| shell_word(&path.display().to_string()));
                text.push_str(&format!("[ -d {} ] && [ ! -f {} ] || ", words[0], words[1]));
            }
            text.push_str(&grid::shell_line(program, &arguments));
            text.push('\n');
        }
    }
    text
}
