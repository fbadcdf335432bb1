//! The numbers of Mask-Tuning: searches, rearrangement, systems, solver.

use proptest::prelude::*;
use secateur::Error;
use secateur::prune::cost::{CostModel, LayerWidths};
use secateur::prune::lsmr::{LsmrOptions, LsmrStop, lsmr, lsmr_symmetric};
use secateur::prune::mask_gradients::{Importance, MaskGradients};
use secateur::prune::mask_tuning::latency::{LatencyFit, search_latency};
use secateur::prune::mask_tuning::{
    NormalEquations, OnReject, Options, RescaleOptions, SearchRule, SublayerTrace, System, pruned_loss,
    rearrange, rearrange_layer, search,
};

use crate::support::numbers::Random;

const LAYERS: usize = 3;
const HEADS: usize = 3;
const NEURONS: usize = 10;

fn cost(length: f64) -> CostModel {
    CostModel::new(12, 4, length, vec![LayerWidths { heads: HEADS, neurons: NEURONS }; LAYERS]).unwrap()
}

/// Positive importances; small integers, so that sums are exact and there are ties.
fn importance(random: &mut Random, largest: usize) -> Importance {
    let mut layers = |units: usize| -> Vec<Vec<f64>> {
        (0..LAYERS).map(|_| (0..units).map(|_| (1 + random.below(largest)) as f64).collect()).collect()
    };
    Importance { heads: layers(HEADS), neurons: layers(NEURONS) }
}

/// Sum of the `count` largest.
fn best(values: &[Vec<f64>], count: usize) -> f64 {
    let mut all: Vec<f64> = values.iter().flatten().copied().collect();
    all.sort_by(|a, b| b.total_cmp(a));
    all[..count].iter().sum()
}

