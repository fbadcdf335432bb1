//! The cost model, the split of a budget, the search under it, and the masks that come out.

use proptest::prelude::*;
use secateur::Error;
use secateur::prune::clustering::{Linkage, Tree, members};
use secateur::prune::cost::{CostModel, LayerWidths};
use secateur::prune::dual_cp::{
    CalibrationSample, Centroid, Control, CpuBackend, OnInfeasible, Options, Outcome, Part, ReferenceBackend,
    Search, Space, Ties, control, cut, feasible_range, peak_bytes, prune, split,
};
use secateur::prune::masks::UnitMasks;

use crate::support::numbers::Random;

fn bert_base(length: f64) -> CostModel {
    CostModel::new(768, 64, length, vec![LayerWidths { heads: 12, neurons: 3072 }; 12]).unwrap()
}

/// The published table: task, T, GMAC, attention share in percent, c_head / c_neuron.
#[test]
fn costs_of_bert_base_are_the_published_ones() {
    let table = [
        ("SST-2", 25.16, 2.149, 33.70, 130.1),
        ("QQP", 30.55, 2.612, 33.77, 130.5),
        ("STS-B", 31.47, 2.691, 33.79, 130.6),
        ("MNLI", 39.05, 3.345, 33.89, 131.3),
        ("QNLI", 50.97, 4.377, 34.06, 132.2),
        ("MRPC", 53.24, 4.574, 34.09, 132.4),
        ("SQuAD 1.1", 170.75, 15.04, 35.72, 142.2),
        ("language modelling", 512.0, 48.32, 40.00, 170.7),
    ];
    for (task, length, gmac, share, ratio) in table {
        let cost = bert_base(length);
        let digits =
            |value: f64, decimals: i32| (value * 10f64.powi(decimals)).round() / 10f64.powi(decimals);
        assert_eq!(digits(cost.total() / 1e9, if gmac < 10.0 { 3 } else { 2 }), gmac, "{task}");
        assert_eq!(digits(100.0 * cost.attention() / cost.total(), 2), share, "{task}");
        assert_eq!(digits(cost.head() / cost.neuron(), 1), ratio, "{task}");
    }
    assert_eq!(bert_base(128.0).block_parameters(&bert_base(128.0).layers), 85_054_464);
}

/// The published lower limits of λ = 5, and what it keeps of each part at T of STS-B.
#[test]
fn limits_of_bert_base_are_the_published_ones() {
    for (length, minimum) in
        [(25.16, 0.205), (31.47, 0.206), (39.05, 0.207), (50.97, 0.209), (170.75, 0.229), (512.0, 0.280)]
    {
        let range = feasible_range(&bert_base(length), 5.0);
        assert_eq!(range.minimum().1, Part::Ffn);
        assert!((range.minimum().0 - minimum).abs() <= 5.1e-4, "{length}: {}", range.minimum().0);
    }
    let cost = bert_base(31.47);
    for (keep, attention, ffn) in
        [(0.9, 95.1, 87.4), (0.7, 85.2, 62.2), (0.6, 80.3, 49.7), (0.5, 75.3, 37.1), (0.3, 65.5, 11.9)]
    {
        let split = split(&cost, keep, 5.0, OnInfeasible::Error).unwrap();
        assert!((100.0 * split.attention / cost.attention() - attention).abs() < 0.051);
        assert!((100.0 * split.ffn / cost.ffn() - ffn).abs() < 0.051);
    }
}

/// A sample of a random model; columns repeat and die now and then.
fn sample(random: &mut Random) -> (CalibrationSample, CostModel) {
    let (layers, samples, head_dim) = (1 + random.below(4), 1 + random.below(20), 1 + random.below(5));
    let widths: Vec<LayerWidths> = (0..layers)
        .map(|_| LayerWidths { heads: 1 + random.below(5), neurons: 1 + random.below(30) })
        .collect();
    let mut matrix = |units: usize| {
        let mut x = random.normals(samples * units);
        for unit in 0..units {
            let (kind, other) = (random.below(8), random.below(units));
            for s in 0..samples {
                match kind {
                    0 => x[s * units + unit] = 0.0,
                    1 => x[s * units + unit] = -2.0 * x[s * units + other],
                    _ => {}
                }
            }
        }
        x
    };
    let context = widths.iter().map(|w| matrix(w.heads * head_dim)).collect();
    let activations = widths.iter().map(|w| matrix(w.neurons)).collect();
    let heads = widths.iter().map(|w| w.heads).collect();
    let length = 1.0 + 60.0 * random.unit();
    let cost = CostModel::new(8 + random.below(60), head_dim, length, widths).unwrap();
    (CalibrationSample { samples, head_dim, heads, context, activations }, cost)
}

