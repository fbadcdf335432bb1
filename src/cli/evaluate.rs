//! `secateur evaluate`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use secateur::data::{Dataset, Split, Task, TaskKind};
use secateur::eval::evaluate::Evaluator;
use secateur::export::mask_file;
use secateur::memory::MemoryPlan;
use secateur::model::{Architecture, EmptySublayers, Head, HeadRequest, Model};
use secateur::progress::Progress;
use secateur::prune::UnitMasks;
use secateur::prune::sparse::{Profile, label_words};
use secateur::report::RunRecord;
use secateur::report::format;
use secateur::report::record::Evaluation as EvaluationRecord;
use secateur::report::table::Table;
use secateur::session::Session;
use secateur::{Error, Result};
use serde_json::json;

use super::context::Context;
use super::latency::{self, LatencyOptions};
use super::load;
use super::options::{ModelOptions, TaskOptions};
use super::training;

/// Most tokens of an evaluation batch.
const TOKEN_BUDGET: usize = 4096;

/// Measure a fine-tuned model on a task.
///
/// For language modelling two perplexities are given: exp of the mean of the blocks' losses (the published figure) and
/// exp of the mean loss of all tokens. They differ only where blocks have different lengths.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur evaluate --model tuned --task mrpc --data MRPC\n  secateur evaluate --model tuned --task mrpc --data MRPC --masks masks.json\n  \
                  secateur evaluate --model frozen --task mrpc --data MRPC --mask-file masks.npy\n  \
                  secateur evaluate --model small --latency --against tuned\n    \
                  seconds of a batch of both models, over a grid of batch sizes and lengths, no data needed"
)]
pub struct Evaluate {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    task: TaskOptions,
    /// Apply these head and neuron masks: masks.json, a folder with head_mask.pt and neuron_mask.pt, one of these, or a
    /// config.json with pruned_heads.
    #[arg(long, value_name = "PATH")]
    masks: Option<PathBuf>,
    /// Apply these weight masks (.npy in SMP's layout, or .safetensors of secateur) to the frozen model in memory, and
    /// measure how long that takes.
    #[arg(long, value_name = "FILE")]
    mask_file: Option<PathBuf>,
    /// Answer by the language-model head's logits of these words, one a class (spans: start and end), as SMP does:
    /// without words by the published ones of the task. Masks that `sparsify --method smp` wrote bring theirs along, and so
    /// does a model that `export` applied them to.
    #[arg(long, value_name = "WORD,…", value_delimiter = ',', num_args = 0..)]
    label_words: Option<Vec<String>>,
    /// Split to evaluate: dev or test.
    #[arg(long, value_name = "NAME", default_value = "dev", value_parser = ["dev", "test"])]
    split: String,
    #[command(flatten)]
    latency: LatencyOptions,
}

impl Evaluate {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let mut record = context.record("evaluate");
        if self.latency.latency || self.latency.against.is_some() {
            latency::run(context, &mut record, &self.model.model, self.masks.as_deref(), &self.latency)?;
            if self.task.task.is_none() {
                context.finish(&mut record);
                context.show(&[record.clone()], |styled| latency::summary(&record.latency, styled));
                return Ok(());
            }
        }
        let source = load::source(&self.model.model)?;
        let mut task = load::task(&self.task)?;
        let masks = match &self.masks {
            Some(path) => Some(load::unit_masks(&mut record, path, &source.config.widths())?),
            None => None,
        };
        let words = self.words(&task, &source)?;
        if task.kind == TaskKind::Classification && words.is_none() {
            adopt_labels(&mut task, &source.config.labels, &self.model.model)?;
        }
        let split = if self.split == "test" { Split::Test } else { Split::Dev };
        let data = load::split(context, &mut record, &mut task, &self.task, &source, split)?;
        let (name, head) = (&self.model.model, load::head(&task));
        let model = match &words {
            Some(words) => load::label_word_model(context, &mut record, &source, name, head, words)?,
            None => load::weights(context, &mut record, &source.directory, name, HeadRequest::Task(head))?,
        };
        if words.is_none() && !model.report.initialised.is_empty() {
            let message = format!(
                "{} has no trained head for the task {}: fine-tune it first",
                self.model.model, task.name
            );
            return Err(Error::usage(message));
        }
        // Sublayers that go without leaving their bias are not what masks compute: the model without them is.
        let (masks, model) = match masks {
            Some((masks, empty)) if empty != EmptySublayers::KeepBias => {
                (None, model.compact(&masks, empty)?)
            }
            masks => (masks.map(|(masks, _)| masks), model),
        };
        let mut session = match &self.mask_file {
            Some(path) => self.switched(context, &mut record, path, model)?,
            None => Session::new(model, context.device)?,
        };
        let variant = if self.masks.is_some() || self.mask_file.is_some() { "masked" } else { "model" };
        let mut found =
            measure(&mut session, &task, &data, masks.as_ref(), variant, &self.split, &context.progress)?;
        let config = session.model().config();
        let widths = masks.as_ref().map_or_else(|| config.widths(), UnitMasks::widths);
        found.keep_flops = training::kept(config, data.mean_length(), &widths)?;
        if let Some(masks) = &masks {
            let budget = training::budget(session.model().config(), &data, masks)?;
            record.set_budget(&budget, &session.model().config().widths());
        }
        record.evaluations.push(found);
        context.finish(&mut record);
        context.show(&[record.clone()], |styled| {
            let quality = summary(&record.evaluations, styled);
            match record.latency.is_empty() {
                true => quality,
                false => format!("{quality}\n{}", latency::summary(&record.latency, styled)),
            }
        });
        Ok(())
    }
}

