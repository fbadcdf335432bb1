//! Whole prunings of tiny models of every family and head, and inputs that cannot work.

use secateur::Error;
use secateur::data::{Batch, Example, Target};
use secateur::model::{EmitOptions, EmptySublayers, Family, Head, Logits, Model, ModelConfig};
use secateur::program::{Extents, Mode};
use secateur::progress::Progress;
use secateur::prune::k_prune::{Emptied, Options, Step, Tuning, feasible, prune, prune_watched};
use secateur::prune::{CostModel, Job, Pruned, UnitMasks};
use secateur::session::{Device, Session, Weighting};

use super::norm;
use crate::support::numbers::Random;
use crate::tiny;

/// A model with weights large enough that no layer is close to linear.
fn model(config: ModelConfig, head: Head) -> Model {
    let mut model = Model::from_config(config, head, 7).unwrap();
    let mut random = Random(11);
    let layout = model.layout().clone();
    for (_, parameter) in layout.iter() {
        for row in 0..parameter.rows {
            let start = parameter.offset + row * parameter.ld();
            for value in &mut model.values[start..start + parameter.cols] {
                *value += (0.2 * random.normal()) as f32;
            }
        }
    }
    model
}

fn examples(rows: usize, longest: usize) -> Vec<Example> {
    let mut random = Random(3);
    (0..rows)
        .map(|row| {
            let length = if row == 0 { longest } else { 2 + random.below(longest - 1) };
            Example {
                input_ids: (0..length).map(|_| 4 + random.below(36) as i32).collect(),
                token_type_ids: vec![0; length],
                target: Target::None,
            }
        })
        .collect()
}

struct Setup {
    model: Model,
    examples: Vec<Example>,
    cost: CostModel,
    progress: Progress,
}

impl Setup {
    fn new(config: ModelConfig, head: Head) -> Setup {
        let cost = CostModel::new(config.hidden, config.head_dim, 9.5, config.widths()).unwrap();
        Setup { model: model(config, head), examples: examples(10, 14), cost, progress: Progress::silent() }
    }

    fn job<'a>(&'a self, keep: &'a [f64]) -> Job<'a> {
        Job {
            model: &self.model,
            device: Device::Cpu,
            examples: &self.examples,
            batch_rows: 4,
            cost: &self.cost,
            keep,
            seed: 0,
            progress: &self.progress,
        }
    }

    fn prune(&self, keep: f64, options: &Options) -> (Pruned, Vec<Step>) {
        let mut steps = Vec::new();
        let keep = [keep];
        let mut results =
            prune_watched(&self.job(&keep), options, |_, step, _| steps.push(step.clone())).unwrap();
        (results.remove(0), steps)
    }
}

fn heads(family: Family) -> Vec<Head> {
    let language_model = if family.is_causal() { Head::CausalLm } else { Head::MaskedLm };
    vec![Head::Classification { labels: 3 }, Head::Regression, Head::Span, language_model]
}

/// Logits of all rows with the pruned weights, masked or compacted.
fn logits(setup: &Setup, pruned: &Pruned, compacted: bool) -> Vec<f64> {
    let mut model = setup.model.clone();
    if let Some(values) = &pruned.values {
        model.values = values.clone();
    }
    if compacted {
        model = model.compact(&pruned.masks, pruned.empty).unwrap();
    }
    let batch = Batch::of(&setup.examples, &(0..setup.examples.len()).collect::<Vec<_>>()).unwrap();
    let capacity = Extents {
        tokens: batch.token_count(),
        sequences: batch.row_count(),
        longest: batch.longest_row(),
        ..Extents::default()
    };
    let masks = !compacted;
    let options =
        EmitOptions { logits: Logits::All, head_masks: masks, neuron_masks: masks, ..EmitOptions::default() };
    let mut session = Session::new(model, Device::Reference).unwrap();
    let prepared = session.prepare(Mode::EVALUATE, &options, capacity).unwrap();
    if masks {
        session.write_masks(&prepared, &pruned.masks).unwrap();
    }
    let extents = session.feed(&prepared, &batch, Weighting::EachRow).unwrap();
    session.run(&prepared, &extents).unwrap();
    session.read_wide(&prepared, prepared.slots.logits.unwrap(), &extents).unwrap()
}

