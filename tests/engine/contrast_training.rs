//! Training with contrastive terms: it learns, repeats and resumes to the same bits, needs its banks and its teacher's
//! sentence vectors, and takes the same steps on a device.

use std::path::Path;
use std::sync::Arc;

use secateur::data::{Cursor, Dataset, Step};
use secateur::launch::Precision;
use secateur::model::{Model, Sentence};
use secateur::program::Extents;
use secateur::progress::Progress;
use secateur::prune::contrastive;
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Method, Options, Profile};
use secateur::session::{Device, Session};
use secateur::train::Recipe;
use secateur::train::banks::{Bank, Encoder};
use secateur::train::finetune::{self, History};
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::stepper::{RunSize, Stepper};
use secateur::train::teacher::Teacher;

use crate::contrast::WIDTH;
use crate::models;
use crate::runs::{
    CLASSES, bits, data, device, interrupted, losses, on_threads, saved_in, stopping_after, task,
    teacher_outputs, train_masked,
};

fn options(method: Method) -> Options {
    let setting = Setting { keep: 0.4, task: "mrpc", distilled: true };
    let options = Options::new(method, Profile::Default, setting).expect("options");
    let contrast = contrastive::Options { extra: 7, ..contrastive::Options::unstructured(false) };
    Options { contrast: Some(contrast), warmup_steps: Some(1), ..options }
}

fn recipe() -> Recipe {
    Recipe { epochs: 4, ..crate::runs::recipe() }
}

/// What another model says of the rows.
fn teacher(data: &Dataset) -> Arc<Teacher> {
    teacher_of(Sentence::Cls, data)
}

fn teacher_of(sentence: Sentence, data: &Dataset) -> Arc<Teacher> {
    let mut model = models::model("bert", CLASSES, 0.0);
    model.values.iter_mut().for_each(|value| *value *= 1.25);
    let mut session = Session::new(model, Device::Cpu).expect("a session");
    let mut encoder = Encoder::of(sentence, &mut session, data, 64).expect("an encoder");
    let bank = encoder.fill(&mut session, data, &Progress::silent()).expect("a bank");
    Arc::new(Teacher { outputs: teacher_outputs(data), sentences: Some(bank), ..Teacher::default() })
}

fn student(options: &Options) -> Model {
    let mut model = models::model("bert", CLASSES, 0.1);
    masked::prepare_model(&mut model, options);
    model
}

fn run(
    options: &Options,
    recipe: &Recipe,
    run: &finetune::Options,
    progress: &Progress,
) -> secateur::Result<(Session, History)> {
    let teacher = teacher_of(options.sentence, &data());
    train_masked(student(options), options, recipe, Some(teacher), run, progress)
}

#[test]
fn contrastive_pruning_learns() {
    let both = [(Method::CapMovement, Sentence::Mean), (Method::CapSoftMovement, Sentence::Cls)];
    for (method, sentence) in both {
        let options = Options { lambda: 0.0, sentence, ..options(method) };
        let recipe = Recipe { epochs: 20, ..recipe() };
        let (_, history) =
            run(&options, &recipe, &finetune::Options::default(), &Progress::silent()).expect("trains");
        // From the second epoch on there are all three terms.
        let (first, last) = (history.epochs[1].loss, history.epochs[19].loss);
        assert!(last < 0.85 * first, "{method:?}: {first} to {last}");
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads_and_after_interruptions() {
    let both = [(Method::CapMovement, Sentence::Cls), (Method::CapSoftMovement, Sentence::Mean)];
    for (method, sentence) in both {
        let options = Options { sentence, ..options(method) };
        let on = |threads| {
            on_threads(threads, || {
                let plain = finetune::Options::default();
                let (mut session, history) =
                    run(&options, &recipe(), &plain, &Progress::silent()).expect("trains");
                (bits(&mut session), history)
            })
        };
        let (expected, history) = on(1);
        assert!(on(3).0 == expected, "{method:?}: other bits on three threads");
        // In the first epoch, at the end of one, within a later one.
        for stops in [vec![2], vec![4, 9], vec![13]] {
            let (mut resumed, again) =
                interrupted(&stops, 16, |saved, progress| run(&options, &recipe(), saved, progress));
            assert_eq!(losses(&again), losses(&history), "{method:?} {stops:?}");
            assert!(bits(&mut resumed) == expected, "{method:?} {stops:?}");
        }
    }
}

#[test]
fn a_checkpoint_without_its_banks_is_refused() {
    let options = options(Method::CapMovement);
    let directory = tempfile::tempdir().expect("a directory");
    let saved = saved_in(directory.path());
    assert!(run(&options, &recipe(), &saved, &stopping_after(6)).is_err());
    let bank = directory.path().join("sentences-1.f16");
    let bytes = std::fs::read(&bank).expect("the bank of the second epoch");
    assert_eq!(bytes.len(), Bank::bytes(30, WIDTH));
    let resume = |path: &Path| {
        let error = run(&options, &recipe(), &saved, &Progress::silent()).err().expect("refused").to_string();
        assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    };
    std::fs::write(&bank, &bytes[1..]).unwrap();
    resume(&bank);
    std::fs::remove_file(&bank).unwrap();
    resume(&bank);
}

#[test]
fn a_teacher_without_sentence_vectors_is_refused() {
    let options = options(Method::CapMovement);
    let mut session = Session::new(student(&options), Device::Cpu).expect("a session");
    let without = Teacher { outputs: vec![vec![0.0; 2]; 30], ..Teacher::default() };
    let size = RunSize {
        total_steps: 10,
        epoch_steps: 4,
        capacity: Extents { tokens: 40, sequences: 4, longest: 20, ..Extents::default() },
    };
    let refused =
        MaskedTrainer::new(&mut session, &recipe(), &options, &task(), Some(Arc::new(without)), 0, size);
    assert!(refused.unwrap_err().to_string().contains("sentence vectors"));
}

/// Two epochs' first steps on a device, beside the CPU.
#[test]
fn steps_on_a_device_follow_the_cpu() {
    for precision in [Precision::F32, Precision::Bf16] {
        let options = options(Method::CapMovement);
        let data = data();
        let teacher = teacher(&data);
        let steps = |device: Device| {
            let mut session = Session::new(student(&options), device).expect("a session");
            let rows: Vec<usize> = (0..4).collect();
            let capacity = secateur::session::capacity(std::slice::from_ref(&rows), &data.lengths());
            let size = RunSize { total_steps: 100, epoch_steps: 50, capacity };
            let mut trainer = MaskedTrainer::new(
                &mut session,
                &recipe(),
                &options,
                &task(),
                Some(teacher.clone()),
                3,
                size,
            )
            .expect("a trainer");
            [0, 1].map(|epoch| {
                let progress = Progress::silent();
                trainer.begin_epoch(&mut session, &data, epoch, None, &progress).expect("a bank");
                let cursor = Cursor { epoch, step: 0 };
                let one = Step { cursor, micro_batches: vec![rows.clone()] };
                trainer.run(&mut session, &data, &one).expect("a step").loss
            })
        };
        let (expected, found) = (steps(Device::Cpu), steps(device(precision)));
        assert!(expected[1] > expected[0], "snapshots add a term: {expected:?}");
        let tolerance = if precision == Precision::F32 { 1e-3 } else { 0.05 };
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() < tolerance * expected,
                "{precision:?}: {found}, on the CPU {expected}"
            );
        }
    }
}
