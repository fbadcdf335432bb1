//! What KCM and the magnitude baselines promise on any model: budgets met and used up, nested masks, the same choice
//! whatever the order of units, and named errors or sensible results on degenerate inputs.

use proptest::prelude::*;
use secateur::Error;
use secateur::data::{Example, Target};
use secateur::model::parameters::{FeedForwardParameters, SublayerParameters};
use secateur::model::{EmptySublayers, Family, Head, Model, UnitMasks};
use secateur::program::{Linear, WeightOrder};
use secateur::progress::Progress;
use secateur::prune::kcm::{self, Normaliser, Score, Stop, labelled};
use secateur::prune::neuron_ranking::{Scope, top_k};
use secateur::prune::scaling::Scaling;
use secateur::prune::{CostModel, Job, LayerWidths, Pruned, output_magnitude, rounding, weight_magnitude};
use secateur::session::Device;

use crate::support::numbers::Random;
use crate::tiny;

/// A model whose weights are not those of a fresh one.
pub fn model(family: Family, head: Head, seed: u64) -> Model {
    let mut model = Model::from_config(tiny::config(family), head, seed).unwrap();
    let mut random = Random(seed);
    for (_, parameter) in model.architecture.layout.clone().iter() {
        for row in 0..parameter.rows {
            let start = parameter.offset + row * parameter.ld();
            let row = &mut model.values[start..start + parameter.cols];
            row.iter_mut().for_each(|value| *value = 3.0 * *value + 0.2 * random.normal() as f32);
        }
    }
    model
}

/// Rows of 1 to 12 tokens (of 2, where tokens are predicted) with targets of the head.
pub fn examples(head: Head, rows: usize, seed: u64) -> Vec<Example> {
    let mut random = Random(seed);
    let shortest = if head == Head::CausalLm { 2 } else { 1 };
    (0..rows)
        .map(|_| {
            let length = shortest + random.below(12);
            let target = match head {
                Head::Classification { labels } => Target::Class(random.below(labels) as u32),
                Head::CausalLm => Target::NextToken,
                _ => Target::None,
            };
            let input_ids = (0..length).map(|_| 3 + random.below(37) as i32).collect();
            Example { input_ids, token_type_ids: vec![0; length], target }
        })
        .collect()
}

pub fn cost(model: &Model) -> CostModel {
    let config = model.config();
    CostModel::new(config.hidden, config.head_dim, 7.5, config.widths()).unwrap()
}

/// Calls `body` with a job on `model`.
pub fn with_job<R>(model: &Model, examples: &[Example], keep: &[f64], body: impl FnOnce(&Job) -> R) -> R {
    let (cost, progress) = (cost(model), Progress::silent());
    let (cost, progress) = (&cost, &progress);
    body(&Job { model, device: Device::Cpu, examples, batch_rows: 4, cost, keep, seed: 5, progress })
}

fn options() -> kcm::Options {
    kcm::Options { stop: Stop::Fixed(3), scaling: None, ..kcm::Options::default() }
}

/// Every method that ranks neurons.
fn all(job: &Job) -> Vec<(&'static str, Vec<Pruned>)> {
    let magnitude = weight_magnitude::Options::default();
    let output = output_magnitude::Options::default();
    let r2 = kcm::Options { score: Score::R2, ..options() };
    let d2 = kcm::Options { score: Score::D2, ..options() };
    vec![
        ("R2D2", kcm::prune(job, &options()).unwrap()),
        ("R2", kcm::prune(job, &r2).unwrap()),
        ("D2", kcm::prune(job, &d2).unwrap()),
        ("weight magnitude", weight_magnitude::prune(job, &magnitude).unwrap()),
        ("output magnitude", output_magnitude::prune(job, &output).unwrap()),
    ]
}

fn kept_neurons(masks: &UnitMasks) -> usize {
    masks.widths().iter().map(|layer| layer.neurons).sum()
}

