//! Programs of one sublayer, put together from its parts.
//!
//! A sublayer is `x → features → x + features·W + b`, with LayerNorm before or after; its features are the context of
//! attention or the activation of the feed-forward network, one column (or `head_dim` of them) a unit. Methods that solve
//! for the units of a sublayer need the parts apart: features without the projection, the projection of features they
//! have changed, operations of their own in between.

use super::Architecture;
use super::config::NormOrder;
use super::emit::{EmitOptions, Emitter, Inputs};
use super::parameters::{LayerParameters, Norm, SublayerParameters};
use crate::error::{Error, Result};
use crate::program::{Builder, Extent, Fused, Linear, Mode, Program, SlotId};

/// Emission of sublayer `2·i` (attention of layer i) or `2·i + 1` (its feed-forward network). Names of slots start with a
/// prefix of the caller's choice, so that a part can be emitted twice.
pub struct SublayerEmitter<'a> {
    emitter: Emitter<'a>,
    layer: &'a LayerParameters,
    index: usize,
    is_attention: bool,
}

impl Architecture {
    /// A forward program of what `write` emits, and what `write` returns. Fails where there is no such sublayer.
    pub fn emit_sublayer<R>(
        &self,
        sublayer: usize,
        write: impl FnOnce(&mut SublayerEmitter<'_>) -> R,
    ) -> Result<(Program, R)> {
        let index = sublayer / 2;
        let Some(layer) = self.parameters.layers.get(index) else {
            let message = format!("sublayer {sublayer} of {}", 2 * self.config.layers.len());
            return Err(Error::shape("part of the model", message));
        };
        let name = format!("{} sublayer {sublayer}", self.config.family.model_type());
        let mut b = Builder::new(name, self.layout.clone(), Mode::EVALUATE);
        let inputs = Inputs::of_rows(b.int_input("cu_seqlens", Extent::Boundaries));
        let options = EmitOptions::default();
        let emitter = Emitter {
            b,
            config: &self.config,
            options: &options,
            inputs,
            layers: Vec::new(),
            answers: None,
            measured: Vec::new(),
        };
        let is_attention = sublayer.is_multiple_of(2);
        let mut emitter = SublayerEmitter { emitter, layer, index, is_attention };
        let result = write(&mut emitter);
        Ok((emitter.emitter.b.finish(), result))
    }
}

impl SublayerEmitter<'_> {
    /// The builder, for inputs and operations of the caller's.
    pub fn builder(&mut self) -> &mut Builder {
        &mut self.emitter.b
    }

    /// Integer input `[B + 1]`: the row offsets.
    pub fn cu_seqlens(&self) -> SlotId {
        self.emitter.inputs.cu_seqlens
    }

    /// A new input `[1, units]`.
    pub fn mask(&mut self, name: &str) -> SlotId {
        let shape = self.emitter.config.layers[self.index];
        let units = if self.is_attention { shape.heads } else { shape.neurons };
        self.emitter.mask(name.to_string(), units)
    }

    /// Features `[T, columns]` of the sublayer's input `x` `[T, d]`; `None` where the sublayer has no units left.
    pub fn features(&mut self, prefix: &str, x: SlotId, mask: Option<SlotId>) -> Option<SlotId> {
        match (self.is_attention, self.layer.attention, self.layer.ffn) {
            (true, SublayerParameters::Full(parameters), _) => {
                let parameters = (parameters, self.layer.attention_norm);
                Some(self.emitter.context(prefix, self.index, parameters, x, mask))
            }
            (false, _, SublayerParameters::Full(parameters)) => {
                Some(self.emitter.activation(prefix, (parameters, self.layer.ffn_norm), x, mask))
            }
            _ => None,
        }
    }

    /// `residual + features·W + b`, `[T, d]`; of a sublayer without units what is left of it. `inner_mask` promises that
    /// features of units masked with 0 are 0.
    pub fn sum(
        &mut self,
        prefix: &str,
        features: Option<SlotId>,
        inner_mask: Option<SlotId>,
        residual: SlotId,
    ) -> SlotId {
        let name = format!("{prefix}sum");
        match (features, self.projection(), self.lone_bias()) {
            (Some(features), Some(projection), _) => {
                let inner_mask = inner_mask.filter(|_| !self.is_attention);
                let fused = Fused { residual: Some(residual), inner_mask, ..Fused::default() };
                self.emitter.b.linear(&name, features, projection, fused)
            }
            (_, _, Some(bias)) => self.emitter.b.bias_residual(&name, bias, 0.0, residual),
            _ => residual,
        }
    }

    /// `sum + features·W`, without the bias a second time: units that another [`SublayerEmitter::sum`] left out.
    pub fn add(&mut self, prefix: &str, features: SlotId, sum: SlotId) -> SlotId {
        let Some(projection) = self.projection() else { return sum };
        let fused = Fused { residual: Some(sum), ..Fused::default() };
        let projection = Linear { bias: None, ..projection };
        self.emitter.b.linear(&format!("{prefix}sum"), features, projection, fused)
    }

    /// The hidden state that the next sublayer reads, from the sum.
    pub fn output(&mut self, prefix: &str, sum: SlotId) -> SlotId {
        let norm: Option<Norm> =
            if self.is_attention { self.layer.attention_norm } else { self.layer.ffn_norm };
        match norm {
            Some(norm) if self.emitter.config.norm_order == NormOrder::Post => {
                self.emitter.norm(&format!("{prefix}output"), sum, norm)
            }
            _ => sum,
        }
    }

    /// The projection of features to the hidden size.
    fn projection(&self) -> Option<Linear> {
        match (self.is_attention, self.layer.attention, self.layer.ffn) {
            (true, SublayerParameters::Full(parameters), _) => Some(parameters.output),
            (false, _, SublayerParameters::Full(parameters)) => Some(parameters.down),
            _ => None,
        }
    }

    fn lone_bias(&self) -> Option<crate::program::ParameterId> {
        match (self.is_attention, self.layer.attention, self.layer.ffn) {
            (true, SublayerParameters::BiasOnly(bias), _)
            | (false, _, SublayerParameters::BiasOnly(bias)) => Some(bias),
            _ => None,
        }
    }
}
