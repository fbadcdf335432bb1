//! What K-prune measures, against quantities that programs compute another way, for every family and head and from every
//! sublayer up; and operation by operation on every executor.

use secateur::data::Batch;
use secateur::exec::lockstep;
use secateur::launch::Precision;
use secateur::model::{EmitOptions, Head, Logits};
use secateur::program::{Extents, Mode};
use secateur::progress::Progress;
use secateur::prune::k_prune::{self, Options};
use secateur::prune::{CostModel, Job, Pruned, Stream, UnitMasks};
use secateur::session::{Device, Prepared, Session, Weighting};

use crate::models::{self, FAMILIES};

const SUBLAYERS: usize = 4;
const MASKS: Mode = Mode { dropout: false, gradients: false, mask_gradients: true };

fn heads(family: &str) -> Vec<Head> {
    let language_model = if matches!(family, "gpt2" | "opt") { Head::CausalLm } else { Head::MaskedLm };
    vec![Head::Classification { labels: 3 }, Head::Regression, Head::Span, language_model]
}

struct Setup {
    session: Session,
    batch: Batch,
    capacity: Extents,
    hidden: Vec<f32>,
}

impl Setup {
    fn new(family: &str, head: Head, from: usize, device: Device) -> Setup {
        let examples = models::examples(family, head, 5, 21);
        let batch = models::batch(&examples);
        let capacity = models::capacity(&batch);
        let mut session = Session::new(models::model(family, head, 0.0), device).expect("a session");
        let mut stream = Stream::start(&mut session, &examples, 1000).expect("a stream");
        stream.advance(&mut session, from, None, false, &Progress::silent(), |_| Ok(())).expect("advances");
        Setup { session, batch, capacity, hidden: stream.hidden.swap_remove(0) }
    }

    /// Prepares and feeds a program.
    fn feed(&mut self, mode: Mode, options: &EmitOptions) -> (Prepared, Extents) {
        let prepared = self.session.prepare(mode, options, self.capacity).expect("a program");
        let extents = self.session.feed(&prepared, &self.batch, Weighting::EachRow).expect("fed");
        if let Some(slot) = prepared.slots.inputs.hidden {
            self.session.executor().write(prepared.id, slot, &self.hidden).expect("hidden states");
        }
        (prepared, extents)
    }

    fn run(&mut self, mode: Mode, options: &EmitOptions) -> (Prepared, Extents) {
        let (prepared, extents) = self.feed(mode, options);
        if options.head_masks {
            let ones = UnitMasks::ones(&self.session.model().config().widths());
            self.session.write_masks(&prepared, &ones).expect("masks");
        }
        self.session.executor().poison().expect("poisoned");
        self.session.run(&prepared, &extents).expect("runs");
        (prepared, extents)
    }
}

fn close(name: &str, found: f64, expected: f64, scale: f64) {
    assert!((found - expected).abs() <= 1e-10 * scale.max(1e-6), "{name}: {found}, expected {expected}");
}

