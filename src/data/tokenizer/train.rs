//! Training a tokenizer on text, with the crate's trainers.
//!
//! The crate breaks ties between equally frequent pairs by token id. Its byte-level alphabet is sorted, so BPE ids
//! depend on
//! the text only; but WordPiece's continuation characters (`##a`) get their ids in the order of a randomly seeded
//! hash map. They are therefore handed to the trainer in sorted order, as tokens it has to have.

use std::collections::BTreeSet;

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer as Inner, Trainer,
};

use super::{Tokenizer, load};
use crate::{Error, Result};

/// What kind of tokenizer to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// BERT's: words split greedily into pieces, `[CLS] A [SEP] B [SEP]`.
    WordPiece {
        /// Whether text is put in lower case (and accents removed).
        lowercase: bool,
    },
    /// GPT-2's: byte pair encoding of UTF-8 bytes, `<|endoftext|>` as the only special token.
    ByteLevelBpe,
}

const BERT_SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const GPT2_SPECIAL: [&str; 1] = ["<|endoftext|>"];

/// Trains a tokenizer of at most `vocabulary_size` tokens (special tokens included) on `texts`.
///
/// # Errors
/// [`Error::Usage`] when there is no text, or the size has no room for the special tokens and the alphabet.
pub fn train(texts: &[&str], kind: TokenizerKind, vocabulary_size: usize) -> Result<Tokenizer> {
    if texts.iter().all(|text| text.trim().is_empty()) {
        return Err(Error::usage("a tokenizer cannot be trained on empty text"));
    }
    let inner = match kind {
        TokenizerKind::WordPiece { lowercase } => train_wordpiece(texts, lowercase, vocabulary_size),
        TokenizerKind::ByteLevelBpe => train_byte_level(texts, vocabulary_size),
    };
    let inner = inner.map_err(|e| Error::usage(format!("training the tokenizer: {e}")))?;
    let reached = inner.get_vocab_size(true);
    if reached > vocabulary_size {
        return Err(Error::usage(format!(
            "a vocabulary of {vocabulary_size} is too small: the special tokens and the alphabet of this text take {reached}"
        )));
    }
    load::finish_trained(inner)
}

fn special(names: &[&str]) -> Vec<AddedToken> {
    names.iter().map(|name| AddedToken::from(name.to_string(), true)).collect()
}

fn train_wordpiece(texts: &[&str], lowercase: bool, vocabulary_size: usize) -> tokenizers::Result<Inner> {
    let normalizer = BertNormalizer::new(true, true, None, lowercase);
    let words = |text: &str| -> tokenizers::Result<Vec<String>> {
        let mut normalized = NormalizedString::from(text);
        normalizer.normalize(&mut normalized)?;
        let mut split = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut split)?;
        let words = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(words.into_iter().map(|(word, _, _)| word.to_string()).collect())
    };
    let mut continuations = BTreeSet::new();
    for text in texts {
        for word in words(text)? {
            continuations.extend(word.chars().skip(1));
        }
    }
    let mut first_tokens = special(&BERT_SPECIAL);
    first_tokens.extend(continuations.into_iter().map(|c| AddedToken::from(format!("##{c}"), false)));
    let mut trainer = WordPieceTrainer::builder()
        .vocab_size(vocabulary_size)
        .show_progress(false)
        .special_tokens(first_tokens)
        .build();
    trainer.feed(texts.iter(), words)?;
    let mut model = WordPiece::builder().unk_token("[UNK]".into()).build()?;
    // The returned special tokens include the continuations, which are ordinary; only the real ones are registered.
    trainer.train(&mut model)?;

    let mut inner = Inner::new(model);
    inner.with_normalizer(Some(normalizer))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_decoder(Some(WordPieceDecoder::default()));
    inner.add_special_tokens(special(&BERT_SPECIAL))?;
    let id = |token: &str| (token.to_string(), inner.token_to_id(token).expect("special tokens come first"));
    let processing = BertProcessing::new(id("[SEP]"), id("[CLS]"));
    inner.with_post_processor(Some(processing));
    Ok(inner)
}

fn train_byte_level(texts: &[&str], vocabulary_size: usize) -> tokenizers::Result<Inner> {
    let mut inner = Inner::new(BPE::default());
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_post_processor(Some(ByteLevel::default().trim_offsets(false)));
    inner.with_decoder(Some(ByteLevel::default()));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocabulary_size)
        .show_progress(false)
        .special_tokens(special(&GPT2_SPECIAL))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    inner.train(&mut trainer, texts.iter())?;
    Ok(inner)
}
