//! Agglomerative clustering of the units of one layer, and cutting its tree.
//!
//! The tree does not depend on the budget: it is built once, and every budget is a cut. Average and complete linkage
//! have monotone merge heights, so the flat clusters at a height t (cophenetic distance ≤ t) are what is left after
//! all merges with height ≤ t, and their number is `leaves − #{heights ≤ t}`.
//!
//! Built with the nearest-neighbour chain in f64 (`kodama`), O(n²) time on the condensed matrix, in place. Among equal
//! distances the chain takes the lowest index, so the tree is a function of the matrix alone; with exact ties it may
//! still differ from another program's tree, without them it is unique.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Distance of two clusters from the distances of their members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Linkage {
    /// Mean of all pairs (UPGMA).
    Average,
    /// Largest of all pairs.
    Complete,
}

/// One merge of two clusters. Leaves are 0..n; merge i makes cluster n + i (SciPy's numbering).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merge {
    /// The cluster with the smaller number.
    pub first: usize,
    /// The other cluster.
    pub second: usize,
    /// Distance at which they merge.
    pub height: f64,
}

/// The tree of one layer: n leaves and n − 1 merges by ascending height.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    leaves: usize,
    merges: Vec<Merge>,
}

impl Tree {
    /// Clusters `leaves` units. `condensed` holds the distances of i < j row by row, n(n − 1)/2 of them, and is
    /// destroyed. A NaN or infinite distance is an error naming `place` (say, "neurons of layer 3").
    pub fn build(condensed: &mut [f64], leaves: usize, linkage: Linkage, place: &str) -> Result<Tree> {
        assert_eq!(condensed.len(), leaves * leaves.saturating_sub(1) / 2);
        if let Some(index) = condensed.iter().position(|distance| !distance.is_finite()) {
            let (i, j) = pair_of(index, leaves);
            return Err(Error::NotFinite {
                what: "distance".into(),
                value: condensed[index],
                place: format!("between units {i} and {j} of the {place}"),
            });
        }
        if leaves < 2 {
            return Ok(Tree { leaves, merges: Vec::new() });
        }
        let method = match linkage {
            Linkage::Average => kodama::Method::Average,
            Linkage::Complete => kodama::Method::Complete,
        };
        let dendrogram = kodama::linkage(condensed, leaves, method);
        let merge = |step: &kodama::Step<f64>| Merge {
            first: step.cluster1,
            second: step.cluster2,
            height: step.dissimilarity,
        };
        Ok(Tree { leaves, merges: dendrogram.steps().iter().map(merge).collect() })
    }

    /// Number of units.
    pub fn leaves(&self) -> usize {
        self.leaves
    }

    /// The merges by ascending height.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// Number of merges with height ≤ `threshold`.
    pub fn merges_within(&self, threshold: f64) -> usize {
        self.merges.partition_point(|merge| merge.height <= threshold)
    }

    /// Number of flat clusters at `threshold`.
    pub fn clusters_within(&self, threshold: f64) -> usize {
        self.leaves - self.merges_within(threshold)
    }

    /// Cluster of every unit after the first `merges` merges, numbered by first occurrence.
    pub fn partition_after(&self, merges: usize) -> Vec<usize> {
        assert!(merges <= self.merges.len());
        // Every cluster, leaf or merged, points to the merge that swallowed it, if it is among those applied.
        let mut parent: Vec<usize> = (0..self.leaves + merges).collect();
        for (i, merge) in self.merges[..merges].iter().enumerate() {
            parent[merge.first] = self.leaves + i;
            parent[merge.second] = self.leaves + i;
        }
        // A merge is numbered above its parts, so going down from the top finds every root already resolved.
        for cluster in (0..parent.len()).rev() {
            parent[cluster] = parent[parent[cluster]];
        }
        first_occurrence(&parent[..self.leaves])
    }

    /// Cluster of every unit at `threshold` (cophenetic distance ≤ threshold), numbered by first occurrence.
    pub fn partition_within(&self, threshold: f64) -> Vec<usize> {
        self.partition_after(self.merges_within(threshold))
    }
}

/// Renumbers labels 0, 1, 2, … in order of first occurrence.
fn first_occurrence(labels: &[usize]) -> Vec<usize> {
    let mut numbers = std::collections::HashMap::new();
    labels
        .iter()
        .map(|label| {
            let next = numbers.len();
            *numbers.entry(*label).or_insert(next)
        })
        .collect()
}

/// Members of every cluster, ascending, from the labels of [`Tree::partition_after`].
pub fn members(labels: &[usize]) -> Vec<Vec<usize>> {
    let mut clusters = vec![Vec::new(); labels.iter().max().map_or(0, |last| last + 1)];
    labels.iter().enumerate().for_each(|(unit, &label)| clusters[label].push(unit));
    clusters
}

/// (i, j) of position `index` of a condensed matrix of `n` units.
fn pair_of(index: usize, n: usize) -> (usize, usize) {
    let (mut row, mut start) = (0, 0);
    while index >= start + (n - 1 - row) {
        start += n - 1 - row;
        row += 1;
    }
    (row, row + 1 + index - start)
}