/// Sums of squares are those of the hook tensors; gradients of ones on the neurons are those of the neuron mask summed over
/// the sequences, and a head's is the sum over its dimensions. The hidden states that start a part are f32 on both sides.
#[test]
fn squares_and_gradients_are_those_of_hooks_and_unit_masks() {
    for family in FAMILIES {
        for head in heads(family) {
            for from in 0..SUBLAYERS {
                let mut setup = Setup::new(family, head, from, Device::Reference);
                let sublayers = Some(from..SUBLAYERS);
                let whole = EmitOptions {
                    sublayers: sublayers.clone(),
                    loss: true,
                    head_masks: true,
                    neuron_masks: true,
                    keep_hooks: true,
                    ..EmitOptions::default()
                };
                let (hooks, extents) = setup.run(MASKS, &whole);
                let read = |setup: &Setup, slot: Option<_>| {
                    setup.session.read_wide(&hooks, slot.expect("a slot"), &extents).expect("read")
                };
                let expected: Vec<[Vec<f64>; 2]> = (from..SUBLAYERS)
                    .map(|sublayer| {
                        let slots = &hooks.slots.layers[sublayer / 2];
                        let (hook, gradient) = match sublayer % 2 {
                            0 => (slots.context, slots.head_mask_gradient),
                            _ => (slots.activation, slots.neuron_mask_gradient),
                        };
                        [read(&setup, hook), read(&setup, gradient)]
                    })
                    .collect();

                let knowledge =
                    EmitOptions { sublayers, loss: true, knowledge: true, ..EmitOptions::default() };
                let (measured, extents) = setup.run(MASKS, &knowledge);
                for (sublayer, [hook, by_sequence]) in (from..SUBLAYERS).zip(&expected) {
                    let name = format!("{family} {head:?} from {from}, sublayer {sublayer}");
                    let slots = &measured.slots.layers[sublayer / 2];
                    let (squares, gradient, group) = match sublayer % 2 {
                        0 => (slots.context_squares, slots.context_gradient, 8),
                        _ => (slots.activation_squares, slots.activation_gradient, 1),
                    };
                    let read = |slot: Option<_>| {
                        setup.session.read_wide(&measured, slot.expect("a slot"), &extents).expect("read")
                    };
                    let (squares, gradient) = (read(squares), read(gradient));
                    let width = squares.len();
                    for (j, square) in squares.iter().enumerate() {
                        let sum: f64 = hook.iter().skip(j).step_by(width).map(|x| x * x).sum();
                        close(&name, *square, sum, sum);
                    }
                    let units = width / group;
                    let scale: f64 = by_sequence.iter().map(|g| g.abs()).sum();
                    for unit in 0..units {
                        let sum: f64 = by_sequence.iter().skip(unit).step_by(units).sum();
                        let found: f64 = gradient[unit * group..(unit + 1) * group].iter().sum();
                        close(&name, found, sum, scale);
                    }
                }
            }
        }
    }
}

/// Nothing below the lowest wanted gradient is differentiated: a program from the last feed-forward network up has no
/// attention and no gradient of an activation function of its layer.
#[test]
fn gradients_end_at_the_target() {
    let model = models::model("gpt2", Head::CausalLm, 0.0);
    let emit = |from: usize| {
        let options = EmitOptions {
            sublayers: Some(from..SUBLAYERS),
            loss: true,
            knowledge: true,
            ..EmitOptions::default()
        };
        let slots = model.architecture.emit(MASKS, &options).expect("a program");
        slots.program.ops().iter().map(|op| op.name()).collect::<Vec<_>>()
    };
    let count = |names: &[&str], name: &str| names.iter().filter(|n| **n == name).count();
    assert_eq!(count(&emit(3), "activation_backward"), 0);
    assert_eq!((count(&emit(2), "activation_backward"), count(&emit(2), "attention_backward")), (1, 0));
    assert_eq!((count(&emit(1), "activation_backward"), count(&emit(1), "attention_backward")), (1, 1));
    assert_eq!((count(&emit(0), "activation_backward"), count(&emit(0), "attention_backward")), (2, 1));
}

/// A language model's teacher given by its hidden states is the teacher given by its logits.
#[test]
fn teachers_by_hidden_state_and_by_logits_agree() {
    for (family, head) in [("gpt2", Head::CausalLm), ("opt", Head::CausalLm), ("bert", Head::MaskedLm)] {
        let mut setup = Setup::new(family, head, 2, Device::Reference);
        let part = EmitOptions { sublayers: Some(2..SUBLAYERS), ..EmitOptions::default() };
        // Another hidden state than the student's.
        let student = setup.hidden.clone();
        setup.hidden.iter_mut().for_each(|x| *x *= 0.9);
        let (teacher, extents) =
            setup.run(Mode::EVALUATE, &EmitOptions { logits: Logits::Targets, ..part.clone() });
        let read = |setup: &Setup, slot| setup.session.read_wide(&teacher, slot, &extents).expect("read");
        let logits = read(&setup, teacher.slots.logits.expect("logits"));
        let hidden = read(&setup, teacher.slots.output);
        setup.hidden = student;
        let losses = [false, true].map(|teacher_hidden| {
            let options = EmitOptions { distillation: Some(2.0), teacher_hidden, ..part.clone() };
            let (prepared, extents) = setup.feed(Mode::EVALUATE, &options);
            let inputs = prepared.slots.inputs;
            let (slot, values) = match teacher_hidden {
                true => (inputs.teacher_hidden, &hidden),
                false => (inputs.teacher_logits, &logits),
            };
            let executor = setup.session.executor();
            executor.write_wide(prepared.id, slot.expect("a teacher"), values).expect("written");
            let ones = vec![1.0; extents.targets];
            executor.write(prepared.id, inputs.teacher_weights.expect("weights"), &ones).expect("written");
            setup.session.run(&prepared, &extents).expect("runs");
            let slot = prepared.slots.distillation_losses.expect("losses");
            setup.session.read_wide(&prepared, slot, &extents).expect("read")
        });
        assert!(losses[0].iter().any(|loss| *loss > 1e-6), "{family}: the teacher is the student");
        for (hidden, logits) in losses[1].iter().zip(&losses[0]) {
            close(family, *hidden, *logits, 1.0);
        }
    }
}

