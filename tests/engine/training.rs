//! Training repeats to the bit, whatever the number of threads, and continues after an interruption to the same bits.

use secateur::data::Dataset;
use secateur::exec::Block;
use secateur::progress::Progress;
use secateur::session::{Device, Session};
use secateur::train::Recipe;
use secateur::train::finetune::{Options, train};

use crate::models;
use crate::runs::{CLASSES, bits, data, interrupted, losses, on_threads, saved_in, task};

fn recipe() -> Recipe {
    Recipe { weight_decay: 0.01, ..crate::runs::recipe() }
}

fn session() -> Session {
    Session::new(models::model("bert", CLASSES, 0.1), Device::Cpu).expect("a session")
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    let run = |threads: usize, seed: u64| {
        on_threads(threads, || {
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

#[test]
fn an_interrupted_run_continues_to_the_same_bits() {
    let data = data();
    let run = |options: &Options, progress: &Progress| {
        let mut session = session();
        let history = train(&mut session, &task(), &data, Some(&data), &recipe(), options, progress)?;
        Ok((bits(&mut session), history))
    };
    let (expected, whole) = run(&Options::default(), &Progress::silent()).expect("trains");
    // Stops inside an epoch, at its end, and twice.
    for stops in [vec![2], vec![4], vec![3, 9]] {
        let (found, history) = interrupted(&stops, 12, run);
        assert_eq!(losses(&history), losses(&whole), "{stops:?}");
        assert_eq!(history.best, whole.best);
        assert!(found == expected, "{stops:?}");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let data = data();
    let directory = tempfile::tempdir().expect("a directory");
    let options = saved_in(directory.path());
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
