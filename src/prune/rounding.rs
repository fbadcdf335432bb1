//! Layer widths at multiples that the hardware likes.
//!
//! Products run fastest where their sizes are multiples of the tile (8 for tensor cores, 16 or more for vector units),
//! so a layer with 1,537 neurons may be no faster than one with 1,600. Rounding gives up a few neurons where they buy
//! nothing and spends what is saved where it does, within the budget.

use crate::error::{Error, Result};
use crate::prune::{CostModel, UnitMasks};

/// `masks` with the neurons kept in every layer a multiple of `multiple` (or all of a layer whose width is not one).
///
/// First every layer gives up its neurons of lowest score down to a multiple. Then the layer whose next neurons have the
/// highest mean score gets as many as complete its next multiple, as long as the budget `keep` allows. A neuron that
/// was masked comes back with mask 1. Heads stay as they are. The result costs at most as much as the budget, or as
/// `masks` where they exceed it. Fails where masks or `scores` (one a neuron) do not have the cost model's widths.
pub fn round_to(
    masks: &UnitMasks,
    scores: &[Vec<f64>],
    cost: &CostModel,
    keep: f64,
    multiple: usize,
) -> Result<UnitMasks> {
    masks.check_widths(&cost.layers)?;
    if multiple == 0 {
        return Err(Error::usage("neurons cannot be kept at multiples of 0"));
    }
    let same = |(scores, mask): (&Vec<f64>, &Vec<f32>)| scores.len() == mask.len();
    if scores.len() != masks.neurons.len() || !scores.iter().zip(&masks.neurons).all(same) {
        return Err(Error::shape("scores", "there must be one for each neuron of the model"));
    }
    let mut rounded = masks.clone();
    // Of each layer: kept neurons from the lowest score up, masked ones from the highest down.
    let mut kept = Vec::with_capacity(scores.len());
    let mut masked = Vec::with_capacity(scores.len());
    for (mask, scores) in masks.neurons.iter().zip(scores) {
        let mut order: Vec<usize> = (0..mask.len()).collect();
        order.sort_by(|&i, &j| scores[i].total_cmp(&scores[j]).then(j.cmp(&i)));
        kept.push(order.iter().copied().filter(|&i| mask[i] != 0.0).collect::<Vec<_>>());
        masked.push(order.iter().rev().copied().filter(|&i| mask[i] == 0.0).collect::<Vec<_>>());
    }
    for (layer, kept) in kept.iter_mut().enumerate() {
        let width = scores[layer].len();
        let extra = if kept.len() == width { 0 } else { kept.len() % multiple };
        let removed: Vec<usize> = kept.drain(..extra).collect();
        for &neuron in &removed {
            rounded.neurons[layer][neuron] = 0.0;
        }
        // They are the first to come back.
        masked[layer].splice(0..0, removed.into_iter().rev());
    }
    let budget = (keep * cost.total()).max(cost.record(keep, masks)?.macs_kept);
    let mut free =
        ((budget - cost.record(keep, &rounded)?.macs_kept) / cost.neuron() + 1e-9).floor() as usize;
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (layer, masked) in masked.iter().enumerate() {
            let block = multiple.min(masked.len());
            if block == 0 || block > free {
                continue;
            }
            let sum: f64 = masked[..block].iter().map(|&neuron| scores[layer][neuron]).sum();
            let mean = sum / block as f64;
            if best.is_none_or(|(highest, ..)| mean > highest) {
                best = Some((mean, layer, block));
            }
        }
        let Some((_, layer, block)) = best else { return Ok(rounded) };
        for neuron in masked[layer].drain(..block) {
            // One that was only rounded away keeps its value.
            let before = masks.neurons[layer][neuron];
            rounded.neurons[layer][neuron] = if before == 0.0 { 1.0 } else { before };
        }
        free -= block;
    }
}
