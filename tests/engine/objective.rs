//! What a teacher adds to a loss: values and gradients of every head against the formulas, written down again in f64, and
//! their difference quotients; and a language model that learns from another.

use std::sync::Arc;

use secateur::data::{Batch, Cursor, Dataset, Example, Step, Target};
use secateur::exec::Block;
use secateur::launch::Precision;
use secateur::model::{EmitOptions, Head, Logits, Model};
use secateur::program::Mode;
use secateur::progress::Progress;
use secateur::prune::sparse::{Distillation, Head as SparseHead, Method, Options};
use secateur::session::{Device, Prepared, Session, Weighting};
use secateur::train::finetune::{self, History};
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::objective::Objective;
use secateur::train::stepper::{RunSize, Stepper};
use secateur::train::teacher::Teacher;

use crate::runs::{bits, device, interrupted, losses, on_threads, recipe, train_on};
use crate::support::numbers::Random;
use crate::{masked as masked_tests, models};

/// Not the published weights: those are alike.
const DISTILLATION: Distillation = Distillation { task_weight: 0.3, teacher_weight: 0.9, temperature: 3.0 };

/// Losses of the whole step beside those of the micro-batch.
const OTHERS: usize = 3;

fn log_softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|x| x / temperature).collect();
    let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scaled.iter().map(|x| (x - largest).exp()).sum();
    scaled.iter().map(|x| x - largest - sum.ln()).collect()
}

/// a·CE + b·T²·KL(teacher ‖ student).
fn of_classes(student: &[f64], teacher: &[f64], label: usize) -> f64 {
    let Distillation { task_weight, teacher_weight, temperature } = DISTILLATION;
    let (soft, said) = (log_softmax(student, temperature), log_softmax(teacher, temperature));
    let divergence: f64 = said.iter().zip(&soft).map(|(t, s)| t.exp() * (t - s)).sum();
    -task_weight * log_softmax(student, 1.0)[label] + teacher_weight * temperature.powi(2) * divergence
}

/// A student, and what its teacher says of the rows as numbers in f64, a list a row.
struct Case {
    session: Session,
    batch: Batch,
    data: Dataset,
    teacher: Arc<Teacher>,
    said: Vec<Vec<f64>>,
    logits: Prepared,
}

impl Case {
    fn new(family: &str, head: Head) -> Case {
        let examples = models::examples(family, head, 5, 21);
        let batch = models::batch(&examples);
        let mut session =
            Session::new(models::model(family, head, 0.0), Device::Reference).expect("a session");
        let kept = if head == Head::CausalLm { Logits::Targets } else { Logits::All };
        let emit = EmitOptions { logits: kept, ..EmitOptions::default() };
        let logits = session.prepare(Mode::EVALUATE, &emit, models::capacity(&batch)).expect("prepared");
        let mut random = Random(5);
        let mut teacher = Teacher::default();
        let mut said = Vec::new();
        if head == Head::CausalLm {
            let mut model = models::model(family, head, 0.0);
            model.values.iter_mut().for_each(|value| *value *= 1.25);
            let mut other = Session::of(&model, Device::Reference).expect("a session");
            let prepared = other.prepare(Mode::EVALUATE, &emit, models::capacity(&batch)).expect("prepared");
            said = answers(&mut other, &prepared, &batch, 50);
            teacher = Teacher::of_language_model(model, Device::Reference);
        } else {
            for example in &examples {
                let count = match head {
                    Head::Span => 2 * example.length(),
                    Head::Classification { labels } => labels,
                    _ => 1,
                };
                let row: Vec<f32> = (0..count).map(|_| random.normal() as f32).collect();
                said.push(row.iter().map(|&x| f64::from(x)).collect());
                teacher.outputs.push(row);
            }
        }
        let data = Dataset { examples, ..Dataset::default() };
        Case { session, batch, data, teacher: Arc::new(teacher), said, logits }
    }