#[test]
fn budgets_are_met_used_up_and_nested_on_every_family() {
    for family in Family::ALL {
        let (model, rows) = (model(family, Head::Backbone, 3), examples(Head::Backbone, 9, 4));
        let share = cost(&model).attention() / cost(&model).total();
        let keep: Vec<f64> =
            (0..=10).map(|i| (share + (1.0 - share) * f64::from(i) / 10.0).min(1.0)).collect();
        with_job(&model, &rows, &keep, |job| {
            for (method, results) in all(job) {
                for (i, (pruned, keep)) in results.iter().zip(&keep).enumerate() {
                    let reached = pruned.budget.reached;
                    assert!(reached <= keep + 1e-12, "{method} {keep}: {reached}");
                    let one_more = reached + job.cost.neuron() / job.cost.total();
                    assert!(reached == 1.0 || one_more > keep - 1e-9, "{method} {keep}: room is left");
                    let Some(larger) = results.get(i + 1) else { continue };
                    let pairs = pruned.masks.neurons.concat().into_iter().zip(larger.masks.neurons.concat());
                    assert!(pairs.into_iter().all(|(a, b)| a <= b), "{method} {keep}: masks are not nested");
                }
                assert_eq!(
                    kept_neurons(&results[0].masks),
                    0,
                    "{method}: at its minimum only attention is left"
                );
                assert_eq!(results[10].masks, UnitMasks::ones(&job.cost.layers));
            }
        });
    }
}

/// A model with the neurons of each layer in another order: new neuron i is the old one `order[i]`.
fn reordered(model: &Model, order: &[usize]) -> Model {
    let mut new = model.clone();
    for layer in model.architecture.parameters.layers.clone() {
        let SublayerParameters::Full(FeedForwardParameters { up, down }) = layer.ffn else { continue };
        let mut permute = |linear: Linear, outputs: bool| {
            let along_rows = (linear.order == WeightOrder::OutIn) == outputs;
            let weight = model.layout().get(linear.weight);
            for (row, col) in (0..weight.rows).flat_map(|r| (0..weight.cols).map(move |c| (r, c))) {
                let (from_row, from_col) = if along_rows { (order[row], col) } else { (row, order[col]) };
                new.values[weight.offset + row * weight.ld() + col] =
                    model.values[weight.offset + from_row * weight.ld() + from_col];
            }
            if let Some(bias) = linear.bias.filter(|_| outputs) {
                let offset = model.layout().get(bias).offset;
                order
                    .iter()
                    .enumerate()
                    .for_each(|(i, &j)| new.values[offset + i] = model.values[offset + j]);
            }
        };
        permute(up, true);
        permute(down, false);
    }
    new
}

#[test]
fn the_choice_does_not_depend_on_the_order_of_neurons() {
    let order: Vec<usize> = (0..24).map(|i| (7 * i + 5) % 24).collect();
    for family in [Family::Bert, Family::Gpt2, Family::Opt] {
        let (model, rows) = (model(family, Head::Backbone, 8), examples(Head::Backbone, 9, 2));
        let permuted = reordered(&model, &order);
        let keep = [0.9, 0.75, 0.65];
        let own = with_job(&model, &rows, &keep, all);
        let other = with_job(&permuted, &rows, &keep, all);
        for ((method, own), (_, other)) in own.iter().zip(&other) {
            for (own, other) in own.iter().zip(other) {
                for (own, other) in own.masks.neurons.iter().zip(&other.masks.neurons) {
                    let moved: Vec<f32> = order.iter().map(|&neuron| own[neuron]).collect();
                    assert_eq!(moved, *other, "{method} {family:?}");
                }
            }
        }
    }
}

