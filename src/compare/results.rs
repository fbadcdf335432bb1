//! Records of cells, gathered: one row for each task, seed, method and budget, and means over seeds.

use std::path::Path;

use serde::Serialize;

use super::grid::{DENSE, Grid, MethodEntry, TaskEntry};
use crate::error::{Error, Result};
use crate::eval::latency::Latency;
use crate::prune::{Stage, UnitMasks};
use crate::report::RunRecord;

/// One model of the comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Label of the task.
    pub task: String,
    /// Seed.
    pub seed: u64,
    /// Label of the method, "dense" for the model unpruned.
    pub method: String,
    /// Whether it was pruned before or after fine-tuning; absent for the dense model.
    pub stage: Option<Stage>,
    /// Fraction of FLOPs asked for.
    pub keep: f64,
    /// Fraction of FLOPs kept.
    pub reached: f64,
    /// Name of the metric.
    pub metric: String,
    /// Its value on the development rows.
    pub value: f64,
    /// Whether more of it is better.
    pub larger_is_better: bool,
    /// Parameters of the whole model.
    pub parameters: Option<u64>,
    /// Seconds of pruning, calibration included, for all budgets of the method together; those of Dual-CP and its controls
    /// are the same seconds.
    pub pruning_seconds: Option<f64>,
    /// Seconds of fine-tuning this model.
    pub training_seconds: Option<f64>,
    /// Seconds of a batch, where measured, beside those of the dense model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<Latency>,
    /// What it keeps.
    #[serde(skip)]
    pub masks: Option<UnitMasks>,
}

/// Mean and deviation over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Task.
    pub task: String,
    /// Method.
    pub method: String,
    /// Fraction of FLOPs asked for.
    pub keep: f64,
    /// Mean fraction of FLOPs kept.
    pub reached: f64,
    /// Mean of the metric.
    pub mean: f64,
    /// Standard deviation over seeds (n − 1); absent for one seed.
    pub deviation: Option<f64>,
    /// Seeds.
    pub seeds: usize,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Fields may be added under the same number, never renamed.
    pub format: u32,
    /// The pre-trained model.
    pub model: String,
    /// Every model, in the order of tasks, methods, budgets, seeds.
    pub rows: Vec<Row>,
    /// Means over seeds, in the same order.
    pub summary: Vec<Summary>,
    /// Models whose cells have not run.
    pub missing: Vec<String>,
    /// Models whose budget was out of the method's reach.
    pub out_of_reach: Vec<String>,
}

/// File beside a cell's masks that holds its latency.
pub const LATENCY: &str = "latency.json";

impl Results {
    /// Reads what the cells of `grid` left. A model whose cell has not run, or had nothing to do, is listed as such; a
    /// damaged record is an error.
    pub fn gather(grid: &Grid) -> Result<Results> {
        let (mut rows, mut missing, mut out_of_reach) = (Vec::new(), Vec::new(), Vec::new());
        for task in &grid.tasks {
            for seed in grid.dense_seeds() {
                let name = grid.dense(task, seed);
                match read(&grid.directory(&name))? {
                    Some(record) => rows.extend(row(task, seed, DENSE, None, 1.0, &record)),
                    None => missing.push(name),
                }
            }
            for method in &grid.methods {
                for &keep in &grid.keep {
                    for &seed in &grid.seeds {
                        match pruned(grid, task, seed, method, keep)? {
                            Found::Row(row) => rows.push(*row),
                            Found::OutOfReach(name) => out_of_reach.push(name),
                            Found::Nothing(name) => missing.push(name),
                        }
                    }
                }
            }
        }
        let summary = summarise(&rows);
        Ok(Results { format: 1, model: grid.model.clone(), rows, summary, missing, out_of_reach })
    }

    /// One line a row, with names of the columns; latencies are medians, a column for each batch size and length.
    pub fn csv(&self) -> Result<String> {
        let mut points: Vec<(usize, usize)> = Vec::new();
        for found in self.rows.iter().flat_map(|row| &row.latency) {
            if !points.contains(&(found.batch, found.length)) {
                points.push((found.batch, found.length));
            }
        }
        let mut heads: Vec<String> = [
            "task",
            "seed",
            "method",
            "stage",
            "keep",
            "reached",
            "metric",
            "value",
            "parameters",
            "pruning_seconds",
            "training_seconds",
        ]
        .map(String::from)
        .into();
        for (batch, length) in &points {
            heads.push(format!("seconds_{batch}x{length}"));
            heads.push(format!("dense_seconds_{batch}x{length}"));
        }
        let optional = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
        let mut lines = vec![heads];
        for row in &self.rows {
            let mut line = vec![
                row.task.clone(),
                row.seed.to_string(),
                row.method.clone(),
                row.stage.map_or("", Stage::name).into(),
                row.keep.to_string(),
                row.reached.to_string(),
                row.metric.clone(),
                row.value.to_string(),
                row.parameters.map_or(String::new(), |v| v.to_string()),
                optional(row.pruning_seconds),
                optional(row.training_seconds),
            ];
            for point in &points {
                for variant in ["model", "against"] {
                    let same = |l: &&Latency| (l.batch, l.length) == *point && l.variant == variant;
                    line.push(optional(row.latency.iter().find(same).map(|l| l.median)));
                }
            }
            lines.push(line);
        }
        let mut writer = csv::Writer::from_writer(Vec::new());
        let broken = |e: &dyn std::fmt::Display| Error::format("compare.csv", e.to_string());
        lines.iter().try_for_each(|line| writer.write_record(line)).map_err(|e| broken(&e))?;
        let bytes = writer.into_inner().map_err(|e| broken(&e))?;
        String::from_utf8(bytes).map_err(|e| broken(&e))
    }

