//! Which unit of a cluster is kept.

use crate::data::random::{Purpose, Stream};
use crate::error::Result;
use crate::prune::dual_cp::forest::{head_similarity, neuron_similarity};
use crate::prune::dual_cp::{CalibrationSample, Centroid, Forest, Options, SimilarityBackend, StageTimes};

/// The kept heads of `layer`, one for each cluster.
pub(super) fn heads(
    sample: &CalibrationSample,
    layer: usize,
    clusters: &[Vec<usize>],
    forest: &Forest,
    options: &Options,
    backend: &mut dyn SimilarityBackend,
) -> Result<Vec<usize>> {
    let magnitudes = &forest.head_magnitudes[layer];
    Ok(match options.centroid {
        Centroid::Member => each(clusters, |members| first_largest(members, magnitudes)),
        Centroid::AuthorsHeadPrefix => each(clusters, |members| {
            let prefix: Vec<usize> = (0..members.len()).collect();
            members[first_largest(&prefix, magnitudes)]
        }),
        Centroid::Random => random(clusters, options.seed, 2 * layer as u64),
        Centroid::ClusterCentre => {
            let similarity = head_similarity(sample, layer, backend, &mut StageTimes::default())?;
            each(clusters, |members| medoid(members, &similarity, magnitudes.len()))
        }
    })
}

/// The kept neurons of `layer`, one for each cluster.
pub(super) fn neurons(
    sample: &CalibrationSample,
    layer: usize,
    clusters: &[Vec<usize>],
    forest: &Forest,
    options: &Options,
    backend: &mut dyn SimilarityBackend,
) -> Result<Vec<usize>> {
    let magnitudes = &forest.neuron_magnitudes[layer];
    Ok(match options.centroid {
        Centroid::Member | Centroid::AuthorsHeadPrefix => {
            each(clusters, |members| first_largest(members, magnitudes))
        }
        Centroid::Random => random(clusters, options.seed, 2 * layer as u64 + 1),
        Centroid::ClusterCentre => {
            // Computed again rather than kept: all layers' matrices would be L·units² floats.
            let similarity = neuron_similarity(sample, layer, backend, &mut StageTimes::default())?;
            each(clusters, |members| medoid(members, &similarity, magnitudes.len()))
        }
    })
}

fn each(clusters: &[Vec<usize>], pick: impl Fn(&[usize]) -> usize) -> Vec<usize> {
    clusters.iter().map(|members| pick(members)).collect()
}

/// The first of `members` with the largest magnitude.
fn first_largest(members: &[usize], magnitudes: &[f32]) -> usize {
    let mut best = members[0];
    for &member in members {
        if magnitudes[member] > magnitudes[best] {
            best = member;
        }
    }
    best
}

/// The first of `members` with the smallest mean distance to the others; `similarity` is [units, units].
fn medoid(members: &[usize], similarity: &[f32], units: usize) -> usize {
    let others = |of: usize| members.iter().filter(move |&&other| other != of);
    let total =
        |of: usize| others(of).map(|other| 1.0 - f64::from(similarity[of * units + other])).sum::<f64>();
    let mut best = (members[0], total(members[0]));
    for &member in &members[1..] {
        let distance = total(member);
        if distance < best.1 {
            best = (member, distance);
        }
    }
    best.0
}

fn random(clusters: &[Vec<usize>], seed: u64, stream: u64) -> Vec<usize> {
    let mut choice = Stream::new(seed, Purpose::Centroid, stream);
    clusters.iter().map(|members| *choice.pick(members)).collect()
}
