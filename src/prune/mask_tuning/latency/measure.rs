//! Measuring a latency table: one sublayer at each width, on any executor.
//!
//! A model of one layer with that width is emitted as the compact model would be, so what is timed is what a pruned model
//! will run, without its inputs' transfer. Of a feed-forward network not all N widths are measured: every `stride`-th,
//! and the first and last; those between are interpolated.

use serde::{Deserialize, Serialize};

use super::LatencyTable;
use crate::data::random::{Purpose, Stream};
use crate::data::{Batch, Example, Target};
use crate::error::{Error, Result};
use crate::model::{Head, LayerShape, Model, ModelConfig, Sublayer};
use crate::program::Extents;
use crate::progress::Progress;
use crate::prune::mask_tuning::emitted::{Emitted, Parts};
use crate::session::{Device, Session};

/// What is measured, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyOptions {
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens of each row.
    pub length: usize,
    /// Runs of each width before the timed ones.
    pub warm_up: usize,
    /// Timed runs of each width, of which the median counts.
    pub repeats: usize,
    /// Every so many neurons are measured.
    pub stride: usize,
}

impl Default for LatencyOptions {
    fn default() -> LatencyOptions {
        LatencyOptions { batch: 1, length: 128, warm_up: 10, repeats: 20, stride: 64 }
    }
}

impl LatencyOptions {
    fn check(&self, config: &ModelConfig) -> Result<()> {
        if self.batch == 0 || self.length == 0 || self.repeats == 0 || self.stride == 0 {
            let message = "batch, length, repeats and stride of a latency measurement must be at least 1";
            return Err(Error::usage(message));
        }
        if self.length > config.max_length() {
            return Err(Error::usage(format!(
                "rows of {} tokens, where the model has {} positions",
                self.length,
                config.max_length()
            )));
        }
        Ok(())
    }
}

impl LatencyTable {
    /// Measures sublayers of `config`'s widest layer on `device`. Takes 2·(H + N / stride) sublayers, each run
    /// `warm_up + repeats` times; anything else that keeps the device busy meanwhile falsifies it.
    pub fn measure(
        device: Device,
        config: &ModelConfig,
        options: &LatencyOptions,
        progress: &Progress,
    ) -> Result<LatencyTable> {
        options.check(config)?;
        let widest = |units: fn(&LayerShape) -> usize| config.layers.iter().map(units).max().unwrap_or(0);
        let (heads, neurons) = (widest(|layer| layer.heads), widest(|layer| layer.neurons));
        let mut measured_neurons: Vec<usize> = [1]
            .into_iter()
            .chain((options.stride..neurons).step_by(options.stride))
            .chain([neurons])
            .filter(|width| (1..=neurons).contains(width))
            .collect();
        measured_neurons.dedup();
        let total = heads + measured_neurons.len();
        let mut stage = progress.stage("latency table", total as u64, "widths");
        let mut time = |sublayer: usize, units: usize| {
            progress.check(|| "the latency table was not finished".into())?;
            let seconds = time_sublayer(device, config, sublayer, units, options)?;
            stage.advance(1);
            Ok::<f64, Error>(seconds)
        };
        let by_head = (1..=heads).map(|units| time(0, units)).collect::<Result<Vec<f64>>>()?;
        let by_neuron = measured_neurons.iter().map(|&units| time(1, units)).collect::<Result<Vec<f64>>>()?;
        Ok(LatencyTable {
            batch: options.batch,
            length: options.length,
            device: device.to_string(),
            heads: by_head,
            neurons: interpolate(&measured_neurons, &by_neuron),
            measured_neurons,
        })
    }
}

/// Median seconds of a sublayer with `units`.
fn time_sublayer(
    device: Device,
    config: &ModelConfig,
    sublayer: usize,
    units: usize,
    options: &LatencyOptions,
) -> Result<f64> {
    let mut config = config.clone();
    // Embeddings are not timed; a model is made for every width.
    config.vocab = 1;
    config.layers = vec![match sublayer {
        0 => LayerShape { heads: units, neurons: 0, attention: Sublayer::Full, ffn: Sublayer::Removed },
        _ => LayerShape { heads: 0, neurons: units, attention: Sublayer::Removed, ffn: Sublayer::Full },
    }];
    let hidden = config.hidden;
    let model = Model::from_config(config, Head::Backbone, 0)?;
    let mut session = Session::new(model, device)?;
    let tokens = options.batch * options.length;
    let capacity =
        Extents { tokens, sequences: options.batch, longest: options.length, ..Extents::default() };
    let parts = Parts { output: true, ..Parts::default() };
    let emitted = Emitted::prepare(&mut session, sublayer, capacity, parts)?;
    let row = Example {
        input_ids: vec![0; options.length],
        token_type_ids: vec![0; options.length],
        target: Target::None,
    };
    let batch = Batch::of(&vec![row; options.batch], &(0..options.batch).collect::<Vec<_>>())?;
    let mut random = Stream::new(0, Purpose::Calibration, 3);
    let input: Vec<f32> =
        (0..tokens * hidden).map(|_| random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0).collect();
    let mut seconds = emitted.time(&mut session, &batch, &input, options.warm_up, options.repeats)?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// Times of 1 … last width from those measured at rising `widths`, linear between them.
fn interpolate(widths: &[usize], seconds: &[f64]) -> Vec<f64> {
    let mut table = Vec::with_capacity(widths.last().copied().unwrap_or(0));
    for (at, (&width, &time)) in widths.iter().zip(seconds).enumerate() {
        if at == 0 {
            table.resize(width, time);
            continue;
        }
        let (before, start) = (widths[at - 1], seconds[at - 1]);
        let step = (time - start) / (width - before) as f64;
        table.extend((1..=width - before).map(|units| start + step * units as f64));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::interpolate;

    #[test]
    fn measured_widths_keep_their_times_and_others_lie_between() {
        let table = interpolate(&[1, 4, 6], &[2.0, 5.0, 4.0]);
        let expected = [2.0, 3.0, 4.0, 5.0, 4.5, 4.0];
        assert_eq!(table.len(), 6);
        assert!(table.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12));
        assert!(interpolate(&[], &[]).is_empty());
    }
}
