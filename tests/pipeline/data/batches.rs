//! Batches: every token once, the same order after a resume, results back in their places.

use proptest::prelude::*;
use secateur::data::batch::{ModelLimits, check_limits};
use secateur::data::batcher::TrainOptions;
use secateur::data::{Batch, Cursor, EvaluationPlan, Example, Target, Targets, TrainBatcher, rows};
use secateur::eval::metrics::{average_ranks, pearson, spearman};

use super::files::write;
use crate::support::shared;

fn examples(lengths: &[usize]) -> Vec<Example> {
    let mut next = 0;
    lengths
        .iter()
        .enumerate()
        .map(|(row, length)| {
            let input_ids: Vec<i32> = (0..*length as i32).map(|t| next + t).collect();
            next += *length as i32;
            Example {
                token_type_ids: vec![row as i32 % 2; *length],
                input_ids,
                target: Target::Class(row as u32),
            }
        })
        .collect()
}

proptest! {
    #[test]
    fn an_epoch_holds_every_token_once(
        lengths in proptest::collection::vec(1usize..40, 1..80), batch_size in 1usize..20, extra in 0usize..100, seed: u64,
    ) {
        let rows = examples(&lengths);
        let token_budget = lengths.iter().max().unwrap() + extra;
        let options = TrainOptions { batch_size, token_budget, seed, drop_last: false };
        let mut batcher = TrainBatcher::new(lengths.clone(), options).unwrap();
        prop_assert_eq!(batcher.steps_per_epoch(), lengths.len().div_ceil(batch_size) as u64);
        let mut seen: Vec<i32> = Vec::new();
        let mut batch = Batch::default();
        for step in 0..batcher.steps_per_epoch() {
            let made = batcher.next_step();
            prop_assert_eq!(made.cursor, Cursor { epoch: 0, step });
            let last = step + 1 == batcher.steps_per_epoch();
            prop_assert!(made.examples() == batch_size || last && made.examples() == lengths.len() - step as usize * batch_size);
            for micro in &made.micro_batches {
                batch.fill(&rows, micro).unwrap();
                prop_assert!(batch.token_count() <= token_budget);
                prop_assert_eq!(&batch.rows, micro);
                prop_assert_eq!(*batch.cu_seqlens.last().unwrap() as usize, batch.token_count());
                for (place, row) in micro.iter().enumerate() {
                    let range = batch.cu_seqlens[place] as usize..batch.cu_seqlens[place + 1] as usize;
                    prop_assert_eq!(&batch.input_ids[range.clone()], &rows[*row].input_ids[..]);
                    prop_assert_eq!(&batch.token_type_ids[range], &rows[*row].token_type_ids[..]);
                }
                prop_assert_eq!(&batch.targets, &Targets::Classes(micro.iter().map(|row| *row as i32).collect()));
                seen.extend_from_slice(&batch.input_ids);
            }
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.iter().sum::<usize>() as i32).collect::<Vec<_>>());
        prop_assert_eq!(batcher.cursor(), Cursor { epoch: 1, step: 0 });
    }

    #[test]
    fn resuming_gives_the_uninterrupted_order(
        lengths in proptest::collection::vec(1usize..9, 1..50), batch_size in 1usize..12, stop in 0usize..40, seed: u64, drop_last: bool,
    ) {
        prop_assume!(!drop_last || lengths.len() >= batch_size);
        let options = TrainOptions { batch_size, token_budget: 20, seed, drop_last };
        let mut whole = TrainBatcher::new(lengths.clone(), options).unwrap();
        for _ in 0..stop {
            whole.next_step();
        }
        let saved = serde_json::to_string(&whole.cursor()).unwrap();
        let mut resumed = TrainBatcher::new(lengths, options).unwrap();
        resumed.seek(serde_json::from_str(&saved).unwrap()).unwrap();
        for _ in 0..2 * whole.steps_per_epoch() {
            prop_assert_eq!(whole.next_step(), resumed.next_step());
        }
        let beyond = resumed.seek(Cursor { epoch: 0, step: resumed.steps_per_epoch() });
        prop_assert!(beyond.is_err());
    }

    #[test]
    fn evaluation_returns_results_in_order(lengths in proptest::collection::vec(1usize..40, 1..80), extra in 0usize..100) {
        let budget = lengths.iter().max().unwrap() + extra;
        let plan = EvaluationPlan::new(&lengths, budget).unwrap();
        let flat: Vec<usize> = plan.batches.concat();
        prop_assert!(flat.windows(2).all(|pair| (lengths[pair[0]], pair[0]) < (lengths[pair[1]], pair[1])));
        prop_assert!(plan.batches.iter().all(|rows| rows.iter().map(|row| lengths[*row]).sum::<usize>() <= budget));
        let results = plan.batches.clone();
        prop_assert_eq!(plan.in_original_order(results).unwrap(), (0..lengths.len()).collect::<Vec<_>>());
        prop_assert!(plan.in_original_order(vec![vec![0usize; lengths.len() + 1]]).is_err());
    }

    #[test]
    fn spearman_sees_only_the_order(pairs in proptest::collection::vec((-20i32..20, -20i32..20), 2..60)) {
        let x: Vec<f64> = pairs.iter().map(|pair| pair.0 as f64).collect();
        let y: Vec<f64> = pairs.iter().map(|pair| pair.1 as f64).collect();
        let warped: Vec<f64> = x.iter().map(|value| (value / 5.0).exp() + value).collect();
        let (plain, moved) = (spearman(&x, &y), spearman(&warped, &y));
        prop_assert!(plain == moved || plain.is_nan() && moved.is_nan());
        prop_assert!(plain.is_nan() || (-1.0..=1.0).contains(&plain));
        // Ranks of n values sum to n (n + 1) / 2 whatever the ties.
        let n = x.len() as f64;
        prop_assert_eq!(average_ranks(&x).iter().sum::<f64>(), n * (n + 1.0) / 2.0);
        let reversed: Vec<f64> = x.iter().map(|value| -value).collect();
        let opposite = pearson(&x, &reversed);
        prop_assert!(opposite.is_nan() || (opposite + 1.0).abs() < 1e-12);
    }
}

