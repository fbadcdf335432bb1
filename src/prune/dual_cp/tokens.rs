//! Which tokens are looked at: drawn from the lengths alone, before anything is computed.
//!
//! Drawing flat indices first and running only the rows that contain them gives the same sample as collecting every
//! token of every row and drawing afterwards, at a fraction of the time and memory.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prune::random::Choice;

/// One token: a row and a position in it, padding not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenPosition {
    /// Row of the inputs.
    pub row: usize,
    /// Position in the row.
    pub position: usize,
}

/// Drawn tokens; goes into the run record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDraw {
    /// Flat indices into the concatenated rows, in drawing order.
    pub flat: Vec<usize>,
    /// The same as row and position.
    pub positions: Vec<TokenPosition>,
    /// The distinct rows that contain them, ascending: the only rows that need to be run.
    pub rows: Vec<usize>,
}

/// Draws `count` distinct tokens of rows with the given `lengths`; all of them where there are fewer. Fails when
/// there is none.
pub fn draw_tokens(lengths: &[usize], count: usize, seed: u64) -> Result<TokenDraw> {
    let total: usize = lengths.iter().sum();
    if total == 0 || count == 0 {
        return Err(Error::usage("no token to sample: the calibration inputs are empty"));
    }
    // Streams below 2L and from 2³² up are taken by centroids and controls.
    Ok(locate(lengths, Choice::new(seed, 1 << 48).distinct(total, count)))
}

/// The draw with the given flat indices, say from an index file; each must be below the sum of `lengths`.
pub fn tokens_at(lengths: &[usize], flat: &[usize]) -> Result<TokenDraw> {
    let total: usize = lengths.iter().sum();
    if let Some(index) = flat.iter().find(|index| **index >= total) {
        return Err(Error::usage(format!(
            "token index {index} is out of range: the inputs have {total} tokens"
        )));
    }
    Ok(locate(lengths, flat.to_vec()))
}

fn locate(lengths: &[usize], flat: Vec<usize>) -> TokenDraw {
    let ends: Vec<usize> = lengths
        .iter()
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect();
    let position = |index: usize| {
        let row = ends.partition_point(|end| *end <= index);
        TokenPosition { row, position: index - (ends[row] - lengths[row]) }
    };
    let positions: Vec<TokenPosition> = flat.iter().map(|&index| position(index)).collect();
    let mut rows: Vec<usize> = positions.iter().map(|token| token.row).collect();
    rows.sort_unstable();
    rows.dedup();
    TokenDraw { flat, positions, rows }
}
