//! The nine GLUE tasks in their official TSV layout (Wang et al. 2019, "GLUE").
//!
//! Columns are found by header name, fields are split on tabs and quotation marks are ordinary characters. CoLA and
//! the labelled STS-B test file have no header line. Rows that do not parse are reported, not guessed at.

use std::path::{Path, PathBuf};

use super::source::{self, ReadReport};
use super::task::{Metric, Split};
use super::{Target, TextRow};
use crate::{Error, Result};

/// What sets one GLUE task apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GlueTask {
    /// Name on the command line.
    pub name: &'static str,
    /// Folder of the official distribution.
    pub folder: &'static str,
    /// Columns of the texts and of the label.
    pub columns: Columns,
    /// Label names in the order of the model's classes; empty for regression.
    pub labels: &'static [&'static str],
    /// Maximum number of tokens of a row in the published experiments.
    pub max_length: usize,
    /// Metrics, the main one first.
    pub metrics: &'static [Metric],
}

/// Where the texts and the label are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// By header name.
    Named {
        /// First text.
        first: &'static str,
        /// Second text, if the task has pairs.
        second: Option<&'static str>,
        /// Label.
        label: &'static str,
    },
    /// By place, in files without a header line.
    Placed {
        /// First text.
        first: usize,
        /// Second text, if the task has pairs.
        second: Option<usize>,
        /// Label.
        label: usize,
    },
}

const fn named(first: &'static str, second: Option<&'static str>, label: &'static str) -> Columns {
    Columns::Named { first, second, label }
}

const fn pair(texts: [&'static str; 2], label: &'static str) -> Columns {
    named(texts[0], Some(texts[1]), label)
}

const ENTAILMENT: &[&str] = &["entailment", "not_entailment"];
const THREE_WAY: &[&str] = &["entailment", "neutral", "contradiction"];
const BINARY: &[&str] = &["0", "1"];

/// A task whose rows fit 128 tokens.
const fn task(
    name: &'static str,
    folder: &'static str,
    columns: Columns,
    labels: &'static [&'static str],
    metrics: &'static [Metric],
) -> GlueTask {
    GlueTask { name, folder, columns, labels, max_length: 128, metrics }
}

const SENTENCES: [&str; 2] = ["sentence1", "sentence2"];
const ACCURACY: &[Metric] = &[Metric::Accuracy];
const ACCURACY_AND_F1: &[Metric] = &[Metric::Accuracy, Metric::F1];

/// Every GLUE task. The two MNLI development sets are two tasks that share their training set.
pub const TASKS: [GlueTask; 10] = [
    task("mrpc", "MRPC", pair(["#1 String", "#2 String"], "Quality"), BINARY, ACCURACY_AND_F1),
    task("sts-b", "STS-B", pair(SENTENCES, "score"), &[], &[Metric::Spearman, Metric::Pearson]),
    GlueTask { max_length: 64, ..task("sst-2", "SST-2", named("sentence", None, "label"), BINARY, ACCURACY) },
    task("rte", "RTE", pair(SENTENCES, "label"), ENTAILMENT, ACCURACY),
    GlueTask {
        max_length: 64,
        ..task(
            "cola",
            "CoLA",
            Columns::Placed { first: 3, second: None, label: 1 },
            BINARY,
            &[Metric::Matthews, Metric::Accuracy],
        )
    },
    task("qnli", "QNLI", pair(["question", "sentence"], "label"), ENTAILMENT, ACCURACY),
    task("qqp", "QQP", pair(["question1", "question2"], "is_duplicate"), BINARY, ACCURACY_AND_F1),
    task("mnli", "MNLI", pair(SENTENCES, "gold_label"), THREE_WAY, ACCURACY),
    task("mnli-mm", "MNLI", pair(SENTENCES, "gold_label"), THREE_WAY, ACCURACY),
    task("wnli", "WNLI", pair(SENTENCES, "label"), BINARY, ACCURACY),
];

/// Average development-set lengths T that published FLOP counts of structured pruning use, by task name. They come
/// from the released code of Mask-Tuning and K-prune. The engine's default T is the mean length of the actual data;
/// these are for comparing with published numbers.
pub const PUBLISHED_SEQUENCE_LENGTHS: [(&str, f64); 11] = [
    ("sst-2", 25.16),
    ("qqp", 30.55),
    ("sts-b", 31.47),
    ("mnli", 39.05),
    ("mnli-mm", 39.05),
    ("qnli", 50.97),
    ("mrpc", 53.24),
    ("cola", 11.67),
    ("rte", 64.59),
    ("squad", 170.75),
    ("squad-v2", 170.43),
];

/// The labelled STS-B test file: genre, file, year, id, score, sentence1, sentence2, sometimes two sources.
const STSB_TEST: Columns = Columns::Placed { first: 5, second: Some(6), label: 4 };

