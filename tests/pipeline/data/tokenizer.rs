//! Tokenizers against known ids, against the other form of the same vocabulary, and against the crate's own
//! truncation.

use std::path::Path;

use proptest::prelude::*;
use secateur::Error;
use secateur::data::tokenizer::{BpeStyle, TokenizerKind, train};
use secateur::data::{Tokenizer, agreement};
use tokenizers::{TruncationParams, TruncationStrategy};

use super::files::{compress, small_tokenizer, write};
use crate::support::shared;

const SENTENCES: [&str; 6] = [
    "Hello world",
    "The U.S. dollar rose 3.5% — its best day since 1999!",
    "naïve café façade, coöperate; 北京 is a city",
    "it's a \"quoted\" <unk> token\twith\ttabs",
    "  leading and trailing spaces  ",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
];

#[test]
fn bert_ids_are_those_everybody_gets() {
    let Some(directory) = shared("data/tokenizers/bert-base-uncased") else { return };
    let tokenizer = Tokenizer::from_directory(&directory, "bert").unwrap();
    let row = tokenizer.encode("Hello world", None, 128).unwrap();
    assert_eq!(row.ids, [101, 7592, 2088, 102]);
    let row = tokenizer.encode("Hello", Some("world"), 128).unwrap();
    assert_eq!(row.ids, [101, 7592, 102, 2088, 102]);
    assert_eq!(row.token_type_ids, [0, 0, 0, 1, 1]);
    assert_eq!(row.sequence, [None, Some(0), None, Some(1), None]);
    assert_eq!(row.offsets[1], (0, 5));
    assert_eq!(tokenizer.vocabulary_size(), 30522);
    let special = tokenizer.special();
    assert_eq!(
        (special.cls, special.sep, special.pad, special.mask, special.bos),
        (Some(101), Some(102), Some(0), Some(103), None)
    );
}

#[test]
fn vocab_txt_and_tokenizer_json_agree() {
    let Some(directory) = shared("data/tokenizers/bert-base-uncased") else { return };
    let whole = Tokenizer::from_directory(&directory, "bert").unwrap();
    let alone = tempfile::tempdir().unwrap();
    let vocabulary = std::fs::read(directory.join("vocab.txt")).unwrap();
    write(alone.path(), "vocab.txt.gz", &vocabulary);
    let built = Tokenizer::from_directory(alone.path(), "bert").unwrap();
    for text in SENTENCES {
        assert_eq!(
            whole.encode(text, Some(text), 64).unwrap(),
            built.encode(text, Some(text), 64).unwrap(),
            "{text}"
        );
    }
}

#[test]
fn case_is_kept_where_the_configuration_says_so() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nDog\ndog\n");
    let ids = |text: &str| {
        Tokenizer::from_directory(directory.path(), "bert").unwrap().encode(text, None, 9).unwrap().ids
    };
    assert_eq!(ids("Dog"), [2, 6, 3]);
    write(directory.path(), "tokenizer_config.json", br#"{"do_lower_case": false}"#);
    assert_eq!(ids("Dog"), [2, 5, 3]);
}

#[test]
fn gpt2_ids_are_those_everybody_gets() {
    let Some(directory) = shared("data/tokenizers/gpt2") else { return };
    let whole = Tokenizer::from_directory(&directory, "gpt2").unwrap();
    assert_eq!(whole.encode("Hello world", None, 128).unwrap().ids, [15496, 995]);
    assert_eq!(
        (whole.special().bos, whole.special().eos, whole.special().cls),
        (Some(50256), Some(50256), None)
    );
    // OpenAI's compressed file names, without tokenizer.json.
    let alone = tempfile::tempdir().unwrap();
    for name in ["encoder.json.gz", "vocab.bpe"] {
        std::fs::copy(directory.join(name), alone.path().join(name)).unwrap();
    }
    let built = Tokenizer::from_directory(alone.path(), "gpt2").unwrap();
    for text in SENTENCES {
        let pieces = built.pieces(text).unwrap();
        assert_eq!(whole.pieces(text).unwrap(), pieces, "{text}");
        assert_eq!(built.decode(&pieces.ids).unwrap(), text);
    }
}

