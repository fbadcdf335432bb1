//! What programs contain, for every family and head.

use std::collections::HashMap;

use secateur::model::{Architecture, EmitOptions, Family, Head, LayerShape, Logits, SampledTaps, Sublayer};
use secateur::program::{Access, Mode, Program, SlotId, Storage};

use crate::tiny;

/// Every combination of family, head and pruned layers.
fn architectures() -> Vec<Architecture> {
    let mut all = Vec::new();
    for config in tiny::configs() {
        let empty =
            LayerShape { heads: 0, neurons: 0, attention: Sublayer::BiasOnly, ffn: Sublayer::Removed };
        let other = LayerShape { attention: Sublayer::Removed, ffn: Sublayer::BiasOnly, ..empty };
        let narrow = LayerShape::full(1, 5);
        for layers in [config.layers.clone(), vec![empty, narrow], vec![narrow, other]] {
            let mut config = config.clone();
            config.layers = layers;
            for head in tiny::heads(config.family) {
                all.push(Architecture::new(config.clone(), head).unwrap());
            }
        }
    }
    all
}

fn describe(model: &Architecture) -> String {
    format!("{} {:?} {:?}", model.config.family.model_type(), model.head, model.config.layers)
}

/// Uses of each slot by kind of access, over all operations.
fn uses(program: &Program, wanted: impl Fn(Access) -> bool) -> HashMap<SlotId, usize> {
    let mut uses = HashMap::new();
    for op in program.ops() {
        op.visit(|slot, access| *uses.entry(slot).or_default() += usize::from(wanted(access)));
    }
    uses
}

#[test]
fn every_parameter_gets_the_gradients_its_uses_imply() {
    for model in architectures().into_iter().filter(|model| model.head != Head::Backbone) {
        let what = describe(&model);
        let options = EmitOptions { loss: true, ..EmitOptions::default() };
        let program = model.emit(Mode::TRAIN, &options).unwrap().program;
        let mut forward_uses: HashMap<SlotId, usize> = HashMap::new();
        for op in program.forward_ops() {
            op.visit(|slot, access| {
                *forward_uses.entry(slot).or_default() += usize::from(access == Access::Read)
            });
        }
        let updates = uses(&program, |access| access == Access::Update);
        let tied = model.head.is_language_model().then_some(model.parameters.embeddings.word);
        for (id, parameter) in model.layout.iter() {
            let name = &parameter.name;
            let slot = program.find(name).unwrap_or_else(|| panic!("{what}: {name} is not used"));
            let gradient = program.find(&format!("d {name}"));
            let gradient = gradient.unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
            assert_eq!(program.slot(gradient).storage, Storage::Gradient(id), "{what}: {name}");
            let expected = if tied == Some(id) { 2 } else { 1 };
            assert_eq!(forward_uses[&slot], expected, "{what}: uses of {name}");
            assert_eq!(updates[&gradient], expected, "{what}: gradient operations of {name}");
        }
    }
}

#[test]
fn frozen_parameters_get_no_gradient_operation() {
    for family in Family::ALL {
        let mut model = Architecture::new(tiny::config(family), Head::Span).unwrap();
        model.set_trainable(|name| name.starts_with("qa_outputs"));
        let options = EmitOptions { loss: true, ..EmitOptions::default() };
        let program = model.emit(Mode::TRAIN, &options).unwrap().program;
        let gradients: Vec<&str> = program
            .slots()
            .filter(|(_, slot)| matches!(slot.storage, Storage::Gradient(_)))
            .map(|(_, slot)| slot.name.as_str())
            .collect();
        assert_eq!(gradients, ["d qa_outputs.bias", "d qa_outputs.weight"]);
        // Nothing flows below the head, so nothing is computed there.
        let backward = program.ops().len() - program.forward_ops().len();
        assert_eq!(backward, 2, "{}", program.listing(&Default::default()));
    }
}