#[test]
fn every_family_and_head_is_pruned_within_budget_and_closer_to_the_teacher() {
    for config in tiny::configs() {
        for head in heads(config.family) {
            let setup = Setup::new(config.clone(), head);
            for (keep, options) in
                [(0.6, Options::default()), (0.35, Options::paper()), (0.5, Options::authors())]
            {
                let (pruned, steps) = setup.prune(keep, &options);
                let place = format!("{} {head:?} keep {keep}", config.family.model_type());
                assert!(pruned.budget.reached <= keep + 1e-12, "{place}: {}", pruned.budget.reached);
                // One head's share is the most that whole units leave unused when the last sublayer is reached.
                assert!(pruned.budget.reached > keep - 0.2, "{place}: {}", pruned.budget.reached);
                let kept = pruned.masks.widths();
                for step in &steps {
                    let width = kept[step.sublayer / 2];
                    let expected = if step.sublayer.is_multiple_of(2) { width.heads } else { width.neurons };
                    assert_eq!(step.kept, expected, "{place}");
                    if options.only_if_better && step.kept > 0 {
                        assert!(step.residual_after <= step.residual_before, "{place} {step:?}");
                    }
                }
                assert!(steps.iter().any(|step| step.tuning == Tuning::Tuned), "{place}: nothing tuned");
                let (masked, compacted) = (logits(&setup, &pruned, false), logits(&setup, &pruned, true));
                for (masked, compacted) in masked.iter().zip(&compacted) {
                    assert!(
                        (masked - compacted).abs() < 1e-9 * (1.0 + masked.abs()),
                        "{place}: {masked} {compacted}"
                    );
                }
                assert!(pruned.details["steps"].as_array().unwrap().len() == steps.len(), "{place}");
            }
        }
    }
}

/// Tuning brings the pruned model closer to the teacher's answers than pruning alone.
#[test]
fn tuned_models_answer_more_like_the_teacher() {
    for family in [Family::Bert, Family::Gpt2] {
        let setup = Setup::new(tiny::config(family), Head::Classification { labels: 3 });
        let dense = Pruned::of_masks(UnitMasks::ones(&setup.cost.layers), 1.0, &setup.cost).unwrap();
        let teacher = logits(&setup, &dense, false);
        let distance = |options: &Options| {
            let (pruned, _) = setup.prune(0.6, options);
            let found = logits(&setup, &pruned, true);
            norm(&found.iter().zip(&teacher).map(|(f, t)| f - t).collect::<Vec<_>>())
        };
        let (tuned, untuned) =
            (distance(&Options::default()), distance(&Options { tune: false, ..Options::default() }));
        assert!(tuned < untuned, "{family:?}: {tuned} tuned, {untuned} not");
    }
}

/// How mini-batches are cut into pieces changes nothing but the order of sums.
#[test]
fn pieces_of_a_mini_batch_add_up() {
    for head in [Head::Classification { labels: 3 }, Head::Span, Head::CausalLm] {
        let setup = Setup::new(tiny::config(Family::Gpt2), head);
        let all_scores = |batch_tokens: usize| {
            let mut all = Vec::new();
            let options = Options { batch_tokens, ..Options::default() };
            prune_watched(&setup.job(&[0.6]), &options, |_, _, scores| all.push(scores.clone())).unwrap();
            all
        };
        let (pieces, whole) = (all_scores(15), all_scores(4096));
        for (pieces, whole) in pieces.iter().zip(&whole) {
            let both =
                pieces.heads.iter().chain(&pieces.neurons).zip(whole.heads.iter().chain(&whole.neurons));
            for (found, expected) in both.flat_map(|(p, w)| p.iter().zip(w)) {
                assert!((found - expected).abs() <= 1e-3 * expected, "{head:?}: {found} {expected}");
            }
        }
    }
}

#[test]
fn a_sublayer_may_lose_everything() {
    let setup = Setup::new(tiny::config(Family::Bert), Head::Classification { labels: 3 });
    for (emptied, empty) in
        [(Emptied::KeepBias, EmptySublayers::KeepBias), (Emptied::Remove, EmptySublayers::Remove)]
    {
        let options = Options { emptied, ..Options::default() };
        let (pruned, steps) = setup.prune(0.0, &options);
        assert!(steps.iter().all(|step| step.kept == 0 && step.tuning == Tuning::Emptied));
        assert_eq!((pruned.budget.reached, pruned.empty), (0.0, empty));
        assert!(pruned.notes.iter().any(|note| note.contains("lost all their units")), "{:?}", pruned.notes);
        let (masked, compacted) = (logits(&setup, &pruned, false), logits(&setup, &pruned, true));
        for (masked, compacted) in masked.iter().zip(&compacted) {
            assert!((masked - compacted).abs() < 1e-9 * (1.0 + masked.abs()), "{emptied:?}");
        }
    }
}

