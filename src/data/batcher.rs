//! Which rows go into which batch.
//!
//! Training: an optimiser step is exactly `batch_size` examples (the last of an epoch may be smaller), whatever the
//! device can hold; a step is run as micro-batches under a token budget. The order depends only on (seed, epoch),
//! and a [`Cursor`] names a place in it, so an interrupted run continues with the very same steps.
//!
//! Evaluation: rows are sorted by length so that attention over a batch wastes little, and results are put back
//! in the order of the examples.

use serde::{Deserialize, Serialize};

use super::random::{Purpose, Stream};
use crate::{Error, Result};

/// The next step to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Optimiser step inside the epoch, from 0.
    pub step: u64,
}

/// The examples of one optimiser step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which step it is.
    pub cursor: Cursor,
    /// Row indices of each micro-batch; their concatenation is the step.
    pub micro_batches: Vec<Vec<usize>>,
}

impl Step {
    /// Number of examples of the step.
    pub fn examples(&self) -> usize {
        self.micro_batches.iter().map(Vec::len).sum()
    }
}

/// Settings of a [`TrainBatcher`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainOptions {
    /// Examples of an optimiser step.
    pub batch_size: usize,
    /// Most tokens of a micro-batch.
    pub token_budget: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Whether an epoch's last, smaller step is left out.
    pub drop_last: bool,
}

/// Extents of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchSize {
    /// Tokens of all rows.
    pub tokens: usize,
    /// Rows.
    pub rows: usize,
    /// Tokens of the longest row.
    pub longest: usize,
}

/// Deals out optimiser steps, epoch after epoch, without end.
#[derive(Debug, Clone)]
pub struct TrainBatcher {
    lengths: Vec<usize>,
    options: TrainOptions,
    cursor: Cursor,
    /// Order of the rows in epoch `order_epoch`.
    order: Vec<usize>,
    order_epoch: Option<u64>,
}

impl TrainBatcher {
    /// A batcher over rows of the given token counts, at the start of epoch 0.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are no rows, the batch size is 0, a row is longer than the token budget, or
    /// `drop_last` leaves no step at all.
    pub fn new(lengths: Vec<usize>, options: TrainOptions) -> Result<Self> {
        check_budget(&lengths, options.token_budget)?;
        if options.batch_size == 0 {
            return Err(Error::usage("a batch size of 0"));
        }
        if options.drop_last && lengths.len() < options.batch_size {
            return Err(Error::usage(format!(
                "{} examples do not fill one batch of {}, and incomplete batches are dropped",
                lengths.len(),
                options.batch_size
            )));
        }
        Ok(TrainBatcher { lengths, options, cursor: Cursor::default(), order: Vec::new(), order_epoch: None })
    }

    /// Optimiser steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        let (examples, size) = (self.lengths.len(), self.options.batch_size);
        (if self.options.drop_last { examples / size } else { examples.div_ceil(size) }) as u64
    }

    /// Where the next step is; to be saved with a checkpoint.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Continues at a saved place.
    ///
    /// # Errors
    /// [`Error::Usage`] when an epoch has no such step (the data or the batch size have changed).
    pub fn seek(&mut self, cursor: Cursor) -> Result<()> {
        if cursor.step >= self.steps_per_epoch() {
            return Err(Error::usage(format!(
                "cannot resume at step {} of an epoch of {} steps; were the data or the batch size changed?",
                cursor.step,
                self.steps_per_epoch()
            )));
        }
        self.cursor = cursor;
        Ok(())
    }

    /// The order of all rows in an epoch.
    pub fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        Stream::new(self.options.seed, Purpose::Shuffle, epoch).shuffle(&mut order);
        order
    }

    /// What holds every micro-batch of the first `epochs` epochs.
    pub fn largest(&self, epochs: u64) -> BatchSize {
        let mut largest = BatchSize::default();
        let mut batcher = TrainBatcher { cursor: Cursor::default(), ..self.clone() };
        for rows in (0..epochs * self.steps_per_epoch()).flat_map(|_| batcher.next_step().micro_batches) {
            let lengths = rows.iter().map(|&row| self.lengths[row]);
            largest.longest = largest.longest.max(lengths.clone().max().unwrap_or(0));
            largest.tokens = largest.tokens.max(lengths.sum());
            largest.rows = largest.rows.max(rows.len());
        }
        largest
    }

    /// The next step; moves the cursor past it.
    pub fn next_step(&mut self) -> Step {
        let cursor = self.cursor;
        if self.order_epoch != Some(cursor.epoch) {
            self.order = self.epoch_order(cursor.epoch);
            self.order_epoch = Some(cursor.epoch);
        }
        let first = cursor.step as usize * self.options.batch_size;
        let last = (first + self.options.batch_size).min(self.order.len());
        let micro_batches =
            split_by_budget(&self.order[first..last], &self.lengths, self.options.token_budget);
        self.cursor.step += 1;
        if self.cursor.step == self.steps_per_epoch() {
            self.cursor = Cursor { epoch: cursor.epoch + 1, step: 0 };
        }
        Step { cursor, micro_batches }
    }
}

/// The batches of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationPlan {
    /// Row indices of each batch; rows are in ascending order of length, ties in their original order.
    pub batches: Vec<Vec<usize>>,
    rows: usize,
}

impl EvaluationPlan {
    /// Fills batches of at most `token_budget` tokens.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are no rows or one is longer than the budget.
    pub fn new(lengths: &[usize], token_budget: usize) -> Result<Self> {
        check_budget(lengths, token_budget)?;
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|row| lengths[*row]);
        Ok(EvaluationPlan { batches: split_by_budget(&order, lengths, token_budget), rows: lengths.len() })
    }

    /// Puts results into the order of the examples; `results[b][i]` belongs to row `batches[b][i]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when a batch has not exactly one result for each of its rows.
    pub fn in_original_order<T>(&self, results: Vec<Vec<T>>) -> Result<Vec<T>> {
        let mut ordered: Vec<Option<T>> = (0..self.rows).map(|_| None).collect();
        if results.len() != self.batches.len() {
            return Err(Error::shape(
                "evaluation",
                format!("{} results of {} batches", results.len(), self.batches.len()),
            ));
        }
        for (batch, (rows, results)) in self.batches.iter().zip(results).enumerate() {
            if rows.len() != results.len() {
                return Err(Error::shape(
                    "evaluation",
                    format!("{} results of batch {batch} of {} rows", results.len(), rows.len()),
                ));
            }
            for (row, result) in rows.iter().zip(results) {
                ordered[*row] = Some(result);
            }
        }
        Ok(ordered.into_iter().map(|result| result.expect("every row is in exactly one batch")).collect())
    }
}

fn check_budget(lengths: &[usize], token_budget: usize) -> Result<()> {
    if lengths.is_empty() {
        return Err(Error::usage("there are no examples"));
    }
    if let Some(row) = lengths.iter().position(|length| *length > token_budget) {
        return Err(Error::usage(format!(
            "example {row} has {} tokens, more than the {token_budget} tokens of a batch",
            lengths[row]
        )));
    }
    Ok(())
}

/// Cuts `rows` into runs of at most `token_budget` tokens, in order.
fn split_by_budget(rows: &[usize], lengths: &[usize], token_budget: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut used = usize::MAX;
    for row in rows {
        if used.saturating_add(lengths[*row]) > token_budget {
            batches.push(Vec::new());
            used = 0;
        }
        batches.last_mut().expect("a batch was just opened").push(*row);
        used += lengths[*row];
    }
    batches
}