#[test]
fn masks_are_slots_only_when_asked_for() {
    for model in architectures() {
        let what = describe(&model);
        let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
        let plain = model.emit(Mode::EVALUATE, &options).unwrap();
        assert!(plain.program.slots().all(|(_, slot)| !slot.name.contains("mask")), "{what}");
        let options = EmitOptions { head_masks: true, neuron_masks: true, ..options };
        let masked = model.emit(Mode::EVALUATE, &options).unwrap();
        for (shape, layer) in model.config.layers.iter().zip(&masked.layers) {
            let columns = |slot: Option<SlotId>| slot.map_or(0, |slot| masked.program.slot(slot).cols);
            assert_eq!(columns(layer.head_mask), shape.heads, "{what}");
            assert_eq!(columns(layer.neuron_mask), shape.neurons, "{what}");
        }
        // A mask changes no other operation.
        assert_eq!(plain.program.ops().len(), masked.program.ops().len(), "{what}");
    }
}

#[test]
fn mask_gradients_are_by_sequence() {
    for model in architectures().into_iter().filter(|model| model.head != Head::Backbone) {
        let what = describe(&model);
        let options =
            EmitOptions { loss: true, head_masks: true, neuron_masks: true, ..EmitOptions::default() };
        let mode = Mode { mask_gradients: true, ..Mode::EVALUATE };
        let step = model.emit(mode, &options).unwrap();
        for (shape, layer) in model.config.layers.iter().zip(&step.layers) {
            assert_eq!(layer.head_mask_gradient.is_some(), shape.heads > 0, "{what}");
            assert_eq!(layer.neuron_mask_gradient.is_some(), shape.neurons > 0, "{what}");
            for (gradient, units) in
                [(layer.head_mask_gradient, shape.heads), (layer.neuron_mask_gradient, shape.neurons)]
            {
                let Some(gradient) = gradient else { continue };
                let slot = step.program.slot(gradient);
                assert_eq!((slot.rows, slot.cols), (secateur::program::Extent::Sequences, units), "{what}");
                assert_eq!(slot.storage, Storage::Output, "{what}");
            }
        }
        let parameters = step.program.slots().filter(|(_, s)| matches!(s.storage, Storage::Gradient(_)));
        assert_eq!(parameters.count(), 0, "{what}: parameter gradients nobody asked for");
    }
}

#[test]
fn a_calibration_program_ends_with_its_last_tap() {
    for config in tiny::configs() {
        let model = Architecture::new(config, Head::Span).unwrap();
        let sampled = SampledTaps { context: vec![0, 1], activation: vec![0] };
        let options = EmitOptions { sampled: Some(sampled), ..EmitOptions::default() };
        let taps = model.emit(Mode::EVALUATE, &options).unwrap();
        let kept: Vec<&str> = taps
            .program
            .slots()
            .filter(|(_, slot)| slot.storage == Storage::Output)
            .map(|(_, slot)| slot.name.as_str())
            .collect();
        assert_eq!(kept, ["ctx.0", "ffn.0", "ctx.1"]);
        assert_eq!(taps.program.ops().last().unwrap().name(), "gather");
        assert!(taps.program.find("layer.1.attention.sum").is_none(), "computes past the last tap");
        assert!(taps.program.find("qa_outputs.weight").is_none(), "computes the head");
        let taps = SampledTaps { context: vec![], activation: vec![0] };
        let options = EmitOptions { sampled: Some(taps), ..EmitOptions::default() };
        let taps = model.emit(Mode::EVALUATE, &options).unwrap();
        assert!(taps.program.find("layer.0.ffn.sum").is_none(), "computes past the last tap");
    }
}

