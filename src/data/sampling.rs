//! Deterministic sampling of calibration rows and tokens.
//!
//! The upstream methods sample in different ways (with and without replacement, from other generators), so the
//! functions here return the index lists for the run record, and [`read_indices`] accepts a recorded list back.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::random::{Purpose, Stream};
use super::source;
use crate::{Error, Result};

/// `count` distinct rows out of `0..available`, in the order drawn. `count` is capped at `available`.
pub fn choose_rows(available: usize, count: usize, seed: u64) -> Vec<usize> {
    distinct(available, count, &mut Stream::new(seed, Purpose::Calibration, 0))
}

/// `count` rows out of `0..available` drawn independently (rows may repeat), in the order drawn; none when
/// `available` is 0.
pub fn choose_rows_with_replacement(available: usize, count: usize, seed: u64) -> Vec<usize> {
    if available == 0 {
        return Vec::new();
    }
    let mut stream = Stream::new(seed, Purpose::Calibration, 1);
    (0..count).map(|_| stream.below(available)).collect()
}

/// `count` distinct rows out of `0..available` as candidates of the contrastive loss number `draw`; capped at `available`.
pub fn choose_candidates(available: usize, count: usize, seed: u64, draw: u64) -> Vec<usize> {
    distinct(available, count, &mut Stream::new(seed, Purpose::Contrast, draw))
}

/// Token positions chosen before any forward pass has run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSample {
    /// Distinct positions in the concatenation of all rows, ascending.
    pub flat: Vec<usize>,
    /// The rows that hold them, ascending, each with its token indices counted inside the row, ascending.
    /// Only these rows need to be run.
    pub rows: Vec<(usize, Vec<usize>)>,
}

/// Draws `count` distinct token positions from rows of the given lengths, every token equally likely.
///
/// Drawing positions first and running only the rows that hold them gives the same distribution as collecting
/// every activation and choosing among them. `count` is capped at the number of tokens.
pub fn choose_tokens(lengths: &[usize], count: usize, seed: u64) -> TokenSample {
    let mut starts = Vec::with_capacity(lengths.len() + 1);
    starts.push(0usize);
    for length in lengths {
        starts.push(starts[starts.len() - 1] + length);
    }
    let mut flat = distinct(starts[lengths.len()], count, &mut Stream::new(seed, Purpose::Calibration, 2));
    flat.sort_unstable();
    let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for position in &flat {
        // The last row that starts at or before the position; empty rows start there too and come before it.
        let row = starts.partition_point(|s| s <= position) - 1;
        rows.entry(row).or_default().push(position - starts[row]);
    }
    TokenSample { flat, rows: rows.into_iter().collect() }
}

/// The first `count` places of a Fisher–Yates shuffle of `0..available`, storing only the places it moved.
fn distinct(available: usize, count: usize, stream: &mut Stream) -> Vec<usize> {
    let mut moved: HashMap<usize, usize> = HashMap::new();
    (0..count.min(available))
        .map(|i| {
            let j = i + stream.below(available - i);
            let drawn = moved.get(&j).copied().unwrap_or(j);
            let displaced = moved.get(&i).copied().unwrap_or(i);
            moved.insert(j, displaced);
            drawn
        })
        .collect()
}

/// Reads a recorded index list: a JSON array of integers, or integers separated by white space.
///
/// # Errors
/// [`Error::Format`] when the file is empty, an entry is not a non-negative integer, or an index is not below
/// `available`.
pub fn read_indices(path: &Path, available: usize) -> Result<Vec<usize>> {
    let text = source::read_text(path)?;
    let indices: Vec<usize> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text)
            .map_err(|e| Error::format(path, format!("not a JSON list of row indices: {e}")))?
    } else {
        let mut found = Vec::new();
        for (number, line) in text.lines().enumerate() {
            for word in line.split_whitespace() {
                found.push(word.parse().map_err(|_| {
                    Error::format(path, format!("line {}: {word:?} is not a row index", number + 1))
                })?);
            }
        }
        found
    };
    if indices.is_empty() {
        return Err(Error::format(path, "no row index in the file"));
    }
    if let Some((place, index)) = indices.iter().enumerate().find(|(_, index)| **index >= available) {
        return Err(Error::format(
            path,
            format!("entry {}: row {index} of a set of {available} rows", place + 1),
        ));
    }
    Ok(indices)
}
