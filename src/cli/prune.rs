//! `secateur prune`, and the pruning part of `secateur run`.

use std::path::Path;

use clap::Args;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use secateur::data::{Example, Split, Task, rows, sampling, source, task};
use secateur::memory::MemoryPlan;
use secateur::model::{Head, HeadRequest, Model};
use secateur::prune::calibrate::{self, Selection};
use secateur::prune::dual_cp::{self, Control, OnInfeasible, Options, Search};
use secateur::prune::{BudgetRecord, CostModel, LayerWidths, UnitMasks};
use secateur::report::record::{Calibration, Choice, InputFile, Method as MethodRecord};
use secateur::report::table::Table;
use secateur::report::{Ordered, RunRecord, format, html};
use secateur::session::Session;
use secateur::{Error, Result};

use super::context::Context;
use super::load;
use super::options::{
    Method, ModelOptions, OnInfeasibleName, OutputOptions, Profile, PruneOptions, TaskOptions,
};
use super::output::Output;

/// Choose which heads and neurons of a pre-trained model a task needs, from the task's inputs alone.
///
/// Runs the model on sampled inputs of the task, without labels, and writes masks.json, run.json and report.html.
/// The model itself is not changed; `finetune --masks` removes what is masked and trains what is left.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur prune --model bert-base-uncased --task mrpc --data MRPC --keep-flops 0.6 --out pruned\n  \
                  secateur prune --model DIR --task sst-2 --data SST-2 --keep-flops 0.8,0.6,0.4 --out pruned\n    \
                  three budgets from one calibration, in pruned/keep-0.8 and so on"
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
        let (directory, _) = load::configuration(&self.model.model)?;
        let (rows, task) = match &self.prune.calibration_inputs {
            Some(path) => {
                record.inputs.push(InputFile::hash("calibration inputs", path)?);
                (rows::read(path)?, None)
            }
            None => {
                let mut task = load::task(&self.task)?;
                let source = load::source(&self.model.model)?;
                let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
                (data.examples, Some(task))
            }
        };
        let request = HeadRequest::Task(Head::Backbone);
        let model = load::weights(context, &mut record, &directory, &self.model.model, request)?;
        let dense = model.config().widths();
        let (results, _) = prune(context, &mut record, model, &rows, task.as_ref(), &self.prune)?;

        let mut records = Vec::new();
        for (masks, budget) in &results {
            let mut own = record.clone();
            own.set_budget(budget, &dense);
            context.finish(&mut own);
            let folder = folder(output.path(), &self.prune, budget.asked)?;
            masks.write(&folder.join("masks.json"))?;
            write_report(&folder, &own, Some(masks))?;
            records.push(own);
        }
        output.commit()?;
        context.show(&records, |styled| summary(&records, styled));
        Ok(())
    }
}