#[test]
fn layers_of_different_widths_and_layers_without_neurons_are_pruned() {
    let whole = model(Family::Bert, Head::Backbone, 6);
    for neurons in [[24, 9], [0, 24], [1, 24]] {
        let mut masks = UnitMasks::ones(&whole.config().widths());
        for (mask, &neurons) in masks.neurons.iter_mut().zip(&neurons) {
            mask[neurons..].fill(0.0);
        }
        masks.heads[0][1] = 0.0;
        let model = whole.compact(&masks, EmptySublayers::KeepBias).unwrap();
        let rows = examples(Head::Backbone, 5, 9);
        with_job(&model, &rows, &[0.8], |job| {
            for (method, results) in all(job) {
                let budget = &results[0].budget;
                assert!(budget.reached <= 0.8 && kept_neurons(&results[0].masks) > 0, "{method}: {budget:?}");
                assert_eq!(results[0].masks.neurons[0].len(), neurons[0]);
            }
        });
    }
}

#[test]
fn equal_scores_keep_the_first_neurons() {
    let mut model = model(Family::Bert, Head::Backbone, 6);
    // All neurons alike: constant weights and biases.
    for layer in model.architecture.parameters.layers.clone() {
        let SublayerParameters::Full(FeedForwardParameters { up, down }) = layer.ffn else { panic!() };
        for id in [Some(up.weight), up.bias, Some(down.weight)].into_iter().flatten() {
            let parameter = model.layout().get(id).clone();
            model.values[parameter.offset..parameter.offset + parameter.span()].fill(0.125);
        }
    }
    let rows = examples(Head::Backbone, 3, 1);
    let expected = [[1.0; 24].to_vec(), [vec![1.0; 6], vec![0.0; 18]].concat()];
    let all = 2.0 * 24.0;
    let cost = cost(&model);
    let keep = [(cost.attention() + 30.0 / all * cost.ffn()) / cost.total()];
    with_job(&model, &rows, &keep, |job| {
        for score in [Score::R2, Score::R2d2, Score::D2] {
            for normaliser in [Normaliser::Minmax, Normaliser::Zscore, Normaliser::None] {
                let options = kcm::Options { score, normaliser, ..options() };
                let pruned = kcm::prune(job, &options).unwrap();
                let neurons = &pruned[0].masks.neurons;
                assert_eq!(neurons.concat().iter().filter(|&&mask| mask == 1.0).count(), 30);
                // Activations of two layers differ where nothing makes them comparable.
                if score != Score::D2 && normaliser != Normaliser::None {
                    assert_eq!(neurons[..], expected, "{score:?} {normaliser:?}");
                }
            }
        }
        let pruned = weight_magnitude::prune(job, &weight_magnitude::Options::default()).unwrap();
        assert_eq!(pruned[0].masks.neurons[..], expected);
    });
}

#[test]
fn activations_that_are_not_finite_are_named() {
    let mut model = model(Family::Bert, Head::Backbone, 6);
    let SublayerParameters::Full(ffn) = model.architecture.parameters.layers[1].ffn else { panic!() };
    let bias = model.layout().get(ffn.up.bias.unwrap()).offset;
    model.values[bias + 7] = f32::NAN;
    let rows = examples(Head::Backbone, 3, 1);
    with_job(&model, &rows, &[0.9], |job| {
        let error = kcm::prune(job, &options()).unwrap_err().to_string();
        assert!(error.contains("neuron 7") && error.contains("layer 1"), "{error}");
        let error = output_magnitude::prune(job, &output_magnitude::Options::default()).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }));
    });
}

#[test]
fn one_row_is_enough_and_none_is_an_error() {
    let model = model(Family::Gpt2, Head::Backbone, 6);
    let row = Example { input_ids: vec![3], token_type_ids: vec![0], target: Target::None };
    with_job(&model, std::slice::from_ref(&row), &[0.8], |job| {
        all(job);
    });
    with_job(&model, &[], &[0.8], |job| {
        let error = kcm::prune(job, &options()).unwrap_err();
        assert!(error.to_string().contains("no calibration rows"), "{error}");
        let scaled = kcm::Options { score: Score::R2, ..kcm::Options::default() };
        assert!(kcm::prune(job, &scaled).unwrap_err().to_string().contains("scaling"));
        // Weights need none.
        kcm::prune(job, &kcm::Options { score: Score::R2, ..options() }).unwrap();
        weight_magnitude::prune(job, &weight_magnitude::Options::default()).unwrap();
    });
}

