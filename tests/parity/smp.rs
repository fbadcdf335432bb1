//! SMP against its authors' released code: schedules, masks of injected scores, and two training steps of the scores
//! (relative tolerances 1e-6 and 1e-5).
//!
//! The oracle computes in f64 from f32 weights and scores. The reference executor is compared element by element, the
//! CPU executor (f32) relative to the largest element of each matrix.

use std::path::PathBuf;

use secateur::data::{Cursor, Dataset, Example, Step, Target, Task};
use secateur::eval::evaluate::Evaluator;
use secateur::exec::Block;
use secateur::model::{Head, LabelWordHead, Model};
use secateur::program::{AdamWForm, Extents};
use secateur::progress::Progress;
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Curve, Masking, Method, Options, Profile, Ramp, Schedule, fractions};
use secateur::session::{Device, Session};
use secateur::train::Recipe;
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::stepper::{RunSize, Stepper};
use serde_json::Value;

use crate::support::numbers::U32;
use crate::support::tensors::Tensors;
use crate::support::{reference, shared};

/// Steps of a run so long that its learning rate does not decay within two of them.
const LONG: u64 = 1 << 60;
const KEEPS: [&str; 4] = ["0.5", "0.1", "0.03", "0.9"];

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(reference(&format!("smp/{name}"))).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn full(name: &str) -> Option<PathBuf> {
    shared(&format!("fixtures/smp/{name}.safetensors"))
}

fn inputs() -> Tensors {
    Tensors::read(&reference("smp/inputs.safetensors"))
}

fn data() -> Dataset {
    let inputs = inputs();
    let (ids, segments, starts) =
        (inputs.usize("input_ids"), inputs.usize("token_type_ids"), inputs.usize("cu_seqlens"));
    let labels = inputs.usize("labels");
    let row = |(bounds, label): (&[usize], &usize)| {
        let inside = |values: &[usize]| values[bounds[0]..bounds[1]].iter().map(|&v| v as i32).collect();
        Example {
            input_ids: inside(&ids),
            token_type_ids: inside(&segments),
            target: Target::Class(*label as u32),
        }
    };
    Dataset { examples: starts.windows(2).zip(&labels).map(row).collect(), ..Dataset::default() }
}

fn task() -> Task {
    Task { labels: ["a", "b", "c"].map(String::from).to_vec(), ..Task::by_name("mnli").unwrap() }
}

/// The frozen model with its label words, and a trainer whose scores are the injected ones.
fn trainer(device: Device, options: &Options) -> (Session, MaskedTrainer) {
    let words: Vec<u32> = inputs().usize("label_words").iter().map(|&word| word as u32).collect();
    let head = Head::Classification { labels: 3 };
    let (mut model, kind) =
        Model::load_with_label_words(&reference("smp/model"), head, &words, None, 0).unwrap();
    assert_eq!(kind, LabelWordHead::LanguageModel);
    masked::prepare_model(&mut model, options);
    let mut session = Session::new(model, device).unwrap();
    let capacity = Extents { tokens: 139, sequences: 12, targets: 0, samples: 0, longest: 32 };
    let size = RunSize { total_steps: LONG, epoch_steps: 1, capacity };
    let trainer =
        MaskedTrainer::new(&mut session, &Recipe::default(), options, &task(), None, 0, size).unwrap();
    let layout = session.model().layout().clone();
    let scores = Tensors::read(&reference("smp/scores.safetensors"));
    let stretch = Block::Scores.stretch(&layout);
    let mut block = session.executor().read_block(Block::Scores).unwrap();
    for parameter in layout.masked() {
        let first = parameter.offset - stretch.start;
        // Widths of 32 and 48 need no padding.
        block[first..first + parameter.len()].copy_from_slice(&scores.f32(&parameter.name));
    }
    session.executor().write_block(Block::Scores, &block).unwrap();
    (session, trainer)
}

/// Constant fraction and λ, as in the oracle's steps.
fn options(keep: f64, masking: Masking, form: AdamWForm) -> Options {
    let setting = Setting { keep, task: "mnli", distilled: false };
    let base = Options::new(Method::Smp, Profile::Authors, setting).unwrap();
    Options { masking, form, prune_steps: Some(0), lambda: 57.25, ramp: Ramp::Constant, ..base }
}

