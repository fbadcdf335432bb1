//! Where to cut the trees: one height for all layers, found from the pooled merge heights.
//!
//! All units of one kind cost the same, so a budget is a number of units, and the cut is the shortest prefix of the
//! pooled merges, sorted by height, that leaves few enough. No stepping is needed; the paper's step is offered for
//! parity.

use serde::{Deserialize, Serialize};

use crate::prune::clustering::Tree;
use crate::prune::dual_cp::{Search, Ties};

/// Where the trees of all layers were cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// Height of the cut; none where no merge was needed.
    pub threshold: Option<f64>,
    /// Height that met the budget; differs from `threshold` by one step where the search overshoots.
    pub tested: Option<f64>,
    /// Merges applied in every layer: its tree's first ones.
    pub merges: Vec<usize>,
    /// Clusters, and so units kept, in every layer.
    pub clusters: Vec<usize>,
}

/// Cuts `trees` so that Σ clusters · `unit_cost` ≤ `budget`. The budget must allow one unit in every tree that has any
/// (which [`crate::prune::dual_cp::split`] makes sure of); panics otherwise.
pub fn cut(trees: &[Tree], unit_cost: f64, budget: f64, search: Search, ties: Ties) -> Cut {
    let units: usize = trees.iter().map(Tree::leaves).sum();
    let mut pooled: Vec<(f64, usize)> = trees
        .iter()
        .enumerate()
        .flat_map(|(layer, tree)| tree.merges().iter().map(move |merge| (merge.height, layer)))
        .collect();
    pooled.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let met = |merges: usize| (units - merges) as f64 * unit_cost <= budget;
    assert!(met(pooled.len()), "a budget below one unit a layer reached the search");

    match search {
        Search::Exact => {
            let needed = (0..=pooled.len()).find(|&merges| met(merges)).unwrap_or(pooled.len());
            let Some(last) = needed.checked_sub(1) else {
                return applied(trees, None, None, vec![0; trees.len()]);
            };
            let height = pooled[last].0;
            let merges = match ties {
                Ties::Together => trees.iter().map(|tree| tree.merges_within(height)).collect(),
                Ties::Ordered => {
                    let mut merges = vec![0; trees.len()];
                    pooled[..needed].iter().for_each(|&(_, layer)| merges[layer] += 1);
                    merges
                }
            };
            applied(trees, Some(height), Some(height), merges)
        }
        Search::Grid { delta, overshoot } => {
            let (mut tested, mut within) = (0.0, 0);
            loop {
                while within < pooled.len() && pooled[within].0 <= tested {
                    within += 1;
                }
                if met(within) {
                    break;
                }
                // Repeated addition, not a product: the authors' thresholds carry its rounding.
                tested += delta;
            }
            let threshold = if overshoot { tested + delta } else { tested };
            let merges = trees.iter().map(|tree| tree.merges_within(threshold)).collect();
            applied(trees, Some(threshold), Some(tested), merges)
        }
    }
}

fn applied(trees: &[Tree], threshold: Option<f64>, tested: Option<f64>, merges: Vec<usize>) -> Cut {
    let clusters = trees.iter().zip(&merges).map(|(tree, merges)| tree.leaves() - merges).collect();
    Cut { threshold, tested, merges, clusters }
}
