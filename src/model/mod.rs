//! Checkpoints, configurations and the families that emit programs.
//!
//! A model is an [`Architecture`] (configuration, head, parameter table) and one flat block of values. Families
//! differ in the names they declare ([`parameters`]) and in configuration; they share emission (`emit`),
//! initialisation, loading, saving and compaction, all of which go by the role of a parameter.

mod bert;
mod checkpoint;
mod compact;
mod config;
mod distilbert;
mod emit;
mod emit_contrast;
mod emit_head;
mod emit_knowledge;
mod emit_layer;
mod emit_sublayer;
mod gpt2;
mod heads;
mod hub;
mod initialise;
mod label_words;
mod layers;
pub mod masks;
mod names;
mod opt;
mod packed_bits;
pub mod parameters;
mod roberta;
mod sparse;
mod stored;
mod weight_masks;
pub mod weights;

use std::sync::Arc;

pub use self::checkpoint::{HeadRequest, LoadReport};
pub use self::compact::EmptySublayers;
pub use self::config::{
    DropoutProbabilities, Family, LayerShape, ModelConfig, NormOrder, Sublayer, positions,
};
pub use self::emit::{EmitOptions, Inputs, LayerSlots, Logits, ModelProgram, SampledTaps, Sentence};
pub use self::emit_contrast::{BankSlots, ContrastiveSlots, ContrastiveTerms};
pub use self::emit_sublayer::SublayerEmitter;
pub use self::heads::{Head, HeadParameters};
pub use self::hub::resolve;
pub use self::label_words::LabelWordHead;
pub use self::layers::check_dropped;
pub use self::masks::{LayerWidths, UnitMasks};
pub use self::packed_bits::stray_bits;
use self::parameters::{Declare, Parameters};
pub use self::sparse::SparseSize;
pub use self::stored::StoredType;
pub use self::weight_masks::{LayerMatrix, MatrixKind, WeightMask, WeightMasks};
use crate::error::Result;
use crate::program::{ParameterId, ParameterLayout};

/// A model without its values.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// Shape and constants.
    pub config: ModelConfig,
    /// Task head.
    pub head: Head,
    /// Table of the parameter block.
    pub layout: Arc<ParameterLayout>,
    /// Parameters by role.
    pub parameters: Parameters,
    /// The token that answers for a sequence which has it, in place of its first (or last) one.
    pub answer_token: Option<u32>,
}

impl Architecture {
    /// Declares the parameters of a model; where the head has another number of classes than the configuration, they
    /// get new names. Fails where the configuration is inconsistent or the family cannot
    /// have the head.
    pub fn new(mut config: ModelConfig, head: Head) -> Result<Architecture> {
        head.check(config.family)?;
        let labels = match head {
            Head::Classification { labels } => labels,
            Head::Regression => 1,
            _ => config.labels.len(),
        };
        // Names of other classes than the head's would be saved with the wrong number of them.
        if labels != config.labels.len() {
            config.labels = config::default_labels(labels);
        }
        config.validate()?;
        let mut layout = ParameterLayout::new();
        let bare = head == Head::Backbone;
        let prefix = match config.family {
            Family::Opt if bare => "decoder.",
            Family::Opt => "model.decoder.",
            _ if bare => "",
            Family::Bert => "bert.",
            Family::Roberta => "roberta.",
            Family::DistilBert => "distilbert.",
            Family::Gpt2 => "transformer.",
        };
        let mut declare = Declare { config: &config, layout: &mut layout, prefix };
        let parameters = match config.family {
            Family::Bert => bert::declare(&mut declare, head),
            Family::Roberta => roberta::declare(&mut declare, head),
            Family::DistilBert => distilbert::declare(&mut declare, head),
            Family::Gpt2 => gpt2::declare(&mut declare, head),
            Family::Opt => opt::declare(&mut declare, head),
        };
        Ok(Architecture { config, head, layout: Arc::new(layout), parameters, answer_token: None })
    }

    /// Marks matrices whose products go through a weight mask.
    pub fn set_masked(&mut self, masked: &[ParameterId]) {
        Arc::make_mut(&mut self.layout).set_masked(masked);
    }

    /// Replaces the content of `rows` by the token that answers for each sequence: [`answer_rows`], or the first
    /// [`Architecture::answer_token`] of a sequence that has one.
    pub fn answer_rows(&self, input_ids: &[i32], cu_seqlens: &[i32], rows: &mut Vec<i32>) -> Result<()> {
        answer_rows(&self.config, cu_seqlens, rows)?;
        let Some(token) = self.answer_token else { return Ok(()) };
        for (row, bounds) in rows.iter_mut().zip(cu_seqlens.windows(2)) {
            let sequence = &input_ids[bounds[0] as usize..bounds[1] as usize];
            if let Some(at) = sequence.iter().position(|&id| id as u32 == token) {
                *row = bounds[0] + at as i32;
            }
        }
        Ok(())
    }

    /// Marks parameters as trained or frozen by name; all are trained at first.
    pub fn set_trainable(&mut self, trainable: impl Fn(&str) -> bool) {
        Arc::make_mut(&mut self.layout).set_trainable(trainable);
    }
}

/// A model: its architecture and its values.
#[derive(Clone, Debug)]
pub struct Model {
    /// Configuration, head, parameter table.
    pub architecture: Architecture,
    /// The flat parameter block, laid out by `architecture.layout`; padding is zero.
    pub values: Vec<f32>,
    /// What loading found.
    pub report: LoadReport,
}

impl Model {
    /// Shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.architecture.config
    }

    /// Table of the parameter block.
    pub fn layout(&self) -> &Arc<ParameterLayout> {
        &self.architecture.layout
    }
}

/// Replaces the content of `rows` by the token that answers for each sequence of an unpadded batch: the first of an
/// encoder, the last of a causal model. An empty sequence has none and fails.
pub fn answer_rows(config: &ModelConfig, cu_seqlens: &[i32], rows: &mut Vec<i32>) -> Result<()> {
    rows.clear();
    for (sequence, bounds) in cu_seqlens.windows(2).enumerate() {
        if bounds[1] <= bounds[0] {
            let what = format!("sequence {sequence} of the batch");
            return Err(crate::Error::shape(what, "is empty: no token can answer for it"));
        }
        rows.push(if config.family.is_causal() { bounds[1] - 1 } else { bounds[0] });
    }
    Ok(())
}
