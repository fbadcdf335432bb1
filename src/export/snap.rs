//! N:M sparsity: of every M weights that follow each other along a matrix's inputs, at most N are kept.
//!
//! 2:4 is the one pattern of zeros that NVIDIA's tensor cores skip (from compute capability 8.0, in kernels made for it).
//! A snap only removes: in every group the N kept weights of the largest magnitudes stay; of equal ones the first.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::model::{Model, WeightMask, WeightMasks};
use crate::program::WeightOrder;

/// At most `keep` of every `of`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    keep: usize,
    of: usize,
}

impl Pattern {
    /// `keep` of every `of`: 1 ≤ keep < of ≤ 64.
    pub fn new(keep: usize, of: usize) -> Result<Pattern> {
        if keep == 0 || keep >= of || of > 64 {
            return Err(Error::usage(format!(
                "{keep}:{of} is no pattern N:M with 1 ≤ N < M ≤ 64, as 2:4 is"
            )));
        }
        Ok(Pattern { keep, of })
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Pattern> {
        let parts = text.split_once(':').and_then(|(keep, of)| Some((keep.parse().ok()?, of.parse().ok()?)));
        let (keep, of) =
            parts.ok_or_else(|| Error::usage(format!("{text:?} is no pattern N:M, as 2:4 is")))?;
        Pattern::new(keep, of)
    }
}

/// The masks that keep, of what `masks` keep, at most N in every group of M inputs of an output: those with the largest
/// magnitudes in `model`. Fails where a matrix has a number of inputs that M does not divide.
pub fn snap(masks: &WeightMasks, model: &Model, pattern: Pattern) -> Result<WeightMasks> {
    let places = masks.places(&model.architecture)?;
    let snapped = masks.matrices.iter().zip(places).map(|(mask, id)| {
        let parameter = model.layout().get(id);
        let rank = |row: usize, col: usize| model.values[parameter.offset + row * parameter.ld() + col].abs();
        let inputs_are_columns = model.architecture.parameters.order_of(id) == WeightOrder::OutIn;
        snap_matrix(mask, inputs_are_columns, pattern, rank)
    });
    Ok(WeightMasks { matrices: snapped.collect::<Result<_>>()? })
}

fn snap_matrix(
    mask: &WeightMask,
    inputs_are_columns: bool,
    Pattern { keep, of }: Pattern,
    rank: impl Fn(usize, usize) -> f32,
) -> Result<WeightMask> {
    let (rows, cols) = (mask.rows, mask.cols);
    let (outputs, inputs) = if inputs_are_columns { (rows, cols) } else { (cols, rows) };
    if !inputs.is_multiple_of(of) {
        let message = format!("its {inputs} inputs cannot be divided into groups of {of}");
        return Err(Error::shape(format!("matrix {}", mask.name), message));
    }
    let mut kept = vec![false; mask.len()];
    let mut group: Vec<(usize, f32)> = Vec::with_capacity(of);
    for output in 0..outputs {
        for first in (0..inputs).step_by(of) {
            group.clear();
            for input in first..first + of {
                let (row, col) = if inputs_are_columns { (output, input) } else { (input, output) };
                let index = row * cols + col;
                if mask.keeps(index) {
                    group.push((index, rank(row, col)));
                }
            }
            // Stable: of equal ranks the first stays.
            group.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            group.iter().take(keep).for_each(|&(index, _)| kept[index] = true);
        }
    }
    Ok(WeightMask::from_fn(&mask.name, rows, cols, |index| kept[index]))
}
