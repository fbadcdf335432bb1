//! Emission of layers: the two sublayers that all families share, their masks, and what is tapped from them.
//!
//! A sublayer is what its projections read, its features (the context of attention, the activation of the feed-forward
//! network) and their projection with the residual; LayerNorm stands before or after. Pruned sublayers shrink to a bias or
//! to nothing. The parts are functions of their own, since programs of one sublayer and of the tokens that answer
//! put them together differently. A calibration program ends with its last tap, in the middle of a layer if that is where
//! it stands.

use super::config::NormOrder;
use super::emit::Emitter;
use super::parameters::{
    AttentionParameters, FeedForwardParameters, LayerParameters, Norm, Projections, SublayerParameters,
};
use crate::program::{AttentionShape, Extent, Fused, Op, SlotId};

impl Emitter<'_> {
    /// Emits the attention of layer `i`; `None` where a calibration program has all its taps before its end.
    pub(super) fn attention(&mut self, i: usize, layer: &LayerParameters, x: SlotId) -> Option<SlotId> {
        if self.taps_end_before(i, false) {
            return None;
        }
        let post = self.config.norm_order == NormOrder::Post;
        let prefix = format!("layer.{i}.");
        let name = |part: &str| format!("{prefix}{part}");
        let dropout = self.config.dropout;

        let mut sum = match layer.attention {
            SublayerParameters::Full(parameters) => {
                let mask = self.head_mask(i);
                let context = self.context(&prefix, i, (parameters, layer.attention_norm), x, mask);
                self.tap_context(i, context);
                if self.taps_end_before(i, true) {
                    return None;
                }
                let fused =
                    Fused { dropout: dropout.attention_output, residual: Some(x), ..Fused::default() };
                self.b.linear(&name("attention.sum"), context, parameters.output, fused)
            }
            SublayerParameters::BiasOnly(bias) => {
                self.b.bias_residual(&name("attention.sum"), bias, dropout.attention_output, x)
            }
            SublayerParameters::Removed => x,
        };
        self.layers[i].attention_sum = Some(sum);
        if self.options.keep_hooks {
            self.b.keep(sum);
        }
        if let Some(norm) = layer.attention_norm.filter(|_| post) {
            sum = self.norm(&name("attention.output"), sum, norm);
        }
        Some(sum)
    }

    /// Emits the feed-forward network of layer `i`; `None` as for [`Emitter::attention`].
    pub(super) fn feed_forward(&mut self, i: usize, layer: &LayerParameters, x: SlotId) -> Option<SlotId> {
        let post = self.config.norm_order == NormOrder::Post;
        let prefix = format!("layer.{i}.");
        let name = |part: &str| format!("{prefix}{part}");
        let dropout = self.config.dropout;
        let mut sum = match layer.ffn {
            SublayerParameters::Full(parameters) => {
                let mask = self.neuron_mask(i);
                let activation = self.activation(&prefix, (parameters, layer.ffn_norm), x, mask);
                self.tap_activation(i, activation);
                if self.taps_end_before(i + 1, false) {
                    return None;
                }
                let fused = Fused {
                    dropout: dropout.ffn_output,
                    residual: Some(x),
                    // The activation is zero where the mask is: those rows of the weight need no product.
                    inner_mask: mask,
                    ..Fused::default()
                };
                self.b.linear(&name("ffn.sum"), activation, parameters.down, fused)
            }
            SublayerParameters::BiasOnly(bias) => {
                self.b.bias_residual(&name("ffn.sum"), bias, dropout.ffn_output, x)
            }
            SublayerParameters::Removed => x,
        };
        self.layers[i].ffn_sum = Some(sum);
        if self.options.keep_hooks {
            self.b.keep(sum);
        }
        if let Some(norm) = layer.ffn_norm.filter(|_| post) {
            sum = self.norm(&name("output"), sum, norm);
        }
        Some(sum)
    }

    /// The head mask of layer `i`, where the options ask for one.
    pub(super) fn head_mask(&mut self, i: usize) -> Option<SlotId> {
        let heads = self.config.layers[i].heads;
        let mask = self.options.head_masks.then(|| self.mask(format!("layer.{i}.head_mask"), heads));
        self.layers[i].head_mask = mask;
        mask
    }

    /// The neuron mask of layer `i`, where the options ask for one.
    pub(super) fn neuron_mask(&mut self, i: usize) -> Option<SlotId> {
        let neurons = self.config.layers[i].neurons;
        let mask = self.options.neuron_masks.then(|| self.mask(format!("layer.{i}.neuron_mask"), neurons));
        self.layers[i].neuron_mask = mask;
        mask
    }

    /// What the sublayer's projections read: `x`, normalised where LayerNorm comes first.
    pub(super) fn sublayer_input(&mut self, name: &str, x: SlotId, norm: Option<Norm>) -> SlotId {
        match norm {
            Some(norm) if self.config.norm_order == NormOrder::Pre => self.norm(name, x, norm),
            _ => x,
        }
    }

    /// `[T, heads·head_dim]` from the input `x` of the attention sublayer of layer `i`.
    pub(super) fn context(
        &mut self,
        prefix: &str,
        i: usize,
        (parameters, norm): (AttentionParameters, Option<Norm>),
        x: SlotId,
        mask: Option<SlotId>,
    ) -> SlotId {
        let name = |part: &str| format!("{prefix}{part}");
        let input = self.sublayer_input(&name("attention.input"), x, norm);
        let (heads, head_dim) = (self.config.layers[i].heads, self.config.head_dim);
        let none = Fused::default();
        let qkv = match parameters.projections {
            Projections::Separate { query, key, value } => [
                self.b.linear(&name("query"), input, query, none),
                self.b.linear(&name("key"), input, key, none),
                self.b.linear(&name("value"), input, value, none),
            ],
            Projections::Fused(layer) => {
                let width = heads * head_dim;
                let fused = self.b.linear(&name("query_key_value"), input, layer, none);
                [("query", 0), ("key", 1), ("value", 2)]
                    .map(|(part, third)| self.b.columns(name(part), fused, third * width, width))
            }
        };
        let causal = self.config.family.is_causal();
        let shape = AttentionShape { heads, head_dim, scale: self.config.attention_scale(i), causal };
        let (cu_seqlens, dropout) = (self.inputs.cu_seqlens, self.config.dropout.attention);
        self.b.attention(&name("context"), qkv, cu_seqlens, shape, mask, dropout)
    }

    /// `[T, neurons]` from the input `x` of a feed-forward sublayer.
    pub(super) fn activation(
        &mut self,
        prefix: &str,
        (parameters, norm): (FeedForwardParameters, Option<Norm>),
        x: SlotId,
        mask: Option<SlotId>,
    ) -> SlotId {
        let input = self.sublayer_input(&format!("{prefix}ffn.input"), x, norm);
        let fused = Fused { activation: Some(self.config.activation), neuron_mask: mask, ..Fused::default() };
        self.b.linear(&format!("{prefix}activation"), input, parameters.up, fused)
    }

    pub(super) fn mask(&mut self, name: String, units: usize) -> SlotId {
        let mask = self.b.input(name, Extent::Fixed(1), units);
        if self.b.mode().mask_gradients {
            self.b.want_mask_gradient(mask);
        }
        mask
    }

    fn tap_context(&mut self, i: usize, context: SlotId) {
        self.layers[i].context = Some(context);
        if self.options.keep_hooks {
            self.b.keep(context);
        }
        self.measure(2 * i, context, context);
        if let (Some(taps), Some(samples)) = (&self.options.sampled, self.inputs.samples)
            && taps.context.contains(&i)
        {
            let sampled = self.b.gather(&format!("ctx.{i}"), context, samples);
            self.b.keep(sampled);
            self.layers[i].sampled_context = Some(sampled);
        }
    }

    fn tap_activation(&mut self, i: usize, activation: SlotId) {
        self.layers[i].activation = Some(activation);
        if self.options.keep_hooks {
            self.b.keep(activation);
        }
        self.measure(2 * i + 1, activation, activation);
        if let (Some(taps), Some(samples)) = (&self.options.sampled, self.inputs.samples)
            && taps.activation.contains(&i)
        {
            let sampled = self.b.gather(&format!("ffn.{i}"), activation, samples);
            self.b.keep(sampled);
            self.layers[i].sampled_activation = Some(sampled);
        }
        if self.options.moments {
            let (_, neurons) = self.b.shape(activation);
            let moments = self.b.temporary(format!("moments.{i}"), Extent::Fixed(3), neurons);
            self.b.keep(moments);
            self.b.emit(Op::ColumnMoments { x: activation, out: moments });
            self.layers[i].activation_moments = Some(moments);
        }
    }

    /// Whether a calibration program has no tap left at layer `i` (after its context, where so told) or later.
    fn taps_end_before(&self, i: usize, after_context: bool) -> bool {
        if self.options.moments && self.config.layers[i..].iter().any(|layer| layer.neurons > 0) {
            return false;
        }
        let Some(taps) = &self.options.sampled else { return self.options.moments };
        let context = taps.context.iter().any(|&layer| if after_context { layer > i } else { layer >= i });
        !context && !taps.activation.iter().any(|&layer| layer >= i)
    }
}
