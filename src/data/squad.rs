//! SQuAD 1.1 and 2.0: question answering by marking a span of a paragraph (Rajpurkar et al. 2016, 2018).
//!
//! A question and its paragraph become one or more *features*: the paragraph is cut in overlapping windows so that
//! each row fits the maximum length; the question is never cut. Offsets are bytes of the paragraph throughout; the
//! file's own character offsets are converted when it is read.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde::Deserialize;

use super::source::{self, ReadReport};
use super::tokenizer::{Pieces, Tokenizer};
use super::{Example, Target};
use crate::{Error, Result};

/// An answer given by an annotator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The text, a substring of the paragraph.
    pub text: String,
    /// Byte of the paragraph where it starts.
    pub start: usize,
}

/// A question about a paragraph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Identifier of the file.
    pub id: String,
    /// The question.
    pub text: String,
    /// Place in the file, counted from 1.
    pub number: usize,
    /// Index of its paragraph in [`SquadData::paragraphs`].
    pub paragraph: usize,
    /// Reference answers; empty when the paragraph does not answer it (2.0).
    pub answers: Vec<Answer>,
}

/// The content of a SQuAD file.
#[derive(Debug, Clone, Default)]
pub struct SquadData {
    /// Paragraph texts.
    pub paragraphs: Vec<String>,
    /// Questions in file order.
    pub questions: Vec<Question>,
}

/// Which question and which part of its paragraph a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Index in [`SquadData::questions`].
    pub question: usize,
    /// For each token of the row its byte range in the paragraph, `None` outside the paragraph.
    pub offsets: Vec<Option<(u32, u32)>>,
}

/// Limits of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureOptions {
    /// Most tokens of a row.
    pub max_length: usize,
    /// Tokens that neighbouring windows of a paragraph share.
    pub stride: usize,
}

impl Default for FeatureOptions {
    /// 384 tokens, 128 shared: the published setting.
    fn default() -> Self {
        FeatureOptions { max_length: 384, stride: 128 }
    }
}

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}
#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}
#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<RawQuestion>,
}
#[derive(Deserialize)]
struct RawQuestion {
    id: String,
    question: String,
    #[serde(default)]
    answers: Vec<RawAnswer>,
    #[serde(default)]
    is_impossible: bool,
}
#[derive(Deserialize)]
struct RawAnswer {
    text: String,
    /// In characters of the paragraph.
    answer_start: usize,
}

/// Reads a SQuAD file. Questions whose answer is not where the file says, and in version 1.1 (`version_2` false)
/// questions without an answer, are reported as bad.
///
/// # Errors
/// [`Error::Format`] when the file is not SQuAD JSON or holds no usable question.
pub fn read(path: &Path, version_2: bool) -> Result<(SquadData, ReadReport)> {
    let text = source::read_text(path)?;
    let file: File =
        serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not SQuAD JSON: {e}")))?;
    let mut data = SquadData::default();
    let mut report = ReadReport { unit: "question", ..ReadReport::new(path) };
    let mut number = 0;
    for paragraph in file.data.into_iter().flat_map(|article| article.paragraphs) {
        // Byte of every character, so that each answer is found without a scan of the paragraph.
        let bytes: Vec<usize> = paragraph.context.char_indices().map(|(byte, _)| byte).collect();
        for question in paragraph.qas {
            number += 1;
            match convert_question(question, &paragraph.context, &bytes, data.paragraphs.len(), version_2) {
                Ok(question) => data.questions.push(Question { number, ..question }),
                Err(reason) => report.reject(number, reason),
            }
        }
        data.paragraphs.push(paragraph.context);
    }
    report.rows = data.questions.len();
    report.require_rows()?;
    Ok((data, report))
}

fn convert_question(
    raw: RawQuestion,
    context: &str,
    bytes: &[usize],
    paragraph: usize,
    version_2: bool,
) -> Result<Question, String> {
    let mut answers = Vec::with_capacity(raw.answers.len());
    if !raw.is_impossible {
        for answer in raw.answers {
            let start = bytes.get(answer.answer_start).copied();
            match start.filter(|start| context[*start..].starts_with(&answer.text) && !answer.text.is_empty())
            {
                Some(start) => answers.push(Answer { text: answer.text, start }),
                None => {
                    return Err(format!(
                        "{}: answer {:?} is not at character {}",
                        raw.id, answer.text, answer.answer_start
                    ));
                }
            }
        }
    }
    if answers.is_empty() && !version_2 {
        return Err(format!("{}: no answer (SQuAD 2.0 data? use squad-v2)", raw.id));
    }
    if raw.question.trim().is_empty() {
        return Err(format!("{}: empty question", raw.id));
    }
    Ok(Question { id: raw.id, text: raw.question, number: 0, paragraph, answers })
}

