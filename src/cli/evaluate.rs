//! `secateur evaluate`

use std::path::PathBuf;

use clap::Args;
use secateur::data::{Dataset, Split, Task};
use secateur::eval::evaluate::Evaluator;
use secateur::model::HeadRequest;
use secateur::progress::Progress;
use secateur::prune::UnitMasks;
use secateur::report::record::{Evaluation as EvaluationRecord, InputFile};
use secateur::report::table::Table;
use secateur::report::{RunRecord, format};
use secateur::session::Session;
use secateur::{Error, Result};

use super::context::Context;
use super::load;
use super::options::{ModelOptions, TaskOptions};

/// Most tokens of an evaluation batch.
const TOKEN_BUDGET: usize = 4096;

/// Measure a fine-tuned model on a task.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur evaluate --model tuned --task mrpc --data MRPC\n  secateur evaluate --model tuned --task mrpc --data MRPC --masks masks.json"
)]
pub struct Evaluate {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    task: TaskOptions,
    /// Apply these head and neuron masks.
    #[arg(long, value_name = "FILE")]
    masks: Option<PathBuf>,
    /// Split to evaluate: dev or test.
    #[arg(long, value_name = "NAME", default_value = "dev", value_parser = ["dev", "test"])]
    split: String,
}

impl Evaluate {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let mut record = context.record("evaluate");
        let source = load::source(&self.model.model)?;
        let mut task = load::task(&self.task)?;
        let masks = self.masks.as_deref().map(UnitMasks::read).transpose()?;
        if let (Some(masks), Some(path)) = (&masks, &self.masks) {
            masks
                .check_widths(&load::widths(&source.config))
                .map_err(|e| Error::format(path, e.to_string()))?;
            record.inputs.push(InputFile::hash("masks", path)?);
        }
        // A table's classes are those the model was trained with, in its order.
        if task.labels.is_empty() {
            task.labels.clone_from(&source.config.labels);
        }
        let split = if self.split == "test" { Split::Test } else { Split::Dev };
        let data = load::split(context, &mut record, &mut task, &self.task, &source, split)?;
        let request = HeadRequest::Task(load::head(&task));
        let model = load::weights(context, &mut record, &source.directory, &self.model.model, request)?;
        if !model.report.initialised.is_empty() {
            let message = format!(
                "{} has no trained head for the task {}: fine-tune it first",
                self.model.model, task.name
            );
            return Err(Error::usage(message));
        }
        let mut session = Session::new(model, context.device)?;
        let variant = if masks.is_some() { "masked" } else { "model" };
        let found =
            measure(&mut session, &task, &data, masks.as_ref(), variant, &self.split, &context.progress)?;
        record.evaluations.push(found);
        context.finish(&mut record);
        context.show(&[record.clone()], |styled| summary(&record, styled));
        Ok(())
    }
}

/// Evaluates; the seconds are those of one pass over the data, reading excluded.
pub fn measure(
    session: &mut Session,
    task: &Task,
    data: &Dataset,
    masks: Option<&UnitMasks>,
    variant: &str,
    split: &str,
    progress: &Progress,
) -> Result<EvaluationRecord> {
    let mut evaluator = Evaluator::new(session, task, data, TOKEN_BUDGET, masks.is_some())?;
    if let Some(masks) = masks {
        evaluator.set_masks(session, masks)?;
    }
    let start = std::time::Instant::now();
    let found = evaluator.run(session, task, data, progress)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut metrics: secateur::report::Ordered<f64> =
        found.metrics.values().iter().map(|(metric, value)| (metric.name(), *value)).collect();
    if let Some(value) = found.token_perplexity {
        metrics.set("token_perplexity", value);
    }
    Ok(EvaluationRecord {
        variant: variant.into(),
        split: split.into(),
        keep_flops: 1.0,
        metrics,
        rows: data.examples.len(),
        seconds,
    })
}

/// One line a model.
pub fn summary(record: &RunRecord, styled: bool) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in record.evaluations.iter().flat_map(|e| e.metrics.iter()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let heads: Vec<String> = ["model".to_string(), "split".into()]
        .into_iter()
        .chain(names.iter().map(|name| format!("{name}>")))
        .chain(["rows>".into(), "seconds>".into()])
        .collect();
    let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    for evaluation in &record.evaluations {
        let metrics =
            names.iter().map(|n| evaluation.metrics.get(n).map_or(String::new(), |v| format::metric(*v)));
        let tail = [evaluation.rows.to_string(), format!("{:.2}", evaluation.seconds)];
        let first = [evaluation.variant.clone(), evaluation.split.clone()];
        table.row(first.into_iter().chain(metrics).chain(tail));
    }
    table.render(styled)
}