#[test]
fn budgets_outside_zero_to_one_and_options_that_cannot_work_are_refused() {
    let model = model(Family::Bert, Head::Backbone, 6);
    for keep in [0.0, -1.0, 1.5, f64::NAN, 0.1] {
        with_job(&model, &[], &[keep], |job| {
            assert_eq!(kcm::prune(job, &options()).unwrap_err().exit_code(), 2, "{keep}");
        });
    }
    with_job(&model, &examples(Head::Backbone, 3, 1), &[0.8], |job| {
        let error = kcm::prune(job, &kcm::Options { labelled: Some(2), ..options() }).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "a backbone has no loss: {error}");
    });
    for wrong in [
        kcm::Options { alpha: f64::NAN, ..options() },
        kcm::Options { max_iterations: 0, ..options() },
        kcm::Options { stop: Stop::Fixed(0), ..options() },
        kcm::Options { labelled: Some(0), ..options() },
    ] {
        with_job(&model, &[], &[0.8], |job| {
            assert!(matches!(kcm::prune(job, &wrong), Err(Error::Usage(_))), "{wrong:?}");
        });
    }
}

#[test]
fn dead_neurons_are_told() {
    let mut model = model(Family::Opt, Head::Backbone, 6);
    let SublayerParameters::Full(ffn) = model.architecture.parameters.layers[0].ffn else { panic!() };
    let bias = model.layout().get(ffn.up.bias.unwrap()).offset;
    model.values[bias + 3] = -1e6;
    let rows = examples(Head::Backbone, 3, 1);
    with_job(&model, &rows, &[0.9], |job| {
        let pruned = output_magnitude::prune(job, &output_magnitude::Options::default()).unwrap();
        assert!(pruned[0].notes.iter().any(|note| note.contains("zero on every")), "{:?}", pruned[0].notes);
        assert_eq!(pruned[0].masks.neurons[0][3], 0.0);
    });
}

#[test]
fn a_scope_of_one_layer_keeps_the_same_share_of_each() {
    let model = model(Family::Bert, Head::Backbone, 6);
    let options = weight_magnitude::Options { scope: Scope::Layer, ..Default::default() };
    for keep in [0.95, 0.8, 0.7] {
        with_job(&model, &[], &[keep], |job| {
            let pruned = weight_magnitude::prune(job, &options).unwrap();
            let global = weight_magnitude::prune(job, &weight_magnitude::Options::default()).unwrap();
            let widths: Vec<usize> = pruned[0].masks.widths().iter().map(|layer| layer.neurons).collect();
            assert!(widths[0].abs_diff(widths[1]) <= 1);
            assert_eq!(kept_neurons(&pruned[0].masks), kept_neurons(&global[0].masks));
        });
    }
}

#[test]
fn labels_swap_neurons_and_keep_their_number() {
    for family in [Family::Bert, Family::Gpt2] {
        let head = if family.is_causal() { Head::CausalLm } else { Head::Classification { labels: 3 } };
        let (model, rows) = (model(family, head, 4), examples(head, 12, 3));
        with_job(&model, &rows, &[0.8, 0.7], |job| {
            let plain = kcm::prune(job, &options()).unwrap();
            let with = kcm::prune(job, &kcm::Options { labelled: Some(8), ..options() }).unwrap();
            let gradients = labelled::gradients(job, 8).unwrap();
            for (plain, with) in plain.iter().zip(&with) {
                assert_eq!(kept_neurons(&plain.masks), kept_neurons(&with.masks));
                let total = |masks: &UnitMasks| -> f64 {
                    let pairs = masks.neurons.concat().into_iter().zip(gradients.concat());
                    pairs.map(|(mask, gradient)| f64::from(mask) * gradient).sum()
                };
                let swaps = with.details["swaps"].as_u64().unwrap();
                assert_eq!(swaps > 0, total(&with.masks) > total(&plain.masks));
                let changed = plain.masks.neurons.concat().into_iter().zip(with.masks.neurons.concat());
                assert_eq!(changed.filter(|(a, b)| a != b).count() as u64, 2 * swaps);
            }
        });
        let unlabelled: Vec<Example> =
            rows.iter().map(|row| Example { target: Target::None, ..row.clone() }).collect();
        with_job(&model, &unlabelled, &[0.8], |job| {
            let error = kcm::prune(job, &kcm::Options { labelled: Some(8), ..options() }).unwrap_err();
            assert!(error.to_string().contains("label"), "{error}");
        });
    }
}