proptest! {
    /// No pair (heads, neurons) within the budget is worth more, the masks are within it, and more budget is never worse.
    #[test]
    fn search_is_the_best_within_the_budget(seed: u64, keep in 0.02f64..1.0, length in 4.0f64..60.0) {
        let importance = importance(&mut Random(seed), 30);
        let cost = cost(length);
        let masks = search(&importance, &cost, keep, SearchRule::WithinBudget).unwrap();
        let record = cost.record(keep, &masks).unwrap();
        prop_assert!(record.reached <= keep * (1.0 + 1e-12));
        let value = importance.kept(&masks);
        for heads in 0..=LAYERS * HEADS {
            for neurons in 0..=LAYERS * NEURONS {
                let spent = heads as f64 * cost.head() + neurons as f64 * cost.neuron();
                if spent <= keep * cost.total() {
                    prop_assert!(best(&importance.heads, heads) + best(&importance.neurons, neurons) <= value);
                }
            }
        }
        let more = search(&importance, &cost, (keep * 1.3).min(1.0), SearchRule::WithinBudget).unwrap();
        prop_assert!(importance.kept(&more) >= value);
        // Nothing that would still fit is left out.
        let left = keep * cost.total() - record.macs_kept;
        if record.ffn.units_kept < LAYERS * NEURONS {
            prop_assert!(left < cost.neuron());
        }
    }

    /// Which unit has which number does not matter where no two are equally important.
    #[test]
    fn search_follows_units_wherever_they_stand(seed: u64, keep in 0.05f64..1.0) {
        let mut random = Random(seed);
        let mut importance = importance(&mut random, 1);
        importance.heads.iter_mut().chain(&mut importance.neurons).flatten().for_each(|v| *v = random.unit());
        let mut turned = importance.clone();
        turned.heads.reverse();
        turned.neurons.reverse();
        turned.heads.iter_mut().chain(&mut turned.neurons).for_each(|layer| layer.reverse());
        for rule in [SearchRule::WithinBudget, SearchRule::Released] {
            let masks = search(&importance, &cost(20.0), keep, rule).unwrap();
            let mut found = search(&turned, &cost(20.0), keep, rule).unwrap();
            found.heads.reverse();
            found.neurons.reverse();
            found.heads.iter_mut().chain(&mut found.neurons).for_each(|layer| layer.reverse());
            prop_assert_eq!(&masks, &found);
        }
    }

    /// The Gram form makes the exchanges of the sum of gradients itself; counts stay, the objective never rises.
    #[test]
    fn rearrangement_equals_its_definition(seed: u64, units in 1usize..24, batches in 1usize..9, pruned in 0usize..24) {
        let mut random = Random(seed);
        let pruned = pruned.min(units);
        let gradients: Vec<f64> = (0..units * batches).map(|_| random.normal()).collect();
        let squares = |unit: usize| (0..batches).map(|b| gradients[b * units + unit].powi(2)).sum::<f64>();
        let mut order: Vec<usize> = (0..units).collect();
        order.sort_by(|&a, &b| squares(a).total_cmp(&squares(b)));
        let mut mask = vec![1.0; units];
        order[..pruned].iter().for_each(|&unit| mask[unit] = 0.0);
        let found = rearrange_layer(&mask, &gradients);

        let mut set = order[..pruned].to_vec();
        for &unit in order[pruned..].iter().filter(|_| pruned > 0) {
            set.push(unit);
            let without = |out: usize| {
                let sum = |b: usize| set.iter().filter(|&&i| i != out).map(|&i| gradients[b * units + i]).sum::<f64>();
                (0..batches).map(|b| sum(b).powi(2)).sum::<f64>()
            };
            let out = set.iter().copied().min_by(|&a, &b| without(a).total_cmp(&without(b))).unwrap();
            set.retain(|&i| i != out);
        }
        let mut expected = vec![1.0; units];
        set.iter().for_each(|&unit| expected[unit] = 0.0);
        // Where two exchanges are equally good within rounding, either may be made.
        let (loss, least) = (pruned_loss(&found, &gradients), pruned_loss(&expected, &gradients));
        prop_assert!(found == expected || (loss - least).abs() <= 1e-9 * least.max(1.0));
        prop_assert_eq!(found.iter().filter(|v| **v == 0.0).count(), pruned);
        prop_assert!(loss <= pruned_loss(&mask, &gradients) * (1.0 + 1e-9) + 1e-12);
    }

    /// A table that is flat, then linear, is found again; any table's fit is the best of all thresholds.
    #[test]
    fn latency_fits_are_the_best_of_their_form(seed: u64, units in 2usize..40, threshold in 1usize..40) {
        let mut random = Random(seed);
        let threshold = threshold.min(units - 1);
        let (flat, slope) = (1e-3 * (1.0 + random.unit()), 1e-5 * (1.0 + random.unit()));
        let exact: Vec<f64> =
            (1..=units).map(|n| flat + slope * n.saturating_sub(threshold) as f64).collect();
        let fit = LatencyFit::of(&exact).unwrap();
        // One entry above a flat part also fits as a line from one entry earlier only if it lies on it: it does not.
        prop_assert_eq!(fit.threshold, threshold);
        prop_assert!((fit.flat - flat).abs() <= 1e-12 && (fit.slope - slope).abs() <= 1e-12);
        let stairs: Vec<f64> = (0..units).map(|n| flat + 1e-4 * (n / 8) as f64 + 1e-6 * random.unit()).collect();
        let fit = LatencyFit::of(&stairs).unwrap();
        let error = |fit: &LatencyFit| {
            stairs.iter().enumerate().map(|(i, s)| (s - fit.at(i + 1)).powi(2)).sum::<f64>()
        };
        for threshold in 1..=units {
            let flat = stairs[..threshold].iter().sum::<f64>() / threshold as f64;
            let (mut xy, mut xx) = (0.0, 0.0);
            for (i, seconds) in stairs[threshold..].iter().enumerate() {
                xy += (i + 1) as f64 * (seconds - flat);
                xx += ((i + 1) as f64).powi(2);
            }
            let slope = if xx == 0.0 { 0.0 } else { f64::max(0.0, xy / xx) };
            let other = LatencyFit { threshold, flat, slope };
            prop_assert!(error(&fit) <= error(&other) + 1e-18);
            if threshold == fit.threshold {
                prop_assert!((fit.flat - flat).abs() <= 1e-9 && (fit.slope - slope).abs() <= 1e-9);
            }
        }
    }

    /// Predicted latency is within the budget, and more budget is never worse, free units included.
    #[test]
    fn latency_search_keeps_its_budget(seed: u64, keep in 0.2f64..1.0, free in 0usize..3) {
        let mut random = Random(seed);
        let importance = importance(&mut random, 50);
        let slope = |free: bool| if free { 0.0 } else { 1e-4 };
        let heads = LatencyFit { threshold: 1 + random.below(HEADS), flat: 1e-3, slope: slope(free == 1) };
        let neurons = LatencyFit { threshold: 1 + random.below(NEURONS), flat: 2e-3, slope: slope(free == 2) };
        let plan = search_latency(&importance, &heads, &neurons, keep).unwrap();
        prop_assert!(plan.predicted <= plan.budget * (1.0 + 1e-9), "{} {}", plan.predicted, plan.budget);
        let more = search_latency(&importance, &heads, &neurons, (1.2 * keep).min(1.0)).unwrap();
        prop_assert!(importance.kept(&more.masks) >= importance.kept(&plan.masks));
        let everything = search_latency(&importance, &heads, &neurons, 1.0).unwrap();
        prop_assert!(everything.masks.heads.iter().chain(&everything.masks.neurons).flatten().all(|v| *v == 1.0));
    }

    /// Of one attention and one feed-forward sublayer every set of units can be tried, and none within the budget is worth
    /// more; and units that change places change nothing but their places.
    #[test]
    fn latency_search_is_the_best_of_one_layer(seed: u64, keep in 0.3f64..1.0) {
        let mut random = Random(seed);
        let mut units = |count: usize| vec![(0..count).map(|_| 0.5 + random.unit()).collect::<Vec<f64>>()];
        let importance = Importance { heads: units(HEADS), neurons: units(6) };
        let heads = LatencyFit { threshold: 1 + random.below(HEADS), flat: 1e-3, slope: 3e-4 };
        let neurons = LatencyFit { threshold: 1 + random.below(6), flat: 2e-3, slope: 2e-4 };
        let plan = search_latency(&importance, &heads, &neurons, keep);
        let dense = heads.at(HEADS) + neurons.at(6);
        let sum = |values: &[f64], set: usize| -> f64 {
            values.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, value)| value).sum()
        };
        let mut best: f64 = 0.0;
        for (some_heads, some_neurons) in (0..1usize << HEADS).flat_map(|h| (0..1usize << 6).map(move |n| (h, n))) {
            let count = |set: usize| set.count_ones() as usize;
            if heads.at(count(some_heads)) + neurons.at(count(some_neurons)) <= keep * dense {
                best = best.max(sum(&importance.heads[0], some_heads) + sum(&importance.neurons[0], some_neurons));
            }
        }
        match plan {
            Ok(plan) => {
                prop_assert!((importance.kept(&plan.masks) - best).abs() <= 1e-9, "{} {best}", importance.kept(&plan.masks));
                let mut reversed = importance.clone();
                reversed.heads.iter_mut().chain(&mut reversed.neurons).for_each(|layer| layer.reverse());
                let mut turned = search_latency(&reversed, &heads, &neurons, keep).unwrap().masks;
                turned.heads.iter_mut().chain(&mut turned.neurons).for_each(|layer| layer.reverse());
                prop_assert_eq!(turned, plan.masks);
            }
            Err(error) => prop_assert!(best == 0.0, "{}: {} fits", error, best),
        }
    }

    /// Damped least squares of any shape and rank against its normal equations.
    #[test]
    fn lsmr_solves_damped_least_squares(seed: u64, rows in 1usize..14, columns in 1usize..14, rank in 1usize..14) {
        let mut random = Random(seed);
        let rank = rank.min(rows).min(columns);
        let left: Vec<f64> = (0..rows * rank).map(|_| random.normal()).collect();
        let right: Vec<f64> = (0..rank * columns).map(|_| random.normal()).collect();
        let a: Vec<f64> = (0..rows * columns)
            .map(|i| (0..rank).map(|k| left[i / columns * rank + k] * right[k * columns + i % columns]).sum())
            .collect();
        let b: Vec<f64> = (0..rows).map(|_| random.normal()).collect();
        let multiply = |x: &[f64], y: &mut [f64]| {
            (0..rows).for_each(|i| y[i] = (0..columns).map(|j| a[i * columns + j] * x[j]).sum());
        };
        let transposed = |y: &[f64], x: &mut [f64]| {
            (0..columns).for_each(|j| x[j] = (0..rows).map(|i| a[i * columns + j] * y[i]).sum());
        };
        let options =
            LsmrOptions { damp: 0.5, atol: 1e-13, btol: 1e-13, conlim: 0.0, max_iterations: Some(500) };
        let solution = lsmr(columns, multiply, transposed, &b, &options);
        let mut normal = vec![0.0; columns * columns];
        for i in 0..columns {
            for j in 0..columns {
                normal[i * columns + j] = (0..rows).map(|r| a[r * columns + i] * a[r * columns + j]).sum::<f64>()
                    + if i == j { 0.25 } else { 0.0 };
            }
        }
        let mut rhs = vec![0.0; columns];
        transposed(&b, &mut rhs);
        let expected = eliminate(normal, rhs);
        for (found, expected) in solution.x.iter().zip(&expected) {
            prop_assert!((found - expected).abs() <= 1e-8 * (1.0 + expected.abs()), "{found} {expected}");
        }
        prop_assert!(solution.stop != LsmrStop::IterationLimit);
    }

    /// M, c and the error from Gram matrices are those of the matrix A, which they avoid to form.
    #[test]
    fn systems_equal_the_explicit_matrix(seed: u64, few in 1usize..6, group in 1usize..4, tokens in 1usize..9) {
        // One in eight is larger than what one piece of work goes through at a time.
        let units = if seed.is_multiple_of(8) { 30 + few } else { few };
        let mut random = Random(seed);
        let (hidden, columns) = (5, units * group);
        let x: Vec<f64> = (0..tokens * columns).map(|_| random.normal()).collect();
        let w: Vec<f64> = (0..columns * hidden).map(|_| random.normal()).collect();
        let b: Vec<f64> = (0..tokens * hidden).map(|_| random.normal()).collect();
        let mut normal = NormalEquations::new(columns, hidden);
        normal.rows = tokens;
        for t in 0..tokens {
            for k in 0..columns {
                normal.sums[k] += x[t * columns + k];
                (k..columns).for_each(|o| normal.gram[k * columns + o] += x[t * columns + k] * x[t * columns + o]);
                (0..hidden).for_each(|c| normal.cross[k * hidden + c] += x[t * columns + k] * b[t * hidden + c]);
            }
        }
        normal.target_sum = b.iter().sum();
        normal.target_square = b.iter().map(|v| v * v).sum();
        // Below the diagonal nothing is read.
        for k in 0..columns {
            (0..k).for_each(|o| normal.gram[k * columns + o] = f64::NAN);
        }
        let contribution = |unit: usize, at: usize| -> f64 {
            let (t, c) = (at / hidden, at % hidden);
            (unit * group..(unit + 1) * group).map(|k| x[t * columns + k] * w[k * hidden + c]).sum()
        };
        for intercept in [false, true] {
            let system = System::new(&normal, &w, group, intercept);
            prop_assert_eq!(system.size, units + usize::from(intercept));
            let a = |unit: usize, at: usize| if unit == units { 1.0 } else { contribution(unit, at) };
            let all = || 0..tokens * hidden;
            for i in 0..system.size {
                for j in 0..system.size {
                    let expected: f64 = all().map(|at| a(i, at) * a(j, at)).sum();
                    let found = system.matrix[i * system.size + j];
                    prop_assert!((found - expected).abs() <= 1e-9 * (1.0 + expected.abs()), "{i} {j}: {found} {expected}");
                }
                let expected: f64 = all().map(|at| a(i, at) * b[at]).sum();
                prop_assert!((system.rhs[i] - expected).abs() <= 1e-9 * (1.0 + expected.abs()));
            }
            let scales: Vec<f64> = (0..units).map(|_| random.normal()).collect();
            let residual = |at: usize| (0..units).map(|u| scales[u] * contribution(u, at)).sum::<f64>() - b[at];
            let expected = all().map(|at| residual(at).powi(2)).sum::<f64>() / normal.target_square;
            prop_assert!((system.error(&scales) - expected).abs() <= 1e-9 * (1.0 + expected));
        }
    }
}

