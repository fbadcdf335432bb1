//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler, and without dropout after attention.

use super::heads::{self, Head};
use super::parameters::{Declare, EmbeddingParameters, LayerNames, Parameters, ProjectionNames};
use crate::program::WeightOrder::OutIn;

const LAYER: LayerNames = LayerNames {
    projections: ProjectionNames::Separate(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    ffn_norm: "output_layer_norm",
    order: OutIn,
};

pub(super) fn declare(declare: &mut Declare, head: Head) -> Parameters {
    let config = declare.config;
    let hidden = config.hidden;
    let embeddings = EmbeddingParameters {
        word: declare.table("embeddings.word_embeddings", config.vocab, hidden),
        position: declare.table("embeddings.position_embeddings", config.position_rows(), hidden),
        token_type: None,
        norm: Some(declare.norm("embeddings.LayerNorm", hidden)),
        project_in: None,
    };
    let layers = declare.layers("transformer.layer", LAYER);
    let head = heads::distilbert(declare, head, embeddings.word);
    Parameters { embeddings, layers, final_norm: None, project_out: None, head }
}
