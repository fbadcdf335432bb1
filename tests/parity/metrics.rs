//! Metrics against scikit-learn, SciPy and the official SQuAD rules. Tolerance 1e-9 absolute: all of them are
//! a few hundred f64 operations of numbers of order 1 to 100.

use secateur::data::text::{Grouping, blocks};
use secateur::eval::metrics::{Confusion, average_ranks, pearson, spearman};
use secateur::eval::perplexity::{BlockLoss, perplexity, token_weighted_perplexity};
use secateur::eval::squad::{
    FeatureLogits, Score, Totals, choose_answer, normalize_answer, score_v1, score_v2,
};
use serde_json::Value;

use crate::support::reference;

fn load(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(reference(name)).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|item| item.as_f64().unwrap()).collect()
}

fn classes(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|item| item.as_u64().unwrap() as u32).collect()
}

fn close(what: &str, ours: f64, theirs: &Value) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= 1e-9, "{what}: {ours} is not {theirs}");
}

#[test]
fn classification() {
    let cases = load("metrics/classification.json");
    let cases = cases.as_array().unwrap();
    assert!(!cases.is_empty());
    for (number, case) in cases.iter().enumerate() {
        let counts = Confusion::count(
            &classes(&case["predictions"]),
            &classes(&case["labels"]),
            case["classes"].as_u64().unwrap() as usize,
        )
        .unwrap();
        close(&format!("accuracy {number}"), counts.accuracy(), &case["accuracy"]);
        if !case["f1"].is_null() {
            close(&format!("f1 {number}"), counts.f1(1), &case["f1"]);
        }
        close(&format!("macro f1 {number}"), counts.macro_f1(), &case["f1_macro"]);
        close(&format!("matthews {number}"), counts.matthews(), &case["mcc"]);
    }
}

#[test]
fn regression() {
    let cases = load("metrics/regression.json");
    let cases = cases.as_array().unwrap();
    assert!(!cases.is_empty());
    for (number, case) in cases.iter().enumerate() {
        let (x, y) = (floats(&case["predictions"]), floats(&case["labels"]));
        for (name, ours) in [("pearson", pearson(&x, &y)), ("spearman", spearman(&x, &y))] {
            // A correlation that is undefined upstream (a constant list) is NaN here.
            if case[name].is_null() {
                assert!(ours.is_nan(), "{name} {number}: {ours} where it is undefined");
            } else {
                close(&format!("{name} {number}"), ours, &case[name]);
            }
        }
        if !case["ranks_predictions"].is_null() {
            assert_eq!(average_ranks(&x), floats(&case["ranks_predictions"]), "ranks {number}");
        }
    }
}