#[test]
fn epochs_and_seeds_differ() {
    let order = |seed, epoch| {
        let options = TrainOptions { batch_size: 4, token_budget: 9, seed, drop_last: false };
        TrainBatcher::new(vec![1; 50], options).unwrap().epoch_order(epoch)
    };
    assert_eq!(order(1, 0), order(1, 0));
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
}

#[test]
fn refilling_allocates_nothing_once_grown() {
    let rows = examples(&[9, 3, 5, 7]);
    let mut batch = Batch::of(&rows, &[0, 1, 2, 3]).unwrap();
    let before = (batch.input_ids.as_ptr(), batch.input_ids.capacity(), batch.cu_seqlens.as_ptr());
    let Targets::Classes(classes) = &batch.targets else { panic!("not classes") };
    let classes = classes.as_ptr();
    batch.fill(&rows, &[3, 1]).unwrap();
    assert_eq!(before, (batch.input_ids.as_ptr(), batch.input_ids.capacity(), batch.cu_seqlens.as_ptr()));
    assert!(
        matches!(&batch.targets, Targets::Classes(again) if again.as_ptr() == classes && again == &[3, 1])
    );
    assert_eq!((batch.longest_row(), batch.row_count(), batch.token_count()), (7, 2, 10));
}

#[test]
fn impossible_batches_are_errors() {
    let mut rows = examples(&[2, 2]);
    assert!(Batch::of(&rows, &[]).is_err());
    assert!(Batch::of(&rows, &[2]).is_err());
    rows[1].target = Target::Value(1.0);
    assert!(Batch::of(&rows, &[0, 1]).unwrap_err().to_string().contains("row 1"));
    rows[1].input_ids.clear();
    assert!(Batch::of(&rows, &[1]).is_err());
    let options = TrainOptions { batch_size: 2, token_budget: 4, seed: 0, drop_last: false };
    assert!(TrainBatcher::new(vec![], options).is_err());
    assert!(TrainBatcher::new(vec![5], options).unwrap_err().to_string().contains("example 0 has 5 tokens"));
    assert!(TrainBatcher::new(vec![1], TrainOptions { batch_size: 0, ..options }).is_err());
    assert!(TrainBatcher::new(vec![1], TrainOptions { drop_last: true, ..options }).is_err());
    assert!(EvaluationPlan::new(&[], 4).is_err());
}

#[test]
fn limits_of_a_model_are_checked() {
    let rows = examples(&[3, 4]);
    let limits = ModelLimits { vocabulary_size: 7, max_positions: 4, segments: 2 };
    check_limits(&rows, &limits).unwrap();
    Batch::of(&rows, &[1, 0]).unwrap().check(&limits).unwrap();
    let fails = |limits: ModelLimits| {
        let text = check_limits(&rows, &limits).unwrap_err().to_string();
        assert_eq!(text, Batch::of(&rows, &[0, 1]).unwrap().check(&limits).unwrap_err().to_string());
        text
    };
    assert!(fails(ModelLimits { vocabulary_size: 6, ..limits }).contains("token 3 is id 6"));
    assert!(fails(ModelLimits { max_positions: 3, ..limits }).contains("4 tokens"));
    assert!(fails(ModelLimits { segments: 1, ..limits }).contains("segment 1"));
    check_limits(&rows, &ModelLimits { segments: 0, ..limits }).unwrap();
}

#[test]
fn rows_of_token_ids_are_read_from_both_formats() {
    let Some(models) = shared("fixtures/models") else { return };
    for (model, kind) in [("bert_cls", 0), ("bert_qa", 1), ("bert_reg", 2), ("gpt2_lm", 3)] {
        let read = rows::read(&models.join(model).join("inputs.safetensors")).unwrap();
        assert_eq!(read.len(), 24, "{model}");
        assert!(
            read.iter().all(|row| matches!(
                (&row.target, kind),
                (Target::Class(_), 0) | (Target::Span { .. }, 1) | (Target::Value(_), 2) | (Target::None, 3)
            )),
            "{model}: {:?}",
            read[0].target
        );
        let mut object = serde_json::json!({
            "input_ids": read.iter().map(|row| row.input_ids.clone()).collect::<Vec<_>>(),
            "token_type_ids": read.iter().map(|row| row.token_type_ids.clone()).collect::<Vec<_>>(),
        });
        for row in &read {
            let mut push = |name: &str, value: serde_json::Value| {
                let list =
                    object.as_object_mut().unwrap().entry(name).or_insert_with(|| serde_json::json!([]));
                list.as_array_mut().unwrap().push(value);
            };
            match row.target {
                Target::Class(class) => push("labels", class.into()),
                Target::Value(value) => push("labels", (value as f64).into()),
                Target::Span { start, end } => {
                    push("start_positions", start.into());
                    push("end_positions", end.into());
                }
                _ => {}
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let path = write(directory.path(), "rows.json", object.to_string().as_bytes());
        assert_eq!(rows::read(&path).unwrap(), read, "{model}");
    }
}