#[test]
fn wishes_without_meaning_are_usage_errors() {
    let config = tiny::config(Family::Bert);
    let emit = |head, mode, options: &EmitOptions| {
        let error = Architecture::new(config.clone(), head).unwrap().emit(mode, options).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    };
    let loss = EmitOptions { loss: true, ..EmitOptions::default() };
    emit(Head::Backbone, Mode::EVALUATE, &loss);
    emit(Head::Span, Mode::TRAIN, &EmitOptions::default());
    emit(Head::Span, Mode { mask_gradients: true, ..Mode::EVALUATE }, &loss);
    let hidden = EmitOptions { distillation: Some(2.0), teacher_hidden: true, ..loss.clone() };
    emit(Head::Span, Mode::TRAIN, &hidden);
    emit(Head::Span, Mode::TRAIN, &EmitOptions { knowledge: true, ..loss.clone() });
    emit(Head::Regression, Mode::TRAIN, &EmitOptions { distillation: Some(f32::NAN), ..loss });
    assert_eq!(Architecture::new(config.clone(), Head::CausalLm).unwrap_err().exit_code(), 2);
    assert_eq!(Architecture::new(config, Head::Classification { labels: 1 }).unwrap_err().exit_code(), 2);
}

/// The listing documents a model; this one is short enough to read.
#[test]
fn listing_of_a_one_layer_gpt2() {
    let mut config = tiny::config(Family::Gpt2);
    config.layers.truncate(1);
    let model = Architecture::new(config, Head::CausalLm).unwrap();
    let options = EmitOptions { loss: true, neuron_masks: true, ..EmitOptions::default() };
    let program = model.emit(Mode::EVALUATE, &options).unwrap().program;
    let lines: Vec<String> =
        program.ops().iter().map(|op| format!("{}: {}", op.name(), program.signature(op))).collect();
    let expected = [
        "embed: embeddings.sum[T,16] <- @input_ids[T,1]i, @positions[T,1]i, %transformer.wte.weight[40,16], %transformer.wpe.weight[32,16]",
        "layer_norm: layer.0.attention.input[T,16], layer.0.attention.input.mean[T,1], layer.0.attention.input.rstd[T,1] <- embeddings.sum[T,16], %transformer.h.0.ln_1.weight[1,16], %transformer.h.0.ln_1.bias[1,16]",
        "gemm: layer.0.query_key_value[T,48] <- layer.0.attention.input[T,16], %transformer.h.0.attn.c_attn.weight[16,48], %transformer.h.0.attn.c_attn.bias[1,48]",
        "attention: layer.0.context[T,16], layer.0.context.lse[T,4] <- layer.0.query[T,16], layer.0.key[T,16], layer.0.value[T,16], @cu_seqlens[B+1,1]i",
        "gemm: layer.0.attention.sum[T,16] <- layer.0.context[T,16], %transformer.h.0.attn.c_proj.weight[16,16], %transformer.h.0.attn.c_proj.bias[1,16], embeddings.sum[T,16]",
        "layer_norm: layer.0.ffn.input[T,16], layer.0.ffn.input.mean[T,1], layer.0.ffn.input.rstd[T,1] <- layer.0.attention.sum[T,16], %transformer.h.0.ln_2.weight[1,16], %transformer.h.0.ln_2.bias[1,16]",
        "gemm: layer.0.activation[T,24] <- layer.0.ffn.input[T,16], %transformer.h.0.mlp.c_fc.weight[16,24], %transformer.h.0.mlp.c_fc.bias[1,24], @layer.0.neuron_mask[1,24]",
        "gemm: layer.0.ffn.sum[T,16] <- layer.0.activation[T,24], %transformer.h.0.mlp.c_proj.weight[24,16], %transformer.h.0.mlp.c_proj.bias[1,16], @layer.0.neuron_mask[1,24], layer.0.attention.sum[T,16]",
        "layer_norm: final_norm[T,16], final_norm.mean[T,1], final_norm.rstd[T,1] <- layer.0.ffn.sum[T,16], %transformer.ln_f.weight[1,16], %transformer.ln_f.bias[1,16]",
        "gather: answer[R,16] <- final_norm[T,16], @rows[R,1]i",
        "linear_cross_entropy: losses[R,1] <- answer[R,16], %transformer.wte.weight[40,16], @labels[R,1]i, @weights[R,1]",
    ];
    assert_eq!(lines, expected, "{}", lines.join("\n"));
}