#[test]
fn squad_scores() {
    let file = load("metrics/squad.json");
    let (mut v1, mut v2, mut answerable, mut unanswerable) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for example in file["examples"].as_array().unwrap() {
        let id = example["id"].as_str().unwrap();
        let prediction = example["prediction"].as_str().unwrap();
        let answers: Vec<&str> =
            example["answers"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        assert_eq!(normalize_answer(prediction), example["normalized_prediction"].as_str().unwrap(), "{id}");
        let check = |version: &str, score: Score| {
            close(&format!("{id} {version} exact"), score.exact, &example[version]["exact"]);
            close(&format!("{id} {version} f1"), score.f1, &example[version]["f1"]);
        };
        let second = score_v2(prediction, &answers);
        check("v2", second);
        v2.push(second);
        if answers.is_empty() {
            unanswerable.push(second);
        } else {
            let first = score_v1(prediction, &answers);
            check("v1", first);
            v1.push(first);
            answerable.push(second);
        }
    }
    let groups =
        [("total_v1", v1), ("total_v2", v2), ("v2_has_answer", answerable), ("v2_no_answer", unanswerable)];
    for (name, scores) in groups {
        let totals = Totals::of(scores);
        assert_eq!(totals.questions as u64, file[name]["n"].as_u64().unwrap(), "{name}");
        close(&format!("{name} exact"), totals.exact, &file[name]["exact"]);
        close(&format!("{name} f1"), totals.f1, &file[name]["f1"]);
    }
}

#[test]
fn span_selection() {
    let cases = load("metrics/span_selection.json");
    let cases = cases.as_array().unwrap();
    assert!(!cases.is_empty());
    for (number, case) in cases.iter().enumerate() {
        let context = case["context"].as_str().unwrap();
        // The file counts characters, the engine bytes.
        let byte = |character: &Value| {
            let character = character.as_u64().unwrap() as usize;
            context.char_indices().nth(character).map_or(context.len(), |(byte, _)| byte) as u32
        };
        let features: Vec<_> = case["features"]
            .as_array()
            .unwrap()
            .iter()
            .map(|feature| {
                let offsets: Vec<Option<(u32, u32)>> = feature["offsets"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|pair| (!pair.is_null()).then(|| (byte(&pair[0]), byte(&pair[1]))))
                    .collect();
                (floats(&feature["start_logits"]), floats(&feature["end_logits"]), offsets)
            })
            .collect();
        let logits: Vec<FeatureLogits<'_, f64>> =
            features.iter().map(|(start, end, offsets)| FeatureLogits { start, end, offsets }).collect();
        let first = choose_answer(context, &logits, None).unwrap();
        assert_eq!(first.text, case["prediction_v1"].as_str().unwrap(), "case {number}, 1.1");
        let second = choose_answer(context, &logits, Some(0.0)).unwrap();
        assert_eq!(second.text, case["prediction_v2"].as_str().unwrap(), "case {number}, 2.0");
        close(&format!("case {number} null"), second.null_minus_best.unwrap(), &case["null_minus_best"]);
    }
}

#[test]
fn block_grouping() {
    let file = load("metrics/perplexity.json");
    let mut compared = 0;
    for (number, case) in file["groupings"].as_array().unwrap().iter().enumerate() {
        let lines: Vec<usize> = classes(&case["token_counts_per_line"]).iter().map(|n| *n as usize).collect();
        let block = case["block"].as_u64().unwrap() as usize;
        for (name, expected) in case["groupings"].as_object().unwrap() {
            let made = blocks(&lines, block, parse_grouping(name));
            let tokens: usize = made.iter().map(ExactSizeIterator::len).sum();
            let short = made.iter().filter(|range| range.len() < block).count();
            let what = format!("case {number}, {name}");
            assert_eq!(made.len() as u64, expected["blocks"].as_u64().unwrap(), "{what}: blocks");
            assert_eq!(tokens as u64, expected["tokens"].as_u64().unwrap(), "{what}: tokens");
            if let Some(expected) = expected["short_blocks"].as_u64() {
                assert_eq!(short as u64, expected, "{what}: short blocks");
            }
            compared += 1;
        }
    }
    assert!(compared >= 9);
}

/// `global`, `hf_drop(batch,workers)` or `hf_keep_short(batch,workers)`.
fn parse_grouping(name: &str) -> Grouping {
    let Some((kind, rest)) = name.split_once('(') else {
        assert_eq!(name, "global");
        return Grouping::Global;
    };
    let (batch, workers) = rest.trim_end_matches(')').split_once(',').unwrap();
    let keep_short = match kind {
        "hf_keep_short" => true,
        "hf_drop" => false,
        other => panic!("unknown grouping {other}"),
    };
    Grouping::Hf { batch: batch.parse().unwrap(), workers: workers.parse().unwrap(), keep_short }
}

#[test]
fn perplexity_is_exp_of_the_mean_block_loss() {
    let file = load("metrics/perplexity.json");
    let blocks: Vec<BlockLoss> =
        floats(&file["block_losses"]).into_iter().map(|mean| BlockLoss { mean, predicted: 511 }).collect();
    close("perplexity", perplexity(&blocks).unwrap(), &file["perplexity"]);
    // Blocks of one length weigh the same either way.
    close("weighted perplexity", token_weighted_perplexity(&blocks).unwrap(), &file["perplexity"]);
}
