//! A task head made of words: the logit of a class is that of its label word in the pre-trained language-model head.
//!
//! SMP (Jiang et al. 2023, section 3.3) freezes the head as well, so it must be there before training. The released code
//! applies the whole masked-language-model head (hidden layer, LayerNorm, tied decoder with its bias) to the `[MASK]` token
//! of a sequence, or to its first token, and picks the logits of the label words; spans take the logits of two words at
//! every token. Here only the rows of those words are multiplied: they are copied into a small classifier, which is the
//! same numbers. A checkpoint without such a head leaves what the paper describes: the dot product of the hidden state
//! with the label word's embedding. A causal model's own head is exactly that.

use std::path::Path;
use std::sync::Arc;

use super::checkpoint::HeadRequest;
use super::config::default_labels;
use super::heads::{Head, HeadParameters};
use super::{Architecture, Model};
use crate::error::{Error, Result};
use crate::program::{Linear, WeightOrder};

/// What the logits of label words are computed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub enum LabelWordHead {
    /// The checkpoint's language-model head.
    LanguageModel,
    /// Dot products with word embeddings: the checkpoint has no language-model head.
    Embedding,
}

impl Model {
    /// Loads a model whose head for a task is the language-model head's rows of `words`, one a class (two for spans, start
    /// and end). `mask_token` answers for sequences that have it. Fails on a number of words that is not the head's, on
    /// words outside the vocabulary, on one word for two classes, and on heads that predict tokens.
    pub fn load_with_label_words(
        directory: &Path,
        head: Head,
        words: &[u32],
        mask_token: Option<u32>,
        seed: u64,
    ) -> Result<(Model, LabelWordHead)> {
        let outputs = match head {
            Head::Classification { labels } => labels,
            Head::Regression => 1,
            Head::Span => 2,
            _ => return Err(Error::usage("label words answer classification, regression and spans only")),
        };
        if words.len() != outputs {
            let message = format!("{} label words for {outputs} outputs of the task's head", words.len());
            return Err(Error::usage(message));
        }
        let path = directory.join("config.json");
        let config = super::ModelConfig::read(&path)?;
        if let Some(word) = words.iter().find(|&&word| word as usize >= config.vocab) {
            let message = format!("label word {word} is outside the model's vocabulary of {}", config.vocab);
            return Err(Error::usage(message));
        }
        if let Some(word) =
            words.iter().enumerate().find_map(|(i, word)| words[..i].contains(word).then_some(word))
        {
            return Err(Error::usage(format!("token {word} is the label word of two classes")));
        }
        let language = if config.family.is_causal() { Head::CausalLm } else { Head::MaskedLm };
        let mut model = Model::load(directory, HeadRequest::Task(language), seed)?;
        let mut kind = LabelWordHead::LanguageModel;
        // A tied decoder is part of the backbone; anything else that was drawn afresh is no pre-trained head.
        if !model.report.initialised.is_empty() {
            model = Model::load(directory, HeadRequest::Task(Head::Backbone), seed)?;
            kind = LabelWordHead::Embedding;
        }
        Ok((model.with_label_words(head, words, mask_token), kind))
    }

    /// Replaces the language-model head of a model (or nothing, of a backbone) by its rows of `words`.
    fn with_label_words(self, head: Head, words: &[u32], mask_token: Option<u32>) -> Model {
        let Model { architecture, mut values, report } = self;
        let Architecture { mut config, layout, mut parameters, .. } = architecture;
        let (transform, decoder, old_bias) = match parameters.head {
            HeadParameters::LanguageModel { transform, decoder, bias } => (transform, decoder, bias),
            _ => (None, parameters.embeddings.word, None),
        };
        let mut layout = layout.as_ref().clone();
        let (from, width) = (layout.get(decoder).clone(), layout.get(decoder).cols);
        let weight = layout.matrix("label_words.weight", words.len(), width);
        let bias = old_bias.map(|_| layout.vector("label_words.bias", words.len()));
        values.resize(layout.block_len(), 0.0);
        let place = layout.get(weight).clone();
        for (row, &word) in words.iter().enumerate() {
            let start = from.offset + word as usize * from.ld();
            values.copy_within(start..start + width, place.offset + row * place.ld());
        }
        if let (Some(bias), Some(old)) = (bias, old_bias) {
            let (to, from) = (layout.get(bias).offset, layout.get(old).offset);
            for (row, &word) in words.iter().enumerate() {
                values[to + row] = values[from + word as usize];
            }
        }
        let classifier = Linear { weight, bias, order: WeightOrder::OutIn };
        parameters.head = match head {
            Head::Span => HeadParameters::Span { dropout: 0.0, transform, outputs: classifier },
            _ => HeadParameters::Sequence {
                input_dropout: 0.0,
                dense: transform.map(|(dense, activation, _)| (dense, activation)),
                norm: transform.map(|(_, _, norm)| norm),
                dropout: 0.0,
                classifier,
            },
        };
        if head != Head::Span && config.labels.len() != words.len() {
            config.labels = default_labels(words.len());
        }
        let layout = Arc::new(layout);
        let architecture = Architecture { config, head, layout, parameters, answer_token: mask_token };
        Model { architecture, values, report }
    }
}