/// Cuts every question with its paragraph into features. Row `i` of the examples belongs to feature `i`; the target
/// is the first reference answer where the row holds all of it, else the classification token (index 0 when
/// the tokenizer has none).
///
/// Questions that leave no room for a window are added to `report` as bad. Windows follow the common convention:
/// they share exactly `stride` tokens, so they advance by the window size less the stride.
///
/// # Errors
/// [`Error::Usage`] when the tokenizer fails, or no question fits the limits.
pub fn features(
    data: &SquadData,
    tokenizer: &Tokenizer,
    options: FeatureOptions,
    report: &mut ReadReport,
) -> Result<(Vec<Example>, Vec<Feature>)> {
    let paragraphs: Vec<Pieces> =
        data.paragraphs.par_iter().map(|text| tokenizer.pieces(text)).collect::<Result<_>>()?;
    let made: Vec<Result<Option<Rows>>> = data
        .questions
        .par_iter()
        .enumerate()
        .map(|(index, question)| {
            question_features(index, question, &paragraphs[question.paragraph], tokenizer, options)
        })
        .collect();
    let (mut examples, mut features) = (Vec::new(), Vec::new());
    for (index, made) in made.into_iter().enumerate() {
        match made? {
            Some(rows) => {
                for (example, feature) in rows {
                    examples.push(example);
                    features.push(feature);
                }
            }
            None => {
                report.rows -= 1;
                report.reject(
                    data.questions[index].number,
                    format!(
                        "{}: the question leaves no window of more than {} tokens in {}",
                        data.questions[index].id, options.stride, options.max_length
                    ),
                );
            }
        }
    }
    if examples.is_empty() {
        return Err(Error::usage(format!(
            "no question leaves room for its paragraph: maximum length {}, stride {}",
            options.max_length, options.stride
        )));
    }
    Ok((examples, features))
}

/// The rows of one question.
type Rows = Vec<(Example, Feature)>;

/// `None` when the question leaves no room for a window.
fn question_features(
    index: usize,
    question: &Question,
    paragraph: &Pieces,
    tokenizer: &Tokenizer,
    options: FeatureOptions,
) -> Result<Option<Rows>> {
    let asked = tokenizer.pieces(question.text.trim_start())?;
    let used = asked.ids.len() + tokenizer.pair_template().added();
    let window = options.max_length.saturating_sub(used);
    let total = paragraph.ids.len();
    // A paragraph that fits in one window needs no stride.
    if window == 0 || (total > window && window <= options.stride) {
        return Ok(None);
    }
    let mut rows = Vec::new();
    let mut start = 0;
    loop {
        let end = (start + window).min(total);
        let row = tokenizer.assemble(&asked, Some(&paragraph.slice(start..end)));
        let offsets: Vec<Option<(u32, u32)>> = row
            .offsets
            .iter()
            .zip(&row.sequence)
            .map(|(range, sequence)| (*sequence == Some(1)).then_some((range.0 as u32, range.1 as u32)))
            .collect();
        let cls = tokenizer
            .special()
            .cls
            .and_then(|cls| row.ids.iter().position(|id| *id == cls as i32))
            .unwrap_or(0);
        let (first, last) = question
            .answers
            .first()
            .and_then(|answer| answer_tokens(&offsets, answer.start, answer.start + answer.text.len()))
            .unwrap_or((cls, cls));
        let target = Target::Span { start: first as u32, end: last as u32 };
        let example = Example { input_ids: row.ids, token_type_ids: row.token_type_ids, target };
        rows.push((example, Feature { question: index, offsets }));
        if end == total {
            return Ok(Some(rows));
        }
        start += window - options.stride;
    }
}

/// First and last token of the byte range `start..end`, or `None` when the row does not hold all of it.
fn answer_tokens(offsets: &[Option<(u32, u32)>], start: usize, end: usize) -> Option<(usize, usize)> {
    let first_context = offsets.iter().position(Option::is_some)?;
    let last_context = offsets.iter().rposition(Option::is_some)?;
    let begins = |token: usize| offsets[token].map_or(usize::MAX, |range| range.0 as usize);
    let ends = |token: usize| offsets[token].map_or(0, |range| range.1 as usize);
    if begins(first_context) > start || ends(last_context) < end {
        return None;
    }
    // The last token that begins at or before the answer, and the first that ends at or after it.
    let first = (first_context..=last_context).rev().find(|token| begins(*token) <= start)?;
    let last = (first_context..=last_context).find(|token| ends(*token) >= end)?;
    Some((first, last))
}

impl SquadData {
    /// Question index by identifier.
    pub fn by_id(&self) -> HashMap<&str, usize> {
        self.questions.iter().enumerate().map(|(index, question)| (question.id.as_str(), index)).collect()
    }
}
