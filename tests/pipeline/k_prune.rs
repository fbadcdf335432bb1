//! K-prune beside what it must keep true: searches against trying every threshold, Cholesky against elimination, prunings of
//! every family and head, degenerate inputs, and the work of its measurements.

use proptest::prelude::*;
use secateur::Error;
use secateur::data::{Batch, Example, Target};
use secateur::model::{Architecture, EmitOptions, EmptySublayers, Family, Head, Logits, Model, ModelConfig};
use secateur::program::{Extents, Mode, cost};
use secateur::progress::Progress;
use secateur::prune::cholesky::{Cholesky, solve_with_ridge};
use secateur::prune::k_prune::{
    Emptied, Options, Scores, Search, Step, Tuning, UnitCosts, Wanted, feasible, program, prune,
    prune_watched, search,
};
use secateur::prune::{CostModel, Job, Pruned};
use secateur::session::{Device, Session, Weighting};

use crate::support::numbers::Random;
use crate::tiny;

// ---- search -------------------------------------------------------------------------------------------------------

const COSTS: UnitCosts = UnitCosts { head: 7.5, neuron: 1.0 };
const RULES: [Search; 3] = [Search::Strict, Search::Threshold, Search::Ordered];

/// Scores of the sublayers from `target` up; of `levels` different values where that is not 0.
fn scores(random: &mut Random, layers: usize, target: usize, levels: usize) -> Scores {
    let mut list = |units: usize, there: bool| -> Vec<f64> {
        let mut score = || if levels == 0 { random.unit() } else { random.below(levels) as f64 };
        if there { (0..units).map(|_| score()).collect() } else { Vec::new() }
    };
    Scores {
        heads: (0..layers).map(|i| list(3, 2 * i >= target)).collect(),
        neurons: (0..layers).map(|i| list(11, 2 * i + 1 >= target)).collect(),
    }
}

fn cost_above(scores: &Scores, threshold: f64) -> f64 {
    let count =
        |lists: &[Vec<f64>]| lists.iter().flatten().filter(|score| **score > threshold).count() as f64;
    COSTS.head * count(&scores.heads) + COSTS.neuron * count(&scores.neurons)
}

