//! Trees against a naive implementation of the definition, and what must hold for any tree.

use proptest::prelude::*;
use secateur::Error;
use secateur::prune::clustering::{Linkage, Tree, members};

use crate::support::numbers::Random;

/// Merges the two clusters with the smallest linkage distance, computed from all pairs of members every time, until
/// one is left. O(n³) pairs of members a step. Returns the heights and the partition after every merge.
fn naive(distance: &[Vec<f64>], linkage: Linkage) -> (Vec<f64>, Vec<Vec<Vec<usize>>>) {
    let mut clusters: Vec<Vec<usize>> = (0..distance.len()).map(|unit| vec![unit]).collect();
    let (mut heights, mut partitions) = (Vec::new(), Vec::new());
    while clusters.len() > 1 {
        let between = |a: &[usize], b: &[usize]| -> f64 {
            let pairs = a.iter().flat_map(|i| b.iter().map(move |j| distance[*i][*j]));
            match linkage {
                Linkage::Average => pairs.sum::<f64>() / (a.len() * b.len()) as f64,
                Linkage::Complete => pairs.fold(0.0, f64::max),
            }
        };
        let mut best = (f64::INFINITY, 0, 0);
        for a in 0..clusters.len() {
            for b in a + 1..clusters.len() {
                let height = between(&clusters[a], &clusters[b]);
                if height < best.0 {
                    best = (height, a, b);
                }
            }
        }
        let merged = clusters.remove(best.2);
        clusters[best.1].extend(merged);
        heights.push(best.0);
        let mut partition = clusters.clone();
        partition.iter_mut().for_each(|members| members.sort_unstable());
        partition.sort();
        partitions.push(partition);
    }
    (heights, partitions)
}

/// Random distances without ties.
fn distances(random: &mut Random, n: usize) -> Vec<Vec<f64>> {
    let mut matrix = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..i {
            let value = random.unit();
            matrix[i][j] = value;
            matrix[j][i] = value;
        }
    }
    matrix
}

fn tree(distance: &[Vec<f64>], linkage: Linkage) -> Tree {
    let n = distance.len();
    let mut condensed: Vec<f64> = (0..n).flat_map(|i| distance[i][i + 1..].to_vec()).collect();
    Tree::build(&mut condensed, n, linkage, "test units").unwrap()
}

fn heights(tree: &Tree) -> Vec<f64> {
    tree.merges().iter().map(|merge| merge.height).collect()
}

fn linkages() -> impl Strategy<Value = Linkage> {
    prop_oneof![Just(Linkage::Average), Just(Linkage::Complete)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tree_equals_the_naive_one(seed: u64, n in 1usize..24, linkage in linkages()) {
        let distance = distances(&mut Random(seed), n);
        let (expected, partitions) = naive(&distance, linkage);
        let tree = tree(&distance, linkage);
        prop_assert_eq!(tree.merges().len(), n - 1);
        for (step, (found, expected)) in heights(&tree).iter().zip(&expected).enumerate() {
            // Sums of up to n² distances below 1, added in another order.
            prop_assert!((found - expected).abs() <= (n * n) as f64 * f64::EPSILON, "step {}", step);
        }
        for (step, expected) in partitions.into_iter().enumerate() {
            let mut found = members(&tree.partition_after(step + 1));
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn heights_ascend_and_cuts_count(seed: u64, n in 1usize..40, levels in 0usize..4, linkage in linkages()) {
        let mut random = Random(seed);
        let mut distance = distances(&mut random, n);
        if levels > 0 {
            // Few distinct values: ties everywhere.
            distance.iter_mut().flatten().for_each(|d| *d = (*d * levels as f64).round() / levels as f64);
        }
        let tree = tree(&distance, linkage);
        let heights = heights(&tree);
        prop_assert!(heights.is_sorted());
        for &threshold in heights.iter().chain(&[-1.0, 0.5, 2.0]) {
            let labels = tree.partition_within(threshold);
            let clusters = members(&labels);
            prop_assert_eq!(clusters.len(), tree.clusters_within(threshold));
            prop_assert!(clusters.iter().all(|members| !members.is_empty() && members.is_sorted()));
            // Numbered by first occurrence.
            prop_assert!(clusters.iter().map(|members| members[0]).is_sorted());
            if linkage == Linkage::Complete {
                for members in &clusters {
                    let pairs = members.iter().flat_map(|i| members.iter().map(|j| distance[*i][*j]));
                    prop_assert!(pairs.fold(0.0, f64::max) <= threshold.max(0.0), "a cluster is wider than the cut");
                }
            }
        }
        prop_assert_eq!(tree.partition_after(0), (0..n).collect::<Vec<_>>());
        prop_assert_eq!(tree.partition_after(n - 1), vec![0; n]);
    }

    #[test]
    fn order_of_units_does_not_matter(seed: u64, n in 2usize..30, linkage in linkages()) {
        let mut random = Random(seed);
        let distance = distances(&mut random, n);
        let mut order: Vec<usize> = (0..n).collect();
        (1..n).rev().for_each(|i| order.swap(i, random.below(i + 1)));
        let shuffled: Vec<Vec<f64>> =
            order.iter().map(|&i| order.iter().map(|&j| distance[i][j]).collect()).collect();
        let (plain, shuffled) = (tree(&distance, linkage), tree(&shuffled, linkage));
        for (a, b) in heights(&plain).iter().zip(&heights(&shuffled)) {
            prop_assert!((a - b).abs() <= (n * n) as f64 * f64::EPSILON);
        }
        for merges in 0..n {
            let mut expected = members(&plain.partition_after(merges));
            let mut found = members(&shuffled.partition_after(merges));
            found.iter_mut().for_each(|members| {
                members.iter_mut().for_each(|unit| *unit = order[*unit]);
                members.sort_unstable();
            });
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn undefined_distances_are_named(n in 2usize..20, at in 0usize..190, infinite: bool, linkage in linkages()) {
        let mut condensed = vec![0.5; n * (n - 1) / 2];
        let at = at % condensed.len();
        condensed[at] = if infinite { f64::INFINITY } else { f64::NAN };
        let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
        match Tree::build(&mut condensed, n, linkage, "neurons of layer 7") {
            Err(Error::NotFinite { place, .. }) => {
                let (i, j) = pairs[at];
                prop_assert_eq!(place, format!("between units {i} and {j} of the neurons of layer 7"));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn trivial_trees() {
    for linkage in [Linkage::Average, Linkage::Complete] {
        for n in [0, 1] {
            let tree = Tree::build(&mut [], n, linkage, "nothing").unwrap();
            assert_eq!((tree.leaves(), tree.merges().len(), tree.clusters_within(9.0)), (n, 0, n));
            assert_eq!(tree.partition_within(9.0), vec![0; n]);
        }
    }
}
