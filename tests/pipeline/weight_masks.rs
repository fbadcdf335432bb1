//! Weight masks as files and in use: packed as others pack them, recognised as another model's, stored without the zeros
//! to the same bits, snapped to N:M, and applied to a frozen model in memory.

use std::path::Path;

use proptest::prelude::*;
use secateur::exec::Block;
use secateur::export::snap::{Pattern, snap};
use secateur::export::{mask_file, packed, unit_masks};
use secateur::model::{
    Family, Head, HeadRequest, Model, ModelConfig, StoredType, UnitMasks, WeightMask, WeightMasks,
};
use secateur::session::{Device, Session};

use crate::support::numbers::Random;
use crate::support::{self, tensors::Tensors};
use crate::tiny;

/// A tiny model of 20 neurons, so that rows of a matrix are padded in the parameter block.
fn model(family: Family, seed: u64) -> Model {
    let mut map = tiny::config_json(family);
    let neurons = ["intermediate_size", "n_inner", "hidden_dim", "ffn_dim"];
    let name = neurons.into_iter().find(|name| map.contains_key(*name)).unwrap();
    map.insert(name.into(), 20.into());
    Model::from_config(tiny::parse(map).unwrap(), Head::Backbone, seed).unwrap()
}

/// Masks of every matrix of the layers that keep about `share` of it.
fn random_masks(model: &Model, share: f64, seed: u64) -> WeightMasks {
    let mut random = Random(seed);
    let architecture = &model.architecture;
    let mask = |matrix: &secateur::model::LayerMatrix| {
        let parameter = architecture.layout.get(matrix.id);
        let kept: Vec<bool> = (0..parameter.len()).map(|_| random.unit() < share).collect();
        WeightMask::from_fn(architecture.mask_name(matrix.id), parameter.rows, parameter.cols, |i| kept[i])
    };
    WeightMasks { matrices: architecture.layer_matrices().iter().map(mask).collect() }
}

/// Bits of floats: −0 differs from 0.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn message<T: std::fmt::Debug>(result: secateur::Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// The model whose masks SMP's layout was packed of: 12 layers, hidden size 8, 20 neurons.
fn packed_model(layers: usize) -> Model {
    let map = serde_json::json!({
        "model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": layers,
        "intermediate_size": 20, "vocab_size": 40, "max_position_embeddings": 32, "type_vocab_size": 2,
    });
    let config: ModelConfig = tiny::parse(map.as_object().unwrap().clone()).unwrap();
    Model::from_config(config, Head::MaskedLm, 1).unwrap()
}

