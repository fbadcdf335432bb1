//! What checkpoints call the same tensor.
//!
//! A tensor is found by its stem: its name without the prefix that depends on the class it was saved from, with
//! today's names for the two parameters of a LayerNorm.

use super::config::Family;

/// The part of a tensor's name that does not depend on the class it was saved from.
pub(super) fn stem(family: Family, name: &str) -> String {
    let prefixes: &[&str] = match family {
        Family::Bert => &["module.", "bert."],
        Family::Roberta => &["module.", "roberta."],
        Family::DistilBert => &["module.", "distilbert."],
        Family::Gpt2 => &["module.", "transformer."],
        Family::Opt => &["module.", "model.", "decoder."],
    };
    let bare = prefixes.iter().fold(name, |name, prefix| name.strip_prefix(prefix).unwrap_or(name));
    // Checkpoints converted from TensorFlow.
    if let Some(module) = bare.strip_suffix(".gamma") {
        return format!("{module}.weight");
    }
    if let Some(module) = bare.strip_suffix(".beta") {
        return format!("{module}.bias");
    }
    bare.to_string()
}

/// Whether the tensor is a constant that transformers once saved: position numbers, causal masks.
pub(super) fn is_buffer(family: Family, stem: &str) -> bool {
    stem.ends_with(".position_ids")
        || stem.ends_with("embeddings.token_type_ids")
        || (family == Family::Gpt2 && (stem.ends_with(".attn.bias") || stem.ends_with(".attn.masked_bias")))
}

/// Stems under which a tied language-model head repeats another tensor: (copy, original).
pub(super) fn tied(family: Family) -> &'static [(&'static str, &'static str)] {
    const WORD: &str = "embeddings.word_embeddings.weight";
    match family {
        Family::Bert => &[
            ("cls.predictions.decoder.weight", WORD),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ],
        Family::Roberta => &[("lm_head.decoder.weight", WORD), ("lm_head.decoder.bias", "lm_head.bias")],
        Family::DistilBert => &[("vocab_projector.weight", WORD)],
        Family::Gpt2 => &[("lm_head.weight", "wte.weight")],
        Family::Opt => &[("lm_head.weight", "embed_tokens.weight")],
    }
}
