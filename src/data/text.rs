//! Plain text for language modelling.
//!
//! The text is tokenised line by line without any end mark between lines, the tokens are concatenated and cut in
//! blocks that do not overlap. Published code forms blocks inside map batches and worker shards and loses the
//! remainder of each, so perplexities differ with the number of workers; [`Grouping`] offers both readings.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::source;
use super::task::Split;
use super::tokenizer::Tokenizer;
use super::{Example, Target};
use crate::{Error, Result};

/// How the tokens of the lines become blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Grouping {
    /// All lines are one stream; only the last, incomplete block is dropped.
    #[default]
    Global,
    /// As a map over batches of lines inside contiguous shards does: each batch is a stream of its own.
    Hf {
        /// Lines in a map batch (1000 upstream).
        batch: usize,
        /// Shards (worker processes).
        workers: usize,
        /// Whether a batch with fewer tokens than a block is kept as one short block (what the released code does)
        /// or dropped.
        keep_short: bool,
    },
}

/// Cuts lines of `tokens_per_line` tokens into blocks. Blocks are ranges of the concatenation of all lines.
///
/// # Panics
/// When `block`, `batch` or `workers` is 0.
pub fn blocks(tokens_per_line: &[usize], block: usize, grouping: Grouping) -> Vec<std::ops::Range<usize>> {
    assert!(block > 0, "block of 0 tokens");
    let mut made = Vec::new();
    let mut cut = |start: usize, tokens: usize, keep_short: bool| {
        made.extend((0..tokens / block).map(|i| start + i * block..start + (i + 1) * block));
        if keep_short && tokens > 0 && tokens < block {
            made.push(start..start + tokens);
        }
    };
    match grouping {
        Grouping::Global => cut(0, tokens_per_line.iter().sum(), false),
        Grouping::Hf { batch, workers, keep_short } => {
            assert!(batch > 0 && workers > 0, "no batch or no worker");
            let lines = tokens_per_line.len();
            let mut start = 0;
            let mut first = 0;
            for shard in 0..workers {
                // The first `lines % workers` shards have one line more.
                let size = lines / workers + usize::from(shard < lines % workers);
                for lines in tokens_per_line[first..first + size].chunks(batch) {
                    let tokens = lines.iter().sum();
                    cut(start, tokens, keep_short);
                    start += tokens;
                }
                first += size;
            }
        }
    }
    made
}

/// Finds the text of a split: `data` itself when it is a file, else the first of the usual names in the directory
/// (`train.txt`, `wiki.train.raw`, `wiki.train.tokens`, `ptb.train.txt`; `valid`, `validation` or `dev`; `test`).
///
/// # Errors
/// [`Error::Usage`] naming what was looked for.
pub fn find(data: &Path, split: Split) -> Result<PathBuf> {
    if data.is_file() {
        return Ok(data.to_path_buf());
    }
    let stems: &[&str] = match split {
        Split::Train => &["train"],
        Split::Dev => &["valid", "validation", "dev"],
        Split::Test => &["test"],
    };
    let patterns = |stem: &str| {
        [
            format!("{stem}.txt"),
            format!("wiki.{stem}.raw"),
            format!("wiki.{stem}.tokens"),
            format!("ptb.{stem}.txt"),
        ]
    };
    let names: Vec<String> = stems.iter().flat_map(|stem| patterns(stem)).collect();
    source::find_file(data, &names).ok_or_else(|| {
        Error::usage(format!(
            "{}: no {split} text; looked for {} (also with .gz)",
            data.display(),
            names.join(", ")
        ))
    })
}

/// Token ids of every line, in order. Line ends are not tokens; a line's own white space is kept.
///
/// # Errors
/// [`Error::Format`] when the text is empty or not UTF-8: unlike rows of a table, no line of a text can be left out
/// without changing what its perplexity means.
pub fn tokenize_lines(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let text = source::read_text(path)?;
    let lines: Vec<&str> =
        text.split_inclusive('\n').map(|line| line.trim_end_matches(['\n', '\r'])).collect();
    if lines.iter().all(|line| line.trim().is_empty()) {
        return Err(Error::format(path, "the file holds no text"));
    }
    lines.par_iter().map(|line| Ok(tokenizer.pieces(line)?.ids)).collect()
}

