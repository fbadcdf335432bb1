//! BERT (Devlin et al. 2019): names of its parameters.

use super::heads::{self, Head};
use super::parameters::{Declare, EmbeddingParameters, LayerNames, Parameters, ProjectionNames};
use crate::program::WeightOrder::OutIn;

/// Modules of a layer; RoBERTa has the same.
pub(super) const LAYER: LayerNames = LayerNames {
    projections: ProjectionNames::Separate([
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ]),
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    ffn_norm: "output.LayerNorm",
    order: OutIn,
};

pub(super) fn declare(declare: &mut Declare, head: Head) -> Parameters {
    let embeddings = embeddings(declare);
    let layers = declare.layers("encoder.layer", LAYER);
    let head = heads::bert(declare, head, embeddings.word);
    Parameters { embeddings, layers, final_norm: None, project_out: None, head }
}

/// Word, position and token-type tables; RoBERTa has the same.
pub(super) fn embeddings(declare: &mut Declare) -> EmbeddingParameters {
    let config = declare.config;
    let hidden = config.hidden;
    EmbeddingParameters {
        word: declare.table("embeddings.word_embeddings", config.vocab, hidden),
        position: declare.table("embeddings.position_embeddings", config.position_rows(), hidden),
        token_type: (config.type_vocab > 0)
            .then(|| declare.table("embeddings.token_type_embeddings", config.type_vocab, hidden)),
        norm: Some(declare.norm("embeddings.LayerNorm", hidden)),
        project_in: None,
    }
}
