//! Layer dropping, gradient importance and random units: exact layer sets, budgets, and errors.

use secateur::model::{
    EmitOptions, EmptySublayers, Family, Head, HeadRequest, LayerWidths, Model, UnitMasks,
};
use secateur::program::{Extents, Mode};
use secateur::prune::importance::{self, Score};
use secateur::prune::layer_dropping::{self, Options, Strategy, by_position};
use secateur::prune::{CostModel, random};
use secateur::session::{Device, Session, Weighting};
use secateur::{Error, data};

use crate::ranking::{cost, examples, model, with_job};
use crate::tiny;

#[test]
fn strategies_name_the_layers_of_the_paper() {
    let sets: [(Strategy, usize, usize, &[usize]); 20] = [
        (Strategy::Top, 12, 4, &[8, 9, 10, 11]),
        (Strategy::Top, 6, 2, &[4, 5]),
        (Strategy::Top, 24, 6, &[18, 19, 20, 21, 22, 23]),
        (Strategy::Bottom, 12, 4, &[0, 1, 2, 3]),
        (Strategy::Bottom, 6, 2, &[0, 1]),
        (Strategy::Bottom, 24, 2, &[0, 1]),
        (Strategy::Symmetric, 12, 4, &[4, 5, 6, 7]),
        (Strategy::Symmetric, 12, 2, &[5, 6]),
        (Strategy::Symmetric, 12, 6, &[3, 4, 5, 6, 7, 8]),
        (Strategy::Symmetric, 6, 2, &[2, 3]),
        (Strategy::Symmetric, 6, 3, &[2, 3, 4]),
        (Strategy::Symmetric, 24, 6, &[9, 10, 11, 12, 13, 14]),
        (Strategy::OddAlternate, 12, 4, &[5, 7, 9, 11]),
        (Strategy::EvenAlternate, 12, 4, &[4, 6, 8, 10]),
        (Strategy::OddAlternate, 12, 6, &[1, 3, 5, 7, 9, 11]),
        (Strategy::EvenAlternate, 12, 6, &[0, 2, 4, 6, 8, 10]),
        (Strategy::OddAlternate, 6, 2, &[3, 5]),
        (Strategy::EvenAlternate, 6, 2, &[2, 4]),
        (Strategy::OddAlternate, 24, 2, &[21, 23]),
        (Strategy::EvenAlternate, 24, 2, &[20, 22]),
    ];
    for (strategy, layers, count, expected) in sets {
        let found = by_position(&strategy, layers, count).unwrap().unwrap();
        assert_eq!(found, expected, "{strategy:?} {count} of {layers}");
    }
    for (strategy, count) in [(Strategy::Top, 12), (Strategy::OddAlternate, 7), (Strategy::Symmetric, 40)] {
        assert!(matches!(by_position(&strategy, 12, count), Err(Error::Usage(_))), "{strategy:?} {count}");
    }
    assert_eq!(by_position(&Strategy::Contribution, 12, 4).unwrap(), None);
}

/// A model of twelve layers.
fn deep(family: Family, seed: u64) -> Model {
    let mut map = tiny::config_json(family);
    let name = if family == Family::Gpt2 { "n_layer" } else { "num_hidden_layers" };
    map.insert(name.into(), serde_json::json!(12));
    Model::from_config(tiny::parse(map).unwrap(), Head::Backbone, seed).unwrap()
}