/// The directory of one budget: the output itself, or one of its own where there are several.
pub fn folder(output: &Path, options: &PruneOptions, keep: f64) -> Result<std::path::PathBuf> {
    if options.keep_flops.len() == 1 {
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

/// Masks of one budget and what they keep.
type Masked = (UnitMasks, BudgetRecord);

/// Calibrates on `rows` and prunes for every budget of the options; notes method and calibration in the record. Gives
/// the model back: it is large, and was not copied.
pub fn prune(
    context: &Context,
    record: &mut RunRecord,
    model: Model,
    rows: &[Example],
    task: Option<&Task>,
    options: &PruneOptions,
) -> Result<(Vec<Masked>, Model)> {
    let resolved = resolve(context, options)?;
    let lengths: Vec<usize> = rows.iter().map(Example::length).collect();
    let (cost_length, length_given) = cost_length(options, task, &lengths)?;
    let config = model.config();
    let cost = CostModel::new(config.hidden, config.head_dim, cost_length, config.widths())?;
    // A budget out of reach is found before anything is computed.
    for &keep in &options.keep_flops {
        dual_cp::split(&cost, keep, resolved.lambda, resolved.on_infeasible)?;
    }

    let selection = select(context, options, &lengths, resolved.tokens)?;
    record.calibration = Some(Calibration {
        source: match (&options.calibration_inputs, task) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(task)) => format!("the training rows of {}", task.name),
            (None, None) => String::new(),
        },
        rows_available: rows.len(),
        tokens_available: selection.rows.iter().map(|&row| lengths[row]).sum(),
        rows: selection.rows.clone(),
        tokens: selection.tokens.clone(),
        cost_length,
        dead_neurons: Vec::new(),
    });
    record.method = Some(describe(options, &resolved, cost_length, length_given));

    let mut session = Session::new(model, context.device)?;
    let sample = calibrate::collect(&mut session, rows, &selection, &context.progress)?;
    let model = session.into_model()?;
    context.progress.check(|| "nothing was written".into())?;
    let mut memory = MemoryPlan::begin();
    let widest = cost.layers.iter().map(|l| l.neurons.max(l.heads * cost.head_dim)).max().unwrap_or(0);
    let layers = cost.layers.len();
    let bytes = dual_cp::peak_bytes(widest, sample.samples, resolved.space, dual_cp::layers_at_once(layers));
    memory.add("similarities and distances", bytes);
    context.progress.plan_memory(&memory);
    let stage = context.progress.stage("pruning", 0, "");
    let outcome = dual_cp::prune_on(context.device, &sample, &cost, &resolved)?;
    stage.finish();
    outcome.notes.iter().for_each(|note| context.progress.warn(note.clone()));
    if let Some(calibration) = &mut record.calibration {
        let dead = outcome.forest.dead_neurons.iter().map(Vec::len);
        calibration.dead_neurons = dead.collect();
    }
    for (stage, seconds) in &outcome.stages.0 {
        context.progress.record_seconds(&format!("pruning / {stage}"), *seconds);
    }
    let control = match options.method {
        Method::DualCp => None,
        Method::Random => Some(Control::Random),
        Method::RandomSpread => Some(Control::RandomSpread),
        Method::Worst => Some(Control::Worst),
    };
    let masked = outcome.results.iter().map(|pruned| match control {
        None => Ok((pruned.masks.clone(), pruned.budget.clone())),
        Some(control) => dual_cp::control(control, &outcome.forest, pruned, &cost, context.seed),
    });
    Ok((masked.collect::<Result<_>>()?, model))
}

/// The rows and tokens to look at: given, or drawn by the seed.
fn select(context: &Context, options: &PruneOptions, lengths: &[usize], count: usize) -> Result<Selection> {
    let seed = context.seed;
    if options.calibration_inputs.is_none() {
        return calibrate::select(lengths, options.calibration_rows, count, seed);
    }
    let tokens = match &options.token_indices {
        Some(path) => token_indices(path, lengths.iter().sum())?,
        None => sampling::choose_tokens(lengths, count, seed).flat,
    };
    Ok(Selection { rows: (0..lengths.len()).collect(), tokens })
}

/// Token indices from safetensors (`token_indices`, I32 or I64) or a JSON list.
fn token_indices(path: &Path, available: usize) -> Result<Vec<usize>> {
    if source::content_extension(path) != "safetensors" {
        return sampling::read_indices(path, available);
    }
    let bytes = source::read_bytes(path)?;
    let broken = |e: String| Error::format(path, e);
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| broken(format!("not a safetensors file: {e}")))?;
    let tensor = file.tensor("token_indices").map_err(|_| broken("no tensor \"token_indices\"".into()))?;
    let values: Vec<i64> = match tensor.dtype() {
        Dtype::I32 => {
            tensor.data().as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()
        }
        Dtype::I64 => tensor.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        other => return Err(broken(format!("token_indices is {other:?}, not I32 or I64"))),
    };
    if values.is_empty() {
        return Err(broken("token_indices is empty".into()));
    }
    let index = |value: &i64| {
        usize::try_from(*value).ok().filter(|index| *index < available).ok_or_else(|| {
            broken(format!("token index {value} is outside the {available} tokens of the inputs"))
        })
    };
    values.iter().map(index).collect()
}

