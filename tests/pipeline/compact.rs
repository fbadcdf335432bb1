//! Compaction: the small model is the masked one, and survives saving.

use secateur::data::{Batch, Targets};
use secateur::model::{
    EmitOptions, EmptySublayers, Family, Head, HeadRequest, Logits, Model, ModelConfig, Sublayer, UnitMasks,
};
use secateur::program::Mode;
use secateur::prune::proof::{self, CompactionProof};
use secateur::session::{Device, Session, Weighting};

use crate::support::numbers::Random;
use crate::tiny;

/// Head that gives logits to compare.
fn head(family: Family) -> Head {
    if family.is_causal() { Head::CausalLm } else { Head::Classification { labels: 3 } }
}

/// A model whose biases and LayerNorms are not the trivial ones of a fresh model.
fn model(config: ModelConfig, seed: u64) -> Model {
    let head = head(config.family);
    let mut model = Model::from_config(config, head, seed).unwrap();
    let mut random = Random(seed);
    for (_, parameter) in model.architecture.layout.clone().iter() {
        for row in 0..parameter.rows {
            let start = parameter.offset + row * parameter.ld();
            let row = &mut model.values[start..start + parameter.cols];
            row.iter_mut().for_each(|value| *value = 3.0 * *value + 0.1 * random.normal() as f32);
        }
    }
    model
}

fn batch(random: &mut Random) -> Batch {
    let lengths = [5, 1, 9];
    let mut cu_seqlens = vec![0];
    lengths.iter().for_each(|length| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + length));
    let tokens = 15;
    Batch {
        input_ids: (0..tokens).map(|_| 3 + random.below(37) as i32).collect(),
        token_type_ids: vec![0; tokens],
        cu_seqlens,
        rows: vec![0, 1, 2],
        targets: Targets::None,
    }
}

/// Masks with zeros, ones, other values, an empty attention sublayer and an empty feed-forward one.
fn masks(config: &ModelConfig, random: &mut Random) -> UnitMasks {
    let mut masks = UnitMasks::ones(&config.widths());
    for mask in masks.heads.iter_mut().chain(&mut masks.neurons) {
        for value in mask.iter_mut() {
            *value = [0.0, 1.0, random.normal() as f32][random.below(3)];
        }
        // At least one unit of each kind.
        (mask[0], mask[1], mask[2]) = (1.5, 0.0, -0.5);
    }
    masks.heads[1].fill(0.0);
    masks.neurons[0].fill(0.0);
    masks
}

