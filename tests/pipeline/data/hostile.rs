//! Damaged and contradictory files: each is one error that names the file, never a panic and never a silent skip.

use std::collections::HashMap;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use secateur::data::glue::GlueTask;
use secateur::data::table::{LabelSet, TableColumns};
use secateur::data::text::{Grouping, causal_blocks, masked_blocks};
use secateur::data::{LoadOptions, Split, Task, rows, sampling, squad, table};
use secateur::{Error, Result};

use super::files::{compress, small_tokenizer, write};

/// The error text, checked to name the file.
fn failure<T: std::fmt::Debug>(result: Result<T>, path: &Path) -> String {
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains(path.file_name().unwrap().to_str().unwrap()),
        "{text:?} does not name {}",
        path.display()
    );
    text
}

#[test]
fn glue_files() {
    let directory = tempfile::tempdir().unwrap();
    let rte = GlueTask::by_name("rte").unwrap();
    let path = write(directory.path(), "train.tsv", b"");
    assert!(failure(rte.read(&path), &path).contains("empty"));
    let path = write(directory.path(), "train.tsv", b"index\tsentence1\tsentence2\tlabel\n");
    assert!(failure(rte.read(&path), &path).contains("no rows"));
    let path = write(directory.path(), "train.tsv", b"index\tsentence1\tlabel\n0\ta\tentailment\n");
    assert!(failure(rte.read(&path), &path).contains("line 1: no column \"sentence2\""));
    let path =
        write(directory.path(), "train.tsv", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n1\ta\n");
    let text = failure(rte.read(&path), &path);
    assert!(text.contains("line 2: label \"yes\"") && text.contains("line 3: 2 fields"), "{text}");
    let path = write(directory.path(), "train.tsv", b"index\xff\n");
    assert!(failure(rte.read(&path), &path).contains("line 1"));
    let whole = compress(&b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n".repeat(50));
    let path = directory.path().join("dev.tsv.gz");
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    assert!(failure(rte.read(&path), &path).contains("gzip"));
    std::fs::write(&path, b"not gzip at all").unwrap();
    assert!(failure(rte.read(&path), &path).contains("gzip"));
    assert!(matches!(rte.read(&directory.path().join("nothing.tsv")), Err(Error::Io { .. })));
}

#[test]
fn tables() {
    let directory = tempfile::tempdir().unwrap();
    let columns = TableColumns::default();
    let read = |path: &Path, labels: &LabelSet| failure(table::read(path, &columns, labels), path);
    let path = write(directory.path(), "a.csv", b"");
    assert!(read(&path, &LabelSet::Infer).contains("empty"));
    let path = write(directory.path(), "a.csv", b"text,Label\nx,1\n");
    assert!(read(&path, &LabelSet::Infer).contains("\"label\""));
    let path = write(directory.path(), "a.csv", b"text,label\nx\n\xff,1\n");
    let text = read(&path, &LabelSet::Infer);
    assert!(text.contains("line 2") && text.contains("line 3: not valid UTF-8"), "{text}");
    let path = write(directory.path(), "a.csv", b"text,label\nx,3\n");
    assert!(read(&path, &LabelSet::Classes(vec!["1".into()])).contains("line 2: label \"3\" is none of 1"));
    let path = write(directory.path(), "a.jsonl", b"{\"text\": \"x\"\n[1]\n{\"text\": [], \"label\": 1}\n");
    let text = read(&path, &LabelSet::Infer);
    assert!(text.contains("line 1") && text.contains("line 2") && text.contains("line 3"), "{text}");
    let path = write(directory.path(), "a.parquet", b"PAR1");
    assert!(matches!(table::read(&path, &columns, &LabelSet::Infer), Err(Error::Usage(_))));
    // One class cannot be learnt.
    let path = write(directory.path(), "a.tsv", b"text\tlabel\nx\t1\ny\t1\n");
    let loaded = Task::by_name("table").unwrap().load(
        &path,
        Split::Train,
        &small_tokenizer(),
        &LoadOptions::default(),
    );
    assert!(failure(loaded, &path).contains("only one class"));
}

#[test]
fn squad_files() {
    let directory = tempfile::tempdir().unwrap();
    for (content, part) in [
        (&b""[..], "not SQuAD JSON"),
        (b"{\"data\": [", "not SQuAD JSON"),
        (b"{\"data\": [{\"paragraphs\": [{\"qas\": []}]}]}", "context"),
        (b"{\"data\": []}", "no rows"),
        (b"{\"data\": [{\"paragraphs\": [{\"context\": \"dog\", \"qas\": [{\"id\": \"q\", \"question\": \"who?\", \"answers\": [{\"text\": \"dog\", \"answer_start\": 77}]}]}]}]}", "question 1: q: answer \"dog\""),
        (b"{\"data\": [{\"paragraphs\": [{\"context\": \"dog\", \"qas\": [{\"id\": \"q\", \"question\": \"who?\", \"answers\": [{\"text\": \"dog\", \"answer_start\": -1}]}]}]}]}", "not SQuAD JSON"),
        (b"\n{\"data\": \"\xc3\x28\"}", "line 2: not valid UTF-8"),
    ] {
        let path = write(directory.path(), "dev-v1.1.json", content);
        let text = failure(squad::read(&path, false), &path);
        assert!(text.contains(part), "{part:?} not in {text:?}");
    }
    let load = |options: LoadOptions| {
        Task::by_name("squad").unwrap().load(directory.path(), Split::Dev, &small_tokenizer(), &options)
    };
    write(directory.path(), "dev-v1.1.json", b"{\"data\": [{\"paragraphs\": [{\"context\": \"dog dog dog dog\", \"qas\": [{\"id\": \"q\", \"question\": \"who?\", \"answers\": [{\"text\": \"dog\", \"answer_start\": 0}]}]}]}]}");
    assert!(load(LoadOptions { max_length: Some(6), ..LoadOptions::default() }).is_err());
    std::fs::remove_file(directory.path().join("dev-v1.1.json")).unwrap();
    assert!(matches!(load(LoadOptions::default()), Err(Error::Usage(_))));
    write(directory.path(), "dev-v1.1-a.json", b"{}");
    write(directory.path(), "dev-v1.1-b.json", b"{}");
    assert!(load(LoadOptions::default()).unwrap_err().to_string().contains("several"));
}

#[test]
fn texts() {
    let directory = tempfile::tempdir().unwrap();
    let tokenizer = small_tokenizer();
    let blocks = |path: &Path| failure(causal_blocks(path, &tokenizer, 8, Grouping::Global), path);
    let path = write(directory.path(), "train.txt", b"\n \n");
    assert!(blocks(&path).contains("no text"));
    let path = write(directory.path(), "train.txt", b"the dog\n\n\xfe\n");
    assert!(blocks(&path).contains("line 3: not valid UTF-8"));
    let path = write(directory.path(), "train.txt", b"the dog\n");
    assert!(blocks(&path).contains("2 tokens do not fill one block of 8"));
    assert!(failure(masked_blocks(&path, &tokenizer, 9), &path).contains("block of 7"));
    assert!(masked_blocks(&path, &tokenizer, 2).is_err());
    assert!(causal_blocks(&path, &tokenizer, 1, Grouping::Global).is_err());
    let none = Grouping::Hf { batch: 0, workers: 1, keep_short: true };
    assert!(causal_blocks(&path, &tokenizer, 2, none).is_err());
}

fn safetensors(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    safetensors::serialize(&views, None).unwrap()
}

fn integers(name: &'static str, values: &[i32]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    (name, Dtype::I32, vec![values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

#[test]
fn token_rows_in_safetensors() {
    let directory = tempfile::tempdir().unwrap();
    let ids = || integers("input_ids", &[1, 2, 3, 4]);
    let bounds = || integers("cu_seqlens", &[0, 1, 4]);
    let good = write(directory.path(), "good.safetensors", &safetensors(&[ids(), bounds()]));
    assert_eq!(rows::read(&good).unwrap().len(), 2);
    let cases: Vec<(Vec<_>, &str)> = vec![
        (vec![bounds()], "no tensor \"input_ids\""),
        (vec![ids()], "no tensor \"cu_seqlens\""),
        (vec![ids(), integers("cu_seqlens", &[0, 3, 2, 4])], "row 1"),
        (vec![ids(), integers("cu_seqlens", &[0, 0, 4])], "row 0"),
        (vec![ids(), integers("cu_seqlens", &[0, 5])], "4 tokens"),
        (vec![ids(), integers("cu_seqlens", &[])], "4 tokens"),
        (vec![ids(), integers("cu_seqlens", &[1, 4])], "from 0"),
        (vec![integers("input_ids", &[1, -2, 3, 4]), bounds()], "row 1 of input_ids"),
        (vec![ids(), bounds(), integers("token_type_ids", &[0])], "token_type_ids"),
        (vec![ids(), bounds(), integers("labels", &[0])], "1 labels for 2 rows"),
        (vec![ids(), bounds(), integers("labels", &[0, -1])], "row 1 has the class -1"),
        (vec![ids(), bounds(), integers("start_positions", &[0, 0])], "come together"),
        (
            vec![ids(), bounds(), integers("start_positions", &[0, 2]), integers("end_positions", &[0, 3])],
            "row 1 of 3 tokens",
        ),
        (vec![("input_ids", Dtype::F32, vec![4], vec![0; 16]), bounds()], "F32"),
        (vec![("input_ids", Dtype::I32, vec![2, 2], vec![0; 16]), bounds()], "one dimension"),
        (
            vec![ids(), bounds(), ("labels", Dtype::F32, vec![2], f32::NAN.to_le_bytes().repeat(2))],
            "row 0 has the value NaN",
        ),
    ];
    for (tensors, part) in cases {
        let path = write(directory.path(), "bad.safetensors", &safetensors(&tensors));
        let text = failure(rows::read(&path), &path);
        assert!(text.contains(part), "{part:?} not in {text:?}");
    }
    let bytes = std::fs::read(&good).unwrap();
    for cut in 0..bytes.len() {
        let path = write(directory.path(), "cut.safetensors", &bytes[..cut]);
        failure(rows::read(&path), &path);
    }
}

#[test]
fn token_rows_in_json() {
    let directory = tempfile::tempdir().unwrap();
    for (content, part) in [
        (&b"[]"[..], "not a JSON object"),
        (b"{", "not valid JSON"),
        (b"{}", "no \"input_ids\""),
        (b"{\"input_ids\": []}", "no rows"),
        (b"{\"input_ids\": [[]]}", "row 0 has 0"),
        (b"{\"input_ids\": [1]}", "row 0 of input_ids"),
        (b"{\"input_ids\": [[1.5]]}", "row 0 of input_ids"),
        (b"{\"input_ids\": [[99999999999]]}", "above 2^31"),
        (b"{\"input_ids\": [[1]], \"labels\": [1, 2]}", "2 labels for 1 rows"),
        (b"{\"input_ids\": [[1]], \"labels\": [\"x\"]}", "labels are not numbers"),
        (b"{\"input_ids\": [[1]], \"token_type_ids\": [[0, 0]]}", "1 input_ids and 2 token_type_ids"),
    ] {
        let path = write(directory.path(), "rows.json", content);
        let text = failure(rows::read(&path), &path);
        assert!(text.contains(part), "{part:?} not in {text:?}");
    }
    let path = write(directory.path(), "rows.npz", b"PK");
    assert!(matches!(rows::read(&path), Err(Error::Usage(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever the bytes, a reader answers with rows or an error.
    #[test]
    fn no_reader_panics_on_noise(bytes in proptest::collection::vec(any::<u8>(), 0..200), structured in "[\\[\\]{}\":,0-9a-c\t\n -]{0,120}") {
        let directory = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer();
        for content in [&bytes[..], structured.as_bytes()] {
            for name in ["n.csv", "n.tsv", "n.jsonl", "n.json", "n.safetensors", "n.txt.gz"] {
                let path = directory.path().join(name);
                std::fs::write(&path, content).unwrap();
                let _ = table::read(&path, &TableColumns { text: "a".into(), second_text: None, label: None }, &LabelSet::Infer);
                let _ = rows::read(&path);
                let _ = squad::read(&path, true);
                let _ = sampling::read_indices(&path, 10);
                let _ = GlueTask::by_name("cola").unwrap().read(&path);
                let _ = causal_blocks(&path, &tokenizer, 2, Grouping::Global);
            }
        }
    }
}
