//! K-prune against the authors' released code, run in f64: scores of every sublayer along its own sequence of prunings,
//! thresholds, masks, residuals and the pruned model's logits.

use std::path::PathBuf;

use secateur::data::{Batch, Example, Target};
use secateur::model::{EmitOptions, HeadRequest, Logits, Model};
use secateur::program::{Extents, Mode};
use secateur::progress::Progress;
use secateur::prune::k_prune::{
    Options, Regression, Scores, Search, Step, Tuning, UnitCosts, Wanted, program, prune, prune_watched,
    search,
};
use secateur::prune::{CostModel, Job, Pruned};
use secateur::session::{Device, Session, Weighting};
use serde_json::Value;

use crate::support;
use crate::support::tensors::Tensors;

const CASES: [(&str, &str); 5] = [
    ("bert_cls", "0.5"),
    ("bert_cls", "0.8"),
    ("bert_cls", "0.3"),
    ("bert_cls", "0.5_notune"),
    ("bert_reg", "0.4"),
];
/// Rows of a mini-batch.
const BATCH: usize = 8;
const SUBLAYERS: usize = 6;

struct Case {
    name: String,
    model: Model,
    examples: Vec<Example>,
    cost: CostModel,
    expected: Tensors,
    trace: Value,
}

/// Two budgets of bert_cls are committed, without the new weights, for which residuals and logits speak; the rest is in the
/// full reference data.
fn locate(model: &str, file: &str) -> Option<PathBuf> {
    let rel = format!("k_prune/{model}/{file}.safetensors");
    match (model, file) {
        ("bert_cls", "inputs" | "removed_0.5" | "removed_0.8") => Some(support::reference(&rel)),
        _ => support::shared(&format!("fixtures/{rel}")),
    }
}

impl Case {
    fn open(model: &str, removed: &str) -> Option<Case> {
        let folder = match model {
            "bert_cls" => support::reference("models/bert_cls"),
            _ => support::shared(&format!("fixtures/models/{model}"))?,
        };
        let inputs = Tensors::read(&locate(model, "inputs")?);
        let expected = Tensors::read(&locate(model, &format!("removed_{removed}"))?);
        let trace = std::fs::read(support::reference("k_prune/trace.json")).unwrap();
        let trace: Value = serde_json::from_slice(&trace).unwrap();
        let ints = |name: &str| -> Vec<i32> { inputs.f64(name).iter().map(|&value| value as i32).collect() };
        let (ids, segments) = (ints("input_ids"), ints("token_type_ids"));
        let row = |bounds: &[usize]| Example {
            input_ids: ids[bounds[0]..bounds[1]].to_vec(),
            token_type_ids: segments[bounds[0]..bounds[1]].to_vec(),
            target: Target::None,
        };
        let examples = inputs.usize("cu_seqlens").windows(2).map(row).collect();
        let loaded = Model::load(&folder, HeadRequest::AsSaved, 0).unwrap();
        let config = loaded.config();
        let length = inputs.f64("T")[0];
        let cost = CostModel::new(config.hidden, config.head_dim, length, config.widths()).unwrap();
        let name = format!("{model} {removed}");
        Some(Case { name, model: loaded, examples, cost, expected, trace: trace[model][removed].clone() })
    }

    fn keep(&self) -> f64 {
        1.0 - self.trace["removed"].as_f64().unwrap()
    }

    fn job<'a>(&'a self, device: Device, keep: &'a [f64], progress: &'a Progress) -> Job<'a> {
        Job {
            model: &self.model,
            device,
            examples: &self.examples,
            batch_rows: BATCH,
            cost: &self.cost,
            keep,
            seed: 0,
            progress,
        }
    }

    fn options(&self) -> Options {
        Options { tune: self.trace["tuning"].as_bool().unwrap(), ..Options::authors() }
    }

    fn step(&self, sublayer: usize) -> &Value {
        &self.trace["steps"][sublayer]
    }

    fn scores(&self, target: usize) -> Scores {
        let split = |kind: &str, first: usize| -> Vec<Vec<f64>> {
            let name = format!("{target}.{kind}_scores");
            let units = self.expected.shape(&name)[1];
            let values = self.expected.f64(&name);
            let layer = |(i, row): (usize, &[f64])| if i < first { Vec::new() } else { row.to_vec() };
            values.chunks(units).enumerate().map(layer).collect()
        };
        Scores { heads: split("head", target.div_ceil(2)), neurons: split("neuron", target / 2) }
    }

    fn mask(&self, target: usize) -> Vec<bool> {
        self.expected.f64(&format!("{target}.mask")).iter().map(|value| *value != 0.0).collect()
    }
}

/// Largest relative difference of two lists.
fn relative(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| ((f - e) / e).abs()).fold(0.0, f64::max)
}

