//! Dual-CP against the authors' released code and an independent restatement of the paper, on the activations of three
//! tiny models. The inputs are f32; the oracles compute in f64 (paper) or f32 (authors), this program in f32.

use std::path::PathBuf;

use secateur::Error;
use secateur::ops::{View, ViewMut, mapping, similarity};
use secateur::prune::clustering::{Linkage, Tree};
use secateur::prune::cost::{CostModel, LayerWidths};
use secateur::prune::dual_cp::{
    CalibrationSample, CpuBackend, Forest, OnInfeasible, Options, Search, Space, Ties, cut, feasible_range,
    prune, split,
};
use serde_json::Value;

use crate::support;
use crate::support::numbers::{U32, U64, gamma};
use crate::support::tensors::Tensors;

const CASES: [&str; 3] = ["bert", "gpt2", "opt"];
const KEEP: [f64; 4] = [0.9, 0.7, 0.5, 0.3];
/// Hidden size and head dimension of all cases; four heads.
const HIDDEN: usize = 64;
const HEAD_DIM: usize = 16;
const HEADS: usize = 4;

/// Closer than this to a merge height, a threshold does not separate f32 from f64 computation: a similarity is off by
/// up to γ_{K+4} = 1.2e-5 for K = 200 tokens.
fn resolution() -> f64 {
    gamma(204, U32)
}

/// The bert case is committed; the others are in the full reference data.
fn locate(rel: &str) -> Option<PathBuf> {
    if rel.contains("/bert/") {
        Some(support::reference(rel))
    } else {
        support::shared(&format!("fixtures/{rel}"))
    }
}

struct Case {
    name: &'static str,
    sample: CalibrationSample,
    cost: CostModel,
    authors: Tensors,
    paper: Tensors,
    authors_json: Value,
    paper_json: Value,
}

fn read_json(rel: &str) -> Value {
    serde_json::from_slice(&std::fs::read(support::reference(rel)).unwrap()).unwrap()
}

fn case(name: &'static str) -> Option<Case> {
    let tensors = |file: &str| Some(Tensors::read(&locate(&format!("dual_cp/{name}/{file}.safetensors"))?));
    let hooks = tensors("hooks")?;
    let (authors_json, paper_json) = (read_json("dual_cp/authors.json"), read_json("dual_cp/paper.json"));
    let layers = (0..).take_while(|layer| hooks.has(&format!("A.{layer}"))).count();
    let sample = CalibrationSample {
        samples: hooks.shape("A.0")[0],
        head_dim: HEAD_DIM,
        heads: vec![HEADS; layers],
        context: (0..layers).map(|layer| hooks.f32(&format!("A.{layer}"))).collect(),
        activations: (0..layers).map(|layer| hooks.f32(&format!("F.{layer}"))).collect(),
    };
    let widths =
        (0..layers).map(|layer| LayerWidths { heads: HEADS, neurons: sample.neurons(layer) }).collect();
    let length = paper_json["T"].as_f64().unwrap();
    Some(Case {
        name,
        sample,
        cost: CostModel::new(HIDDEN, HEAD_DIM, length, widths).unwrap(),
        authors: tensors("authors")?,
        paper: tensors("paper")?,
        authors_json: authors_json["cases"][name]["results"].clone(),
        paper_json: paper_json["cases"][name].clone(),
    })
}

impl Case {
    fn forest(&self, linkage: Linkage, space: Space) -> Forest {
        Forest::build(&self.sample, linkage, space, &mut CpuBackend).unwrap()
    }
}

fn heights(tree: &Tree) -> Vec<f64> {
    tree.merges().iter().map(|merge| merge.height).collect()
}

fn widest_gap(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max)
}

fn flat(masks: &[Vec<f32>]) -> Vec<f64> {
    masks.iter().flatten().map(|v| f64::from(*v)).collect()
}

/// Different pooled heights that f32 computation may put on either side of `threshold`.
fn near(pooled: &[f64], threshold: f64) -> usize {
    let close = pooled.iter().filter(|height| (*height - threshold).abs() <= 1e-6);
    close.map(|height| height.to_bits()).collect::<std::collections::HashSet<_>>().len()
}