/// The rules as they are written down: thresholds one by one, everything counted anew.
fn try_every_threshold(scores: &Scores, target: usize, budget: f64, rule: Search) -> Vec<bool> {
    let mut sorted: Vec<f64> = scores.heads.iter().chain(&scores.neurons).flatten().copied().collect();
    sorted.sort_by(f64::total_cmp);
    if rule == Search::Threshold && cost_above(scores, f64::NEG_INFINITY) <= budget {
        return vec![true; scores.of(target).len()];
    }
    let fits = |v: f64| match rule {
        Search::Strict => cost_above(scores, v) < budget,
        _ => cost_above(scores, v) <= budget,
    };
    let last = sorted[sorted.len() - 1];
    let threshold = sorted.into_iter().find(|&v| fits(v)).unwrap_or(last);
    scores.of(target).iter().map(|score| *score > threshold).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn searches_equal_trying_every_threshold(seed: u64, layers in 1usize..4, target in 0usize..6, levels in 0usize..6, share in -0.1f64..1.2) {
        let target = target % (2 * layers);
        let scores = scores(&mut Random(seed), layers, target, levels);
        let budget = share * cost_above(&scores, f64::NEG_INFINITY);
        for rule in [Search::Strict, Search::Threshold] {
            let found = search(&scores, target, COSTS, budget, rule).unwrap().kept;
            prop_assert_eq!(found, try_every_threshold(&scores, target, budget, rule));
        }
        if levels == 0 {
            // Without ties units that go one by one go as those that go by a threshold.
            let ordered = search(&scores, target, COSTS, budget, Search::Ordered).unwrap();
            prop_assert_eq!(ordered, search(&scores, target, COSTS, budget, Search::Threshold).unwrap());
        }
    }

    /// A larger budget keeps what a smaller one keeps; the order of units does not matter but among equals that go one by one.
    #[test]
    fn searches_are_monotone_and_blind_to_the_order_of_units(seed: u64, target in 0usize..4, levels in 0usize..6, share in 0.0f64..1.0, more in 0.0f64..0.5) {
        let random = &mut Random(seed);
        let scores = scores(random, 2, target, levels);
        let all = cost_above(&scores, f64::NEG_INFINITY);
        let mut turned = scores.clone();
        turned.heads.iter_mut().chain(&mut turned.neurons).for_each(|list| list.reverse());
        for rule in RULES {
            let kept = |scores: &Scores, share: f64| search(scores, target, COSTS, share * all, rule).unwrap().kept;
            let (less, rich) = (kept(&scores, share), kept(&scores, share + more));
            prop_assert!(less.iter().zip(&rich).all(|(less, more)| !less || *more), "{:?}", rule);
            if rule != Search::Ordered || levels == 0 {
                let mut back = kept(&turned, share);
                back.reverse();
                prop_assert_eq!(&back, &less);
            }
        }
    }

    /// Sublayer by sublayer with scores that never change: the budget holds at every step, and with units that go one by one
    /// no unit of the last sublayer goes that would have fitted.
    #[test]
    fn budgets_hold_all_the_way_up(seed: u64, levels in 0usize..4, share in 0.0f64..1.1) {
        let random = &mut Random(seed);
        let all = scores(random, 3, 0, levels);
        for rule in RULES {
            let mut budget = share * cost_above(&all, f64::NEG_INFINITY);
            for target in 0..6 {
                let mut left = all.clone();
                (0..target).for_each(|below| match below % 2 {
                    0 => left.heads[below / 2].clear(),
                    _ => left.neurons[below / 2].clear(),
                });
                let choice = search(&left, target, COSTS, budget, rule).unwrap();
                let kept = choice.kept.iter().filter(|kept| **kept).count();
                if rule == Search::Ordered && target == 5 {
                    prop_assert_eq!(kept, (budget as usize).min(11));
                }
                budget -= COSTS.of(target) * kept as f64;
                prop_assert!(budget >= -1e-9, "{:?} overspends {} at {}", rule, budget, target);
            }
        }
    }
}

#[test]
fn a_met_budget_excludes_nothing_but_in_the_released_code() {
    let scores = Scores { heads: vec![vec![3.0, 1.0]], neurons: vec![vec![2.0, 1.0, 5.0]] };
    let kept = |rule, budget| search(&scores, 0, COSTS, budget, rule).unwrap();
    assert_eq!(kept(Search::Ordered, 18.0).kept, [true, true]);
    assert_eq!(kept(Search::Threshold, 18.0).threshold, None);
    // The lowest score and its tie go although all would fit.
    assert_eq!(kept(Search::Strict, 100.0).kept, [true, false]);
    assert_eq!(kept(Search::Strict, 100.0).threshold, Some(1.0));
    // Exact equality is rejected by the strict rule: the next score goes as well.
    assert_eq!(kept(Search::Strict, 9.5).threshold, Some(2.0));
    assert_eq!(kept(Search::Threshold, 9.5).threshold, Some(1.0));
    // One of the two that tie is enough: the upper sublayer's.
    assert_eq!(kept(Search::Ordered, 17.0).kept, [true, true]);
    // Nothing fits.
    for rule in RULES {
        assert_eq!(kept(rule, -1.0).kept, [false, false], "{rule:?}");
    }
}

#[test]
fn scores_that_are_no_numbers_are_named() {
    for bad in [f64::NAN, f64::INFINITY] {
        let scores = Scores { heads: vec![vec![], vec![1.0]], neurons: vec![vec![1.0, 2.0], vec![0.5, bad]] };
        let error = search(&scores, 1, COSTS, 3.0, Search::Ordered).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert!(error.to_string().contains("neuron 1") && error.to_string().contains("layer 1"), "{error}");
    }
}

// ---- Cholesky -----------------------------------------------------------------------------------------------------

