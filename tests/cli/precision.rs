//! `--precision` on the CPU: what it changes, what it does not, and what is refused.

use crate::train::{failure, pretrained, secateur, text};

/// Trains three steps; the bytes of the model.
fn tuned(folder: &std::path::Path, model: &str, out: &str, precision: &str, level: Option<&str>) -> Vec<u8> {
    let out = folder.join(out);
    let task = ["finetune", "--model", model, "--task", "agreement", "--steps", "3", "--eval-rows", "8"];
    let how = ["--device", "cpu", "--precision", precision, "--out", text(&out)];
    let mut command = secateur(&[&task[..], &how].concat());
    match level {
        Some(level) => command.env("SECATEUR_SIMD", level),
        None => command.env_remove("SECATEUR_SIMD"),
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(out.join("model.safetensors")).unwrap()
}

/// Where the processor has matrix tiles the two runs take different instructions, elsewhere the same.
#[test]
fn bf16_trains_to_the_same_bits_with_and_without_matrix_tiles() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--train-tokenizer", "120", "--steps", "5"];
    let (model, _) = pretrained(folder.path(), "masked-lm", &more);
    let tuned = |out, precision, level| tuned(folder.path(), text(&model), out, precision, level);
    let tiles = tuned("tiles", "bf16", None);
    assert!(tiles == tuned("vectors", "bf16", Some("avx512")), "tiles and vectors differ");
    assert!(tiles != tuned("f32", "f32", None), "bf16 changed nothing");
}

#[test]
fn precisions_that_only_a_gpu_has_are_refused() {
    for precision in ["tf32", "f16"] {
        let (status, said) =
            failure(&["evaluate", "--model", ".", "--device", "cpu", "--precision", precision]);
        assert_eq!(status, 2, "{said}");
        assert!(said.contains(&format!("--precision {precision} needs a GPU")), "{said}");
    }
    let (status, said) =
        failure(&["evaluate", "--model", ".", "--device", "reference", "--precision", "bf16"]);
    assert!(status == 2 && said.contains("--precision bf16 needs a GPU or the CPU"), "{said}");
}