fn run(sample: &CalibrationSample, cost: &CostModel, options: &Options) -> Result<Outcome, Error> {
    prune(sample, cost, options, &mut CpuBackend)
}

/// A fraction that can be reached with this λ.
fn reachable(cost: &CostModel, lambda: f64, random: &mut Random) -> f64 {
    let minimum = feasible_range(cost, lambda).minimum().0.max(0.0);
    (minimum + (1.0 - minimum) * random.unit()).max(minimum + 1e-9).min(1.0)
}

fn any_options() -> impl Strategy<Value = Options> {
    let searches = prop_oneof![
        Just(Search::Exact),
        Just(Search::Grid { delta: 0.001, overshoot: false }),
        Just(Search::Grid { delta: 0.01, overshoot: true }),
    ];
    let centroids = prop_oneof![
        Just(Centroid::Member),
        Just(Centroid::AuthorsHeadPrefix),
        Just(Centroid::Random),
        Just(Centroid::ClusterCentre)
    ];
    let linkages = prop_oneof![Just(Linkage::Average), Just(Linkage::Complete)];
    let spaces = prop_oneof![Just(Space::Direct), Just(Space::Profile)];
    let ties = prop_oneof![Just(Ties::Together), Just(Ties::Ordered)];
    let lambdas = prop_oneof![Just(5.0), Just(2.0), Just(0.0), Just(0.3)];
    (searches, centroids, linkages, spaces, ties, lambdas, any::<u64>()).prop_map(
        |(search, centroid, linkage, space, ties, lambda, seed)| Options {
            search,
            centroid,
            linkage,
            space,
            ties,
            lambda,
            seed,
            ..Options::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_mask_meets_its_budget(seed: u64, options in any_options()) {
        let mut random = Random(seed);
        let (sample, cost) = sample(&mut random);
        let keep = reachable(&cost, options.lambda, &mut random);
        let options = Options { keep_flops: vec![keep, 1.0], ..options };
        let outcome = run(&sample, &cost, &options).unwrap();
        prop_assert_eq!(outcome.results.len(), 2);
        for (result, keep) in outcome.results.iter().zip(&options.keep_flops) {
            prop_assert!(result.budget.reached <= keep * (1.0 + 1e-12));
            prop_assert_eq!(result.budget.asked, *keep);
            let kept = result.masks.widths();
            prop_assert_eq!(&kept, &result.budget.layers);
            for (layer, width) in kept.iter().enumerate() {
                // One unit for each cluster, so never an empty layer.
                prop_assert_eq!(width.heads, result.head_cut.clusters[layer]);
                prop_assert_eq!(width.neurons, result.neuron_cut.clusters[layer]);
                prop_assert!(width.heads >= 1 && width.neurons >= 1);
            }
            // Each cluster keeps one of its own members.
            let (heads, neurons) = result.masks.kept();
            for layer in 0..kept.len() {
                for (tree, cut, kept) in [
                    (&outcome.forest.heads[layer], &result.head_cut, &heads[layer]),
                    (&outcome.forest.neurons[layer], &result.neuron_cut, &neurons[layer]),
                ] {
                    for cluster in members(&tree.partition_after(cut.merges[layer])) {
                        prop_assert_eq!(cluster.iter().filter(|unit| kept.contains(unit)).count(), 1);
                    }
                }
            }
        }
        if options.search == Search::Exact {
            prop_assert_eq!(&outcome.results[1].masks, &UnitMasks::ones(&cost.layers));
        }
    }

    #[test]
    fn exact_search_is_minimal_and_monotone(seed: u64, ties in prop_oneof![Just(Ties::Together), Just(Ties::Ordered)]) {
        let mut random = Random(seed);
        let (sample, cost) = sample(&mut random);
        let lambda = 0.5;
        let mut keeps: Vec<f64> = (0..6).map(|_| reachable(&cost, lambda, &mut random)).collect();
        keeps.sort_by(f64::total_cmp);
        let options = Options { keep_flops: keeps, lambda, ties, ..Options::default() };
        let outcome = run(&sample, &cost, &options).unwrap();
        let mut before: Option<Vec<usize>> = None;
        for result in &outcome.results {
            for (trees, cut, unit, budget) in [
                (&outcome.forest.heads, &result.head_cut, cost.head(), result.split.attention),
                (&outcome.forest.neurons, &result.neuron_cut, cost.neuron(), result.split.ffn),
            ] {
                let units: usize = cut.clusters.iter().sum();
                prop_assert!(units as f64 * unit <= budget);
                let Some(threshold) = cut.threshold else { continue };
                // Taking back the last merge, or with ties together all merges of that height, exceeds the budget.
                let undone = match ties {
                    Ties::Ordered => 1,
                    Ties::Together => {
                        let merges = trees.iter().flat_map(|tree| tree.merges());
                        merges.filter(|merge| merge.height == threshold).count()
                    }
                };
                prop_assert!((units + undone) as f64 * unit > budget, "{} units, {} taken back", units, undone);
            }
            let counts: Vec<usize> =
                result.head_cut.clusters.iter().chain(&result.neuron_cut.clusters).copied().collect();
            if let Some(before) = before {
                prop_assert!(before.iter().zip(&counts).all(|(less, more)| less <= more), "more budget, fewer units");
            }
            before = Some(counts);
        }
    }

    #[test]
    fn infeasible_budgets_are_refused_or_shifted(seed: u64, lambda in prop_oneof![Just(0.0), Just(0.2), Just(5.0), Just(50.0)]) {
        let mut random = Random(seed);
        let (sample, cost) = sample(&mut random);
        let range = feasible_range(&cost, lambda);
        let (minimum, _) = range.minimum();
        let keep = (minimum * random.unit()).max(1e-6);
        let options = Options { keep_flops: vec![keep], lambda, ..Options::default() };
        if keep < minimum * (1.0 - 1e-9) {
            match run(&sample, &cost, &options) {
                Err(Error::Infeasible { asked, minimum: named, .. }) => {
                    prop_assert_eq!(asked, keep);
                    prop_assert!(named >= minimum && named < minimum + 1.001e-4);
                    if named <= 1.0 {
                        let options = Options { keep_flops: vec![named], ..options.clone() };
                        prop_assert!(run(&sample, &cost, &options).is_ok(), "the named minimum fails");
                    }
                }
                other => prop_assert!(false, "{:?}", other.map(|outcome| outcome.results)),
            }
        }
        let options = Options { on_infeasible: OnInfeasible::Shift, ..options };
        match run(&sample, &cost, &options) {
            Ok(outcome) => {
                let result = &outcome.results[0];
                prop_assert!(result.budget.reached <= keep * (1.0 + 1e-12));
                if let Some(part) = result.split.clamped {
                    let cut = if part == Part::Ffn { &result.neuron_cut } else { &result.head_cut };
                    prop_assert!(cut.clusters.iter().all(|count| *count == 1));
                }
            }
            Err(Error::Infeasible { minimum, .. }) => {
                prop_assert!(keep < range.shifted * (1.0 + 1e-9));
                prop_assert!(minimum >= range.shifted);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn controls_keep_as_much(seed: u64) {
        let mut random = Random(seed);
        let (sample, cost) = sample(&mut random);
        let options = Options { keep_flops: vec![reachable(&cost, 1.0, &mut random)], lambda: 1.0, ..Options::default() };
        let outcome = run(&sample, &cost, &options).unwrap();
        let result = &outcome.results[0];
        for kind in [Control::Random, Control::RandomSpread, Control::Worst] {
            let (masks, record) = control(kind, &outcome.forest, result, &cost, seed).unwrap();
            prop_assert_eq!(record.reached, result.budget.reached);
            prop_assert!(record.layers.iter().all(|layer| layer.heads >= 1 && layer.neurons >= 1));
            if kind != Control::RandomSpread {
                prop_assert_eq!(&record.layers, &result.budget.layers);
            }
            prop_assert_eq!(&control(kind, &outcome.forest, result, &cost, seed).unwrap().0, &masks);
        }
    }

    #[test]
    fn reference_and_cpu_backends_agree_on_magnitudes_and_dead_units(seed: u64) {
        let (sample, cost) = sample(&mut Random(seed));
        let options = Options { keep_flops: vec![1.0], ..Options::default() };
        let fast = run(&sample, &cost, &options).unwrap().forest;
        let exact = prune(&sample, &cost, &options, &mut ReferenceBackend).unwrap().forest;
        prop_assert_eq!(&fast.dead_neurons, &exact.dead_neurons);
        for (fast, exact) in fast.neuron_magnitudes.iter().flatten().zip(exact.neuron_magnitudes.iter().flatten()) {
            prop_assert!((fast - exact).abs() <= exact * f32::EPSILON);
        }
    }
}

/// One layer, two heads of dimension 1, three neurons, two tokens.
fn tiny() -> (CalibrationSample, CostModel) {
    let sample = CalibrationSample {
        samples: 2,
        head_dim: 1,
        heads: vec![2],
        context: vec![vec![1.0, 0.5, -1.0, 0.5]],
        activations: vec![vec![1.0, 2.0, 0.0, 1.0, 2.1, 3.0]],
    };
    let cost = CostModel::new(8, 1, 10.0, vec![LayerWidths { heads: 2, neurons: 3 }]).unwrap();
    (sample, cost)
}

#[test]
fn unusable_inputs_are_named() {
    let usable = Options { keep_flops: vec![0.9], ..Options::default() };
    let (good, cost) = tiny();
    assert!(run(&good, &cost, &usable).is_ok());
    for keep in [0.0, -0.5, 1.1, f64::NAN, f64::INFINITY] {
        let options = Options { keep_flops: vec![keep], ..usable.clone() };
        assert!(matches!(run(&good, &cost, &options), Err(Error::Usage(_))), "{keep}");
    }
    for options in [
        Options { keep_flops: vec![], ..usable.clone() },
        Options { lambda: f64::NAN, ..usable.clone() },
        Options { lambda: -1.0, ..usable.clone() },
        Options { tokens: 0, ..usable.clone() },
        Options { search: Search::Grid { delta: 0.0, overshoot: false }, ..usable.clone() },
        Options { search: Search::Grid { delta: f64::NAN, overshoot: true }, ..usable.clone() },
    ] {
        assert!(matches!(run(&good, &cost, &options), Err(Error::Usage(_))), "{options:?}");
    }
    let mut bad = good.clone();
    bad.activations[0][4] = f32::NAN;
    match run(&bad, &cost, &usable) {
        Err(Error::NotFinite { what, place, .. }) => {
            assert_eq!(
                (what.as_str(), place.as_str()),
                ("FFN activation", "in layer 0, sampled token 1, column 1")
            );
        }
        other => panic!("{:?}", other.map(|outcome| outcome.results)),
    }
    let mut bad = good.clone();
    bad.context[0][0] = f32::INFINITY;
    assert!(matches!(run(&bad, &cost, &usable), Err(Error::NotFinite { .. })));
    let mut bad = good.clone();
    bad.activations[0].pop();
    assert!(matches!(run(&bad, &cost, &usable), Err(Error::Shape { .. })));
    let bad = CalibrationSample { samples: 0, context: vec![vec![]], activations: vec![vec![]], ..good };
    assert!(matches!(run(&bad, &cost, &usable), Err(Error::Usage(_))));
    for length in [0.0, -3.0, f64::NAN, f64::INFINITY] {
        assert!(CostModel::new(8, 1, length, cost.layers.clone()).is_err());
    }
}

#[test]
fn degenerate_activations_have_results() {
    let widths = vec![LayerWidths { heads: 3, neurons: 9 }; 2];
    let cost = CostModel::new(16, 4, 20.0, widths).unwrap();
    for samples in [1, 5] {
        for (what, value) in [("all equal", 0.7f32), ("all zero", 0.0), ("huge", 3e38), ("subnormal", 1e-42)]
        {
            let sample = CalibrationSample {
                samples,
                head_dim: 4,
                heads: vec![3; 2],
                context: vec![vec![value; samples * 12]; 2],
                activations: vec![vec![value; samples * 9]; 2],
            };
            for options in [Options::default(), Options::paper(), Options::authors()] {
                let options =
                    Options { keep_flops: vec![0.9, 0.5], on_infeasible: OnInfeasible::Shift, ..options };
                let outcome = run(&sample, &cost, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
                for result in &outcome.results {
                    assert!(result.budget.reached <= result.budget.asked, "{what}");
                }
                let dead = if value == 0.0 { (0..9).collect() } else { Vec::new() };
                assert_eq!(outcome.forest.dead_neurons, vec![dead; 2], "{what}");
            }
        }
    }
}

/// All merges tie at one height. Taken in order, they meet the budget with no merge to spare.
#[test]
fn ordered_ties_do_not_prune_more_than_asked() {
    let tree = Tree::build(&mut vec![1.0; 45], 10, Linkage::Complete, "test").unwrap();
    let trees = [tree.clone(), tree];
    let ordered = cut(&trees, 1.0, 13.0, Search::Exact, Ties::Ordered);
    assert_eq!(ordered.clusters, [3, 10]);
    let together = cut(&trees, 1.0, 13.0, Search::Exact, Ties::Together);
    assert_eq!(together.clusters, [1, 1]);
    let unneeded = cut(&trees, 1.0, 20.0, Search::Exact, Ties::Together);
    assert_eq!((unneeded.threshold, unneeded.clusters), (None, vec![10, 10]));
}

#[test]
fn centroid_rules_differ_as_described() {
    // Neurons 0, 1, 2 are multiples of one another but for noise, 3 is apart. Magnitudes: 2 > 1 > 0.
    let base = [1.0f32, -2.0, 0.5, 3.0];
    let noise = [[0.3f32, 0.1, -0.2, 0.0], [0.0; 4], [-0.2, 0.1, 0.3, 0.0]];
    let mut activations = vec![0.0f32; 16];
    for s in 0..4 {
        for unit in 0..3 {
            activations[s * 4 + unit] = (1 + unit) as f32 * (base[s] + noise[unit][s]);
        }
        activations[s * 4 + 3] = [1.0, 1.0, 1.0, 0.0][s];
    }
    let sample = CalibrationSample {
        samples: 4,
        head_dim: 1,
        heads: vec![1],
        context: vec![vec![1.0; 4]],
        activations: vec![activations],
    };
    let cost = CostModel::new(64, 1, 1.0, vec![LayerWidths { heads: 1, neurons: 4 }]).unwrap();
    // 514 of 770 multiply–accumulates: the head, which cannot go, and two of the four neurons.
    let kept = |centroid: Centroid, seed: u64| {
        let options = Options {
            keep_flops: vec![0.67],
            on_infeasible: OnInfeasible::Shift,
            centroid,
            seed,
            ..Options::default()
        };
        run(&sample, &cost, &options).unwrap().results[0].masks.kept().1[0].clone()
    };
    assert_eq!(kept(Centroid::Member, 0), [2, 3]);
    assert_eq!(kept(Centroid::ClusterCentre, 0), [1, 3], "the noiseless one is nearest to the others");
    let chosen: std::collections::BTreeSet<usize> =
        (0..40).map(|seed| kept(Centroid::Random, seed)[0]).collect();
    assert_eq!(chosen.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn worst_control_keeps_the_largest_clusters() {
    // Clusters at 0.5: {0, 2, 4}, {1}, {3}.
    let near = |i: usize, j: usize| if i.is_multiple_of(2) && j.is_multiple_of(2) { 0.1 } else { 0.9 };
    let mut condensed: Vec<f64> = (0..5).flat_map(|i| (i + 1..5).map(move |j| near(i, j))).collect();
    let tree = Tree::build(&mut condensed, 5, Linkage::Complete, "test").unwrap();
    assert_eq!(tree.partition_within(0.5), [0, 1, 0, 2, 0]);
    let (mut sample, mut cost) = tiny();
    sample.activations[0] = Random(3).normals(10);
    cost.layers[0].neurons = 5;
    let options = Options { keep_flops: vec![1.0], ..Options::default() };
    let mut outcome = run(&sample, &cost, &options).unwrap();
    outcome.forest.neurons[0] = tree;
    let mut result = outcome.results.remove(0);
    result.neuron_cut.merges = vec![2];
    result.neuron_cut.clusters = vec![3];
    let (masks, _) = control(Control::Worst, &outcome.forest, &result, &cost, 0).unwrap();
    assert_eq!(masks.neurons[0], [1.0, 0.0, 1.0, 0.0, 1.0]);
}

#[test]
fn several_fractions_come_from_one_set_of_trees() {
    let (sample, cost) = sample(&mut Random(77));
    let keeps = vec![1.0, 0.95, 0.9];
    let many = Options { keep_flops: keeps.clone(), lambda: 0.5, ..Options::default() };
    let Ok(together) = run(&sample, &cost, &many) else {
        panic!("the fractions are reachable for this seed")
    };
    for (index, keep) in keeps.into_iter().enumerate() {
        let one = Options { keep_flops: vec![keep], ..many.clone() };
        assert_eq!(run(&sample, &cost, &one).unwrap().results[0], together.results[index]);
    }
    let named: Vec<&str> = together.stages.0.iter().map(|(name, _)| name.as_str()).collect();
    assert!(named.contains(&"linkage") && named.contains(&"dimension mapping"), "{named:?}");
}

#[test]
fn peak_memory_of_bert_base_is_known() {
    let megabytes = |space: Space| peak_bytes(3072, 200, space, 1) as f64 / 1e6;
    assert!((75.0..76.0).contains(&megabytes(Space::Direct)), "{}", megabytes(Space::Direct));
    assert!((113.0..114.0).contains(&megabytes(Space::Profile)), "{}", megabytes(Space::Profile));
    // The distances of every further layer that is clustered at the same time.
    assert_eq!(
        peak_bytes(3072, 200, Space::Direct, 3) - peak_bytes(3072, 200, Space::Direct, 1),
        2 * 8 * 3072 * 3071 / 2
    );
}
