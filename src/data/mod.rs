//! Text to tokens: readers, tokenizers, unpadded batches, sampling, the built-in task.
//!
//! This room turns files into [`Example`]s (token ids and a target) and examples into unpadded, token-major
//! [`Batch`]es. It knows nothing of models or programs. What it keeps true:
//!
//! - nothing is dropped silently: rows that cannot be used are counted and named in a [`ReadReport`];
//! - the same files and the same seed give the same examples, batches and samples, whatever the number of threads;
//! - all offsets are byte offsets into the UTF-8 text they were computed from.

pub mod agreement;
pub mod batch;
pub mod batcher;
pub mod glue;
pub mod masking;
pub mod random;
pub mod rows;
pub mod sampling;
pub mod source;
pub mod squad;
pub mod table;
pub mod task;
pub mod text;
pub mod tokenizer;

pub use batch::{Batch, Targets};
pub use batcher::{Cursor, EvaluationPlan, Step, TrainBatcher};
pub use source::ReadReport;
pub use task::{Dataset, LoadOptions, Metric, Split, Task, TaskKind};
pub use tokenizer::Tokenizer;

/// What a model is asked to predict for one example.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// No label is known (or none is needed).
    None,
    /// Index of the class in the task's label list.
    Class(u32),
    /// Regression value.
    Value(f32),
    /// First and last token of the answer, counted inside the row; both 0 (the classification token) when the
    /// row holds no answer.
    Span {
        /// First token of the answer.
        start: u32,
        /// Last token of the answer, inclusive.
        end: u32,
    },
    /// Every token but the first is predicted from those before it.
    NextToken,
    /// The original tokens at masked positions (masked language modelling).
    Masked {
        /// Positions inside the row, ascending.
        positions: Vec<u32>,
        /// Original token id at each position.
        labels: Vec<i32>,
    },
}

/// One tokenised row. `input_ids` and `token_type_ids` have the same length, at least 1, and no padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids `[T]`.
    pub input_ids: Vec<i32>,
    /// Segment ids `[T]`.
    pub token_type_ids: Vec<i32>,
    /// What is to be predicted.
    pub target: Target,
}

impl Example {
    /// Number of tokens.
    pub fn length(&self) -> usize {
        self.input_ids.len()
    }
}

/// A row of text with its target, before tokenisation.
#[derive(Debug, Clone, PartialEq)]
pub struct TextRow {
    /// First (or only) text.
    pub first: String,
    /// Second text of a pair task.
    pub second: Option<String>,
    /// Class, value or none.
    pub target: Target,
}
