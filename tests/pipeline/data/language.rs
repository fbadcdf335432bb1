//! Text for language modelling: blocks, masks and sampling.

use proptest::prelude::*;
use secateur::data::masking::Masker;
use secateur::data::sampling::{choose_rows, choose_rows_with_replacement, choose_tokens, read_indices};
use secateur::data::text::{self, Grouping, blocks, causal_blocks, masked_blocks};
use secateur::data::{
    Batch, Dataset, Example, LoadOptions, Split, Target, Targets, Task, Tokenizer, agreement,
};

use super::files::{small_tokenizer, write};
use crate::support::shared;

#[test]
fn lines_are_joined_without_any_mark() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "wiki.valid.raw.gz", b"the dog\r\n\nsees the cat\n.");
    let tokenizer = small_tokenizer();
    let rows = causal_blocks(&path, &tokenizer, 3, Grouping::Global).unwrap();
    let ids = |text: &str| -> Vec<i32> {
        tokenizer.pieces(text).unwrap().ids.iter().map(|id| *id as i32).collect()
    };
    assert_eq!(
        rows.iter().map(|row| row.input_ids.clone()).collect::<Vec<_>>(),
        [ids("the dog sees"), ids("the cat .")]
    );
    assert!(rows.iter().all(|row| row.target == Target::NextToken));
    let batch = Batch::of(&rows, &[1, 0]).unwrap();
    let Targets::Tokens { positions, labels } = &batch.targets else { panic!("not tokens") };
    assert_eq!(positions, &[0, 1, 3, 4]);
    assert_eq!(labels, &[ids("cat .")[0], ids(".")[0], ids("dog")[0], ids("sees")[0]]);
    // Shards of one line each lose or keep what is shorter than a block.
    let short = Grouping::Hf { batch: 1000, workers: 4, keep_short: true };
    let lengths = |rows: &[Example]| rows.iter().map(Example::length).collect::<Vec<_>>();
    assert_eq!(lengths(&causal_blocks(&path, &tokenizer, 3, short).unwrap()), [2, 3]);
    let masked = masked_blocks(&path, &tokenizer, 4).unwrap();
    assert_eq!(masked[0].input_ids[1..3], ids("the dog")[..]);
    assert_eq!((masked[0].input_ids[0], masked[0].input_ids[3]), (2, 3));
    assert_eq!(masked.len(), 3);
}

