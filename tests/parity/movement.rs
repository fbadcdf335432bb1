//! Movement, soft movement, magnitude and L0 against the released code (check G1: tolerance 1e-6; both sides are f64
//! except for the noise, so the reference is held to 1e-12).

use std::path::PathBuf;

use secateur::model::{LayerMatrix, MatrixKind};
use secateur::ops::select::{self, Matrix};
use secateur::ops::weightmask::{Gradients, hard_concrete_shift, reference as masks};
use secateur::program::ParameterLayout;
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Curve, MaskPlan, Masking, Method, Options, Profile, Schedule};
use serde_json::Value;

use crate::support::tensors::Tensors;
use crate::support::{reference, shared};

/// Case 1 is committed.
fn cases() -> Vec<Tensors> {
    let path = |n: usize| match n {
        1 => Some(reference("movement/case1.safetensors")),
        _ => full(&format!("case{n}")),
    };
    (0..3).filter_map(path).map(|path| Tensors::read(&path)).collect()
}

fn full(name: &str) -> Option<PathBuf> {
    shared(&format!("fixtures/movement/{name}.safetensors"))
}

fn options(method: Method, keep: f64) -> Options {
    Options::new(method, Profile::Authors, Setting { keep, task: "squad", distilled: false }).unwrap()
}

/// The plan of one matrix whose schedule rests at `value`.
fn plan(options: &Options, value: f64, shapes: &[Vec<usize>]) -> MaskPlan {
    let mut layout = ParameterLayout::new();
    let matrices: Vec<LayerMatrix> = shapes
        .iter()
        .enumerate()
        .map(|(layer, shape)| LayerMatrix {
            layer,
            kind: MatrixKind::Up,
            id: layout.matrix(format!("w{layer}"), shape[0], shape[1]),
        })
        .collect();
    MaskPlan::new(options, Schedule::constant(value), &matrices, &layout).unwrap()
}

/// Bits that a plan keeps of one matrix.
fn selected(options: &Options, value: f64, shape: &[usize], scores: &[f64], magnitude: bool) -> Vec<u64> {
    let budget = plan(options, value, &[shape.to_vec()]).budget(0, &[]);
    let mut keep = vec![0; scores.len().div_ceil(64)];
    let mut matrix = [Matrix::dense(scores, &mut keep)];
    let above = budget.threshold.map_or(0, |t| select::reference::count_above(&matrix[0], t));
    select::reference::keep_largest(&mut matrix, magnitude, above.max(budget.counts[0] as usize));
    keep
}

fn bit(keep: &[u64], i: usize) -> f64 {
    (keep[i / 64] >> (i % 64) & 1) as f64
}

fn assert_mask(case: &Tensors, name: &str, keep: &[u64]) {
    let expected = case.f64(name);
    let found: Vec<f64> = (0..expected.len()).map(|i| bit(keep, i)).collect();
    assert!(
        found == expected,
        "{name}: {} kept, {} expected",
        found.iter().sum::<f64>(),
        expected.iter().sum::<f64>()
    );
}

fn assert_close(case: &Tensors, name: &str, found: &[f64], bound: f64) {
    for (i, (found, expected)) in found.iter().zip(case.f64(name)).enumerate() {
        assert!(
            (found - expected).abs() <= bound * expected.abs().max(1.0),
            "{name}[{i}]: {found}, {expected}"
        );
    }
}

#[test]
fn masks_are_the_released_ones() {
    for case in cases() {
        let (scores, weights, shape) = (case.f64("S"), case.f64("W"), case.shape("S"));
        for name in case.names() {
            let Some((method, value)) = name.split_once('.') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            // A fraction of 0 is no option of a run; the budget of a schedule may still be 0.
            let keep = match method {
                "topk" => selected(&options(Method::Movement, 0.5), value, &shape, &scores, false),
                "magnitude" => selected(&options(Method::Magnitude, 0.5), value, &shape, &weights, true),
                "soft" => selected(&options(Method::SoftMovement, 0.5), value, &shape, &scores, false),
                _ => continue,
            };
            assert_mask(&case, &name, &keep);
        }
    }
}

#[test]
fn gradients_are_the_released_ones() {
    for case in cases() {
        let (scores, weights, upstream) = (case.f64("S"), case.f64("W"), case.f64("dWp"));
        let shape = case.shape("S");
        let kinds = [
            ("topk", Method::Movement, 0.3, &scores),
            ("soft", Method::SoftMovement, 0.55, &scores),
            ("magnitude", Method::Magnitude, 0.3, &weights),
        ];
        for (name, method, value, ranked) in kinds {
            let magnitude = method == Method::Magnitude;
            let keep = selected(&options(method, 0.5), value, &shape, ranked, magnitude);
            assert_mask(&case, &format!("grad.{name}.mask"), &keep);
            let (mut of_weights, mut of_scores) = (upstream.clone(), vec![f64::NAN; upstream.len()]);
            if magnitude {
                masks::score_gradients(&weights, &[], &keep, 0.0, Gradients::Weights(&mut of_weights));
            } else {
                let both = Gradients::Both { weights: &mut of_weights, scores: &mut of_scores };
                masks::score_gradients(&weights, &scores, &keep, 0.0, both);
                assert_close(&case, &format!("grad.{name}.dS"), &of_scores, 1e-12);
            }
            assert_close(&case, &format!("grad.{name}.dW"), &of_weights, 1e-12);
        }
    }
}

