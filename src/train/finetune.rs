//! A whole training run: epochs of steps, an evaluation after each, the best epoch kept, checkpoints on the way.
//!
//! Fine-tuning, pre-training and the training of weight masks are the same run with different data, heads and steps
//! ([`Stepper`]). What is saved on the way is enough to continue after any interruption to the same bits (`checkpoint`); the
//! model returned is that of the best epoch by the task's main metric (algorithms of the papers: "load best at the end").

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize};

use super::checkpoint::{self, Progress as Place};
use super::recipe::Recipe;
use super::stepper::{RunSize, Stepper};
use super::trainer::Trainer;
use crate::data::batcher::{BatchSize, TrainOptions};
use crate::data::{Cursor, Dataset, Task, TrainBatcher};
use crate::error::{Error, Result};
use crate::eval::TaskMetrics;
use crate::eval::evaluate::Evaluator;
use crate::exec::Block;
use crate::memory::MemoryPlan;
use crate::program::Extents;
use crate::progress::Progress;
use crate::session::Session;

/// What a run is told besides its recipe.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of batch order and dropout.
    pub seed: u64,
    /// Most tokens of a micro-batch. Part of the run's identity: it decides how sums are cut.
    pub token_budget: usize,
    /// Stop after so many optimiser steps, whatever the epochs; the schedule is that of the shorter run.
    pub max_steps: Option<u64>,
    /// Where checkpoints go; none are written without.
    pub checkpoints: Option<PathBuf>,
    /// Seconds between checkpoints inside an epoch.
    pub checkpoint_seconds: f64,
    /// Whether the parameters of the best epoch are taken at the end (otherwise the last).
    pub keep_best: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            token_budget: 4096,
            max_steps: None,
            checkpoints: None,
            checkpoint_seconds: 300.0,
            keep_best: true,
        }
    }
}

/// One epoch of the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: u64,
    /// Mean training loss over the epoch's steps.
    pub loss: f64,
    /// Name and value of each metric after the epoch, the main one first; NaN where it is undefined.
    #[serde(deserialize_with = "null_as_nan")]
    pub metrics: Vec<(String, f64)>,
    /// Optimiser steps done so far.
    pub steps: u64,
}

