//! What a head and a neuron cost, and what a mask keeps of it.
//!
//! One cost model for every method and every report: multiply–accumulates of the encoder (decoder) blocks only, without
//! embeddings, pooler, task head, LayerNorm, softmax and biases, the count that the structured-pruning literature uses.
//! Causal models are charged the full T² of attention. With d hidden size, d_h head dimension, T sequence length:
//!
//! ```text
//! c_head(T)   = 4·T·d·d_h + 2·T²·d_h      (query, key, value and output projections; QKᵀ and PV)
//! c_neuron(T) = 2·T·d                     (up- and down-projection)
//! total       = Σ_layers heads·c_head + neurons·c_neuron
//! ```

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use crate::model::masks::LayerWidths;
use crate::model::masks::UnitMasks;

/// Cost of a model whose layers may have different widths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostModel {
    /// Hidden size d.
    pub hidden: usize,
    /// Head dimension d_h.
    pub head_dim: usize,
    /// Sequence length T in tokens; an average, so it may be fractional.
    pub sequence_length: f64,
    /// Widths of the model before pruning.
    pub layers: Vec<LayerWidths>,
}

impl CostModel {
    /// Checks that every number is usable: d, d_h > 0, T finite and > 0, at least one head or neuron somewhere.
    pub fn new(
        hidden: usize,
        head_dim: usize,
        sequence_length: f64,
        layers: Vec<LayerWidths>,
    ) -> Result<CostModel> {
        let model = CostModel { hidden, head_dim, sequence_length, layers };
        if hidden == 0 || head_dim == 0 || model.total_heads() + model.total_neurons() == 0 {
            return Err(Error::shape(
                "cost model",
                "hidden size, head dimension and the number of units must be positive",
            ));
        }
        if !(sequence_length.is_finite() && sequence_length > 0.0) {
            return Err(Error::usage(format!(
                "the sequence length must be a positive number, not {sequence_length}"
            )));
        }
        Ok(model)
    }

    /// Multiply–accumulates of one head.
    pub fn head(&self) -> f64 {
        let (d, d_h, t) = (self.hidden as f64, self.head_dim as f64, self.sequence_length);
        4.0 * t * d * d_h + 2.0 * t * t * d_h
    }

    /// Multiply–accumulates of one neuron.
    pub fn neuron(&self) -> f64 {
        2.0 * self.sequence_length * self.hidden as f64
    }

    /// Heads of all layers.
    pub fn total_heads(&self) -> usize {
        self.layers.iter().map(|layer| layer.heads).sum()
    }

    /// Neurons of all layers.
    pub fn total_neurons(&self) -> usize {
        self.layers.iter().map(|layer| layer.neurons).sum()
    }

    /// Multiply–accumulates of attention in all layers.
    pub fn attention(&self) -> f64 {
        self.total_heads() as f64 * self.head()
    }

    /// Multiply–accumulates of the FFN in all layers.
    pub fn ffn(&self) -> f64 {
        self.total_neurons() as f64 * self.neuron()
    }

    /// Multiply–accumulates of all blocks.
    pub fn total(&self) -> f64 {
        self.attention() + self.ffn()
    }

    /// Multiply–accumulates of blocks of the given widths as a fraction of this model's.
    pub fn share(&self, widths: &[LayerWidths]) -> f64 {
        let layer =
            |width: &LayerWidths| width.heads as f64 * self.head() + width.neurons as f64 * self.neuron();
        widths.iter().map(layer).sum::<f64>() / self.total()
    }

    /// Parameters of the blocks at the given widths: projections with biases and two LayerNorms a layer. The output
    /// biases and LayerNorms of a layer stay when its last head or neuron goes.
    pub fn block_parameters(&self, widths: &[LayerWidths]) -> usize {
        let (d, d_h) = (self.hidden, self.head_dim);
        let per_layer = |width: &LayerWidths| {
            let attention = width.heads * (3 * (d + 1) * d_h + d_h * d) + d;
            let ffn = width.neurons * (2 * d + 1) + d;
            attention + ffn + 4 * d
        };
        widths.iter().map(per_layer).sum()
    }

    /// What `masks` keep, against `asked`, the fraction of multiply–accumulates to keep. Fails when the masks do not
    /// have this model's widths.
    pub fn record(&self, asked: f64, masks: &UnitMasks) -> Result<BudgetRecord> {
        masks.check_widths(&self.layers)?;
        let kept = masks.widths();
        let heads: usize = kept.iter().map(|layer| layer.heads).sum();
        let neurons: usize = kept.iter().map(|layer| layer.neurons).sum();
        let attention = PartRecord::new(heads, self.total_heads(), self.head());
        let ffn = PartRecord::new(neurons, self.total_neurons(), self.neuron());
        Ok(BudgetRecord {
            asked,
            reached: (attention.macs_kept + ffn.macs_kept) / self.total(),
            macs_total: self.total(),
            macs_kept: attention.macs_kept + ffn.macs_kept,
            attention,
            ffn,
            parameters_total: self.block_parameters(&self.layers),
            parameters_kept: self.block_parameters(&kept),
            layers: kept,
        })
    }
}

/// Asked and reached budget of one pruning, for the run record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetRecord {
    /// Fraction of multiply–accumulates to keep.
    pub asked: f64,
    /// Fraction of multiply–accumulates kept.
    pub reached: f64,
    /// Multiply–accumulates before pruning.
    pub macs_total: f64,
    /// Multiply–accumulates after pruning.
    pub macs_kept: f64,
    /// Attention's part.
    pub attention: PartRecord,
    /// The FFN's part.
    pub ffn: PartRecord,
    /// Block parameters before pruning.
    pub parameters_total: usize,
    /// Block parameters after pruning.
    pub parameters_kept: usize,
    /// Units kept in every layer.
    pub layers: Vec<LayerWidths>,
}

/// One part (attention or FFN) of a [`BudgetRecord`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Units (heads or neurons) before pruning.
    pub units_total: usize,
    /// Units after pruning.
    pub units_kept: usize,
    /// Multiply–accumulates before pruning.
    pub macs_total: f64,
    /// Multiply–accumulates after pruning.
    pub macs_kept: f64,
}

impl PartRecord {
    fn new(kept: usize, total: usize, unit: f64) -> PartRecord {
        PartRecord {
            units_total: total,
            units_kept: kept,
            macs_total: total as f64 * unit,
            macs_kept: kept as f64 * unit,
        }
    }
}
