//! How long one batch takes: latency on the user's device over a grid of batch sizes and lengths.
//!
//! Timed is what a caller waits for: writing the inputs, the forward pass to the logits, reading them back. Every point
//! of the grid is warmed up first; median and 95th percentile are over all repeats. Models that are to be compared are
//! measured in turns, repeat by repeat, so that a clock that drifts drifts for all of them. Tokens are random: dense
//! kernels take as long for any.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::data::random::{Purpose, Stream};
use crate::data::{Batch, Example, Target};
use crate::error::{Error, Result};
use crate::model::{EmitOptions, Head, Logits};
use crate::program::{Extents, Mode};
use crate::progress::Progress;
use crate::session::{Prepared, Session, Weighting};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Rows of a batch.
    pub batches: Vec<usize>,
    /// Tokens of every row.
    pub lengths: Vec<usize>,
    /// Untimed runs of each point before the timed ones.
    pub warm_up: usize,
    /// Timed runs of each point, at most.
    pub repeats: usize,
    /// Seconds after which a point ends with fewer repeats (at least [`LEAST_REPEATS`]).
    pub seconds: f64,
    /// Seed of the tokens.
    pub seed: u64,
}

/// Repeats without which there is no percentile worth the name.
pub const LEAST_REPEATS: usize = 5;

impl Default for Options {
    fn default() -> Options {
        Options {
            batches: vec![1, 8, 32],
            lengths: vec![32, 128],
            warm_up: 5,
            repeats: 100,
            seconds: 10.0,
            seed: 0,
        }
    }
}

/// One model at one point of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Which model.
    pub variant: String,
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens of every row.
    pub length: usize,
    /// Median seconds of a batch.
    pub median: f64,
    /// 95th percentile of the seconds of a batch.
    pub p95: f64,
    /// Timed runs.
    pub repeats: usize,
}

/// A model that takes part.
pub struct Contestant<'a> {
    /// Its name in the results.
    pub variant: String,
    /// The model on its device.
    pub session: &'a mut Session,
}

/// Measures every model at every point of the grid; points that are longer than a model's positions are an error.
pub fn measure(models: &mut [Contestant], options: &Options, progress: &Progress) -> Result<Vec<Latency>> {
    check(options)?;
    let longest = options.lengths.iter().copied().max().unwrap_or(0);
    let rows = options.batches.iter().copied().max().unwrap_or(0);
    let capacity =
        Extents { tokens: rows * longest, sequences: rows, targets: rows * longest, samples: 0, longest };
    let mut prepared = Vec::with_capacity(models.len());
    for model in models.iter_mut() {
        prepared.push(prepare(model, capacity)?);
    }
    let vocabulary = models.iter().map(|model| model.session.model().config().vocab).min().unwrap_or(1);
    let points = options.batches.len() * options.lengths.len();
    let mut stage = progress.stage("latency", points as u64, "points");
    let mut results = Vec::new();
    for &batch in &options.batches {
        for &length in &options.lengths {
            let inputs = random_batch(batch, length, vocabulary, options.seed)?;
            let times = point(models, &prepared, &inputs, options, progress)?;
            for (model, mut seconds) in models.iter().zip(times) {
                seconds.sort_by(f64::total_cmp);
                results.push(Latency {
                    variant: model.variant.clone(),
                    batch,
                    length,
                    median: percentile(&seconds, 0.5),
                    p95: percentile(&seconds, 0.95),
                    repeats: seconds.len(),
                });
            }
            stage.advance(1);
        }
    }
    Ok(results)
}

fn check(options: &Options) -> Result<()> {
    let empty = |values: &[usize]| values.is_empty() || values.contains(&0);
    if empty(&options.batches) || empty(&options.lengths) || options.repeats == 0 {
        return Err(Error::usage("latency needs batch sizes, lengths and repeats of at least 1"));
    }
    Ok(())
}

fn prepare(model: &mut Contestant, capacity: Extents) -> Result<Prepared> {
    let config = model.session.model().config();
    if capacity.longest > config.max_length() {
        return Err(Error::usage(format!(
            "rows of {} tokens are longer than the {} positions of {}",
            capacity.longest,
            config.max_length(),
            model.variant
        )));
    }
    // A backbone's answer is its hidden states, a language model's the logits of each row's last token: of all tokens they
    // would be gigabytes.
    let head = model.session.model().architecture.head;
    let logits = match head {
        Head::Backbone => Logits::None,
        _ if head.is_language_model() => Logits::Targets,
        _ => Logits::All,
    };
    let options = EmitOptions { logits, keep_hidden: head == Head::Backbone, ..EmitOptions::default() };
    model.session.prepare(Mode::EVALUATE, &options, capacity)
}

/// Seconds of every repeat of every model.
fn point(
    models: &mut [Contestant],
    prepared: &[Prepared],
    batch: &Batch,
    options: &Options,
    progress: &Progress,
) -> Result<Vec<Vec<f64>>> {
    let mut answer = Vec::new();
    for (model, prepared) in models.iter_mut().zip(prepared) {
        for _ in 0..options.warm_up {
            once(model.session, prepared, batch, &mut answer)?;
        }
    }
    let mut times = vec![Vec::with_capacity(options.repeats); models.len()];
    let start = Instant::now();
    for repeat in 0..options.repeats {
        if repeat >= LEAST_REPEATS && start.elapsed().as_secs_f64() > options.seconds {
            break;
        }
        progress.check(|| "latency was not measured to the end".into())?;
        for ((model, prepared), times) in models.iter_mut().zip(prepared).zip(&mut times) {
            let start = Instant::now();
            once(model.session, prepared, batch, &mut answer)?;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

fn once(session: &mut Session, prepared: &Prepared, batch: &Batch, answer: &mut Vec<f32>) -> Result<()> {
    let extents = session.feed(prepared, batch, Weighting::EachRow)?;
    session.run(prepared, &extents)?;
    let slot = prepared.slots.logits.or(prepared.slots.hidden.last().copied());
    match slot {
        Some(slot) => session.read(prepared, slot, &extents, answer),
        None => session.executor().synchronize(),
    }
}

fn random_batch(rows: usize, length: usize, vocabulary: usize, seed: u64) -> Result<Batch> {
    let mut stream = Stream::new(seed, Purpose::Bench, 0);
    let examples: Vec<Example> = (0..rows)
        .map(|_| Example {
            input_ids: (0..length).map(|_| stream.below(vocabulary) as i32).collect(),
            token_type_ids: vec![0; length],
            // Read by language models only: which token's logits are asked for.
            target: Target::Masked { positions: vec![length as u32 - 1], labels: vec![0] },
        })
        .collect();
    Batch::of(&examples, &(0..rows).collect::<Vec<_>>())
}

/// Of ascending values, by the nearest rank.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.95)), (10.0, 19.0));
        assert_eq!(percentile(&[3.0], 0.95), 3.0);
    }
}