/// A block by parameter.
fn by_parameter(session: &mut Session, block: Block) -> Vec<(String, Vec<f32>)> {
    let layout = session.model().layout().clone();
    let start = block.stretch(&layout).start;
    let values = session.executor().read_block(block).unwrap();
    let of = |p: &secateur::program::Parameter| values[p.offset - start..p.offset - start + p.len()].to_vec();
    layout.masked().map(|p| (p.name.clone(), of(p))).collect()
}

#[test]
fn schedules_are_the_released_ones() {
    for case in json("schedule.json").as_array().unwrap() {
        let get = |name: &str| case[name].as_f64().unwrap();
        let schedule = Schedule::smp(Curve::Cubic, get("final_keep"), get("N") as u64);
        let total = get("total_steps") as u64;
        for ((step, keep), lambda) in
            numbers(&case["steps"]).into_iter().zip(numbers(&case["keep"])).zip(numbers(&case["lam"]))
        {
            let found = schedule.at(step as u64);
            assert!((found - keep).abs() <= 1e-6, "k at {step}: {found} is not {keep}");
            let found = Ramp::WholeTraining.at(get("lambda_max"), step as u64, total, &schedule);
            assert!((found - lambda).abs() <= 1e-6 * lambda.max(1.0), "λ at {step}: {found} is not {lambda}");
        }
    }
}

