//! Training of weight masks: exact counts, zeros that stay, weights that do not move, runs that repeat and resume, and the
//! device's kernels beside the CPU.

use std::sync::Arc;

use secateur::data::{Cursor, Dataset, Step, Task};
use secateur::exec::Block;
use secateur::launch::Precision;
use secateur::model::{Head, Model, ModelConfig};
use secateur::progress::Progress;
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Distillation, Head as SparseHead, Masking, Method, Options, Profile};
use secateur::session::{Device, Session};
use secateur::train::Recipe;
use secateur::train::finetune::{self, History};
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::stepper::{RunSize, Stepper};
use secateur::train::teacher::Teacher;

use crate::models;
use crate::runs::{
    CLASSES, bits, data, device, interrupted, losses, on_threads, recipe, task, teacher_outputs,
    train_masked, train_on,
};
use crate::support::numbers::Random;

const METHODS: [Method; 5] =
    [Method::Smp, Method::Movement, Method::SoftMovement, Method::Magnitude, Method::L0];

/// The defaults of a method. Tiny models have no pre-trained head: it is trained.
pub fn options(method: Method, keep: f64) -> Options {
    let setting = Setting { keep, task: "mrpc", distilled: false };
    let options = Options::new(method, Profile::Default, setting).expect("options");
    Options { head: SparseHead::Trained, ..options }
}

/// A model whose down-projections have padded rows.
pub fn padded(options: &Options) -> Model {
    let fields = serde_json::json!({"model_type": "bert", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 43, "max_position_embeddings": 32, "type_vocab_size": 2});
    let serde_json::Value::Object(fields) = fields else { unreachable!("a JSON object") };
    let config = ModelConfig::from_json(fields, std::path::Path::new("test")).expect("valid");
    let mut model = Model::from_config(config, CLASSES, 7).expect("a model");
    let layout = model.layout().clone();
    for (_, parameter) in layout.iter().filter(|(_, p)| !p.vector) {
        model.values[parameter.range()].iter_mut().for_each(|value| *value *= 8.0);
    }
    masked::prepare_model(&mut model, options);
    model
}

struct Outcome {
    session: Session,
    history: History,
    before: Model,
}

fn run(options: &Options, run: &finetune::Options, progress: &Progress) -> secateur::Result<Outcome> {
    let before = padded(options);
    let teacher = options
        .distillation
        .map(|_| Arc::new(Teacher { outputs: teacher_outputs(&data()), ..Teacher::default() }));
    let (session, history) = train_masked(before.clone(), options, &recipe(), teacher, run, progress)?;
    Ok(Outcome { session, history, before })
}

fn trained(options: &Options) -> Outcome {
    run(options, &finetune::Options::default(), &Progress::silent()).expect("trains")
}

#[test]
fn exactly_the_asked_number_of_weights_survives() {
    let maskings = [Masking::Local, Masking::Fractions { temperature: 1.0 }, Masking::Global];
    let smp = maskings.map(|masking| (Method::Smp, masking));
    for (method, masking) in
        smp.into_iter().chain([(Method::Movement, Masking::Local), (Method::Magnitude, Masking::Local)])
    {
        for keep in [0.001, 0.37, 1.0] {
            let options = Options { masking, ..options(method, keep) };
            let mut outcome = trained(&options);
            let masks = masked::weight_masks(&mut outcome.session).expect("masks");
            let asked = |size: usize| (keep * size as f64) as usize;
            match masking {
                Masking::Global => assert_eq!(masks.kept(), asked(masks.total())),
                Masking::Local => {
                    for mask in &masks.matrices {
                        assert_eq!(mask.kept(), asked(mask.len()), "{method:?} {keep}: {}", mask.name);
                    }
                }
                // Fractions above 1 are cut, and every matrix rounds down.
                _ => assert!(
                    masks.kept() <= asked(masks.total())
                        && masks.kept() + masks.total() / 8 + 16 > asked(masks.total())
                ),
            }
        }
    }
}