#[test]
fn the_fewest_layers_that_meet_the_budget_go() {
    for (strategy, least) in [
        (Strategy::Top, 1),
        (Strategy::Bottom, 1),
        (Strategy::Symmetric, 1),
        (Strategy::OddAlternate, 6),
        (Strategy::EvenAlternate, 6),
        (Strategy::ParameterMagnitude, 1),
        (Strategy::ParameterVariance, 1),
        (Strategy::Contribution, 1),
    ] {
        let (model, rows) = (deep(Family::Bert, 3), examples(Head::Backbone, 4, 1));
        let options = Options { strategy: strategy.clone() };
        let range = layer_dropping::feasible(&cost(&model), &options);
        assert!((range.start() - f64::from(least) / 12.0).abs() < 1e-12, "{strategy:?}: {range:?}");
        for kept in least..=12 {
            let exact = f64::from(kept) / 12.0;
            for (keep, kept) in [(exact, kept), ((exact + 0.05).min(1.0), kept)] {
                with_job(&model, &rows, &[keep], |job| {
                    let pruned = layer_dropping::prune(job, &options).unwrap().remove(0);
                    let full = pruned.masks.widths().iter().filter(|layer| layer.neurons > 0).count();
                    assert_eq!(full, kept as usize, "{strategy:?} {keep}");
                    assert!(pruned.budget.reached <= keep + 1e-9);
                    assert_eq!(pruned.empty, EmptySublayers::DropLayers);
                });
            }
        }
        with_job(&model, &rows, &[f64::from(least) / 12.0 - 0.01], |job| {
            let error = layer_dropping::prune(job, &options).unwrap_err();
            assert!(matches!(error, Error::Infeasible { .. }), "{strategy:?}: {error}");
        });
    }
}

#[test]
fn lists_of_layers_are_checked() {
    let model = deep(Family::Gpt2, 3);
    let prune = |list: &[usize], keep: f64| {
        let options = Options { strategy: Strategy::Layers(list.to_vec()) };
        with_job(&model, &[], &[keep], |job| layer_dropping::prune(job, &options))
    };
    for (list, expected) in
        [(vec![3, 3], "twice"), (vec![12], "layers 0 to 11"), ((0..12).collect::<Vec<_>>(), "all 12 layers")]
    {
        let error = prune(&list, 1.0).unwrap_err();
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(expected), "{error}");
        assert!(model.without_layers(&list).is_err());
    }
    let pruned = prune(&[2, 9], 10.0 / 12.0).unwrap().remove(0);
    assert_eq!(pruned.details["dropped"], serde_json::json!([2, 9]));
    assert!(matches!(prune(&[2], 10.0 / 12.0), Err(Error::Infeasible { .. })));
}

/// Hidden states that sublayers `part` of the model leave for one batch.
fn hidden(model: &Model, part: std::ops::Range<usize>) -> Vec<f32> {
    let rows = examples(Head::Backbone, 3, 8);
    let batch = data::Batch::of(&rows, &[0, 1, 2]).unwrap();
    let mut session = Session::of(model, Device::Cpu).unwrap();
    let options = EmitOptions { sublayers: Some(part), ..EmitOptions::default() };
    let capacity = Extents { tokens: batch.token_count(), sequences: 3, longest: 13, ..Extents::default() };
    let prepared = session.prepare(Mode::EVALUATE, &options, capacity).unwrap();
    let extents = session.feed(&prepared, &batch, Weighting::EachRow).unwrap();
    session.run(&prepared, &extents).unwrap();
    let mut values = Vec::new();
    session.read(&prepared, prepared.slots.output, &extents, &mut values).unwrap();
    values
}

/// Layers above the dropped ones go on working on what is left below: dropping the top is stopping early, and dropping a
/// layer in the middle is skipping it.
#[test]
fn a_model_without_layers_computes_the_others() {
    for family in Family::ALL {
        let mut dense = model(family, Head::Backbone, 5);
        let stopped = hidden(&dense, 0..2);
        let dropped = dense.without_layers(&[1]).unwrap();
        assert_eq!(dropped.config().layers.len(), 1);
        assert_eq!(hidden(&dropped, 0..2), stopped, "{family:?}");
        // With layer 0 gone, layer 1 reads the embeddings: as if it had been the first.
        let upper = dense.without_layers(&[0]).unwrap();
        let ids = |layer: usize| dense.architecture.parameters.layers[layer].ids().collect::<Vec<_>>();
        for (to, from) in ids(0).into_iter().zip(ids(1)) {
            let (to, from) = (dense.layout().get(to).clone(), dense.layout().get(from).clone());
            dense.values.copy_within(from.offset..from.offset + from.span(), to.offset);
        }
        assert_eq!(hidden(&upper, 0..2), hidden(&dense, 0..2), "{family:?}");
    }
}

