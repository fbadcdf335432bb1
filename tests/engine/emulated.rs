//! The GPU's kernels without a GPU, in whole programs: training steps in lock-step with the f64 reference, training that
//! repeats, calibration that gives the CPU's masks, weight masks that are switched. With SECATEUR_TEST_DEVICE=cuda the same on the first GPU.

use std::sync::Arc;

use secateur::data::{Dataset, Task};
use secateur::exec::Block;
use secateur::launch::Precision;
use secateur::model::{EmitOptions, Head, LayerMatrix, Logits, WeightMask, WeightMasks};
use secateur::program::Mode;
use secateur::progress::Progress;
use secateur::prune::calibrate::{collect, select};
use secateur::prune::dual_cp::{CpuBackend, ExecutorBackend, Options, prune};
use secateur::prune::{CostModel, LayerWidths};
use secateur::session::{Device, Session, Weighting};
use secateur::train::Recipe;
use secateur::train::finetune;

use crate::runs::device;
use crate::{lockstep, models};

#[test]
fn training_steps_agree_with_the_reference_operation_by_operation() {
    for (family, head, masks) in [
        ("bert", Head::Classification { labels: 3 }, true),
        ("gpt2", Head::CausalLm, false),
        ("distilbert", Head::Span, false),
        ("opt", Head::Regression, true),
        ("roberta", Head::MaskedLm, false),
    ] {
        lockstep::compare(device(Precision::F32), family, head, masks);
    }
}

/// Losses of a few steps of fine-tuning, the norms of their gradients being in them through clipping, and the parameters
/// they lead to.
fn train(family: &str, device: Device) -> (Vec<f64>, Vec<f32>) {
    let head = Head::Classification { labels: 2 };
    let start = Session::new(models::model(family, head, 0.1), device).expect("a session");
    let (mut session, losses) = train_in(start, family);
    (losses, session.executor().read_block(Block::Parameters).expect("parameters"))
}

/// The session afterwards, and its losses.
fn train_in(mut session: Session, family: &str) -> (Session, Vec<f64>) {
    let head = Head::Classification { labels: 2 };
    let task = Task::by_name("mrpc").expect("a known task");
    let data = Dataset { examples: models::examples(family, head, 12, 5), ..Dataset::default() };
    let recipe = Recipe { learning_rate: 2e-3, batch_size: 4, epochs: 2, warmup: 0.1, ..Recipe::default() };
    let options = finetune::Options::default();
    let history = finetune::train(&mut session, &task, &data, None, &recipe, &options, &Progress::silent());
    let losses = history.expect("trains").epochs.iter().map(|epoch| epoch.loss).collect();
    (session, losses)
}

/// Largest distance of two sets of parameters, relative to how far `from` was moved.
fn distance(found: &[f32], expected: &[f32], from: &[f32]) -> f64 {
    let norm =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    norm(found, expected) / norm(expected, from)
}

#[test]
fn training_follows_the_cpu_and_repeats_to_the_bit() {
    for family in ["bert", "gpt2"] {
        let start = models::model(family, Head::Classification { labels: 2 }, 0.1).values.clone();
        let (expected, target) = train(family, Device::Cpu);
        let (found, values) = train(family, device(Precision::F32));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-4, "{family}: loss {found}, on the CPU {expected}");
        }
        // AdamW divides by the root of the second moment: where a gradient is near zero its sign is rounding.
        let apart = distance(&values, &target, &start);
        assert!(apart < 0.02, "{family}: parameters are {apart} of the way apart");
        let (again, bits) = train(family, device(Precision::F32));
        assert!(again == found && bits == values, "{family}: another run gives other bits");
    }
}

