//! Mean, mean magnitude and root mean square of every neuron's activation over the calibration rows.
//!
//! The sums are taken where the activations are (one operation a layer), so that of each batch only three rows a layer
//! leave the executor. Batches hold tokens without padding: every mean is over valid tokens. Labels are not looked at.

use crate::data::{Batch, Example, Target};
use crate::error::{Error, Result};
use crate::memory::MemoryPlan;
use crate::model::EmitOptions;
use crate::program::Mode;
use crate::prune::Job;
use crate::prune::stream::pack;
use crate::session::{self, Session, Weighting};

/// Tokens of a batch: enough for full-speed products.
const TOKEN_BUDGET: usize = 2048;

/// Sums over tokens for the neurons of one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerMoments {
    /// Σ x.
    pub sum: Vec<f64>,
    /// Σ |x|.
    pub magnitude: Vec<f64>,
    /// Σ x².
    pub square: Vec<f64>,
}

/// Sums over the tokens of all calibration rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivationMoments {
    /// Number of tokens.
    pub tokens: usize,
    /// Layer by layer; empty for a layer without neurons.
    pub layers: Vec<LayerMoments>,
}

impl ActivationMoments {
    /// Runs the job's rows through its model. Fails where there are none, and on an activation that is not finite.
    pub fn collect(job: &Job) -> Result<ActivationMoments> {
        if job.examples.is_empty() {
            return Err(Error::usage("there are no calibration rows"));
        }
        let mut memory = MemoryPlan::begin();
        let mut session = Session::of(job.model, job.device)?;
        memory.add("the model, on its executor", session.host_bytes());
        let lengths: Vec<usize> = job.examples.iter().map(Example::length).collect();
        let packed = pack(&lengths, TOKEN_BUDGET);
        let options = EmitOptions { moments: true, ..EmitOptions::default() };
        let held = session.host_bytes();
        let capacity = session::capacity(&packed, &lengths);
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity)?;
        memory.add("activations and inputs", session.host_bytes() - held);
        job.progress.plan_memory(&memory);

        let mut moments = ActivationMoments { tokens: 0, layers: Vec::new() };
        for layer in &job.model.config().layers {
            let zeros = vec![0.0; layer.neurons];
            let layer = LayerMoments { sum: zeros.clone(), magnitude: zeros.clone(), square: zeros };
            moments.layers.push(layer);
        }
        let mut stage = job.progress.stage("activation moments", packed.len() as u64, "batches");
        let (mut batch, mut values) = (Batch::default(), Vec::new());
        for rows in &packed {
            job.progress.check(|| "activations were not finished; nothing was written".into())?;
            let unlabelled: Vec<Example> = rows
                .iter()
                .map(|&row| Example { target: Target::None, ..job.examples[row].clone() })
                .collect();
            batch.refill(rows.iter().copied().zip(&unlabelled))?;
            let extents = session.feed(&prepared, &batch, Weighting::EachRow)?;
            session.run(&prepared, &extents)?;
            moments.tokens += batch.token_count();
            for (layer, slots) in prepared.slots.layers.iter().enumerate() {
                let Some(slot) = slots.activation_moments else { continue };
                session.read(&prepared, slot, &extents, &mut values)?;
                moments.add(layer, &values)?;
            }
            stage.advance(1);
        }
        Ok(moments)
    }

    /// Adds one batch's `[3, neurons]`.
    fn add(&mut self, layer: usize, values: &[f32]) -> Result<()> {
        let LayerMoments { sum, magnitude, square } = &mut self.layers[layer];
        let neurons = sum.len();
        // The square is the first to overflow, and NaN is in all three.
        if let Some(neuron) = values[2 * neurons..].iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("the sum of squared activations of neuron {neuron}"),
                value: f64::from(values[2 * neurons + neuron]),
                place: format!("in layer {layer}"),
            });
        }
        for (sums, values) in [sum, magnitude, square].into_iter().zip(values.chunks(neurons.max(1))) {
            sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        Ok(())
    }

    /// Mean activation of each neuron, by layer.
    pub fn means(&self) -> Vec<Vec<f64>> {
        self.over_tokens(|layer| &layer.sum)
    }

    /// Mean magnitude of each neuron's activation, by layer.
    pub fn mean_magnitudes(&self) -> Vec<Vec<f64>> {
        self.over_tokens(|layer| &layer.magnitude)
    }

    /// Root mean square of each neuron's activation, by layer.
    pub fn root_mean_squares(&self) -> Vec<Vec<f64>> {
        let mut squares = self.over_tokens(|layer| &layer.square);
        squares.iter_mut().flatten().for_each(|square| *square = square.sqrt());
        squares
    }

    fn over_tokens(&self, of: impl Fn(&LayerMoments) -> &Vec<f64>) -> Vec<Vec<f64>> {
        let mean = |sums: &Vec<f64>| sums.iter().map(|sum| sum / self.tokens as f64).collect();
        self.layers.iter().map(|layer| mean(of(layer))).collect()
    }

    /// A sentence about neurons that are zero on every token, if there are any (ReLU models have them).
    pub fn dead_neurons(&self) -> Option<String> {
        let dead: usize =
            self.layers.iter().flat_map(|layer| &layer.magnitude).filter(|sum| **sum == 0.0).count();
        (dead > 0).then(|| format!("{dead} neurons are zero on every calibration token"))
    }
}