/// Check E2: threshold and mask, given the authors' scores.
#[test]
fn searches_on_the_authors_scores_give_their_thresholds_and_masks() {
    for (model, removed) in CASES {
        let Some(case) = Case::open(model, removed) else { continue };
        let unit = |name: &str| case.trace[name].as_f64().unwrap();
        let costs = UnitCosts { head: unit("f_head_gflops"), neuron: unit("f_neuron_gflops") };
        for target in 0..SUBLAYERS {
            let budget = case.step(target)["budget_gflops"].as_f64().unwrap();
            let choice = search(&case.scores(target), target, costs, budget, Search::Strict).unwrap();
            assert_eq!(choice.kept, case.mask(target), "{} sublayer {target}", case.name);
            assert_eq!(choice.threshold, case.step(target)["threshold"].as_f64(), "{}", case.name);
        }
    }
}

/// Runs a case and compares every step.
fn compare(case: &Case, device: Device) -> Pruned {
    let (keep, progress) = ([case.keep()], Progress::silent());
    let mut steps: Vec<(Step, Scores)> = Vec::new();
    let job = case.job(device, &keep, &progress);
    let mut results =
        prune_watched(&job, &case.options(), |_, step, scores| steps.push((step.clone(), scores.clone())))
            .unwrap();
    assert_eq!(steps.len(), SUBLAYERS);
    for (target, (step, scores)) in steps.iter().enumerate() {
        let place = format!("{} on {device}, sublayer {target}", case.name);
        let expected = case.scores(target);
        for (kind, found, expected) in
            [("head", &scores.heads, &expected.heads), ("neuron", &scores.neurons, &expected.neurons)]
        {
            let worst = relative(&found.concat(), &expected.concat());
            assert!(worst <= 1e-4, "{place}: {kind} scores are off by {worst:e}");
        }
        let number = |name: &str| case.step(target)[name].as_f64();
        let budget = number("budget_gflops").unwrap();
        assert!((2e-9 * step.budget - budget).abs() <= 1e-9 * budget.abs(), "{place}: budget");
        let threshold = (step.threshold.unwrap(), number("threshold").unwrap());
        assert!((threshold.0 - threshold.1).abs() <= 1e-4 * threshold.1, "{place}: {threshold:?}");
        assert_eq!(step.kept as f64, number("kept").unwrap(), "{place}");
        let Some(old) = number("residual_old_weights") else {
            assert_eq!(step.tuning, if step.kept == 0 { Tuning::Emptied } else { Tuning::Off }, "{place}");
            continue;
        };
        // Sums of f32 hidden states are off by their own rounding where nothing was pruned.
        let noise = 1e-6 * number("target_norm").unwrap();
        let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-4 * expected + noise;
        assert!(
            close(step.residual_before, old),
            "{place}: {} with the old weights, {old}",
            step.residual_before
        );
        if step.kept > 0 {
            let new = number("residual_new").unwrap();
            assert!(
                close(step.residual_after, new),
                "{place}: {} with new weights, {new}",
                step.residual_after
            );
        }
    }
    let pruned = results.remove(0);
    for (kind, found) in [("head", &pruned.masks.heads), ("neuron", &pruned.masks.neurons)] {
        let found: Vec<f64> = found.iter().flatten().map(|value| f64::from(*value)).collect();
        assert_eq!(found, case.expected.f64(&format!("{kind}_mask")), "{}", case.name);
    }
    pruned
}

/// Logits of the compacted model, in f64.
fn logits(case: &Case, pruned: &Pruned) -> Vec<f64> {
    let mut model = case.model.clone();
    if let Some(values) = &pruned.values {
        model.values = values.clone();
    }
    let compact = model.compact(&pruned.masks, pruned.empty).unwrap();
    let batch = Batch::of(&case.examples, &(0..case.examples.len()).collect::<Vec<_>>()).unwrap();
    let mut session = Session::new(compact, Device::Reference).unwrap();
    let capacity = Extents {
        tokens: batch.token_count(),
        sequences: batch.row_count(),
        longest: batch.longest_row(),
        ..Extents::default()
    };
    let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
    let prepared = session.prepare(Mode::EVALUATE, &options, capacity).unwrap();
    let extents = session.feed(&prepared, &batch, Weighting::EachRow).unwrap();
    session.run(&prepared, &extents).unwrap();
    session.read_wide(&prepared, prepared.slots.logits.unwrap(), &extents).unwrap()
}

