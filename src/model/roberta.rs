//! RoBERTa (Liu et al. 2019): BERT's layers, positions counted from the padding token on, other heads.

use super::bert;
use super::heads::{self, Head};
use super::parameters::{Declare, Parameters};

pub(super) fn declare(declare: &mut Declare, head: Head) -> Parameters {
    let embeddings = bert::embeddings(declare);
    let layers = declare.layers("encoder.layer", bert::LAYER);
    let head = heads::roberta(declare, head, embeddings.word);
    Parameters { embeddings, layers, final_norm: None, project_out: None, head }
}
