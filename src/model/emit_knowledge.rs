//! Emission of what K-prune measures, and of the last layer where only some tokens answer.
//!
//! A sequence head reads one token of each sequence. Of the layer below it the loss then depends on that token's context,
//! sublayer sums and activations alone: those are computed a second time for the tokens that answer, and gradients flow
//! through them. For the rest of the tokens the layer ends with its activations, whose squares are summed; no product
//! behind them, and no gradient, is computed.

use super::Architecture;
use super::config::NormOrder;
use super::emit::Emitter;
use super::heads::HeadParameters;
use super::parameters::{LayerParameters, SublayerParameters};
use crate::program::{Extent, Fused, SlotId};

impl Architecture {
    /// Whether the head reads one token of each sequence.
    pub(super) fn answers_by_sequence(&self) -> bool {
        matches!(self.parameters.head, HeadParameters::Sequence { .. })
    }
}

impl Emitter<'_> {
    /// Sums of squares of `all`, the input of the output projection of `sublayer`, and the wanted gradient of `seen`: those
    /// of its rows that the loss depends on.
    pub(super) fn measure(&mut self, sublayer: usize, all: SlotId, seen: SlotId) {
        if !self.options.knowledge {
            return;
        }
        let name = format!("squares of {}", self.b.name(all));
        let squares = Some(self.b.column_products(name, all, all));
        match sublayer % 2 {
            0 => self.layers[sublayer / 2].context_squares = squares,
            _ => self.layers[sublayer / 2].activation_squares = squares,
        }
        if self.b.mode().mask_gradients {
            self.b.want_column_gradient(seen);
            self.measured.push((sublayer, seen));
        }
    }

    /// The tokens that answer, `[B]`.
    pub(super) fn answer_rows(&mut self) -> SlotId {
        let rows = self.inputs.rows.unwrap_or_else(|| self.b.int_input("rows", Extent::Sequences));
        self.inputs.rows = Some(rows);
        rows
    }

    /// A sublayer of the last layer, for all tokens `x [T, d]` as far as their squares need it and for the tokens that
    /// answer. Returns the hidden states of all tokens after attention, and before the feed-forward network's own sum.
    pub(super) fn sublayer_under_answers(
        &mut self,
        sublayer: usize,
        layer: &LayerParameters,
        x: SlotId,
    ) -> Option<SlotId> {
        let i = sublayer / 2;
        let rows = self.answer_rows();
        let name = |part: &str| format!("layer.{i}.{part}");
        let post = self.config.norm_order == NormOrder::Post;
        let seen = match self.answers {
            Some(seen) => seen,
            None => self.b.gather(&name("answers"), x, rows),
        };
        let plain = |residual| Fused { residual: Some(residual), ..Fused::default() };
        if sublayer.is_multiple_of(2) {
            let mut sums = match layer.attention {
                SublayerParameters::Full(parameters) => {
                    let mask = self.head_mask(i);
                    let context = self.context(&name(""), i, (parameters, layer.attention_norm), x, mask);
                    // The gradient reaches the context in the rows that answer, and through it their queries alone.
                    self.b.gradient_only_in(context, rows);
                    let of_answers = self.b.gather(&name("context of answers"), context, rows);
                    self.measure(sublayer, context, of_answers);
                    let output = parameters.output;
                    [
                        self.b.linear(&name("attention.sum"), context, output, plain(x)),
                        self.b.linear(&name("attention.sum of answers"), of_answers, output, plain(seen)),
                    ]
                }
                SublayerParameters::BiasOnly(bias) => [
                    self.b.bias_residual(&name("attention.sum"), bias, 0.0, x),
                    self.b.bias_residual(&name("attention.sum of answers"), bias, 0.0, seen),
                ],
                SublayerParameters::Removed => [x, seen],
            };
            if let Some(norm) = layer.attention_norm.filter(|_| post) {
                sums = [
                    self.norm(&name("attention.output"), sums[0], norm),
                    self.norm(&name("attention.output of answers"), sums[1], norm),
                ];
            }
            self.answers = Some(sums[1]);
            return Some(sums[0]);
        }
        let mut sum = match layer.ffn {
            SublayerParameters::Full(parameters) => {
                let mask = self.neuron_mask(i);
                let activation = self.activation(&name(""), (parameters, layer.ffn_norm), x, mask);
                let input = self.sublayer_input(&name("ffn.input of answers"), seen, layer.ffn_norm);
                let fused = Fused { activation: Some(self.config.activation), ..Fused::default() };
                let of_answers = self.b.linear(&name("activation of answers"), input, parameters.up, fused);
                self.measure(sublayer, activation, of_answers);
                self.b.linear(&name("ffn.sum of answers"), of_answers, parameters.down, plain(seen))
            }
            SublayerParameters::BiasOnly(bias) => {
                self.b.bias_residual(&name("ffn.sum of answers"), bias, 0.0, seen)
            }
            SublayerParameters::Removed => seen,
        };
        if let Some(norm) = layer.ffn_norm.filter(|_| post) {
            sum = self.norm(&name("output of answers"), sum, norm);
        }
        self.answers = Some(sum);
        Some(x)
    }
}