fn lock_step(device: Device, family: &str, head: Head, from: usize) {
    let options = EmitOptions {
        sublayers: Some(from..SUBLAYERS),
        distillation: Some(2.0),
        knowledge: true,
        teacher_hidden: head.is_language_model(),
        ..EmitOptions::default()
    };
    let mut setups = [Device::Reference, device].map(|device| {
        let mut setup = Setup::new(family, head, from, device);
        let (prepared, extents) = setup.feed(MASKS, &options);
        setup.session.executor().poison().expect("poisoned");
        let inputs = prepared.slots.inputs;
        for slot in
            [inputs.teacher_hidden, inputs.teacher_logits, inputs.teacher_weights].into_iter().flatten()
        {
            let slots = &prepared.slots.program;
            let len = extents.of(slots.slot(slot).rows) * slots.slot(slot).cols;
            let values: Vec<f32> = (0..len).map(|i| ((i * 37 + 11) % 101) as f32 / 60.0 - 0.8).collect();
            setup.session.executor().write(prepared.id, slot, &values).expect("written");
        }
        (setup, prepared, extents)
    });
    let [(reference, prepared, extents), (candidate, _, _)] = &mut setups;
    let id = prepared.id;
    let executors = (reference.session.executor(), candidate.session.executor());
    if let Some(divergence) = lockstep::compare(executors.0, id, executors.1, id, extents).expect("runs") {
        panic!("{device} {family} {head:?} from {from}: {divergence}");
    }
}

#[test]
fn the_cpu_agrees_with_the_reference_operation_by_operation() {
    for family in FAMILIES {
        for head in heads(family) {
            (0..SUBLAYERS).for_each(|from| lock_step(Device::Cpu, family, head, from));
        }
    }
}

#[test]
fn the_kernels_of_devices_agree_with_the_reference_operation_by_operation() {
    let device = Device::Emulated { precision: Precision::F32 };
    lock_step(device, "bert", Head::Span, 3);
    lock_step(device, "roberta", Head::Classification { labels: 3 }, 2);
    lock_step(device, "gpt2", Head::CausalLm, 3);
}

/// A whole pruning on the kernels of devices chooses the units that the CPU chooses, and tunes to the same weights.
#[test]
fn k_prune_on_a_device_gives_the_masks_of_the_cpu() {
    let head = Head::Classification { labels: 3 };
    let model = models::model("bert", head, 0.0);
    let examples = models::examples("bert", head, 5, 8);
    let config = model.config();
    let cost = CostModel::new(config.hidden, config.head_dim, 9.0, config.widths()).expect("a cost model");
    let progress = Progress::silent();
    let prune = |device| -> Pruned {
        let job = Job {
            model: &model,
            device,
            examples: &examples,
            batch_rows: 3,
            cost: &cost,
            keep: &[0.6],
            seed: 0,
            progress: &progress,
        };
        k_prune::prune(&job, &Options::default()).expect("prunes").remove(0)
    };
    let expected = prune(Device::Cpu);
    let found = prune(Device::Emulated { precision: Precision::F32 });
    assert_eq!(found.masks, expected.masks);
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let (found, expected) = (found.values.expect("tuned"), expected.values.expect("tuned"));
    let moved = distance(&expected, &model.values);
    let apart = distance(&found, &expected);
    assert!(apart < 0.01 * moved, "weights moved by {moved}, the device's are {apart} apart");
}