/// XᵀX of `rows` random rows, and random right-hand sides.
fn system(random: &mut Random, n: usize, m: usize, rows: usize) -> (Vec<f64>, Vec<f64>) {
    let x: Vec<f64> = (0..rows * n).map(|_| random.normal()).collect();
    let mut gram = vec![0.0; n * n];
    for row in x.chunks(n.max(1)) {
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] += row[i] * row[j];
            }
        }
    }
    (gram, (0..n * m).map(|_| random.normal()).collect())
}

/// Gaussian elimination with partial pivoting.
fn eliminate(a: &[f64], n: usize, b: &[f64], m: usize) -> Vec<f64> {
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    for k in 0..n {
        let pivot = (k..n).max_by(|i, j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs())).unwrap();
        (0..n).for_each(|c| a.swap(k * n + c, pivot * n + c));
        (0..m).for_each(|c| b.swap(k * m + c, pivot * m + c));
        for i in (0..n).filter(|i| *i != k) {
            let factor = a[i * n + k] / a[k * n + k];
            (k..n).for_each(|c| a[i * n + c] -= factor * a[k * n + c]);
            (0..m).for_each(|c| b[i * m + c] -= factor * b[k * m + c]);
        }
    }
    (0..n * m).map(|at| b[at] / a[at / m * n + at / m]).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Sizes around panels of 64 and strips of 32.
    #[test]
    fn cholesky_solves_what_elimination_solves(seed: u64, n in prop_oneof![1usize..70, 120usize..135], m in prop_oneof![1usize..5, 30usize..70]) {
        let (a, b) = system(&mut Random(seed), n, m, n + 40);
        let factor = Cholesky::factor(a.clone(), n).unwrap();
        let mut x = b.clone();
        factor.solve(&mut x, m);
        // Backward error: |B − A·X| within a small multiple of n·u·|A|·|X|.
        let mut residual = b.clone();
        for i in 0..n {
            for c in 0..m {
                residual[i * m + c] -= (0..n).map(|j| a[i * n + j] * x[j * m + c]).sum::<f64>();
            }
        }
        let bound = 8.0 * n as f64 * f64::EPSILON * norm(&a) * norm(&x);
        prop_assert!(norm(&residual) <= bound, "{} over {}", norm(&residual), bound);
        let expected = eliminate(&a, n, &b, m);
        let difference: Vec<f64> = x.iter().zip(&expected).map(|(x, e)| x - e).collect();
        // Condition numbers of such Grams stay below 1e4.
        prop_assert!(norm(&difference) <= 1e-9 * norm(&expected));
    }

    /// Fewer rows than unknowns: no factor, and with a ridge the solution of the shifted system.
    #[test]
    fn singular_systems_get_a_ridge(seed: u64, n in 2usize..90, short in 1usize..20) {
        let rows = n.saturating_sub(short);
        let (a, _) = system(&mut Random(seed), n, 1, rows);
        prop_assert!(Cholesky::factor(a.clone(), n).is_none());
        let b = vec![1.0; n];
        match solve_with_ridge(&a, n, &b, 1, 0.0) {
            None => prop_assert_eq!(rows, 0),
            Some(solved) => {
                prop_assert!(solved.ridge >= 1e-6 && solved.x.iter().all(|x| x.is_finite()));
                let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
                let mut shifted = a.clone();
                (0..n).for_each(|i| shifted[i * n + i] += solved.ridge * trace / n as f64);
                let expected = eliminate(&shifted, n, &b, 1);
                let difference: Vec<f64> = solved.x.iter().zip(&expected).map(|(x, e)| x - e).collect();
                prop_assert!(norm(&difference) <= 1e-6 * norm(&expected));
            }
        }
    }
}

#[test]
fn matrices_without_a_factor_are_told() {
    assert!(Cholesky::factor(vec![0.0; 9], 3).is_none());
    assert!(Cholesky::factor(vec![1.0, 0.0, 0.0, -1.0], 2).is_none());
    assert!(Cholesky::factor(vec![1.0, 0.0, f64::NAN, 1.0], 2).is_none());
    assert!(Cholesky::factor(vec![f64::INFINITY, 0.0, 0.0, 1.0], 2).is_none());
    assert!(Cholesky::factor(Vec::new(), 0).is_some());
    assert!(solve_with_ridge(&[0.0; 4], 2, &[1.0; 2], 1, 1e-6).is_none());
    assert!(solve_with_ridge(&[1.0, f64::NAN, f64::NAN, 1.0], 2, &[1.0; 2], 1, 1e-6).is_none());
    assert!(solve_with_ridge(&[1.0, 0.0, 0.0, 1.0], 2, &[f64::NAN, 1.0], 1, 1e-6).is_none());
}