/// The product with half of a symmetric matrix is that with all of it, for sizes around those of stripes and vectors; what is
/// below the diagonal is not read, and threads change no bit.
#[test]
fn lsmr_needs_half_of_a_symmetric_matrix() {
    let mut random = Random(17);
    for n in [1, 2, 7, 8, 9, 33, 65, 150] {
        let b: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let mut matrix = vec![0.0; n * n];
        for i in 0..n {
            for j in i..n {
                let value = random.normal() / (n as f64).sqrt() + if i == j { 4.0 } else { 0.0 };
                (matrix[i * n + j], matrix[j * n + i]) = (value, value);
            }
        }
        let whole = matrix.clone();
        let multiply = |x: &[f64], y: &mut [f64]| {
            (0..n).for_each(|i| y[i] = (0..n).map(|j| whole[i * n + j] * x[j]).sum());
        };
        let options =
            LsmrOptions { damp: 1.0, atol: 1e-13, btol: 1e-13, conlim: 0.0, max_iterations: Some(500) };
        let expected = lsmr(n, multiply, multiply, &b, &options).x;
        for i in 0..n {
            (0..i).for_each(|j| matrix[i * n + j] = f64::NAN);
        }
        let solve = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| lsmr_symmetric(&matrix, &b, &options).x)
        };
        let found = solve(1);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-9 * (1.0 + expected.abs()), "{n}: {found} {expected}");
        }
        assert_eq!(found, solve(3));
    }
}

