//! Evaluation of question answering: the official SQuAD 1.1 and 2.0 rules, and the choice of answer spans.
//!
//! Published scripts sort every candidate span of every feature in an interpreter and take minutes. Here the 20 best
//! starts and ends are selected without a full sort and only the best pair is kept.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::data::squad::{Answer, Feature, Question, SquadData};
use crate::{Error, Result};

/// Candidates considered at each end.
const BEST: usize = 20;
/// Most tokens of an answer.
const MAX_ANSWER_TOKENS: usize = 30;
/// What the published code answers when no span qualifies.
const NO_SPAN: &str = "empty";

/// Lower case, without ASCII punctuation, without the articles a, an, the, and with single spaces: how the official
/// scripts compare answers.
pub fn normalize_answer(text: &str) -> String {
    let lower: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // An article counts where it is a whole run of word characters; symbols outside ASCII separate such runs.
    let mut without = String::with_capacity(lower.len());
    let mut rest = lower.as_str();
    while let Some(first) = rest.chars().next() {
        let word = first.is_alphanumeric();
        let end = rest.find(|c: char| c.is_alphanumeric() != word).unwrap_or(rest.len());
        let run = &rest[..end];
        without.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = &rest[end..];
    }
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    without.split(space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Exact match and F1 of one question, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// 1 when a reference answer is matched exactly (after normalisation).
    pub exact: f64,
    /// Largest word-overlap F1 with a reference answer.
    pub f1: f64,
}

/// Score by the 1.1 rules. Without reference answers the score is 0.
pub fn score_v1(prediction: &str, answers: &[&str]) -> Score {
    let prediction = normalize_answer(prediction);
    best_score(&prediction, answers.iter().map(|answer| normalize_answer(answer)), overlap_f1)
}

/// Score by the 2.0 rules: reference answers that normalise to nothing do not count, and a question without any is
/// answered rightly by an empty prediction only.
pub fn score_v2(prediction: &str, answers: &[&str]) -> Score {
    let prediction = normalize_answer(prediction);
    let mut golds: Vec<String> =
        answers.iter().map(|answer| normalize_answer(answer)).filter(|answer| !answer.is_empty()).collect();
    if golds.is_empty() {
        golds.push(String::new());
    }
    best_score(&prediction, golds.into_iter(), |predicted, gold| {
        if predicted.is_empty() || gold.is_empty() {
            f64::from(predicted == gold)
        } else {
            overlap_f1(predicted, gold)
        }
    })
}

fn best_score(
    prediction: &str,
    golds: impl Iterator<Item = String>,
    f1: impl Fn(&str, &str) -> f64,
) -> Score {
    golds.fold(Score { exact: 0.0, f1: 0.0 }, |best, gold| Score {
        exact: best.exact.max(f64::from(prediction == gold)),
        f1: best.f1.max(f1(prediction, &gold)),
    })
}

/// F1 of the multisets of words of two normalised answers; 0 without a common word.
fn overlap_f1(prediction: &str, gold: &str) -> f64 {
    let mut available: HashMap<&str, usize> = HashMap::new();
    for word in gold.split_whitespace() {
        *available.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in prediction.split_whitespace() {
        if let Some(count) = available.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let precision = common as f64 / prediction.split_whitespace().count() as f64;
    let recall = common as f64 / gold.split_whitespace().count() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// Start and end logits of a feature, one of each for every token of its row. `f32` or `f64`.
#[derive(Debug, Clone, Copy)]
pub struct FeatureLogits<'a, T> {
    /// `[tokens of the row]`
    pub start: &'a [T],
    /// `[tokens of the row]`
    pub end: &'a [T],
    /// Byte range of each token in the paragraph, `None` outside it; `[tokens of the row]`.
    pub offsets: &'a [Option<(u32, u32)>],
}

/// The answer chosen for one question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The text; empty when the question is judged unanswerable (2.0).
    pub text: String,
    /// Null score less the best span's score (0 where no span qualifies); `None` by the 1.1 rules.
    pub null_minus_best: Option<f64>,
}

/// Chooses the answer of a question from all features of it.
///
/// A span's score is its start logit plus its end logit. Candidates are the 20 best starts with the 20 best ends of
/// each
/// feature, both inside the paragraph, at most 30 tokens long; of equal scores the first feature's, then the better
/// start's wins, and of equal logits the later token counts as better. With `null_threshold` (2.0) the answer is
/// empty when the null score, the smallest over the features of the first token's start plus end logit, exceeds the
/// best span's score by more than the threshold.
///
/// # Errors
/// [`Error::Shape`] when a feature's lists differ in length or there is no feature, [`Error::NotFinite`] for NaN
/// logits.
pub fn choose_answer<T: Copy + Into<f64>>(
    context: &str,
    features: &[FeatureLogits<'_, T>],
    null_threshold: Option<f64>,
) -> Result<Answered> {
    let mut best: Option<(f64, (u32, u32))> = None;
    let mut null = f64::INFINITY;
    for feature in features {
        let tokens = feature.offsets.len();
        if tokens == 0 || feature.start.len() != tokens || feature.end.len() != tokens {
            return Err(Error::shape(
                "answer spans",
                format!(
                    "{} start logits, {} end logits, {tokens} tokens",
                    feature.start.len(),
                    feature.end.len()
                ),
            ));
        }
        let starts = best_places(feature.start)?;
        let ends = best_places(feature.end)?;
        null = null.min(feature.start[0].into() + feature.end[0].into());
        for start in &starts {
            let Some((from, _)) = feature.offsets[*start] else {
                continue;
            };
            for end in &ends {
                let Some((_, to)) = feature.offsets[*end] else {
                    continue;
                };
                // An empty text would be the null answer, not a span.
                if end < start || end - start + 1 > MAX_ANSWER_TOKENS || to <= from {
                    continue;
                }
                let score = feature.start[*start].into() + feature.end[*end].into();
                if best.is_none_or(|(known, _)| score > known) {
                    best = Some((score, (from, to)));
                }
            }
        }
    }
    if features.is_empty() {
        return Err(Error::shape("answer spans", "a question without a feature"));
    }
    let text = match best {
        None => NO_SPAN,
        Some((_, (from, to))) => context.get(from as usize..to as usize).ok_or_else(|| {
            Error::shape(
                "answer spans",
                format!("bytes {from}..{to} are no text of a paragraph of {}", context.len()),
            )
        })?,
    };
    let null_minus_best = null_threshold.map(|_| null - best.map_or(0.0, |(score, _)| score));
    let empty =
        null_threshold.zip(null_minus_best).is_some_and(|(threshold, difference)| difference > threshold);
    Ok(Answered { text: if empty { String::new() } else { text.to_string() }, null_minus_best })
}

/// The places of the 20 largest values, largest first; of equal values the later place first.
fn best_places<T: Copy + Into<f64>>(values: &[T]) -> Result<Vec<usize>> {
    if let Some(place) = values.iter().position(|value| (*value).into().is_nan()) {
        return Err(Error::NotFinite {
            what: "logit".into(),
            value: f64::NAN,
            place: format!("of token {place}"),
        });
    }
    let key = |place: &usize| -> f64 { values[*place].into() };
    let before = |a: &usize, b: &usize| key(b).total_cmp(&key(a)).then(b.cmp(a));
    let mut places: Vec<usize> = (0..values.len()).collect();
    if places.len() > BEST {
        places.select_nth_unstable_by(BEST - 1, before);
        places.truncate(BEST);
    }
    places.sort_unstable_by(before);
    Ok(places)
}

/// Totals over questions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Exact match in percent.
    pub exact: f64,
    /// F1 in percent.
    pub f1: f64,
    /// Number of questions.
    pub questions: usize,
}

impl Totals {
    /// Means of scores, in percent; zeros without scores.
    pub fn of(scores: impl IntoIterator<Item = Score>) -> Totals {
        let mut totals = Totals::default();
        for score in scores {
            totals.exact += score.exact;
            totals.f1 += score.f1;
            totals.questions += 1;
        }
        let scale = 100.0 / totals.questions.max(1) as f64;
        Totals { exact: totals.exact * scale, f1: totals.f1 * scale, ..totals }
    }
}

/// Evaluation of a whole set.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Over all questions.
    pub all: Totals,
    /// Over the questions that have an answer.
    pub has_answer: Totals,
    /// Over those that have none (2.0).
    pub no_answer: Totals,
    /// The answer of each question, in file order.
    pub answers: Vec<Answered>,
}

/// Chooses and scores the answers of a set. `logits[i]` are the start and end logits of feature `i`.
///
/// Questions that have no feature (their question was too long for a window) count as answered with nothing.
///
/// # Errors
/// As [`choose_answer`], and [`Error::Shape`] when features and logits differ in number.
pub fn evaluate<T: Copy + Into<f64> + Sync>(
    data: &SquadData,
    features: &[Feature],
    logits: &[(Vec<T>, Vec<T>)],
    null_threshold: Option<f64>,
) -> Result<Evaluation> {
    if features.len() != logits.len() {
        return Err(Error::shape(
            "answer spans",
            format!("logits of {} of {} features", logits.len(), features.len()),
        ));
    }
    let mut of_question: Vec<Vec<FeatureLogits<'_, T>>> = vec![Vec::new(); data.questions.len()];
    for (feature, (start, end)) in features.iter().zip(logits) {
        of_question[feature.question].push(FeatureLogits { start, end, offsets: &feature.offsets });
    }
    let version_2 = null_threshold.is_some();
    let scored: Vec<(Answered, Score)> = data
        .questions
        .par_iter()
        .zip(&of_question)
        .map(|(question, features)| {
            let answered = if features.is_empty() {
                Answered { text: String::new(), null_minus_best: None }
            } else {
                choose_answer(&data.paragraphs[question.paragraph], features, null_threshold)?
            };
            let score = score(&answered.text, question, version_2);
            Ok((answered, score))
        })
        .collect::<Result<_>>()?;
    let totals = |keep: &dyn Fn(&Question) -> bool| {
        Totals::of(
            data.questions
                .iter()
                .zip(&scored)
                .filter(|(question, _)| keep(question))
                .map(|(_, (_, score))| *score),
        )
    };
    Ok(Evaluation {
        all: totals(&|_| true),
        has_answer: totals(&|question| !question.answers.is_empty()),
        no_answer: totals(&|question| question.answers.is_empty()),
        answers: scored.into_iter().map(|(answered, _)| answered).collect(),
    })
}

fn score(prediction: &str, question: &Question, version_2: bool) -> Score {
    let golds: Vec<&str> = question.answers.iter().map(|answer: &Answer| answer.text.as_str()).collect();
    if version_2 { score_v2(prediction, &golds) } else { score_v1(prediction, &golds) }
}