/// Checks E1 to E3: the authors' profile follows the released code along its whole sequence, on the fast executor and, one
/// budget, in f64.
#[test]
fn the_authors_profile_follows_the_released_code() {
    for (model, removed) in CASES {
        let Some(case) = Case::open(model, removed) else { continue };
        // The executor that restates the formulas takes its time.
        let devices = if removed == "0.5" { vec![Device::Cpu, Device::Reference] } else { vec![Device::Cpu] };
        for device in devices {
            let pruned = compare(&case, device);
            let (found, expected) = (logits(&case, &pruned), case.expected.f64("logits"));
            let scale = expected.iter().fold(0.0f64, |max, value| max.max(value.abs()));
            // The normal equations have condition numbers up to 6e4: of f32 sums, some 1e-3 of a weight may be rounding in
            // directions that hardly matter.
            let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max);
            assert!(
                worst <= 1e-3 * scale,
                "{} on {device}: logits are off by {worst:e} of {scale}",
                case.name
            );
        }
    }
}

/// Check E1: with the teacher's own logits the gradient of every mask is exactly zero, at the first sublayer and above.
#[test]
fn predictive_knowledge_of_an_unpruned_model_is_zero() {
    let Some(case) = Case::open("bert_cls", "0.5") else { return };
    let options = Options::authors();
    let batch = Batch::of(&case.examples, &(0..BATCH).collect::<Vec<_>>()).unwrap();
    let capacity = Extents {
        tokens: batch.token_count(),
        sequences: BATCH,
        longest: batch.longest_row(),
        ..Extents::default()
    };
    let mut session = Session::of(&case.model, Device::Cpu).unwrap();
    let mut prepare = |wanted| {
        let (mode, emitted) = program(&case.model.architecture, &options, 0, wanted).unwrap();
        session.prepare(mode, &emitted, capacity).unwrap()
    };
    let (teacher, student) = (prepare(Wanted::Outputs), prepare(Wanted::Gradients));
    let extents = session.feed(&teacher, &batch, Weighting::EachRow).unwrap();
    session.run(&teacher, &extents).unwrap();
    let mut logits = Vec::new();
    session.read(&teacher, teacher.slots.logits.unwrap(), &extents, &mut logits).unwrap();
    session.feed(&student, &batch, Weighting::EachRow).unwrap();
    let inputs = student.slots.inputs;
    let weights = [1.0 / BATCH as f32; BATCH];
    session.executor().write(student.id, inputs.teacher_logits.unwrap(), &logits).unwrap();
    session.executor().write(student.id, inputs.teacher_weights.unwrap(), &weights).unwrap();
    session.run(&student, &extents).unwrap();
    for layer in &student.slots.layers {
        for slot in [layer.context_gradient, layer.activation_gradient] {
            let gradient = session.read_wide(&student, slot.unwrap(), &extents).unwrap();
            assert!(gradient.iter().all(|value| *value == 0.0));
        }
    }
}

/// Check E4: the released code compares a regression model's outputs with all of the mini-batch's; repaired, an unpruned
/// model has no predictive gradient.
#[test]
fn the_broadcast_of_regression_is_reproduced_and_repaired() {
    let Some(case) = Case::open("bert_reg", "0.4") else { return };
    let (keep, progress) = ([case.keep()], Progress::silent());
    let job = case.job(Device::Cpu, &keep, &progress);
    let first = |options: &Options| {
        let mut first = None;
        prune_watched(&job, options, |_, _, scores| {
            first.get_or_insert(scores.clone());
        })
        .unwrap();
        first.unwrap()
    };
    let predictive = |regression| first(&Options { lambda_rep: 0.0, regression, ..Options::authors() });
    let repaired = predictive(Regression::Paired);
    assert!(repaired.heads.iter().chain(&repaired.neurons).flatten().all(|score| *score == 0.0));
    // What the fixture's scores hold beside representational knowledge.
    let representational = first(&Options { lambda_pred: 0.0, ..Options::authors() });
    let (broadcast, expected) = (predictive(Regression::Broadcast), case.scores(0));
    for ((found, whole), rest) in (broadcast.neurons.iter().flatten())
        .zip(expected.neurons.iter().flatten())
        .zip(representational.neurons.iter().flatten())
    {
        assert!((found - (whole - rest)).abs() <= 1e-4 * whole, "{found}, expected {}", whole - rest);
    }
    assert!(broadcast.neurons.iter().flatten().any(|score| *score > 0.01 * representational.neurons[0][0]));
}

/// Budgets together give what each gives alone, to the bit.
#[test]
fn budgets_do_not_influence_each_other() {
    let Some(case) = Case::open("bert_cls", "0.5") else { return };
    let progress = Progress::silent();
    let options = Options::default();
    let keep = [0.8, 0.5, 0.3];
    let together = prune(&case.job(Device::Cpu, &keep, &progress), &options).unwrap();
    for (budget, together) in keep.iter().zip(&together) {
        let alone = [*budget];
        let alone = prune(&case.job(Device::Cpu, &alone, &progress), &options).unwrap().remove(0);
        assert_eq!(alone.masks, together.masks);
        assert!(alone.values == together.values, "keep {budget}: other weights");
        assert!(together.budget.reached <= budget + 1e-12, "keep {budget}: {}", together.budget.reached);
    }
}