/// The bits do not depend on the number of threads.
#[test]
fn cholesky_repeats_on_any_number_of_threads() {
    let (a, b) = system(&mut Random(5), 150, 70, 300);
    let solve = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut x = b.clone();
            Cholesky::factor(a.clone(), 150).unwrap().solve(&mut x, 70);
            x
        })
    };
    assert!(solve(1) == solve(3));
}

// ---- whole prunings -----------------------------------------------------------------------------------------------

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
                    let expected = if step.sublayer % 2 == 0 { width.heads } else { width.neurons };
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
        let dense =
            Pruned::of_masks(secateur::prune::UnitMasks::ones(&setup.cost.layers), 1.0, &setup.cost).unwrap();
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

// ---- work ---------------------------------------------------------------------------------------------------------

/// Floating-point operations of the measurements of all sublayers, and of the same from the embeddings each time: the
/// forward pass of the whole model, and gradients of the target and of all above it, as the released code computes them.
fn measurement_work(layers: usize, hidden: usize, length: usize, head: Head) -> (u64, u64) {
    let mut fields = tiny::config_json(Family::Bert);
    for (field, value) in [
        ("num_hidden_layers", layers),
        ("hidden_size", hidden),
        ("num_attention_heads", hidden / 64),
        ("intermediate_size", 4 * hidden),
        ("max_position_embeddings", 512),
    ] {
        fields.insert(field.into(), value.into());
    }
    let config = tiny::parse(fields).unwrap();
    let extents = Extents { tokens: 32 * length, sequences: 32, longest: length, ..Extents::default() };
    let options = Options::default();
    let work = |architecture: &Architecture, mode: Mode, emitted: &EmitOptions| {
        let slots = architecture.emit(mode, emitted).unwrap();
        let of = |ops: &[secateur::program::Op]| -> u64 {
            ops.iter().map(|op| cost::of_op(&slots.program, op, &extents).flops).sum()
        };
        (of(slots.program.forward_ops()), of(slots.program.ops()))
    };
    let architecture = Architecture::new(config.clone(), head).unwrap();
    // Every token of a span answers: its program differentiates the last layer for all tokens, as the released code does.
    let spans = Architecture::new(config, Head::Span).unwrap();
    let whole = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
    let (forward, _) = work(&architecture, Mode::EVALUATE, &whole);
    let (mut ours, mut restarted) = (0, 0);
    for from in 0..2 * layers {
        let wanted = if from == 0 { Wanted::Outputs } else { Wanted::Gradients };
        let (mode, emitted) = program(&architecture, &options, from, wanted).unwrap();
        ours += work(&architecture, mode, &emitted).1;
        let (mode, emitted) = program(&spans, &options, from, Wanted::Gradients).unwrap();
        let (upper_forward, upper) = work(&spans, mode, &emitted);
        restarted += forward + upper - upper_forward;
    }
    (ours, restarted)
}

/// Measuring from the target's cached input against starting from the embeddings for every sublayer, at BERT-base's shape.
#[test]
fn measurements_do_a_fraction_of_the_work_of_starting_over() {
    for (head, length, most) in [
        (Head::Classification { labels: 2 }, 54, 0.62),
        (Head::Classification { labels: 2 }, 128, 0.62),
        (Head::Span, 170, 0.67),
    ] {
        let (ours, restarted) = measurement_work(12, 768, length, head);
        let ratio = ours as f64 / restarted as f64;
        println!("{head:?} length {length}: {ours:e} of {restarted:e} operations, {ratio:.4}");
        assert!(ratio < most, "{head:?} length {length}: {ratio}");
    }
}
