//! SQuAD: windows, labels and scoring.

use std::path::Path;

use proptest::prelude::*;
use secateur::data::squad::{FeatureOptions, features, read};
use secateur::data::{LoadOptions, Split, Target, Task, Tokenizer};
use secateur::eval::squad::{FeatureLogits, choose_answer, evaluate};
use tokenizers::TruncationStrategy;

use super::files::{small_tokenizer, write};
use super::tokenizer::crate_encoding;
use crate::support::shared;

fn file(context: &str, questions: &[(&str, Option<(&str, usize)>)]) -> Vec<u8> {
    let questions: Vec<_> = questions
        .iter()
        .enumerate()
        .map(|(number, (question, answer))| {
            let answers: Vec<_> = answer
                .iter()
                .map(|(text, start)| serde_json::json!({"text": text, "answer_start": start}))
                .collect();
            serde_json::json!({"id": format!("q{number}"), "question": question, "answers": answers,
                "is_impossible": answers.is_empty()})
        })
        .collect();
    serde_json::json!({"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]})
        .to_string()
        .into_bytes()
}

/// The text a span stands for.
fn span_text(set: &secateur::data::Dataset, row: usize) -> Option<String> {
    let (data, parts) = set.squad.as_ref().unwrap();
    let Target::Span { start, end } = set.examples[row].target else { panic!("not a span") };
    let offsets = &parts[row].offsets;
    let (from, to) = (offsets[start as usize]?.0 as usize, offsets[end as usize]?.1 as usize);
    Some(data.paragraphs[data.questions[parts[row].question].paragraph][from..to].to_string())
}

#[test]
fn character_offsets_become_bytes_and_windows_overlap() {
    let directory = tempfile::tempdir().unwrap();
    // Four characters of more than one byte before the answer.
    let context = "é é 北 ß the dog sees the cat . a b c d e f g h";
    let dog = context.chars().position(|c| c == 'd').unwrap();
    let content =
        file(context, &[("  who?", Some(("dog", dog))), ("who?", None), ("who?", Some(("dog", 0)))]);
    write(directory.path(), "dev-v2.0.json.gz", &content);
    let mut task = Task::by_name("squad-v2").unwrap();
    let options = LoadOptions { max_length: Some(14), stride: Some(3), ..LoadOptions::default() };
    let set = task.load(directory.path(), Split::Dev, &small_tokenizer(), &options).unwrap();
    let (data, parts) = set.squad.as_ref().unwrap();
    assert_eq!(data.questions.len(), 2);
    assert_eq!((set.report.bad[0].line, set.report.unit), (3, "question"));
    let mut found = 0;
    for row in 0..set.examples.len() {
        assert!(set.examples[row].length() <= 14);
        let answer = span_text(&set, row);
        if parts[row].question == 0 {
            found += usize::from(answer.is_some());
            assert!(answer.is_none_or(|text| text == "dog"));
        } else {
            assert_eq!(answer, None);
            assert_eq!(set.examples[row].target, Target::Span { start: 0, end: 0 });
        }
    }
    assert!(found >= 1);
    // By the 1.1 rules a question without an answer is a bad row.
    let (_, report) = read(&directory.path().join("dev-v2.0.json.gz"), false).unwrap();
    assert_eq!(report.bad.len(), 2);
}

#[test]
fn a_question_that_leaves_no_window_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let long = "who? ".repeat(20);
    let content =
        file("the dog sees the cat . the dog", &[(&long, Some(("dog", 4))), ("who?", Some(("dog", 4)))]);
    let path = write(directory.path(), "dev-v1.1.json", &content);
    let (data, mut report) = read(&path, false).unwrap();
    let (examples, _) =
        features(&data, &small_tokenizer(), FeatureOptions { max_length: 12, stride: 2 }, &mut report)
            .unwrap();
    assert!(!examples.is_empty());
    assert_eq!((report.rows, report.bad.len(), report.bad[0].line), (1, 1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Windows are those of the tokenizers crate's own truncation with a stride.
    #[test]
    fn windows_are_those_of_the_crate(
        question in "[a-z]{1,6} [a-z]{1,4}", context in "[a-z]{1,3}( [a-z?.]{1,4}){0,40}", max_length in 24usize..40, stride in 1usize..6,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = write(directory.path(), "dev-v2.0.json", &file(&context, &[(&question, None)]));
        let (data, mut report) = read(&path, true).unwrap();
        let (examples, parts) =
            features(&data, &small_tokenizer(), FeatureOptions { max_length, stride }, &mut report).unwrap();
        let first = crate_encoding(&question, Some(&context), max_length, TruncationStrategy::OnlySecond, stride);
        let theirs: Vec<_> = std::iter::once(&first).chain(first.get_overflowing()).collect();
        prop_assert_eq!(examples.len(), theirs.len());
        for ((ours, part), theirs) in examples.iter().zip(&parts).zip(theirs) {
            let ids: Vec<i32> = theirs.get_ids().iter().map(|id| *id as i32).collect();
            prop_assert_eq!(&ours.input_ids, &ids);
            let offsets: Vec<Option<(u32, u32)>> = theirs.get_sequence_ids().iter().zip(theirs.get_offsets())
                .map(|(sequence, range)| (*sequence == Some(1)).then_some((range.0 as u32, range.1 as u32)))
                .collect();
            prop_assert_eq!(&part.offsets, &offsets);
        }
    }
}

/// Labels of the real development set mark text that holds the answer, and perfect logits reach the score that
/// word pieces allow.
#[test]
fn answers_of_the_real_set_are_found_again() {
    let (Some(data), Some(directory)) = (shared("data/squad"), shared("data/tokenizers/bert-base-uncased"))
    else {
        return;
    };
    let tokenizer = Tokenizer::from_directory(&directory, "bert").unwrap();
    let mut task = Task::by_name("squad").unwrap();
    let set = task.load(&data, Split::Dev, &tokenizer, &LoadOptions::default()).unwrap();
    let (file, parts) = set.squad.as_ref().unwrap();
    assert_eq!((file.questions.len(), set.report.bad.len()), (10570, 0));
    // The number of features others get with this tokenizer, 384 tokens and a stride of 128.
    assert_eq!(set.examples.len(), 10784);
    let mut answered = vec![false; file.questions.len()];
    for (row, part) in parts.iter().enumerate() {
        if let Some(text) = span_text(&set, row) {
            let answer = &file.questions[part.question].answers[0].text;
            assert!(text.contains(answer.as_str()), "{text:?} does not hold {answer:?}");
            answered[part.question] = true;
        }
    }
    let missing = answered.iter().filter(|found| !**found).count();
    println!("{missing} of 10570 questions have no window with all of their answer");
    assert!(missing < 20);
    let logits: Vec<(Vec<f32>, Vec<f32>)> = set
        .examples
        .iter()
        .map(|example| {
            let Target::Span { start, end } = example.target else { panic!("not a span") };
            let peak = |place: u32| {
                (0..example.length()).map(|t| if t == place as usize { 9.0 } else { -(t as f32) }).collect()
            };
            (peak(start), peak(end))
        })
        .collect();
    let clock = std::time::Instant::now();
    let result = evaluate(file, parts, &logits, None).unwrap();
    println!(
        "exact {:.2}, F1 {:.2}, {:?} for {} features",
        result.all.exact,
        result.all.f1,
        clock.elapsed(),
        parts.len()
    );
    assert_eq!(result.all.questions, 10570);
    assert!(result.all.exact > 98.0 && result.all.f1 > 99.0, "{:?}", result.all);
}

#[test]
fn the_real_second_version_is_read() {
    let Some(data) = shared("data/squad") else { return };
    let path = data.join("dev-v2.0-cs224n.json.gz");
    let (file, report) = read(&path, true).unwrap();
    assert_eq!((file.questions.len(), report.bad.len()), (6078, 0), "{report}");
    assert_eq!(file.questions.iter().filter(|question| question.answers.is_empty()).count(), 3168);
    assert!(read(Path::new(&path), false).unwrap().1.bad.len() == 3168);
}

proptest! {
    /// On rows of at most 20 tokens every pair is a candidate, so the choice is the best of all pairs.
    #[test]
    fn the_chosen_span_is_the_best_of_all_pairs(
        logits in proptest::collection::vec((-9i32..9, -9i32..9), 2..20), hidden in 1usize..4,
    ) {
        let tokens = logits.len();
        let context: String = (0..tokens).map(|t| char::from(b'a' + t as u8)).collect();
        let offsets: Vec<Option<(u32, u32)>> =
            (0..tokens as u32).map(|t| (t as usize >= hidden).then_some((t, t + 1))).collect();
        let start: Vec<f32> = logits.iter().map(|pair| pair.0 as f32).collect();
        let end: Vec<f32> = logits.iter().map(|pair| pair.1 as f32).collect();
        let feature = FeatureLogits { start: &start, end: &end, offsets: &offsets };
        let chosen = choose_answer(&context, &[feature], None).unwrap();
        let pairs = (hidden..tokens).flat_map(|first| (first..tokens).map(move |last| (first, last)));
        let best = pairs.map(|(first, last)| start[first] + end[last]).reduce(f32::max);
        match best {
            None => prop_assert_eq!(chosen.text, "empty"),
            Some(best) => {
                let first = context.find(&chosen.text).unwrap();
                prop_assert_eq!(start[first] + end[first + chosen.text.len() - 1], best);
            }
        }
        // The null answer wins exactly where it is better by more than the threshold.
        let null = (start[0] + end[0]) as f64;
        let second = choose_answer(&context, &[feature], Some(1.5)).unwrap();
        prop_assert_eq!(second.text.is_empty(), null - best.map_or(0.0, f64::from) > 1.5);
    }
}

#[test]
fn broken_logits_are_errors() {
    let offsets = [None, Some((0, 3))];
    let choose = |start: &[f32], end: &[f32]| {
        let answered = choose_answer("dog", &[FeatureLogits { start, end, offsets: &offsets }], None);
        answered.map(|answered| answered.text)
    };
    assert_eq!(choose(&[0.0, 1.0], &[0.0, 1.0]).unwrap(), "dog");
    assert!(choose(&[0.0, f32::NAN], &[0.0, 1.0]).unwrap_err().to_string().contains("not finite"));
    assert!(choose(&[0.0], &[0.0, 1.0]).is_err());
    assert!(choose_answer::<f32>("dog", &[], None).is_err());
}