fn logits(model: &Model, masks: Option<&UnitMasks>, batch: &Batch, device: Device) -> Vec<f64> {
    let mut session = Session::new(model.clone(), device).unwrap();
    let capacity = secateur::program::Extents { tokens: 15, sequences: 3, longest: 9, ..Default::default() };
    let options = EmitOptions {
        logits: Logits::All,
        head_masks: masks.is_some(),
        neuron_masks: masks.is_some(),
        ..EmitOptions::default()
    };
    let prepared = session.prepare(Mode::EVALUATE, &options, capacity).unwrap();
    if let Some(masks) = masks {
        session.write_masks(&prepared, masks).unwrap();
    }
    let extents = session.feed(&prepared, batch, Weighting::EachRow).unwrap();
    session.run(&prepared, &extents).unwrap();
    session.read_wide(&prepared, prepared.slots.logits.unwrap(), &extents).unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_compact_model_is_the_masked_one() {
    for (seed, config) in tiny::configs().into_iter().enumerate() {
        let what = config.family.model_type();
        let model = model(config, seed as u64);
        let mut random = Random(100 + seed as u64);
        let (batch, masks) = (batch(&mut random), masks(model.config(), &mut random));
        let compact = model.compact(&masks, EmptySublayers::KeepBias).unwrap();
        assert!(compact.layout().total_elements() < model.layout().total_elements(), "{what}");
        assert_eq!(compact.config().widths(), masks.widths(), "{what}");
        assert_eq!(compact.config().layers[1].attention, Sublayer::BiasOnly, "{what}");
        assert_eq!(compact.config().head_dim, model.config().head_dim, "{what}");
        let expected = logits(&model, Some(&masks), &batch, Device::Reference);
        let found = logits(&compact, None, &batch, Device::Reference);
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        // In f64 the only difference is the folded weights, rounded once to f32: a relative 2⁻²⁴ of each term
        // of the sums of two projections in two layers, carried on through the layers after them.
        let difference = largest_difference(&expected, &found);
        assert!(difference <= 1e-5 * scale, "{what}: {difference:e} of {scale}");
        assert!(difference > 0.0, "{what}: masks that fold must round somewhere");
        let proof = proof::compare(&model, &masks, &compact, std::slice::from_ref(&batch), Device::Reference);
        let expected_proof = CompactionProof { largest_difference: difference, largest_logit: scale };
        assert_eq!(proof.unwrap(), expected_proof, "{what}");
        // Unmasked it is another function.
        let unmasked = logits(&model, None, &batch, Device::Reference);
        assert!(largest_difference(&unmasked, &found) > 1e-3 * scale, "{what}: the masks do nothing");
    }
}

#[test]
fn zero_one_masks_compact_exactly() {
    for (seed, config) in tiny::configs().into_iter().enumerate() {
        let what = config.family.model_type();
        let model = model(config, seed as u64);
        let mut random = Random(200 + seed as u64);
        let batch = batch(&mut random);
        let mut masks = masks(model.config(), &mut random);
        masks.heads.iter_mut().chain(&mut masks.neurons).flatten().for_each(|m| *m = f32::from(*m != 0.0));
        let compact = model.compact(&masks, EmptySublayers::KeepBias).unwrap();
        let expected = logits(&model, Some(&masks), &batch, Device::Reference);
        let found = logits(&compact, None, &batch, Device::Reference);
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let difference = largest_difference(&expected, &found);
        assert!(difference <= 1e-12 * scale, "{what}: {difference:e} of {scale}");
    }
}

#[test]
fn a_compact_model_survives_saving_and_compacts_again() {
    for (seed, config) in tiny::configs().into_iter().enumerate() {
        let what = config.family.model_type();
        let model = model(config, seed as u64);
        let mut random = Random(300 + seed as u64);
        let (batch, masks) = (batch(&mut random), masks(model.config(), &mut random));
        for empty in [EmptySublayers::KeepBias, EmptySublayers::Remove] {
            let compact = model.compact(&masks, empty).unwrap();
            let directory = tempfile::tempdir().unwrap();
            compact.save(directory.path()).unwrap();
            let loaded = Model::load(directory.path(), HeadRequest::AsSaved, 9).unwrap();
            assert_eq!(loaded.config().layers, compact.config().layers, "{what}");
            assert_eq!(loaded.values, compact.values, "{what}");
            assert!(loaded.report.initialised.is_empty() && loaded.report.unused.is_empty(), "{what}");
            let before = logits(&compact, None, &batch, Device::Cpu);
            assert_eq!(before, logits(&loaded, None, &batch, Device::Cpu), "{what}");
            // Nothing left to remove: compaction by ones changes nothing.
            let ones = UnitMasks::ones(&loaded.config().widths());
            let again = loaded.compact(&ones, EmptySublayers::KeepBias).unwrap();
            assert_eq!((&again.values, &again.config().layers), (&loaded.values, &loaded.config().layers));
        }
    }
}

#[test]
fn a_removed_sublayer_is_a_bias_less_one() {
    for (seed, config) in tiny::configs().into_iter().enumerate() {
        let what = config.family.model_type();
        let mut model = model(config, seed as u64);
        let mut random = Random(400 + seed as u64);
        let (batch, masks) = (batch(&mut random), masks(model.config(), &mut random));
        let removed = model.compact(&masks, EmptySublayers::Remove).unwrap();
        assert_eq!(removed.config().layers[1].attention, Sublayer::Removed, "{what}");
        assert_eq!(removed.config().layers[0].ffn, Sublayer::Removed, "{what}");
        let kept = model.compact(&masks, EmptySublayers::KeepBias).unwrap();
        let found = logits(&removed, None, &batch, Device::Reference);
        let other = logits(&kept, None, &batch, Device::Reference);
        assert!(largest_difference(&found, &other) > 1e-6, "{what}: dropping the biases changed nothing");
        // With the two biases zero both are the same function.
        use secateur::model::parameters::SublayerParameters::Full;
        let layout = model.layout().clone();
        let (Full(attention), Full(ffn)) =
            (model.architecture.parameters.layers[1].attention, model.architecture.parameters.layers[0].ffn)
        else {
            panic!("{what}")
        };
        for bias in [attention.output.bias.unwrap(), ffn.down.bias.unwrap()] {
            let parameter = layout.get(bias);
            model.values[parameter.offset..parameter.offset + parameter.cols].fill(0.0);
        }
        let kept = model.compact(&masks, EmptySublayers::KeepBias).unwrap();
        let zeroed = logits(&kept, None, &batch, Device::Reference);
        assert_eq!(found, zeroed, "{what}");
    }
}

#[test]
fn masks_that_do_not_fit_are_errors() {
    let model = model(tiny::config(Family::Bert), 1);
    let good = UnitMasks::ones(&model.config().widths());
    let mut few = good.clone();
    few.heads[1].pop();
    let mut broken = good.clone();
    broken.neurons[0][3] = f32::NAN;
    let mut short = good.clone();
    short.heads.pop();
    short.neurons.pop();
    for (masks, expected) in [(few, "layer 1"), (broken, "layer 0, neuron 3"), (short, "1 layers")] {
        let message = model.compact(&masks, EmptySublayers::KeepBias).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        let mut session = Session::new(model.clone(), Device::Cpu).unwrap();
        let options = EmitOptions { head_masks: true, neuron_masks: true, ..EmitOptions::default() };
        let capacity =
            secateur::program::Extents { tokens: 4, sequences: 1, longest: 4, ..Default::default() };
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity).unwrap();
        let message = session.write_masks(&prepared, &masks).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}
