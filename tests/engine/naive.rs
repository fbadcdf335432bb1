//! Low precision against the plain way to compute in it.
//!
//! The rule is that of the flash-attention tests, for whole models: a result is at most 2 times, a gradient at most 3 times
//! as far from exact arithmetic as the naive computation is, which is the reference executor with every parameter and the
//! result of every operation rounded to the precision. Distances are Euclidean, over all logits and over the gradient of
//! every matrix, so that no single number that happens to come out right decides. Statistics, losses and logits (slots of
//! fewer than 8 columns) keep their precision in both.

use secateur::exec::Block;
use secateur::launch::Precision;
use secateur::model::{EmitOptions, Head, Logits};
use secateur::program::{Access, Element, Extents, Mode};
use secateur::session::{Device, Prepared, Session, Weighting};

use crate::{models, runs};

/// Results and gradients of one step.
struct Results {
    outputs: Vec<f64>,
    /// By the name of the matrix.
    gradients: Vec<(String, Vec<f64>)>,
}

/// A number as `precision` holds it.
fn rounded(precision: Precision, x: f64) -> f64 {
    match precision {
        Precision::F32 => f64::from(x as f32),
        Precision::Bf16 => f64::from(half::bf16::from_f64(x).to_f32()),
        Precision::F16 => f64::from(half::f16::from_f64(x).to_f32()),
        // 10 bits of fraction, ties away from zero.
        Precision::Tf32 => f64::from(f32::from_bits((x as f32).to_bits().wrapping_add(1 << 12) & !0x1fff)),
    }
}

/// Runs a program operation by operation and rounds what each of them writes.
fn run_naively(session: &mut Session, prepared: &Prepared, extents: &Extents, precision: Precision) {
    let (id, program) = (prepared.id, &prepared.slots.program);
    let executor = session.executor();
    for (index, op) in program.ops().iter().enumerate() {
        executor.run_range(id, index..index + 1, extents).expect("runs");
        let mut written = Vec::new();
        op.visit(|slot, access| {
            let root = program.root(slot);
            let slot = program.slot(root);
            if access != Access::Read && slot.element == Element::Float && slot.cols >= 8 {
                written.push(root);
            }
        });
        for slot in written {
            let values = executor.read_wide(id, slot, extents).expect("reads");
            let values: Vec<f64> = values.into_iter().map(|x| rounded(precision, x)).collect();
            executor.write_wide(id, slot, &values).expect("writes");
        }
    }
}

/// One step of a model; rounded to `naive` throughout, if given.
fn step(family: &str, head: Head, mode: Mode, device: Device, naive: Option<Precision>) -> Results {
    let batch = models::batch(&models::examples(family, head, 6, 3));
    let mut model = models::model(family, head, 0.0);
    if let Some(precision) = naive {
        model.values.iter_mut().for_each(|x| *x = rounded(precision, f64::from(*x)) as f32);
    }
    let layout = model.layout().clone();
    let mut session = Session::new(model, device).expect("a session");
    let language = head.is_language_model();
    let options = EmitOptions {
        loss: mode.gradients || language,
        logits: if language { Logits::None } else { Logits::All },
        ..EmitOptions::default()
    };
    let prepared = session.prepare(mode, &options, models::capacity(&batch)).expect("a program");
    if mode.gradients {
        let zeros = vec![0.0; session.executor().block_len(Block::Gradients)];
        session.executor().write_block(Block::Gradients, &zeros).expect("gradients");
    }
    let extents =
        session.feed(&prepared, &batch, Weighting::Mean { total: batch.targets.len() }).expect("feeds");
    match naive {
        Some(precision) => run_naively(&mut session, &prepared, &extents, precision),
        None => session.run(&prepared, &extents).expect("runs"),
    }
    let slot = prepared.slots.logits.or(prepared.slots.losses).expect("logits or losses");
    let outputs = session.read_wide(&prepared, slot, &extents).expect("reads");
    let block = if mode.gradients {
        session.executor().read_block(Block::Gradients).expect("gradients")
    } else {
        vec![]
    };
    let start = Block::Gradients.stretch(&layout).start;
    let matrices = layout.iter().map(|(_, p)| p).filter(|p| mode.gradients && p.rows > 1 && p.cols >= 8);
    let gradients = matrices.map(|p| {
        let values = (0..p.rows).flat_map(|row| {
            let first = p.offset - start + row * p.ld();
            block[first..first + p.cols].iter().map(|&x| f64::from(x))
        });
        (p.name.clone(), values.collect())
    });
    Results { outputs, gradients: gradients.collect() }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// Holds a step of `precision` against the rule.
fn check(family: &str, head: Head, mode: Mode, precision: Precision) {
    let exact = step(family, head, mode, Device::Reference, None);
    let naive = step(family, head, mode, Device::Reference, Some(precision));
    let found = step(family, head, mode, runs::device(precision), None);
    let what = format!("{family} {head:?} {}", precision.name());
    let allowed = 2.0 * distance(&naive.outputs, &exact.outputs);
    let apart = distance(&found.outputs, &exact.outputs);
    assert!(allowed > 0.0 && apart <= allowed, "{what}: outputs are {apart:e} off, {allowed:e} are allowed");
    for (i, (name, exact)) in exact.gradients.iter().enumerate() {
        let allowed = 3.0 * distance(&naive.gradients[i].1, exact);
        let apart = distance(&found.gradients[i].1, exact);
        assert!(apart <= allowed, "{what}: the gradient of {name} is {apart:e} off, {allowed:e} are allowed");
    }
}

#[test]
fn training_steps_are_no_worse_than_naive_ones() {
    for family in ["bert", "gpt2"] {
        for precision in [Precision::Tf32, Precision::Bf16] {
            check(family, Head::Classification { labels: 3 }, Mode::TRAIN, precision);
        }
    }
}

#[test]
fn forward_passes_in_f16_are_no_worse_than_naive_ones() {
    for (family, head) in [
        ("bert", Head::Classification { labels: 3 }),
        ("roberta", Head::MaskedLm),
        ("distilbert", Head::Span),
        ("gpt2", Head::CausalLm),
        ("opt", Head::Regression),
    ] {
        check(family, head, Mode::EVALUATE, Precision::F16);
    }
}