#[test]
fn the_hard_concrete_is_the_released_one() {
    for case in cases() {
        let (scores, weights, upstream) = (case.f64("S"), case.f64("W"), case.f64("dWp"));
        for (name, noisy) in [("train", true), ("eval", false)] {
            let uniform = case.f64("u");
            let at =
                |i: usize| masks::hard_concrete(scores[i], noisy.then(|| uniform[i].clamp(1e-4, 1.0 - 1e-4)));
            let of = |f: &dyn Fn(usize) -> f64| (0..scores.len()).map(f).collect::<Vec<_>>();
            assert_close(&case, &format!("l0.{name}.mask"), &of(&|i| at(i).0), 1e-12);
            assert_close(
                &case,
                &format!("l0.{name}.dS"),
                &of(&|i| weights[i] * upstream[i] * at(i).1),
                1e-12,
            );
            assert_close(&case, &format!("l0.{name}.dW"), &of(&|i| upstream[i] * at(i).0), 1e-12);
        }
    }
}

#[test]
fn regularisers_are_the_released_ones() {
    let Some(path) = full("regulariser") else { return };
    let expected = Tensors::read(&path);
    let cases = cases();
    for (name, shift) in [("l1", 0.0), ("l0", hard_concrete_shift())] {
        let means: Vec<f64> = cases
            .iter()
            .map(|case| masks::sigmoid_sum(&case.f64("S"), shift, 1.0) / case.f64("S").len() as f64)
            .collect();
        let value = means.iter().sum::<f64>() / 3.0;
        assert_close(&expected, &format!("{name}.value"), &[value], 1e-12);
        for (n, case) in cases.iter().enumerate() {
            let (scores, zeros) = (case.f64("S"), vec![0.0; case.f64("S").len()]);
            let penalty = 1.0 / (3.0 * scores.len() as f64);
            let mut gradient = zeros.clone();
            let into = Gradients::Scores(&mut gradient);
            match name {
                "l1" => masks::score_gradients(&zeros, &scores, &[], penalty, into),
                _ => masks::hard_concrete_gradients(&zeros, &scores, None, 0, penalty, into),
            }
            for (found, expected) in gradient.iter().zip(expected.f64(&format!("{name}.dS.{n}"))) {
                assert!(
                    (found - expected).abs() <= 1e-12 * expected.abs().max(1e-9),
                    "{name}: {found}, {expected}"
                );
            }
        }
    }
}

#[test]
fn one_threshold_for_all_matrices_is_the_released_one() {
    let Some(path) = full("global_topk") else { return };
    let expected = Tensors::read(&path);
    let cases = cases();
    let values: Vec<Vec<f64>> = cases.iter().map(|case| case.f64("S")).collect();
    let shapes: Vec<Vec<usize>> = cases.iter().map(|case| case.shape("S")).collect();
    for keep in ["0.5", "0.1", "0.03"] {
        let fraction = keep.parse().unwrap();
        let options = Options { masking: Masking::Global, ..options(Method::Movement, fraction) };
        let budget = plan(&options, fraction, &shapes).budget(0, &[]);
        let mut words: Vec<Vec<u64>> = values.iter().map(|v| vec![0; v.len().div_ceil(64)]).collect();
        let mut matrices: Vec<Matrix<f64>> =
            values.iter().zip(&mut words).map(|(scores, keep)| Matrix::dense(scores, keep)).collect();
        select::reference::keep_largest(&mut matrices, false, budget.counts[0] as usize);
        let threshold = expected.f64(&format!("threshold.{keep}"))[0];
        for (n, (keep_bits, scores)) in words.iter().zip(&values).enumerate() {
            for (i, &score) in scores.iter().enumerate() {
                assert_eq!(bit(keep_bits, i) == 1.0, score > threshold, "{keep}: score {i} of case {n}");
            }
            // The stored mask of case 2 at 0.03 contradicts the stored threshold, its definition: three of its bits are of
            // scores below it (1.0714, 1.1027 and 1.1057 against 1.1157).
            if (keep, n) != ("0.03", 2) {
                assert_mask(&expected, &format!("mask.{keep}.{n}"), keep_bits);
            }
        }
    }
}

#[test]
fn schedules_are_the_released_ones() {
    let cases: Value =
        serde_json::from_slice(&std::fs::read(reference("movement/schedule.json")).unwrap()).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    for case in cases.as_array().unwrap() {
        let get = |name: &str| case[name].as_f64().unwrap();
        let method = match case["method"].as_str().unwrap() {
            "topk" => Method::Movement,
            "soft" => Method::SoftMovement,
            _ => Method::L0,
        };
        let warmup = get("warmup") as u64;
        let base = options(method, if method == Method::Movement { get("final") } else { 0.5 });
        let options = Options {
            warmup_steps: Some(warmup),
            lambda: get("final_lambda"),
            final_threshold: get("final"),
            ..base
        };
        if options.has_rests() {
            assert_eq!(options.rests, [get("initial_warmup") as u64, get("final_warmup") as u64]);
        }
        assert_eq!(options.curve, Curve::Cubic);
        let total = get("total") as u64;
        let schedule = options.schedule("squad", total, 1, 0).unwrap();
        let steps = numbers(&case["steps"]);
        for ((step, value), lambda) in steps.iter().zip(numbers(&case["value"])).zip(numbers(&case["lam"])) {
            let step = *step as u64;
            assert!(
                (schedule.at(step) - value).abs() <= 1e-12,
                "{method:?} at {step}: {}",
                schedule.at(step)
            );
            let found = options.lambda_at(step, total, &schedule);
            assert!((found - lambda).abs() <= 1e-9, "{method:?} λ at {step}: {found} is not {lambda}");
        }
    }
}
