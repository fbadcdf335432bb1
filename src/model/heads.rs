//! Task heads: what a model is asked, the parameters that answer, and their names by family.

use super::config::{Family, ModelConfig};
use super::parameters::{Declare, Norm};
use crate::error::{Error, Result};
use crate::program::WeightOrder::OutIn;
use crate::program::{Activation, Linear, ParameterId};

/// What a model is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Head {
    /// Nothing: the hidden states of the backbone.
    Backbone,
    /// One of `labels` classes a sequence; cross-entropy.
    Classification {
        /// Number of classes, at least 2.
        labels: usize,
    },
    /// One number a sequence; squared error.
    Regression,
    /// Start and end of an answer; mean of the two cross-entropies over the tokens of the sequence.
    Span,
    /// The next token; cross-entropy.
    CausalLm,
    /// The token under a mask; cross-entropy.
    MaskedLm,
}

impl Head {
    /// The class of transformers that has this head.
    pub fn architecture(self, family: Family) -> String {
        let model = match family {
            Family::Bert => "Bert",
            Family::Roberta => "Roberta",
            Family::DistilBert => "DistilBert",
            Family::Gpt2 => "GPT2",
            Family::Opt => "OPT",
        };
        let suffix = match (self, family) {
            (Head::Backbone, _) => "Model",
            (Head::Classification { .. } | Head::Regression, _) => "ForSequenceClassification",
            (Head::Span, _) => "ForQuestionAnswering",
            (Head::CausalLm, Family::Gpt2) => "LMHeadModel",
            (Head::CausalLm, _) => "ForCausalLM",
            (Head::MaskedLm, _) => "ForMaskedLM",
        };
        format!("{model}{suffix}")
    }

    /// Whether the head predicts tokens.
    pub fn is_language_model(self) -> bool {
        matches!(self, Head::CausalLm | Head::MaskedLm)
    }

    /// Fails where the family cannot have this head.
    pub fn check(self, family: Family) -> Result<()> {
        let message = match (self, family.is_causal()) {
            (Head::CausalLm, false) => "reads in both directions and cannot be a causal language model",
            (Head::MaskedLm, true) => "reads from left to right and cannot be a masked language model",
            (Head::Classification { labels: 0 | 1 }, _) => "needs at least 2 classes to classify",
            _ => return Ok(()),
        };
        Err(Error::usage(format!("a {} model {message}", family.model_type())))
    }
}

/// Parameters of a head.
#[derive(Clone, Copy, Debug)]
pub enum HeadParameters {
    /// None.
    Backbone,
    /// `classifier(dropout(norm(activation(dense(dropout(x))))))` of one token's hidden state x.
    Sequence {
        /// Dropout of x, where the head has it.
        input_dropout: f32,
        /// Hidden layer `d → d`.
        dense: Option<(Linear, Activation)>,
        /// LayerNorm after it: only the head of label words has one.
        norm: Option<Norm>,
        /// Dropout after the hidden layer.
        dropout: f32,
        /// `d → labels`.
        classifier: Linear,
    },
    /// `d → 2` for every token.
    Span {
        /// Dropout of the hidden states.
        dropout: f32,
        /// Hidden layer: only the head of label words has one.
        transform: Option<(Linear, Activation, Norm)>,
        /// Start and end.
        outputs: Linear,
    },
    /// `W · norm(activation(dense(x))) + b`.
    LanguageModel {
        /// Hidden layer of the masked-LM heads.
        transform: Option<(Linear, Activation, Norm)>,
        /// `[vocabulary, embedding size]`; the word embedding where tied.
        decoder: ParameterId,
        /// `[vocabulary]`.
        bias: Option<ParameterId>,
    },
}

/// Outputs of the classifier.
fn outputs(head: Head) -> usize {
    match head {
        Head::Classification { labels } => labels,
        _ => 1,
    }
}

/// The decoder's weight: the word embedding, or its own where they are not tied.
fn decoder(declare: &mut Declare, name: &str, word: ParameterId) -> ParameterId {
    let ModelConfig { vocab, embedding_size, tie_word_embeddings, .. } = *declare.config;
    if tie_word_embeddings { word } else { declare.table(name, vocab, embedding_size) }
}

fn span(declare: &mut Declare) -> HeadParameters {
    let ModelConfig { embedding_size, dropout, .. } = declare.config;
    let outputs = declare.linear("qa_outputs", *embedding_size, 2, OutIn, true);
    HeadParameters::Span { dropout: dropout.span, transform: None, outputs }
}

