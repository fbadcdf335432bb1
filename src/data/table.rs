//! Tables of anyone's own data: CSV, TSV and JSON lines with named columns.
//!
//! `.csv` follows RFC 4180 (quoted fields may hold commas and line ends); `.tsv` has no quoting, as in GLUE; `.jsonl`
//! has one object a line. The class names are those found in the training file, sorted (as numbers where all of
//! them are integers), and the other splits must use the same.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::glue::parse_label;
use super::source::{self, ReadReport};
use super::{Target, TextRow};
use crate::{Error, Result};

/// Which columns to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumns {
    /// First (or only) text.
    pub text: String,
    /// Second text.
    pub second_text: Option<String>,
    /// Label; `None` reads rows without a target.
    pub label: Option<String>,
}

impl Default for TableColumns {
    /// `text` and `label`.
    fn default() -> Self {
        TableColumns { text: "text".into(), second_text: None, label: Some("label".into()) }
    }
}

/// How labels are understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelSet {
    /// Class names are collected from the file.
    Infer,
    /// These class names and no others.
    Classes(Vec<String>),
    /// Labels are numbers.
    Regression,
}

/// A table that was read.
#[derive(Debug, Clone)]
pub struct Table {
    /// The rows in file order.
    pub rows: Vec<TextRow>,
    /// Class names in class order; empty for regression or without labels.
    pub labels: Vec<String>,
    /// What was used and what was not.
    pub report: ReadReport,
}

/// One row before its label is understood: line, texts, label.
struct RawRow {
    line: usize,
    first: String,
    second: Option<String>,
    label: Option<String>,
}

/// Reads a table; the format is that of the extension (`.csv`, `.tsv`, `.txt` as TSV, `.jsonl`/`.ndjson`; `.gz` accepted).
///
/// # Errors
/// [`Error::Usage`] for another extension, [`Error::Format`] when a column is missing or no row is usable.
pub fn read(path: &Path, columns: &TableColumns, labels: &LabelSet) -> Result<Table> {
    let mut report = ReadReport::new(path);
    let bytes = source::without_byte_order_mark(source::read_bytes(path)?);
    let raw = match source::content_extension(path).as_str() {
        "csv" => read_delimited(path, &bytes, b',', true, columns, &mut report)?,
        "tsv" | "txt" => read_delimited(path, &bytes, b'\t', false, columns, &mut report)?,
        "jsonl" | "ndjson" => read_json_lines(&bytes, columns, &mut report),
        other => {
            return Err(Error::usage(format!(
                "{}: a table ends in .csv, .tsv or .jsonl (also .gz), not {other:?}",
                path.display()
            )));
        }
    };
    let names = match labels {
        LabelSet::Classes(names) => names.clone(),
        LabelSet::Regression => Vec::new(),
        LabelSet::Infer => infer_classes(raw.iter().filter_map(|row| row.label.as_deref())),
    };
    let mut rows = Vec::with_capacity(raw.len());
    for row in raw {
        let target = match &row.label {
            None => Ok(Target::None),
            Some(label) => parse_label(label, &names),
        };
        match target {
            Ok(target) => rows.push(TextRow { first: row.first, second: row.second, target }),
            Err(reason) => report.reject(row.line, reason),
        }
    }
    report.rows = rows.len();
    report.bad.sort_by_key(|bad| bad.line);
    report.require_rows()?;
    Ok(Table { rows, labels: names, report })
}

/// Distinct labels, sorted: as numbers when every one is an integer, else by bytes.
fn infer_classes<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<String> {
    let names: BTreeSet<&str> = labels.collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_string).collect();
    if names.iter().all(|name| name.parse::<i64>().is_ok()) {
        names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
    }
    names
}

fn read_delimited(
    path: &Path,
    bytes: &[u8],
    delimiter: u8,
    quoting: bool,
    columns: &TableColumns,
    report: &mut ReadReport,
) -> Result<Vec<RawRow>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(quoting)
        .flexible(true)
        .has_headers(false)
        .from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    let damaged = |e: csv::Error| Error::format(path, format!("not a table: {e}"));
    if !reader.read_byte_record(&mut record).map_err(damaged)? {
        return Err(Error::format(path, "the file is empty"));
    }
    let header: Vec<String> =
        record.iter().map(|name| String::from_utf8_lossy(name).trim().to_string()).collect();
    let place = |name: &String| {
        header.iter().position(|column| column == name).ok_or_else(|| {
            Error::format(path, format!("line 1: no column {name:?}; the columns are {}", header.join(", ")))
        })
    };
    let text = place(&columns.text)?;
    let second = columns.second_text.as_ref().map(place).transpose()?;
    let label = columns.label.as_ref().map(place).transpose()?;
    let mut rows = Vec::new();
    while reader.read_byte_record(&mut record).map_err(damaged)? {
        let line = record.position().map_or(0, |position| position.line() as usize);
        let field = |place: usize| {
            let bytes = record
                .get(place)
                .ok_or_else(|| format!("{} fields, where the header has {}", record.len(), header.len()))?;
            std::str::from_utf8(bytes)
                .map(|text| text.trim().to_string())
                .map_err(|_| "not valid UTF-8".to_string())
        };
        let row = || -> Result<RawRow, String> {
            let row = RawRow {
                line,
                first: field(text)?,
                second: second.map(field).transpose()?,
                label: label.map(field).transpose()?,
            };
            check_filled(row)
        };
        match row() {
            Ok(row) => rows.push(row),
            Err(reason) => report.reject(line, reason),
        }
    }
    Ok(rows)
}

fn read_json_lines(bytes: &[u8], columns: &TableColumns, report: &mut ReadReport) -> Vec<RawRow> {
    let mut rows = Vec::new();
    for (number, line) in source::lines(bytes).enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = || -> Result<RawRow, String> {
            let value: Value = serde_json::from_slice(line).map_err(|e| format!("not valid JSON: {e}"))?;
            let member = |name: &String| match value.get(name) {
                Some(Value::String(text)) => Ok(text.trim().to_string()),
                Some(Value::Number(number)) => Ok(number.to_string()),
                Some(Value::Bool(flag)) => Ok(flag.to_string()),
                Some(_) => Err(format!("{name:?} is neither text nor a number")),
                None => Err(format!("no {name:?}")),
            };
            check_filled(RawRow {
                line: number + 1,
                first: member(&columns.text)?,
                second: columns.second_text.as_ref().map(member).transpose()?,
                label: columns.label.as_ref().map(member).transpose()?,
            })
        };
        match row() {
            Ok(row) => rows.push(row),
            Err(reason) => report.reject(number + 1, reason),
        }
    }
    rows
}

fn check_filled(row: RawRow) -> Result<RawRow, String> {
    if row.first.is_empty() || row.second.as_deref() == Some("") {
        return Err("empty text".into());
    }
    if row.label.as_deref() == Some("") {
        return Err("empty label".into());
    }
    Ok(row)
}