/// A step by step comparison is `naive.rs`; here, that the copy of the parameters which products read follows the optimiser:
/// a new session of the trained model computes the same.
#[test]
fn products_read_what_training_has_written() {
    let head = Head::Classification { labels: 2 };
    let batch = models::batch(&models::examples("bert", head, 4, 9));
    let capacity = models::capacity(&batch);
    let logits = |session: &mut Session| {
        let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity).expect("prepares");
        let extents = session.feed(&prepared, &batch, Weighting::EachRow).expect("feeds");
        session.run(&prepared, &extents).expect("runs");
        session.read_wide(&prepared, prepared.slots.logits.expect("logits"), &extents).expect("reads")
    };
    for precision in [Precision::Tf32, Precision::Bf16] {
        let start = Session::new(models::model("bert", head, 0.1), device(precision)).expect("a session");
        let (mut session, losses) = train_in(start, "bert");
        assert!(losses.iter().all(|loss| loss.is_finite()));
        let found = logits(&mut session);
        let trained = session.into_model().expect("the model");
        let mut again = Session::new(trained, device(precision)).expect("a session");
        assert_eq!(found, logits(&mut again), "{precision:?}");
    }
}

#[test]
fn calibration_and_similarities_give_the_masks_of_the_cpu() {
    let examples = models::examples("bert", Head::Backbone, 30, 4);
    let lengths: Vec<usize> = examples.iter().map(|example| example.length()).collect();
    let selection = select(&lengths, 30, 80, 1).expect("a selection");
    let sample = |device| {
        let mut session = Session::new(models::model("bert", Head::Backbone, 0.0), device).expect("session");
        collect(&mut session, &examples, &selection, &Progress::silent()).expect("collects")
    };
    let widths = vec![LayerWidths { heads: 3, neurons: 40 }; 2];
    let cost = CostModel::new(24, 8, 11.5, widths).expect("a cost model");
    let options = Options { keep_flops: vec![0.8, 0.7], ..Options::default() };
    let expected = prune(&sample(Device::Cpu), &cost, &options, &mut CpuBackend).expect("prunes");
    let device = device(Precision::F32);
    let layout = Arc::new(secateur::program::ParameterLayout::new());
    let mut executor = device.executor(layout.clone()).expect("an executor");
    let mut backend = ExecutorBackend::new(executor.as_mut(), layout);
    let found = prune(&sample(device), &cost, &options, &mut backend).expect("prunes");
    for (found, expected) in found.results.iter().zip(&expected.results) {
        assert_eq!(found.masks, expected.masks);
    }
}

#[test]
fn a_frozen_model_switches_between_weight_masks() {
    let head = Head::Classification { labels: 3 };
    let model = models::model("bert", head, 0.0);
    let task = |modulus: usize| {
        let architecture = &model.architecture;
        let mask = |matrix: &LayerMatrix| {
            let parameter = architecture.layout.get(matrix.id);
            let name = architecture.mask_name(matrix.id);
            WeightMask::from_fn(name, parameter.rows, parameter.cols, |index| index % modulus == 0)
        };
        WeightMasks { matrices: architecture.layer_matrices().iter().map(mask).collect() }
    };
    let batch = models::batch(&models::examples("bert", head, 4, 9));
    let capacity = models::capacity(&batch);
    let logits = |session: &mut Session| {
        let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity).expect("prepares");
        let extents = session.feed(&prepared, &batch, Weighting::EachRow).expect("feeds");
        session.run(&prepared, &extents).expect("runs");
        session.read_wide(&prepared, prepared.slots.logits.expect("logits"), &extents).expect("reads")
    };
    // In bf16 and f16 products read another copy of the weights, which has to follow.
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let mut session = Session::frozen(model.clone(), device(precision)).expect("a session");
        for modulus in [2, 3, 2] {
            session.apply_weight_masks(&task(modulus)).expect("applies");
            let mut masked = model.clone();
            task(modulus).apply(&mut masked).expect("applies");
            let parameters = session.executor().read_block(Block::Parameters).expect("parameters");
            assert!(parameters == masked.values, "{precision:?}, every {modulus}th weight");
            let mut other = Session::new(masked, device(precision)).expect("a session");
            assert_eq!(logits(&mut session), logits(&mut other), "{precision:?}, every {modulus}th weight");
        }
    }
}
