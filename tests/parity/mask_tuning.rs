//! Mask-Tuning against the authors' released code, run in f64 on three tiny models.

mod case;
mod rescaling;

use secateur::model::UnitMasks;
use secateur::progress::Progress;
use secateur::prune::mask_gradients::{Grouping, MaskGradients, Objective, Source, mask_gradients};
use secateur::prune::mask_tuning::{SearchRule, pruned_loss, rearrange, search};
use secateur::session::{Device, Session};

use self::case::{BATCH, CASES, Case, KEEP};
use crate::support::numbers::{U64, gamma};

fn own_gradients(case: &Case, device: Device, grouping: Grouping) -> MaskGradients {
    let mut session = Session::of(&case.model, device).unwrap();
    let ones = UnitMasks::ones(&case.cost.layers);
    let source = Source::Rows(&case.examples);
    mask_gradients(&mut session, source, grouping, Objective::Loss, &ones, &Progress::silent()).unwrap()
}

/// Largest difference of two sets of gradients, relative to the largest gradient of their kind.
fn difference(found: &MaskGradients, expected: &MaskGradients) -> f64 {
    assert_eq!(found.batches, expected.batches);
    let worst = |found: &[Vec<f64>], expected: &[Vec<f64>]| {
        let largest = expected.iter().flatten().fold(0.0, |m: f64, v| m.max(v.abs()));
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        assert_eq!(found.iter().flatten().count(), expected.iter().flatten().count());
        pairs.map(|(f, e)| (f - e).abs()).fold(0.0, f64::max) / largest
    };
    worst(&found.heads, &expected.heads).max(worst(&found.neurons, &expected.neurons))
}

/// The f64 executor gives the authors' gradients to f64 rounding, the f32 one to f32 rounding. The authors' span loss takes
/// its softmax over padding too, so only classification and regression can be compared.
#[test]
fn gradients_equal_the_authors() {
    for name in ["bert_cls", "bert_reg"] {
        let Some(case) = Case::open(name) else { return };
        let expected = case.gradients();
        let grouping = Grouping::MiniBatches(BATCH);
        let exact = difference(&own_gradients(&case, Device::Reference, grouping), &expected);
        assert!(exact <= 1e-9, "{name}: {exact:e}");
        let fast = difference(&own_gradients(&case, Device::Cpu, grouping), &expected);
        assert!(fast <= 1e-5, "{name}: {fast:e}");
    }
}

/// However rows are packed into forward batches.
#[test]
fn a_mini_batch_is_the_mean_of_its_rows() {
    for name in CASES {
        let Some(case) = Case::open(name) else { return };
        let batches = own_gradients(&case, Device::Reference, Grouping::MiniBatches(BATCH));
        let rows = own_gradients(&case, Device::Reference, Grouping::Rows);
        assert_eq!((rows.batches, batches.batches), (case.examples.len(), case.examples.len() / BATCH));
        let means = |layers: &[Vec<f64>]| -> Vec<Vec<f64>> {
            layers
                .iter()
                .map(|layer| {
                    let units = layer.len() / rows.batches;
                    let mean = |batch: &[f64], unit: usize| {
                        batch.iter().skip(unit).step_by(units).sum::<f64>() / BATCH as f64
                    };
                    layer.chunks(BATCH * units).flat_map(|b| (0..units).map(move |u| mean(b, u))).collect()
                })
                .collect()
        };
        let means = MaskGradients {
            batches: batches.batches,
            heads: means(&rows.heads),
            neurons: means(&rows.neurons),
        };
        assert!(difference(&batches, &means) <= gamma(64, U64), "{name}");
    }
}

#[test]
fn fisher_importance_equals_the_authors() {
    for name in CASES {
        let Some(case) = Case::open(name) else { return };
        let importance = case.gradients().fisher();
        for (found, file) in [(&importance.heads, "head_fisher"), (&importance.neurons, "neuron_fisher")] {
            for (found, expected) in found.iter().flatten().zip(case.search.f64(file)) {
                assert!((found - expected).abs() <= gamma(BATCH + 1, U64) * expected, "{name} {file}");
            }
        }
    }
}

/// From the fixture's gradients: search, teacher (search at √keep) and rearrangement, unit for unit.
#[test]
fn masks_equal_the_authors() {
    for name in CASES {
        let Some(case) = Case::open(name) else { return };
        let gradients = case.gradients();
        let importance = gradients.fisher();
        for keep in KEEP {
            let fraction: f64 = keep.parse().unwrap();
            let found = search(&importance, &case.cost, fraction, SearchRule::Released).unwrap();
            assert_eq!(found, case.masks("search", keep), "{name} {keep}: search");
            let record = case.cost.record(fraction, &found).unwrap();
            let expected = case.trace["keep"][keep]["mac_fraction"].as_f64().unwrap();
            assert!((record.reached - expected).abs() <= 1e-12, "{name} {keep}");
            let teacher = search(&importance, &case.cost, fraction.sqrt(), SearchRule::Released).unwrap();
            assert_eq!(teacher, case.masks("teacher", keep), "{name} {keep}: teacher");
            let rearranged = rearrange(&found, &gradients);
            assert_eq!(rearranged, case.masks("rearranged", keep), "{name} {keep}: rearranged");
            for (layer, gradients) in gradients.neurons.iter().enumerate() {
                let before = pruned_loss(&found.neurons[layer], gradients);
                let after = pruned_loss(&rearranged.neurons[layer], gradients);
                assert!(after <= before * (1.0 + gamma(256, U64)), "{name} {keep} {layer}");
            }
        }
    }
}

/// A budget below what the heads cost: the released code exceeds it, the repaired search does not.
#[test]
fn tiny_budgets() {
    for name in CASES {
        let Some(case) = Case::open(name) else { return };
        let importance = case.gradients().fisher();
        for (keep, fraction) in [("0.02", 0.02), ("0.005", 0.005)] {
            let expected = &case.trace["tiny_budget"][keep];
            let released = search(&importance, &case.cost, fraction, SearchRule::Released).unwrap();
            let record = case.cost.record(fraction, &released).unwrap();
            assert_eq!(record.attention.units_kept as u64, expected["heads"].as_u64().unwrap(), "{name}");
            assert_eq!(record.ffn.units_kept as u64, expected["neurons"].as_u64().unwrap(), "{name}");
            assert!((record.reached - expected["mac_fraction"].as_f64().unwrap()).abs() <= 1e-12);
            assert!(record.reached > fraction);
            let repaired = search(&importance, &case.cost, fraction, SearchRule::WithinBudget).unwrap();
            let record = case.cost.record(fraction, &repaired).unwrap();
            assert!(record.reached <= fraction && record.ffn.units_kept > 0, "{name} {keep}");
        }
    }
}