#[test]
fn similarity_equals_the_restated_one() {
    for name in CASES {
        let Some(file) = support::shared(&format!("fixtures/dual_cp/{name}/similarity.safetensors")) else {
            return;
        };
        let (expected, case) = (Tensors::read(&file), case(name).unwrap());
        let bound64 = 2.0 * gamma(204, U64);
        for layer in 0..case.sample.layers() {
            let n = case.sample.neurons(layer);
            let x: Vec<f64> = case.sample.activations[layer].iter().map(|v| f64::from(*v)).collect();
            let mut exact = vec![0.0; n * n];
            similarity::reference::absolute_cosine(
                View::dense(&x, case.sample.samples, n),
                &mut ViewMut::dense(&mut exact, n, n),
            );
            let mut fast = vec![0.0; n * n];
            similarity::cpu::absolute_cosine(
                case.sample.activations_view(layer),
                &mut ViewMut::dense(&mut fast, n, n),
            );
            for (unit, sum) in expected.f64(&format!("neuron_cos_rowsum.{layer}")).iter().enumerate() {
                let row = unit * n..(unit + 1) * n;
                assert!((exact[row.clone()].iter().sum::<f64>() - sum).abs() <= n as f64 * bound64);
                let fast: f64 = fast[row].iter().map(|v| f64::from(*v)).sum();
                assert!((fast - sum).abs() <= n as f64 * resolution());
            }
            for (unit, value) in expected.f64(&format!("neuron_cos_diag.{layer}")).iter().enumerate() {
                assert!((exact[unit * n + unit] - value).abs() <= bound64);
                assert_eq!(
                    f64::from(fast[unit * n + unit]),
                    value.round(),
                    "{name} layer {layer} unit {unit}"
                );
            }
            if layer == 0 {
                let mut index = 0;
                let cosines = expected.f64("neuron_cos.0");
                for i in 0..n {
                    for j in i + 1..n {
                        assert!((exact[i * n + j] - cosines[index]).abs() <= bound64);
                        assert!((f64::from(fast[i * n + j]) - cosines[index]).abs() <= resolution());
                        index += 1;
                    }
                }
                assert_eq!(index, cosines.len());
            }
            head_matching(&case, layer, &expected, bound64);
        }
    }
}

fn head_matching(case: &Case, layer: usize, expected: &Tensors, bound64: f64) {
    let x: Vec<f64> = case.sample.context[layer].iter().map(|v| f64::from(*v)).collect();
    let (samples, n) = (case.sample.samples, HEADS * HEAD_DIM);
    let mut exact = vec![0.0; n * n];
    similarity::reference::absolute_cosine(
        View::dense(&x, samples, n),
        &mut ViewMut::dense(&mut exact, n, n),
    );
    let mut fast = vec![0.0; n * n];
    similarity::cpu::absolute_cosine(case.sample.context_view(layer), &mut ViewMut::dense(&mut fast, n, n));

    let pairs = expected.f64(&format!("head_pairs.{layer}"));
    for a in 0..HEADS {
        for b in (0..HEADS).filter(|b| *b != a) {
            let block =
                View::dense(&exact, n, n).rows_at(a * HEAD_DIM, HEAD_DIM).cols_at(b * HEAD_DIM, HEAD_DIM);
            for (step, found) in mapping::reference::greedy_matching(block).iter().enumerate() {
                let at = ((a * HEADS + b) * HEAD_DIM + step) * 3;
                assert_eq!(
                    (found.row as f64, found.column as f64),
                    (pairs[at], pairs[at + 1]),
                    "{a} {b} {step}"
                );
                assert!((found.value - pairs[at + 2]).abs() <= bound64);
            }
        }
    }
    let (mut exact_match, mut fast_match) = (vec![0.0; HEADS * HEADS], vec![0.0; HEADS * HEADS]);
    mapping::reference::dimension_mapping(
        View::dense(&exact, n, n),
        HEAD_DIM,
        &mut ViewMut::dense(&mut exact_match, HEADS, HEADS),
    );
    mapping::cpu::dimension_mapping(
        View::dense(&fast, n, n),
        HEAD_DIM,
        &mut ViewMut::dense(&mut fast_match, HEADS, HEADS),
    );
    for (index, value) in expected.f64(&format!("head_match.{layer}")).iter().enumerate() {
        assert!((exact_match[index] - value).abs() <= 2.0 * bound64, "{} layer {layer}", case.name);
        assert!((f64::from(fast_match[index]) - value).abs() <= resolution());
    }
}