#[test]
fn roberta_rows_have_its_special_tokens() {
    let (Some(roberta), Some(gpt2)) =
        (shared("data/tokenizers/roberta-base"), shared("data/tokenizers/gpt2"))
    else {
        return;
    };
    let tokenizer =
        Tokenizer::from_bpe_files(&roberta.join("vocab.json"), &gpt2.join("vocab.bpe"), BpeStyle::Roberta)
            .unwrap();
    assert_eq!(tokenizer.encode("Hello world", None, 128).unwrap().ids, [0, 31414, 232, 2]);
    let pair = tokenizer.encode("Hello", Some("world"), 128).unwrap();
    assert_eq!(pair.ids[..4], [0, 31414, 2, 2]);
    assert_eq!(*pair.ids.last().unwrap(), 2);
    assert!(pair.token_type_ids.iter().all(|segment| *segment == 0));
    // The space before a word is no part of its offsets.
    assert_eq!(tokenizer.encode("Hello world", None, 128).unwrap().offsets[2], (6, 11));
    assert_eq!(tokenizer.special().mask, Some(50264));
}

/// The tokenizer.json of this model has truncation and padding to 128 baked in.
#[test]
fn baked_in_truncation_and_padding_have_no_effect() {
    let Some(directory) = shared("models/all-MiniLM-L6-v2") else { return };
    let tokenizer = Tokenizer::from_directory(&directory, "bert").unwrap();
    assert_eq!(tokenizer.encode("Hello world", None, 512).unwrap().ids.len(), 4);
    assert_eq!(tokenizer.encode(&"word ".repeat(300), None, 512).unwrap().ids.len(), 302);
    assert_eq!(tokenizer.encode(&"word ".repeat(300), None, 100).unwrap().ids.len(), 100);
}

