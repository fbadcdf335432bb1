//! Dual-CP and its controls, from the options of the command line.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use secateur::data::{Example, Task, sampling, source};
use secateur::memory::MemoryPlan;
use secateur::model::Model;
use secateur::prune::calibrate::{self, Selection};
use secateur::prune::dual_cp::{self, Control, OnInfeasible, Options, Search};
use secateur::prune::{CostModel, Pruned};
use secateur::report::record::{Calibration, Choice, Feasible, Method as MethodRecord};
use secateur::report::{Ordered, RunRecord};
use secateur::session::Session;
use secateur::{Error, Result};

use super::context::Context;
use super::methods::{check_budgets, cost_length};
use super::options::{Profile, value_name};
use super::prune_options::{Method, OnInfeasibleName, PruneOptions};

/// Calibrates on `rows` and prunes for every budget of the options, by each of `methods` (Dual-CP and its controls) from
/// the same trees; notes method and calibration in the record. Gives the model back: it is large, and was not copied.
pub fn prune(
    context: &Context,
    record: &mut RunRecord,
    model: Model,
    rows: &[Example],
    task: Option<&Task>,
    options: &PruneOptions,
    methods: &[Method],
) -> Result<(Vec<Vec<Pruned>>, Model)> {
    options.check_belong(true)?;
    let resolved = resolve(context, options)?;
    let lengths: Vec<usize> = rows.iter().map(Example::length).collect();
    let (cost_length, length_given) = cost_length(options, task, &lengths)?;
    let config = model.config();
    let cost = CostModel::new(config.hidden, config.head_dim, cost_length, config.widths())?;
    // A budget out of reach is found before anything is computed.
    let keep = check_budgets(context, options, |keep| {
        dual_cp::split(&cost, keep, resolved.lambda, resolved.on_infeasible).map(|_| ())
    })?;
    let range = dual_cp::feasible_range(&cost, resolved.lambda);
    let least = match resolved.on_infeasible {
        OnInfeasible::Error => range.minimum().0.max(range.shifted),
        OnInfeasible::Shift => range.shifted,
    };
    record.feasible = Some(Feasible { least, most: 1.0 });
    if keep.is_empty() {
        return Ok((vec![Vec::new(); methods.len()], model));
    }
    let resolved = Options { keep_flops: keep, ..resolved };

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
    let masked = |method: &Method, pruned: &dual_cp::Pruned| {
        let (masks, budget) = match control(*method) {
            None => (pruned.masks.clone(), pruned.budget.clone()),
            Some(control) => dual_cp::control(control, &outcome.forest, pruned, &cost, context.seed)?,
        };
        Ok(Pruned { budget: budget.clone(), ..Pruned::of_masks(masks, budget.asked, &cost)? })
    };
    let of = |method| outcome.results.iter().map(|pruned| masked(method, pruned)).collect::<Result<Vec<_>>>();
    Ok((methods.iter().map(of).collect::<Result<_>>()?, model))
}

/// Which control a method is, if it is one.
pub fn control(method: Method) -> Option<Control> {
    match method {
        Method::Random => Some(Control::Random),
        Method::RandomSpread => Some(Control::RandomSpread),
        Method::Worst => Some(Control::Worst),
        _ => None,
    }
}

/// The rows and tokens to look at: given, or drawn by the seed.
fn select(context: &Context, options: &PruneOptions, lengths: &[usize], count: usize) -> Result<Selection> {
    let seed = context.seed;
    if options.calibration_inputs.is_none() {
        return calibrate::select(lengths, calibration_rows(options), count, seed);
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
    Ok(resolved)
}

/// Rows the tokens are drawn from: 3,000 in the paper and the released code.
fn calibration_rows(options: &PruneOptions) -> usize {
    options.calibration_rows.unwrap_or(3000)
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
    set("calibration-rows", calibration_rows(options).to_string(), options.calibration_rows.is_some());
    set("cost-length", format!("{cost_length:.4}"), length_given);
    MethodRecord { name: value_name(&options.method), profile: value_name(&options.profile), choices }
}