/// The authors' distances in, their heights out: linkage alone, to f64 rounding.
#[test]
fn authors_heights_from_the_authors_distances() {
    for name in CASES {
        let Some(case) = case(name) else { return };
        let check = |distance: Vec<f64>, n: usize, expected: &[f64]| {
            // D is 1 − c of some f32 c, so c = 1 − D is exact and the profile sees the very same D.
            let cosine: Vec<f32> = distance.iter().map(|d| (1.0 - d) as f32).collect();
            assert!(
                distance.iter().zip(&cosine).all(|(d, c)| f64::from(1.0 - c) == *d),
                "D is not 1 − c in f32"
            );
            let mut profile = vec![0.0f32; n * n];
            similarity::cpu::profile_distance(
                View::dense(&cosine, n, n),
                &mut ViewMut::dense(&mut profile, n, n),
            );
            let mut condensed: Vec<f64> = (0..n)
                .flat_map(|i| profile[i * n + i + 1..(i + 1) * n].iter().map(|v| f64::from(*v)))
                .collect();
            let tree = Tree::build(&mut condensed, n, Linkage::Complete, "test").unwrap();
            assert!(widest_gap(&heights(&tree), expected) <= 1e-12, "{name}");
        };
        for layer in 0..case.sample.layers() {
            let distance = case.authors.f64(&format!("head_D.{layer}"));
            check(distance, HEADS, &case.authors.f64(&format!("head_heights.{layer}")));
        }
        let distance = case.authors.f64("neuron_D.0");
        check(distance, case.sample.neurons(0), &case.authors.f64("neuron_heights.0"));
    }
}

