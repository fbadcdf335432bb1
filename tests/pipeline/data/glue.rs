//! GLUE files: the official layout, its quirks, and the counts of the published sets.

use secateur::Error;
use secateur::data::glue::{GlueTask, TASKS};
use secateur::data::{LoadOptions, Split, Target, Task, Tokenizer};

use super::files::{small_tokenizer, write};
use crate::support::shared;

fn read(
    name: &str,
    split: Split,
    data: &std::path::Path,
) -> (Vec<secateur::data::TextRow>, secateur::data::ReadReport) {
    let task = GlueTask::by_name(name).unwrap();
    task.read(&task.find(data, split).unwrap()).unwrap()
}

#[test]
fn quotation_marks_are_ordinary_and_the_byte_order_mark_is_not_a_column_name() {
    let directory = tempfile::tempdir().unwrap();
    let text = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\t\"He said\tshe \"\"said\"\" .\r\n\
                0\t9\t9\tA \" alone\tB\r\n";
    write(directory.path(), "MRPC/train.tsv", text.as_bytes());
    // The folder above is found as well as the folder itself.
    for data in [directory.path().to_path_buf(), directory.path().join("MRPC")] {
        let (rows, report) = read("mrpc", Split::Train, &data);
        assert_eq!((rows.len(), report.bad.len()), (2, 0));
        assert_eq!(rows[0].first, "\"He said");
        assert_eq!(rows[0].second.as_deref(), Some("she \"\"said\"\" ."));
        assert_eq!((rows[0].target.clone(), rows[1].target.clone()), (Target::Class(1), Target::Class(0)));
    }
}

#[test]
fn cola_has_no_header_and_sampled_files_are_found() {
    let directory = tempfile::tempdir().unwrap();
    write(
        directory.path(),
        "train_subset.tsv.gz",
        b"gj04\t1\t\tA fine sentence.\ngj04\t0\t*\tSentence fine a.\n",
    );
    let (rows, _) = read("cola", Split::Train, directory.path());
    assert_eq!((rows[0].first.as_str(), &rows[0].target), ("A fine sentence.", &Target::Class(1)));
    assert_eq!((rows[1].first.as_str(), &rows[1].target), ("Sentence fine a.", &Target::Class(0)));
    // The full file is preferred.
    write(directory.path(), "train.tsv", b"gj04\t1\t\tOnly one.\n");
    assert_eq!(read("cola", Split::Train, directory.path()).0.len(), 1);
}

#[test]
fn bad_rows_are_counted_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut text = b"index\tquestion\tsentence\tlabel\n".to_vec();
    text.extend_from_slice(b"0\tq?\ts.\tentailment\n1\tq?\ts.\tmaybe\n2\tq?\n3\tq\xff?\ts.\tentailment\n4\t\ts.\tentailment\n5\tq?\ts.\tnot_entailment\n");
    write(directory.path(), "dev.tsv", &text);
    let (rows, report) = read("qnli", Split::Dev, directory.path());
    assert_eq!((rows.len(), report.rows), (2, 2));
    let lines: Vec<usize> = report.bad.iter().map(|bad| bad.line).collect();
    assert_eq!(lines, [3, 4, 5, 6]);
    let shown = report.to_string();
    for part in [
        "dev.tsv: 2 rows",
        "line 3: label \"maybe\"",
        "line 4: 2 fields",
        "line 5: not valid UTF-8",
        "line 6: empty text",
    ] {
        assert!(shown.contains(part), "{part:?} not in {shown:?}");
    }
    assert!(report.require_clean().unwrap_err().to_string().contains("line 3"));
}

#[test]
fn unknown_tasks_and_missing_files_are_usage_errors() {
    let Err(Error::Usage(text)) = Task::by_name("imdb") else { panic!("imdb is not a task") };
    assert!(text.contains("mrpc") && text.contains("agreement"), "{text}");
    let directory = tempfile::tempdir().unwrap();
    for task in TASKS {
        let error = task.find(directory.path(), Split::Train).unwrap_err();
        assert!(matches!(&error, Error::Usage(text) if text.contains("train.tsv")), "{error}");
    }
}

