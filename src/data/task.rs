//! Tasks by name: what a task's files are, what it predicts and how it is measured.

use std::fmt;
use std::path::Path;

use rayon::prelude::*;

use super::agreement;
use super::glue::{self, GlueTask};
use super::masking::Masker;
use super::source::{self, ReadReport};
use super::squad::{self, Feature, FeatureOptions, SquadData};
use super::table::{self, LabelSet, TableColumns};
use super::text::{self, Grouping};
use super::tokenizer::Tokenizer;
use super::{Batch, Example, TextRow};
use crate::{Error, Result};

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// For training.
    Train,
    /// For choosing and reporting (the public development or validation set).
    Dev,
    /// Held out, where labels are public.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Split::Train => "train",
            Split::Dev => "dev",
            Split::Test => "test",
        })
    }
}

/// A measure of quality. Computed in [`crate::eval`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Share of rows classified right.
    Accuracy,
    /// F1 of class 1.
    F1,
    /// Mean of the classes' F1.
    MacroF1,
    /// Matthews correlation coefficient.
    Matthews,
    /// Pearson's r.
    Pearson,
    /// Spearman's ρ.
    Spearman,
    /// Share of questions answered with exactly a reference answer, in percent.
    ExactMatch,
    /// Word overlap of answers, in percent.
    AnswerF1,
    /// exp of the mean loss.
    Perplexity,
    /// Mean loss; for masked language models.
    Loss,
}

impl Metric {
    /// Name in reports and records.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::MacroF1 => "f1_macro",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::ExactMatch => "exact_match",
            Metric::AnswerF1 => "answer_f1",
            Metric::Perplexity => "perplexity",
            Metric::Loss => "loss",
        }
    }

    /// Whether a larger value is better.
    pub fn larger_is_better(self) -> bool {
        !matches!(self, Metric::Perplexity | Metric::Loss)
    }
}

/// What a task predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// One of several classes for each row.
    Classification,
    /// One number for each row.
    Regression,
    /// First and last token of an answer; `version_2` when there may be none.
    Span {
        /// SQuAD 2.0 rules.
        version_2: bool,
    },
    /// Every next token.
    CausalLanguageModel,
    /// Masked tokens.
    MaskedLanguageModel,
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Name on the command line.
    pub name: String,
    /// What is predicted.
    pub kind: TaskKind,
    /// Class names in class order; empty where there are none, or where they are read from the training file (a
    /// table).
    pub labels: Vec<String>,
    /// Metrics, the main one first.
    pub metrics: Vec<Metric>,
    /// Default of the most tokens of a row (of a block, for language modelling).
    pub max_length: usize,
}

/// Names of all tasks.
pub const TASK_NAMES: [&str; 16] = [
    "mrpc",
    "sts-b",
    "sst-2",
    "rte",
    "cola",
    "qnli",
    "qqp",
    "mnli",
    "mnli-mm",
    "wnli",
    "squad",
    "squad-v2",
    "lm",
    "mlm",
    "table",
    "agreement",
];

/// Options of [`Task::load`]; the default is right for every task in its usual layout.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Most tokens of a row or block; the task's default when `None`.
    pub max_length: Option<usize>,
    /// Tokens shared by neighbouring windows of a SQuAD paragraph; 128 when `None`.
    pub stride: Option<usize>,
    /// Blocks of language modelling.
    pub grouping: Grouping,
    /// Columns of a table.
    pub columns: TableColumns,
    /// Only the first so many rows of the file are tokenised.
    pub limit: Option<usize>,
    /// Seed of the masks of masked language modelling and of the built-in task.
    pub seed: u64,
}

/// Tokenised examples of one split.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// The rows.
    pub examples: Vec<Example>,
    /// What was read and what was left out.
    pub report: ReadReport,
    /// For SQuAD the questions and, for each example, which part of which paragraph it is.
    pub squad: Option<(SquadData, Vec<Feature>)>,
    /// For masked language modelling: masks the rows anew for each epoch. The examples themselves are unmasked.
    pub masker: Option<Masker>,
}

impl Dataset {
    /// Unmasked rows that are masked anew in each epoch.
    ///
    /// # Errors
    /// As [`Masker::new`].
    pub fn masked(examples: Vec<Example>, tokenizer: &Tokenizer, seed: u64) -> Result<Dataset> {
        let report = ReadReport { rows: examples.len(), ..ReadReport::default() };
        Ok(Dataset { examples, report, masker: Some(Masker::new(tokenizer, seed)?), ..Dataset::default() })
    }

