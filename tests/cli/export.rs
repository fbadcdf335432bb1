//! Masks and masked models on their way to other programs: the exported model is the masked one, a bad file is one error,
//! and nothing half-written stays.

use std::path::{Path, PathBuf};

use secateur::export::{mask_file, packed};
use secateur::model::{HeadRequest, Model, UnitMasks, WeightMask, WeightMasks};
use serde_json::Value;

use crate::support;
use crate::train::{assert_whole_model, failure, pretrained, run, text};

/// A small GPT-2 that has learnt something, with masks of a third of its layers' weights in both layouts.
struct Case {
    folder: tempfile::TempDir,
    model: PathBuf,
    masks: WeightMasks,
}

impl Case {
    fn new() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let more =
            ["--train-tokenizer", "300", "--steps", "20", "--batch-size", "4", "--learning-rate", "0.01"];
        let (model, _) = pretrained(folder.path(), "causal-lm", &more);
        let loaded = Model::load(&model, HeadRequest::AsSaved, 0).unwrap();
        let architecture = &loaded.architecture;
        let mask = |matrix: &secateur::model::LayerMatrix| {
            let parameter = architecture.layout.get(matrix.id);
            let name = architecture.mask_name(matrix.id);
            WeightMask::from_fn(name, parameter.rows, parameter.cols, |i| i * 7 % 10 < 3 || i % 64 == 5)
        };
        let masks = WeightMasks { matrices: architecture.layer_matrices().iter().map(mask).collect() };
        let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("masks.npy", packed::encode(&masks, architecture).unwrap());
        write("masks.safetensors", mask_file::encode(&masks, &loaded, &[]).unwrap());
        Case { folder, model, masks }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Perplexity of a model on the text it was trained on.
    fn perplexity(&self, model: &Path, more: &[&str]) -> (f64, Value) {
        let data = self.path("text");
        let fixed =
            ["evaluate", "--model", text(model), "--task", "lm", "--data", text(&data), "--max-length", "32"];
        let record = run(&[&fixed[..], more].concat());
        (record["evaluations"][0]["metrics"]["perplexity"].as_f64().unwrap(), record)
    }

    fn export(&self, format: &str, out: &str, more: &[&str]) -> (PathBuf, Value) {
        let out = self.path(out);
        let fixed = ["export", "--model", text(&self.model), "--format", format, "--out", text(&out)];
        let record = run(&[&fixed[..], more].concat());
        (out, record)
    }

    /// Message of an export or evaluation that fails and leaves no directory.
    fn refused(&self, status: i32, arguments: &[&str]) -> String {
        let out = self.path("refused");
        let (found, message) = failure(&[arguments, &["--out", text(&out)]].concat());
        assert!(found == status && !message.contains("panicked"), "{arguments:?}: {found} {message}");
        assert!(!out.exists() && !self.path("refused.partial").exists(), "{arguments:?} left something");
        message
    }
}

#[test]
fn the_exported_model_is_the_masked_one() {
    let case = Case::new();
    let (dense, _) = case.perplexity(&case.model, &[]);
    let npy = case.path("masks.npy");
    let (masked, record) = case.perplexity(&case.model, &["--mask-file", text(&npy)]);
    assert!((masked - dense).abs() > 1e-3 * dense, "the masks do nothing: {masked}, {dense}");
    assert_eq!(record["result"]["weights_kept"], case.masks.kept());
    assert!(record["result"]["switch_seconds"].as_f64().unwrap() > 0.0);
    let own = case.path("masks.safetensors");
    assert_eq!(case.perplexity(&case.model, &["--mask-file", text(&own)]).0, masked);
    for format in ["hf", "sparse"] {
        let (out, record) = case.export(format, format, &["--mask-file", text(&npy)]);
        assert_eq!(record["result"]["weights_kept"], case.masks.kept());
        assert_eq!(case.perplexity(&out, &[]).0, masked, "{format}");
        assert!(out.join("config.json").is_file() && out.join("tokenizer.json").is_file());
        assert!(!out.join("load.py").exists(), "layers of one width need no loader");
        // The masks are in the zeros: they come out again.
        let again = case.path(&format!("{format}-masks"));
        run(&["export", "--model", text(&out), "--format", "npy", "--out", text(&again)]);
        assert_eq!(std::fs::read(again.join("masks.npy")).unwrap(), std::fs::read(&npy).unwrap());
        // And belong to the model with the zeros as to the dense one.
        assert_eq!(case.perplexity(&out, &["--mask-file", text(&own)]).0, masked);
    }
    assert_whole_model(&case.path("hf"));
    let half = case.export("sparse", "half", &["--mask-file", text(&npy), "--dtype", "f16"]).0;
    let (rounded, _) = case.perplexity(&half, &[]);
    assert!((rounded - masked).abs() < 1e-2 * masked, "{rounded}, {masked}");
    let (out, _) = case.export("safetensors-masks", "converted", &["--mask-file", text(&npy)]);
    assert_eq!(std::fs::read(out.join("masks.safetensors")).unwrap(), std::fs::read(&own).unwrap());
}

