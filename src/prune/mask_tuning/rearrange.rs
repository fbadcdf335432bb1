//! Greedy rearrangement: which units to prune together, their number in each layer being fixed.
//!
//! The search looks at each unit alone (diagonal Fisher). Within a layer the loss of pruning a set is estimated by the whole
//! block, (1−m)ᵀ(Σ_b g_b g_bᵀ)(1−m) = ‖Σ_{i pruned} g_i‖², g_i ∈ ℝ^batches: two units whose gradients cancel are cheap
//! to lose together. From the P least important units, every other unit, in rising order of importance, is exchanged for
//! the one whose return lowers the norm most, which may be itself, so the objective never rises.
//!
//! With the Gram matrix G = g·gᵀ the norm after taking i out is ‖S‖² − 2·(S·g_i) + G_ii for the sum S, and the vector
//! S·g_i changes by a row of G: O(units) a step instead of O(units · batches).

use rayon::prelude::*;

use crate::ops::simd::add_scaled_wide;
use crate::prune::lsmr::mirror;
use crate::prune::mask_gradients::MaskGradients;
use crate::prune::masks::UnitMasks;

/// Exchanges pruned units of every layer; the number pruned stays. Masks come out zero–one. The gradients must be of a
/// model of the masks' widths.
pub fn rearrange(masks: &UnitMasks, gradients: &MaskGradients) -> UnitMasks {
    let layer = |(mask, gradients): (&Vec<f32>, &Vec<f64>)| rearrange_layer(mask, gradients);
    UnitMasks {
        heads: masks.heads.iter().zip(&gradients.heads).map(layer).collect(),
        neurons: masks.neurons.iter().zip(&gradients.neurons).map(layer).collect(),
    }
}

/// One layer and kind: `mask` `[units]`, `gradients` `[batches, units]`.
pub fn rearrange_layer(mask: &[f32], gradients: &[f64]) -> Vec<f32> {
    let units = mask.len();
    let pruned = mask.iter().filter(|value| **value == 0.0).count();
    if pruned == 0 || pruned == units {
        return mask.iter().map(|value| if *value == 0.0 { 0.0 } else { 1.0 }).collect();
    }
    let gram = gram(gradients, units);
    let squares: Vec<f64> = (0..units).map(|unit| gram[unit * units + unit]).collect();
    let mut order: Vec<usize> = (0..units).collect();
    order.sort_by(|&a, &b| squares[a].total_cmp(&squares[b]));
    // In the order of joining: of equally good units the first one returns.
    let mut set = order[..pruned].to_vec();
    let add = |along: &mut [f64], unit: usize, sign: f64| {
        let row = &gram[unit * units..(unit + 1) * units];
        along.iter_mut().zip(row).for_each(|(value, g)| *value += sign * g);
    };
    // S·g_i of every unit.
    let mut along = vec![0.0; units];
    set.iter().for_each(|&unit| add(&mut along, unit, 1.0));
    for &unit in &order[pruned..] {
        set.push(unit);
        add(&mut along, unit, 1.0);
        // ‖S‖² is the same for all.
        let without = |i: usize| squares[i] - 2.0 * along[i];
        let mut returned = 0;
        for place in 1..set.len() {
            if without(set[place]) < without(set[returned]) {
                returned = place;
            }
        }
        let unit = set.remove(returned);
        add(&mut along, unit, -1.0);
    }
    let mut mask = vec![1.0; units];
    set.iter().for_each(|&unit| mask[unit] = 0.0);
    mask
}

/// ‖Σ g_i‖² over the units that `mask` prunes: the objective. `gradients` `[batches, units]`.
pub fn pruned_loss(mask: &[f32], gradients: &[f64]) -> f64 {
    let batch = |row: &[f64]| {
        let pruned = row.iter().zip(mask).filter(|(_, mask)| **mask == 0.0);
        pruned.map(|(gradient, _)| gradient).sum::<f64>().powi(2)
    };
    if mask.is_empty() { 0.0 } else { gradients.chunks(mask.len()).map(batch).sum() }
}

/// `[units, units]`, both halves, from `[batches, units]`.
fn gram(gradients: &[f64], units: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = gradients.chunks(units).collect();
    let zeros = vec![0.0; units];
    let mut gram = vec![0.0; units * units];
    gram.par_chunks_mut(units).enumerate().for_each(|(i, sums)| {
        for four in rows.chunks(4) {
            let row = |k: usize| four.get(k).copied().unwrap_or(&zeros);
            let rows = [row(0), row(1), row(2), row(3)];
            add_scaled_wide(rows.map(|row| row[i]), rows.map(|row| &row[i..]), &mut sums[i..]);
        }
    });
    mirror(&mut gram, units);
    gram
}
