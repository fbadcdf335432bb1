//! The methods that take a job, from the options of the command line; and what all methods share: budgets, rows, the
//! cost model's length.

use secateur::data::{Example, Task, TaskKind, sampling, task};
use secateur::model::Model;
use secateur::prune::mask_tuning::Budget;
use secateur::prune::mask_tuning::latency::{LatencyOptions, LatencyTable};
use secateur::prune::method::{Facts, Method, Needs};
use secateur::prune::{CostModel, Job, Pruned, Stage};
use secateur::report::RunRecord;
use secateur::report::record::{Calibration, Choice, Feasible, Method as MethodRecord};
use secateur::{Error, Result};

use super::context::Context;
use super::options::{Profile, value_name};
use super::prune_options::PruneOptions;

/// Prunes `model` for every budget of the options; notes method and calibration in the record.
pub fn prune(
    context: &Context,
    record: &mut RunRecord,
    model: &Model,
    mut method: Method,
    rows: &[Example],
    task: Option<&Task>,
    options: &PruneOptions,
) -> Result<Vec<Pruned>> {
    options.check_belong(false)?;
    let chosen = chosen(&method, options)?;
    for (name, value) in &chosen {
        method.choose(name, value)?;
    }
    let facts = method.facts();
    check_model(model, &method, facts, rows, task, options.stage())?;
    if options.calibration_batch.is_some() && !facts.mini_batches {
        let message = format!("--calibration-batch: {} takes no gradients of mini-batches", method.name());
        return Err(Error::usage(message));
    }
    let lengths: Vec<usize> = rows.iter().map(Example::length).collect();
    let (length, length_given) = cost_length(options, task, &lengths)?;
    let config = model.config();
    let cost = CostModel::new(config.hidden, config.head_dim, length, config.widths())?;
    let table = measure_latency(context, &mut method, model, options)?;
    let range = method.feasible(&cost);
    record.feasible = Some(Feasible { least: *range.start(), most: *range.end() });
    let what = if table.is_some() { "latency" } else { "FLOPs" };
    let keep = check_budgets(context, options, |keep| {
        if range.contains(&keep) {
            return Ok(());
        }
        Err(Error::usage(format!(
            "{} cannot keep {keep} of the {what} at {length:.2} tokens a row; it can keep {:.4} to {}",
            method.name(),
            // Up, so that the number shown works.
            (range.start() * 1e4).ceil() / 1e4,
            range.end()
        )))
    })?;
    if keep.is_empty() {
        return Ok(Vec::new());
    }

    let drawn = draw(context, options, facts, rows.len(), length);
    let examples: Vec<Example> = drawn.iter().map(|&row| rows[row].clone()).collect();
    record.calibration = Some(Calibration {
        source: match (&options.calibration_inputs, task) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(task)) => format!("the training rows of {}", task.name),
            (None, None) => String::new(),
        },
        rows_available: rows.len(),
        tokens_available: examples.iter().map(Example::length).sum(),
        rows: drawn,
        tokens: Vec::new(),
        cost_length: length,
        dead_neurons: Vec::new(),
    });
    let span = task.is_some_and(|task| matches!(task.kind, TaskKind::Span { .. }));
    let batch_rows = options.calibration_batch.map_or(if span { 12 } else { 32 }, |rows| rows as usize);
    let batch = facts.mini_batches.then_some(batch_rows);
    record.method = Some(describe(&method, &chosen, options, batch, (length, length_given)));

    let stage = context.progress.stage("pruning", 0, "");
    let job = Job {
        model,
        device: context.device,
        examples: &examples,
        batch_rows,
        cost: &cost,
        keep: &keep,
        seed: context.seed,
        progress: &context.progress,
    };
    let mut pruned = method.prune(&job)?;
    stage.finish();
    if let Some(table) = table {
        let note = |one: &mut Pruned| {
            if let Some(details) = one.details.as_object_mut() {
                details.insert("latency_table".into(), table.clone());
            }
        };
        pruned.iter_mut().for_each(note);
    }
    pruned.iter().flat_map(|p| &p.notes).for_each(|note| context.progress.warn(note.clone()));
    Ok(pruned)
}

/// What a method looks at must be there.
fn check_model(
    model: &Model,
    method: &Method,
    facts: Facts,
    rows: &[Example],
    task: Option<&Task>,
    stage: Stage,
) -> Result<()> {
    let name = method.name();
    if !model.report.initialised.is_empty() && (facts.needs >= Needs::Answers || stage == Stage::Post) {
        let task = task.map_or(String::new(), |task| format!(" for {}", task.name));
        let how = match (facts.needs >= Needs::Answers, stage) {
            (true, Stage::Post) => "looks at the answers of a fine-tuned model",
            (true, Stage::Pre) => "looks at a model's answers, before fine-tuning too",
            (false, _) => {
                "prunes a fine-tuned model (or, with --stage pre, one that is fine-tuned afterwards)"
            }
        };
        return Err(Error::usage(format!(
            "{name} {how}, and this one has no trained head{task}: fine-tune it first"
        )));
    }
    if facts.needs >= Needs::Labels && rows.iter().any(|row| row.target == secateur::data::Target::None) {
        return Err(Error::usage(format!("{name} needs labels, and the calibration rows have none")));
    }
    if facts.needs >= Needs::Inputs && rows.is_empty() {
        return Err(Error::usage("there are no rows to calibrate on"));
    }
    Ok(())
}

