//! GPT-2 (Radford et al. 2019): LayerNorm before each sublayer, one projection for query, key and value, and
//! weights stored `[in, out]`.

use super::heads::{self, Head};
use super::parameters::{Declare, EmbeddingParameters, LayerNames, Parameters, ProjectionNames};
use crate::program::WeightOrder::InOut;

const LAYER: LayerNames = LayerNames {
    projections: ProjectionNames::Fused("attn.c_attn"),
    attention_output: "attn.c_proj",
    attention_norm: "ln_1",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    ffn_norm: "ln_2",
    order: InOut,
};

pub(super) fn declare(declare: &mut Declare, head: Head) -> Parameters {
    let config = declare.config;
    let hidden = config.hidden;
    let embeddings = EmbeddingParameters {
        word: declare.table("wte", config.vocab, hidden),
        position: declare.table("wpe", config.position_rows(), hidden),
        token_type: None,
        norm: None,
        project_in: None,
    };
    let layers = declare.layers("h", LAYER);
    let final_norm = config.final_norm.then(|| declare.norm("ln_f", hidden));
    let head = heads::causal(declare, head, embeddings.word);
    Parameters { embeddings, layers, final_norm, project_out: None, head }
}
