//! Calibration rows as K-prune runs them: mini-batches of the job's size, cut into pieces that fit memory.

use crate::data::{Batch, Example, Target, Targets};
use crate::error::{Error, Result};
use crate::model::Head;
use crate::program::Extents;
use crate::prune::Job;
use crate::session;

/// Elements of the logits of a language model that may stand in memory at once, three times over.
const LOGIT_ELEMENTS: usize = 1 << 25;

/// All rows, in order.
#[derive(Debug)]
pub struct Rows {
    /// Whole rows, at most one mini-batch each.
    pub batches: Vec<Batch>,
    /// The mini-batch of each batch, rising.
    pub mini_batch: Vec<usize>,
    /// What the mean of each mini-batch's losses divides by: its rows, or the tokens it predicts.
    pub terms: Vec<usize>,
    /// Extents that hold every batch.
    pub capacity: Extents,
    /// Rows of all batches.
    pub rows: usize,
    /// Tokens of all batches.
    pub tokens: usize,
}

impl Rows {
    /// Cuts the job's rows into mini-batches, and those into pieces of at most `batch_tokens` tokens or one row. Labels are
    /// left out; language models predict what their rows say, or, of rows without targets, every token they can.
    pub fn new(job: &Job, batch_tokens: usize) -> Result<Rows> {
        if job.examples.is_empty() {
            return Err(Error::usage("there are no calibration rows"));
        }
        let head = job.model.architecture.head;
        let examples: Vec<Example> = job.examples.iter().map(|row| predicting(row, head)).collect();
        let lengths: Vec<usize> = examples.iter().map(Example::length).collect();
        let budget = match head.is_language_model() {
            true => batch_tokens.min(LOGIT_ELEMENTS / job.model.config().vocab.max(1)).max(1),
            false => batch_tokens,
        };
        let mut packed: Vec<Vec<usize>> = Vec::new();
        let mut mini_batch = Vec::new();
        let mini_batch_rows = job.batch_rows.max(1);
        for (index, start) in (0..examples.len()).step_by(mini_batch_rows).enumerate() {
            let mut tokens = 0;
            for row in start..(start + mini_batch_rows).min(examples.len()) {
                match packed.last_mut() {
                    Some(piece) if row > start && tokens + lengths[row] <= budget => piece.push(row),
                    _ => {
                        packed.push(vec![row]);
                        mini_batch.push(index);
                        tokens = 0;
                    }
                }
                tokens += lengths[row];
            }
        }
        let batches = packed.iter().map(|rows| Batch::of(&examples, rows)).collect::<Result<Vec<_>>>()?;
        let mut terms = vec![0; mini_batch.last().map_or(0, |last| last + 1)];
        for (batch, &mini) in batches.iter().zip(&mini_batch) {
            terms[mini] += predictions(batch);
        }
        if terms.iter().all(|&terms| terms == 0) {
            return Err(Error::usage("the calibration rows predict no token: they have one token each"));
        }
        let capacity = session::capacity(&packed, &lengths);
        Ok(Rows { batches, mini_batch, terms, capacity, rows: examples.len(), tokens: lengths.iter().sum() })
    }
}

/// Rows of a batch that a loss is computed for: sequences, or tokens that a language model predicts.
pub fn predictions(batch: &Batch) -> usize {
    match &batch.targets {
        Targets::Tokens { positions, .. } => positions.len(),
        _ => batch.row_count(),
    }
}

/// The row with a target that says which predictions are compared.
fn predicting(row: &Example, head: Head) -> Example {
    let target = match (head, &row.target) {
        (Head::CausalLm, _) => Target::NextToken,
        (Head::MaskedLm, Target::Masked { .. }) => row.target.clone(),
        (Head::MaskedLm, _) => {
            let positions = (0..row.length() as u32).collect();
            Target::Masked { positions, labels: row.input_ids.clone() }
        }
        _ => Target::None,
    };
    Example { target, ..row.clone() }
}