/// BERT: the pooler belongs to the backbone by name, to the sequence head by use.
pub(super) fn bert(declare: &mut Declare, head: Head, word: ParameterId) -> HeadParameters {
    let config = declare.config;
    let hidden = config.hidden;
    match head {
        Head::Backbone => HeadParameters::Backbone,
        Head::Classification { .. } | Head::Regression => {
            let pooler = declare.linear("pooler.dense", hidden, hidden, OutIn, true);
            declare.prefix = "";
            HeadParameters::Sequence {
                input_dropout: 0.0,
                dense: Some((pooler, Activation::Tanh)),
                norm: None,
                dropout: config.dropout.classifier,
                classifier: declare.linear("classifier", hidden, outputs(head), OutIn, true),
            }
        }
        Head::Span => {
            declare.prefix = "";
            span(declare)
        }
        Head::CausalLm | Head::MaskedLm => {
            declare.prefix = "cls.predictions.";
            let bias = declare.layout.vector("cls.predictions.bias", config.vocab);
            let dense = declare.linear("transform.dense", hidden, hidden, OutIn, true);
            let norm = declare.norm("transform.LayerNorm", hidden);
            let decoder = decoder(declare, "decoder", word);
            HeadParameters::LanguageModel {
                transform: Some((dense, config.activation, norm)),
                decoder,
                bias: Some(bias),
            }
        }
    }
}

/// RoBERTa: heads of their own, without a pooler.
pub(super) fn roberta(declare: &mut Declare, head: Head, word: ParameterId) -> HeadParameters {
    let config = declare.config;
    let hidden = config.hidden;
    declare.prefix = "";
    match head {
        Head::Backbone => HeadParameters::Backbone,
        Head::Classification { .. } | Head::Regression => {
            let dense = declare.linear("classifier.dense", hidden, hidden, OutIn, true);
            HeadParameters::Sequence {
                input_dropout: config.dropout.classifier,
                dense: Some((dense, Activation::Tanh)),
                norm: None,
                dropout: config.dropout.classifier,
                classifier: declare.linear("classifier.out_proj", hidden, outputs(head), OutIn, true),
            }
        }
        Head::Span => span(declare),
        Head::CausalLm | Head::MaskedLm => {
            let bias = declare.layout.vector("lm_head.bias", config.vocab);
            let dense = declare.linear("lm_head.dense", hidden, hidden, OutIn, true);
            let norm = declare.norm("lm_head.layer_norm", hidden);
            let decoder = decoder(declare, "lm_head.decoder", word);
            // transformers computes this head with erf-GELU whatever the layers use.
            let transform = Some((dense, Activation::GeluErf, norm));
            HeadParameters::LanguageModel { transform, decoder, bias: Some(bias) }
        }
    }
}

/// DistilBERT.
pub(super) fn distilbert(declare: &mut Declare, head: Head, word: ParameterId) -> HeadParameters {
    let config = declare.config;
    let hidden = config.hidden;
    declare.prefix = "";
    match head {
        Head::Backbone => HeadParameters::Backbone,
        Head::Classification { .. } | Head::Regression => {
            let dense = declare.linear("pre_classifier", hidden, hidden, OutIn, true);
            HeadParameters::Sequence {
                input_dropout: 0.0,
                dense: Some((dense, Activation::Relu)),
                norm: None,
                dropout: config.dropout.classifier,
                classifier: declare.linear("classifier", hidden, outputs(head), OutIn, true),
            }
        }
        Head::Span => span(declare),
        Head::CausalLm | Head::MaskedLm => {
            let dense = declare.linear("vocab_transform", hidden, hidden, OutIn, true);
            let norm = declare.norm("vocab_layer_norm", hidden);
            let decoder = decoder(declare, "vocab_projector", word);
            let bias = declare.layout.vector("vocab_projector.bias", config.vocab);
            let transform = Some((dense, config.activation, norm));
            HeadParameters::LanguageModel { transform, decoder, bias: Some(bias) }
        }
    }
}

/// GPT-2 and OPT: the last token answers for the sequence.
pub(super) fn causal(declare: &mut Declare, head: Head, word: ParameterId) -> HeadParameters {
    let config = declare.config;
    declare.prefix = "";
    match head {
        Head::Backbone => HeadParameters::Backbone,
        Head::Classification { .. } | Head::Regression => HeadParameters::Sequence {
            input_dropout: 0.0,
            dense: None,
            norm: None,
            dropout: 0.0,
            classifier: declare.linear("score", config.embedding_size, outputs(head), OutIn, false),
        },
        Head::Span => span(declare),
        Head::CausalLm | Head::MaskedLm => {
            let decoder = decoder(declare, "lm_head", word);
            HeadParameters::LanguageModel { transform: None, decoder, bias: None }
        }
    }
}
