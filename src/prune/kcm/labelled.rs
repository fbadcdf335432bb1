//! The extension with labels: a few hundred labelled rows correct the ranking.
//!
//! One forward and backward pass over the labelled rows gives ∂L/∂m_j for every neuron's mask at 1; its magnitude is how
//! much the loss depends on the neuron. Kept neurons of low score are then swapped for masked ones of high gradient, the
//! least important for the one of highest gradient first, as long as that raises the total gradient of what is kept.

use crate::error::{Error, Result};
use crate::model::UnitMasks;
use crate::prune::Job;
use crate::prune::mask_gradients::{Grouping, Objective, Source, mask_gradients};
use crate::session::Session;

/// |∂L/∂m| of every neuron, by layer, of the mean loss over the first `rows` rows of the job. Fails where rows have no
/// labels, and where the model has no task head.
pub fn gradients(job: &Job, rows: usize) -> Result<Vec<Vec<f64>>> {
    let examples = &job.examples[..rows.min(job.examples.len())];
    if examples.is_empty() {
        return Err(Error::usage("the labelled extension needs labelled calibration rows; there are none"));
    }
    let mut session = Session::of(job.model, job.device)?;
    let ones = UnitMasks::ones(&job.model.config().widths());
    let all = Grouping::MiniBatches(examples.len());
    let (source, objective) = (Source::Rows(examples), Objective::Loss);
    let gradients = mask_gradients(&mut session, source, all, objective, &ones, job.progress)?;
    let magnitudes = |layer: Vec<f64>| layer.into_iter().map(f64::abs).collect();
    Ok(gradients.neurons.into_iter().map(magnitudes).collect())
}

/// Swaps neurons of `masks` by `gradients`, given the scores that `masks` were made of; returns the number of swaps. As
/// many neurons are kept as before. Of equal scores or gradients the first come first. Neurons that are swapped exchange
/// their scores, so that what ranks them afterwards agrees with the masks.
pub fn swap(masks: &mut UnitMasks, scores: &mut [Vec<f64>], gradients: &[Vec<f64>]) -> usize {
    let neurons = |kept: bool| -> Vec<(usize, usize)> {
        let units = |(layer, mask): (usize, &Vec<f32>)| {
            let chosen = (0..mask.len()).filter(|&unit| (mask[unit] != 0.0) == kept);
            chosen.map(|unit| (layer, unit)).collect::<Vec<_>>()
        };
        masks.neurons.iter().enumerate().flat_map(units).collect()
    };
    let (mut kept, mut masked) = (neurons(true), neurons(false));
    kept.sort_by(|&(l, i), &(m, j)| scores[l][i].total_cmp(&scores[m][j]));
    masked.sort_by(|&(l, i), &(m, j)| gradients[m][j].total_cmp(&gradients[l][i]));
    let pairs = kept.into_iter().zip(masked);
    let gains = pairs.take_while(|&((l, i), (m, j))| gradients[m][j] > gradients[l][i]);
    let swaps: Vec<_> = gains.collect();
    for &((l, i), (m, j)) in &swaps {
        masks.neurons[l][i] = 0.0;
        masks.neurons[m][j] = 1.0;
        (scores[l][i], scores[m][j]) = (scores[m][j], scores[l][i]);
    }
    swaps.len()
}