/// Gaussian elimination with pivoting.
fn eliminate(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&i, &j| a[i * n + column].abs().total_cmp(&a[j * n + column].abs())).unwrap();
        (0..n).for_each(|k| a.swap(column * n + k, pivot * n + k));
        b.swap(column, pivot);
        for row in column + 1..n {
            let factor = a[row * n + column] / a[column * n + column];
            (column..n).for_each(|k| a[row * n + k] -= factor * a[column * n + k]);
            b[row] -= factor * b[column];
        }
    }
    for row in (0..n).rev() {
        let sum: f64 = (row + 1..n).map(|k| a[row * n + k] * b[k]).sum();
        b[row] = (b[row] - sum) / a[row * n + row];
    }
    b
}

#[test]
fn lsmr_ends_on_anything() {
    let options = LsmrOptions { damp: 1.0, ..LsmrOptions::default() };
    let zero = lsmr_symmetric(&[0.0; 9], &[1.0, 2.0, 3.0], &options);
    assert_eq!((zero.stop, zero.x), (LsmrStop::Zero, vec![0.0; 3]));
    let nothing = lsmr_symmetric(&[1.0, 0.0, 0.0, 1.0], &[0.0, 0.0], &options);
    assert_eq!((nothing.stop, nothing.iterations), (LsmrStop::Zero, 0));
    let empty = lsmr_symmetric(&[], &[], &options);
    assert!(empty.x.is_empty());
    for bad in [f64::NAN, f64::INFINITY] {
        let solution = lsmr_symmetric(&[bad, 0.0, 0.0, 1.0], &[1.0, 1.0], &options);
        assert!(solution.iterations <= 2 && solution.x.iter().any(|v| !v.is_finite()), "{solution:?}");
    }
    // One unknown: m·x ≈ b with damping 1 is m·b / (m² + 1).
    let one = lsmr_symmetric(&[3.0], &[2.0], &options);
    assert!((one.x[0] - 0.6).abs() <= 1e-12 && one.stop == LsmrStop::LeastSquares);
    // Rank 1 of 3 without damping: the shortest of the least-squares solutions.
    let plain = LsmrOptions { max_iterations: Some(30), ..LsmrOptions::default() };
    let singular = lsmr_symmetric(&[1.0; 9], &[1.0, 2.0, 3.0], &plain);
    assert!(singular.x.iter().all(|v| (v - 2.0 / 3.0).abs() <= 1e-9), "{singular:?}");
    let limited = LsmrOptions { atol: 0.0, btol: 0.0, conlim: 0.0, max_iterations: Some(1), ..options };
    assert_eq!(lsmr_symmetric(&[2.0, 1.0, 1.0, 1.0], &[1.0, 0.0], &limited).stop, LsmrStop::IterationLimit);
}

