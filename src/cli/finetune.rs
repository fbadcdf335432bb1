//! `secateur finetune`

use std::path::PathBuf;

use clap::Args;
use secateur::Result;
use secateur::data::Split;
use secateur::model::HeadRequest;
use secateur::report::table::Table;
use secateur::report::{RunRecord, format};

use super::context::Context;
use super::options::{ModelOptions, OutputOptions, TaskOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::prune::write_report;
use super::{evaluate, load, training};

/// Train a model for a task, evaluate it after every epoch, and write the best epoch's model.
///
/// Writes model.safetensors, config.json, the tokenizer, run.json and report.html. What the checkpoint lacks (a new task
/// head) is drawn by the seed. Interrupted with Ctrl-C, the run is continued by the same command with --resume.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur finetune --model bert-base-uncased --task mrpc --data MRPC --epochs 3 --out tuned\n  \
                  secateur finetune --model bert-base-uncased --masks pruned/masks.json --task mrpc --data MRPC --out small"
)]
pub struct Finetune {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    task: TaskOptions,
    /// Remove the heads and neurons that these masks set to zero before training; other values become part of the
    /// weights.
    #[arg(long, value_name = "FILE")]
    masks: Option<PathBuf>,
    #[command(flatten)]
    train: TrainOptions,
    /// Write the records, not the model.
    #[arg(long)]
    no_model: bool,
    #[command(flatten)]
    output: OutputOptions,
}

impl Finetune {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let source = load::source(&self.model.model)?;
        let mut task = load::task(&self.task)?;
        let recipe = training::recipe(&self.train.recipe, training::usual_recipe(&task)?)?;
        let output = Output::create(&self.output, self.train.resume)?;
        let mut record = context.record("finetune");
        let masks = match &self.masks {
            Some(path) => Some(load::unit_masks(&mut record, path, &source.config.widths())?),
            None => None,
        };
        let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
        let dev = load::split(context, &mut record, &mut task, &self.task, &source, Split::Dev)?;
        let request = HeadRequest::Task(load::head(&task));
        let mut model = load::weights(context, &mut record, &source.directory, &self.model.model, request)?;

        let mut variant = if model.config().is_unpruned() { "dense" } else { "pruned" };
        if let Some((masks, empty)) = &masks {
            let widths = model.config().widths();
            let budget = training::budget(model.config(), &data, masks)?;
            variant = "pruned";
            record.set_budget(&budget, &widths);
            model = training::compact(context, &mut record, &model, masks, *empty, &dev.examples)?;
        }
        let config = model.config();
        let keep = training::kept(config, data.mean_length(), &config.widths())?;
        let job = training::Job {
            variant,
            keep_flops: keep,
            objective: &task.name,
            task: &task,
            data: &data,
            evaluation: Some(&dev),
            recipe: &recipe,
            max_steps: self.train.recipe.steps,
            checkpoints: output.path().join(CHECKPOINTS),
        };
        let model = training::train_and_evaluate(context, &mut record, model, &job)?;
        if !self.no_model {
            training::save(output.path(), model, &task, &source.tokenizer)?;
        }
        if let Some((masks, empty)) = &masks {
            masks.write_with_empty(&output.path().join("masks.json"), *empty)?;
        }
        context.finish(&mut record);
        write_report(output.path(), &record, masks.as_ref().map(|(masks, _)| masks))?;
        output.commit()?;
        context.show(&[record.clone()], |styled| summary(&record, styled));
        Ok(())
    }
}

/// Epochs with their losses and metrics.
pub fn summary(record: &RunRecord, styled: bool) -> String {
    let mut text = String::new();
    for run in record.training.iter().filter(|run| !run.epochs.is_empty()) {
        let names: Vec<&str> =
            run.epochs.first().map(|e| e.metrics.iter().map(|(name, _)| name).collect()).unwrap_or_default();
        let heads: Vec<String> = ["epoch>".to_string(), "loss>".to_string()]
            .into_iter()
            .chain(names.iter().map(|name| format!("{name}>")))
            .chain([String::new()])
            .collect();
        let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
        for epoch in &run.epochs {
            let kept = if run.best_epoch == Some(epoch.epoch) { "kept" } else { "" };
            let metrics = epoch.metrics.iter().map(|(_, value)| format::metric(*value));
            let cells = [epoch.epoch.to_string(), format!("{:.4}", epoch.loss)].into_iter().chain(metrics);
            table.row(cells.chain([kept.to_string()]));
        }
        text.push_str(&table.render(styled));
    }
    text.push_str(&evaluate::summary(&record.evaluations, styled));
    text
}
