//! R2 and D2 into one score (S = S_R2 ∘ S_D2, compared across layers).

use serde_json::{Value, json};

use super::options::{Options, Score};
use super::r2::{Ranker, Representatives};
use crate::error::Result;
use crate::memory::MemoryPlan;
use crate::prune::Job;
use crate::prune::moments::ActivationMoments;
use crate::prune::neuron_ranking::{Matrix, neuron_weights};

/// The scores of all neurons and what they were made of.
#[derive(Clone, Debug)]
pub struct Scores {
    /// One number a neuron, by layer.
    pub merged: Vec<Vec<f64>>,
    /// R2 by layer; `None` where D2 decides alone.
    pub representatives: Option<Vec<Representatives>>,
    /// Activations; `None` where R2 decides alone.
    pub moments: Option<ActivationMoments>,
}

impl Scores {
    /// Computes what `options.score` needs: data are read only for D2, products are computed only for R2.
    pub fn compute(job: &Job, options: &Options) -> Result<Scores> {
        let layers = job.model.config().layers.len();
        let representatives =
            (options.score != Score::D2).then(|| representatives(job, options)).transpose()?;
        let moments = (options.score != Score::R2).then(|| ActivationMoments::collect(job)).transpose()?;
        let diagonals = representatives.iter().flatten().map(|layer| layer.diagonal.clone()).collect();
        let data = moments.as_ref().map(|moments| -> Vec<Vec<f64>> {
            let statistic = options.statistic.of(moments);
            statistic.iter().map(|layer| options.normaliser.apply(layer)).collect()
        });
        let merged = match data {
            None => diagonals,
            Some(data) if representatives.is_none() => data,
            Some(data) => product(&diagonals, &data),
        };
        debug_assert_eq!(merged.len(), layers);
        Ok(Scores { merged, representatives, moments })
    }

    /// For the run record: iterations and growth of R2, tokens of D2, and the range of the scores by layer.
    pub fn details(&self) -> Value {
        let range = |layer: &Vec<f64>| {
            let fold = |start, pick: fn(f64, f64) -> f64| layer.iter().copied().fold(start, pick);
            json!([fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max)])
        };
        let growth = |layers: &Vec<Representatives>| {
            layers.iter().map(|layer| layer.growth.clone()).collect::<Vec<Vec<f64>>>()
        };
        json!({
            "r2_growth": self.representatives.as_ref().map(growth),
            "d2_tokens": self.moments.as_ref().map(|moments| moments.tokens),
            "score_range": self.merged.iter().filter(|layer| !layer.is_empty()).map(range).collect::<Vec<_>>(),
        })
    }
}

/// R2 of every layer of the job's model.
fn representatives(job: &Job, options: &Options) -> Result<Vec<Representatives>> {
    let config = job.model.config();
    let mut memory = MemoryPlan::begin();
    let widest = config.layers.iter().map(|layer| layer.neurons).max().unwrap_or(0);
    memory.add("kernel, factor and their product", Ranker::bytes(widest));
    memory.add("output weights of a layer", 2 * 4 * widest * config.hidden);
    job.progress.plan_memory(&memory);
    let mut ranker = Ranker::new(job.device)?;
    let mut stage = job.progress.stage("representative ranking", config.layers.len() as u64, "layers");
    let mut rankings = Vec::with_capacity(config.layers.len());
    for layer in 0..config.layers.len() {
        let rows = neuron_weights(job.model, layer, Matrix::Down);
        rankings.push(ranker.rank(&rows, config.hidden, options, job.progress)?);
        stage.advance(1);
    }
    Ok(rankings)
}

/// Element by element.
fn product(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let layer = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a * b).collect();
    a.iter().zip(b).map(layer).collect()
}
