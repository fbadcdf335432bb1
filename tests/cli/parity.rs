//! What the commands write equals what others compute: Dual-CP the authors' released code, mask for mask, and
//! `forward` transformers, tensor for tensor.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use safetensors::SafeTensors;

use crate::support;
use crate::support::numbers::{U64, gamma};
use crate::support::tensors::Tensors;

#[test]
fn prune_with_the_authors_profile_writes_the_authors_masks() {
    let (Some(model), Some(oracle)) =
        (support::shared("fixtures/models/bert_cls"), support::shared("fixtures/dual_cp"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let inputs = oracle.join("inputs.safetensors");
    // T of the cost model is the mean row length of these rows, which is also what the option's absence means.
    let output = Command::cargo_bin("secateur")
        .unwrap()
        .args(["prune", "--profile", "authors", "--keep-flops", "0.9,0.7,0.5", "--json", "--model"])
        .arg(&model)
        .arg("--calibration-inputs")
        .arg(&inputs)
        .arg("--token-indices")
        .arg(&inputs)
        .arg("--out")
        .arg(folder.path().join("out"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = std::fs::read(oracle.join("bert/authors.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    for (run, keep) in printed["runs"].as_array().unwrap().iter().zip(["0.9", "0.7", "0.5"]) {
        let path = folder.path().join(format!("out/keep-{keep}/masks.json"));
        let masks: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for (ours, theirs) in [("heads", "head_mask"), ("neurons", "neuron_mask")] {
            // The set holds no head masks where the authors' loop would not end.
            let Ok(tensor) = expected.tensor(&format!("{theirs}.{keep}")) else { continue };
            let layers = masks[ours].as_array().unwrap();
            let flat: Vec<u8> = layers
                .iter()
                .flat_map(|layer| layer.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as u8))
                .collect();
            assert_eq!(flat, tensor.data(), "{ours} at {keep}");
            let kept: Vec<u64> = run[format!("{ours}_kept")]
                .as_array()
                .unwrap()
                .iter()
                .map(|count| count.as_u64().unwrap())
                .collect();
            assert_eq!(kept.iter().sum::<u64>(), flat.iter().map(|bit| u64::from(*bit)).sum::<u64>());
        }
        assert_eq!(run["keep_flops"]["asked"].as_f64().unwrap().to_string(), keep);
        assert!(
            run["keep_flops"]["reached"].as_f64().unwrap() <= run["keep_flops"]["asked"].as_f64().unwrap()
        );
        assert!(run["peak_bytes"].as_u64().unwrap() > 0 && run["seconds"]["pruning"].as_f64().unwrap() > 0.0);
    }
}

/// Tolerance of f64 results, of the largest magnitude of a tensor: that of `tests/parity/models.rs`.
const F64: f64 = 1e-9;
/// What rounding a loss weight to f32 does to a gradient, relatively; masks.json holds f32 as well.
const F32: f64 = 1.0 / (1u64 << 24) as f64;

/// Error of a sum that cancels, relative to its terms: f64 rounding over the longest sums here.
fn cancelled() -> f64 {
    gamma(1024, U64)
}

/// Runs `forward --device reference` on a fixture; what it wrote.
fn forward(folder: &Path, fixture: &Path, more: &[&str]) -> Tensors {
    let out = folder.join("out.safetensors");
    let output = Command::cargo_bin("secateur")
        .unwrap()
        .args(["forward", "--device", "reference", "--json", "--model"])
        .arg(fixture)
        .arg("--inputs")
        .arg(fixture.join("inputs.safetensors"))
        .arg("--out")
        .arg(&out)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    Tensors::read(&out)
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

/// Every element within [`F64`] of the largest magnitude of its tensor, `relative` of its own and `floor`.
fn close(what: &str, expected: &[f64], found: &[f64], relative: f64, floor: f64) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let scale = largest(expected);
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        let allowed = F64 * scale + relative * e.abs() + floor;
        assert!((e - f).abs() <= allowed, "{what}[{i}]: expected {e}, found {f}");
    }
}

/// A tensor, or where the fixture has only sums over its rows (or its first rows), those.
fn compare(what: &str, expected: &Tensors, name: &str, found: &Tensors, found_name: &str) {
    let values = found.f64(found_name);
    let mut compared = false;
    if expected.has(name) {
        let expected = expected.f64(name);
        close(&format!("{what} {name}"), &expected, &values[..expected.len()], 0.0, 0.0);
        compared = true;
    }
    let sums = format!("{name}.colsum");
    if expected.has(&sums) {
        let expected = expected.f64(&sums);
        let mut of_columns = vec![0.0; expected.len()];
        for row in values.chunks(expected.len()) {
            of_columns.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        close(&format!("{what} {sums}"), &expected, &of_columns, 0.0, 0.0);
        compared = true;
    }
    assert!(compared, "{what}: {name} is not in the fixture");
}

/// Folders of the fixtures: all seven, or the two that are part of the repository.
fn fixtures() -> Vec<(String, PathBuf)> {
    let named = |folder: PathBuf| (folder.file_name().unwrap().to_str().unwrap().to_string(), folder);
    match support::shared("fixtures/models") {
        Some(folder) => {
            let all =
                ["bert_cls", "bert_qa", "bert_reg", "distilbert_cls", "gpt2_lm", "opt_lm", "roberta_cls"];
            all.map(|name| named(folder.join(name))).into()
        }
        None => {
            ["bert_cls", "gpt2_lm"].map(|name| named(support::reference(&format!("models/{name}")))).into()
        }
    }
}

#[test]
fn forward_writes_what_transformers_computes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, fixture) in fixtures() {
        let expected = Tensors::read(&fixture.join("expected.safetensors"));
        // Batches of some rows each: what is written is of all of them, in order.
        let found = forward(folder.path(), &fixture, &["--gradients", "--token-budget", "100"]);
        let mut hooks = 0;
        for tensor in found.names() {
            if ["logits", "hidden.", "ctx.", "ffn.", "loss"].iter().any(|kind| tensor.starts_with(kind)) {
                compare(&name, &expected, &tensor, &found, &tensor);
                hooks += 1;
            }
        }
        assert!(hooks >= 3 + 1 + 3 * 2, "{name}: {:?}", found.names());

        let gradients = Tensors::read(&fixture.join("grads.safetensors"));
        // Attention does not depend on key biases, nor the loss of spans on a bias of all positions. What stands for
        // their zero gradients, in both, is rounding noise of sums whose terms are as large as other gradients.
        let names = || found.names().into_iter().filter(|tensor| tensor.starts_with("grad/"));
        let floor = cancelled() * names().map(|tensor| largest(&found.f64(&tensor))).fold(0.0, f64::max);
        let mut compared = 0;
        for tensor in names() {
            let parameter = &tensor["grad/".len()..];
            let values = found.f64(&tensor);
            if gradients.has(&tensor) && !gradients.is_f32(&tensor) {
                close(&format!("{name} {tensor}"), &gradients.f64(&tensor), &values, 2.0 * F32, floor);
                compared += 1;
            }
            let sums = format!("sums/{parameter}");
            if gradients.has(&sums) {
                let [sum, squares] = gradients.f64(&sums)[..] else { panic!("{name} {sums}") };
                let magnitude: f64 = values.iter().map(|value| value.abs()).sum();
                let allowed = (F64 + 2.0 * F32) * magnitude + values.len() as f64 * floor;
                assert!((values.iter().sum::<f64>() - sum).abs() <= allowed, "{name} {sums}");
                let found: f64 = values.iter().map(|value| value * value).sum();
                let noise = floor * (2.0 * magnitude + values.len() as f64 * floor);
                let allowed = (F64 + 4.0 * F32) * squares + noise;
                assert!((found - squares).abs() <= allowed, "{name} {sums}");
                compared += 1;
            }
        }
        assert!(compared >= 10, "{name}: only {compared} gradients were compared");
    }
}

#[test]
fn forward_applies_masks_and_writes_their_gradients() {
    let folder = tempfile::tempdir().unwrap();
    for (name, fixture) in fixtures() {
        let expected = Tensors::read(&fixture.join("masked.safetensors"));
        let ones = forward(folder.path(), &fixture, &["--mask-gradients", "--token-budget", "100"]);
        for kind in ["dhead_per_example", "dneuron_per_example"] {
            let of_ones = format!("ones.{kind}");
            if expected.has(&of_ones) {
                close(&format!("{name} {of_ones}"), &expected.f64(&of_ones), &ones.f64(kind), 2.0 * F32, 0.0);
            } else {
                assert_eq!((name.as_str(), kind), ("gpt2_lm", "dneuron_per_example"), "is in the fixture");
            }
        }
        for case in ["binary", "empty", "real"] {
            let path = folder.path().join("masks.json");
            let layers = |kind: &str| -> Vec<Vec<f64>> {
                let tensor = format!("{case}.{kind}_mask");
                let units = expected.shape(&tensor)[1];
                expected.f64(&tensor).chunks(units).map(<[f64]>::to_vec).collect()
            };
            let masks = serde_json::json!({"heads": layers("head"), "neurons": layers("neuron")});
            std::fs::write(&path, masks.to_string()).unwrap();
            let found =
                forward(folder.path(), &fixture, &["--masks", path.to_str().unwrap(), "--mask-gradients"]);
            let (loss, exact) = (found.f64("loss")[0], expected.f64(&format!("{case}.loss"))[0]);
            if case != "real" {
                let what = format!("{name}, {case} masks");
                assert!((loss - exact).abs() <= F64 * exact.abs(), "{what}: loss {loss}, expected {exact}");
                compare(&what, &expected, &format!("{case}.logits"), &found, "logits");
                continue;
            }
            // The file's values are rounded to f32. To first order that moves each row's loss by at most
            // u · Σ |∂loss/∂mask · mask| over its masks; twice that leaves room for the second order.
            let moved = |kind: &str, masks: &[Vec<f64>]| -> f64 {
                let flat: Vec<f64> = masks.iter().flatten().copied().collect();
                let gradients = found.f64(kind);
                gradients.iter().zip(flat.iter().cycle()).map(|(g, mask)| (g * mask).abs()).sum()
            };
            // Rows weigh at most the whole loss each.
            let moved =
                moved("dhead_per_example", &layers("head")) + moved("dneuron_per_example", &layers("neuron"));
            let allowed = F64 * exact.abs() + 2.0 * F32 * moved;
            assert!((loss - exact).abs() <= allowed, "{name}: {loss}, {exact}, allowed {allowed:e}");
            assert!((loss - exact).abs() <= 1e-5 * exact.abs(), "{name}: the bound says nothing");
        }
    }
}
