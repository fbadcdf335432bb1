//! The rescaling: solver, systems, and the whole chain.

use secateur::progress::Progress;
use secateur::prune::Job;
use secateur::prune::lsmr::{LsmrOptions, lsmr_symmetric};
use secateur::prune::mask_tuning::{
    OnReject, RescaleOptions, SublayerTrace, System, rescale, rescale_observed,
};
use secateur::session::Device;
use serde_json::Value;

use super::case::{BATCH, Case, masks_of, tensors};
use crate::support::tensors::Tensors;

/// Runs of the fixture: model, keep, file.
const RUNS: [(&str, &str, &str); 6] = [
    ("bert_cls", "0.5", "rescale_0.5_maxiter10"),
    ("bert_cls", "0.7", "rescale_0.7"),
    ("bert_cls", "0.7", "rescale_0.7_maxiter10"),
    ("bert_reg", "0.5", "rescale_0.5_maxiter10"),
    ("bert_qa", "0.5", "rescale_0.5"),
    ("bert_qa", "0.7", "rescale_0.7_maxiter10"),
];

fn options(file: &str) -> RescaleOptions {
    let iterations_per_unknown = if file.ends_with("maxiter10") { 10 } else { 1 };
    RescaleOptions { iterations_per_unknown, ..RescaleOptions::authors() }
}

fn job<'a>(case: &'a Case, device: Device, progress: &'a Progress) -> Job<'a> {
    Job {
        model: &case.model,
        device,
        examples: &case.examples,
        batch_rows: BATCH,
        cost: &case.cost,
        keep: &[],
        seed: 0,
        progress,
    }
}

fn trace<'a>(case: &'a Case, file: &str) -> &'a [Value] {
    case.trace["rescale"][file.trim_start_matches("rescale_")]["trace"].as_array().unwrap()
}

/// "M.neurons.2" for a step of the trace.
fn name(prefix: &str, step: &Value) -> String {
    format!("{prefix}.{}.{}", step["kind"].as_str().unwrap(), step["layer"])
}

fn stop(step: &Value) -> (u64, bool) {
    (step["istop"].as_u64().unwrap(), step["accepted"].as_bool().unwrap())
}

fn injected(file: &Tensors, step: &Value) -> Option<System> {
    let (m, c) = (name("M", step), name("c", step));
    if !file.has(&m) || !file.has(&c) {
        return None;
    }
    let rhs = file.f64(&c);
    let units = rhs.len() - usize::from(step["kind"] == "heads");
    Some(System { units, size: rhs.len(), matrix: file.f64(&m), rhs, square: 1.0 })
}

/// Given M and c, the solver stops where SciPy's does, at the same scales.
#[test]
fn solutions_and_stop_codes_equal_scipy() {
    let mut compared = 0;
    for (model, _, file_name) in RUNS {
        let (Some(case), Some(file)) = (Case::open(model), tensors(model, file_name)) else { return };
        for step in trace(&case, file_name) {
            let Some(system) = injected(&file, step) else { continue };
            let (scales, code, iterations) = system.solve(&options(file_name), 1.0);
            let what = format!("{model} {file_name} {}", name("scale", step));
            assert_eq!(u64::from(code.code()), stop(step).0, "{what}");
            // Once orthogonality is lost to rounding, the count depends on the order of sums.
            let expected = step["itn"].as_f64().unwrap();
            assert!(
                (iterations as f64 - expected).abs() <= 0.1 * expected,
                "{what}: {iterations} {expected}"
            );
            for (found, expected) in scales.iter().zip(file.f64(&name("scale", step))) {
                assert!((found - expected).abs() <= 1e-4, "{what}: {found} {expected}");
            }
            compared += 1;
        }
    }
    assert!(compared >= 12, "{compared} systems");
}

/// With tolerances out of the way the solver reaches the closed form 1 + Q·diag(λ/(λ²+1))·Qᵀ(c − M·1).
#[test]
fn tight_solutions_equal_the_closed_form() {
    let (Some(case), Some(file)) = (Case::open("bert_cls"), tensors("bert_cls", "rescale_0.5_maxiter10"))
    else {
        return;
    };
    for step in trace(&case, "rescale_0.5_maxiter10") {
        let system = injected(&file, step).unwrap();
        let tight = LsmrOptions {
            damp: 1.0,
            atol: 1e-14,
            btol: 1e-14,
            conlim: 0.0,
            max_iterations: Some(100 * system.size),
        };
        let solution = lsmr_symmetric(&system.matrix, &system.shifted(), &tight);
        for (x, expected) in solution.x.iter().zip(file.f64(&name("closed_form", step))) {
            assert!((1.0 + x - expected).abs() <= 1e-8, "{}: {} {expected}", name("scale", step), 1.0 + x);
        }
    }
}

