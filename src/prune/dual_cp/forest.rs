//! One tree a layer for heads and one for neurons. Similarities are computed layer by layer, so that only one layer's
//! square matrices are alive; the trees of as many layers as there are threads are then built side by side.

use std::time::Instant;

use rayon::prelude::*;
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
        let layers: Vec<usize> = (0..sample.layers()).collect();
        for group in layers.chunks(layers_at_once(layers.len())) {
            let stages = &mut forest.stages;
            let mut distances = Vec::with_capacity(2 * group.len());
            for &layer in group {
                let similarity = head_similarity(sample, layer, backend, stages)?;
                distances.push(Distances::new(
                    similarity,
                    space,
                    format!("heads of layer {layer}"),
                    backend,
                    stages,
                )?);
                let similarity = neuron_similarity(sample, layer, backend, stages)?;
                distances.push(Distances::new(
                    similarity,
                    space,
                    format!("neurons of layer {layer}"),
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
            let trees = stages.time("linkage", || {
                distances
                    .into_par_iter()
                    .map(|distances| distances.tree(linkage))
                    .collect::<Result<Vec<Tree>>>()
            })?;
            let mut trees = trees.into_iter();
            while let (Some(heads), Some(neurons)) = (trees.next(), trees.next()) {
                forest.heads.push(heads);
                forest.neurons.push(neurons);
            }
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

/// Layers whose trees are built side by side.
pub fn layers_at_once(layers: usize) -> usize {
    rayon::current_num_threads().clamp(1, layers.max(1))
}

/// The distances of the units of one layer, ready to be clustered.
struct Distances {
    /// Of i < j, row by row.
    condensed: Vec<f64>,
    units: usize,
    place: String,
}

impl Distances {
    /// From a similarity matrix C [units, units].
    fn new(
        similarity: Vec<f32>,
        space: Space,
        place: String,
        backend: &mut dyn SimilarityBackend,
        stages: &mut StageTimes,
    ) -> Result<Distances> {
        let units = similarity.len().isqrt();
        let condensed = match space {
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
        Ok(Distances { condensed, units, place })
    }

    fn tree(mut self, linkage: Linkage) -> Result<Tree> {
        Tree::build(&mut self.condensed, self.units, linkage, &self.place)
    }
}

/// The upper triangle of `matrix` [units, units], row by row.
fn condense(matrix: &[f32], units: usize, distance: impl Fn(f32) -> f64) -> Vec<f64> {
    let mut condensed = Vec::with_capacity(units * units.saturating_sub(1) / 2);
    for i in 0..units {
        condensed.extend(matrix[i * units + i + 1..(i + 1) * units].iter().map(|&value| distance(value)));
    }
    condensed
}

/// Most bytes that building the trees of layers of `units` units holds beside the sample, `layers` of them side by side:
/// for one layer f32 matrices of units² and the normalised copy of the activations, and the f64 condensed distances of
/// all.
pub fn peak_bytes(units: usize, samples: usize, space: Space, layers: usize) -> usize {
    let matrix = 4 * units * units;
    let condensed = 8 * (units * units.saturating_sub(1) / 2);
    let cosine = matrix + 4 * units * samples;
    let one = match space {
        Space::Direct => cosine.max(matrix + condensed),
        // Similarity, its packed copy (whole panels of 16 rows) and the profile; then profile and condensed.
        Space::Profile => {
            cosine.max(2 * matrix + 4 * units * units.next_multiple_of(16)).max(matrix + condensed)
        }
    };
    one + layers.saturating_sub(1) * condensed
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
