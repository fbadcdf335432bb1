//! Whole training steps of every family and head: the CPU executor agrees with the f64 reference operation by
//! operation, and never reads what was not written.

use secateur::exec::{Block, Cpu, Executor, Reference, lockstep};
use secateur::model::{EmitOptions, Head, Logits};
use secateur::ops::gemm::Factors;
use secateur::program::Mode;
use secateur::session::{Device, Session, Weighting};

use crate::models::{self, FAMILIES};

const HEADS: [Head; 5] =
    [Head::Classification { labels: 3 }, Head::Regression, Head::Span, Head::CausalLm, Head::MaskedLm];

fn mode(dropout: bool, mask_gradients: bool) -> Mode {
    Mode { dropout, gradients: true, mask_gradients }
}

#[test]
fn cpu_and_reference_agree_on_training_steps_of_all_families_and_heads() {
    for family in FAMILIES {
        for head in HEADS {
            let causal = family == "gpt2" || family == "opt";
            if (head == Head::CausalLm) != causal && matches!(head, Head::CausalLm | Head::MaskedLm) {
                continue; // A family has one of the two language-model heads.
            }
            for masks in [false, true] {
                compare(Device::Cpu, family, head, masks);
                // The fused head rounds a gradient that two executors know to within f32: it has a test of its own kernel.
                if !head.is_language_model() {
                    compare(Device::CpuBf16, family, head, masks);
                }
            }
        }
    }
}

/// A training step with dropout on `device` and on the reference.
pub fn compare(device: Device, family: &str, head: Head, masks: bool) {
    let examples = models::examples(family, head, 6, 3);
    let batch = models::batch(&examples);
    let capacity = models::capacity(&batch);
    let options = EmitOptions {
        loss: true,
        logits: if head.is_language_model() { Logits::None } else { Logits::All },
        head_masks: masks,
        neuron_masks: masks,
        ..EmitOptions::default()
    };
    let mode = mode(true, masks);
    // Products are compared with those of equally rounded factors, so that the bounds are those of f32 sums.
    let factors = if device == Device::CpuBf16 { Factors::Bf16 } else { Factors::F32 };
    let mut sessions = [Device::Reference, device].map(|device| {
        let model = models::model(family, head, 0.2);
        let executor: Box<dyn Executor> = match device {
            Device::Reference => Box::new(Reference::with_factors(model.layout().clone(), factors)),
            device => device.executor(model.layout().clone()).expect("an executor"),
        };
        let mut session = Session::on(model, executor).expect("a session");
        let prepared = session.prepare(mode, &options, capacity).expect("a program");
        let zeros = vec![0.0; session.model().layout().block_len()];
        session.executor().write_block(Block::Gradients, &zeros).expect("gradients");
        session.executor().poison().unwrap();
        let weighting = Weighting::Mean { total: batch.targets.len() };
        let extents = session.feed(&prepared, &batch, weighting).expect("fed");
        session.write_dropout_key(&prepared, 5, 9).expect("key");
        for layer in prepared.slots.layers.iter() {
            for mask in [layer.head_mask, layer.neuron_mask].into_iter().flatten() {
                let units = prepared.slots.program.slot(mask).cols;
                // Ones, a real value, a negative one, and zeros.
                let values: Vec<f32> = (0..units).map(|i| [1.0, 0.0, 0.7, -0.4][i % 4]).collect();
                session.executor().write(prepared.id, mask, &values).expect("mask");
            }
        }
        (session, prepared, extents)
    });
    let [(reference, prepared, extents), (candidate, _, _)] = &mut sessions;
    let id = prepared.id;
    let found = lockstep::compare(reference.executor(), id, candidate.executor(), id, extents).expect("runs");
    if let Some(divergence) = found {
        panic!("{device} {family} {head:?} masks {masks}: {divergence}");
    }
}

#[test]
fn lockstep_names_the_operation_that_is_wrong() {
    let head = Head::Classification { labels: 2 };
    let batch = models::batch(&models::examples("bert", head, 4, 1));
    let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
    let model = models::model("bert", head, 0.0);
    let architecture = model.architecture.clone();
    let program = std::sync::Arc::new(architecture.emit(Mode::EVALUATE, &options).expect("emits").program);
    let mut reference = Reference::new(model.layout().clone());
    let mut cpu = Cpu::new(model.layout().clone());
    reference.write_block(Block::Parameters, &model.values).expect("parameters");
    // One weight of layer 1 differs: the first operation that uses it must be named.
    let mut values = model.values.clone();
    let layout = model.layout().clone();
    let wrong = layout.iter().find(|(_, p)| p.name.contains("layer.1.intermediate.dense.weight"));
    let (_, wrong) = wrong.expect("the parameter");
    values[wrong.offset] += 1.0;
    cpu.write_block(Block::Parameters, &values).expect("parameters");
    let capacity = models::capacity(&batch);
    let ids = [reference.prepare(program.clone(), capacity), cpu.prepare(program.clone(), capacity)];
    let [reference_id, cpu_id] = ids.map(|id| id.expect("prepared"));
    let inputs = architecture.emit(Mode::EVALUATE, &options).expect("emits").inputs;
    let (mut positions, mut rows) = (Vec::new(), Vec::new());
    secateur::model::positions(&architecture.config, &batch.cu_seqlens, &mut positions).expect("positions");
    secateur::model::answer_rows(&architecture.config, &batch.cu_seqlens, &mut rows).expect("rows");
    for (executor, id) in [(&mut reference as &mut dyn Executor, reference_id), (&mut cpu, cpu_id)] {
        let mut write = |slot, values: &[i32]| executor.write_ints(id, slot, values).expect("an input");
        write(inputs.input_ids.expect("of a whole model"), &batch.input_ids);
        write(inputs.positions.expect("of a whole model"), &positions);
        write(inputs.cu_seqlens, &batch.cu_seqlens);
        write(inputs.token_type_ids.expect("BERT has them"), &batch.token_type_ids);
        write(inputs.rows.expect("a sequence head has them"), &rows);
    }
    let extents = secateur::program::Extents {
        tokens: batch.token_count(),
        sequences: batch.row_count(),
        longest: batch.longest_row(),
        ..Default::default()
    };
    let found = lockstep::compare(&mut reference, reference_id, &mut cpu, cpu_id, &extents).expect("runs");
    let divergence = found.expect("the changed weight is noticed");
    assert!(divergence.operation.contains("layer.1.intermediate"), "{divergence}");
}