#[test]
fn a_snapped_model_has_the_pattern() {
    let case = Case::new();
    let own = case.path("masks.safetensors");
    let (out, record) = case.export("hf", "snapped", &["--mask-file", text(&own), "--snap", "2:4"]);
    assert!(record["result"]["weights_kept"].as_u64().unwrap() < case.masks.kept() as u64);
    let model = Model::load(&out, HeadRequest::AsSaved, 0).unwrap();
    for mask in model.nonzero_masks().matrices {
        // GPT-2 stores [in, out].
        for output in 0..mask.cols {
            for group in 0..mask.rows / 4 {
                let kept = (0..4).filter(|i| mask.keeps((4 * group + i) * mask.cols + output)).count();
                assert!(kept <= 2, "{} column {output} group {group}", mask.name);
            }
        }
    }
    let (half, record) = case.export("hf", "of-all", &["--snap", "2:4"]);
    let share =
        record["result"]["weights_kept"].as_f64().unwrap() / record["result"]["weights"].as_f64().unwrap();
    assert_eq!(share, 0.5, "{}", half.display());
}

#[test]
fn a_model_without_its_masked_units_is_exported_with_a_loader() {
    let case = Case::new();
    let loaded = Model::load(&case.model, HeadRequest::AsSaved, 0).unwrap();
    let mut masks = UnitMasks::ones(&loaded.config().widths());
    masks.heads[0][1] = 0.0;
    masks.neurons[1][..40].fill(0.0);
    let path = case.path("masks.json");
    masks.write(&path).unwrap();
    let (out, record) = case.export("hf", "small", &["--masks", text(&path)]);
    assert_whole_model(&out);
    let load = std::fs::read_to_string(out.join("load.py")).unwrap();
    assert!(load.contains("def load(") && !load.contains("pickle"));
    let result = &record["result"];
    assert!(result["parameters"].as_u64() < result["parameters_before"].as_u64());
    let (masked, _) = case.perplexity(&case.model, &["--masks", text(&path)]);
    let (small, _) = case.perplexity(&out, &[]);
    assert!((small - masked).abs() < 1e-5 * masked, "{small}, {masked}");
    let config = |folder: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
    };
    assert_eq!(config(&out)["pruned_heads"], Value::Null, "it cannot say that neurons are gone");
    // Heads alone are what transformers' own field can say; read again as masks it is the same.
    masks.neurons[1].fill(1.0);
    masks.write(&path).unwrap();
    let (out, _) = case.export("hf", "heads", &["--masks", text(&path), "--dtype", "bf16"]);
    assert_eq!(config(&out)["pruned_heads"], serde_json::json!({"0": [1]}));
    assert_eq!(config(&out)["torch_dtype"], "bfloat16");
    let (converted, _) = case.export("masks-json", "json", &["--masks", text(&out.join("config.json"))]);
    assert_eq!(UnitMasks::read(&converted.join("masks.json")).unwrap(), masks);
}

#[test]
fn inspect_shows_and_draws_what_is_kept() {
    let case = Case::new();
    let npy = case.path("masks.npy");
    let (sparse, _) = case.export("sparse", "sparse", &["--mask-file", text(&npy)]);
    for figure in ["kept.svg", "kept.html"] {
        let drawn = case.path(figure);
        let record = run(&[
            "inspect",
            "--model",
            text(&case.model),
            "--mask-file",
            text(&npy),
            "--mask-file",
            text(&sparse),
            "--figure",
            text(&drawn),
        ]);
        let [file, model] = record["result"]["weights"].as_array().unwrap().as_slice() else {
            panic!("{record}")
        };
        assert_eq!(file["matrices"], model["matrices"]);
        assert_eq!(file["kept"].as_f64().unwrap(), case.masks.kept_fraction());
        let page = std::fs::read_to_string(&drawn).unwrap();
        assert!(page.contains("layer 2 head 4") && page.contains("<svg"), "{figure}");
    }
    // A checkpoint with zeros shows them without being asked.
    let record = run(&["inspect", "--model", text(&sparse)]);
    assert_eq!(record["result"]["weights"][0]["kept"].as_f64().unwrap(), case.masks.kept_fraction());
    let (status, message) = failure(&["inspect", "--model", text(&case.model), "--figure", "x.svg"]);
    assert!(status == 2 && message.contains("--mask-file"), "{message}");
}