    /// The loss of the micro-batch by the formulas, from the student's logits alone.
    fn by_formula(&mut self, width: usize) -> f64 {
        let student = answers(&mut self.session, &self.logits, &self.batch, width);
        let row = |(student, (teacher, example)): (&Vec<f64>, (&Vec<f64>, &Example))| match example.target {
            Target::Class(label) => of_classes(student, teacher, label as usize),
            Target::Value(target) => {
                let Distillation { task_weight, teacher_weight, .. } = DISTILLATION;
                task_weight * (student[0] - f64::from(target)).powi(2)
                    + teacher_weight * (student[0] - teacher[0]).powi(2)
            }
            Target::Span { start, end } => {
                let ends = [start, end].into_iter().enumerate().map(|(which, at)| {
                    let of = |pairs: &[f64]| pairs.iter().skip(which).step_by(2).copied().collect::<Vec<_>>();
                    of_classes(&of(student), &of(teacher), at as usize)
                });
                ends.sum::<f64>() / 2.0
            }
            _ => {
                let vocabulary = 50;
                let predicted = example.input_ids[1..].iter().map(|&id| id as usize);
                let rows = student.chunks(vocabulary).zip(teacher.chunks(vocabulary));
                rows.zip(predicted).map(|((s, t), label)| of_classes(s, t, label)).sum()
            }
        };
        let rows = student.iter().zip(self.said.iter().zip(&self.data.examples));
        rows.map(row).sum::<f64>() / self.total() as f64
    }

    fn total(&self) -> usize {
        self.batch.targets.len() + OTHERS
    }
}

/// A list of logits a row of the batch; `width` a token of a language model.
fn answers(session: &mut Session, prepared: &Prepared, batch: &Batch, width: usize) -> Vec<Vec<f64>> {
    let extents = session.feed(prepared, batch, Weighting::EachRow).expect("fed");
    session.run(prepared, &extents).expect("ran");
    let values = session.read_wide(prepared, prepared.slots.logits.expect("logits"), &extents).expect("read");
    let per_row = batch.cu_seqlens.windows(2).map(|bounds| match session.model().architecture.head {
        Head::Span => 2 * (bounds[1] - bounds[0]) as usize,
        // Every token but the last of a row predicts.
        Head::CausalLm => width * (bounds[1] - bounds[0] - 1) as usize,
        _ => width,
    });
    let mut rest = values.as_slice();
    per_row
        .map(|count| {
            let (row, after) = rest.split_at(count);
            rest = after;
            row.to_vec()
        })
        .collect()
}

#[test]
fn losses_and_gradients_with_a_teacher_are_those_of_the_formulas() {
    let heads = [
        ("bert", Head::Classification { labels: 3 }, 3),
        ("distilbert", Head::Regression, 1),
        ("roberta", Head::Span, 2),
        ("gpt2", Head::CausalLm, 50),
        ("opt", Head::CausalLm, 50),
    ];
    for (family, head, width) in heads {
        let mut case = Case::new(family, head);
        let mut objective =
            Objective::new(Some(DISTILLATION), Some(case.teacher.clone()), None).expect("valid");
        let capacity = models::capacity(&case.batch);
        objective.prepare(capacity).expect("a teacher");
        let emit = objective.emit_options(head == Head::Regression);
        let prepared = case.session.prepare(Mode::TRAIN, &emit, capacity).expect("prepared");
        let layout = case.session.model().layout().clone();
        let zeros = vec![0.0; Block::Gradients.stretch(&layout).len()];
        case.session.executor().write_block(Block::Gradients, &zeros).expect("zeroed");
        let step = Step { cursor: Cursor::default(), micro_batches: vec![case.batch.rows.clone()] };
        let total = case.total();
        let Case { session, batch, data, .. } = &mut case;
        let extents = objective.feed(session, &prepared, data, batch, (&step, total), 0).expect("fed");
        session.run(&prepared, &extents).expect("ran");
        let loss = objective.loss(session, &prepared, batch, total, &extents, String::new).expect("finite");
        let gradients = session.executor().read_block(Block::Gradients).expect("gradients");
        let expected = case.by_formula(width);
        // Losses are read, and teachers and weights written, in f32.
        assert!(
            (loss - expected).abs() <= 1e-5 * expected,
            "{family} {head:?}: {loss}, by formula {expected}"
        );

        let start = Block::Gradients.stretch(&layout).start;
        let parameters = case.session.executor().read_block(Block::Parameters).expect("parameters");
        let mut random = Random(9);
        for round in 0..4 {
            let direction: Vec<f64> = parameters.iter().map(|_| random.normal() * 2f64.powi(-20)).collect();
            let [above, below] = [1.0, -1.0].map(|sign| {
                let moved = parameters.iter().zip(&direction).map(|(x, d)| (f64::from(*x) + sign * d) as f32);
                moved.collect::<Vec<f32>>()
            });
            let mut loss_at = |values: &[f32]| {
                case.session.executor().write_block(Block::Parameters, values).expect("parameters");
                case.by_formula(width)
            };
            let numeric = loss_at(&above) - loss_at(&below);
            let terms = layout.iter().flat_map(|(_, p)| {
                let place = move |i: usize| p.offset + i / p.cols * p.ld() + i % p.cols;
                (0..p.len()).map(place)
            });
            let terms: Vec<f64> = terms
                .map(|at| f64::from(gradients[at - start]) * (f64::from(above[at]) - f64::from(below[at])))
                .collect();
            let (analytic, scale) =
                (terms.iter().sum::<f64>(), terms.iter().map(|x| x.powi(2)).sum::<f64>().sqrt());
            assert!(
                (numeric - analytic).abs() <= 1e-5 * scale,
                "{family} {head:?}, direction {round}: {numeric} is not {analytic} (scale {scale})"
            );
        }
    }
}

