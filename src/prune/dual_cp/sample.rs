//! What the method looks at: activations of every unit on the sampled tokens.

use crate::error::{Error, Result};
use crate::ops::View;
use crate::prune::cost::LayerWidths;

/// Activations of all layers on the same sampled tokens. About `4·samples·Σ(heads·head_dim + neurons)` bytes:
/// 37 MB for BERT-base and 200 tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationSample {
    /// Number of sampled tokens.
    pub samples: usize,
    /// Context dimensions of one head.
    pub head_dim: usize,
    /// Heads of every layer.
    pub heads: Vec<usize>,
    /// Per layer [samples, heads·head_dim]: the input of the attention output projection.
    pub context: Vec<Vec<f32>>,
    /// Per layer [samples, neurons]: the input of the FFN down-projection.
    pub activations: Vec<Vec<f32>>,
}

impl CalibrationSample {
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.heads.len()
    }

    /// Neurons of `layer`.
    pub fn neurons(&self, layer: usize) -> usize {
        self.activations[layer].len() / self.samples.max(1)
    }

    /// Context of `layer`, [samples, heads·head_dim].
    pub fn context_view(&self, layer: usize) -> View<'_, f32> {
        View::dense(&self.context[layer], self.samples, self.heads[layer] * self.head_dim)
    }

    /// Activations of `layer`, [samples, neurons].
    pub fn activations_view(&self, layer: usize) -> View<'_, f32> {
        View::dense(&self.activations[layer], self.samples, self.neurons(layer))
    }

    /// Fails when there is no token, a shape contradicts the model's `widths`, or a value is not finite.
    pub fn check(&self, widths: &[LayerWidths], head_dim: usize) -> Result<()> {
        if self.samples == 0 {
            return Err(Error::usage("the calibration inputs contain no token"));
        }
        let layers = widths.len();
        let found = (self.heads.len(), self.context.len(), self.activations.len(), self.head_dim);
        if found != (layers, layers, layers, head_dim) {
            let message = format!(
                "heads, context and activations of {}, {} and {} layers with head dimension {}; the model has {layers} \
                 layers and {head_dim}",
                found.0, found.1, found.2, found.3
            );
            return Err(Error::shape("calibration sample", message));
        }
        for (layer, width) in widths.iter().enumerate() {
            let expected = [width.heads, width.heads * head_dim * self.samples, width.neurons * self.samples];
            let found = [self.heads[layer], self.context[layer].len(), self.activations[layer].len()];
            if found != expected {
                let message = format!(
                    "layer {layer} has [heads, context elements, activation elements] {found:?}, expected {expected:?}"
                );
                return Err(Error::shape("calibration sample", message));
            }
            check_finite("attention context", layer, self.context_view(layer))?;
            check_finite("FFN activation", layer, self.activations_view(layer))?;
        }
        Ok(())
    }
}

fn check_finite(what: &str, layer: usize, x: View<f32>) -> Result<()> {
    for sample in 0..x.rows() {
        if let Some(unit) = x.row(sample).iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                what: what.into(),
                value: f64::from(x.at(sample, unit)),
                place: format!("in layer {layer}, sampled token {sample}, column {unit}"),
            });
        }
    }
    Ok(())
}
