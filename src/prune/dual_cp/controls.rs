//! Masks that a method must beat: same cost, chosen at random or as badly as clustering allows.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::prune::clustering::{Tree, members};
use crate::prune::cost::{BudgetRecord, CostModel};
use crate::prune::dual_cp::{Cut, Forest, Pruned};
use crate::prune::masks::UnitMasks;
use crate::prune::random::Choice;

/// How a control chooses the units it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// Random units, in every layer as many as Dual-CP keeps there.
    Random,
    /// Random units, in all layers together as many as Dual-CP keeps, at least one a layer: also blind to how pruning
    /// is spread over the layers.
    RandomSpread,
    /// In every layer as many units as Dual-CP keeps there, taken cluster by cluster from the largest cluster down
    /// (equal sizes: the first), so that what is kept is as redundant as possible and whole clusters vanish. The last
    /// cluster taken may be cut off, after its lowest indices. (The paper's "worst" masks.)
    Worst,
}

/// Masks of `control` with the same number of heads and neurons as `pruned`, which was cut from `forest`.
pub fn control(
    control: Control,
    forest: &Forest,
    pruned: &Pruned,
    cost: &CostModel,
    seed: u64,
) -> Result<(UnitMasks, BudgetRecord)> {
    // Even and odd streams below 2L belong to random centroids; controls start above any layer count.
    const STREAM: u64 = 1 << 32;
    let heads = keep(control, &forest.heads, &pruned.head_cut, Choice::new(seed, STREAM));
    let neurons = keep(control, &forest.neurons, &pruned.neuron_cut, Choice::new(seed, STREAM + 1));
    let masks = UnitMasks::from_kept(&cost.layers, &heads, &neurons);
    let record = cost.record(pruned.budget.asked, &masks)?;
    Ok((masks, record))
}

fn keep(control: Control, trees: &[Tree], cut: &Cut, mut choice: Choice) -> Vec<Vec<usize>> {
    let layers = trees.iter().zip(&cut.clusters);
    match control {
        Control::Random => layers.map(|(tree, &count)| choice.distinct(tree.leaves(), count)).collect(),
        Control::RandomSpread => spread(trees, cut.clusters.iter().sum(), &mut choice),
        Control::Worst => {
            layers.zip(&cut.merges).map(|((tree, &count), &merges)| worst(tree, merges, count)).collect()
        }
    }
}

/// One random unit of every layer, then random ones of all that are left.
fn spread(trees: &[Tree], count: usize, choice: &mut Choice) -> Vec<Vec<usize>> {
    let mut kept: Vec<Vec<usize>> = trees.iter().map(|tree| choice.distinct(tree.leaves(), 1)).collect();
    let already: usize = kept.iter().map(Vec::len).sum();
    let rest: Vec<(usize, usize)> = trees
        .iter()
        .enumerate()
        .flat_map(|(layer, tree)| (0..tree.leaves()).map(move |unit| (layer, unit)))
        .filter(|&(layer, unit)| !kept[layer].contains(&unit))
        .collect();
    for index in choice.distinct(rest.len(), count - already) {
        let (layer, unit) = rest[index];
        kept[layer].push(unit);
    }
    kept
}

fn worst(tree: &Tree, merges: usize, count: usize) -> Vec<usize> {
    let mut clusters = members(&tree.partition_after(merges));
    clusters.sort_by_key(|members| std::cmp::Reverse(members.len()));
    clusters.concat().into_iter().take(count).collect()
}