#[test]
fn the_released_layout_is_read_and_written_byte_for_byte() {
    let path = support::reference("smp/packed_mask.npy");
    let file = std::fs::read(&path).unwrap();
    let model = packed_model(12);
    let read = mask_file::read(&path, &model.architecture).unwrap();
    assert_eq!(read.weights, None);
    let matrices = Tensors::read(&support::reference("smp/packed_mask_matrices.safetensors"));
    assert_eq!(read.masks.matrices.len(), matrices.names().len());
    for name in matrices.names() {
        let mask = read.masks.find(name.strip_prefix("bert.").unwrap()).unwrap();
        assert_eq!(matrices.shape(&name), [mask.rows, mask.cols], "{name}");
        let expected: Vec<bool> = matrices.f64(&name).iter().map(|kept| *kept == 1.0).collect();
        let found: Vec<bool> = (0..mask.len()).map(|i| mask.keeps(i)).collect();
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(packed::encode(&read.masks, &model.architecture).unwrap(), file);
}

#[test]
fn a_packed_file_that_does_not_fit_is_one_error() {
    let file = std::fs::read(support::reference("smp/packed_mask.npy")).unwrap();
    let architecture = packed_model(12).architecture;
    let path = Path::new("masks.npy");
    let decode = |file: &[u8]| message(packed::decode(path, file, &architecture));
    let found = message(packed::decode(path, &file, &packed_model(11).architecture));
    assert!(
        found.contains("masks.npy") && found.contains("6912 bits") && found.contains("another model"),
        "{found}"
    );
    for length in [0, 5, 9, 80, 127, 200, file.len() - 1] {
        let found = decode(&file[..length]);
        assert!(
            found.contains("masks.npy") && found.contains(".npy file of packed bits"),
            "{length}: {found}"
        );
    }
    let header = |from: &str, to: &str| {
        let text = String::from_utf8_lossy(&file[..128]).into_owned();
        assert!(text.contains(from));
        let mut changed = file.clone();
        let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        changed.splice(at..at + from.len(), to.bytes());
        decode(&changed)
    };
    assert!(header("'|u1'", "'<f4'").contains("'<f4'"));
    assert!(header("(864,)", "(2,43)").contains("one-dimensional"));
    assert!(header("(864,)", "(863,)").contains("863"));
    // Bits that fill the last byte are 0 in masks of this model.
    let small = packed_model(1);
    let masks = random_masks(&small, 1.0, 3);
    let mut few = masks.clone();
    few.matrices.pop();
    assert!(message(packed::encode(&few, &small.architecture)).contains("output.dense.weight"));
}

#[test]
fn our_file_knows_its_model_and_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    for family in Family::ALL {
        let model = model(family, 5);
        let masks = random_masks(&model, 0.3, 6);
        let path = folder.path().join("masks.safetensors");
        std::fs::write(&path, mask_file::encode(&masks, &model, &[7, 3]).unwrap()).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            mask_file::encode(&masks, &model, &[7, 3]).unwrap(),
            "no two encodings"
        );
        let read = mask_file::read(&path, &model.architecture).unwrap();
        assert_eq!((&read.masks, &read.label_words[..]), (&masks, &[7, 3][..]));
        read.check_weights(&path, &model).unwrap();
        // The model with the zeros is the same model to the masks.
        let mut masked = model.clone();
        masks.apply(&mut masked).unwrap();
        read.check_weights(&path, &masked).unwrap();
        let other = self::model(family, 7);
        assert!(message(read.check_weights(&path, &other)).contains("other weights"));
        // Of another shape, of another family.
        let wide = Model::from_config(tiny::config(family), Head::Backbone, 5).unwrap();
        assert!(message(mask_file::read(&path, &wide.architecture)).contains("another model"));
        let foreign = if family == Family::Bert { Family::Gpt2 } else { Family::Bert };
        let found = message(mask_file::read(&path, &self::model(foreign, 5).architecture));
        assert!(found.contains(family.model_type()) && found.contains(foreign.model_type()), "{found}");
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 7, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(message(mask_file::read(&path, &model.architecture)).contains("safetensors"));
        }
    }
}

/// A model whose weights hold what storing might lose: zeros of both signs and numbers that f16 has as subnormals.
fn awkward(family: Family, seed: u64, share: f64) -> Model {
    let mut model = model(family, seed);
    random_masks(&model, share, seed).apply(&mut model).unwrap();
    let id = model.architecture.layer_matrices()[0].id;
    let offset = model.layout().get(id).offset;
    model.values[offset] = -0.0;
    model.values[offset + 1] = 1e-6;
    model
}

#[test]
fn a_sparse_file_gives_back_the_same_bits_and_is_a_model_directory() {
    for (family, share) in Family::ALL.into_iter().zip([0.03, 0.1, 0.5, 0.0, 1.0]) {
        for stored in [StoredType::F32, StoredType::F16, StoredType::Bf16] {
            let model = awkward(family, 11, share);
            let folder = tempfile::tempdir().unwrap();
            let size = model.save_sparse(folder.path(), stored).unwrap();
            assert_eq!(size.dense, (model.layout().total_elements() * stored.bytes()) as u64);
            assert!(folder.path().join("model.sparse.safetensors").is_file());
            let read = Model::load(folder.path(), HeadRequest::AsSaved, 0).unwrap();
            assert!(read.report.initialised.is_empty() && read.report.unused.is_empty());
            let expected: Vec<f32> = model.values.iter().map(|value| stored.rounded(*value)).collect();
            assert_eq!(bits(&read.values), bits(&expected), "{family:?} {stored:?}");
            // And the dense file, too.
            let dense = folder.path().join("dense");
            model.save_as(&dense, stored).unwrap();
            let read = Model::load(&dense, HeadRequest::AsSaved, 0).unwrap();
            assert_eq!(bits(&read.values), bits(&expected), "{family:?} {stored:?}");
        }
    }
}

