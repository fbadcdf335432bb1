//! Unpadded batches: the tokens of several rows laid end to end.
//!
//! A batch holds no padding. Row `r` of a batch is the tokens `cu_seqlens[r] .. cu_seqlens[r + 1]`. A [`Batch`] is
//! filled in place, so a training loop that reuses one allocates nothing once its buffers have grown.

use super::{Example, Target};
use crate::{Error, Result};

/// The targets of a batch of `R` rows, laid out for the loss that uses them.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Targets {
    /// Rows without a target.
    #[default]
    None,
    /// Class of each row `[R]`.
    Classes(Vec<i32>),
    /// Regression value of each row `[R]`.
    Values(Vec<f32>),
    /// First and last answer token of each row, counted inside the row.
    Spans {
        /// `[R]`
        starts: Vec<i32>,
        /// `[R]`
        ends: Vec<i32>,
    },
    /// Language modelling: at flat position `positions[i]` of the batch the output is to be `labels[i]`. For
    /// next-token
    /// prediction the label is the following token of the same row; for masked tokens it is the original token.
    Tokens {
        /// Ascending flat positions `[P]`.
        positions: Vec<i32>,
        /// Token ids `[P]`.
        labels: Vec<i32>,
    },
}

impl Targets {
    /// Number of predictions: rows, or tokens for language modelling.
    pub fn len(&self) -> usize {
        match self {
            Targets::None => 0,
            Targets::Classes(classes) => classes.len(),
            Targets::Values(values) => values.len(),
            Targets::Spans { starts, .. } => starts.len(),
            Targets::Tokens { positions, .. } => positions.len(),
        }
    }

    /// Whether there is nothing to predict.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn clear(&mut self) {
        match self {
            Targets::None => {}
            Targets::Classes(classes) => classes.clear(),
            Targets::Values(values) => values.clear(),
            Targets::Spans { starts, ends } => {
                starts.clear();
                ends.clear();
            }
            Targets::Tokens { positions, labels } => {
                positions.clear();
                labels.clear();
            }
        }
    }

    /// Appends a row's target; false when it is of another kind than those before it.
    fn push(&mut self, example: &Example, first_token: i32) -> bool {
        match (&mut *self, &example.target) {
            (Targets::None, Target::None) => {}
            (Targets::Classes(classes), Target::Class(class)) => classes.push(*class as i32),
            (Targets::Values(values), Target::Value(value)) => values.push(*value),
            (Targets::Spans { starts, ends }, Target::Span { start, end }) => {
                starts.push(*start as i32);
                ends.push(*end as i32);
            }
            (Targets::Tokens { positions, labels }, Target::NextToken) => {
                positions.extend((0..example.length() as i32 - 1).map(|t| first_token + t));
                labels.extend_from_slice(&example.input_ids[1..]);
            }
            (
                Targets::Tokens { positions, labels },
                Target::Masked { positions: inside, labels: original },
            ) => {
                positions.extend(inside.iter().map(|t| first_token + *t as i32));
                labels.extend_from_slice(original);
            }
            _ => return false,
        }
        true
    }

    /// Whether this variant is the one for targets like `target`.
    fn fits(&self, target: &Target) -> bool {
        matches!(
            (self, target),
            (Targets::None, Target::None)
                | (Targets::Classes(_), Target::Class(_))
                | (Targets::Values(_), Target::Value(_))
                | (Targets::Spans { .. }, Target::Span { .. })
                | (Targets::Tokens { .. }, Target::NextToken | Target::Masked { .. })
        )
    }

    fn empty_for(target: &Target) -> Targets {
        match target {
            Target::None => Targets::None,
            Target::Class(_) => Targets::Classes(Vec::new()),
            Target::Value(_) => Targets::Values(Vec::new()),
            Target::Span { .. } => Targets::Spans { starts: Vec::new(), ends: Vec::new() },
            Target::NextToken | Target::Masked { .. } => {
                Targets::Tokens { positions: Vec::new(), labels: Vec::new() }
            }
        }
    }
}

/// `R` rows of together `T` tokens, token-major and without padding.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Token ids `[T]`.
    pub input_ids: Vec<i32>,
    /// Segment ids `[T]`.
    pub token_type_ids: Vec<i32>,
    /// Row bounds `[R + 1]`, from 0 to T.
    pub cu_seqlens: Vec<i32>,
    /// Index of each row in the list the batch was filled from `[R]`.
    pub rows: Vec<usize>,
    /// What the rows are to give.
    pub targets: Targets,
}

impl Batch {
    /// A batch of the given rows of `examples`, in the order of `rows`.
    ///
    /// # Errors
    /// As [`Batch::fill`].
    pub fn of(examples: &[Example], rows: &[usize]) -> Result<Batch> {
        let mut batch = Batch::default();
        batch.fill(examples, rows)?;
        Ok(batch)
    }

