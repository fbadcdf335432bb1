//! Masks that a method must beat: same cost, chosen at random or as badly as clustering allows.

use serde::{Deserialize, Serialize};

use crate::data::random::{Purpose, Stream};
use crate::error::Result;
use crate::prune::clustering::{Tree, members};
use crate::prune::cost::{BudgetRecord, CostModel};
use crate::prune::dual_cp::{Cut, Forest, Pruned};
use crate::prune::masks::UnitMasks;

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
    let stream = |index| Stream::new(seed, Purpose::Control, index);
    let heads = keep(control, &forest.heads, &pruned.head_cut, stream(0));
    let neurons = keep(control, &forest.neurons, &pruned.neuron_cut, stream(1));
    let masks = UnitMasks::from_kept(&cost.layers, &heads, &neurons);
    let record = cost.record(pruned.budget.asked, &masks)?;
    Ok((masks, record))
}

fn keep(control: Control, trees: &[Tree], cut: &Cut, mut stream: Stream) -> Vec<Vec<usize>> {
    let layers = trees.iter().zip(&cut.clusters);
    match control {
        Control::Random => layers
            .map(|(tree, &count)| {
                shuffled((0..tree.leaves()).collect(), &mut stream).into_iter().take(count).collect()
            })
            .collect(),
        Control::RandomSpread => spread(trees, cut.clusters.iter().sum(), &mut stream),
        Control::Worst => {
            layers.zip(&cut.merges).map(|((tree, &count), &merges)| worst(tree, merges, count)).collect()
        }
    }
}

fn shuffled<T>(mut items: Vec<T>, stream: &mut Stream) -> Vec<T> {
    stream.shuffle(&mut items);
    items
}

/// One random unit of every layer, then random ones of all that are left.
fn spread(trees: &[Tree], count: usize, stream: &mut Stream) -> Vec<Vec<usize>> {
    let mut kept = vec![Vec::new(); trees.len()];
    let mut rest = Vec::new();
    for (layer, tree) in trees.iter().enumerate() {
        let mut units = shuffled((0..tree.leaves()).collect::<Vec<usize>>(), stream).into_iter();
        kept[layer].extend(units.next());
        rest.extend(units.map(|unit| (layer, unit)));
    }
    let already: usize = kept.iter().map(Vec::len).sum();
    for (layer, unit) in shuffled(rest, stream).into_iter().take(count - already) {
        kept[layer].push(unit);
    }
    kept
}

/// Whole clusters from the largest down, until `count` units are kept.
fn worst(tree: &Tree, merges: usize, count: usize) -> Vec<usize> {
    let mut clusters = members(&tree.partition_after(merges));
    clusters.sort_by_key(|members| std::cmp::Reverse(members.len()));
    clusters.concat().into_iter().take(count).collect()
}
