//! Training a tokenizer on text, with the crate's trainers.
//!
//! Both trainers count words and break ties between equally frequent pairs by token id, so the result depends on
//! the text only; [`train`] keeps it that way by never limiting the alphabet (the one step that would break ties
//! by hash order).

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

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
    let fail = |e: tokenizers::Error| Error::usage(format!("training the tokenizer: {e}"));
    let special =
        |names: &[&str]| names.iter().map(|n| AddedToken::from(n.to_string(), true)).collect::<Vec<_>>();
    let mut inner;
    let mut trainer: TrainerWrapper;
    match kind {
        TokenizerKind::WordPiece { lowercase } => {
            let model = WordPiece::builder().unk_token("[UNK]".into()).build().map_err(fail)?;
            inner = Inner::new(model);
            inner.with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase))).map_err(fail)?;
            inner.with_pre_tokenizer(Some(BertPreTokenizer));
            inner.with_decoder(Some(WordPieceDecoder::default()));
            trainer = WordPieceTrainer::builder()
                .vocab_size(vocabulary_size)
                .show_progress(false)
                .special_tokens(special(&BERT_SPECIAL))
                .build()
                .into();
        }
        TokenizerKind::ByteLevelBpe => {
            inner = Inner::new(BPE::default());
            inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
            inner.with_post_processor(Some(ByteLevel::default().trim_offsets(false)));
            inner.with_decoder(Some(ByteLevel::default()));
            trainer = BpeTrainer::builder()
                .vocab_size(vocabulary_size)
                .show_progress(false)
                .special_tokens(special(&GPT2_SPECIAL))
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .build()
                .into();
        }
    }
    inner.train(&mut trainer, texts.iter()).map_err(fail)?;
    let reached = inner.get_vocab_size(true);
    if reached > vocabulary_size {
        return Err(Error::usage(format!(
            "a vocabulary of {vocabulary_size} is too small: the special tokens and the alphabet of this text take {reached}"
        )));
    }
    if let TokenizerKind::WordPiece { .. } = kind {
        let id = |token: &str| {
            (token.to_string(), inner.token_to_id(token).expect("special tokens are in the vocabulary"))
        };
        let (sep, cls) = (id("[SEP]"), id("[CLS]"));
        inner.with_post_processor(Some(BertProcessing::new(sep, cls)));
    }
    load::finish_trained(inner)
}
