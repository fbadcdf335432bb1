//! Building a [`Tokenizer`] from the files of a model directory.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Encoding};

use super::{SpecialTokens, Template, Tokenizer};
use crate::data::source;
use crate::{Error, Result};

/// Which special tokens a byte-level BPE vocabulary is used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BpeStyle {
    /// No special token around a text; `<|endoftext|>` begins and ends documents.
    Gpt2,
    /// `<s> A </s>` and `<s> A </s></s> B </s>`.
    Roberta,
    /// `</s> A`: the end token opens every text.
    Opt,
}

impl BpeStyle {
    /// The style of a `model_type` of config.json; GPT-2's for anything else.
    pub fn of_model_type(model_type: &str) -> Self {
        match model_type {
            "roberta" | "xlm-roberta" | "camembert" | "longformer" | "bart" => BpeStyle::Roberta,
            "opt" => BpeStyle::Opt,
            _ => BpeStyle::Gpt2,
        }
    }
}

/// The roles of special tokens under their names in tokenizer_config.json.
pub(super) fn roles(special: &SpecialTokens) -> [(&'static str, Option<u32>); 7] {
    [
        ("cls_token", special.cls),
        ("sep_token", special.sep),
        ("pad_token", special.pad),
        ("mask_token", special.mask),
        ("unk_token", special.unk),
        ("bos_token", special.bos),
        ("eos_token", special.eos),
    ]
}

pub(super) fn from_directory(directory: &Path, model_type: &str) -> Result<Tokenizer> {
    let find = |names: &[&str]| {
        source::find_file(directory, &names.iter().map(|n| n.to_string()).collect::<Vec<_>>())
    };
    let settings = Settings::read(directory)?;
    if let Some(path) = find(&["tokenizer.json"]) {
        let inner = tokenizers::Tokenizer::from_bytes(source::read_bytes(&path)?)
            .map_err(|e| Error::format(&path, format!("not a tokenizer: {e}")))?;
        return finish(inner, &settings, &path);
    }
    if let Some(path) = find(&["vocab.txt"]) {
        let text = source::read_text(&path)?;
        let vocabulary: Vec<String> = text.lines().map(str::to_string).collect();
        return wordpiece(&vocabulary, settings.lowercase.unwrap_or(true), &settings, &path);
    }
    if let Some(vocabulary) = find(&["vocab.json", "encoder.json"]) {
        let Some(merges) = find(&["merges.txt", "vocab.bpe"]) else {
            return Err(Error::format(directory, "has vocab.json but neither merges.txt nor vocab.bpe"));
        };
        return bpe(&vocabulary, &merges, BpeStyle::of_model_type(model_type), &settings);
    }
    Err(Error::format(
        directory,
        "no tokenizer: expected tokenizer.json, vocab.txt, or vocab.json with merges.txt",
    ))
}

pub(super) fn from_bpe_files(vocabulary: &Path, merges: &Path, style: BpeStyle) -> Result<Tokenizer> {
    bpe(vocabulary, merges, style, &Settings::default())
}

pub(super) fn from_wordpiece(vocabulary: &[String], lowercase: bool, origin: &Path) -> Result<Tokenizer> {
    wordpiece(vocabulary, lowercase, &Settings::default(), origin)
}

/// What tokenizer_config.json and special_tokens_map.json say.
#[derive(Debug, Default)]
struct Settings {
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
    chinese_characters: Option<bool>,
    /// Role (`cls_token`, …) to token.
    tokens: Vec<(String, String)>,
}

impl Settings {
    fn read(directory: &Path) -> Result<Self> {
        let mut settings = Settings::default();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = directory.join(name);
            if !path.is_file() {
                continue;
            }
            let value: Value = serde_json::from_str(&source::read_text(&path)?)
                .map_err(|e| Error::format(&path, format!("not valid JSON: {e}")))?;
            let flag = |key: &str| value.get(key).and_then(Value::as_bool);
            settings.lowercase = flag("do_lower_case").or(settings.lowercase);
            settings.strip_accents = flag("strip_accents").or(settings.strip_accents);
            settings.chinese_characters = flag("tokenize_chinese_chars").or(settings.chinese_characters);
            for (role, _) in roles(&SpecialTokens::default()) {
                // A token is a string or an object with its text under "content".
                let token = value.get(role).and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
                if let Some(token) = token {
                    settings.tokens.push((role.to_string(), token.to_string()));
                }
            }
        }
        Ok(settings)
    }
}