#[test]
fn a_sparse_file_pays_by_what_it_keeps() {
    let config = tiny::parse(tiny::config_json(Family::Bert)).unwrap();
    let mut model = Model::from_config(config, Head::Backbone, 3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let whole = model.save_sparse(folder.path(), StoredType::F32).unwrap().file;
    let masks = random_masks(&model, 0.1, 4);
    masks.apply(&mut model).unwrap();
    let sparse = model.save_sparse(folder.path(), StoredType::F32).unwrap().file;
    // A value is 4 bytes, a bit an eighth of one; names of tensors are what else differs.
    let saved = 4 * (masks.total() - masks.kept()) - masks.total().div_ceil(8);
    let header = 256 * masks.matrices.len();
    assert!(sparse + (saved as u64) < whole + header as u64, "{sparse} after {whole}");
    assert_eq!(model.nonzero_masks(), masks);
}

#[test]
fn a_damaged_sparse_file_is_one_error() {
    let model = awkward(Family::Bert, 13, 0.2);
    let folder = tempfile::tempdir().unwrap();
    model.save_sparse(folder.path(), StoredType::F32).unwrap();
    let path = folder.path().join("model.sparse.safetensors");
    let good = std::fs::read(&path).unwrap();
    let load = || message(Model::load(folder.path(), HeadRequest::AsSaved, 0));
    let header = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    for length in [3, 8 + header / 2, 8 + header, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(load().contains("model.sparse.safetensors"), "{length}");
    }
    // The masks are the last tensors of the file, being bytes: a bit more than there are values.
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(load().contains("keeps"));
    let text = String::from_utf8_lossy(&good[8..8 + header]).into_owned();
    for (from, to, part) in [
        (r#"\"kind\":\"sparse\""#, r#"\"kind\":\"spurse\""#, "spurse"),
        (r#"\"version\":1"#, r#"\"version\":9"#, "version 9"),
        (r#"\"shapes\""#, r#"\"sheeps\""#, "lacks tensor"),
    ] {
        assert!(text.contains(from), "{text:.200}");
        let mut bad = good[..8].to_vec();
        bad.extend(text.replace(from, to).bytes());
        bad.extend(&good[8 + header..]);
        std::fs::write(&path, &bad).unwrap();
        assert!(load().contains(part), "{part}: {}", load());
    }
    // A value that the type cannot hold, and one that is none.
    let mut large = model.clone();
    let id = large.architecture.layer_matrices()[0].id;
    let offset = large.layout().get(id).offset;
    large.values[offset] = 70_000.0;
    assert!(message(large.save_sparse(folder.path(), StoredType::F16)).contains("float16"));
    assert!(message(large.save_as(folder.path(), StoredType::F16)).contains("query"));
    large.save_sparse(folder.path(), StoredType::Bf16).unwrap();
    large.values[offset] = f32::NAN;
    large.save_sparse(folder.path(), StoredType::F32).unwrap();
    assert!(load().contains("not finite"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn packed_bits_are_those_of_a_plain_loop(
        rows in 0usize..9, cols in 1usize..40, at in 0usize..70, seed: u64, ld_more in 0usize..9,
    ) {
        let mut random = Random(seed);
        let kept: Vec<bool> = (0..rows * cols).map(|_| random.below(2) == 1).collect();
        let mask = WeightMask::from_fn("m", rows, cols, |i| kept[i]);
        let mut bytes = vec![0u8; (at + kept.len()).div_ceil(8)];
        mask.pack_at(&mut bytes, at);
        let mut expected = vec![0u8; bytes.len()];
        for (i, kept) in kept.iter().enumerate() {
            expected[(at + i) / 8] |= u8::from(*kept) << (7 - (at + i) % 8);
        }
        prop_assert_eq!(&bytes, &expected);
        prop_assert_eq!(&WeightMask::unpack_at("m", rows, cols, &bytes, at).unwrap(), &mask);
        prop_assert_eq!(&WeightMask::from_packed("m", rows, cols, &mask.packed()).unwrap(), &mask);
        prop_assert!(WeightMask::from_packed("m", rows, cols, &[&mask.packed()[..], &[0]].concat()).is_err());
        prop_assert!(WeightMask::unpack_at("m", rows, cols, &bytes, at + 8).is_err() || rows == 0);
        let ld = cols + ld_more;
        let padded = mask.padded_bits(ld);
        for at in 0..rows * ld {
            let inside = at % ld < cols && kept[at / ld * cols + at % ld];
            prop_assert_eq!(padded[at / 64] >> (at % 64) & 1 == 1, inside);
        }
    }

    #[test]
    fn a_snap_keeps_the_largest_of_every_group_and_adds_nothing(share in 0.0..1.0f64, seed: u64) {
        for family in [Family::Bert, Family::Gpt2] {
            let model = model(family, seed);
            let masks = random_masks(&model, share, seed);
            let pattern: Pattern = "2:4".parse().unwrap();
            let snapped = snap(&masks, &model, pattern).unwrap();
            for (before, after) in masks.matrices.iter().zip(&snapped.matrices) {
                let id = masks.places(&model.architecture).unwrap()
                    [masks.matrices.iter().position(|m| m.name == before.name).unwrap()];
                let parameter = model.layout().get(id);
                // GPT-2 stores [in, out], BERT [out, in]; groups are of inputs.
                let (outputs, inputs, step) = match family {
                    Family::Gpt2 => (before.cols, before.rows, before.cols),
                    _ => (before.rows, before.cols, 1),
                };
                let first = |output: usize| if step == 1 { output * inputs } else { output };
                let rank = |i: usize| {
                    model.values[parameter.offset + i / before.cols * parameter.ld() + i % before.cols].abs()
                };
                for output in 0..outputs {
                    for group in 0..inputs / 4 {
                        let indices: Vec<usize> = (0..4).map(|i| first(output) + (4 * group + i) * step).collect();
                        let had: Vec<usize> = indices.iter().copied().filter(|&i| before.keeps(i)).collect();
                        let has: Vec<usize> = indices.iter().copied().filter(|&i| after.keeps(i)).collect();
                        prop_assert_eq!(has.len(), had.len().min(2));
                        prop_assert!(has.iter().all(|i| had.contains(i)));
                        for lost in had.iter().filter(|i| !has.contains(i)) {
                            prop_assert!(has.iter().all(|&kept| rank(kept) >= rank(*lost)));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn patterns_that_are_none_are_refused() {
    for text in ["2", "2:", "4:2", "0:4", "4:4", "2:65", "a:b", "-1:4"] {
        assert!(message(text.parse::<Pattern>()).contains("N:M"), "{text}");
    }
    let model = model(Family::Bert, 1);
    let found = message(snap(&random_masks(&model, 0.5, 1), &model, Pattern::new(2, 3).unwrap()));
    assert!(found.contains("groups of 3"), "{found}");
}

fn parameters(session: &mut Session) -> Vec<u32> {
    bits(&session.executor().read_block(Block::Parameters).unwrap())
}

#[test]
fn a_frozen_model_switches_between_tasks_in_memory() {
    for device in [Device::Cpu, Device::Reference] {
        for family in Family::ALL {
            let model = model(family, 17);
            let tasks = [random_masks(&model, 0.1, 1), random_masks(&model, 0.5, 2)];
            let mut partial = tasks[1].clone();
            partial.matrices.truncate(2);
            let expected = |masks: &WeightMasks| {
                let mut masked = model.clone();
                masks.apply(&mut masked).unwrap();
                bits(&masked.values)
            };
            let mut session = Session::frozen(model.clone(), device).unwrap();
            for masks in [&tasks[0], &tasks[1], &partial, &tasks[0]] {
                session.apply_weight_masks(masks).unwrap();
                assert!(parameters(&mut session) == expected(masks), "{family:?} on {device}");
            }
            // No masks are the dense model again.
            session.apply_weight_masks(&WeightMasks::default()).unwrap();
            assert!(parameters(&mut session) == bits(&model.values));
        }
    }
}

#[test]
fn masks_that_cannot_be_applied_change_nothing() {
    let model = model(Family::Bert, 19);
    let mut session = Session::frozen(model.clone(), Device::Cpu).unwrap();
    let wide = Model::from_config(tiny::config(Family::Bert), Head::Backbone, 5).unwrap();
    assert!(message(session.apply_weight_masks(&random_masks(&wide, 0.5, 1))).contains("another model"));
    let word = WeightMask::from_fn("embeddings.word_embeddings.weight", 40, 16, |_| true);
    let found = message(session.apply_weight_masks(&WeightMasks { matrices: vec![word] }));
    assert!(found.contains("layers of a frozen model"), "{found}");
    assert!(parameters(&mut session) == bits(&model.values));
    let mut session = Session::of(&model, Device::Cpu).unwrap();
    let found = message(session.apply_weight_masks(&random_masks(&model, 0.5, 1)));
    assert!(found.contains("layers of a frozen model"), "{found}");
    assert!(parameters(&mut session) == bits(&model.values));
}

#[test]
fn unit_masks_of_other_programs_are_read() {
    let widths = tiny::config(Family::Bert).widths();
    let folder = support::reference("unit_masks");
    let heads = vec![vec![1.0, 0.5, 0.0, 1.0], vec![0.0, 1.0, 1.0, -2.0]];
    let neurons: Vec<Vec<f32>> =
        (0..2).map(|layer| (0..24).map(|i| f32::from(u8::from(i % 3 != layer))).collect()).collect();
    let both = unit_masks::read(&folder, &widths).unwrap();
    assert_eq!(both, UnitMasks { heads: heads.clone(), neurons: neurons.clone() });
    let ones = UnitMasks::ones(&widths);
    let one = unit_masks::read(&folder.join("head_mask.pt"), &widths).unwrap();
    assert_eq!(one, UnitMasks { heads, neurons: ones.neurons.clone() });
    let one = unit_masks::read(&folder.join("neuron_mask.pt"), &widths).unwrap();
    assert_eq!(one, UnitMasks { heads: ones.heads.clone(), neurons });

    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("config.json");
    std::fs::write(&path, r#"{"model_type": "bert", "pruned_heads": {"1": [0, 3]}}"#).unwrap();
    let read = unit_masks::read(&path, &widths).unwrap();
    assert_eq!(read, UnitMasks { heads: vec![vec![1.0; 4], vec![0.0, 1.0, 1.0, 0.0]], ..ones.clone() });
    let written = unit_masks::to_pruned_heads(&read).unwrap();
    assert_eq!(serde_json::json!(written), serde_json::json!({"1": [0, 3]}));
    assert_eq!(unit_masks::to_pruned_heads(&both), None);
    read.write(&own.path().join("masks.json")).unwrap();
    assert_eq!(unit_masks::read(own.path(), &widths).unwrap(), read);
    for (text, part) in [
        (r#"{"model_type": "bert"}"#, "pruned_heads"),
        (r#"{"pruned_heads": {"2": [0]}}"#, "no layer 2"),
        (r#"{"pruned_heads": {"0": [4]}}"#, "no head 4"),
        (r#"{"pruned_heads": {"0": 4}}"#, "not a list"),
        (r#"{"pruned_heads": [1]}"#, "not an object"),
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(message(unit_masks::read(&path, &widths)).contains(part), "{text}");
    }
}

#[test]
fn tensors_that_are_no_masks_are_refused_and_nothing_is_executed() {
    let widths = tiny::config(Family::Bert).widths();
    let folder = support::reference("unit_masks");
    let found = message(unit_masks::read(&folder.join("hostile.pt"), &widths));
    assert!(found.contains("something else than a tensor"), "{found}");
    assert!(!Path::new("secateur-was-here").exists() && !folder.join("secateur-was-here").exists());
    let three = vec![widths[0]; 3];
    let found = message(unit_masks::read(&folder.join("head_mask.pt"), &three));
    assert!(found.contains("4 units in 2 layers") && found.contains("another model"), "{found}");
    // Every cut and every changed byte is an error or leaves the numbers as they are; none is a panic.
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("head_mask.pt");
    let good = std::fs::read(folder.join("head_mask.pt")).unwrap();
    let expected = unit_masks::read(&folder.join("head_mask.pt"), &widths).unwrap();
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(unit_masks::read(&path, &widths).is_err(), "{length} bytes");
    }
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            std::fs::write(&path, &bad).unwrap();
            if let Ok(read) = unit_masks::read(&path, &widths) {
                assert_eq!(read, expected, "byte {at} changed by {flip:#x}");
            }
        }
    }
}