fn gradients(heads: f64, neurons: f64) -> MaskGradients {
    MaskGradients {
        batches: 1,
        heads: vec![vec![heads; HEADS]; LAYERS],
        neurons: vec![vec![neurons; NEURONS]; LAYERS],
    }
}

#[test]
fn importance_that_says_nothing_is_refused() {
    let cost = cost(20.0);
    let error = search(&gradients(0.0, 0.0).fisher(), &cost, 0.5, SearchRule::WithinBudget).unwrap_err();
    assert!(matches!(error, Error::Usage(_)) && error.to_string().contains("every mask gradient is zero"));
    for bad in [f64::NAN, f64::INFINITY] {
        let error = search(&gradients(1.0, bad).fisher(), &cost, 0.5, SearchRule::Released).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert!(error.to_string().contains("neuron 0"), "{error}");
    }
    let narrow = Importance { heads: vec![vec![1.0]; LAYERS], neurons: vec![vec![1.0]; LAYERS] };
    assert!(matches!(search(&narrow, &cost, 0.5, SearchRule::Released), Err(Error::Shape { .. })));
    // Equal importances are a choice like any other: the first units stay.
    let masks = search(&gradients(1.0, 1.0).fisher(), &cost, 0.5, SearchRule::WithinBudget).unwrap();
    assert!(cost.record(0.5, &masks).unwrap().reached <= 0.5);
    let rearranged = rearrange(&masks, &gradients(1.0, 1.0));
    assert_eq!(rearranged.widths(), masks.widths());
}

