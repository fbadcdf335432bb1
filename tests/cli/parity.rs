//! Dual-CP through the command line equals the authors' released code, mask for mask.

use assert_cmd::Command;
use safetensors::SafeTensors;

use crate::support;

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
