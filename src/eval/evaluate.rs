//! Evaluation of a model on a task: batches by length, logits or losses out, the task's metrics from them.

use super::perplexity::{BlockLoss, perplexity, token_weighted_perplexity};
use super::{TaskMetrics, squad};
use crate::data::{Batch, Dataset, EvaluationPlan, Metric, Target, Targets, Task, TaskKind};
use crate::error::{Error, Result};
use crate::model::{EmitOptions, Logits};
use crate::program::Mode;
use crate::progress::Progress;
use crate::prune::UnitMasks;
use crate::session::{self, Prepared, Session, Weighting};

/// A prepared evaluation of one data set: run it as often as the model changes.
#[derive(Debug)]
pub struct Evaluator {
    prepared: Prepared,
    plan: EvaluationPlan,
    batch: Batch,
    values: Vec<f32>,
}

/// Result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The task's metrics.
    pub metrics: TaskMetrics,
    /// Language models: perplexity of the mean over all predicted tokens (the metric itself is the mean of block losses).
    pub token_perplexity: Option<f64>,
    /// Tokens that went through the model.
    pub tokens: usize,
}

impl Evaluator {
    /// Emits and prepares the program. `masks`: the model is evaluated with masks, given to [`Evaluator::set_masks`].
    pub fn new(
        session: &mut Session,
        task: &Task,
        data: &Dataset,
        token_budget: usize,
        masks: bool,
    ) -> Result<Evaluator> {
        let lengths = data.lengths();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let plan = EvaluationPlan::new(&lengths, token_budget.max(longest))?;
        let language_model =
            matches!(task.kind, TaskKind::CausalLanguageModel | TaskKind::MaskedLanguageModel);
        let options = EmitOptions {
            loss: language_model,
            logits: if language_model { Logits::None } else { Logits::All },
            head_masks: masks,
            neuron_masks: masks,
            ..EmitOptions::default()
        };
        let prepared =
            session.prepare(Mode::EVALUATE, &options, session::capacity(&plan.batches, &lengths))?;
        Ok(Evaluator { prepared, plan, batch: Batch::default(), values: Vec::new() })
    }

    /// Sets the masks of an evaluation prepared with masks.
    pub fn set_masks(&self, session: &mut Session, masks: &UnitMasks) -> Result<()> {
        session.write_masks(&self.prepared, masks)
    }

    /// Runs every batch and computes the metrics.
    pub fn run(
        &mut self,
        session: &mut Session,
        task: &Task,
        data: &Dataset,
        progress: &Progress,
    ) -> Result<Evaluation> {
        let (results, tokens) = self.outputs(session, task, data, "evaluation", progress)?;
        score(task, data, &results, tokens)
    }

    /// Runs every batch; returns the outputs of each row (logits, pairs of logits of each token, or losses), in the order
    /// of the data, and the number of tokens that went through the model.
    pub fn outputs(
        &mut self,
        session: &mut Session,
        task: &Task,
        data: &Dataset,
        stage: &str,
        progress: &Progress,
    ) -> Result<(Vec<Vec<f32>>, usize)> {
        let mut stage = progress.stage(stage, data.examples.len() as u64, "rows");
        let mut results: Vec<Vec<Vec<f32>>> = Vec::with_capacity(self.plan.batches.len());
        let mut tokens = 0;
        for rows in &self.plan.batches {
            progress.check(|| "the evaluation was not finished".into())?;
            data.fill(&mut self.batch, rows, 0)?;
            let extents = session.feed(&self.prepared, &self.batch, Weighting::EachRow)?;
            session.run(&self.prepared, &extents)?;
            tokens += extents.tokens;
            let slots = &self.prepared.slots;
            let Some(slot) = slots.logits.or(slots.losses) else {
                return Err(Error::usage(format!("the model has no head for the task {}", task.name)));
            };
            session.read(&self.prepared, slot, &extents, &mut self.values)?;
            results.push(by_row(task, &self.batch, &self.values)?);
            stage.advance(rows.len() as u64);
        }
        Ok((self.plan.in_original_order(results)?, tokens))
    }
}

