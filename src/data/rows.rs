//! Rows that are tokens already: a safetensors or JSON file of ids and labels.
//!
//! safetensors: `input_ids` and `cu_seqlens` (I32 or I64), optionally `token_type_ids`, and one of `labels` (I32/I64
//! classes or F32/F64 values, one a row), or `start_positions` with `end_positions`. JSON: an object whose
//! `input_ids` (and `token_type_ids`) hold one list a row, and the same label names as flat lists.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

use super::source;
use super::{Example, Target};
use crate::{Error, Result};

/// Reads rows from `.safetensors` or `.json` (`.gz` accepted).
///
/// # Errors
/// [`Error::Usage`] for another extension; [`Error::Format`] when a tensor is missing, has the wrong type or
/// length, holds negative ids, or `cu_seqlens` does not rise from 0 to the number of tokens.
pub fn read(path: &Path) -> Result<Vec<Example>> {
    match source::content_extension(path).as_str() {
        "safetensors" => from_safetensors(path, &source::read_bytes(path)?),
        "json" => from_json(path),
        other => Err(Error::usage(format!(
            "{}: token rows are read from .safetensors or .json, not {other:?}",
            path.display()
        ))),
    }
}

/// The columns of a file before they are cut into rows.
struct Columns {
    input_ids: Vec<Vec<i64>>,
    token_type_ids: Option<Vec<Vec<i64>>>,
    labels: Option<Labels>,
    starts: Option<Vec<i64>>,
    ends: Option<Vec<i64>>,
}

enum Labels {
    Classes(Vec<i64>),
    Values(Vec<f64>),
}

fn from_safetensors(path: &Path, bytes: &[u8]) -> Result<Vec<Example>> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| Error::format(path, format!("not a safetensors file: {e}")))?;
    let flat = |name: &str| -> Result<Option<TensorView<'_>>> {
        let Ok(tensor) = file.tensor(name) else {
            return Ok(None);
        };
        if tensor.shape().len() != 1 {
            return Err(Error::format(
                path,
                format!("{name} has shape {:?}, not one dimension", tensor.shape()),
            ));
        }
        Ok(Some(tensor))
    };
    let integers = |name: &str| flat(name)?.map(|tensor| integers_of(path, name, &tensor)).transpose();
    let missing = |name: &str| Error::format(path, format!("no tensor {name:?}"));
    let input_ids = integers("input_ids")?.ok_or_else(|| missing("input_ids"))?;
    let bounds = integers("cu_seqlens")?.ok_or_else(|| missing("cu_seqlens"))?;
    check_bounds(path, &bounds, input_ids.len())?;
    let cut = |flat: Vec<i64>| -> Vec<Vec<i64>> {
        bounds.windows(2).map(|bounds| flat[bounds[0] as usize..bounds[1] as usize].to_vec()).collect()
    };
    let token_type_ids = match integers("token_type_ids")? {
        Some(flat) if flat.len() != input_ids.len() => {
            return Err(Error::format(
                path,
                format!("{} token_type_ids beside {} input_ids", flat.len(), input_ids.len()),
            ));
        }
        other => other.map(cut),
    };
    let labels = match flat("labels")? {
        None => None,
        Some(tensor) => Some(match tensor.dtype() {
            Dtype::F32 => Labels::Values(elements(&tensor, |b| f32::from_le_bytes(b) as f64)),
            Dtype::F64 => Labels::Values(elements(&tensor, f64::from_le_bytes)),
            _ => Labels::Classes(integers_of(path, "labels", &tensor)?),
        }),
    };
    let columns = Columns {
        input_ids: cut(input_ids),
        token_type_ids,
        labels,
        starts: integers("start_positions")?,
        ends: integers("end_positions")?,
    };
    examples(path, columns)
}