/// Heights and flat partitions from the activations on, for all clusterings.
#[test]
fn trees_equal_those_of_scipy() {
    let clusterings = [
        ("", Linkage::Complete, Space::Profile),
        ("average_direct.", Linkage::Average, Space::Direct),
        ("complete_direct.", Linkage::Complete, Space::Direct),
        ("complete_profile.", Linkage::Complete, Space::Profile),
    ];
    for name in CASES {
        let Some(case) = case(name) else { return };
        for (prefix, linkage, space) in clusterings {
            let tensors = if prefix.is_empty() { &case.authors } else { &case.paper };
            let forest = case.forest(linkage, space);
            for (kind, trees) in [("head", &forest.heads), ("neuron", &forest.neurons)] {
                // Both sides of a difference of two similarities may be off, and the authors' are f32 as well.
                let bound = 4.0 * resolution();
                for (layer, tree) in trees.iter().enumerate() {
                    let expected = tensors.f64(&format!("{prefix}{kind}_heights.{layer}"));
                    let gap = widest_gap(&heights(tree), &expected);
                    assert!(gap <= bound, "{name} {prefix}{kind} layer {layer}: {gap:e}");
                }
                let labels = format!("{prefix}{kind}_cut_labels");
                if !tensors.has(&labels) {
                    continue;
                }
                let thresholds = tensors.f64(&format!("{prefix}{kind}_cut_t"));
                let expected = tensors.usize(&labels);
                let units = trees[0].leaves();
                for (t, &threshold) in thresholds.iter().enumerate() {
                    for (layer, tree) in trees.iter().enumerate() {
                        let at = (t * trees.len() + layer) * units;
                        let found = tree.partition_within(threshold);
                        assert_eq!(
                            found,
                            expected[at..at + units],
                            "{name} {labels} at {threshold}, layer {layer}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn masks_equal_those_of_the_authors() {
    let mut compared = 0;
    for name in CASES {
        let Some(case) = case(name) else { return };
        let forest = case.forest(Linkage::Complete, Space::Profile);
        for keep in KEEP {
            let expected = &case.authors_json[keep.to_string()];
            let options = Options { keep_flops: vec![keep], ..Options::authors() };
            let outcome = prune(&case.sample, &case.cost, &options, &mut CpuBackend);
            let (attention, ffn) = match &outcome {
                Ok(outcome) => (outcome.results[0].split.attention, outcome.results[0].split.ffn),
                Err(Error::Infeasible { .. }) => {
                    assert!(expected["neuron"].is_string(), "{name} {keep}: the authors' code finds a mask");
                    (expected["target_attn"].as_f64().unwrap(), f64::NAN)
                }
                Err(other) => panic!("{name} {keep}: {other}"),
            };
            assert!((attention / expected["target_attn"].as_f64().unwrap() - 1.0).abs() < 1e-12);
            let search = options.search;
            let parts = [
                ("head", cut(&forest.heads, case.cost.head(), attention, search, Ties::Together)),
                (
                    "neuron",
                    match ffn.is_nan() {
                        true => continue,
                        false => cut(&forest.neurons, case.cost.neuron(), ffn, search, Ties::Together),
                    },
                ),
            ];
            for (part, cut) in parts {
                let record = &expected[part];
                let used: Vec<usize> = serde_json::from_value(record["K_used"].clone()).unwrap();
                let close = |key: &str| record[key].as_f64().unwrap() < 1e-5;
                assert_eq!(cut.clusters, used, "{name} {keep} {part}");
                if close("nearest_height_to_used") || close("nearest_height_to_tested") {
                    continue;
                }
                let threshold = record["threshold_used"].as_f64().unwrap();
                assert!((cut.threshold.unwrap() - threshold).abs() <= 1e-12, "{name} {keep} {part}");
                let outcome = outcome.as_ref().unwrap();
                let masks = &outcome.results[0].masks;
                let found = if part == "head" { flat(&masks.heads) } else { flat(&masks.neurons) };
                assert_eq!(found, case.authors.f64(&format!("{part}_mask.{keep}")), "{name} {keep} {part}");
                compared += 1;
            }
        }
    }
    // 3 models × 4 fractions × 2 parts, less two infeasible fractions and one tie at a dead unit's distance.
    assert_eq!(compared, 19);
}

#[test]
fn head_centroid_slip_is_reproduced() {
    let case = case("bert").unwrap();
    let masks = |options: Options| {
        let options = Options { keep_flops: vec![0.7], ..options };
        prune(&case.sample, &case.cost, &options, &mut CpuBackend).unwrap().results.remove(0).masks
    };
    let repaired = Options { centroid: secateur::prune::dual_cp::Centroid::Member, ..Options::authors() };
    let (slip, repaired) = (masks(Options::authors()), masks(repaired));
    let differ = flat(&slip.heads).iter().zip(&flat(&repaired.heads)).filter(|(a, b)| a != b).count();
    let expected = &case.authors_json["0.7"]["head"]["units_that_differ_from_member_centroid"];
    assert_eq!(differ as u64, expected.as_u64().unwrap());
    assert_eq!(slip.neurons, repaired.neurons);
}

#[test]
fn masks_equal_those_of_the_paper() {
    let clusterings = [
        ("average_direct", Linkage::Average, Space::Direct),
        ("complete_direct", Linkage::Complete, Space::Direct),
        ("complete_profile", Linkage::Complete, Space::Profile),
    ];
    let (mut exact, mut grid) = (0, 0);
    for name in CASES {
        let Some(case) = case(name) else { return };
        for (clustering, linkage, space) in clusterings {
            let expected = &case.paper_json[clustering];
            let range = feasible_range(&case.cost, 5.0);
            assert!((range.ffn - expected["r_min_ffn"].as_f64().unwrap()).abs() < 1e-12);
            assert!((range.attention - expected["r_min_attention"].as_f64().unwrap()).abs() < 1e-12);
            let feasible: Vec<f64> = KEEP
                .into_iter()
                .filter(|keep| expected["results"][keep.to_string()]["feasible"] == Value::Bool(true))
                .collect();
            assert_eq!(feasible, KEEP.into_iter().filter(|keep| *keep >= range.ffn).collect::<Vec<_>>());
            let mut searches = vec![("exact", Search::Exact)];
            if clustering == "average_direct" {
                searches.push(("grid", Search::Grid { delta: 0.001, overshoot: false }));
            }
            for (kind, search) in searches {
                let options =
                    Options { keep_flops: feasible.clone(), linkage, space, search, ..Options::paper() };
                let outcome = prune(&case.sample, &case.cost, &options, &mut CpuBackend).unwrap();
                for (keep, result) in feasible.iter().zip(&outcome.results) {
                    let expected = &expected["results"][keep.to_string()];
                    assert!(
                        (result.split.ffn / expected["budget_ffn"].as_f64().unwrap() - 1.0).abs() < 1e-12
                    );
                    for part in ["head", "neuron"] {
                        let record = &expected[format!("{part}_{kind}")];
                        let key = if kind == "exact" { "threshold" } else { "t" };
                        let threshold = record[key].as_f64().unwrap();
                        let pooled: Vec<f64> = (0..case.sample.layers())
                            .flat_map(|layer| case.paper.f64(&format!("{clustering}.{part}_heights.{layer}")))
                            .collect();
                        let what = format!("{name} {clustering} {kind} {keep} {part}");
                        // An exact threshold is a height itself.
                        if near(&pooled, threshold) > usize::from(kind == "exact") {
                            // Dead units tie with everything at distance 1 up to rounding: who merges is noise.
                            assert_eq!(what, "opt complete_profile exact 0.5 neuron");
                            continue;
                        }
                        let (masks, cut) = match part {
                            "head" => (flat(&result.masks.heads), &result.head_cut),
                            _ => (flat(&result.masks.neurons), &result.neuron_cut),
                        };
                        assert!((cut.threshold.unwrap() - threshold).abs() <= resolution(), "{what}");
                        let clusters: Vec<usize> = serde_json::from_value(record["K"].clone()).unwrap();
                        assert_eq!(cut.clusters, clusters, "{what}");
                        let mask = case.paper.f64(&format!("{clustering}.{part}_mask_{kind}.{keep}"));
                        assert_eq!(masks, mask, "{what}");
                        *(if kind == "exact" { &mut exact } else { &mut grid }) += 1;
                    }
                    assert!(result.budget.reached <= *keep);
                    let noisy = name == "opt" && clustering == "complete_profile" && *keep == 0.5;
                    if kind == "exact" && !noisy {
                        let reached = expected["kept_flops_exact"].as_f64().unwrap();
                        assert!((result.budget.reached - reached).abs() < 1e-12);
                    }
                }
            }
        }
    }
    // (3 + 4 + 3 feasible fractions) × 2 parts, for three clusterings less the one tie, and for the grid of one.
    assert_eq!((exact, grid), (59, 20));
}

#[test]
fn infeasible_fractions_name_the_range() {
    let case = case("bert").unwrap();
    for options in [Options::paper(), Options::authors(), Options::default()] {
        let options = Options { keep_flops: vec![0.3], ..options };
        match prune(&case.sample, &case.cost, &options, &mut CpuBackend) {
            Err(error @ Error::Infeasible { .. }) => {
                let text = error.to_string();
                assert!(text.contains("0.4551 to 1") && text.contains("FFN"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    // The fraction that the message names works.
    split(&case.cost, 0.4551, 5.0, OnInfeasible::Error).unwrap();
    let options = Options { keep_flops: vec![0.3], on_infeasible: OnInfeasible::Shift, ..Options::default() };
    let outcome = prune(&case.sample, &case.cost, &options, &mut CpuBackend).unwrap();
    assert_eq!(outcome.results[0].neuron_cut.clusters, [1, 1, 1]);
    assert!(outcome.results[0].budget.reached <= 0.3);
    assert_eq!(outcome.notes.len(), 1);
}

#[test]
fn dead_neurons_are_reported() {
    let Some(case) = case("opt") else { return };
    let forest = case.forest(Linkage::Average, Space::Direct);
    let found: Vec<(usize, usize)> = forest
        .dead_neurons
        .iter()
        .enumerate()
        .flat_map(|(layer, units)| units.iter().map(move |unit| (layer, *unit)))
        .collect();
    let expected: Vec<(usize, usize)> =
        serde_json::from_value(case.paper_json["dead_units_in_sample"].clone()).unwrap();
    assert_eq!(found, expected);
}
