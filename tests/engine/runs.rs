//! What tests of training share: the rows and the recipe, the device under test, and how a run is stopped, resumed and
//! compared.

use std::path::Path;
use std::sync::Arc;

use secateur::data::{Dataset, Task};
use secateur::exec::Block;
use secateur::launch::Precision;
use secateur::model::{Head, Model};
use secateur::progress::{Interrupt, Listener, Progress};
use secateur::prune::sparse::Options;
use secateur::session::{Device, Session};
use secateur::train::Recipe;
use secateur::train::finetune::{self, History};
use secateur::train::masked::MaskedTrainer;
use secateur::train::teacher::Teacher;

use crate::models;
use crate::support::numbers::Random;

/// The head of most trainings: two classes.
pub const CLASSES: Head = Head::Classification { labels: 2 };

/// The device under test: the emulator, or with SECATEUR_TEST_DEVICE=cuda the first GPU.
pub fn device(precision: Precision) -> Device {
    match std::env::var("SECATEUR_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::Cuda { ordinal: 0, precision },
        Ok("emulated") | Err(_) => Device::Emulated { precision },
        Ok(other) => panic!("SECATEUR_TEST_DEVICE={other}: emulated or cuda"),
    }
}

/// A task of two classes.
pub fn task() -> Task {
    Task::by_name("mrpc").expect("a known task")
}

/// Thirty rows of it: with [`recipe`], four steps an epoch.
pub fn data() -> Dataset {
    Dataset { examples: models::examples("bert", CLASSES, 30, 5), ..Dataset::default() }
}

/// Three epochs.
pub fn recipe() -> Recipe {
    Recipe { learning_rate: 2e-3, batch_size: 8, epochs: 3, warmup: 0.1, ..Recipe::default() }
}

/// What a teacher without a model says of the rows.
pub fn teacher_outputs(data: &Dataset) -> Vec<Vec<f32>> {
    let mut random = Random(3);
    let row = |_| vec![random.normal() as f32, random.normal() as f32];
    (0..data.examples.len()).map(row).collect()
}

/// Trains the weight masks of `model`, an encoder of [`CLASSES`], on the CPU with [`data`], which is also its validation set.
pub fn train_masked(
    model: Model,
    options: &Options,
    recipe: &Recipe,
    teacher: Option<Arc<Teacher>>,
    run: &finetune::Options,
    progress: &Progress,
) -> secateur::Result<(Session, History)> {
    train_on((&task(), &data(), true), model, options, recipe, teacher, run, progress)
}

/// The same with a task and rows of one's own, which are the validation set or (`false`) there is none.
pub fn train_on(
    (task, data, evaluated): (&Task, &Dataset, bool),
    model: Model,
    options: &Options,
    recipe: &Recipe,
    teacher: Option<Arc<Teacher>>,
    run: &finetune::Options,
    progress: &Progress,
) -> secateur::Result<(Session, History)> {
    let mut session = Session::new(model, Device::Cpu)?;
    let make = |session: &mut Session, size| {
        MaskedTrainer::new(session, recipe, options, task, teacher, run.seed, size)
    };
    let dev = evaluated.then_some(data);
    let history = finetune::drive(&mut session, task, data, dev, recipe, run, progress, make)?;
    Ok((session, history))
}

/// A run that keeps its checkpoints in `directory`.
pub fn saved_in(directory: &Path) -> finetune::Options {
    finetune::Options { checkpoints: Some(directory.into()), ..finetune::Options::default() }
}

/// Requests a stop once that many steps of training have been done.
struct StopAfter(u64, Interrupt);

impl Listener for StopAfter {
    fn begin(&self, _: &str, _: u64, _: &'static str, _: usize) {}
    fn advance(&self, done: u64, detail: &str) {
        if detail.starts_with("loss") && done == self.0 {
            self.1.request();
        }
    }
    fn end(&self, _: &str, _: u64, _: f64) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

/// Interrupts a run after `step` steps.
pub fn stopping_after(step: u64) -> Progress {
    let interrupt = Interrupt::new();
    Progress::new(StopAfter(step, interrupt.clone()), interrupt)
}

/// What `run`, which takes `steps` steps, comes to when it is interrupted after each of `stops` and continued from its
/// checkpoints every time.
pub fn interrupted<T>(
    stops: &[u64],
    steps: u64,
    run: impl Fn(&finetune::Options, &Progress) -> secateur::Result<T>,
) -> T {
    let directory = tempfile::tempdir().expect("a directory");
    let saved = saved_in(directory.path());
    for &stop in stops {
        let error = run(&saved, &stopping_after(stop)).err().expect("was interrupted");
        assert!(error.to_string().contains(&format!("after step {stop} of {steps}")), "{error}");
    }
    run(&saved, &Progress::silent()).expect("resumes")
}

/// What `run` comes to on that many threads.
pub fn on_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(run)
}

/// The bits of what a training moves; a block that it does not have is empty.
pub fn bits(session: &mut Session) -> Vec<u32> {
    let blocks = [Block::Parameters, Block::Weights, Block::Scores, Block::ScoreSecondMoment];
    let executor = session.executor();
    let floats = blocks.map(|block| executor.read_block(block).expect("a block")).concat();
    let words = executor.read_masks().expect("bits");
    let words = words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]);
    floats.iter().map(|value| value.to_bits()).chain(words).collect()
}

/// What of a history does not depend on the clock.
pub fn losses(history: &History) -> Vec<(u64, u64)> {
    history.epochs.iter().map(|epoch| (epoch.steps, epoch.loss.to_bits())).collect()
}