    /// Tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(Example::length).collect()
    }

    /// Fills `batch` with rows as they are in `epoch` (only masks depend on it; evaluation uses epoch 0).
    ///
    /// # Errors
    /// As [`Batch::fill`].
    pub fn fill(&self, batch: &mut Batch, rows: &[usize], epoch: u64) -> Result<()> {
        let Some(masker) = &self.masker else {
            return batch.fill(&self.examples, rows);
        };
        if let Some(row) = rows.iter().find(|row| **row >= self.examples.len()) {
            return Err(Error::shape("batch", format!("row {row} of {} examples", self.examples.len())));
        }
        let masked: Vec<Example> =
            rows.iter().map(|row| masker.mask(&self.examples[*row], *row, epoch)).collect();
        batch.refill(rows.iter().copied().zip(&masked))
    }

    /// Mean tokens of an example: the sequence length T that costs are counted for; 0 without examples.
    pub fn mean_length(&self) -> f64 {
        if self.examples.is_empty() {
            return 0.0;
        }
        self.lengths().iter().sum::<usize>() as f64 / self.examples.len() as f64
    }
}

impl Task {
    /// The task of a name.
    ///
    /// # Errors
    /// [`Error::Usage`] listing the known names.
    pub fn by_name(name: &str) -> Result<Task> {
        let simple = |kind, metrics: &[Metric], max_length| Task {
            name: name.to_string(),
            kind,
            labels: Vec::new(),
            metrics: metrics.to_vec(),
            max_length,
        };
        if let Some(glue) = GlueTask::by_name(name) {
            let kind = if glue.labels.is_empty() { TaskKind::Regression } else { TaskKind::Classification };
            let labels = glue.labels.iter().map(|label| label.to_string()).collect();
            return Ok(Task { labels, ..simple(kind, glue.metrics, glue.max_length) });
        }
        let answers = [Metric::AnswerF1, Metric::ExactMatch];
        Ok(match name {
            "squad" => simple(TaskKind::Span { version_2: false }, &answers, 384),
            "squad-v2" => simple(TaskKind::Span { version_2: true }, &answers, 384),
            "lm" => simple(TaskKind::CausalLanguageModel, &[Metric::Perplexity], 512),
            "mlm" => simple(TaskKind::MaskedLanguageModel, &[Metric::Loss], 128),
            "table" => simple(TaskKind::Classification, &[Metric::Accuracy, Metric::MacroF1], 128),
            "agreement" => Task {
                labels: agreement::LABELS.iter().map(|label| label.to_string()).collect(),
                ..simple(TaskKind::Classification, &[Metric::Accuracy], 64)
            },
            _ => {
                return Err(Error::usage(format!(
                    "unknown task {name:?}; the tasks are {}",
                    TASK_NAMES.join(", ")
                )));
            }
        })
    }

    /// A table task that predicts numbers.
    pub fn table_regression() -> Task {
        Task {
            name: "table".into(),
            kind: TaskKind::Regression,
            labels: Vec::new(),
            metrics: vec![Metric::Spearman, Metric::Pearson],
            max_length: 128,
        }
    }

    /// The main metric.
    pub fn main_metric(&self) -> Metric {
        self.metrics[0]
    }

    /// Outputs of the task head for each row or token: classes, 1 for regression, 2 for spans (start and end); `None`
    /// for language models, whose outputs are the vocabulary.
    pub fn outputs(&self) -> Option<usize> {
        match self.kind {
            TaskKind::Classification => Some(self.labels.len()),
            TaskKind::Regression => Some(1),
            TaskKind::Span { .. } => Some(2),
            TaskKind::CausalLanguageModel | TaskKind::MaskedLanguageModel => None,
        }
    }