fn text() -> Dataset {
    Dataset { examples: models::examples("gpt2", Head::CausalLm, 30, 5), ..Dataset::default() }
}

/// A language model's teacher that is not its student.
fn teacher(device: Device) -> Arc<Teacher> {
    let mut model = models::model("gpt2", Head::CausalLm, 0.1);
    model.values.iter_mut().for_each(|value| *value *= 1.25);
    Arc::new(Teacher::of_language_model(model, device))
}

fn student(options: &Options) -> Model {
    let mut model = models::model("gpt2", Head::CausalLm, 0.1);
    masked::prepare_model(&mut model, options);
    model
}

fn options(method: Method) -> Options {
    Options {
        head: SparseHead::LabelWords,
        distillation: Some(Distillation::PUBLISHED),
        ..masked_tests::options(method, 0.4)
    }
}

fn run(
    options: &Options,
    run: &finetune::Options,
    progress: &Progress,
) -> secateur::Result<(Session, History)> {
    let task = secateur::data::Task::by_name("lm").expect("a known task");
    let taught = options.distillation.map(|_| teacher(Device::Cpu));
    train_on((&task, &text(), true), student(options), options, &recipe(), taught, run, progress)
}

#[test]
fn a_language_model_learns_from_another_to_the_same_bits() {
    for method in [Method::Smp, Method::Movement] {
        let options = options(method);
        let on = |threads| {
            on_threads(threads, || {
                let (mut session, history) =
                    run(&options, &finetune::Options::default(), &Progress::silent()).expect("trains");
                (bits(&mut session), losses(&history))
            })
        };
        let (expected, history) = on(1);
        assert!(on(3) == (expected.clone(), history.clone()), "{method:?}: other bits on three threads");
        let (mut resumed, again) = interrupted(&[2, 5], 12, |saved, progress| run(&options, saved, progress));
        assert_eq!(losses(&again), history, "{method:?}");
        assert!(bits(&mut resumed) == expected, "{method:?}");
        let alone = Options { distillation: None, ..options.clone() };
        let (mut alone, _) = run(&alone, &finetune::Options::default(), &Progress::silent()).expect("trains");
        assert!(bits(&mut alone) != expected, "{method:?}: the teacher changes nothing");
    }
}

#[test]
fn a_language_model_on_a_device_learns_as_on_the_cpu() {
    let options = options(Method::Movement);
    let data = text();
    let step = |device: Device| {
        let mut session = Session::new(student(&options), device).expect("a session");
        let rows: Vec<usize> = (0..3).collect();
        let capacity = secateur::session::capacity(std::slice::from_ref(&rows), &data.lengths());
        let size = RunSize { total_steps: 100, epoch_steps: 1, capacity };
        let task = secateur::data::Task::by_name("lm").expect("a known task");
        let taught = Some(teacher(device));
        let mut trainer =
            MaskedTrainer::new(&mut session, &recipe(), &options, &task, taught, 3, size).expect("a trainer");
        let one = Step { cursor: Cursor::default(), micro_batches: vec![rows] };
        trainer.run(&mut session, &data, &one).expect("a step")
    };
    let (expected, found) = (step(Device::Cpu), step(device(Precision::F32)));
    assert!((found.loss - expected.loss).abs() < 1e-4 * expected.loss, "{found:?}, on the CPU {expected:?}");
    let (found, expected) = (found.gradient_norm, expected.gradient_norm);
    assert!((found - expected).abs() < 1e-3 * expected, "{found}, on the CPU {expected}");
}