#[test]
fn fractions_share_a_budget_as_the_released_code_does() {
    let scores = Tensors::read(&reference("smp/scores.safetensors"));
    let expected = json("smp_s_fractions.json");
    let (session, _) = trainer(Device::Reference, &options(0.5, Masking::Local, AdamWForm::Torch));
    let architecture = &session.model().architecture;
    for keep in KEEPS {
        for (name, p) in [("smp_s_fraction_p1", 1.0), ("smp_s_fraction_p4", 4.0)] {
            let matrices = architecture.layer_matrices();
            let means: Vec<_> = matrices
                .iter()
                .map(|matrix| {
                    let values = scores.f64(&architecture.layout.get(matrix.id).name);
                    let sum = secateur::ops::weightmask::reference::sigmoid_sum(&values, 0.0, p);
                    (matrix.kind, sum / values.len() as f64)
                })
                .collect();
            let found = fractions::fractions(keep.parse().unwrap(), &means);
            for (matrix, found) in matrices.iter().zip(found) {
                let parameter = &architecture.layout.get(matrix.id).name;
                let expected = expected[keep][name][parameter].as_f64().unwrap();
                assert!((found - expected).abs() <= 1e-6, "{parameter}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn masks_of_injected_scores_are_the_released_ones() {
    let maskings = [
        ("L", Masking::Local),
        ("S", Masking::Fractions { temperature: 1.0 }),
        ("S4", Masking::Fractions { temperature: 4.0 }),
        ("G", Masking::Global),
    ];
    for device in [Device::Reference, Device::Cpu] {
        for (letter, masking) in maskings {
            for keep in KEEPS {
                let Some(path) = full(&format!("masks_{letter}_{keep}")) else { return };
                let expected = Tensors::read(&path);
                let options = options(keep.parse().unwrap(), masking, AdamWForm::Torch);
                let (mut session, mut trainer) = trainer(device, &options);
                trainer.settle(&mut session).unwrap();
                let masks = masked::weight_masks(&mut session).unwrap();
                let layout = session.model().layout().clone();
                for (mask, parameter) in masks.matrices.iter().zip(layout.masked()) {
                    let bits: Vec<f64> =
                        (0..mask.len()).map(|i| f64::from(u8::from(mask.keeps(i)))).collect();
                    assert!(bits == expected.f64(&parameter.name), "{letter} {keep}: {}", parameter.name);
                }
                let kept = trainer.kept().unwrap();
                assert!((kept - masks.kept_fraction()).abs() < 1e-12);
            }
        }
    }
}

/// Runs two steps on the injected scores and compares everything the oracle left of them. `updates`: scores after them.
fn two_steps(device: Device, masking: Masking, form: AdamWForm, step: &Tensors, updates: Option<&Tensors>) {
    let (mut session, mut trainer) = trainer(device, &options(0.3, masking, form));
    let exact = device == Device::Reference;
    let before = by_parameter(&mut session, Block::Weights);
    let frozen = session.executor().read_block(Block::Parameters).unwrap();
    let data = data();
    let rows: Vec<usize> = (0..data.examples.len()).collect();
    let one = Step { cursor: Cursor::default(), micro_batches: vec![rows] };

    trainer.settle(&mut session).unwrap();
    let mut evaluator = Evaluator::new(&mut session, &task(), &data, 4096, false).unwrap();
    let (logits, _) =
        evaluator.outputs(&mut session, &task(), &data, "evaluation", &Progress::silent()).unwrap();
    for (found, expected) in logits.iter().flatten().zip(step.f64("logits")) {
        assert!((f64::from(*found) - expected).abs() <= 1e-5, "logit {found} is not {expected}");
    }
    let close = |what: &str, found: f64, expected: f64| {
        assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{what}: {found} is not {expected}");
    };
    let report = trainer.run(&mut session, &data, &one).unwrap();
    close("cross-entropy", report.loss, step.f64("ce")[0]);
    close("norm", report.gradient_norm, step.f64("grad_norm")[0]);
    let clip = step.f64("clip_factor")[0];
    for (name, moment) in by_parameter(&mut session, Block::ScoreFirstMoment) {
        let expected = step.f64(&format!("dS/{name}"));
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (found, expected) in moment.iter().zip(&expected) {
            let found = f64::from(*found) / (0.1 * clip);
            // The weight 1/12 of a row's loss is f32 on every executor: its rounding stays where the loss and the
            // regulariser (at most λ/4 over 12 matrices of this many scores) cancel.
            let penalty = 57.25 / 4.0 / (12.0 * moment.len() as f64);
            let cancelled = U32 * (expected.abs() + penalty);
            let bound = if exact { 1e-5 * expected.abs() + cancelled } else { 1e-5 * largest };
            assert!((found - expected).abs() <= bound, "∂L/∂S of {name}: {found} is not {expected}");
        }
    }
    for number in 1..=2 {
        if number == 2 {
            trainer.run(&mut session, &data, &one).unwrap();
        }
        let Some(updates) = updates else { continue };
        for (name, scores) in by_parameter(&mut session, Block::Scores) {
            let expected = updates.f64(&format!("S{number}/{name}"));
            for (found, expected) in scores.iter().zip(expected) {
                // A score moves by at most about 0.02 a step; the f32 executor's error is one of the step's direction,
                // where a gradient is not far above ε.
                let bound = if exact { 1e-6 } else { 1e-4 };
                assert!(
                    (f64::from(*found) - expected).abs() <= bound,
                    "S{number} of {name}: {found}, {expected}"
                );
            }
        }
    }
    assert!(by_parameter(&mut session, Block::Weights) == before, "the weights behind the masks are frozen");
    let layout = session.model().layout().clone();
    let after = session.executor().read_block(Block::Parameters).unwrap();
    let masks = masked::weight_masks(&mut session).unwrap();
    let mut masked = layout.masked().zip(&masks.matrices);
    for (_, parameter) in layout.iter() {
        let range = parameter.range();
        if !parameter.masked {
            assert!(frozen[range.clone()] == after[range], "{} is frozen", parameter.name);
            continue;
        }
        let (_, mask) = masked.next().unwrap();
        for (i, value) in after[range].iter().enumerate() {
            assert!(mask.keeps(i) || value.to_bits() == 0, "{}[{i}] is masked", parameter.name);
        }
    }
}

#[test]
fn training_steps_of_local_masks_are_the_released_ones() {
    let step = Tensors::read(&reference("smp/step_L.safetensors"));
    for (form, name) in [(AdamWForm::HuggingFaceUncorrected, "hf"), (AdamWForm::Torch, "torch")] {
        let updates = full(&format!("update_L_{name}")).map(|path| Tensors::read(&path));
        for device in [Device::Reference, Device::Cpu] {
            two_steps(device, Masking::Local, form, &step, updates.as_ref());
        }
    }
}

#[test]
fn training_steps_of_shared_budgets_are_the_released_ones() {
    let Some(step) = full("step_S").map(|path| Tensors::read(&path)) else { return };
    for (form, name) in [(AdamWForm::HuggingFaceUncorrected, "hf"), (AdamWForm::Torch, "torch")] {
        let updates = full(&format!("update_S_{name}")).map(|path| Tensors::read(&path));
        for device in [Device::Reference, Device::Cpu] {
            two_steps(device, Masking::Fractions { temperature: 1.0 }, form, &step, updates.as_ref());
        }
    }
}
