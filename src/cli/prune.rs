//! `secateur prune`, and the pruning part of `secateur run`.

use std::path::Path;

use clap::Args;
use secateur::data::{Example, Split, Task, TaskKind, rows};
use secateur::model::{Head, HeadRequest, Model};
use secateur::prune::method::Needs;
use secateur::prune::{LayerWidths, Pruned, Stage, UnitMasks};
use secateur::report::record::{InputFile, KeepLatency};
use secateur::report::table::Table;
use secateur::report::{RunRecord, format, html};
use secateur::{Error, Result};

use super::context::Context;
use super::options::{ModelOptions, OutputOptions, TaskOptions};
use super::output::Output;
use super::prune_options::{Method, PruneOptions};
use super::{dual_cp, evaluate, load, methods, training};

/// Choose which heads and neurons of a model a task needs.
///
/// Methods that prune before fine-tuning (dual-cp and its controls) look at a pre-trained model and the task's unlabelled
/// inputs, and write masks.json, run.json and report.html; `finetune --masks` removes what is masked and trains what is
/// left. Methods that prune a fine-tuned model need no training afterwards, and write the small model too. --stage turns
/// either into the other, for methods that do not look at the answers of a trained head.
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
    /// dual-cp: cut its controls from the same trees too, each into a directory of its name: random, random-spread, worst.
    #[arg(long)]
    with_controls: bool,
    #[command(flatten)]
    output: OutputOptions,
}

/// Dual-CP and what is cut from its trees.
const WITH_CONTROLS: [Method; 4] = [Method::DualCp, Method::Random, Method::RandomSpread, Method::Worst];