/// The profile with the options that were given.
fn resolve(context: &Context, options: &PruneOptions) -> Result<Options> {
    let mut resolved = match options.profile {
        Profile::Paper => Options::paper(),
        Profile::Authors => Options::authors(),
        Profile::Default => Options::default(),
    };
    resolved.keep_flops = options.keep_flops.clone();
    resolved.seed = context.seed;
    if let Some(lambda) = options.lambda {
        resolved.lambda = lambda;
    }
    if let Some(tokens) = options.calibration_tokens {
        resolved.tokens = tokens;
    }
    if let Some(delta) = options.delta {
        let overshoot = matches!(resolved.search, Search::Grid { overshoot: true, .. });
        resolved.search = Search::Grid { delta, overshoot };
    }
    if let Some(linkage) = options.linkage {
        resolved.linkage = linkage.into();
    }
    if let Some(space) = options.space {
        resolved.space = space.into();
    }
    if let Some(centroid) = options.centroid {
        resolved.centroid = centroid.into();
    }
    if let Some(name) = options.on_infeasible {
        resolved.on_infeasible = match name {
            OnInfeasibleName::Error => OnInfeasible::Error,
            OnInfeasibleName::Shift => OnInfeasible::Shift,
        };
    }
    resolved.check()?;
    if options.calibration_rows == 0 {
        return Err(Error::usage("--calibration-rows must be at least 1"));
    }
    let mut sorted = options.keep_flops.clone();
    sorted.sort_by(f64::total_cmp);
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::usage(format!("--keep-flops {} is given twice", pair[0])));
    }
    Ok(resolved)
}

/// Sequence length T of the cost model, and whether it was given.
fn cost_length(options: &PruneOptions, task: Option<&Task>, lengths: &[usize]) -> Result<(f64, bool)> {
    if let Some(length) = options.cost_length {
        return Ok((length, true));
    }
    let published = task.and_then(|task| task::published_sequence_length(&task.name));
    match published.filter(|_| options.profile != Profile::Default) {
        Some(length) => Ok((length, false)),
        None if lengths.is_empty() => Err(Error::usage("there are no rows to calibrate on")),
        None => Ok((lengths.iter().sum::<usize>() as f64 / lengths.len() as f64, false)),
    }
}

fn describe(
    options: &PruneOptions,
    resolved: &Options,
    cost_length: f64,
    length_given: bool,
) -> MethodRecord {
    // The names of the command line are those of the serialised choices.
    let name = |value: serde_json::Result<serde_json::Value>| match value {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    };
    let search = match resolved.search {
        Search::Exact => "exact".to_string(),
        Search::Grid { delta, overshoot } => {
            format!("grid of {delta}{}", if overshoot { ", one step beyond" } else { "" })
        }
    };
    let mut choices = Ordered::default();
    let mut set = |option: &str, value: String, given: bool| choices.set(option, Choice { value, given });
    set("lambda", resolved.lambda.to_string(), options.lambda.is_some());
    set("linkage", name(serde_json::to_value(resolved.linkage)), options.linkage.is_some());
    set("space", name(serde_json::to_value(resolved.space)), options.space.is_some());
    set("search", search, options.delta.is_some());
    set("ties", name(serde_json::to_value(resolved.ties)), false);
    set("centroid", name(serde_json::to_value(resolved.centroid)), options.centroid.is_some());
    set("on-infeasible", name(serde_json::to_value(resolved.on_infeasible)), options.on_infeasible.is_some());
    set("calibration-tokens", resolved.tokens.to_string(), options.calibration_tokens.is_some());
    set("calibration-rows", options.calibration_rows.to_string(), false);
    set("cost-length", format!("{cost_length:.4}"), length_given);
    MethodRecord { name: value_name(&options.method), profile: value_name(&options.profile), choices }
}

/// The name of an enumerated option's value on the command line.
fn value_name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
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