fn wordpiece(vocabulary: &[String], lowercase: bool, settings: &Settings, path: &Path) -> Result<Tokenizer> {
    let named = |role: &str, default: &str| {
        settings
            .tokens
            .iter()
            .find(|(r, _)| r == role)
            .map_or(default.to_string(), |(_, token)| token.clone())
    };
    let unk = named("unk_token", "[UNK]");
    let mut ids = std::collections::HashMap::with_capacity(vocabulary.len());
    for (id, token) in vocabulary.iter().enumerate() {
        if let Some(other) = ids.insert(token.as_str(), id as u32) {
            return Err(Error::format(
                path,
                format!("line {}: token {token:?} is already on line {}", id + 1, other + 1),
            ));
        }
    }
    let special = |token: &str| {
        let id = ids.get(token).copied();
        id.map(|id| (token.to_string(), id))
            .ok_or_else(|| Error::format(path, format!("no token {token:?} in the vocabulary")))
    };
    let (cls, sep) = (special(&named("cls_token", "[CLS]"))?, special(&named("sep_token", "[SEP]"))?);
    special(&unk)?;
    let model = WordPiece::builder()
        .vocab(
            ids.iter()
                .map(|(token, id)| (token.to_string(), *id))
                .collect::<tokenizers::models::bpe::Vocab>(),
        )
        .unk_token(unk.clone())
        .build()
        .map_err(|e| Error::format(path, e.to_string()))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    let normalizer = BertNormalizer::new(
        true,
        settings.chinese_characters.unwrap_or(true),
        settings.strip_accents,
        lowercase,
    );
    inner.with_normalizer(Some(normalizer)).map_err(|e| Error::format(path, e.to_string()))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_decoder(Some(WordPieceDecoder::default()));
    let mut added = vec![unk, sep.0.clone(), cls.0.clone()];
    added.extend([named("pad_token", "[PAD]"), named("mask_token", "[MASK]")]);
    added.retain(|token| ids.contains_key(token.as_str()));
    inner.with_post_processor(Some(BertProcessing::new(sep, cls)));
    add_special(&mut inner, &added, path)?;
    finish(inner, settings, path)
}

fn bpe(
    vocabulary_path: &Path,
    merges_path: &Path,
    style: BpeStyle,
    settings: &Settings,
) -> Result<Tokenizer> {
    let vocabulary: std::collections::HashMap<String, u32> =
        serde_json::from_str(&source::read_text(vocabulary_path)?)
            .map_err(|e| Error::format(vocabulary_path, format!("not a map of tokens to ids: {e}")))?;
    let mut merges = Vec::new();
    for (number, line) in source::read_text(merges_path)?.lines().enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            return Err(Error::format(merges_path, format!("line {}: not two tokens: {line:?}", number + 1)));
        };
        merges.push((left.to_string(), right.to_string()));
    }
    let special = |token: &str| {
        let id = vocabulary.get(token).copied();
        id.map(|id| (token.to_string(), id))
            .ok_or_else(|| Error::format(vocabulary_path, format!("no token {token:?} in the vocabulary")))
    };
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.clone().into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .build()
        .map_err(|e| {
            Error::format(merges_path, format!("does not fit {}: {e}", vocabulary_path.display()))
        })?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    let names: &[&str] = match style {
        BpeStyle::Gpt2 => {
            inner.with_post_processor(Some(ByteLevel::default().trim_offsets(false)));
            &["<|endoftext|>"]
        }
        BpeStyle::Roberta => {
            let processing = RobertaProcessing::new(special("</s>")?, special("<s>")?);
            inner.with_post_processor(Some(processing.trim_offsets(true).add_prefix_space(false)));
            &["<s>", "</s>", "<unk>", "<pad>", "<mask>"]
        }
        BpeStyle::Opt => {
            let processing = TemplateProcessing::builder()
                .try_single("</s> $A")
                .and_then(|b| b.try_pair("</s> $A </s> $B"))
                .map_err(|e| Error::format(vocabulary_path, e))?
                .special_tokens(vec![special("</s>")?])
                .build()
                .map_err(|e| Error::format(vocabulary_path, e.to_string()))?;
            inner.with_post_processor(Some(processing));
            &["<s>", "</s>", "<unk>", "<pad>"]
        }
    };
    let added: Vec<String> =
        names.iter().filter(|n| vocabulary.contains_key(**n)).map(|n| n.to_string()).collect();
    add_special(&mut inner, &added, vocabulary_path)?;
    finish(inner, settings, vocabulary_path)
}

