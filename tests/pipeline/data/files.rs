//! Files made up by tests.

use std::io::Write;
use std::path::{Path, PathBuf};

use secateur::data::Tokenizer;

/// Writes a file into a test's directory; `.gz` names are compressed.
pub fn write(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes = if name.ends_with(".gz") { compress(content) } else { content.to_vec() };
    std::fs::write(&path, bytes).unwrap();
    path
}

/// gzip of bytes.
pub fn compress(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A small BERT tokenizer that covers ASCII letters and digits one by one and some whole words.
pub fn small_tokenizer() -> Tokenizer {
    let mut vocabulary: Vec<String> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "cat", "sees", "##s", "who", "?", "."]
            .map(String::from)
            .to_vec();
    for c in ('a'..='z').chain('0'..='9') {
        vocabulary.push(c.to_string());
        if c != 's' {
            vocabulary.push(format!("##{c}"));
        }
    }
    Tokenizer::from_wordpiece(&vocabulary, true, Path::new("test vocabulary")).unwrap()
}