    /// Means of a task and method, by falling budget.
    pub fn of(&self, task: &str, method: &str) -> impl Iterator<Item = &Summary> {
        self.summary.iter().filter(move |s| s.task == task && s.method == method)
    }
}

/// What there is of a pruned model.
enum Found {
    Row(Box<Row>),
    OutOfReach(String),
    Nothing(String),
}

/// Looks for a pruned model: its record, its masks, the time its pruning took.
fn pruned(grid: &Grid, task: &TaskEntry, seed: u64, method: &MethodEntry, keep: f64) -> Result<Found> {
    let name = Grid::name(task, seed, &format!("{}/keep-{keep}", method.label));
    let folder = grid.directory(&name);
    // The cell that prunes, and what it left for this budget.
    let (cell, folder_of_budgets) = match method.stage {
        Stage::Post => (method.label.clone(), method.label.clone()),
        Stage::Pre => method.masks(),
    };
    let cell = grid.directory(&Grid::name(task, seed, &cell));
    let budgets = grid.directory(&Grid::name(task, seed, &folder_of_budgets));
    let of_pruning = budgets.join(format!("keep-{keep}"));
    if cell.is_dir() && !of_pruning.is_dir() {
        return Ok(Found::OutOfReach(name));
    }
    let found = match read(&folder)? {
        Some(record) => row(task, seed, &method.label, Some(method.stage), keep, &record),
        None => None,
    };
    let Some(mut row) = found else { return Ok(Found::Nothing(name)) };
    row.masks = masks(&folder)?;
    row.latency = latency(&latency_file(grid, task, seed, &method.label, keep))?;
    row.pruning_seconds = read(&of_pruning)?.as_ref().and_then(pruning_seconds);
    Ok(Found::Row(Box::new(row)))
}

/// Where the latency of a model is noted.
pub fn latency_file(grid: &Grid, task: &TaskEntry, seed: u64, method: &str, keep: f64) -> std::path::PathBuf {
    let name = Grid::name(task, seed, &format!("{method}/keep-{keep}"));
    grid.out.join("latency").join(name).join(LATENCY)
}

/// The record in a directory, if there is one.
fn read(folder: &Path) -> Result<Option<RunRecord>> {
    let path = folder.join("run.json");
    if path.is_file() { RunRecord::read(&path).map(Some) } else { Ok(None) }
}

fn masks(folder: &Path) -> Result<Option<UnitMasks>> {
    let path = folder.join("masks.json");
    if path.is_file() { UnitMasks::read(&path).map(Some) } else { Ok(None) }
}

fn latency(path: &Path) -> Result<Vec<Latency>> {
    if path.is_file() { RunRecord::read(path).map(|record| record.latency) } else { Ok(Vec::new()) }
}

/// Calibration and pruning.
fn pruning_seconds(record: &RunRecord) -> Option<f64> {
    let stages: Vec<f64> =
        ["calibration", "pruning"].iter().filter_map(|stage| record.seconds.get(stage).copied()).collect();
    (!stages.is_empty()).then(|| stages.iter().sum())
}

/// What a record says; nothing where it holds no evaluation.
fn row(
    task: &TaskEntry,
    seed: u64,
    method: &str,
    stage: Option<Stage>,
    keep: f64,
    record: &RunRecord,
) -> Option<Row> {
    let summary = record.task.as_ref()?;
    let evaluation = record.evaluations.last()?;
    Some(Row {
        task: task.label.clone(),
        seed,
        method: method.into(),
        stage,
        keep,
        reached: evaluation.keep_flops,
        metric: summary.metric.clone(),
        value: *evaluation.metrics.get(&summary.metric)?,
        larger_is_better: summary.larger_is_better,
        parameters: record
            .size
            .map(|size| size.parameters_kept)
            .or(record.model.as_ref().map(|model| model.parameters)),
        pruning_seconds: None,
        training_seconds: record.training.last().map(|training| training.seconds),
        latency: Vec::new(),
        masks: None,
    })
}

/// Means over seeds, in order of first appearance.
fn summarise(rows: &[Row]) -> Vec<Summary> {
    let mut found: Vec<Summary> = Vec::new();
    for row in rows {
        let same = |r: &&Row| r.task == row.task && r.method == row.method && r.keep == row.keep;
        if found.iter().any(|s| s.task == row.task && s.method == row.method && s.keep == row.keep) {
            continue;
        }
        let all: Vec<&Row> = rows.iter().filter(same).collect();
        let n = all.len() as f64;
        let mean = all.iter().map(|r| r.value).sum::<f64>() / n;
        let squares: f64 = all.iter().map(|r| (r.value - mean) * (r.value - mean)).sum();
        found.push(Summary {
            task: row.task.clone(),
            method: row.method.clone(),
            keep: row.keep,
            reached: all.iter().map(|r| r.reached).sum::<f64>() / n,
            mean,
            deviation: (all.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
            seeds: all.len(),
        });
    }
    found
}