/// JSON has no NaN: it is written as null.
fn null_as_nan<'de, D: Deserializer<'de>>(input: D) -> std::result::Result<Vec<(String, f64)>, D::Error> {
    let pairs = Vec::<(String, Option<f64>)>::deserialize(input)?;
    Ok(pairs.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// Points of a loss curve, however long the run.
const CURVE_POINTS: u64 = 100;

/// What a run leaves in its checkpoints and returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Finished epochs.
    pub epochs: Vec<EpochRecord>,
    /// Index into `epochs` of the best one.
    pub best: Option<usize>,
    /// Sum of the losses of the steps of the unfinished epoch.
    pub open_loss: f64,
    /// Number of those steps.
    pub open_steps: u64,
    /// The loss along the way: steps done, and the mean loss of the steps since the point before.
    pub curve: Vec<(u64, f64)>,
    /// Sum of the losses of the steps since the last point of the curve.
    pub curve_loss: f64,
    /// Training tokens so far.
    pub tokens: u64,
    /// Seconds of training so far, evaluations excluded.
    pub seconds: f64,
}

/// File that holds the parameters of the best epoch beside the checkpoint.
const BEST: &str = "best_parameters.f32";

/// File of the bits of its weight masks.
const BEST_MASKS: &str = "best_masks.u64";

/// Runs training to its end. `evaluation`: data and task of the evaluation after each epoch, if any.
/// The session's parameters are those of the best (or last) epoch afterwards.
pub fn train(
    session: &mut Session,
    task: &Task,
    data: &Dataset,
    evaluation: Option<&Dataset>,
    recipe: &Recipe,
    options: &Options,
    progress: &Progress,
) -> Result<History> {
    let make = |session: &mut Session, size: RunSize| {
        Trainer::new(session, recipe, options.seed, size.total_steps, size.capacity)
    };
    drive(session, task, data, evaluation, recipe, options, progress, make)
}

/// [`train`] with steps of any kind, made by `make` once the size of the run is known.
pub fn drive<S: Stepper>(
    session: &mut Session,
    task: &Task,
    data: &Dataset,
    evaluation: Option<&Dataset>,
    recipe: &Recipe,
    options: &Options,
    progress: &Progress,
    make: impl FnOnce(&mut Session, RunSize) -> Result<S>,
) -> Result<History> {
    recipe.check()?;
    let lengths = data.lengths();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let token_budget = options.token_budget.max(longest);
    let batch_size = recipe.batch_size;
    let train_options = TrainOptions { batch_size, token_budget, seed: options.seed, drop_last: false };
    let mut batcher = TrainBatcher::new(lengths, train_options)?;
    let epoch_steps = batcher.steps_per_epoch();
    let all_steps = epoch_steps * recipe.epochs as u64;
    let total_steps = options.max_steps.map_or(all_steps, |most| most.min(all_steps));
    let epochs = total_steps.div_ceil(epoch_steps);
    let BatchSize { tokens, rows, longest } = batcher.largest(epochs);
    let capacity = Extents { tokens, sequences: rows, targets: tokens, samples: 0, longest };
    let mut memory = MemoryPlan::begin();
    let held = session.host_bytes();
    let fingerprint = fingerprint(session, task, data, recipe, options, total_steps)?;
    let mut trainer = make(session, RunSize { total_steps, epoch_steps, capacity })?;
    let fingerprint = format!("{fingerprint}{}", trainer.identity());
    let mut evaluator = match evaluation {
        Some(data) => Some((Evaluator::new(session, task, data, options.token_budget, false)?, data)),
        None => None,
    };
    memory.add("gradients, moments, activations and inputs", session.host_bytes() - held);
    if let Some((part, bytes)) = trainer.held_bytes() {
        memory.add(part, bytes);
    }
    let block_len = session.model().layout().block_len();
    // For a moment: what is hashed, saved, or taken back from the executor.
    memory.add("a copy of the parameters", 4 * block_len);
    if evaluator.is_some() && options.keep_best && options.checkpoints.is_none() {
        memory.add("the parameters of the best epoch", 4 * block_len);
    }
    progress.plan_memory(&memory);

    let mut history = History::default();
    let mut best: Option<(TaskMetrics, Option<BestState>)> = None;
    if let Some(directory) = &options.checkpoints {
        std::fs::create_dir_all(directory).map_err(Error::io(directory, "creating"))?;
        if let Some(place) =
            checkpoint::restore(directory, session.executor(), trainer.blocks(), &fingerprint)?
        {
            history = serde_json::from_value(place.history)
                .map_err(|e| Error::format(directory.join(checkpoint::FILE_NAME), e.to_string()))?;
            trainer.seek(place.step, place.draw);
            trainer.restore(directory, place.cursor)?;
            batcher.seek(place.cursor)?;
            best = restore_best(directory, task, &history)?;
            progress.note(format!("resuming after step {} of {total_steps}", place.step));
        }
    }
    let mut saved = Instant::now();
    let save = |session: &mut Session, trainer: &S, batcher: &TrainBatcher, history: &History| {
        let Some(directory) = &options.checkpoints else { return Ok(()) };
        let history = serde_json::to_value(history).map_err(|e| Error::format(directory, e.to_string()))?;
        let place = Place {
            step: trainer.step(),
            draw: trainer.draw(),
            cursor: batcher.cursor(),
            fingerprint: fingerprint.clone(),
            history,
        };
        checkpoint::save(directory, session.executor(), trainer.blocks(), &place)
    };

    let mut stage = progress.stage("training", total_steps, "steps");
    stage.advance(trainer.step());
    loop {
        // An epoch is closed by its evaluation, which may be what was interrupted.
        let at_end = batcher.cursor().step == 0 || trainer.step() == total_steps;
        let closing = history.open_steps > 0 && at_end;
        if trainer.step() == total_steps && !closing {
            break;
        }
        let mut interrupted = progress.interrupted();
        if closing && !interrupted {
            let evaluator = evaluator.as_mut().map(|(evaluator, data)| (evaluator, *data));
            match close_epoch(
                session,
                task,
                evaluator,
                &mut trainer,
                &mut history,
                &mut best,
                options,
                progress,
            ) {
                Err(Error::Interrupted(_)) => interrupted = true,
                other => other?,
            }
        }
        if interrupted || closing || saved.elapsed().as_secs_f64() > options.checkpoint_seconds {
            save(session, &trainer, &batcher, &history)?;
            saved = Instant::now();
        }
        if interrupted {
            return Err(stopped(trainer.step(), total_steps, options));
        }
        if closing {
            continue;
        }
        let start = Instant::now();
        let Cursor { epoch, step: first } = batcher.cursor();
        if first == 0 {
            let folder = options.checkpoints.as_deref();
            match trainer.begin_epoch(session, data, epoch, folder, progress) {
                Err(Error::Interrupted(_)) => {
                    save(session, &trainer, &batcher, &history)?;
                    return Err(stopped(trainer.step(), total_steps, options));
                }
                other => other?,
            }
        }
        let step = batcher.next_step();
        let report = trainer.run(session, data, &step)?;
        history.seconds += start.elapsed().as_secs_f64();
        let rows = step.micro_batches.iter().flatten();
        history.tokens += rows.map(|&row| data.examples[row].length() as u64).sum::<u64>();
        history.open_loss += report.loss;
        history.open_steps += 1;
        history.curve_loss += report.loss;
        let since = trainer.step() - history.curve.last().map_or(0, |point| point.0);
        if since >= (total_steps / CURVE_POINTS).max(1) || trainer.step() == total_steps {
            history.curve.push((trainer.step(), history.curve_loss / since as f64));
            history.curve_loss = 0.0;
        }
        let loss = history.open_loss / history.open_steps as f64;
        stage.detail(format!("loss {loss:.4}{}", trainer.detail()));
        stage.advance(1);
    }
    trainer.settle(session)?;
    if let (true, Some((_, state))) = (options.keep_best, best) {
        let state = match (state, &options.checkpoints) {
            (Some(state), _) => state,
            (None, Some(directory)) => BestState::read(directory)?,
            (None, None) => return Ok(history),
        };
        let executor = session.executor();
        executor.write_block(Block::Parameters, &state.parameters)?;
        let words = executor.read_masks()?.len();
        if state.masks.len() != words {
            let folder = options.checkpoints.as_deref().unwrap_or(Path::new(""));
            let message =
                format!("{} words of masks, where the model has {words}; start anew", state.masks.len());
            return Err(Error::format(folder.join(BEST_MASKS), message));
        }
        if words > 0 {
            executor.write_masks(&state.masks)?;
        }
    }
    Ok(history)
}

/// What an interrupted run says.
fn stopped(step: u64, total_steps: u64, options: &Options) -> Error {
    Error::Interrupted(match &options.checkpoints {
        Some(directory) => format!(
            "training stopped after step {step} of {total_steps}; its checkpoint in {} continues with --resume",
            directory.display()
        ),
        None => format!("training stopped after step {step} of {total_steps}; nothing was saved"),
    })
}

/// Evaluates at the end of an epoch, keeps the parameters if they are the best so far, and records the epoch.
fn close_epoch<S: Stepper>(
    session: &mut Session,
    task: &Task,
    evaluation: Option<(&mut Evaluator, &Dataset)>,
    trainer: &mut S,
    history: &mut History,
    best: &mut Option<(TaskMetrics, Option<BestState>)>,
    options: &Options,
    progress: &Progress,
) -> Result<()> {
    let mut metrics = Vec::new();
    let mut shown = String::new();
    if let Some((evaluator, data)) = evaluation {
        trainer.settle(session)?;
        let found = evaluator.run(session, task, data, progress)?.metrics;
        shown = format!(", {found}");
        metrics = found.values().iter().map(|(metric, value)| (metric.name().to_string(), *value)).collect();
        let better = best.as_ref().is_none_or(|(best, _)| found.better_than(best));
        if better && trainer.may_be_best() {
            let state = BestState::of(session)?;
            // In a file beside the checkpoint where there is one: a run that resumes needs them there anyway.
            let state = match &options.checkpoints {
                Some(directory) => {
                    state.write(directory)?;
                    None
                }
                None => Some(state),
            };
            *best = Some((found, state));
            history.best = Some(history.epochs.len());
        }
    }
    let loss = history.open_loss / history.open_steps as f64;
    let epoch = history.epochs.len() as u64 + 1;
    progress.note(format!("epoch {epoch}: training loss {loss:.4}{}{shown}", trainer.detail()));
    history.epochs.push(EpochRecord { epoch, loss, metrics, steps: trainer.step() });
    (history.open_loss, history.open_steps) = (0.0, 0);
    Ok(())
}

/// Metrics of the best epoch of a resumed run; its parameters stay in their file.
fn restore_best(
    directory: &Path,
    task: &Task,
    history: &History,
) -> Result<Option<(TaskMetrics, Option<BestState>)>> {
    let Some(best) = history.best else { return Ok(None) };
    let path = directory.join(checkpoint::FILE_NAME);
    let values = history.epochs.get(best).map(|epoch| &epoch.metrics);
    let values = values.ok_or_else(|| Error::format(&path, "the checkpoint's history is incomplete"))?;
    let values = task.metrics.iter().zip(values).map(|(metric, (_, value))| (*metric, *value));
    Ok(Some((TaskMetrics::new(values.collect())?, None)))
}

/// The model at the end of an epoch.
#[derive(Debug)]
struct BestState {
    parameters: Vec<f32>,
    /// Bits of weight masks, where there are some.
    masks: Vec<u64>,
}

impl BestState {
    fn of(session: &mut Session) -> Result<BestState> {
        let executor = session.executor();
        Ok(BestState { parameters: executor.read_block(Block::Parameters)?, masks: executor.read_masks()? })
    }

    fn write(&self, directory: &Path) -> Result<()> {
        checkpoint::write_atomically(&directory.join(BEST), bytemuck::cast_slice(&self.parameters))?;
        if self.masks.is_empty() {
            return Ok(());
        }
        checkpoint::write_atomically(&directory.join(BEST_MASKS), bytemuck::cast_slice(&self.masks))
    }

    fn read(directory: &Path) -> Result<BestState> {
        let path = directory.join(BEST);
        let file = File::open(&path).map_err(Error::io(&path, "reading"))?;
        let bytes = file.metadata().map_err(Error::io(&path, "reading"))?.len();
        let parameters = checkpoint::floats(&path, &file, bytes as usize)?;
        let path = directory.join(BEST_MASKS);
        let masks = match std::fs::read(&path) {
            Ok(bytes) => bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(&path, "reading")(e)),
        };
        Ok(BestState { parameters, masks })
    }
}

/// Identifies a run: everything that decides its bits.
fn fingerprint(
    session: &mut Session,
    task: &Task,
    data: &Dataset,
    recipe: &Recipe,
    options: &Options,
    total_steps: u64,
) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    let text = format!("{task:?}{recipe:?}{}{}{total_steps}", options.seed, options.token_budget);
    hash.update(text.as_bytes());
    hash.update(bytemuck::cast_slice(&session.executor().read_block(Block::Parameters)?));
    for example in &data.examples {
        hash.update(bytemuck::cast_slice(&example.input_ids));
        hash.update(format!("{:?}", example.target).as_bytes());
    }
    Ok(hash.finalize().to_hex().to_string())
}
