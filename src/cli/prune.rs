//! `secateur prune`, and the pruning part of `secateur run`.

use std::path::Path;

use clap::Args;
use secateur::data::{Example, Split, Task, TaskKind, rows};
use secateur::model::{Head, HeadRequest, Model};
use secateur::prune::{LayerWidths, Pruned, Stage, UnitMasks};
use secateur::report::record::InputFile;
use secateur::report::table::Table;
use secateur::report::{RunRecord, format, html};
use secateur::{Error, Result};

use super::context::Context;
use super::options::{ModelOptions, OutputOptions, TaskOptions};
use super::output::Output;
use super::prune_options::PruneOptions;
use super::{dual_cp, evaluate, load, methods, training};

/// Choose which heads and neurons of a model a task needs.
///
/// Methods that prune before fine-tuning (dual-cp and its controls) look at a pre-trained model and the task's unlabelled
/// inputs, and write masks.json, run.json and report.html; `finetune --masks` removes what is masked and trains what is
/// left. Methods that prune a fine-tuned model need no training afterwards, and write the small model too. --stage turns
/// either into the other.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur prune --model bert-base-uncased --task mrpc --data MRPC --keep-flops 0.6 --out pruned\n  \
                  secateur prune --model DIR --task sst-2 --data SST-2 --keep-flops 0.8,0.6,0.4 --out pruned\n    \
                  three budgets from one calibration, in pruned/keep-0.8 and so on\n  \
                  secateur prune --model TUNED --task mrpc --data MRPC --method mask-tuning --keep-flops 0.6 --out small"
)]
pub struct Prune {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    task: TaskOptions,
    #[command(flatten)]
    prune: PruneOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Prune {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let output = Output::create(&self.output, false)?;
        let mut record = context.record("prune");
        let (directory, config) = load::configuration(&self.model.model)?;
        let stage = self.prune.stage();
        let mut source = None;
        let (rows, task) = match &self.prune.calibration_inputs {
            Some(path) => {
                record.inputs.push(InputFile::hash("calibration inputs", path)?);
                (rows::read(path)?, None)
            }
            None => {
                let mut task = load::task(&self.task)?;
                if stage == Stage::Post && task.kind == TaskKind::Classification {
                    evaluate::adopt_labels(&mut task, &config.labels, &self.model.model)?;
                }
                let from = source.insert(load::source(&self.model.model)?);
                let data = load::split(context, &mut record, &mut task, &self.task, from, Split::Train)?;
                (data.examples, Some(task))
            }
        };
        let request = match (stage, &task) {
            (Stage::Pre, _) => HeadRequest::Task(Head::Backbone),
            (Stage::Post, Some(task)) => HeadRequest::Task(load::head(task)),
            (Stage::Post, None) => HeadRequest::AsSaved,
        };
        let model = load::weights(context, &mut record, &directory, &self.model.model, request)?;
        let dense = model.config().widths();
        let (results, model) = prune(context, &mut record, model, &rows, task.as_ref(), &self.prune)?;

        let mut records = Vec::new();
        for pruned in &results {
            let mut own = record.clone();
            own.set_budget(&pruned.budget, &dense);
            let folder = folder(output.path(), &self.prune, pruned.budget.asked)?;
            pruned.masks.write_with_empty(&folder.join("masks.json"), pruned.empty)?;
            // Before fine-tuning the masks are the result; after it, or with weights that were tuned, the model is.
            if stage == Stage::Post || pruned.values.is_some() {
                let mut small = training::apply(context, &mut own, &model, pruned, &rows)?;
                if let Some(task) = &task {
                    training::name_classes(&mut small, task);
                }
                small.save(&folder)?;
                if let Some(source) = &source {
                    source.tokenizer.save(&folder)?;
                }
            }
            own.result = Some(pruned.details.clone()).filter(|details| !details.is_null());
            context.finish(&mut own);
            write_report(&folder, &own, Some(&pruned.masks))?;
            records.push(own);
        }
        output.commit()?;
        context.show(&records, |styled| summary(&records, styled));
        Ok(())
    }
}

/// Prunes for every budget of the options; notes method and calibration in the record. Gives the model back: it is
/// large, and was not copied.
pub fn prune(
    context: &Context,
    record: &mut RunRecord,
    model: Model,
    rows: &[Example],
    task: Option<&Task>,
    options: &PruneOptions,
) -> Result<(Vec<Pruned>, Model)> {
    match options.method.job(options.profile) {
        None => dual_cp::prune(context, record, model, rows, task, options),
        Some(method) => {
            let pruned = methods::prune(context, record, &model, method, rows, task, options)?;
            Ok((pruned, model))
        }
    }
}

/// The directory of one budget: the output itself, or one of its own where there are several.
pub fn folder(output: &Path, options: &PruneOptions, keep: f64) -> Result<std::path::PathBuf> {
    if options.budgets().len() == 1 && !options.subdirectories {
        return Ok(output.to_path_buf());
    }
    let folder = output.join(format!("keep-{keep}"));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "creating"))?;
    Ok(folder)
}

/// Writes `run.json` and `report.html`.
pub fn write_report(folder: &Path, record: &RunRecord, masks: Option<&UnitMasks>) -> Result<()> {
    for (name, text) in [("run.json", record.to_json()), ("report.html", html::render(record, masks))] {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(Error::io(&path, "writing"))?;
    }
    Ok(())
}

/// What was asked and reached, and what each layer keeps.
pub fn summary(records: &[RunRecord], styled: bool) -> String {
    let mut text = String::new();
    let mut table = Table::new(&["keep FLOPs>", "reached>", "attention>", "FFN>", "heads>", "neurons>"]);
    for budget in records.iter().filter_map(|record| record.budget.as_ref()) {
        let part = |part: &secateur::prune::cost::PartRecord| {
            format::percent(part.macs_kept / part.macs_total.max(f64::MIN_POSITIVE))
        };
        table.row([
            format::percent(budget.asked),
            format::percent(budget.reached),
            part(&budget.attention),
            part(&budget.ffn),
            format!("{} of {}", budget.attention.units_kept, budget.attention.units_total),
            format!("{} of {}", budget.ffn.units_kept, budget.ffn.units_total),
        ]);
    }
    text.push_str(&table.render(styled));
    if let [record] = records {
        text.push('\n');
        let mut table = Table::new(&["layer>", "heads>", "neurons>"]);
        let layers: Vec<LayerWidths> = record.budget.iter().flat_map(|b| b.layers.iter().copied()).collect();
        for (index, kept) in layers.iter().enumerate() {
            table.row([
                (index + 1).to_string(),
                format!("{} of {}", kept.heads, record.heads[index]),
                format!("{} of {}", kept.neurons, record.neurons[index]),
            ]);
        }
        text.push_str(&table.render(styled));
    }
    text
}