/// Counts of the published data sets: rows and rows of each class.
#[test]
fn real_files_have_the_published_counts() {
    let Some(data) = shared("data/glue") else { return };
    let counts: [(&str, Split, &[usize]); 19] = [
        ("cola", Split::Train, &[2528, 6023]),
        ("cola", Split::Dev, &[322, 721]),
        ("mrpc", Split::Train, &[1194, 2474]),
        ("mrpc", Split::Dev, &[129, 279]),
        ("mrpc", Split::Test, &[578, 1147]),
        ("rte", Split::Train, &[1249, 1241]),
        ("rte", Split::Dev, &[146, 131]),
        ("sst-2", Split::Train, &[29780, 37569]),
        ("sst-2", Split::Dev, &[428, 444]),
        ("sst-2", Split::Test, &[917, 904]),
        ("qnli", Split::Train, &[6092, 6004]),
        ("qnli", Split::Dev, &[2702, 2761]),
        ("qqp", Split::Train, &[36063, 24804]),
        ("qqp", Split::Dev, &[4871, 2729]),
        ("wnli", Split::Train, &[323, 312]),
        ("wnli", Split::Dev, &[40, 31]),
        ("mnli", Split::Train, &[7637, 7644, 7667]),
        ("mnli", Split::Dev, &[3479, 3123, 3213]),
        ("mnli-mm", Split::Dev, &[346, 319, 335]),
    ];
    for (name, split, expected) in counts {
        let (rows, report) = read(name, split, &data);
        let mut found = vec![0; expected.len()];
        for row in &rows {
            let Target::Class(class) = row.target else { panic!("{name}: {:?}", row.target) };
            found[class as usize] += 1;
        }
        assert_eq!(found, expected, "{report}");
        assert!(report.bad.is_empty(), "{report}");
    }
    for (split, expected, mean) in
        [(Split::Train, 5749, 2.70), (Split::Dev, 1500, 2.36), (Split::Test, 1379, 2.61)]
    {
        let (rows, report) = read("sts-b", split, &data);
        assert_eq!((rows.len(), report.bad.len()), (expected, 0), "{report}");
        let value = |target: &Target| {
            if let Target::Value(value) = target { *value as f64 } else { panic!("{target:?}") }
        };
        let values: Vec<f64> = rows.iter().map(|row| value(&row.target)).collect();
        assert!(values.iter().all(|value| (0.0..=5.0).contains(value)));
        assert!((values.iter().sum::<f64>() / values.len() as f64 - mean).abs() < 0.005, "{split}");
    }
}

/// Mean development-set lengths with BERT's tokenizer are the T of published FLOP counts, special tokens included.
#[test]
fn mean_lengths_are_the_published_ones() {
    let (Some(data), Some(directory)) = (shared("data/glue"), shared("data/tokenizers/bert-base-uncased"))
    else {
        return;
    };
    let tokenizer = Tokenizer::from_directory(&directory, "bert").unwrap();
    for name in ["mrpc", "sts-b", "sst-2", "rte", "cola", "qnli", "mnli"] {
        let mut task = Task::by_name(name).unwrap();
        let set = task.load(&data, Split::Dev, &tokenizer, &LoadOptions::default()).unwrap();
        let published = secateur::data::task::published_sequence_length(name).unwrap();
        println!("{name}: mean length {:.2}, published {published}", set.mean_length());
        // Published to two decimals, some cut and some rounded.
        assert!(
            (set.mean_length() - published).abs() < 0.015,
            "{name}: {} is not {published}",
            set.mean_length()
        );
        assert!(set.examples.iter().all(|example| example.length() <= task.max_length));
    }
}

#[test]
fn the_built_in_task_needs_no_files() {
    let tokenizer = secateur::data::agreement::tokenizer().unwrap();
    let mut task = Task::by_name("agreement").unwrap();
    let nowhere = std::path::Path::new("/nowhere");
    let options = LoadOptions { limit: Some(100), seed: 4, ..LoadOptions::default() };
    let set = task.load(nowhere, Split::Dev, &tokenizer, &options).unwrap();
    assert_eq!((set.examples.len(), task.outputs()), (100, Some(2)));
    assert_eq!(set.examples.iter().filter(|example| example.target == Target::Class(1)).count(), 50);
    assert_eq!(set.examples, task.load(nowhere, Split::Dev, &tokenizer, &options).unwrap().examples);
}

#[test]
fn tables_infer_their_classes_from_training_and_hold_others_to_them() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "train.csv", b"label,text\n10,\"the dog, the cat\"\n2,\"two\nlines\"\n10,dog\n");
    write(
        directory.path(),
        "dev.jsonl.gz",
        b"{\"text\": \"cat\", \"label\": 2}\n{\"text\": \"cat\", \"label\": \"3\"}\n\n{\"label\": 2}\n",
    );
    let tokenizer = small_tokenizer();
    let mut task = Task::by_name("table").unwrap();
    let train = task.load(directory.path(), Split::Train, &tokenizer, &LoadOptions::default()).unwrap();
    assert_eq!(task.labels, ["2", "10"]);
    assert_eq!(task.outputs(), Some(2));
    let targets: Vec<Target> = train.examples.iter().map(|example| example.target.clone()).collect();
    assert_eq!(targets, [Target::Class(1), Target::Class(0), Target::Class(1)]);
    let dev = task.load(directory.path(), Split::Dev, &tokenizer, &LoadOptions::default()).unwrap();
    assert_eq!(dev.examples.len(), 1);
    assert_eq!(dev.report.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2, 4]);

    write(directory.path(), "train.tsv", b"text\tlabel\na \"b\t1.5\nc\tnan\n");
    let mut regression = Task::table_regression();
    let values = regression
        .load(&directory.path().join("train.tsv"), Split::Train, &tokenizer, &LoadOptions::default())
        .unwrap();
    assert_eq!(values.examples[0].target, Target::Value(1.5));
    assert_eq!(values.report.bad[0].line, 3);
}
