//! What the commands that train share: recipes, a training run with its record, compaction with its proof, and the
//! saved model.

use std::path::{Path, PathBuf};

use secateur::data::{Batch, Dataset, Example, Split, Target, Task, TaskKind, Tokenizer};
use secateur::model::{EmptySublayers, Model, ModelConfig};
use secateur::prune::{BudgetRecord, CostModel, LayerWidths, Pruned, UnitMasks, proof};
use secateur::report::RunRecord;
use secateur::report::record::{CompactProof, Epoch, LossPoint, Size, Training};
use secateur::session::Session;
use secateur::train::{Recipe, finetune};
use secateur::{Error, Result};

use super::context::Context;
use super::evaluate;
use super::options::RecipeOptions;

/// Rows on which a compact model is compared with the masked one, at most.
const PROOF_ROWS: usize = 32;
/// Most logits of that comparison: a vocabulary of 50 257 leaves 333 tokens, a classifier every row.
const PROOF_LOGITS: usize = 1 << 24;

/// The published recipe of a task's kind.
pub fn usual_recipe(task: &Task) -> Result<Recipe> {
    Recipe::preset(match task.kind {
        TaskKind::Span { .. } => "squad",
        TaskKind::CausalLanguageModel | TaskKind::MaskedLanguageModel => "lm-paper",
        TaskKind::Classification | TaskKind::Regression => "glue",
    })
}

/// The recipe named in the options, or `usual`, with the single values that were given.
pub fn recipe(options: &RecipeOptions, usual: Recipe) -> Result<Recipe> {
    let mut recipe = options.recipe.as_deref().map_or(Ok(usual), Recipe::preset)?;
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

/// One training run.
pub struct Job<'a> {
    /// Which model, for the record: "dense", "dual-cp".
    pub variant: &'a str,
    /// Fraction of FLOPs it keeps, for the record.
    pub keep_flops: f64,
    /// What is learnt, for the record: the task's name, "masked-lm".
    pub objective: &'a str,
    pub task: &'a Task,
    pub data: &'a Dataset,
    /// Evaluated after each epoch; the best epoch is kept.
    pub evaluation: Option<&'a Dataset>,
    pub recipe: &'a Recipe,
    pub max_steps: Option<u64>,
    /// Directory of this run's checkpoints.
    pub checkpoints: PathBuf,
}

/// Trains a model and notes it in the record.
pub fn train(context: &Context, record: &mut RunRecord, model: Model, job: &Job) -> Result<Session> {
    let mut session = Session::new(model, context.device)?;
    let options = finetune::Options {
        seed: context.seed,
        max_steps: job.max_steps,
        checkpoints: Some(job.checkpoints.clone()),
        ..finetune::Options::default()
    };
    let progress = &context.progress;
    let history =
        finetune::train(&mut session, job.task, job.data, job.evaluation, job.recipe, &options, progress)?;
    record.training.push(training_record(job.variant, job.objective, job.recipe, history));
    Ok(session)
}

/// A run's history as the record shows it.
pub fn training_record(
    variant: &str,
    objective: &str,
    recipe: &Recipe,
    history: finetune::History,
) -> Training {
    let recipe = match serde_json::to_value(recipe) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().collect(),
        _ => Default::default(),
    };
    Training {
        variant: variant.into(),
        objective: objective.into(),
        recipe,
        steps: history.epochs.last().map_or(0, |epoch| epoch.steps),
        seconds: history.seconds,
        losses: history.curve.iter().map(|&(step, loss)| LossPoint { step, loss }).collect(),
        best_epoch: history.best.map(|index| index + 1),
        epochs: history
            .epochs
            .into_iter()
            .map(|epoch| Epoch {
                epoch: epoch.epoch as usize,
                loss: epoch.loss,
                metrics: epoch.metrics.into_iter().collect(),
            })
            .collect(),
    }
}

/// [`train`], then one measured evaluation of the best epoch's model on the evaluation data.
pub fn train_and_evaluate(
    context: &Context,
    record: &mut RunRecord,
    model: Model,
    job: &Job,
) -> Result<Model> {
    let mut session = train(context, record, model, job)?;
    if let Some(data) = job.evaluation {
        let split = Split::Dev.to_string();
        let (task, progress) = (job.task, &context.progress);
        let mut found = evaluate::measure(&mut session, task, data, None, job.variant, &split, progress)?;
        found.keep_flops = job.keep_flops;
        record.evaluations.push(found);
    }
    session.into_model()
}