#[test]
fn baked_in_settings_of_a_written_file_have_no_effect() {
    let directory = tempfile::tempdir().unwrap();
    let json = small_tokenizer().to_json().unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
    value["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    value["padding"] = serde_json::json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
    write(directory.path(), "tokenizer.json", value.to_string().as_bytes());
    let tokenizer = Tokenizer::from_directory(directory.path(), "bert").unwrap();
    assert_eq!(tokenizer.encode("the dog sees the cat", None, 64).unwrap().ids.len(), 7);
    assert_eq!(tokenizer.encode("the", None, 64).unwrap().ids.len(), 3);
}

#[test]
fn training_is_deterministic_and_survives_saving() {
    let corpus = agreement::corpus(400, &agreement::Sizes { train: 0, dev: 10, test: 10 }, 3);
    let texts: Vec<&str> = corpus.iter().map(String::as_str).collect();
    for kind in [TokenizerKind::WordPiece { lowercase: true }, TokenizerKind::ByteLevelBpe] {
        let tokenizer = train(&texts, kind, 400).unwrap();
        assert!(tokenizer.vocabulary_size() <= 400);
        for _ in 0..3 {
            assert_eq!(
                train(&texts, kind, 400).unwrap().to_json().unwrap(),
                tokenizer.to_json().unwrap(),
                "{kind:?}"
            );
        }
        let directory = tempfile::tempdir().unwrap();
        tokenizer.save(directory.path()).unwrap();
        let loaded = Tokenizer::from_directory(directory.path(), "anything").unwrap();
        assert_eq!(loaded.special(), tokenizer.special());
        for text in &texts[..50] {
            let row = tokenizer.encode(text, Some(text), 40).unwrap();
            assert_eq!(loaded.encode(text, Some(text), 40).unwrap(), row);
            assert_eq!(
                tokenizer.decode(&tokenizer.pieces(text).unwrap().ids).unwrap().replace(' ', ""),
                text.replace(' ', "")
            );
        }
    }
    assert!(matches!(train(&texts, TokenizerKind::ByteLevelBpe, 100), Err(Error::Usage(_))));
    assert!(matches!(train(&["", "  "], TokenizerKind::ByteLevelBpe, 1000), Err(Error::Usage(_))));
}

#[test]
fn a_length_without_room_is_an_error() {
    let tokenizer = small_tokenizer();
    for (second, max_length) in [(None, 2), (Some("cat"), 4), (None, 0)] {
        assert!(matches!(tokenizer.encode("dog", second, max_length), Err(Error::Usage(_))), "{max_length}");
    }
    assert_eq!(tokenizer.encode("dog", Some("cat"), 5).unwrap().ids.len(), 5);
}

/// A text or a pair through the crate alone. The whole texts are tokenised first: its own `encode` stops at the
/// maximum length, which changes which of two equally long texts counts as the longer.
pub fn crate_encoding(
    first: &str,
    second: Option<&str>,
    max_length: usize,
    strategy: TruncationStrategy,
    stride: usize,
) -> tokenizers::Encoding {
    let json = small_tokenizer().to_json().unwrap();
    let mut inner = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
    let whole = |text: &str| inner.encode(text, false).unwrap();
    let (first, second) = (whole(first), second.map(whole));
    inner
        .with_truncation(Some(TruncationParams { max_length, strategy, stride, ..Default::default() }))
        .unwrap();
    inner.post_process(first, second, true).unwrap()
}

proptest! {
    #[test]
    fn truncation_is_longest_first_and_honours_the_maximum(
        first in "[a-z ]{1,60}", second in proptest::option::of("[a-z ?.]{1,60}"), max_length in 5usize..48,
    ) {
        let ours = small_tokenizer().encode(&first, second.as_deref(), max_length).unwrap();
        prop_assert!(ours.ids.len() <= max_length);
        let theirs = crate_encoding(&first, second.as_deref(), max_length, TruncationStrategy::LongestFirst, 0);
        let ids = |ids: &[u32]| ids.iter().map(|id| *id as i32).collect::<Vec<_>>();
        prop_assert_eq!(&ours.ids, &ids(theirs.get_ids()));
        prop_assert_eq!(&ours.token_type_ids, &ids(theirs.get_type_ids()));
        prop_assert_eq!(&ours.offsets, theirs.get_offsets());
    }
}

#[test]
fn loading_errors_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let load = || Tokenizer::from_directory(directory.path(), "bert").unwrap_err().to_string();
    assert!(load().contains("no tokenizer"), "{}", load());
    write(directory.path(), "vocab.json", br#"{"a": 0}"#);
    assert!(load().contains("neither merges.txt"), "{}", load());
    write(directory.path(), "merges.txt", b"#version: 0.2\na b c\n");
    assert!(load().contains("merges.txt: line 2"), "{}", load());
    write(directory.path(), "merges.txt", b"x y\n");
    assert!(load().contains("merges.txt"), "{}", load());
    write(directory.path(), "vocab.txt", b"[PAD]\n[UNK]\n[CLS]\ndog\n");
    assert!(load().contains("[SEP]"), "{}", load());
    write(directory.path(), "vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[UNK]\n");
    assert!(load().contains("line 5"), "{}", load());
    write(directory.path(), "tokenizer.json", b"{\"version\": \"1.0\"");
    assert!(load().contains("tokenizer.json"), "{}", load());
    std::fs::remove_file(directory.path().join("tokenizer.json")).unwrap();
    let cut = compress(&[b'x'; 5000]);
    std::fs::write(directory.path().join("tokenizer.json.gz"), &cut[..cut.len() / 2]).unwrap();
    assert!(load().contains("tokenizer.json.gz") && load().contains("gzip"), "{}", load());
    assert!(Tokenizer::from_directory(Path::new("/nowhere at all"), "bert").is_err());
}