fn add_special(inner: &mut tokenizers::Tokenizer, tokens: &[String], path: &Path) -> Result<()> {
    let tokens = tokens.iter().map(|token| AddedToken::from(token.clone(), true));
    inner.add_special_tokens(tokens).map_err(|e| Error::format(path, e.to_string()))?;
    Ok(())
}

/// Turns truncation and padding off, reads the templates off the post-processor and names the special tokens.
pub(super) fn finish_trained(inner: tokenizers::Tokenizer) -> Result<Tokenizer> {
    finish(inner, &Settings::default(), &PathBuf::from("the trained tokenizer"))
}

fn finish(mut inner: tokenizers::Tokenizer, settings: &Settings, path: &Path) -> Result<Tokenizer> {
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|e| Error::format(path, e.to_string()))?;
    let fail =
        |e: tokenizers::Error| Error::format(path, format!("the tokenizer fails on a probe text: {e}"));
    // The special tokens around a text are those the tokenizer itself puts around a probe.
    let single = template_of(&inner.encode("a", true).map_err(fail)?, false)
        .ok_or_else(|| Error::format(path, "the tokenizer gives no token for the probe text \"a\""))?;
    let pair = template_of(&inner.encode(("a", "a"), true).map_err(fail)?, true)
        .ok_or_else(|| Error::format(path, "the tokenizer does not keep the two texts of a pair apart"))?;
    let special = special_tokens(&inner, settings);
    Ok(Tokenizer { inner, single, pair, special })
}

/// Splits an encoded probe into the special tokens before, between and after its texts.
fn template_of(encoding: &Encoding, pair: bool) -> Option<Template> {
    let sequences = encoding.get_sequence_ids();
    let tokens: Vec<(u32, u32)> =
        encoding.get_ids().iter().copied().zip(encoding.get_type_ids().iter().copied()).collect();
    let range = |which: usize| {
        let first = sequences.iter().position(|s| *s == Some(which))?;
        let last = sequences.iter().rposition(|s| *s == Some(which))?;
        Some((first, last))
    };
    let (first_start, first_end) = range(0)?;
    let mut template = Template {
        prefix: tokens[..first_start].to_vec(),
        first_type: tokens[first_start].1,
        suffix: tokens[first_end + 1..].to_vec(),
        ..Template::default()
    };
    if pair {
        let (second_start, second_end) = range(1).filter(|(start, _)| *start > first_end)?;
        template.middle = tokens[first_end + 1..second_start].to_vec();
        template.second_type = tokens[second_start].1;
        template.suffix = tokens[second_end + 1..].to_vec();
    }
    Some(template)
}

/// Special tokens by role: as the configuration files say, else by the names the model families use.
fn special_tokens(inner: &tokenizers::Tokenizer, settings: &Settings) -> SpecialTokens {
    let find = |role: &str, names: &[&str]| {
        let configured =
            settings.tokens.iter().rev().filter(|(r, _)| r == role).map(|(_, token)| token.as_str());
        configured.chain(names.iter().copied()).find_map(|token| inner.token_to_id(token))
    };
    SpecialTokens {
        cls: find("cls_token", &["[CLS]", "<s>"]),
        sep: find("sep_token", &["[SEP]", "</s>"]),
        pad: find("pad_token", &["[PAD]", "<pad>"]),
        mask: find("mask_token", &["[MASK]", "<mask>"]),
        unk: find("unk_token", &["[UNK]", "<unk>"]),
        bos: find("bos_token", &["<s>", "<|endoftext|>"]),
        eos: find("eos_token", &["</s>", "<|endoftext|>"]),
    }
}
