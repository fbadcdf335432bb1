//! Seven tiny checkpoints against what transformers computes from them in f64.
//!
//! Two statements make one: the f64 executor equals transformers (here), and the f32 executor equals the f64 one,
//! operation by operation within its bound (lock-step) and over a whole step within twice the rounding noise that
//! the step itself amplifies ([`noise`]). The committed subset holds sums where the full set holds tensors.

mod fixture;
mod noise;

use secateur::exec::lockstep;
use secateur::model::{EmitOptions, Logits};
use secateur::program::{AdamWForm, Mode};
use secateur::session::Device;
use secateur::train::update::{Update, zero_gradients};

use crate::support::numbers::{U64, gamma};

use self::fixture::{COMMITTED, Fixture, Masks, Weights, assert_close, column_sums};

/// f64 against f64, relative to the largest element: both round differently in every operation.
const F64: f64 = 1e-9;

/// Error of a sum that cancels, relative to its terms: f64 rounding over the longest sums here.
fn cancelled() -> f64 {
    gamma(1024, U64)
}

fn everything() -> EmitOptions {
    EmitOptions {
        loss: true,
        logits: Logits::All,
        keep_hidden: true,
        keep_hooks: true,
        ..EmitOptions::default()
    }
}

fn masked(options: EmitOptions) -> EmitOptions {
    EmitOptions { head_masks: true, neuron_masks: true, ..options }
}

/// Runs a check on every fixture that is there; the committed two always are.
fn on_every(check: impl Fn(&Fixture)) {
    Fixture::all().iter().for_each(check);
}

/// Without the full set the committed fixtures are all that is compared, so they must be what it says.
#[test]
fn the_committed_fixtures_are_cut_from_the_full_set() {
    for full in Fixture::all().iter().filter(|fixture| fixture.full) {
        if COMMITTED.contains(&full.name) {
            Fixture::committed(full.name).assert_cut_from(full);
        }
    }
}

#[test]
fn forward_loss_and_gradients_equal_transformers() {
    on_every(|fixture| {
        let mut session = fixture.session(Device::Reference);
        let run = fixture.run(&mut session, Mode::TRAIN, &everything(), 0..24, Weights::Mean, None);
        let expected = &fixture.expected;
        let columns = |name: &str| run.columns(name);
        for (name, values) in &run.kept {
            if expected.has(&format!("{name}.colsum")) {
                let sums = column_sums(values, columns(name));
                assert_close(&fixture.what(name), &expected.f64(&format!("{name}.colsum")), &sums, F64);
            }
            if fixture.full && expected.has(name) {
                // The first rows of the batch only.
                let reference = expected.f64(name);
                assert_close(&fixture.what(name), &reference, &values[..reference.len()], F64);
            }
        }
        assert!(run.kept.len() >= 8, "{}: logits, hidden states and hooks are compared", fixture.name);
        let rows = fixture.loss_by_row(&run);
        assert_close(&fixture.what("loss_per_row"), &expected.f64("loss_per_row"), &rows, F64);
        assert_close(&fixture.what("loss"), &expected.f64("loss"), &[run.loss()], F64);

        let grads = &fixture.grads;
        let total: f64 = run.gradients.values().flatten().map(|g| g * g).sum();
        for (name, gradient) in &run.gradients {
            let what = fixture.what(&format!("gradient of {name}"));
            let [sum, squares] = grads.f64(&format!("sums/{name}"))[..] else { panic!("{what}") };
            let found: f64 = gradient.iter().map(|g| g * g).sum();
            assert!((found - squares).abs() <= F64 * squares.max(F64 * total), "{what}: {found} {squares}");
            let size: f64 = gradient.iter().map(|g| g.abs()).sum();
            let floor = cancelled() * total.sqrt();
            let allowed = F64 * size + gradient.len() as f64 * floor;
            assert!((gradient.iter().sum::<f64>() - sum).abs() <= allowed, "{what}");
            fixture.check_projections(grads, name, gradient, "grad", floor);
        }
    });
}