/// Makes the masked model small, proves that it computes the same, and notes proof and sizes in the record.
pub fn compact(
    context: &Context,
    record: &mut RunRecord,
    model: &Model,
    masks: &UnitMasks,
    empty: EmptySublayers,
    examples: &[Example],
) -> Result<Model> {
    let stage = context.progress.stage("compaction", 0, "");
    let compact = model.compact(masks, empty)?;
    note_size(record, model, &compact);
    // Without its bias a sublayer is another function than the masked one: there is nothing to prove. Methods that look
    // at no rows may have none to compare on.
    if empty != EmptySublayers::KeepBias || examples.is_empty() {
        return Ok(compact);
    }
    let batch = proof_rows(model, examples)?;
    let rows = batch.row_count();
    let found = proof::compare(model, masks, &compact, &[batch], context.device)?;
    stage.finish();
    context.progress.note(format!(
        "compact model against masked model on {rows} rows: max |Δlogit| {:.2e}, largest logit {:.2}",
        found.largest_difference, found.largest_logit
    ));
    record.compact = Some(CompactProof {
        max_logit_difference: found.largest_difference,
        max_logit: found.largest_logit,
        rows,
    });
    Ok(compact)
}

/// The first rows, so many that their logits stay below [`PROOF_LOGITS`] (at least one).
fn proof_rows(model: &Model, examples: &[Example]) -> Result<Batch> {
    let head = model.architecture.head;
    let a_token = if head.is_language_model() { model.config().vocab } else { 2 };
    let mut tokens = 0;
    let fits = examples.iter().take(PROOF_ROWS).take_while(|example| {
        tokens += example.length();
        tokens * a_token <= PROOF_LOGITS
    });
    let count = fits.count().max(1).min(examples.len());
    let unlabelled: Vec<Example> =
        examples[..count].iter().map(|e| Example { target: Target::None, ..e.clone() }).collect();
    let mut batch = Batch::default();
    batch.fill(&unlabelled, &(0..count).collect::<Vec<_>>())?;
    Ok(batch)
}

/// Fraction of the FLOPs of the model before any pruning that layers of `widths` have, at `length` tokens a row.
pub fn kept(config: &ModelConfig, length: f64, widths: &[LayerWidths]) -> Result<f64> {
    let before = CostModel::new(config.hidden, config.head_dim, length, config.original_widths())?;
    Ok(before.share(widths))
}

/// What masks that come from a file keep, at the data's mean length. Nothing was asked: what is reached stands for it.
pub fn budget(config: &ModelConfig, data: &Dataset, masks: &UnitMasks) -> Result<BudgetRecord> {
    let cost = CostModel::new(config.hidden, config.head_dim, data.mean_length(), config.widths())?;
    let reached = cost.record(1.0, masks)?.reached;
    cost.record(reached, masks)
}

/// The small model of a pruning: tuned weights where the method tuned them, masks folded in, what is masked removed.
pub fn apply(
    context: &Context,
    record: &mut RunRecord,
    model: &Model,
    pruned: &Pruned,
    examples: &[Example],
) -> Result<Model> {
    let tuned = pruned.values.as_ref().map(|values| Model { values: values.clone(), ..model.clone() });
    let model = tuned.as_ref().unwrap_or(model);
    compact(context, record, model, &pruned.masks, pruned.empty, examples)
}

fn note_size(record: &mut RunRecord, model: &Model, compact: &Model) {
    let parameters = |model: &Model| model.layout().total_elements() as u64;
    record.size = Some(Size::of_f32(parameters(model), parameters(compact)));
}

/// Gives a classifier the task's class names.
pub fn name_classes(model: &mut Model, task: &Task) {
    if task.kind == TaskKind::Classification {
        model.architecture.config.labels = task.labels.clone();
    }
}

/// Saves a model with the task's class names, and its tokenizer.
pub fn save(folder: &Path, mut model: Model, task: &Task, tokenizer: &Tokenizer) -> Result<()> {
    name_classes(&mut model, task);
    model.save(folder)?;
    tokenizer.save(folder)
}
