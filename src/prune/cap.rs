//! CAP-f (Xu et al., AAAI 2022): heads and neurons go a tenth at a time, those first of which the loss depends least, and the
//! model is trained with contrastive terms ([`contrastive`]) after each step.
//!
//! A unit's score is Σ_b |∂L_b/∂mask| at a mask of one over mini-batches b of the training rows (Michel, Levy and Neubig
//! 2019, whose procedure it is), divided by the Euclidean norm of its layer's scores, so that a layer with large gradients
//! does not keep everything. Heads of all layers are one ranking, neurons another; the best head of a layer always stays.
//! Of p % pruned, p % of the heads and p % of the neurons are gone, counted from the model before any pruning; both cost in
//! proportion to their number, so the fraction of units kept is the fraction of multiply–accumulates.

use serde::{Deserialize, Serialize};

use crate::data::Example;
use crate::error::{Error, Result};
use crate::model::{LayerWidths, Model, UnitMasks};
use crate::progress::Progress;
use crate::prune::contrastive;
use crate::prune::mask_gradients::{Grouping, Importance, Objective, Source, mask_gradients};
use crate::prune::sparse::Distillation;
use crate::session::{Device, Session};

/// All choices but those of the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Fraction of the units that goes at a time.
    pub step: f64,
    /// Scores are divided by the norm of their layer's.
    pub normalise: bool,
    /// Heads of a layer that stay whatever their scores.
    pub least_heads: usize,
    /// Contrastive terms of the training between.
    pub contrast: contrastive::Options,
    /// Weights of labels and teacher.
    pub distillation: Distillation,
}

impl Options {
    /// The released settings, of GLUE or of SQuAD.
    pub fn new(squad: bool) -> Options {
        let contrast = contrastive::Options {
            unsupervised_weight: 0.3,
            supervised_weight: if squad { 0.0 } else { 3.0 },
            temperature: if squad { 0.3 } else { 0.1 },
            extra: 4096,
        };
        let distillation = Distillation { temperature: 1.0, ..Distillation::CONTRASTIVE };
        Options { step: 0.1, normalise: true, least_heads: 1, contrast, distillation }
    }

    /// The smallest fraction to keep of a model of these widths: the heads that stay in every layer.
    pub fn least(&self, dense: &[LayerWidths]) -> f64 {
        let heads: usize = dense.iter().map(|layer| layer.heads).sum();
        let stay: usize = dense.iter().map(|layer| layer.heads.min(self.least_heads)).sum();
        stay as f64 / heads.max(1) as f64
    }

    /// Fractions of the units left after each step down to `keep`. Fails where `keep` is not between 0 and 1, or below
    /// [`Options::least`].
    pub fn stages(&self, keep: f64, dense: &[LayerWidths]) -> Result<Vec<f64>> {
        if !(keep > 0.0 && keep < 1.0) {
            return Err(Error::usage(format!(
                "the fraction to keep must be above 0 and below 1, not {keep}"
            )));
        }
        let least = self.least(dense);
        if keep + 1e-9 < least {
            return Err(Error::Infeasible {
                method: "cap-f".into(),
                asked: keep,
                minimum: (least * 1e4).ceil() / 1e4,
                reason: "the best head of every layer stays".into(),
            });
        }
        let whole = (1..).map(|step| 1.0 - self.step * f64::from(step));
        // A step that would end a rounding above the last is the last.
        Ok(whole.take_while(|left| *left > keep + 1e-9).chain([keep]).collect())
    }
}

/// Rows whose gradients are held at a time: BERT-base has 37,000 masks, a number for each and for every mini-batch.
const CHUNK_ROWS: usize = 1024;

/// Scores of the heads and neurons of `model` by all of `examples`, in mini-batches of `batch_rows`.
pub fn score(
    model: &Model,
    device: Device,
    examples: &[Example],
    batch_rows: usize,
    options: &Options,
    progress: &Progress,
) -> Result<Importance> {
    let widths = model.config().widths();
    let masks = UnitMasks::ones(&widths);
    let mut scores = Importance {
        heads: widths.iter().map(|layer| vec![0.0; layer.heads]).collect(),
        neurons: widths.iter().map(|layer| vec![0.0; layer.neurons]).collect(),
    };
    let batch_rows = batch_rows.max(1);
    let chunk = CHUNK_ROWS.next_multiple_of(batch_rows);
    for rows in examples.chunks(chunk) {
        let mut session = Session::of(model, device)?;
        let source = Source::Rows(rows);
        let grouping = Grouping::MiniBatches(batch_rows);
        let found = mask_gradients(&mut session, source, grouping, Objective::Loss, &masks, progress)?;
        for (sums, gradients) in [(&mut scores.heads, &found.heads), (&mut scores.neurons, &found.neurons)] {
            for (sums, gradients) in sums.iter_mut().zip(gradients) {
                for batch in gradients.chunks(sums.len().max(1)) {
                    sums.iter_mut().zip(batch).for_each(|(sum, gradient)| *sum += gradient.abs());
                }
            }
        }
    }
    if options.normalise {
        for layer in scores.heads.iter_mut().chain(&mut scores.neurons) {
            let norm = layer.iter().map(|score| score * score).sum::<f64>().sqrt();
            if norm > 0.0 {
                layer.iter_mut().for_each(|score| *score /= norm);
            }
        }
    }
    Ok(scores)
}

