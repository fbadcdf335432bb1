//! The mask search against trying every threshold.

use proptest::prelude::*;
use secateur::Error;
use secateur::prune::k_prune::{Scores, Search, UnitCosts, search};

use crate::support::numbers::Random;

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
