//! Which words answer for the classes of a task.
//!
//! Published words (SMP's code): Yes/Maybe/No for entailment, No/Yes for paraphrases, terrible/great for sentiment,
//! incorrect/correct for acceptability, Yes for similarity, yes and no for start and end of an answer. In the code the
//! labels of MNLI have been renumbered to the teacher's before the words are looked up, which gives contradiction Yes,
//! entailment Maybe and neutral No; the profile `authors` keeps that.

use super::Profile;
use crate::data::{Task, TaskKind, Tokenizer};
use crate::error::{Error, Result};

/// Words of a task in the order of its classes; `None` where none are published.
pub fn published(task: &Task, profile: Profile) -> Option<&'static [&'static str]> {
    Some(match task.name.as_str() {
        "mnli" | "mnli-mm" if profile == Profile::Authors => &["Maybe", "No", "Yes"],
        "mnli" | "mnli-mm" => &["Yes", "Maybe", "No"],
        "qnli" | "rte" => &["Yes", "No"],
        "qqp" | "mrpc" | "wnli" => &["No", "Yes"],
        "sst-2" => &["terrible", "great"],
        "cola" => &["incorrect", "correct"],
        "sts-b" => &["Yes"],
        "squad" | "squad-v2" => &["yes", "no"],
        _ if task.kind == TaskKind::Regression => &["Yes"],
        _ => return None,
    })
}

/// Tokens of `words`, or of the published ones of the task. Fails on a number of words that is not the task's, and on a
/// word that is not one token.
pub fn tokens(
    task: &Task,
    words: Option<&[String]>,
    profile: Profile,
    tokenizer: &Tokenizer,
) -> Result<Vec<(String, u32)>> {
    let words: Vec<String> = match (words, published(task, profile)) {
        (Some(words), _) => words.to_vec(),
        (None, Some(words)) => words.iter().map(|word| word.to_string()).collect(),
        (None, None) => {
            return Err(Error::usage(format!(
                "no label words are published for the task {}; give --label-words, one for each of {}",
                task.name,
                task.labels.join(", ")
            )));
        }
    };
    let outputs = task.outputs().unwrap_or(0);
    if words.len() != outputs {
        let message =
            format!("{} label words for the {outputs} outputs of the task {}", words.len(), task.name);
        return Err(Error::usage(message));
    }
    words.into_iter().map(|word| Ok((word.clone(), token(&word, tokenizer)?))).collect()
}

/// The one token of a word: as it is, as the tokenizer writes it, or as byte-pair vocabularies write it after a space.
fn token(word: &str, tokenizer: &Tokenizer) -> Result<u32> {
    let lower = word.to_lowercase();
    let forms = [word.to_string(), format!("\u{120}{word}"), lower.clone(), format!("\u{120}{lower}")];
    if let Some(id) = forms.iter().find_map(|form| tokenizer.token_id(form)) {
        return Ok(id);
    }
    let pieces = tokenizer.pieces(word)?.ids;
    let shown: Vec<String> = pieces.iter().filter_map(|&id| tokenizer.token(id)).collect();
    Err(Error::usage(format!(
        "the label word {word:?} is not one token of this model but {} ({}); choose another",
        pieces.len(),
        shown.join(" ")
    )))
}