/// Masks of the units to keep: `left` of those of `dense`, the model before any pruning, the best by their scores. The
/// model's own widths are those of the scores.
pub fn select(scores: &Importance, left: f64, dense: &[LayerWidths], options: &Options) -> UnitMasks {
    // Rounded down, so that the budget is met; a fraction that is a rounding below a whole number is that number.
    let count = |total: usize| (left * total as f64 + 1e-6) as usize;
    let heads = count(dense.iter().map(|layer| layer.heads).sum());
    let neurons = count(dense.iter().map(|layer| layer.neurons).sum());
    UnitMasks {
        heads: best(&scores.heads, heads, options.least_heads),
        neurons: best(&scores.neurons, neurons, 0),
    }
}

/// Masks of the `count` best units of all layers, the `least` best of each layer among them; the earlier of equals.
fn best(scores: &[Vec<f64>], count: usize, least: usize) -> Vec<Vec<f32>> {
    let mut order: Vec<(usize, usize, usize)> = Vec::new();
    for (layer, scores) in scores.iter().enumerate() {
        let mut units: Vec<usize> = (0..scores.len()).collect();
        units.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.extend(units.iter().enumerate().map(|(rank, &unit)| (rank, layer, unit)));
    }
    // Those that stay whatever happens first, then by score.
    let score = |&(_, layer, unit): &(usize, usize, usize)| scores[layer][unit];
    order.sort_by(|a, b| {
        let spared = |unit: &(usize, usize, usize)| unit.0 < least;
        spared(b).cmp(&spared(a)).then(score(b).total_cmp(&score(a)))
    });
    let spared = order.iter().filter(|unit| unit.0 < least).count();
    let mut masks: Vec<Vec<f32>> = scores.iter().map(|layer| vec![0.0; layer.len()]).collect();
    order.iter().take(count.max(spared)).for_each(|&(_, layer, unit)| masks[layer][unit] = 1.0);
    masks
}

/// Masks of the dense model from masks of what `kept` left of it: `kept` with the units gone that `masks` removes.
pub fn compose(kept: &UnitMasks, masks: &UnitMasks) -> UnitMasks {
    let layers = |kept: &[Vec<f32>], masks: &[Vec<f32>]| {
        let layer = |(kept, mask): (&Vec<f32>, &Vec<f32>)| {
            let mut next = mask.iter();
            let unit = |&was: &f32| if was == 0.0 { 0.0 } else { next.next().copied().unwrap_or(0.0) };
            kept.iter().map(unit).collect()
        };
        kept.iter().zip(masks).map(layer).collect()
    };
    UnitMasks { heads: layers(&kept.heads, &masks.heads), neurons: layers(&kept.neurons, &masks.neurons) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_goes_at_a_time_and_the_last_step_ends_where_asked() {
        let dense = [LayerWidths { heads: 12, neurons: 100 }; 3];
        let stages = |keep| Options::new(false).stages(keep, &dense).unwrap();
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert_eq!(found.len(), expected.len(), "{found:?}");
            found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{found:?}"));
        };
        close(stages(0.7), &[0.9, 0.8, 0.7]);
        close(stages(0.65), &[0.9, 0.8, 0.7, 0.65]);
        close(stages(0.95), &[0.95]);
        assert_eq!(stages(0.1).len(), 9);
        for keep in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(Options::new(false).stages(keep, &dense).is_err(), "{keep}");
        }
        // Of three layers of four heads, three heads stay: a quarter.
        let narrow = [LayerWidths { heads: 4, neurons: 100 }; 3];
        assert!(Options::new(false).stages(0.25, &narrow).is_ok());
        let error = Options::new(false).stages(0.24, &narrow).unwrap_err();
        assert!(matches!(error, Error::Infeasible { minimum, .. } if minimum == 0.25), "{error}");
    }

    #[test]
    fn the_best_units_stay_and_the_best_head_of_every_layer() {
        let scores = vec![vec![0.9, 0.8, 0.7], vec![0.1, 0.3, 0.2]];
        assert_eq!(best(&scores, 3, 1), [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]);
        assert_eq!(best(&scores, 3, 0), [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]);
        // Fewer than one a layer cannot be.
        assert_eq!(best(&scores, 1, 1), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
        // Of equals the first.
        assert_eq!(best(&[vec![1.0; 3], vec![]], 2, 1), [vec![1.0, 1.0, 0.0], vec![]]);
    }

    #[test]
    fn masks_of_what_is_left_are_masks_of_the_whole() {
        let of = |heads: &[f32]| UnitMasks { heads: vec![heads.to_vec()], neurons: vec![vec![]] };
        let found = compose(&of(&[1.0, 0.0, 1.0, 1.0]), &of(&[0.0, 1.0, 0.0]));
        assert_eq!(found, of(&[0.0, 0.0, 1.0, 0.0]));
    }
}