    /// Replaces the content by the given rows of `examples`; buffers are reused.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no row, a row does not exist or is empty, rows have targets of different kinds,
    /// or the tokens do not fit 32-bit positions. The batch is then unusable until it is filled again.
    pub fn fill(&mut self, examples: &[Example], rows: &[usize]) -> Result<()> {
        if let Some(row) = rows.iter().find(|row| **row >= examples.len()) {
            return Err(Error::shape("batch", format!("row {row} of {} examples", examples.len())));
        }
        self.refill(rows.iter().map(|row| (*row, &examples[*row])))
    }

    /// Replaces the content by rows that are not in one slice (masked anew for an epoch, say). `rows` gives each
    /// row's index and content.
    ///
    /// # Errors
    /// As [`Batch::fill`].
    pub fn refill<'a>(&mut self, rows: impl Iterator<Item = (usize, &'a Example)>) -> Result<()> {
        self.input_ids.clear();
        self.token_type_ids.clear();
        self.cu_seqlens.clear();
        self.rows.clear();
        self.targets.clear();
        self.cu_seqlens.push(0);
        for (row, example) in rows {
            if self.rows.is_empty() && !self.targets.fits(&example.target) {
                self.targets = Targets::empty_for(&example.target);
            }
            self.push(row, example)?;
        }
        if self.rows.is_empty() {
            return Err(Error::shape("batch", "no rows"));
        }
        Ok(())
    }

    fn push(&mut self, row: usize, example: &Example) -> Result<()> {
        if example.input_ids.is_empty() || example.token_type_ids.len() != example.input_ids.len() {
            return Err(Error::shape(
                "batch",
                format!(
                    "row {row} has {} token ids and {} segment ids",
                    example.input_ids.len(),
                    example.token_type_ids.len()
                ),
            ));
        }
        let first_token = self.input_ids.len() as i32;
        let end = i32::try_from(self.input_ids.len() + example.length())
            .map_err(|_| Error::shape("batch", "more than 2^31 tokens in one batch"))?;
        if !self.targets.push(example, first_token) {
            return Err(Error::shape(
                "batch",
                format!("row {row} has a target of another kind than the rows before it"),
            ));
        }
        self.input_ids.extend_from_slice(&example.input_ids);
        self.token_type_ids.extend_from_slice(&example.token_type_ids);
        self.cu_seqlens.push(end);
        self.rows.push(row);
        Ok(())
    }

    /// Number of rows R.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Number of tokens T.
    pub fn token_count(&self) -> usize {
        self.input_ids.len()
    }

    /// Tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        self.cu_seqlens.windows(2).map(|bounds| (bounds[1] - bounds[0]) as usize).max().unwrap_or(0)
    }

    /// Checks the tokens against a model.
    ///
    /// # Errors
    /// As [`check_limits`].
    pub fn check(&self, limits: &ModelLimits) -> Result<()> {
        self.cu_seqlens.windows(2).zip(&self.rows).try_for_each(|(bounds, row)| {
            let range = bounds[0] as usize..bounds[1] as usize;
            check_row(*row, &self.input_ids[range.clone()], &self.token_type_ids[range], limits)
        })
    }
}

/// What a model can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelLimits {
    /// Number of token ids.
    pub vocabulary_size: usize,
    /// Longest row.
    pub max_positions: usize,
    /// Number of segment ids; 0 for a model without segments, which ignores them.
    pub segments: usize,
}

/// Checks that a model can take every example.
///
/// # Errors
/// [`Error::Shape`] naming the first row, token and limit that is violated.
pub fn check_limits(examples: &[Example], limits: &ModelLimits) -> Result<()> {
    examples
        .iter()
        .enumerate()
        .try_for_each(|(row, example)| check_row(row, &example.input_ids, &example.token_type_ids, limits))
}

fn check_row(row: usize, ids: &[i32], segments: &[i32], limits: &ModelLimits) -> Result<()> {
    if ids.len() > limits.max_positions {
        return Err(Error::shape(
            format!("row {row}"),
            format!(
                "{} tokens, where the model has {} positions; use a smaller maximum length",
                ids.len(),
                limits.max_positions
            ),
        ));
    }
    let outside = |value: i32, bound: usize| usize::try_from(value).map_or(true, |value| value >= bound);
    if let Some(place) = ids.iter().position(|id| outside(*id, limits.vocabulary_size)) {
        return Err(Error::shape(
            format!("row {row}"),
            format!(
                "token {place} is id {}, outside the model's vocabulary of {}; is this the model's own tokenizer?",
                ids[place], limits.vocabulary_size
            ),
        ));
    }
    if limits.segments > 0
        && let Some(place) = segments.iter().position(|segment| outside(*segment, limits.segments))
    {
        return Err(Error::shape(
            format!("row {row}"),
            format!(
                "token {place} has segment {}, where the model has {} segments",
                segments[place], limits.segments
            ),
        ));
    }
    Ok(())
}