#[test]
fn five_adamw_steps_equal_torch() {
    on_every(|fixture| {
        let mut session = fixture.session(Device::Reference);
        let layout = session.model().layout().clone();
        let batch = fixture.batch(0..24);
        let extents = fixture.extents(&batch);
        let options = EmitOptions { loss: true, ..EmitOptions::default() };
        let step = session.prepare(Mode::TRAIN, &options, extents).unwrap();
        let update = Update::emit(layout.clone(), 1.0, AdamWForm::Torch);
        let executor = session.executor();
        let zero = executor.prepare(zero_gradients(layout.clone()), extents).unwrap();
        let adamw = executor.prepare(update.program.clone(), extents).unwrap();
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for number in 1..=6 {
            session.executor().run(zero, &extents).unwrap();
            let run = fixture.run_prepared(&mut session, &step, &batch, Weights::Mean);
            losses.push(run.loss());
            if number == 6 {
                break;
            }
            let correction = |beta: f64| 1.0 - beta.powi(number);
            let hyper = [1e-3, 0.9, 0.999, 1e-8, 0.01, correction(0.9), correction(0.999)];
            let executor = session.executor();
            executor.write_wide(adamw, update.hyper, &hyper).unwrap();
            executor.run(adamw, &extents).unwrap();
            norms.push(executor.read_wide(adamw, update.norm, &extents).unwrap()[0]);
        }
        let train = &fixture.train;
        assert_close(&fixture.what("losses"), &train.f64("losses"), &losses, F64);
        assert_close(&fixture.what("gradient norms"), &train.f64("grad_norms"), &norms, F64);
        // dΔ/dg of m̂/(√v̂ + ε) is at most 1/ε: that is how far a step carries an error of a small gradient.
        let floor = 5.0 * (1e-3 / 1e-8) * cancelled() * norms[0].min(1.0);
        for (_, parameter) in layout.iter() {
            let name = &parameter.name;
            let slot = step.slots.program.find(name).unwrap();
            let values = session.read_wide(&step, slot, &extents).unwrap();
            // Where the exact gradient is 0 torch's is rounding noise, which AdamW divides by its own size.
            let noise = fixture.noisy_gradient(name);
            if noise.iter().any(|&noisy| noisy) {
                continue;
            }
            let what = fixture.what(&format!("{name} after five steps"));
            let [sum, squares] = train.f64(&format!("sums/{name}"))[..] else { panic!("{what}") };
            let magnitude: f64 = values.iter().map(|v| v.abs()).sum();
            let allowed = F64 * magnitude + values.len() as f64 * floor;
            assert!((values.iter().sum::<f64>() - sum).abs() <= allowed, "{what}");
            let allowed = F64 * squares + 2.0 * magnitude * floor;
            assert!((values.iter().map(|v| v * v).sum::<f64>() - squares).abs() <= allowed, "{what}");
            fixture.check_projections(train, name, &values, "param", floor);
        }
    });
}

#[test]
fn masked_models_equal_transformers() {
    on_every(|fixture| {
        let mut session = fixture.session(Device::Reference);
        let options = masked(EmitOptions { loss: true, logits: Logits::All, ..EmitOptions::default() });
        for case in ["binary", "empty", "real"] {
            let masks = fixture.masks(case);
            let run = fixture.run(&mut session, Mode::EVALUATE, &options, 0..24, Weights::Mean, Some(&masks));
            fixture.check_masked(case, &run.kept["logits"], run.loss());
        }
    });
}