/// Cuts a batch's values into one list a row; non-finite values are an error that names the row.
fn by_row(task: &Task, batch: &Batch, values: &[f32]) -> Result<Vec<Vec<f32>>> {
    let rows = batch.row_count();
    let lists: Vec<Vec<f32>> = match (&batch.targets, task.kind) {
        (Targets::Tokens { positions, .. }, _) => {
            let mut at = 0;
            let inside = batch.cu_seqlens.windows(2).map(|row| {
                let start = at;
                at += positions[at..].iter().take_while(|&&p| p < row[1]).count();
                values[start..at].to_vec()
            });
            inside.collect()
        }
        (_, TaskKind::Span { .. }) => {
            let row = |bounds: &[i32]| values[2 * bounds[0] as usize..2 * bounds[1] as usize].to_vec();
            batch.cu_seqlens.windows(2).map(row).collect()
        }
        _ => values.chunks(values.len() / rows.max(1)).map(<[f32]>::to_vec).collect(),
    };
    for (list, row) in lists.iter().zip(&batch.rows) {
        if let Some(bad) = list.iter().find(|value| !value.is_finite()) {
            let what = "an output of the model".to_string();
            return Err(Error::NotFinite { what, value: f64::from(*bad), place: format!("in row {row}") });
        }
    }
    Ok(lists)
}

fn score(task: &Task, data: &Dataset, results: &[Vec<f32>], tokens: usize) -> Result<Evaluation> {
    let unlabelled = |row: usize| Error::usage(format!("row {row} of the evaluation data has no label"));
    let mut token_perplexity = None;
    let metrics = match task.kind {
        TaskKind::Classification => {
            let predictions: Vec<u32> = results.iter().map(|logits| largest(logits)).collect();
            let labels = data.examples.iter().enumerate().map(|(row, example)| match example.target {
                Target::Class(class) => Ok(class),
                _ => Err(unlabelled(row)),
            });
            TaskMetrics::of_classes(task, &predictions, &labels.collect::<Result<Vec<u32>>>()?)?
        }
        TaskKind::Regression => {
            let predictions: Vec<f64> = results.iter().map(|value| f64::from(value[0])).collect();
            let labels = data.examples.iter().enumerate().map(|(row, example)| match example.target {
                Target::Value(value) => Ok(f64::from(value)),
                _ => Err(unlabelled(row)),
            });
            TaskMetrics::of_values(task, &predictions, &labels.collect::<Result<Vec<f64>>>()?)?
        }
        TaskKind::Span { version_2 } => {
            let Some((questions, features)) = &data.squad else {
                return Err(Error::usage("span evaluation needs a SQuAD file"));
            };
            let logits: Vec<(Vec<f32>, Vec<f32>)> = results
                .iter()
                .map(|pairs| {
                    (
                        pairs.iter().step_by(2).copied().collect(),
                        pairs.iter().skip(1).step_by(2).copied().collect(),
                    )
                })
                .collect();
            let threshold = version_2.then_some(0.0);
            let answered = squad::evaluate(questions, features, &logits, threshold)?;
            let value = |metric: &Metric| match metric {
                Metric::ExactMatch => answered.all.exact,
                _ => answered.all.f1,
            };
            TaskMetrics::new(task.metrics.iter().map(|metric| (*metric, value(metric))).collect())?
        }
        TaskKind::CausalLanguageModel | TaskKind::MaskedLanguageModel => {
            let mean =
                |losses: &Vec<f32>| losses.iter().map(|l| f64::from(*l)).sum::<f64>() / losses.len() as f64;
            let blocks: Vec<BlockLoss> = results
                .iter()
                .filter(|losses| !losses.is_empty())
                .map(|losses| BlockLoss { mean: mean(losses), predicted: losses.len() })
                .collect();
            let total = perplexity(&blocks)?;
            token_perplexity = Some(token_weighted_perplexity(&blocks)?);
            let value = |metric: &Metric| match metric {
                Metric::Perplexity => total,
                _ => total.ln(),
            };
            TaskMetrics::new(task.metrics.iter().map(|metric| (*metric, value(metric))).collect())?
        }
    };
    Ok(Evaluation { metrics, token_perplexity, tokens })
}

/// Index of the largest logit, the first one on ties.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (class, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = class;
        }
    }
    best as u32
}