/// With everything kept the model stays what it is, to the bit, by every rule but the released code's.
#[test]
fn a_whole_budget_changes_nothing() {
    let setup = Setup::new(tiny::config(Family::Opt), Head::CausalLm);
    for options in [Options::default(), Options::paper()] {
        let (pruned, steps) = setup.prune(1.0, &options);
        assert_eq!(pruned.budget.reached, 1.0);
        assert!(pruned.values.is_none());
        assert!(steps.iter().all(|step| step.tuning == Tuning::Exact && step.residual_after == 0.0));
    }
    let (strict, _) = setup.prune(1.0, &Options::authors());
    assert!(strict.budget.reached < 1.0);
}

/// Neurons that are zero on every row go first, and a Gram matrix with their zeros is no obstacle.
#[test]
fn dead_neurons_go_first() {
    let mut setup = Setup::new(tiny::config(Family::Opt), Head::CausalLm);
    let layout = setup.model.layout().clone();
    let dead = [(0, 3), (0, 17), (1, 5)];
    for (layer, unit) in dead {
        let bias = layout.find(&format!("model.decoder.layers.{layer}.fc1.bias")).unwrap();
        setup.model.values[layout.get(bias).offset + unit] = -50.0;
    }
    let (pruned, _) = setup.prune(0.9, &Options::default());
    for (layer, unit) in dead {
        assert_eq!(pruned.masks.neurons[layer][unit], 0.0, "layer {layer} unit {unit}");
    }
    // At a whole budget they stay, and the normal equations of an untouched model are not solved.
    let (pruned, steps) = setup.prune(0.97, &Options { ridge: 0.0, ..Options::default() });
    assert!(pruned.budget.reached > 0.9 && steps.iter().all(|step| step.residual_after.is_finite()));
}

#[test]
fn few_rows_are_enough() {
    for (family, head) in [(Family::Bert, Head::Regression), (Family::Gpt2, Head::CausalLm)] {
        let mut setup = Setup::new(tiny::config(family), head);
        setup.examples.truncate(1);
        setup.examples[0].input_ids.truncate(3);
        setup.examples[0].token_type_ids.truncate(3);
        for options in [Options::default(), Options::authors(), Options::paper()] {
            let (pruned, steps) = setup.prune(0.5, &options);
            assert!(pruned.budget.reached <= 0.5);
            assert!(steps.iter().all(|step| step.residual_after.is_finite()));
        }
    }
}

#[test]
fn what_cannot_work_is_an_error_that_says_so() {
    let setup = Setup::new(tiny::config(Family::Bert), Head::Classification { labels: 3 });
    let options = Options::default();
    let fails = |job: &Job, options: &Options| prune(job, options).expect_err("fails").to_string();
    assert_eq!(feasible(&setup.cost, &options), 0.0..=1.0);
    for keep in [-0.1, 1.5, f64::NAN] {
        let message = fails(&setup.job(&[0.5, keep]), &options);
        assert!(message.contains("0.0..=1.0"), "{message}");
    }
    assert!(fails(&setup.job(&[]), &options).contains("keep"));
    assert!(fails(&Job { examples: &[], ..setup.job(&[0.5]) }, &options).contains("no calibration rows"));
    for options in [
        Options { temperature: 0.0, ..Options::default() },
        Options { lambda_rep: f64::NAN, ..Options::default() },
        Options { ridge: -1.0, ..Options::default() },
        Options { batch_tokens: 0, ..Options::default() },
    ] {
        let error = prune(&setup.job(&[0.5]), &options).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    let other = CostModel::new(16, 4, 9.5, setup.cost.layers[..1].to_vec()).unwrap();
    assert!(fails(&Job { cost: &other, ..setup.job(&[0.5]) }, &options).contains("another shape"));

    let bare = Setup::new(tiny::config(Family::Bert), Head::Backbone);
    assert!(fails(&bare.job(&[0.5]), &options).contains("task head"));
    let mut short = Setup::new(tiny::config(Family::Gpt2), Head::CausalLm);
    short.examples.iter_mut().for_each(|row| {
        row.input_ids.truncate(1);
        row.token_type_ids.truncate(1);
    });
    assert!(fails(&short.job(&[0.5]), &options).contains("predict no token"));
    let mut broken = Setup::new(tiny::config(Family::Bert), Head::Classification { labels: 3 });
    let layout = broken.model.layout().clone();
    let weight = layout.find("bert.encoder.layer.1.output.dense.weight").unwrap();
    broken.model.values[layout.get(weight).offset] = f32::NAN;
    let error = prune(&broken.job(&[0.5]), &options).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
}