proptest! {
    /// Blocks do not overlap, are in order, and lose less than a block for each batch of lines.
    #[test]
    fn blocks_cover_the_text_once(
        lines in proptest::collection::vec(0usize..50, 0..60), block in 1usize..40, batch in 1usize..20, workers in 1usize..9,
    ) {
        let total: usize = lines.iter().sum();
        prop_assert_eq!(blocks(&lines, block, Grouping::Global).len(), total / block);
        for keep_short in [false, true] {
            let made = blocks(&lines, block, Grouping::Hf { batch, workers, keep_short });
            prop_assert!(made.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert!(made.iter().all(|range| range.end <= total && !range.is_empty() && range.len() <= block));
            prop_assert!(keep_short || made.iter().all(|range| range.len() == block));
            let kept: usize = made.iter().map(ExactSizeIterator::len).sum();
            let groups = (0..workers).map(|w| (lines.len() / workers + usize::from(w < lines.len() % workers)).div_ceil(batch)).sum::<usize>();
            prop_assert!(total - kept <= groups * (block - 1));
        }
        // One worker and one batch of everything is the global stream.
        let one = blocks(&lines, block, Grouping::Hf { batch: 1000, workers: 1, keep_short: false });
        prop_assert_eq!(one, blocks(&lines, block, Grouping::Global));
    }

    #[test]
    fn sampling_is_distinct_in_range_and_reproducible(
        lengths in proptest::collection::vec(0usize..30, 1..40), count in 0usize..200, seed: u64,
    ) {
        let rows = choose_rows(lengths.len(), count, seed);
        prop_assert_eq!(rows.len(), count.min(lengths.len()));
        let distinct: std::collections::BTreeSet<_> = rows.iter().collect();
        prop_assert_eq!(distinct.len(), rows.len());
        prop_assert!(rows.iter().all(|row| *row < lengths.len()));
        prop_assert_eq!(&rows, &choose_rows(lengths.len(), count, seed));
        let repeated = choose_rows_with_replacement(lengths.len(), count, seed);
        prop_assert!(repeated.len() == count && repeated.iter().all(|row| *row < lengths.len()));

        let total: usize = lengths.iter().sum();
        let sample = choose_tokens(&lengths, count, seed);
        prop_assert_eq!(sample.flat.len(), count.min(total));
        prop_assert!(sample.flat.windows(2).all(|pair| pair[0] < pair[1]));
        // Rows and flat positions say the same.
        let starts: Vec<usize> = lengths.iter().scan(0, |sum, length| { let start = *sum; *sum += length; Some(start) }).collect();
        let again: Vec<usize> = sample.rows.iter().flat_map(|(row, tokens)| tokens.iter().map(|t| {
            assert!(*t < lengths[*row]);
            starts[*row] + t
        })).collect();
        prop_assert_eq!(again, sample.flat);
    }
}

#[test]
fn every_token_is_as_likely_as_any_other() {
    let lengths = [3, 0, 5, 2];
    let mut counts = [0usize; 10];
    let draws = 4000;
    for seed in 0..draws {
        for position in choose_tokens(&lengths, 4, seed).flat {
            counts[position] += 1;
        }
    }
    // Each of 10 tokens is drawn with probability 0.4; five standard deviations.
    let bound = 5.0 * (draws as f64 * 0.4 * 0.6).sqrt();
    assert!(counts.iter().all(|count| (*count as f64 - 0.4 * draws as f64).abs() < bound), "{counts:?}");
}

#[test]
fn index_files_are_read_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "a.json", b"[3, 0, 3]");
    assert_eq!(read_indices(&path, 4).unwrap(), [3, 0, 3]);
    assert!(read_indices(&path, 3).unwrap_err().to_string().contains("entry 1"));
    let path = write(directory.path(), "b.txt", b"1 2\n\n0\n");
    assert_eq!(read_indices(&path, 3).unwrap(), [1, 2, 0]);
    let path = write(directory.path(), "c.txt", b"1\n-2\n");
    assert!(read_indices(&path, 3).unwrap_err().to_string().contains("line 2"));
    let path = write(directory.path(), "d.txt", b"");
    assert!(read_indices(&path, 3).is_err());
}

#[test]
fn masks_have_the_published_shares_and_depend_on_seed_epoch_and_row() {
    let tokenizer = small_tokenizer();
    let special = tokenizer.special();
    let (cls, sep, mask) =
        (special.cls.unwrap() as i32, special.sep.unwrap() as i32, special.mask.unwrap() as i32);
    let mut input_ids = vec![cls];
    input_ids.extend((0..998).map(|i| 13 + i % 60));
    input_ids.push(sep);
    let row = Example { token_type_ids: vec![0; 1000], input_ids, target: Target::None };
    let masker = Masker::new(&tokenizer, 5).unwrap();
    let (mut predicted, mut masked, mut same) = (0usize, 0usize, 0usize);
    let rows = 100;
    for index in 0..rows {
        let made = masker.mask(&row, index, 0);
        let Target::Masked { positions, labels } = &made.target else { panic!("no mask") };
        assert!(positions.windows(2).all(|pair| pair[0] < pair[1]));
        for (position, label) in positions.iter().zip(labels) {
            let position = *position as usize;
            assert!(position > 0 && position < 999);
            assert_eq!(*label, row.input_ids[position]);
            masked += usize::from(made.input_ids[position] == mask);
            same += usize::from(made.input_ids[position] == *label);
        }
        predicted += positions.len();
        let untouched = (0..1000).filter(|t| !positions.contains(&(*t as u32)));
        assert!(untouched.into_iter().all(|t| made.input_ids[t] == row.input_ids[t]));
    }
    let near = |count: usize, of: usize, share: f64| {
        let bound = 5.0 * (of as f64 * share * (1.0 - share)).sqrt();
        assert!((count as f64 - of as f64 * share).abs() < bound, "{count} of {of} is not {share}");
    };
    near(predicted, 998 * rows, 0.15);
    near(masked, predicted, 0.8);
    // 10 % are kept, and a random replacement is the token itself now and then (one of 80 ordinary tokens).
    near(same, predicted, 0.1 + 0.1 / (tokenizer.vocabulary_size() - special.ids().len()) as f64);
    assert_eq!(masker.mask(&row, 3, 1), masker.mask(&row, 3, 1));
    for other in [
        masker.mask(&row, 4, 1),
        masker.mask(&row, 3, 2),
        Masker::new(&tokenizer, 6).unwrap().mask(&row, 3, 1),
    ] {
        assert_ne!(masker.mask(&row, 3, 1), other);
    }
    // Even one token is predicted.
    let tiny = Example { input_ids: vec![cls, 20, sep], token_type_ids: vec![0; 3], target: Target::None };
    for index in 0..50 {
        assert!(
            matches!(&masker.mask(&tiny, index, 0).target, Target::Masked { positions, .. } if positions == &[1])
        );
    }
}