#[test]
fn masked_weights_are_zero_and_frozen_weights_have_their_bits() {
    for method in METHODS {
        let options =
            Options { snap: matches!(method, Method::SoftMovement | Method::L0), ..options(method, 0.3) };
        let Outcome { mut session, before, .. } = trained(&options);
        let masks = masked::weight_masks(&mut session).expect("masks");
        let layout = session.model().layout().clone();
        let weights = session.executor().read_block(Block::Weights).expect("weights");
        let start = Block::Weights.stretch(&layout).start;
        let after = session.executor().read_block(Block::Parameters).expect("parameters");
        let mut of_matrix = layout.masked().zip(&masks.matrices);
        let mut moved = false;
        for (_, parameter) in layout.iter() {
            let (old, new) = (&before.values[parameter.range()], &after[parameter.range()]);
            if !parameter.masked {
                let frozen = !parameter.trainable;
                assert!(!frozen || old == new, "{method:?}: {} moved", parameter.name);
                continue;
            }
            let (_, mask) = of_matrix.next().expect("a mask a matrix");
            let behind = &weights[parameter.offset - start..][..parameter.span()];
            moved |= behind != old;
            for (row, (new, behind)) in
                new.chunks(parameter.ld()).zip(behind.chunks(parameter.ld())).enumerate()
            {
                for col in 0..parameter.ld() {
                    let kept = col < parameter.cols && mask.keeps(row * parameter.cols + col);
                    let expected = if kept { behind[col] } else { 0.0 };
                    // With bits a kept weight is the weight; the best epoch's, so only where nothing is trained after it.
                    let same = method == Method::Smp || !kept;
                    assert!(
                        !same || new[col].to_bits() == expected.to_bits(),
                        "{method:?} {}",
                        parameter.name
                    );
                }
            }
        }
        assert_eq!(moved, options.trains_weights(), "{method:?}");
        let model = masked::into_model(session).expect("a model");
        if method == Method::Smp {
            for parameter in layout.masked() {
                assert!(
                    model.values[parameter.range()] == before.values[parameter.range()],
                    "{}",
                    parameter.name
                );
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    for method in METHODS {
        let on = |threads| on_threads(threads, || bits(&mut trained(&options(method, 0.3)).session));
        assert!(on(1) == on(3), "{method:?}");
    }
}

#[test]
fn an_interrupted_run_continues_to_the_same_bits() {
    for method in METHODS {
        let distillation = (method == Method::Movement).then_some(Distillation::PUBLISHED);
        let options = Options { distillation, ..options(method, 0.3) };
        let mut whole = trained(&options);
        for stops in [vec![2], vec![4, 9]] {
            let mut resumed = interrupted(&stops, 12, |saved, progress| run(&options, saved, progress));
            assert_eq!(resumed.history.best, whole.history.best, "{method:?}");
            assert_eq!(losses(&resumed.history), losses(&whole.history), "{method:?} {stops:?}");
            assert!(bits(&mut resumed.session) == bits(&mut whole.session), "{method:?} {stops:?}");
        }
    }
}

/// Three steps of SMP, head frozen too, of every family that it was published for and every kind of task.
#[test]
fn every_family_and_task_learns_masks_of_frozen_weights() {
    let tasks = [("mrpc", CLASSES), ("sts-b", Head::Regression), ("squad", Head::Span)];
    let recipe = Recipe { epochs: 1, ..recipe() };
    for family in ["bert", "roberta", "distilbert"] {
        for (name, head) in tasks {
            let what = format!("{family} {name}");
            let task = Task::by_name(name).expect("a known task");
            let data = Dataset { examples: models::examples(family, head, 24, 5), ..Dataset::default() };
            let options = Options {
                head: SparseHead::LabelWords,
                masking: Masking::Local,
                ..options(Method::Smp, 0.3)
            };
            let mut before = models::model(family, head, 0.1);
            masked::prepare_model(&mut before, &options);
            let train = |run: &finetune::Options, progress: &Progress| {
                train_on((&task, &data, false), before.clone(), &options, &recipe, None, run, progress)
            };
            let (mut session, history) =
                train(&finetune::Options::default(), &Progress::silent()).expect("trains");
            assert_eq!(history.epochs[0].steps, 3, "{what}");
            let (mut resumed, _) = interrupted(&[1, 2], 3, train);
            assert!(bits(&mut resumed) == bits(&mut session), "{what}: other bits after interruptions");

            let masks = masked::weight_masks(&mut session).expect("masks");
            assert_eq!(masks.matrices.len(), 12, "{what}");
            for mask in &masks.matrices {
                assert_eq!(mask.kept(), (0.3 * mask.len() as f64) as usize, "{what}: {}", mask.name);
            }
            let layout = session.model().layout().clone();
            let scores = session.executor().read_block(Block::Scores).expect("scores");
            assert!(
                scores.iter().any(|score| score.is_finite() && *score != 0.0),
                "{what}: nothing was learnt"
            );
            let applied = session.executor().read_block(Block::Parameters).expect("parameters");
            let zeros =
                layout.masked().flat_map(|p| applied[p.range()].to_vec()).filter(|x| *x == 0.0).count();
            assert!(zeros >= masks.total() - masks.kept(), "{what}: {zeros} zeros");
            let after = masked::into_model(session).expect("a model");
            for (_, parameter) in layout.iter() {
                let same = |values: &[f32]| -> Vec<u32> {
                    values[parameter.range()].iter().map(|value| value.to_bits()).collect()
                };
                assert!(same(&after.values) == same(&before.values), "{what}: {} moved", parameter.name);
            }
        }
    }
}

#[test]
fn learning_masks_alone_learns_the_rows_by_heart() {
    let options = Options { lambda: 0.0, ..options(Method::Smp, 0.5) };
    let recipe = Recipe { epochs: 80, ..recipe() };
    let (run, progress) = (finetune::Options::default(), Progress::silent());
    let (_, history) =
        train_masked(padded(&options), &options, &recipe, None, &run, &progress).expect("trains");
    let last = history.epochs.last().expect("epochs");
    assert!(last.loss < 0.5 * history.epochs[0].loss, "{:?}", history.epochs);
}

#[test]
fn what_is_frozen_takes_no_memory() {
    let options = options(Method::Smp, 0.3);
    let Outcome { session, .. } = trained(&options);
    let layout = session.model().layout().clone();
    let masked = Block::Scores.stretch(&layout).len();
    // Nothing stands between the masked matrices.
    assert_eq!(masked, layout.masked().map(|p| p.span().next_multiple_of(64)).sum::<usize>());
    let head: usize =
        layout.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.span().next_multiple_of(64)).sum();
    for block in [Block::Weights, Block::Scores, Block::ScoreFirstMoment, Block::ScoreSecondMoment] {
        assert_eq!(block.stretch(&layout).len(), masked);
    }
    assert_eq!(Block::FirstMoment.stretch(&layout).len(), head);
    assert!(Block::Gradients.stretch(&layout).len() >= masked + head);
    assert!(
        Block::Gradients.stretch(&layout).len()
            < layout.block_len()
                - layout.get(layout.find("bert.embeddings.word_embeddings.weight").unwrap()).span()
                + 64
    );
}

#[test]
fn losses_that_are_not_finite_stop_a_run_with_a_name() {
    let options = options(Method::Movement, 0.3);
    let mut model = padded(&options);
    let first = model.layout().masked().next().expect("a matrix").offset;
    model.values[first] = f32::INFINITY;
    let (run, progress) = (finetune::Options::default(), Progress::silent());
    let error = train_masked(model, &options, &recipe(), None, &run, &progress).err().expect("not finite");
    assert!(error.to_string().contains("training step 1"), "{error}");
}

/// One step of each method on a device: gradients of the scores by their first moments, and the masks.
#[test]
fn steps_on_a_device_follow_the_cpu() {
    let device = device(Precision::F32);
    for method in METHODS {
        let options = Options { prune_steps: Some(0), ..options(method, 0.3) };
        let step = |device: Device| {
            let mut session = Session::new(padded(&options), device).expect("a session");
            let data = Dataset { examples: models::examples("bert", CLASSES, 4, 5), ..Dataset::default() };
            let lengths = data.lengths();
            let rows: Vec<usize> = (0..4).collect();
            let capacity = secateur::session::capacity(std::slice::from_ref(&rows), &lengths);
            let size = RunSize { total_steps: 100, epoch_steps: 1, capacity };
            let mut trainer = MaskedTrainer::new(&mut session, &recipe(), &options, &task(), None, 3, size)
                .expect("a trainer");
            let layout = session.model().layout().clone();
            if options.has_scores() {
                let mut random = Random(4);
                let mut scores = session.executor().read_block(Block::Scores).expect("scores");
                for score in scores.iter_mut().filter(|score| score.is_finite()) {
                    *score = random.normal() as f32;
                }
                session.executor().write_block(Block::Scores, &scores).expect("scores");
            }
            let one = Step { cursor: Cursor::default(), micro_batches: vec![rows] };
            let report = trainer.run(&mut session, &data, &one).expect("a step");
            let masks = session.executor().read_masks().expect("bits");
            let moments = [Block::ScoreFirstMoment, Block::FirstMoment]
                .map(|block| session.executor().read_block(block).expect("moments"));
            let parameters = session.executor().read_block(Block::Parameters).expect("parameters");
            let masked: Vec<f32> = layout.masked().flat_map(|p| parameters[p.range()].to_vec()).collect();
            (report, masks, moments, masked)
        };
        let (expected, found) = (step(Device::Cpu), step(device));
        assert!((found.0.loss - expected.0.loss).abs() < 1e-4, "{method:?}");
        assert!((found.0.gradient_norm - expected.0.gradient_norm).abs() < 1e-3 * expected.0.gradient_norm);
        assert!(found.1 == expected.1, "{method:?}: other bits");
        for (found, expected) in found.2.iter().zip(&expected.2) {
            let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-3 * largest, "{method:?}: moment {found}, {expected}");
            }
        }
        for (found, expected) in found.3.iter().zip(&expected.3) {
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs().max(0.1),
                "{method:?}: {found}, {expected}"
            );
        }
    }
}