#[test]
fn bad_files_are_one_error_each_and_leave_nothing() {
    let case = Case::new();
    let model = text(&case.model);
    let export = |file: &Path| {
        case.refused(1, &["export", "--model", model, "--format", "hf", "--mask-file", text(file)])
    };
    let npy = std::fs::read(case.path("masks.npy")).unwrap();
    let own = std::fs::read(case.path("masks.safetensors")).unwrap();
    let bad = case.path("bad");
    let write = |bytes: &[u8]| std::fs::write(&bad, bytes).unwrap();
    for length in [npy.len() - 1, 100, 20, 0] {
        write(&npy[..length]);
        assert!(export(&bad).contains("bad"), "{length}");
    }
    write(&own[..own.len() - 1]);
    assert!(export(&bad).contains("safetensors"));
    write(&[0xFF; 64]);
    assert!(export(&bad).contains("neither a .npy nor"));
    // Masks of another model: the fixture of SMP's layout, and weights of the same shapes.
    assert!(export(&support::reference("smp/packed_mask.npy")).contains("another model"));
    let mut other = Model::load(&case.model, HeadRequest::AsSaved, 0).unwrap();
    other.values.iter_mut().for_each(|value| *value *= 2.0);
    write(&mask_file::encode(&case.masks, &other, &[]).unwrap());
    assert!(export(&bad).contains("other weights"));
    let data = case.path("text");
    let (status, message) = failure(&[
        "evaluate",
        "--model",
        model,
        "--task",
        "lm",
        "--data",
        text(&data),
        "--mask-file",
        text(&bad),
    ]);
    assert!(status == 1 && message.contains("other weights"), "{message}");
    assert!(export(&case.path("absent.npy")).contains("absent.npy"));
    // A model file is no mask file; a mask file is no head mask.
    assert!(export(&case.model.join("model.safetensors")).contains("no masks that secateur wrote"));
    let units =
        |path: &Path| case.refused(1, &["export", "--model", model, "--format", "hf", "--masks", text(path)]);
    assert!(units(&case.path("masks.npy")).contains("masks.npy"));
    assert!(units(&support::reference("unit_masks/hostile.pt")).contains("hostile.pt"));
    assert!(units(&support::reference("unit_masks/neuron_mask.pt")).contains("another model"));
    assert!(units(case.folder.path()).contains("head_mask.pt"));
    // Weights that are not finite, and weights that the type cannot hold.
    other.values.iter_mut().for_each(|value| *value *= 1e7);
    let huge = case.path("huge");
    other.save(&huge).unwrap();
    let message =
        case.refused(1, &["export", "--model", text(&huge), "--format", "sparse", "--dtype", "f16"]);
    assert!(message.contains("too large for this type"), "{message}");
    other.values[0] = f32::NAN;
    other.save(&huge).unwrap();
    let message = case.refused(1, &["export", "--model", text(&huge), "--format", "hf"]);
    assert!(message.contains("not finite"), "{message}");
    for (arguments, part) in [
        (&["--format", "npy", "--dtype", "f16"][..], "--dtype"),
        (&["--format", "masks-json"], "--masks"),
        (&["--format", "npy", "--masks", "m.json"], "masks-json"),
        (&["--format", "masks-json", "--masks", "m.json", "--snap", "2:4"], "masks-json"),
        (&["--format", "hf", "--snap", "4:2"], "4:2"),
    ] {
        let message = case.refused(2, &[&["export", "--model", model], arguments].concat());
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}

#[test]
fn masks_of_smp_bring_the_words_that_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = pretrained(folder.path(), "masked-lm", &["--train-tokenizer", "120", "--steps", "5"]);
    let model = text(&model);
    let weights = || std::fs::read(Path::new(model).join("model.safetensors")).unwrap();
    let before = weights();
    let task = ["--task", "agreement", "--train-rows", "96", "--eval-rows", "64"];
    let words = ["--label-words", "one,two"];
    let out = folder.path().join("smp");
    let smp = ["sparsify", "--model", model, "--method", "smp", "--keep-weights", "0.3", "--epochs", "2"];
    let record = run(&[&smp[..], &task, &words, &["--out", text(&out)]].concat());
    assert!(weights() == before, "the model was frozen");
    let own = out.join("masks.safetensors");
    let evaluate = |more: &[&str]| {
        let record = run(&[&["evaluate", "--model", model][..], &task, more].concat());
        record["evaluations"][0]["metrics"]["accuracy"].as_f64().unwrap()
    };
    let expected = record["evaluations"][0]["metrics"]["accuracy"].as_f64().unwrap();
    assert_eq!(evaluate(&["--mask-file", text(&own)]), expected);
    // SMP's own layout says nothing of words: they are given.
    let exported = folder.path().join("npy");
    let export = ["export", "--model", model, "--mask-file", text(&own), "--format"];
    run(&[&export[..], &["npy", "--out", text(&exported)]].concat());
    let npy = exported.join("masks.npy");
    assert_eq!(evaluate(&[&["--mask-file", text(&npy)][..], &words].concat()), expected);
    let again = folder.path().join("again");
    run(&[&export[..], &["safetensors-masks", "--out", text(&again)]].concat());
    assert_eq!(std::fs::read(again.join("masks.safetensors")).unwrap(), std::fs::read(&own).unwrap());
}
