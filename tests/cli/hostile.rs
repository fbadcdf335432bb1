//! Input that is wrong: an error that says what and where, status 1 or 2, nothing written, no panic.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use crate::support;
use crate::train::{failure, text};

/// `forward` on the committed BERT (vocabulary and positions of its config.json) with these inputs.
fn forward(folder: &Path, model: &Path, inputs: &Path, more: &[&str]) -> String {
    let out = folder.join("out.safetensors");
    let fixed = ["forward", "--model", text(model), "--inputs", text(inputs), "--out", text(&out)];
    let (status, message) = failure(&[&fixed[..], more].concat());
    assert!(status == 1 || status == 2, "{status}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(message.starts_with("error: ") || message.contains("\nerror: "), "{message}");
    assert!(!out.exists());
    message
}

fn json(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("rows.json");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn token_ids_and_rows_out_of_range_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = support::reference("models/bert_cls");
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let positions = config["max_position_embeddings"].as_u64().unwrap() as usize;
    let vocabulary = config["vocab_size"].as_u64().unwrap();
    let long = vec!["5"; positions + 1].join(", ");
    for (rows, part) in [
        (format!(r#"{{"input_ids": [[1, 2], [3, {vocabulary}]]}}"#), format!("{vocabulary}")),
        (r#"{"input_ids": [[1, 2], [3, -1]]}"#.into(), "row 1".into()),
        (r#"{"input_ids": [[1, 2], [3, 99999999999]]}"#.into(), "row 1".into()),
        (format!(r#"{{"input_ids": [[1, 2], [{long}]]}}"#), format!("{}", positions + 1)),
        (r#"{"input_ids": [[1, 2], []]}"#.into(), "row 1".into()),
        (r#"{"input_ids": []}"#.into(), "row".into()),
        (r#"{"input_ids": [[1, 2.5]]}"#.into(), "integers".into()),
        (r#"{"input_ids": [[1, 2]], "token_type_ids": [[0, 7]]}"#.into(), "7".into()),
        (r#"{"input_ids": [[1, 2]], "token_type_ids": [[0]]}"#.into(), "token_type_ids".into()),
        (r#"{"input_ids": [[1, 2]], "labels": [3]}"#.into(), "3".into()),
        (r#"{"input_ids": [[1, 2]], "labels": [0, 1]}"#.into(), "labels".into()),
        (r#"{"tokens": [[1, 2]]}"#.into(), "input_ids".into()),
        (r#"[[1, 2]"#.into(), "JSON".into()),
    ] {
        let message = forward(folder.path(), &model, &json(folder.path(), &rows), &[]);
        assert!(message.contains(&part), "{rows:.80}: {message}");
    }
}

#[test]
fn tensors_of_rows_that_contradict_each_other_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = support::reference("models/bert_cls");
    let ints = |values: &[i32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let ids = ints(&[1, 2, 3, 4]);
    /// Name, type and bytes of each tensor of a file.
    type Tensors<'a> = &'a [(&'a str, Dtype, &'a [u8])];
    let cases: [(Tensors<'_>, &str); 6] = [
        (&[("input_ids", Dtype::I32, &ids)], "cu_seqlens"),
        (&[("cu_seqlens", Dtype::I32, &ids)], "input_ids"),
        (&[("input_ids", Dtype::I32, &ids), ("cu_seqlens", Dtype::I32, &ints(&[0, 5]))], "4 tokens"),
        (&[("input_ids", Dtype::I32, &ids), ("cu_seqlens", Dtype::I32, &ints(&[0, 3, 2, 4]))], "rise"),
        (&[("input_ids", Dtype::F32, &ids), ("cu_seqlens", Dtype::I32, &ints(&[0, 4]))], "F32"),
        (
            &[
                ("input_ids", Dtype::I32, &ids),
                ("cu_seqlens", Dtype::I32, &ints(&[0, 4])),
                ("labels", Dtype::I32, &ints(&[0, 1])),
            ],
            "labels",
        ),
    ];
    for (tensors, part) in cases {
        let views = tensors.iter().map(|(name, dtype, bytes)| {
            (*name, TensorView::new(*dtype, vec![bytes.len() / 4], bytes).unwrap())
        });
        let path = folder.path().join("rows.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let message = forward(folder.path(), &model, &path, &[]);
        assert!(message.contains(part), "{part}: {message}");
    }
    let path = folder.path().join("rows.safetensors");
    std::fs::write(&path, [0xFF; 64]).unwrap();
    assert!(forward(folder.path(), &model, &path, &[]).contains("safetensors"));
}

#[test]
fn weights_and_masks_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let from = support::reference("models/bert_cls");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), model.join(name)).unwrap();
    }
    let inputs = json(folder.path(), r#"{"input_ids": [[1, 2, 3]]}"#);
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    for bad in [f32::NAN, f32::INFINITY] {
        bytes[end - 4..].copy_from_slice(&bad.to_le_bytes());
        std::fs::write(&weights, &bytes).unwrap();
        let message = forward(folder.path(), &model, &inputs, &[]);
        assert!(message.contains("tensor") && message.contains("model.safetensors"), "{message}");
    }
    // The file ends in the middle of its tensors.
    std::fs::write(&weights, &bytes[..end - 100]).unwrap();
    assert!(forward(folder.path(), &model, &inputs, &[]).contains("truncated"));

    let masks = folder.path().join("masks.json");
    for (content, part) in [
        (r#"{"heads": [[1, 1]], "neurons": [[1]]}"#, "masks.json"),
        (r#"{"heads": [[1, null]], "neurons": [[1]]}"#, "masks.json"),
        (r#"{"heads": [[1e39]], "neurons": [[1]]}"#, "masks.json"),
        ("", "masks.json"),
    ] {
        std::fs::write(&masks, content).unwrap();
        let message = forward(folder.path(), &from, &inputs, &["--masks", text(&masks)]);
        assert!(message.contains(part) || message.contains("mask"), "{content}: {message}");
    }
}
