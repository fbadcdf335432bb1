//! How much the masks of different tasks share (the question of the P-pruning paper's Figure 6).
//!
//! For two masks a and b the shared fraction is |a ∩ b| / |a|: of the units kept for task a, how many task b keeps
//! too. It is symmetric where both keep the same number. For reference, two random masks keeping a fraction p share p.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prune::masks::UnitMasks;

/// Overlap of the heads, or of the neurons, of several masks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// `[masks][masks]` fraction of the row's kept units that the column keeps too; 1 on the diagonal.
    pub shared: Vec<Vec<f64>>,
    /// `[layers][masks][masks]` the same, layer by layer.
    pub shared_by_layer: Vec<Vec<Vec<f64>>>,
    /// Units that every mask keeps.
    pub kept_by_all: usize,
    /// Units that at least one mask keeps.
    pub kept_by_any: usize,
}

/// Overlap of two or more masks of one model: (heads, neurons). Fails when there are fewer, or their widths differ.
pub fn overlap(masks: &[&UnitMasks]) -> Result<(Overlap, Overlap)> {
    if masks.len() < 2 {
        return Err(Error::usage("an overlap needs at least two masks"));
    }
    for (index, other) in masks.iter().enumerate() {
        other.check_values()?;
        let widths =
            |m: &UnitMasks| -> Vec<usize> { m.heads.iter().chain(&m.neurons).map(Vec::len).collect() };
        if widths(other) != widths(masks[0]) {
            return Err(Error::shape("overlap", format!("masks 0 and {index} are not of the same model")));
        }
    }
    let heads: Vec<&[Vec<f32>]> = masks.iter().map(|m| m.heads.as_slice()).collect();
    let neurons: Vec<&[Vec<f32>]> = masks.iter().map(|m| m.neurons.as_slice()).collect();
    Ok((of_kind(&heads), of_kind(&neurons)))
}

fn of_kind(masks: &[&[Vec<f32>]]) -> Overlap {
    let kept = |mask: usize, layer: usize, unit: usize| masks[mask][layer][unit] != 0.0;
    let units: Vec<(usize, usize)> = masks[0]
        .iter()
        .enumerate()
        .flat_map(|(layer, mask)| (0..mask.len()).map(move |unit| (layer, unit)))
        .collect();
    let table = |units: &[(usize, usize)]| -> Vec<Vec<f64>> {
        let shared =
            |a: usize, b: usize| units.iter().filter(|&&(l, u)| kept(a, l, u) && kept(b, l, u)).count();
        // A mask that keeps nothing here shares all of its nothing.
        let fraction = |a: usize, b: usize| {
            if shared(a, a) == 0 { 1.0 } else { shared(a, b) as f64 / shared(a, a) as f64 }
        };
        (0..masks.len()).map(|a| (0..masks.len()).map(|b| fraction(a, b)).collect()).collect()
    };
    let by_layer = |layer: usize| units.iter().copied().filter(|unit| unit.0 == layer).collect::<Vec<_>>();
    Overlap {
        shared: table(&units),
        shared_by_layer: (0..masks[0].len()).map(|layer| table(&by_layer(layer))).collect(),
        kept_by_all: units.iter().filter(|&&(l, u)| (0..masks.len()).all(|m| kept(m, l, u))).count(),
        kept_by_any: units.iter().filter(|&&(l, u)| (0..masks.len()).any(|m| kept(m, l, u))).count(),
    }
}