/// The rows a method calibrates on, in the order of the draw.
fn draw(
    context: &Context,
    options: &PruneOptions,
    facts: Facts,
    available: usize,
    length: f64,
) -> Vec<usize> {
    if facts.needs == Needs::Weights {
        return Vec::new();
    }
    if options.calibration_inputs.is_some() {
        return (0..available).collect();
    }
    let count = options.calibration_rows.unwrap_or_else(|| facts.rows.at(length)).min(available);
    if facts.authors_replace && options.profile == Profile::Authors {
        return sampling::choose_rows_with_replacement(available, count, context.seed);
    }
    sampling::choose_rows(available, count, context.seed)
}

/// Times sublayers of every width where latency is the budget, and gives the table to the method.
fn measure_latency(
    context: &Context,
    method: &mut Method,
    model: &Model,
    options: &PruneOptions,
) -> Result<Option<serde_json::Value>> {
    if options.keep_latency.is_empty() {
        return Ok(None);
    }
    let Method::MaskTuning(choices) = method else {
        return Err(Error::usage(format!("--keep-latency: {} searches FLOPs only", method.name())));
    };
    let (batch, length) = (options.latency_batch, options.latency_length);
    let measured = LatencyOptions { batch, length, ..LatencyOptions::default() };
    let table = LatencyTable::measure(context.device, model.config(), &measured, &context.progress)?;
    let shown = serde_json::to_value(&table).map_err(|e| Error::usage(e.to_string()))?;
    choices.budget = Budget::Latency(table);
    Ok(Some(shown))
}

/// The choices given, by name.
fn chosen(method: &Method, options: &PruneOptions) -> Result<Vec<(String, String)>> {
    let mut chosen = Vec::new();
    for choice in &options.choose {
        let Some((name, value)) = choice.split_once('=') else {
            return Err(Error::usage(format!("--choose {choice}: expected NAME=VALUE")));
        };
        chosen.push((name.to_string(), value.to_string()));
    }
    if let Some(value) = &options.on_reject {
        let Some((name, _)) = method.choices().into_iter().find(|(name, _)| name.ends_with("on-reject"))
        else {
            return Err(Error::usage(format!("--on-reject: {} rescales nothing", method.name())));
        };
        chosen.push((name, value.clone()));
    }
    chosen.extend(options.round_to.map(|value| ("round-to".into(), value.to_string())));
    Ok(chosen)
}

fn describe(
    method: &Method,
    chosen: &[(String, String)],
    options: &PruneOptions,
    batch_rows: Option<usize>,
    (length, length_given): (f64, bool),
) -> MethodRecord {
    let implied = options.method.implied(options.profile);
    let typed = |name: &str| chosen.iter().chain(&implied).any(|(choice, _)| choice == name);
    let choices = method.choices();
    let mut choices: secateur::report::Ordered<Choice> = choices
        .iter()
        .map(|(name, value)| (name, Choice { value: shortened(value), given: typed(name) }))
        .collect();
    choices.set("stage", Choice { value: options.stage().name().into(), given: options.stage.is_some() });
    if let Some(rows) = batch_rows {
        let given = options.calibration_batch.is_some();
        choices.set("calibration-batch", Choice { value: rows.to_string(), given });
    }
    choices.set("cost-length", Choice { value: format!("{length:.4}"), given: length_given });
    MethodRecord { name: options.method.name(), profile: value_name(&options.profile), choices }
}

/// A choice as a record shows it. A latency table is thousands of numbers, and in the record's `result`.
fn shortened(value: &str) -> String {
    const LONGEST: usize = 200;
    match value.split_once(':') {
        Some((name, _)) if value.len() > LONGEST => format!("{name}, see result"),
        _ => value.into(),
    }
}

/// The budgets asked for, without those out of reach where they are to be left out. `reach` fails with the range.
pub fn check_budgets(
    context: &Context,
    options: &PruneOptions,
    reach: impl Fn(f64) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut sorted = options.budgets().to_vec();
    sorted.sort_by(f64::total_cmp);
    let name = if options.keep_latency.is_empty() { "--keep-flops" } else { "--keep-latency" };
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::usage(format!("{name} {} is given twice", pair[0])));
    }
    if let Some(wrong) = sorted.iter().find(|keep| !(**keep > 0.0 && **keep <= 1.0)) {
        return Err(Error::usage(format!("{name} {wrong}: a fraction above 0 and at most 1")));
    }
    let mut reached = Vec::with_capacity(options.budgets().len());
    let mut last = None;
    for &keep in options.budgets() {
        match reach(keep) {
            Ok(()) => reached.push(keep),
            Err(error) if options.skip_infeasible => {
                context.progress.warn(format!("left out: {error}"));
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (reached.is_empty(), last) {
        // With a directory for each budget, no budget is no directory; without, there would be nothing to write.
        (true, Some(error)) if !options.subdirectories => Err(error),
        _ => Ok(reached),
    }
}

/// Sequence length T of the cost model, and whether it was given.
pub fn cost_length(options: &PruneOptions, task: Option<&Task>, lengths: &[usize]) -> Result<(f64, bool)> {
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