fn elements<const N: usize, T>(tensor: &TensorView<'_>, read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = tensor.data().as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

fn integers_of(path: &Path, name: &str, tensor: &TensorView<'_>) -> Result<Vec<i64>> {
    match tensor.dtype() {
        Dtype::I32 => Ok(elements(tensor, |b| i32::from_le_bytes(b) as i64)),
        Dtype::I64 => Ok(elements(tensor, i64::from_le_bytes)),
        other => Err(Error::format(path, format!("{name} is {other:?}, not I32 or I64"))),
    }
}

fn check_bounds(path: &Path, bounds: &[i64], tokens: usize) -> Result<()> {
    if bounds.len() < 2 || bounds[0] != 0 || bounds[bounds.len() - 1] != tokens as i64 {
        return Err(Error::format(
            path,
            format!(
                "cu_seqlens must run from 0 to the {tokens} tokens of input_ids and hold one row at least"
            ),
        ));
    }
    if let Some(row) = bounds.windows(2).position(|bounds| bounds[0] >= bounds[1]) {
        return Err(Error::format(
            path,
            format!("cu_seqlens does not rise at row {row}; every row needs a token"),
        ));
    }
    Ok(())
}

fn from_json(path: &Path) -> Result<Vec<Example>> {
    let value: Value = serde_json::from_str(&source::read_text(path)?)
        .map_err(|e| Error::format(path, format!("not valid JSON: {e}")))?;
    let Some(object) = value.as_object() else {
        return Err(Error::format(path, "not a JSON object with \"input_ids\""));
    };
    let list = |name: &str, value: &Value| -> Result<Vec<i64>> {
        let integers =
            value.as_array().and_then(|items| items.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>());
        integers.ok_or_else(|| Error::format(path, format!("{name} is not a list of integers")))
    };
    let lists = |name: &str| -> Result<Option<Vec<Vec<i64>>>> {
        let Some(value) = object.get(name) else {
            return Ok(None);
        };
        let Some(rows) = value.as_array() else {
            return Err(Error::format(path, format!("{name} is not a list of rows")));
        };
        rows.iter()
            .enumerate()
            .map(|(row, value)| list(&format!("row {row} of {name}"), value))
            .collect::<Result<_>>()
            .map(Some)
    };
    let flat = |name: &str| object.get(name).map(|value| list(name, value)).transpose();
    let labels = match object.get("labels") {
        None => None,
        Some(value) => {
            let items = value.as_array().ok_or_else(|| Error::format(path, "labels is not a list"))?;
            if items.iter().all(Value::is_i64) {
                Some(Labels::Classes(list("labels", value)?))
            } else {
                let values = items.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
                Some(Labels::Values(values.ok_or_else(|| Error::format(path, "labels are not numbers"))?))
            }
        }
    };
    let columns = Columns {
        input_ids: lists("input_ids")?.ok_or_else(|| Error::format(path, "no \"input_ids\""))?,
        token_type_ids: lists("token_type_ids")?,
        labels,
        starts: flat("start_positions")?,
        ends: flat("end_positions")?,
    };
    examples(path, columns)
}

fn examples(path: &Path, columns: Columns) -> Result<Vec<Example>> {
    let rows = columns.input_ids.len();
    if rows == 0 {
        return Err(Error::format(path, "the file holds no rows"));
    }
    let check_count = |name: &str, count: Option<usize>| match count {
        Some(count) if count != rows => Err(Error::format(path, format!("{count} {name} for {rows} rows"))),
        _ => Ok(()),
    };
    check_count("rows of token_type_ids", columns.token_type_ids.as_ref().map(Vec::len))?;
    check_count("start_positions", columns.starts.as_ref().map(Vec::len))?;
    check_count("end_positions", columns.ends.as_ref().map(Vec::len))?;
    check_count(
        "labels",
        columns.labels.as_ref().map(|labels| match labels {
            Labels::Classes(classes) => classes.len(),
            Labels::Values(values) => values.len(),
        }),
    )?;
    if columns.starts.is_some() != columns.ends.is_some() {
        return Err(Error::format(path, "start_positions and end_positions come together"));
    }
    if columns.starts.is_some() && columns.labels.is_some() {
        return Err(Error::format(path, "both labels and answer positions"));
    }
    let non_negative = |row: usize, name: &str, values: &[i64]| -> Result<Vec<i32>> {
        let convert = |value: &i64| i32::try_from(*value).ok().filter(|value| *value >= 0);
        values.iter().map(convert).collect::<Option<_>>().ok_or_else(|| {
            Error::format(path, format!("row {row} of {name} holds a value that is negative or above 2^31"))
        })
    };
    let mut examples = Vec::with_capacity(rows);
    for row in 0..rows {
        let input_ids = non_negative(row, "input_ids", &columns.input_ids[row])?;
        let token_type_ids = match &columns.token_type_ids {
            Some(lists) => non_negative(row, "token_type_ids", &lists[row])?,
            None => vec![0; input_ids.len()],
        };
        if input_ids.is_empty() || token_type_ids.len() != input_ids.len() {
            return Err(Error::format(
                path,
                format!(
                    "row {row} has {} input_ids and {} token_type_ids",
                    input_ids.len(),
                    token_type_ids.len()
                ),
            ));
        }
        let target = columns.target(path, row, input_ids.len())?;
        examples.push(Example { input_ids, token_type_ids, target });
    }
    Ok(examples)
}

impl Columns {
    fn target(&self, path: &Path, row: usize, length: usize) -> Result<Target> {
        if let (Some(starts), Some(ends)) = (&self.starts, &self.ends) {
            let (start, end) = (starts[row], ends[row]);
            if start < 0 || end < start || end >= length as i64 {
                return Err(Error::format(
                    path,
                    format!("row {row} of {length} tokens has the answer {start}..{end}"),
                ));
            }
            return Ok(Target::Span { start: start as u32, end: end as u32 });
        }
        match &self.labels {
            None => Ok(Target::None),
            Some(Labels::Classes(classes)) => u32::try_from(classes[row])
                .ok()
                .filter(|class| *class <= i32::MAX as u32)
                .map(Target::Class)
                .ok_or_else(|| Error::format(path, format!("row {row} has the class {}", classes[row]))),
            Some(Labels::Values(values)) if (values[row] as f32).is_finite() => {
                Ok(Target::Value(values[row] as f32))
            }
            Some(Labels::Values(values)) => {
                Err(Error::format(path, format!("row {row} has the value {}", values[row])))
            }
        }
    }
}
