//! OPT (Zhang et al. 2022): a GPT with ReLU, separate projections, two unused rows before the first position, and
//! (350m only) LayerNorm after the sublayers and a narrower word embedding.

use super::heads::{self, Head};
use super::parameters::{Declare, EmbeddingParameters, LayerNames, Parameters, ProjectionNames};
use crate::program::WeightOrder::OutIn;

const LAYER: LayerNames = LayerNames {
    projections: ProjectionNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    attention_output: "self_attn.out_proj",
    attention_norm: "self_attn_layer_norm",
    up: "fc1",
    down: "fc2",
    ffn_norm: "final_layer_norm",
    order: OutIn,
};

pub(super) fn declare(declare: &mut Declare, head: Head) -> Parameters {
    let config = declare.config;
    let (hidden, narrow) = (config.hidden, config.embedding_size);
    let word = declare.table("embed_tokens", config.vocab, narrow);
    let position = declare.table("embed_positions", config.position_rows(), hidden);
    let project_out = (narrow != hidden).then(|| declare.linear("project_out", hidden, narrow, OutIn, false));
    let project_in = (narrow != hidden).then(|| declare.linear("project_in", narrow, hidden, OutIn, false));
    let embeddings = EmbeddingParameters { word, position, token_type: None, norm: None, project_in };
    let final_norm = config.final_norm.then(|| declare.norm("final_layer_norm", hidden));
    let layers = declare.layers("layers", LAYER);
    let head = heads::causal(declare, head, embeddings.word);
    Parameters { embeddings, layers, final_norm, project_out, head }
}