    /// Reads and tokenises a split from `data`, a directory in the task's usual layout or one file. Loading a
    /// table whose labels are not known yet makes those it finds the task's, so load its training split first. The
    /// built-in task ignores `data`.
    ///
    /// # Errors
    /// Those of the task's reader, and [`Error::Usage`] when the split has no file or the maximum length no room.
    pub fn load(
        &mut self,
        data: &Path,
        split: Split,
        tokenizer: &Tokenizer,
        options: &LoadOptions,
    ) -> Result<Dataset> {
        let max_length = options.max_length.unwrap_or(self.max_length);
        let limit = options.limit.unwrap_or(usize::MAX);
        if let Some(glue) = GlueTask::by_name(&self.name) {
            let (rows, report) = glue.read(&glue.find(data, split)?)?;
            return tokenized(rows, report, tokenizer, max_length, limit);
        }
        match self.kind {
            TaskKind::Span { version_2 } => {
                let path = find_squad(data, split, version_2)?;
                let (mut squad, mut report) = squad::read(&path, version_2)?;
                squad.questions.truncate(limit);
                report.rows = squad.questions.len();
                let stride = options.stride.unwrap_or(FeatureOptions::default().stride);
                let (examples, features) =
                    squad::features(&squad, tokenizer, FeatureOptions { max_length, stride }, &mut report)?;
                Ok(Dataset { examples, report, squad: Some((squad, features)), masker: None })
            }
            TaskKind::CausalLanguageModel | TaskKind::MaskedLanguageModel => {
                let path = text::find(data, split)?;
                let (mut examples, masker) = if self.kind == TaskKind::CausalLanguageModel {
                    (text::causal_blocks(&path, tokenizer, max_length, options.grouping)?, None)
                } else {
                    let masker = Masker::new(tokenizer, options.seed)?;
                    (text::masked_blocks(&path, tokenizer, max_length)?, Some(masker))
                };
                examples.truncate(limit);
                let report = ReadReport { rows: examples.len(), ..ReadReport::new(&path) };
                Ok(Dataset { examples, report, masker, ..Dataset::default() })
            }
            _ if self.name == "agreement" => {
                let sizes = agreement::Sizes::default();
                let (rows, report) = agreement::rows(split, &sizes, options.seed);
                tokenized(rows, report, tokenizer, max_length, limit)
            }
            TaskKind::Classification | TaskKind::Regression => {
                let labels = match self.kind {
                    TaskKind::Regression => LabelSet::Regression,
                    _ if self.labels.is_empty() => LabelSet::Infer,
                    _ => LabelSet::Classes(self.labels.clone()),
                };
                let table = table::read(&find_table(data, split)?, &options.columns, &labels)?;
                if self.kind == TaskKind::Classification && options.columns.label.is_some() {
                    if table.labels.len() < 2 {
                        let found = table.labels.join(", ");
                        return Err(Error::format(
                            &table.report.path,
                            format!("only one class in the label column: {found}"),
                        ));
                    }
                    self.labels = table.labels;
                }
                tokenized(table.rows, table.report, tokenizer, max_length, limit)
            }
        }
    }
}

/// Tokenises rows, at most `limit` of them, in parallel and in order.
fn tokenized(
    rows: Vec<TextRow>,
    mut report: ReadReport,
    tokenizer: &Tokenizer,
    max_length: usize,
    limit: usize,
) -> Result<Dataset> {
    let rows = &rows[..rows.len().min(limit)];
    let examples: Vec<Example> = rows
        .par_iter()
        .map(|row| {
            let encoded = tokenizer.encode(&row.first, row.second.as_deref(), max_length)?;
            if encoded.ids.is_empty() {
                return Err(Error::usage(format!("the tokenizer gives no token for {:?}", row.first)));
            }
            Ok(Example {
                input_ids: encoded.ids,
                token_type_ids: encoded.token_type_ids,
                target: row.target.clone(),
            })
        })
        .collect::<Result<_>>()?;
    report.rows = examples.len();
    Ok(Dataset { examples, report, ..Dataset::default() })
}

/// `train-v1.1.json` and the like; else the only file whose name begins with the split and holds the version.
fn find_squad(data: &Path, split: Split, version_2: bool) -> Result<std::path::PathBuf> {
    if data.is_file() {
        return Ok(data.to_path_buf());
    }
    let version = if version_2 { "v2.0" } else { "v1.1" };
    let name = format!("{split}-{version}");
    if let Some(path) = source::find_file(data, &[format!("{name}.json")]) {
        return Ok(path);
    }
    let mut found: Vec<_> = std::fs::read_dir(data)
        .map_err(Error::io(data, "listing"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            file.starts_with(&name) && source::content_extension(path) == "json"
        })
        .collect();
    found.sort();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::usage(format!("{}: no {name}*.json (or .json.gz)", data.display()))),
        _ => {
            let names: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
            Err(Error::usage(format!(
                "several {split} files of SQuAD {version}: {}; name one",
                names.join(", ")
            )))
        }
    }
}

/// A table file, or `<split>.csv|tsv|jsonl` of a directory.
fn find_table(data: &Path, split: Split) -> Result<std::path::PathBuf> {
    if data.is_file() {
        return Ok(data.to_path_buf());
    }
    let stems: &[&str] = match split {
        Split::Train => &["train"],
        Split::Dev => &["dev", "valid", "validation"],
        Split::Test => &["test"],
    };
    let names: Vec<String> = stems
        .iter()
        .flat_map(|stem| ["csv", "tsv", "jsonl"].map(|extension| format!("{stem}.{extension}")))
        .collect();
    source::find_file(data, &names).ok_or_else(|| {
        Error::usage(format!("{}: no {split} table; looked for {}", data.display(), names.join(", ")))
    })
}

/// Published sequence length of a task, for comparing FLOP counts with published ones; see
/// [`glue::PUBLISHED_SEQUENCE_LENGTHS`].
pub fn published_sequence_length(task: &str) -> Option<f64> {
    glue::PUBLISHED_SEQUENCE_LENGTHS.iter().find(|(name, _)| *name == task).map(|(_, length)| *length)
}