impl Evaluate {
    /// Tokens of the label words that answer, if any do: those of the options, else of the mask file, else of the model.
    fn words(&self, task: &Task, source: &load::Source) -> Result<Option<Vec<u32>>> {
        if let Some(words) = &self.label_words {
            let given = (!words.is_empty()).then_some(words.as_slice());
            let words = label_words::tokens(task, given, Profile::Default, &source.tokenizer)?;
            return Ok(Some(words.into_iter().map(|(_, id)| id).collect()));
        }
        let of_model = if task.outputs().is_some() { source.config.label_words.clone() } else { Vec::new() };
        let words = match &self.mask_file {
            Some(path) => {
                let architecture = Architecture::new(source.config.clone(), Head::Backbone)?;
                let of_file = mask_file::read(path, &architecture)?.label_words;
                if of_file.is_empty() { of_model } else { of_file }
            }
            None => of_model,
        };
        Ok((!words.is_empty()).then_some(words))
    }

    /// The frozen model with the masks of a file applied.
    fn switched(
        &self,
        context: &Context,
        record: &mut RunRecord,
        path: &Path,
        model: Model,
    ) -> Result<Session> {
        let masks = load::weight_masks(record, path, &model)?.masks;
        let mut session = Session::frozen(model, context.device)?;
        // The first call prepares memory and program; later ones, as between tasks, only apply bits.
        session.apply_weight_masks(&masks)?;
        session.executor().synchronize()?;
        let start = Instant::now();
        session.apply_weight_masks(&masks)?;
        session.executor().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        context.progress.note(format!(
            "weight masks keep {} of the layers' weights, applied to the frozen model in {:.2} ms",
            format::percent(masks.kept_fraction()),
            1e3 * seconds
        ));
        let (kept, total) = (masks.kept(), masks.total());
        record.result = Some(json!({ "weights_kept": kept, "weights": total, "switch_seconds": seconds }));
        Ok(session)
    }
}

/// The classes of a model are the task's, in the task's order. A table has those the model was trained on: the rows
/// evaluated may not show them all.
pub fn adopt_labels(task: &mut Task, of_model: &[String], name: &str) -> Result<()> {
    if task.labels.is_empty() {
        task.labels = of_model.to_vec();
    }
    let sorted = |labels: &[String]| {
        let mut labels = labels.to_vec();
        labels.sort();
        labels
    };
    if task.labels != of_model && sorted(&task.labels) == sorted(of_model) {
        return Err(Error::usage(format!(
            "{name} has the classes in the order {}, the task {} in the order {}: its answers would be misread",
            of_model.join(", "),
            task.name,
            task.labels.join(", ")
        )));
    }
    Ok(())
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
    let mut memory = MemoryPlan::begin();
    let held = session.host_bytes();
    let mut evaluator = Evaluator::new(session, task, data, TOKEN_BUDGET, masks.is_some())?;
    memory.add("activations and inputs", session.host_bytes() - held);
    progress.plan_memory(&memory);
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
pub fn summary(evaluations: &[EvaluationRecord], styled: bool) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in evaluations.iter().flat_map(|e| e.metrics.iter()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let heads: Vec<String> = ["model".to_string(), "split".into(), "FLOPs kept>".into()]
        .into_iter()
        .chain(names.iter().map(|name| format!("{name}>")))
        .chain(["rows>".into(), "seconds>".into()])
        .collect();
    let mut table = Table::new(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    for evaluation in evaluations {
        let metrics =
            names.iter().map(|n| evaluation.metrics.get(n).map_or(String::new(), |v| format::metric(*v)));
        let tail = [evaluation.rows.to_string(), format!("{:.2}", evaluation.seconds)];
        let kept = format::percent(evaluation.keep_flops);
        let first = [evaluation.variant.clone(), evaluation.split.clone(), kept];
        table.row(first.into_iter().chain(metrics).chain(tail));
    }
    table.render(styled)
}
