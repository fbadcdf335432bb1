//! One tree a layer for heads and one for neurons, built layer by layer so that only one layer's matrices are alive.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ops::{View, ViewMut};
use crate::prune::clustering::{Linkage, Tree};
use crate::prune::dual_cp::{CalibrationSample, SimilarityBackend, Space};

/// Everything the cuts need, independent of any budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forest {
    /// Head tree of every layer.
    pub heads: Vec<Tree>,
    /// Neuron tree of every layer.
    pub neurons: Vec<Tree>,
    /// `[layers][heads]` mean |context| over tokens and the head's dimensions.
    pub head_magnitudes: Vec<Vec<f32>>,
    /// `[layers][neurons]` mean |activation| over tokens.
    pub neuron_magnitudes: Vec<Vec<f32>>,
    /// Neurons of every layer that are zero on every sampled token. Their similarity to everything, themselves
    /// included, is 0.
    pub dead_neurons: Vec<Vec<usize>>,
    /// Seconds of every stage, all layers together.
    pub stages: StageTimes,
}

impl Forest {
    /// Builds all trees. The sample must have passed [`CalibrationSample::check`]. Fails where the backend does, or
    /// when a distance is not finite.
    pub fn build(
        sample: &CalibrationSample,
        linkage: Linkage,
        space: Space,
        backend: &mut dyn SimilarityBackend,
    ) -> Result<Forest> {
        let mut forest = Forest {
            heads: Vec::new(),
            neurons: Vec::new(),
            head_magnitudes: Vec::new(),
            neuron_magnitudes: Vec::new(),
            dead_neurons: Vec::new(),
            stages: StageTimes::default(),
        };
        for layer in 0..sample.layers() {
            let stages = &mut forest.stages;
            let similarity = head_similarity(sample, layer, backend, stages)?;
            forest.heads.push(tree(
                similarity,
                linkage,
                space,
                &format!("heads of layer {layer}"),
                backend,
                stages,
            )?);
            let similarity = neuron_similarity(sample, layer, backend, stages)?;
            forest.neurons.push(tree(
                similarity,
                linkage,
                space,
                &format!("neurons of layer {layer}"),
                backend,
                stages,
            )?);

            let mut heads = vec![0.0; sample.heads[layer]];
            let mut neurons = vec![0.0; sample.neurons(layer)];
            stages.time("mean magnitude", || {
                backend.mean_absolute(sample.context_view(layer), sample.head_dim, &mut heads)?;
                backend.mean_absolute(sample.activations_view(layer), 1, &mut neurons)
            })?;
            forest.dead_neurons.push((0..neurons.len()).filter(|&unit| neurons[unit] == 0.0).collect());
            forest.head_magnitudes.push(heads);
            forest.neuron_magnitudes.push(neurons);
        }
        Ok(forest)
    }
}

/// C^A [heads, heads] of one layer.
pub(super) fn head_similarity(
    sample: &CalibrationSample,
    layer: usize,
    backend: &mut dyn SimilarityBackend,
    stages: &mut StageTimes,
) -> Result<Vec<f32>> {
    let context = sample.context_view(layer);
    let (heads, dimensions) = (sample.heads[layer], context.cols());
    let mut cosine = vec![0.0; dimensions * dimensions];
    stages.time("absolute cosine of head dimensions", || {
        backend.absolute_cosine(context, &mut ViewMut::dense(&mut cosine, dimensions, dimensions))
    })?;
    let mut similarity = vec![0.0; heads * heads];
    stages.time("dimension mapping", || {
        let cosine = View::dense(&cosine, dimensions, dimensions);
        backend.dimension_mapping(cosine, sample.head_dim, &mut ViewMut::dense(&mut similarity, heads, heads))
    })?;
    Ok(similarity)
}

/// C^F [neurons, neurons] of one layer.
pub(super) fn neuron_similarity(
    sample: &CalibrationSample,
    layer: usize,
    backend: &mut dyn SimilarityBackend,
    stages: &mut StageTimes,
) -> Result<Vec<f32>> {
    let neurons = sample.neurons(layer);
    let mut similarity = vec![0.0; neurons * neurons];
    stages.time("absolute cosine of neurons", || {
        backend.absolute_cosine(
            sample.activations_view(layer),
            &mut ViewMut::dense(&mut similarity, neurons, neurons),
        )
    })?;
    Ok(similarity)
}

/// Clusters the units of one `similarity` matrix C [units, units].
fn tree(
    similarity: Vec<f32>,
    linkage: Linkage,
    space: Space,
    place: &str,
    backend: &mut dyn SimilarityBackend,
    stages: &mut StageTimes,
) -> Result<Tree> {
    let units = similarity.len().isqrt();
    let mut condensed = match space {
        // 1 − C is exact in f64: no two different similarities become equal distances.
        Space::Direct => condense(&similarity, units, |c| 1.0 - f64::from(c)),
        Space::Profile => {
            let mut profile = vec![0.0; units * units];
            stages.time("profile distance", || {
                let cosine = View::dense(&similarity, units, units);
                backend.profile_distance(cosine, &mut ViewMut::dense(&mut profile, units, units))
            })?;
            drop(similarity);
            condense(&profile, units, f64::from)
        }
    };
    stages.time("linkage", || Tree::build(&mut condensed, units, linkage, place))
}

/// The upper triangle of `matrix` [units, units], row by row.
fn condense(matrix: &[f32], units: usize, distance: impl Fn(f32) -> f64) -> Vec<f64> {
    let mut condensed = Vec::with_capacity(units * units.saturating_sub(1) / 2);
    for i in 0..units {
        condensed.extend(matrix[i * units + i + 1..(i + 1) * units].iter().map(|&value| distance(value)));
    }
    condensed
}

/// Most bytes that building the tree of one layer of `units` units holds beside the sample: f32 matrices of
/// units², the normalised copy of the activations, and the f64 condensed distances.
pub fn peak_bytes(units: usize, samples: usize, space: Space) -> usize {
    let matrix = 4 * units * units;
    let condensed = 8 * (units * units.saturating_sub(1) / 2);
    let cosine = matrix + 4 * units * samples;
    match space {
        Space::Direct => cosine.max(matrix + condensed),
        // Similarity, its packed copy (whole panels of 16 rows) and the profile; then profile and condensed.
        Space::Profile => {
            cosine.max(2 * matrix + 4 * units * units.next_multiple_of(16)).max(matrix + condensed)
        }
    }
}

/// Seconds spent in each named stage, in the order of first use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageTimes(pub Vec<(String, f64)>);

impl StageTimes {
    /// Runs `work` and adds its time to `stage`.
    pub fn time<T>(&mut self, stage: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        match self.0.iter_mut().find(|(name, _)| name == stage) {
            Some((_, total)) => *total += seconds,
            None => self.0.push((stage.to_string(), seconds)),
        }
        result
    }
}