#[test]
fn scaling_keeps_the_choice_and_lowers_the_error() {
    for family in [Family::Bert, Family::Gpt2, Family::Opt] {
        let (model, rows) = (model(family, Head::Backbone, 4), examples(Head::Backbone, 30, 3));
        with_job(&model, &rows, &[1.0, 0.9, 0.75], |job| {
            let plain = kcm::prune(job, &options()).unwrap();
            let magnitudes = weight_magnitude::prune(job, &weight_magnitude::Options::default()).unwrap();
            for scaling in [Scaling::default(), Scaling::authors()] {
                let scaling = Some(scaling);
                let scaled =
                    kcm::prune(job, &kcm::Options { scaling: scaling.clone(), ..options() }).unwrap();
                let options = weight_magnitude::Options { scaling, ..Default::default() };
                let scaled_magnitudes = weight_magnitude::prune(job, &options).unwrap();
                let pairs = plain.iter().zip(&scaled).chain(magnitudes.iter().zip(&scaled_magnitudes));
                for (plain, scaled) in pairs {
                    assert_eq!(plain.masks.heads, scaled.masks.heads);
                    assert_eq!(plain.budget, scaled.budget);
                    if plain.budget.reached == 1.0 {
                        assert_eq!(plain.masks, scaled.masks, "nothing is pruned, so nothing is scaled");
                        continue;
                    }
                    let trace = scaled.details["rescaling"].as_array().unwrap();
                    assert!(!trace.is_empty());
                    let mut accepted = 0;
                    for solved in trace {
                        assert_eq!(solved["kind"], "neurons");
                        if solved["accepted"] == true {
                            accepted += 1;
                            assert!(solved["error_after"].as_f64() <= solved["error_before"].as_f64());
                        }
                    }
                    assert_eq!(accepted > 0, plain.masks != scaled.masks);
                }
            }
        });
    }
}

#[test]
fn swaps_go_on_while_the_gradient_kept_grows() {
    // Kept from the lowest score up: (0, 1), (1, 0), (0, 0); masked from the highest gradient down: (1, 2), (0, 2), (1, 1).
    let scores = [vec![0.9, 0.2, 0.1], vec![0.5, 0.0, 0.15]];
    let before =
        UnitMasks { heads: vec![vec![1.0]; 2], neurons: vec![vec![1.0, 1.0, 0.0], vec![1.0, 0.0, 0.0]] };
    for (gradients, expected, swaps) in [
        ([vec![9.0, 1.0, 4.0], vec![3.0, 2.0, 5.0]], [vec![1.0, 0.0, 1.0], vec![0.0, 0.0, 1.0]], 2),
        // The second exchange would lose.
        ([vec![0.0, 1.0, 4.0], vec![4.5, 2.0, 5.0]], [vec![1.0, 0.0, 0.0], vec![1.0, 0.0, 1.0]], 1),
        // An exchange of equals gains nothing.
        ([vec![0.0, 5.0, 4.0], vec![3.0, 2.0, 5.0]], [vec![1.0, 1.0, 0.0], vec![1.0, 0.0, 0.0]], 0),
    ] {
        let mut masks = before.clone();
        let mut exchanged = scores.clone();
        assert_eq!(labelled::swap(&mut masks, &mut exchanged, &gradients), swaps);
        assert_eq!(top_k(&exchanged, 3), masks.kept().1, "the scores agree with the masks");
        assert_eq!(masks.neurons[..], expected);
    }
}

