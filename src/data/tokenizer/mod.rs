//! Tokenizers: text to token ids with byte offsets.
//!
//! A thin layer over the `tokenizers` crate that fixes what differs between checkpoints:
//!
//! - the crate only ever sees single texts without special tokens; special tokens are added here from a
//!   [`Template`], so truncation is the same code for every tokenizer and a truncation or padding setting baked
//!   into a `tokenizer.json` can never take effect (nor can the crate's habit of not tokenising past the maximum
//!   length, which loses all but the first windows of a long paragraph);
//! - a pair is truncated longest first (GLUE) or window by window (SQuAD, [`super::squad`]);
//! - the special tokens are known by their role ([`SpecialTokens`]).

mod load;
mod train;

use std::path::Path;

use crate::{Error, Result};

pub use load::BpeStyle;
pub use train::{TokenizerKind, train};

/// Ids of the special tokens, by role; `None` where the vocabulary has no such token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Classification token, first in BERT rows (`[CLS]`, `<s>`).
    pub cls: Option<u32>,
    /// Separator (`[SEP]`, `</s>`).
    pub sep: Option<u32>,
    /// Padding (never produced here; kept for export).
    pub pad: Option<u32>,
    /// Mask of masked language modelling.
    pub mask: Option<u32>,
    /// Unknown word.
    pub unk: Option<u32>,
    /// Beginning of a text (`<s>`, `<|endoftext|>`).
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
}

impl SpecialTokens {
    /// Every special id that exists.
    pub fn ids(&self) -> Vec<u32> {
        [self.cls, self.sep, self.pad, self.mask, self.unk, self.bos, self.eos]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Special tokens around the texts: `(id, segment id)` lists, and the segment id of each text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Before the first text.
    pub prefix: Vec<(u32, u32)>,
    /// Segment id of the first text.
    pub first_type: u32,
    /// Between the first and the second text; unused for a single text.
    pub middle: Vec<(u32, u32)>,
    /// Segment id of the second text.
    pub second_type: u32,
    /// After the last text.
    pub suffix: Vec<(u32, u32)>,
}

impl Template {
    /// Number of special tokens.
    pub fn added(&self) -> usize {
        self.prefix.len() + self.middle.len() + self.suffix.len()
    }
}

/// Token ids of one text without special tokens, and the bytes of the text each came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Token ids `[n]`.
    pub ids: Vec<u32>,
    /// Byte range of each token `[n]`.
    pub offsets: Vec<(usize, usize)>,
}

/// An encoded row, special tokens included. All lists have the same length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<i32>,
    /// Segment ids.
    pub token_type_ids: Vec<i32>,
    /// Byte range in the text the token came from; `(0, 0)` for special tokens.
    pub offsets: Vec<(usize, usize)>,
    /// 0 for the first text, 1 for the second, `None` for special tokens.
    pub sequence: Vec<Option<u8>>,
}

/// A tokenizer with its templates and special tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    single: Template,
    pair: Template,
    special: SpecialTokens,
}

impl Tokenizer {
    /// Loads the tokenizer of a model directory: `tokenizer.json`, else `vocab.txt` (BERT WordPiece), else
    /// `vocab.json` with `merges.txt` (byte-level BPE); each may be compressed (`.gz`), and OpenAI's names
    /// `encoder.json` and `vocab.bpe` are known. `model_type` is that of config.json; it decides the special
    /// tokens of a byte-level BPE without `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`] when a file is missing, damaged or inconsistent.
    pub fn from_directory(directory: &Path, model_type: &str) -> Result<Self> {
        load::from_directory(directory, model_type)
    }

    /// A byte-level BPE tokenizer from its vocabulary (token to id, JSON) and merge list.
    pub fn from_bpe_files(vocabulary: &Path, merges: &Path, style: BpeStyle) -> Result<Self> {
        load::from_bpe_files(vocabulary, merges, style)
    }

    /// A BERT tokenizer from a WordPiece vocabulary, one token for each id. `origin` is named in errors.
    pub fn from_wordpiece(vocabulary: &[String], lowercase: bool, origin: &Path) -> Result<Self> {
        load::from_wordpiece(vocabulary, lowercase, origin)
    }

