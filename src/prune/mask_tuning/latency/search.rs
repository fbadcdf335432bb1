//! The most important units whose predicted latency fits a budget.
//!
//! Which sublayers stay is searched over all pairs (number of attention sublayers, number of feed-forward ones): those with
//! the most important first τ units. They pay their flat parts, which buys their first τ units each; what is left of the
//! budget buys further units at a slope each, by the same exact knapsack as for multiply–accumulates.

use serde::{Deserialize, Serialize};

use super::LatencyFit;
use crate::error::{Error, Result};
use crate::prune::UnitMasks;
use crate::prune::mask_gradients::Importance;
use crate::prune::mask_tuning::search::{Ranking, affordable};

/// Masks under a latency budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyPlan {
    /// Zero–one masks.
    pub masks: UnitMasks,
    /// Predicted seconds of the model before pruning.
    pub dense: f64,
    /// Seconds allowed.
    pub budget: f64,
    /// Predicted seconds of the masks.
    pub predicted: f64,
}

/// One kind of sublayer, by how many of them stay.
struct Kind<'a> {
    fit: &'a LatencyFit,
    /// Layers that have units, those with the most important first τ units first.
    layers: Vec<usize>,
    /// Units of each layer, most important first.
    order: Vec<Vec<usize>>,
    /// With so many layers kept: importance of the units that the flat parts buy.
    base: Vec<f64>,
    /// With so many layers kept: units above τ.
    extra: Vec<Ranking>,
}

impl<'a> Kind<'a> {
    fn new(importance: &[Vec<f64>], fit: &'a LatencyFit) -> Kind<'a> {
        let rank = |values: &Vec<f64>| {
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
            order
        };
        let order: Vec<Vec<usize>> = importance.iter().map(rank).collect();
        let first = |layer: usize| -> f64 {
            order[layer].iter().take(fit.threshold).map(|&unit| importance[layer][unit]).sum()
        };
        let mut layers: Vec<usize> =
            (0..importance.len()).filter(|&layer| !order[layer].is_empty()).collect();
        layers.sort_by(|&a, &b| first(b).total_cmp(&first(a)));
        let base = (0..=layers.len()).map(|kept| layers[..kept].iter().map(|&layer| first(layer)).sum());
        let extra = (0..=layers.len()).map(|kept| {
            let units = layers[..kept]
                .iter()
                .flat_map(|&layer| order[layer].iter().skip(fit.threshold).map(move |&unit| (layer, unit)));
            Ranking::among(importance, units.collect())
        });
        Kind { base: base.collect(), extra: extra.collect(), fit, layers, order }
    }

    /// Units kept by layer, with so many layers and so many units above their thresholds.
    fn kept(&self, layers: usize, extra: usize) -> Vec<Vec<usize>> {
        let mut kept = self.extra[layers].first(extra, self.order.len());
        for &layer in &self.layers[..layers] {
            kept[layer].extend(self.order[layer].iter().take(self.fit.threshold));
        }
        kept
    }
}

/// The most important units within `keep` of the dense model's predicted latency. Fails as [`Importance::check`], and where
/// not a single sublayer fits.
pub fn search_latency(
    importance: &Importance,
    heads: &LatencyFit,
    neurons: &LatencyFit,
    keep: f64,
) -> Result<LatencyPlan> {
    importance.check()?;
    let predict = |layers: &[usize], fit: &LatencyFit| layers.iter().map(|&units| fit.at(units)).sum::<f64>();
    let counts = |layers: &[Vec<f64>]| layers.iter().map(Vec::len).collect::<Vec<usize>>();
    let dense = predict(&counts(&importance.heads), heads) + predict(&counts(&importance.neurons), neurons);
    // As in the search under multiply–accumulates, a budget of everything buys everything.
    let budget = keep * dense * (1.0 + 1e-12);
    let (attention, ffn) = (Kind::new(&importance.heads, heads), Kind::new(&importance.neurons, neurons));

    let mut best: Option<(f64, f64, [usize; 4])> = None;
    for attention_layers in 0..=attention.layers.len() {
        for ffn_layers in 0..=ffn.layers.len() {
            if attention_layers + ffn_layers == 0 {
                continue;
            }
            let flat = attention_layers as f64 * heads.flat + ffn_layers as f64 * neurons.flat;
            let (more_heads, more_neurons) = (&attention.extra[attention_layers], &ffn.extra[ffn_layers]);
            let all_heads = more_heads.units.len();
            // Free heads are all taken; there is nothing to weigh.
            let fewest = if heads.slope > 0.0 { 0 } else { all_heads };
            for head_count in fewest..=all_heads {
                let left = budget - flat - head_count as f64 * heads.slope;
                if left < 0.0 {
                    break;
                }
                let neuron_count = affordable(left, neurons.slope, more_neurons.units.len());
                let value = attention.base[attention_layers]
                    + ffn.base[ffn_layers]
                    + more_heads.prefix[head_count]
                    + more_neurons.prefix[neuron_count];
                let time = budget - left + neuron_count as f64 * neurons.slope;
                let better =
                    best.is_none_or(|(most, least, _)| value > most || (value == most && time < least));
                if better {
                    best = Some((value, time, [attention_layers, head_count, ffn_layers, neuron_count]));
                }
            }
        }
    }
    let Some((_, _, [attention_layers, head_count, ffn_layers, neuron_count])) = best else {
        let least = heads.flat.min(neurons.flat) / dense;
        return Err(Error::usage(format!(
            "no sublayer fits {keep} of the dense latency; the smallest takes {least:.4} of it"
        )));
    };
    let masks = UnitMasks::from_kept(
        &importance.widths(),
        &attention.kept(attention_layers, head_count),
        &ffn.kept(ffn_layers, neuron_count),
    );
    let widths = masks.widths();
    let kept_heads: Vec<usize> = widths.iter().map(|layer| layer.heads).collect();
    let kept_neurons: Vec<usize> = widths.iter().map(|layer| layer.neurons).collect();
    let predicted = predict(&kept_heads, heads) + predict(&kept_neurons, neurons);
    Ok(LatencyPlan { masks, dense, budget: keep * dense, predicted })
}
