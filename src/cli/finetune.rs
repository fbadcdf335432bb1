//! `secateur finetune`, and the training part of `secateur run`.

use std::path::PathBuf;

use clap::Args;
use secateur::data::{Dataset, Split, Task, TaskKind};
use secateur::model::HeadRequest;
use secateur::report::record::{Epoch, Training};
use secateur::report::table::Table;
use secateur::report::{RunRecord, format};
use secateur::session::Session;
use secateur::train::finetune::{History, Options, train};
use secateur::train::{Recipe, recipe};
use secateur::{Error, Result};

use super::context::Context;
use super::evaluate;
use super::load;
use super::options::{ModelOptions, OutputOptions, TaskOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::prune::write_report;

/// Train a model for a task, evaluate it after every epoch, and write the best epoch's model.
///
/// Writes model.safetensors, config.json, the tokenizer, run.json and report.html. What the checkpoint lacks (a new task
/// head) is drawn by the seed. Interrupted with Ctrl-C, the run is continued by the same command with --resume.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  secateur finetune --model bert-base-uncased --task mrpc --data MRPC --epochs 3 --out tuned"
)]
pub struct Finetune {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    task: TaskOptions,
    #[command(flatten)]
    train: TrainOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Finetune {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let source = load::source(&self.model.model)?;
        let mut task = load::task(&self.task)?;
        let recipe = resolve(&self.train, &task)?;
        let output = Output::create(&self.output, self.train.resume)?;
        let mut record = context.record("finetune");
        let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
        let dev = load::split(context, &mut record, &mut task, &self.task, &source, Split::Dev)?;
        let request = HeadRequest::Task(load::head(&task));
        let mut model = load::weights(context, &mut record, &source.directory, &self.model.model, request)?;
        model.architecture.config.labels.clone_from(&task.labels);

        let mut session = Session::new(model, context.device)?;
        let checkpoints = Some(output.path().join(CHECKPOINTS));
        let history = fit(context, &mut session, &task, &data, &dev, &recipe, &self.train, checkpoints)?;
        record.training.push(training(&task, &recipe, &history));
        let split = Split::Dev.to_string();
        record.evaluations.push(evaluate::measure(
            &mut session,
            &task,
            &dev,
            None,
            "dense",
            &split,
            &context.progress,
        )?);
        session.into_model().save(output.path())?;
        source.tokenizer.save(output.path())?;
        context.finish(&mut record);
        write_report(output.path(), &record, None)?;
        output.commit()?;
        context.show(&[record.clone()], |styled| summary(&record, styled));
        Ok(())
    }
}

/// The recipe of the options: a preset, and what was given besides.
pub fn resolve(options: &TrainOptions, task: &Task) -> Result<Recipe> {
    let usual = match task.kind {
        TaskKind::Span { .. } => "squad",
        TaskKind::CausalLanguageModel | TaskKind::MaskedLanguageModel => "lm-paper",
        TaskKind::Classification | TaskKind::Regression => recipe::PRESETS[0],
    };
    let mut recipe = Recipe::preset(options.recipe.as_deref().unwrap_or(usual))?;
    recipe.learning_rate = options.learning_rate.unwrap_or(recipe.learning_rate);
    recipe.batch_size = options.batch_size.unwrap_or(recipe.batch_size);
    recipe.epochs = options.epochs.unwrap_or(recipe.epochs);
    recipe.warmup = options.warmup.unwrap_or(recipe.warmup);
    recipe.weight_decay = options.weight_decay.unwrap_or(recipe.weight_decay);
    recipe.check()?;
    if options.steps == Some(0) {
        return Err(Error::usage("--steps must be at least 1"));
    }
    Ok(recipe)
}

/// Trains, with checkpoints in `checkpoints`.
pub fn fit(
    context: &Context,
    session: &mut Session,
    task: &Task,
    data: &Dataset,
    dev: &Dataset,
    recipe: &Recipe,
    options: &TrainOptions,
    checkpoints: Option<PathBuf>,
) -> Result<History> {
    let options = Options { seed: context.seed, max_steps: options.steps, checkpoints, ..Options::default() };
    train(session, task, data, Some(dev), recipe, &options, &context.progress)
}

/// A training run as the record keeps it.
pub fn training(task: &Task, recipe: &Recipe, history: &History) -> Training {
    let recipe = match serde_json::to_value(recipe) {
        Ok(serde_json::Value::Object(map)) => map.into_iter().collect(),
        _ => Default::default(),
    };
    let epochs = history.epochs.iter().map(|epoch| Epoch {
        epoch: epoch.epoch as usize,
        loss: epoch.loss,
        metrics: epoch.metrics.iter().cloned().collect(),
    });
    Training {
        variant: "dense".into(),
        objective: task.name.clone(),
        recipe,
        steps: history.epochs.last().map_or(0, |epoch| epoch.steps),
        seconds: history.seconds,
        losses: Vec::new(),
        epochs: epochs.collect(),
        best_epoch: history.best.and_then(|best| history.epochs.get(best)).map(|e| e.epoch as usize),
    }
}

/// Epochs with their losses and metrics.
fn summary(record: &RunRecord, styled: bool) -> String {
    let mut text = String::new();
    for run in &record.training {
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
    text.push_str(&evaluate::summary(record, styled));
    text
}