impl Prune {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let stage = self.prune.stage();
        if self.with_controls && (self.prune.method != Method::DualCp || stage != Stage::Pre) {
            return Err(Error::usage("--with-controls belongs to dual-cp before fine-tuning"));
        }
        let output = Output::create(&self.output, false)?;
        let mut record = context.record("prune");
        let (directory, config) = load::configuration(&self.model.model)?;
        let needs = self.prune.needs()?;
        let mut source = None;
        let (rows, task) = match &self.prune.calibration_inputs {
            Some(path) => {
                record.inputs.push(InputFile::hash("calibration inputs", path)?);
                (rows::read(path)?, None)
            }
            // Weights are looked at and nothing else: a task would only give the length at which FLOPs are counted.
            None if self.task.task.is_none()
                && self.prune.cost_length.is_some()
                && needs == Needs::Weights =>
            {
                // For the small model's directory, where there is one.
                source = load::source(&self.model.model).ok();
                (Vec::new(), None)
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
            (Stage::Pre, _) if needs < Needs::Answers => HeadRequest::Task(Head::Backbone),
            (_, Some(task)) => HeadRequest::Task(load::head(task)),
            (_, None) => HeadRequest::AsSaved,
        };
        let model = load::weights(context, &mut record, &directory, &self.model.model, request)?;
        let dense = model.config().widths();
        let methods: &[Method] =
            if self.with_controls { &WITH_CONTROLS } else { std::slice::from_ref(&self.prune.method) };
        let (results, model) =
            prune_by(context, &mut record, model, &rows, task.as_ref(), &self.prune, methods)?;

        let mut records = Vec::new();
        let all = methods.iter().zip(&results);
        for (method, pruned) in all.flat_map(|(method, all)| all.iter().map(move |pruned| (*method, pruned)))
        {
            let mut own = record.clone();
            note(&mut own, pruned, &dense);
            let mut base = output.path().to_path_buf();
            if method != self.prune.method {
                base.push(method.name());
                own.method.iter_mut().for_each(|noted| noted.name = method.name());
            }
            let folder = folder(&base, &self.prune, pruned.budget.asked)?;
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
            context.finish(&mut own);
            write_report(&folder, &own, Some(&pruned.masks))?;
            records.push(own);
        }
        if records.is_empty() {
            write_nothing(context, output.path(), &mut record)?;
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
    let (mut results, model) = prune_by(context, record, model, rows, task, options, &[options.method])?;
    Ok((results.pop().unwrap_or_default(), model))
}

/// The same by several methods: the options' own, and the controls that are cut from its trees.
fn prune_by(
    context: &Context,
    record: &mut RunRecord,
    model: Model,
    rows: &[Example],
    task: Option<&Task>,
    options: &PruneOptions,
    all: &[Method],
) -> Result<(Vec<Vec<Pruned>>, Model)> {
    match options.method.job(options.profile) {
        None => dual_cp::prune(context, record, model, rows, task, options, all),
        Some(method) => {
            let pruned = methods::prune(context, record, &model, method, rows, task, options)?;
            Ok((vec![pruned], model))
        }
    }
}

/// Takes a result over into the record: budget asked and reached, what is left, and what the method has to tell.
pub fn note(record: &mut RunRecord, pruned: &Pruned, dense: &[LayerWidths]) {
    record.set_budget(&pruned.budget, dense);
    let latency = |name: &str| pruned.details.get("latency")?.get(name)?.as_f64();
    if let (Some(predicted), Some(dense)) = (latency("predicted_seconds"), latency("dense_seconds")) {
        let (asked, predicted) = (pruned.budget.asked, predicted / dense);
        record.set_latency(KeepLatency { asked, predicted });
    }
    record.result = Some(pruned.details.clone()).filter(|details| !details.is_null());
}

/// The directory of one budget: the output itself, or one of its own where there are several.
pub fn folder(output: &Path, options: &PruneOptions, keep: f64) -> Result<std::path::PathBuf> {
    let one = options.budgets().len() == 1 && !options.subdirectories;
    let folder = if one { output.to_path_buf() } else { output.join(format!("keep-{keep}")) };
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

/// Every budget was out of reach and is left out: the record of the run says so, in its warnings.
pub fn write_nothing(context: &Context, output: &Path, record: &mut RunRecord) -> Result<()> {
    context.finish(record);
    write_report(output, record, None)
}

/// What was asked and reached, what could be, and what is left of the model and of each layer.
pub fn summary(records: &[RunRecord], styled: bool) -> String {
    let mut text = String::new();
    let latency = records.iter().any(|record| record.keep_latency.is_some());
    let mut heads = if latency { vec!["keep latency>", "predicted>"] } else { vec!["keep FLOPs>"] };
    heads.extend(["FLOPs kept>", "attention>", "FFN>", "heads>", "neurons>", "parameters>", "bytes>"]);
    let mut table = Table::new(&heads);
    for record in records {
        let Some(budget) = &record.budget else { continue };
        let part = |part: &secateur::prune::cost::PartRecord| {
            format::percent(part.macs_kept / part.macs_total.max(f64::MIN_POSITIVE))
        };
        let mut row = match record.keep_latency {
            Some(latency) => vec![format::percent(latency.asked), format::percent(latency.predicted)],
            None => vec![format::percent(budget.asked)],
        };
        row.extend([
            format::percent(budget.reached),
            part(&budget.attention),
            part(&budget.ffn),
            format!("{} of {}", budget.attention.units_kept, budget.attention.units_total),
            format!("{} of {}", budget.ffn.units_kept, budget.ffn.units_total),
        ]);
        row.extend(record.size.map_or([String::new(), String::new()], |size| {
            let of = |kept: String, dense: String| format!("{kept} of {dense}");
            [
                of(format::count(size.parameters_kept as f64), format::count(size.parameters_dense as f64)),
                of(format::bytes(size.bytes_kept), format::bytes(size.bytes_dense)),
            ]
        }));
        table.row(row);
    }
    text.push_str(&table.render(styled));
    if let Some(feasible) = records.iter().find_map(|record| record.feasible) {
        let (least, most) = (format::percent(feasible.least), format::percent(feasible.most));
        let what = if latency { "of the latency" } else { "of the FLOPs" };
        text.push_str(&format!("the method can keep {least} to {most} {what}\n"));
    }
    text.push('\n');
    text.push_str(&layers(records, styled));
    text
}

/// Heads and neurons of every layer: of the dense model, and kept under each budget.
fn layers(records: &[RunRecord], styled: bool) -> String {
    let budgets: Vec<_> = records.iter().filter(|record| record.budget.is_some()).collect();
    let Some(first) = budgets.first() else { return String::new() };
    let name = |record: &&&RunRecord| {
        let keep = record.keep_latency.map(|latency| latency.asked);
        let keep = keep.or(record.keep_flops.map(|keep| keep.asked)).unwrap_or(1.0);
        format!("keep {}>", format::percent(keep))
    };
    let heads: Vec<String> = budgets.iter().map(|record| name(&record)).collect();
    let heads = ["layer>", "dense: heads + neurons>"].into_iter().chain(heads.iter().map(String::as_str));
    let mut table = Table::new(&heads.collect::<Vec<_>>());
    for layer in 0..first.heads.len() {
        let units = |heads: &[usize], neurons: &[usize]| format!("{} + {}", heads[layer], neurons[layer]);
        let kept = budgets.iter().map(|record| units(&record.heads_kept, &record.neurons_kept));
        let dense = [(layer + 1).to_string(), units(&first.heads, &first.neurons)];
        table.row(dense.into_iter().chain(kept));
    }
    table.render(styled)
}