impl GlueTask {
    /// The task of a name.
    pub fn by_name(name: &str) -> Option<&'static GlueTask> {
        TASKS.iter().find(|task| task.name == name)
    }

    /// Finds the file of a split under `data`: a directory in the official layout (or one that has the task's folder
    /// in it), or the file itself. Sampled files (`train_subset.tsv`) are taken when the full one is absent.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the files that were looked for.
    pub fn find(&self, data: &Path, split: Split) -> Result<PathBuf> {
        if data.is_file() {
            return Ok(data.to_path_buf());
        }
        let names: Vec<String> = self.file_names(split).iter().map(|name| name.to_string()).collect();
        let folders = [data.to_path_buf(), data.join(self.folder)];
        folders.iter().find_map(|folder| source::find_file(folder, &names)).ok_or_else(|| {
            Error::usage(format!(
                "{}: no {split} file of {}; looked for {} (also with .gz, also in {}/)",
                data.display(),
                self.name,
                names.join(", "),
                self.folder
            ))
        })
    }

    fn file_names(&self, split: Split) -> &'static [&'static str] {
        match (split, self.name) {
            (Split::Train, _) => &["train.tsv", "train_subset.tsv"],
            (Split::Dev, "mnli") => &["dev_matched.tsv", "dev_matched_subset.tsv"],
            (Split::Dev, "mnli-mm") => {
                &["dev_mismatched.tsv", "dev_mismatched_subset.tsv", "dev_mismatched_1k.tsv"]
            }
            (Split::Dev, _) => &["dev.tsv", "dev_subset.tsv"],
            (Split::Test, "mrpc") => &["msr_paraphrase_test.txt"],
            (Split::Test, "sts-b") => &["original/sts-test.tsv", "sts-test.tsv"],
            (Split::Test, _) => &["test-labeled.tsv"],
        }
    }

    /// Reads one file of the task.
    ///
    /// # Errors
    /// [`Error::Format`] naming the file when a column is missing or no row is usable.
    pub fn read(&self, path: &Path) -> Result<(Vec<TextRow>, ReadReport)> {
        let headerless = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("sts-test"));
        let columns = if headerless { STSB_TEST } else { self.columns };
        let bytes = source::without_byte_order_mark(source::read_bytes(path)?);
        let mut lines = source::lines(&bytes).enumerate();
        let (first, second, label) = match columns {
            Columns::Placed { first, second, label } => (first, second, label),
            Columns::Named { first, second, label } => {
                let Some((_, header)) = lines.next() else {
                    return Err(Error::format(path, "the file is empty"));
                };
                let header: Vec<&str> = std::str::from_utf8(header)
                    .map_err(|_| Error::format(path, "line 1: not valid UTF-8"))?
                    .split('\t')
                    .map(str::trim)
                    .collect();
                let place = |name: &str| {
                    header.iter().position(|column| *column == name).ok_or_else(|| {
                        Error::format(
                            path,
                            format!("line 1: no column {name:?}; the columns are {}", header.join(", ")),
                        )
                    })
                };
                (place(first)?, second.map(place).transpose()?, place(label)?)
            }
        };
        let mut rows = Vec::new();
        let mut report = ReadReport::new(path);
        for (number, line) in lines {
            match self.row(line, first, second, label) {
                Ok(row) => rows.push(row),
                Err(reason) => report.reject(number + 1, reason),
            }
        }
        report.rows = rows.len();
        report.require_rows()?;
        Ok((rows, report))
    }

    fn row(&self, line: &[u8], first: usize, second: Option<usize>, label: usize) -> Result<TextRow, String> {
        let line = std::str::from_utf8(line).map_err(|_| "not valid UTF-8".to_string())?;
        let fields: Vec<&str> = line.split('\t').collect();
        let field = |place: usize| {
            fields.get(place).map(|field| field.trim()).ok_or_else(|| {
                format!(
                    "{} fields, where at least {} are needed",
                    fields.len(),
                    1 + first.max(label).max(second.unwrap_or(0))
                )
            })
        };
        let (first, second) = (field(first)?.to_string(), second.map(field).transpose()?.map(str::to_string));
        let target = parse_label(field(label)?, self.labels)?;
        if first.is_empty() || second.as_deref() == Some("") {
            return Err("empty text".into());
        }
        Ok(TextRow { first, second, target })
    }
}

/// A label as the index of its name in `labels`, or as a finite number where `labels` is empty.
pub(super) fn parse_label<S: AsRef<str>>(text: &str, labels: &[S]) -> Result<Target, String> {
    if labels.is_empty() {
        return match text.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(Target::Value(value)),
            _ => Err(format!("label {text:?} is not a finite number")),
        };
    }
    let class = labels.iter().position(|label| label.as_ref() == text).ok_or_else(|| {
        let known: Vec<&str> = labels.iter().map(AsRef::as_ref).collect();
        format!("label {text:?} is none of {}", known.join(", "))
    })?;
    Ok(Target::Class(class as u32))
}