/// Largest difference relative to the largest element.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max) / largest
}

/// The whole chain on our own engine, in f64 and in f32: systems, stop codes, acceptance, final masks. A system depends on
/// the scales found below it, so its difference holds those of all the solutions before.
#[test]
fn the_chain_equals_the_authors() {
    for (model, keep, file_name) in RUNS {
        let (Some(case), Some(file)) = (Case::open(model), tensors(model, file_name)) else { return };
        let (student, teacher) = (case.masks("rearranged", keep), case.masks("teacher", keep));
        let expected = trace(&case, file_name);
        for device in [Device::Reference, Device::Cpu] {
            let mut seen: Vec<(System, SublayerTrace)> = Vec::new();
            let progress = Progress::silent();
            let job = job(&case, device, &progress);
            let observe =
                |system: &System, solved: &SublayerTrace| seen.push((system.clone(), solved.clone()));
            let rescaled = rescale_observed(&job, &student, &teacher, &options(file_name), observe).unwrap();
            assert_eq!(seen.len(), expected.len(), "{model} {file_name} {device}");
            for ((system, solved), step) in seen.iter().zip(expected) {
                let what = |tensor: &str| format!("{model} {file_name} {device}: {}", name(tensor, step));
                for (tensor, found) in [("M", &system.matrix), ("c", &system.rhs)] {
                    if file.has(&name(tensor, step)) {
                        let difference = difference(found, &file.f64(&name(tensor, step)));
                        assert!(difference <= 1e-5, "{}: {difference:e}", what(tensor));
                    }
                }
                assert_eq!((u64::from(solved.stop.code()), solved.accepted), stop(step), "{}", what("stop"));
                assert_eq!(solved.answer_rows_only, step["cls_only"] == true, "{}", what("rows"));
                for (found, bound) in [(solved.smallest, "scale_min"), (solved.largest, "scale_max")] {
                    let expected = step[bound].as_f64().unwrap();
                    assert!((found - expected).abs() <= 1e-4, "{}: {found} {expected}", what(bound));
                }
                assert!(solved.error_after < solved.error_before, "{}", what("error"));
            }
            let expected = masks_of(&file, "head_mask", "neuron_mask");
            let pairs =
                [(&rescaled.masks.heads, &expected.heads), (&rescaled.masks.neurons, &expected.neurons)];
            for (found, expected) in pairs {
                for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                    assert!(
                        (found - expected).abs() <= 1e-4,
                        "{model} {file_name} {device}: {found} {expected}"
                    );
                }
            }
        }
    }
}

/// A rejected sublayer ends the released procedure; skipping it tunes those above, more damping tunes it too.
#[test]
fn what_follows_a_rejection_is_a_choice() {
    let Some(case) = Case::open("bert_cls") else { return };
    let (student, teacher) = (case.masks("rearranged", "0.7"), case.masks("teacher", "0.7"));
    let progress = Progress::silent();
    let job = job(&case, Device::Cpu, &progress);
    let run = |on_reject| {
        let options = RescaleOptions { on_reject, ..RescaleOptions::authors() };
        rescale(&job, &student, &teacher, &options).unwrap()
    };
    let accepted =
        |trace: &[SublayerTrace]| -> Vec<bool> { trace.iter().map(|solved| solved.accepted).collect() };
    let stopped = run(OnReject::Break);
    assert_eq!(accepted(&stopped.trace), [true, false]);
    assert_eq!(stopped.masks.heads, student.heads);
    let skipped = run(OnReject::Skip);
    assert_eq!(skipped.trace.len(), 5);
    assert_eq!(skipped.trace[..2], stopped.trace[..]);
    assert!(skipped.trace[2..].iter().any(|solved| solved.accepted));
    let ridge = run(OnReject::Ridge);
    assert_eq!(ridge.trace.len(), 5);
    assert!(ridge.trace[1].damp > 1.0 && ridge.trace[1].accepted, "{:?}", ridge.trace[1]);
    assert_eq!(stopped.notes().len(), 1);
}