#[test]
fn a_masked_task_is_masked_anew_each_epoch() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "train.txt", "the dog sees the cat . ".repeat(40).as_bytes());
    let mut task = Task::by_name("mlm").unwrap();
    let options = LoadOptions { max_length: Some(32), ..LoadOptions::default() };
    let set = task.load(directory.path(), Split::Train, &small_tokenizer(), &options).unwrap();
    let fill = |epoch| {
        let mut batch = Batch::default();
        set.fill(&mut batch, &[1, 3], epoch).unwrap();
        batch
    };
    let (first, second) = (fill(0), fill(1));
    assert_eq!(first, fill(0));
    assert_ne!(first.targets, second.targets);
    let Targets::Tokens { positions, labels } = &first.targets else { panic!("not tokens") };
    for (position, label) in positions.iter().zip(labels) {
        let (row, inside) = (*position as usize / 32, *position as usize % 32);
        assert_eq!(set.examples[[1, 3][row]].input_ids[inside], *label);
    }
    assert!(set.fill(&mut Batch::default(), &[999], 0).is_err());
}

#[test]
fn the_corpus_of_the_built_in_task_is_masked_by_sentence() {
    let sizes = agreement::Sizes { train: 0, dev: 20, test: 20 };
    let corpus = agreement::corpus(50, &sizes, 2);
    let tokenizer = agreement::tokenizer().unwrap();
    let set = Dataset::masked(text::sentences(&corpus, &tokenizer, 64).unwrap(), &tokenizer, 1).unwrap();
    assert_eq!(set.examples.len(), 50);
    let mut batch = Batch::default();
    set.fill(&mut batch, &[7, 9], 3).unwrap();
    assert_eq!(batch.row_count(), 2);
    assert_eq!(
        batch.longest_row(),
        2 + [7, 9].map(|row: usize| corpus[row].split(' ').count()).into_iter().max().unwrap()
    );
    assert!(!batch.targets.is_empty());
    assert!(text::sentences(&[String::new()], &tokenizer, 64).is_err());
}

/// Token and block counts of the raw WikiText-2 test set with the GPT-2 tokenizer, line by line.
#[test]
fn real_text_is_cut_into_blocks() {
    let (Some(data), Some(directory)) = (shared("data/wikitext-2"), shared("data/tokenizers/gpt2")) else {
        return;
    };
    let tokenizer = Tokenizer::from_directory(&directory, "gpt2").unwrap();
    let mut task = Task::by_name("lm").unwrap();
    let path = data.join("wiki.test.raw.gz");
    let set = task.load(&path, Split::Test, &tokenizer, &LoadOptions::default()).unwrap();
    let tokens: usize = set.lengths().iter().sum();
    println!("{} blocks, {tokens} tokens", set.examples.len());
    assert!(set.lengths().iter().all(|length| *length == 512));
    let all: usize =
        secateur::data::text::tokenize_lines(&path, &tokenizer).unwrap().iter().map(Vec::len).sum();
    assert_eq!(set.examples.len(), all / 512);
    let mut options = LoadOptions {
        grouping: Grouping::Hf { batch: 1000, workers: 64, keep_short: true },
        ..LoadOptions::default()
    };
    let many = task.load(&path, Split::Test, &tokenizer, &options).unwrap();
    options.grouping = Grouping::Hf { batch: 1000, workers: 1, keep_short: true };
    let few = task.load(&path, Split::Test, &tokenizer, &options).unwrap();
    println!("64 workers keep {} blocks, one keeps {}", many.examples.len(), few.examples.len());
    assert!(many.examples.len() < few.examples.len());
}