/// The blocks of a text as examples whose every token is predicted from those before it. No special tokens.
///
/// # Errors
/// As [`tokenize_lines`]; [`Error::Format`] when the text is shorter than one block.
pub fn causal_blocks(
    path: &Path,
    tokenizer: &Tokenizer,
    block: usize,
    grouping: Grouping,
) -> Result<Vec<Example>> {
    if block < 2 {
        return Err(Error::usage(format!("a block of {block} tokens predicts nothing")));
    }
    if let Grouping::Hf { batch, workers, .. } = grouping
        && (batch == 0 || workers == 0)
    {
        return Err(Error::usage("grouping needs at least one line a batch and one worker"));
    }
    let lines = tokenize_lines(path, tokenizer)?;
    let lengths: Vec<usize> = lines.iter().map(Vec::len).collect();
    let stream: Vec<u32> = lines.into_iter().flatten().collect();
    let rows: Vec<Example> = blocks(&lengths, block, grouping)
        .into_iter()
        // A kept short block of one token has nothing to predict.
        .filter(|range| range.len() > 1)
        .map(|range| {
            let input_ids: Vec<i32> = stream[range].iter().map(|id| *id as i32).collect();
            Example { token_type_ids: vec![0; input_ids.len()], input_ids, target: Target::NextToken }
        })
        .collect();
    require_blocks(rows, path, stream.len(), block)
}

/// The blocks of a text with the tokenizer's special tokens around each, unmasked; `length` counts them.
/// [`super::masking`] masks them.
///
/// # Errors
/// As [`causal_blocks`].
pub fn masked_blocks(path: &Path, tokenizer: &Tokenizer, length: usize) -> Result<Vec<Example>> {
    let Some(block) = length.checked_sub(tokenizer.single_template().added()).filter(|block| *block > 0)
    else {
        return Err(Error::usage(format!(
            "blocks of {length} tokens have no room beside the special tokens"
        )));
    };
    let lines = tokenize_lines(path, tokenizer)?;
    let lengths: Vec<usize> = lines.iter().map(Vec::len).collect();
    let stream: Vec<u32> = lines.into_iter().flatten().collect();
    let rows = blocks(&lengths, block, Grouping::Global)
        .into_iter()
        .map(|range| {
            let ids = stream[range].to_vec();
            let offsets = vec![(0, 0); ids.len()];
            let row = tokenizer.assemble(&super::tokenizer::Pieces { ids, offsets }, None);
            Example { input_ids: row.ids, token_type_ids: row.token_type_ids, target: Target::None }
        })
        .collect();
    require_blocks(rows, path, stream.len(), block)
}

/// Short texts, one a row with the tokenizer's special tokens, unmasked: for masked language modelling of sentences
/// that
/// have nothing to do with each other.
///
/// # Errors
/// As [`Tokenizer::encode`], and [`Error::Usage`] when a text has no token or there is no text.
pub fn sentences(texts: &[String], tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
    let special = tokenizer.single_template().added();
    if texts.is_empty() {
        return Err(Error::usage("there are no texts"));
    }
    texts
        .par_iter()
        .map(|text| {
            let row = tokenizer.encode(text, None, max_length)?;
            if row.ids.len() <= special {
                return Err(Error::usage(format!("the tokenizer gives no token for {text:?}")));
            }
            Ok(Example { input_ids: row.ids, token_type_ids: row.token_type_ids, target: Target::None })
        })
        .collect()
}

fn require_blocks(rows: Vec<Example>, path: &Path, tokens: usize, block: usize) -> Result<Vec<Example>> {
    if rows.is_empty() {
        return Err(Error::format(path, format!("{tokens} tokens do not fill one block of {block}")));
    }
    Ok(rows)
}