#[test]
fn latency_tables_that_cannot_be_are_refused() {
    for table in [vec![], vec![1.0, f64::NAN], vec![0.0, 1.0], vec![-1.0]] {
        assert!(LatencyFit::of(&table).is_err(), "{table:?}");
    }
    let one = LatencyFit::of(&[2.0]).unwrap();
    assert_eq!((one.at(0), one.at(1)), (0.0, 2.0));
    let importance = importance(&mut Random(1), 9);
    let error = search_latency(&importance, &one, &one, 0.1).unwrap_err();
    assert!(error.to_string().contains("no sublayer fits 0.1"), "{error}");
}

#[test]
fn options_that_cannot_work_are_refused() {
    for options in [Options::default(), Options::paper(), Options::authors()] {
        options.check().unwrap();
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
    }
    let with = |change: fn(&mut RescaleOptions)| {
        let mut rescale = RescaleOptions::default();
        change(&mut rescale);
        Options { rescale: Some(rescale), ..Options::default() }
    };
    for options in [
        with(|o| o.solver.damp = f64::NAN),
        with(|o| o.solver.damp = -1.0),
        with(|o| o.largest_scale = 0.0),
        with(|o| o.iterations_per_unknown = 0),
    ] {
        assert!(matches!(options.check(), Err(Error::Usage(_))));
    }
}

/// One kept neuron, features that are zero, scales out of bounds, numbers that are not.
#[test]
fn systems_at_the_edge() {
    let place = SublayerTrace {
        layer: 4,
        kind: "neurons".into(),
        size: 0,
        rows: 1,
        answer_rows_only: false,
        damp: 0.0,
        stop: LsmrStop::Zero,
        iterations: 0,
        smallest: 1.0,
        largest: 1.0,
        accepted: false,
        error_before: 0.0,
        error_after: 0.0,
    };
    let system = |matrix: Vec<f64>, rhs: Vec<f64>| System {
        units: rhs.len(),
        size: rhs.len(),
        matrix,
        rhs,
        square: 1.0,
    };
    let options = RescaleOptions::default();
    let (scales, trace) = system(vec![2.0], vec![1.0]).tune(&options, place.clone()).unwrap();
    // 1 + 2·(1 − 2) / (4 + 1).
    assert!((scales.unwrap()[0] - 0.6).abs() <= 1e-9 && trace.accepted);
    let (scales, _) = system(vec![0.0; 4], vec![0.0; 2]).tune(&options, place.clone()).unwrap();
    assert_eq!(scales.unwrap(), [1.0, 1.0]);
    let error = system(vec![f64::NAN], vec![1.0]).tune(&options, place.clone()).unwrap_err();
    assert!(error.to_string().contains("neurons of layer 4"), "{error}");
    // The scale 1 + 100/2 exceeds 10; ten times the damping brings it down.
    let far = system(vec![1.0], vec![101.0]);
    let (scales, trace) = far.tune(&options, place.clone()).unwrap();
    assert!(scales.is_none() && !trace.accepted && trace.largest > 50.0);
    let ridge = RescaleOptions { on_reject: OnReject::Ridge, ..options };
    let (scales, trace) = far.tune(&ridge, place).unwrap();
    assert!(scales.unwrap()[0] <= 10.0 && trace.damp == 10.0 && trace.accepted);
}