    /// Number of ids: one more than the largest, added tokens included.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Id of a token of the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Token of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Text of token ids, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Usage`] when the decoder refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::usage(format!("these tokens cannot be decoded: {e}")))
    }

    /// The template of single texts.
    pub fn single_template(&self) -> &Template {
        &self.single
    }

    /// The template of text pairs.
    pub fn pair_template(&self) -> &Template {
        &self.pair
    }

    /// Tokens of one text, without special tokens and without truncation.
    ///
    /// # Errors
    /// [`Error::Usage`] when the tokenizer fails on the text (a WordPiece model without an unknown token).
    pub fn pieces(&self, text: &str) -> Result<Pieces> {
        let encoding = self.inner.encode(text, false).map_err(|e| {
            Error::usage(format!("tokenizing {:?}: {e}", text.chars().take(60).collect::<String>()))
        })?;
        Ok(Pieces { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// Encodes a text or a pair in at most `max_length` tokens, special tokens included.
    ///
    /// A pair that is too long loses tokens from the end of its longer text first, as "longest first" is defined by
    /// the `tokenizers` crate (both are cut to halves when the shorter alone exceeds its half).
    ///
    /// # Errors
    /// [`Error::Usage`] when `max_length` leaves no room for any text token.
    pub fn encode(&self, first: &str, second: Option<&str>, max_length: usize) -> Result<Encoded> {
        let template = if second.is_some() { &self.pair } else { &self.single };
        let room =
            max_length.checked_sub(template.added()).filter(|room| *room > usize::from(second.is_some()));
        let Some(room) = room else {
            return Err(Error::usage(format!(
                "a maximum length of {max_length} leaves no room beside {} special tokens",
                template.added()
            )));
        };
        let mut first = self.pieces(first)?;
        let mut second = second.map(|text| self.pieces(text)).transpose()?;
        let (keep_first, keep_second) =
            longest_first(first.ids.len(), second.as_ref().map_or(0, |pieces| pieces.ids.len()), room);
        first.truncate(keep_first);
        if let Some(second) = &mut second {
            second.truncate(keep_second);
        }
        Ok(self.assemble(&first, second.as_ref()))
    }

    /// Puts the special tokens around one or two token lists.
    pub fn assemble(&self, first: &Pieces, second: Option<&Pieces>) -> Encoded {
        let template = if second.is_some() { &self.pair } else { &self.single };
        let mut row = Encoded::default();
        row.push_special(&template.prefix);
        row.push_text(first, template.first_type, 0);
        if let Some(second) = second {
            row.push_special(&template.middle);
            row.push_text(second, template.second_type, 1);
        }
        row.push_special(&template.suffix);
        row
    }

    /// The `tokenizer.json` text of this tokenizer; equal tokenizers give equal text.
    ///
    /// # Errors
    /// [`Error::Usage`] when a component cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::usage(format!("writing the tokenizer: {e}")))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (the special tokens by role) into `directory`.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        write_whole(&directory.join("tokenizer.json"), &self.to_json()?)?;
        let mut config = serde_json::Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        for (role, id) in load::roles(&self.special) {
            if let Some(token) = id.and_then(|id| self.token(id)) {
                config.insert(role.into(), token.into());
            }
        }
        let mut text = serde_json::to_string_pretty(&config).expect("a map of strings is valid JSON");
        text.push('\n');
        write_whole(&directory.join("tokenizer_config.json"), &text)
    }
}

impl Pieces {
    /// Keeps the first `count` tokens.
    pub fn truncate(&mut self, count: usize) {
        self.ids.truncate(count);
        self.offsets.truncate(count);
    }

    /// The tokens of a range.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Pieces {
        Pieces { ids: self.ids[range.clone()].to_vec(), offsets: self.offsets[range].to_vec() }
    }
}

impl Encoded {
    fn push_special(&mut self, tokens: &[(u32, u32)]) {
        for (id, segment) in tokens {
            self.ids.push(*id as i32);
            self.token_type_ids.push(*segment as i32);
            self.offsets.push((0, 0));
            self.sequence.push(None);
        }
    }

    fn push_text(&mut self, pieces: &Pieces, segment: u32, sequence: u8) {
        self.ids.extend(pieces.ids.iter().map(|id| *id as i32));
        self.token_type_ids.extend(std::iter::repeat_n(segment as i32, pieces.ids.len()));
        self.offsets.extend_from_slice(&pieces.offsets);
        self.sequence.extend(std::iter::repeat_n(Some(sequence), pieces.ids.len()));
    }
}

/// How many tokens of two texts of `first` and `second` tokens are kept so that together they fit `room`.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    if second == 0 {
        return (room, 0);
    }
    let (short, long) = (first.min(second), first.max(second));
    // Only the longer text is cut while it stays at least as long as the shorter one.
    let (short, long) =
        if 2 * short <= room { (short, long.min(room - short)) } else { (room / 2, room - room / 2) };
    if first > second { (long, short) } else { (short, long) }
}

/// Writes a file under a temporary name in the same directory and renames it.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(Error::io(path, "writing"))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(Error::io(path, "writing"))?;
    file.persist(path).map_err(|e| Error::io(path, "renaming")(e.error))?;
    Ok(())
}
