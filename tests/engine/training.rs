//! Training repeats to the bit, whatever the number of threads, and continues after an interruption to the same bits.

use secateur::data::{Dataset, Task};
use secateur::exec::Block;
use secateur::model::Head;
use secateur::progress::{Interrupt, Listener, Progress};
use secateur::session::{Device, Session};
use secateur::train::Recipe;
use secateur::train::finetune::{History, Options, train};

use crate::models;

fn task() -> Task {
    Task::by_name("mrpc").expect("a known task")
}

fn data() -> Dataset {
    Dataset {
        examples: models::examples("bert", Head::Classification { labels: 2 }, 30, 5),
        ..Dataset::default()
    }
}

fn recipe() -> Recipe {
    Recipe {
        learning_rate: 2e-3,
        batch_size: 8,
        epochs: 3,
        warmup: 0.1,
        weight_decay: 0.01,
        ..Recipe::default()
    }
}

fn session() -> Session {
    let model = models::model("bert", Head::Classification { labels: 2 }, 0.1);
    Session::new(model, Device::Cpu).expect("a session")
}

fn bits(session: &mut Session) -> Vec<u32> {
    session.executor().read_block(Block::Parameters).unwrap().iter().map(|v| v.to_bits()).collect()
}

/// What of a history does not depend on the clock.
fn losses(history: &History) -> Vec<(u64, u64)> {
    history.epochs.iter().map(|epoch| (epoch.steps, epoch.loss.to_bits())).collect()
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    let run = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let mut session = session();
            let options = Options { seed, ..Options::default() };
            let data = data();
            let history =
                train(&mut session, &task(), &data, Some(&data), &recipe(), &options, &Progress::silent())
                    .expect("trains");
            (bits(&mut session), losses(&history))
        })
    };
    let one = run(1, 4);
    assert!(one == run(1, 4) && one == run(3, 4));
    assert!(one.0 != run(1, 5).0, "another seed must give another run");
}

#[test]
fn training_learns_its_rows_by_heart() {
    let mut session = session();
    let data = data();
    let recipe = Recipe { epochs: 60, ..recipe() };
    let history =
        train(&mut session, &task(), &data, Some(&data), &recipe, &Options::default(), &Progress::silent())
            .expect("trains");
    let last = history.epochs.last().expect("epochs");
    assert!(last.loss < 0.2 && history.epochs[0].loss > 0.5, "{:?}", history.epochs);
}

/// Requests a stop once `after` steps of training have been done.
pub struct StopAfter(pub u64, pub Interrupt);

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

#[test]
fn an_interrupted_run_continues_to_the_same_bits() {
    let data = data();
    let mut whole = session();
    let expected =
        train(&mut whole, &task(), &data, Some(&data), &recipe(), &Options::default(), &Progress::silent())
            .expect("trains");
    // 30 rows in steps of 8: four steps an epoch. Stops inside an epoch, at its end, and twice.
    for stops in [vec![2], vec![4], vec![3, 9]] {
        let directory = tempfile::tempdir().expect("a directory");
        let options = Options { checkpoints: Some(directory.path().into()), ..Options::default() };
        for stop in &stops {
            let interrupt = Interrupt::new();
            let progress = Progress::new(StopAfter(*stop, interrupt.clone()), interrupt);
            let stopped = train(&mut session(), &task(), &data, Some(&data), &recipe(), &options, &progress);
            let error = stopped.expect_err("was interrupted");
            assert!(error.to_string().contains(&format!("after step {stop} of 12")), "{error}");
        }
        let mut resumed = session();
        let history =
            train(&mut resumed, &task(), &data, Some(&data), &recipe(), &options, &Progress::silent())
                .expect("resumes");
        assert_eq!(losses(&history), losses(&expected), "{stops:?}");
        assert_eq!(history.best, expected.best);
        assert!(bits(&mut resumed) == bits(&mut whole), "{stops:?}");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let data = data();
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options { checkpoints: Some(directory.path().into()), ..Options::default() };
    train(&mut session(), &task(), &data, None, &recipe(), &options, &Progress::silent()).expect("trains");
    let other = Recipe { learning_rate: 1e-3, ..recipe() };
    let error = train(&mut session(), &task(), &data, None, &other, &options, &Progress::silent())
        .expect_err("another recipe");
    assert!(error.to_string().contains("another run"), "{error}");
    let path = directory.path().join(secateur::train::checkpoint::FILE_NAME);
    std::fs::write(&path, b"not a checkpoint").expect("writes");
    let error = train(&mut session(), &task(), &data, None, &recipe(), &options, &Progress::silent())
        .expect_err("a broken file");
    assert!(error.to_string().contains("not a checkpoint"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_a_name() {
    let mut session = session();
    let mut values = session.executor().read_block(Block::Parameters).unwrap();
    values[0] = f32::NAN;
    session.executor().write_block(Block::Parameters, &values).expect("written");
    let data = Dataset {
        examples: data()
            .examples
            .into_iter()
            .map(|mut e| {
                e.input_ids[0] = 0;
                e
            })
            .collect(),
        ..Dataset::default()
    };
    let error =
        train(&mut session, &task(), &data, None, &recipe(), &Options::default(), &Progress::silent())
            .expect_err("NaN");
    assert!(error.to_string().contains("training step 1"), "{error}");
}