#[test]
fn mask_gradients_equal_transformers_by_example_and_by_batch() {
    on_every(|fixture| {
        let mut session = fixture.session(Device::Reference);
        let options = masked(EmitOptions { loss: true, ..EmitOptions::default() });
        let mode = Mode { mask_gradients: true, ..Mode::EVALUATE };
        for case in ["ones", "real"] {
            let masks = match case {
                "ones" => Masks::ones(session.model()),
                _ => fixture.masks(case),
            };
            let run = fixture.run(&mut session, mode, &options, 0..24, Weights::EachRow, Some(&masks));
            for (kind, found) in [("dhead", run.head_gradients()), ("dneuron", run.neuron_gradients())] {
                let name = format!("{case}.{kind}_per_example");
                if fixture.full || fixture.masked.has(&name) {
                    assert_close(&fixture.what(&name), &fixture.masked.f64(&name), &found, F64);
                }
            }
            let (mut heads, mut neurons) = (Vec::new(), Vec::new());
            for first in [0, 8, 16] {
                let rows = first..first + 8;
                let run = fixture.run(&mut session, mode, &options, rows, Weights::Mean, Some(&masks));
                heads.extend(column_sums(&run.head_gradients(), run.head_gradients().len() / 8));
                neurons.extend(column_sums(&run.neuron_gradients(), run.neuron_gradients().len() / 8));
            }
            for (kind, found) in [("dhead", heads), ("dneuron", neurons)] {
                let name = format!("{case}.{kind}_per_batch");
                assert_close(&fixture.what(&name), &fixture.masked.f64(&name), &found, F64);
            }
        }
    });
}

#[test]
fn the_f32_executor_keeps_to_the_f64_one_operation_by_operation() {
    on_every(|fixture| {
        for (mode, masks) in [
            (Mode::TRAIN, None),
            (Mode { mask_gradients: true, gradients: true, dropout: false }, Some(fixture.masks("real"))),
            (Mode { mask_gradients: true, ..Mode::EVALUATE }, Some(fixture.masks("empty"))),
        ] {
            let options = if masks.is_some() { masked(everything()) } else { everything() };
            let batch = fixture.batch(0..24);
            let extents = fixture.extents(&batch);
            let mut sessions = [Device::Reference, Device::Cpu].map(|device| fixture.session(device));
            let prepared = sessions.each_mut().map(|session| {
                let prepared = session.prepare(mode, &options, extents).unwrap();
                fixture.write_inputs(session, &prepared, &batch, Weights::Mean, masks.as_ref());
                let layout = session.model().layout().clone();
                let zero = session.executor().prepare(zero_gradients(layout), extents).unwrap();
                session.executor().run(zero, &extents).unwrap();
                prepared
            });
            let [oracle, candidate] = &mut sessions;
            let found = lockstep::compare(
                oracle.executor(),
                prepared[0].id,
                candidate.executor(),
                prepared[1].id,
                &extents,
            );
            if let Some(divergence) = found.unwrap() {
                panic!("{}: {divergence}", fixture.name);
            }
        }
    });
}

#[test]
fn a_whole_step_in_f32_errs_at_most_twice_the_naive_rounding_noise() {
    on_every(|fixture| {
        let mode = Mode { mask_gradients: true, gradients: true, dropout: false };
        let masks = fixture.masks("real");
        let options = masked(everything());
        let run = |device| {
            let mut session = fixture.session(device);
            fixture.run(&mut session, mode, &options, 0..24, Weights::Mean, Some(&masks))
        };
        let exact = run(Device::Reference).all();
        let found = run(Device::Cpu).all();
        let mut allowed = vec![0.0f64; exact.len()];
        for draw in 0..3 {
            let mut session = fixture.session(Device::Reference);
            let noisy = noise::run(fixture, &mut session, mode, &options, Some(&masks), draw).all();
            for ((allowed, (_, exact)), (_, noisy)) in allowed.iter_mut().zip(&exact).zip(&noisy) {
                *allowed = allowed.max(2.0 * noise::distance(exact, noisy));
            }
        }
        for (((name, exact), (_, found)), allowed) in exact.iter().zip(&found).zip(&allowed) {
            let error = noise::distance(exact, found);
            assert!(error <= *allowed, "{}: error {error:e}, allowed {allowed:e}", fixture.what(name));
        }
    });
}