#[test]
fn dropped_layers_are_dropped_by_compaction_and_survive_saving() {
    for family in Family::ALL {
        let dense = model(family, Head::Backbone, 5);
        let mut masks = UnitMasks::ones(&dense.config().widths());
        masks.heads[0].fill(0.0);
        masks.neurons[0].fill(0.0);
        masks.neurons[1][3] = 0.0;
        let compact = dense.compact(&masks, EmptySublayers::DropLayers).unwrap();
        assert_eq!(compact.config().widths(), [LayerWidths { heads: 4, neurons: 23 }]);
        let before = vec![LayerWidths { heads: 4, neurons: 24 }; 2];
        assert_eq!(compact.config().original_widths(), before);
        assert!(!compact.config().is_unpruned());
        let folder = std::env::temp_dir().join(format!("secateur-drop-{family:?}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        compact.save(&folder).unwrap();
        let loaded = Model::load(&folder, HeadRequest::AsSaved, 0).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(loaded.config().original_widths(), before);
        assert_eq!(hidden(&loaded, 0..2), hidden(&compact, 0..2), "{family:?}");
    }
}

#[test]
fn gradient_importance_meets_budgets_and_needs_labels() {
    for (family, head) in [(Family::Bert, Head::Classification { labels: 3 }), (Family::Gpt2, Head::CausalLm)]
    {
        let (model, rows) = (model(family, head, 5), examples(head, 10, 6));
        let keep = [1.0, 0.9, 0.6, 0.3, 0.05];
        with_job(&model, &rows, &keep, |job| {
            let mut results = Vec::new();
            for (score, by_row, worst) in [
                (Score::Taylor, false, false),
                (Score::Taylor, true, false),
                (Score::Fisher, false, false),
                (Score::Fisher, true, false),
                (Score::Taylor, true, true),
            ] {
                let options = importance::Options { score, by_row, worst };
                let pruned = importance::prune(job, &options).unwrap();
                for (pruned, keep) in pruned.iter().zip(keep) {
                    assert!(pruned.budget.reached <= keep + 1e-9, "{options:?} {keep}");
                    let left = (keep - pruned.budget.reached) * job.cost.total();
                    // A neuron is always there to fill the rest, but where all are kept.
                    let all = pruned.budget.ffn.units_kept == pruned.budget.ffn.units_total;
                    assert!(left < job.cost.neuron() * (1.0 + 1e-6) || all, "{options:?} {keep}");
                }
                assert_eq!(pruned[0].masks, UnitMasks::ones(&job.cost.layers));
                results.push(pruned[2].masks.clone());
            }
            assert_ne!(results[1], results[4], "the worst units are not the best");
        });
        let unlabelled: Vec<_> =
            (rows.iter()).map(|row| data::Example { target: data::Target::None, ..row.clone() }).collect();
        with_job(&model, &unlabelled, &[0.5], |job| {
            let error = importance::prune(job, &importance::Options::default()).unwrap_err();
            assert!(error.to_string().contains("label"), "{error}");
        });
        with_job(&model, &rows, &[1e-6], |job| {
            let error = importance::prune(job, &importance::Options::default()).unwrap_err();
            assert!(matches!(error, Error::Infeasible { .. }), "{error}");
        });
    }
}

#[test]
fn random_units_follow_the_seed_and_meet_the_budget() {
    let model = deep(Family::Opt, 3);
    let keep = [0.9, 0.5, 0.1];
    with_job(&model, &[], &keep, |job| {
        let first = random::prune(job, &random::Options {}).unwrap();
        let again = random::prune(job, &random::Options {}).unwrap();
        let other = random::prune(&secateur::prune::Job { seed: 6, ..*job }, &random::Options {}).unwrap();
        for ((first, again), (other, keep)) in first.iter().zip(&again).zip(other.iter().zip(keep)) {
            assert_eq!(first.masks, again.masks);
            assert_ne!(first.masks, other.masks);
            assert!(first.budget.reached <= keep + 1e-9 && first.budget.reached > keep - 0.01);
            // Both kinds of units lose about the same share.
            let share = first.budget.ffn.units_kept as f64 / first.budget.ffn.units_total as f64;
            assert!((share - keep).abs() < 0.2, "{share} for {keep}");
        }
    });
    let widths = vec![LayerWidths { heads: 2, neurons: 0 }];
    let heads_only = CostModel::new(16, 4, 8.0, widths).unwrap();
    assert_eq!(*random::feasible(&heads_only, &random::Options {}).start(), 0.5);
}