proptest! {
    #[test]
    fn the_highest_scores_are_kept_and_the_first_of_equal_ones(scores in prop::collection::vec(prop::collection::vec((0u8..6).prop_map(f64::from), 0..8), 1..5), share in 0.0f64..1.2) {
        let units: usize = scores.iter().map(Vec::len).sum();
        let count = (share * units as f64) as usize;
        let kept = top_k(&scores, count);
        prop_assert_eq!(kept.iter().map(Vec::len).sum::<usize>(), count.min(units));
        let is_kept = |layer: usize, unit: usize| kept[layer].contains(&unit);
        let all: Vec<(usize, usize)> = (0..scores.len()).flat_map(|l| (0..scores[l].len()).map(move |u| (l, u))).collect();
        for &(l, i) in &all {
            for &(m, j) in &all {
                let before = scores[l][i] > scores[m][j] || scores[l][i] == scores[m][j] && (l, i) < (m, j);
                prop_assert!(!(before && is_kept(m, j) && !is_kept(l, i)));
            }
        }
    }

    #[test]
    fn widths_are_rounded_within_the_budget(widths in prop::collection::vec(0usize..40, 1..5), seed: u64, multiple in 1usize..20, keep in 0.0f64..1.0) {
        let mut random = Random(seed);
        let layers: Vec<LayerWidths> = widths.iter().map(|&neurons| LayerWidths { heads: 2, neurons }).collect();
        let cost = CostModel::new(16, 4, 7.5, layers.clone()).unwrap();
        let scores: Vec<Vec<f64>> = widths.iter().map(|&n| (0..n).map(|_| random.normal()).collect()).collect();
        let count = ((keep * cost.total() - cost.attention()) / cost.neuron()).max(0.0) as usize;
        let heads = vec![vec![0, 1]; widths.len()];
        let masks = UnitMasks::from_kept(&layers, &heads, &top_k(&scores, count));
        let rounded = rounding::round_to(&masks, &scores, &cost, keep, multiple).unwrap();
        let before = cost.record(keep, &masks).unwrap();
        let after = cost.record(keep, &rounded).unwrap();
        prop_assert!(after.macs_kept <= (keep * cost.total()).max(before.macs_kept) * (1.0 + 1e-9));
        prop_assert_eq!(&rounded.heads, &masks.heads);
        for (layer, mask) in rounded.neurons.iter().enumerate() {
            let kept: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] != 0.0).collect();
            prop_assert!(kept.len().is_multiple_of(multiple) || kept.len() == mask.len());
            // The best of the layer are kept.
            let lowest = kept.iter().map(|&i| scores[layer][i]).fold(f64::INFINITY, f64::min);
            prop_assert!((0..mask.len()).filter(|i| !kept.contains(i)).all(|i| scores[layer][i] <= lowest));
            // Nothing more would fit.
            let block = multiple.min(mask.len() - kept.len());
            let room = (keep * cost.total()).max(before.macs_kept) - after.macs_kept;
            prop_assert!(block == 0 || room < block as f64 * cost.neuron() * (1.0 + 1e-6));
        }
        if multiple == 1 && before.macs_kept <= keep * cost.total() {
            prop_assert_eq!(rounded, masks);
        }
    }
}

#[test]
fn a_multiple_of_zero_is_refused() {
    let layers = vec![LayerWidths { heads: 1, neurons: 4 }];
    let cost = CostModel::new(16, 4, 7.5, layers.clone()).unwrap();
    let masks = UnitMasks::ones(&layers);
    assert!(rounding::round_to(&masks, &[vec![1.0; 4]], &cost, 0.9, 0).is_err());
    assert!(rounding::round_to(&masks, &[vec![1.0; 3]], &cost, 0.9, 2).is_err());
}
