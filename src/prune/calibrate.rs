//! Calibration: runs the model on task inputs and keeps the hook tensors of the sampled tokens, nothing else.
//!
//! The token positions are drawn from the row lengths first; only the rows that contain one are run, and of every
//! layer only the sampled rows leave the executor. Memory is bounded by the sample (and one batch), not by the data
//! set; the result is the same as collecting every token and drawing afterwards.

use serde::{Deserialize, Serialize};

use crate::data::sampling::{choose_rows, choose_tokens};
use crate::data::{Batch, Example, Target};
use crate::error::{Error, Result};
use crate::memory::MemoryPlan;
use crate::model::{EmitOptions, SampledTaps};
use crate::program::{Extents, Mode};
use crate::progress::Progress;
use crate::prune::dual_cp::CalibrationSample;
use crate::session::{Session, Weighting};

/// Tokens of a calibration batch: enough for full-speed matrix products, small beside the model.
const TOKEN_BUDGET: usize = 2048;

/// Which rows and tokens are looked at. Goes into the run record, so that anyone can repeat the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Rows of the data set, in the order of sampling.
    pub rows: Vec<usize>,
    /// Flat indices into the concatenated tokens of those rows.
    pub tokens: Vec<usize>,
}

/// Draws `rows` rows of a data set with the given `lengths`, then `tokens` tokens of them; fewer where there are not so
/// many. Fails when there is none.
pub fn select(lengths: &[usize], rows: usize, tokens: usize, seed: u64) -> Result<Selection> {
    let rows = choose_rows(lengths.len(), rows, seed);
    let chosen: Vec<usize> = rows.iter().map(|&row| lengths[row]).collect();
    let tokens = choose_tokens(&chosen, tokens, seed).flat;
    if tokens.is_empty() {
        return Err(Error::usage("no token to sample: the calibration inputs are empty"));
    }
    Ok(Selection { rows, tokens })
}

/// Runs the rows of `examples` that hold selected tokens and returns their hook tensors at those tokens, in the order
/// of the draw. Labels are not looked at.
pub fn collect(
    session: &mut Session,
    examples: &[Example],
    selection: &Selection,
    progress: &Progress,
) -> Result<CalibrationSample> {
    let config = session.model().config().clone();
    let layers = config.layers.len();
    let samples = selection.tokens.len();
    let widths: Vec<[usize; 2]> =
        config.layers.iter().map(|layer| [layer.heads * config.head_dim, layer.neurons]).collect();
    let with = |unit: usize| (0..layers).filter(|&layer| widths[layer][unit] > 0).collect();
    let taps = SampledTaps { context: with(0), activation: with(1) };
    let options = EmitOptions { sampled: Some(taps), ..EmitOptions::default() };

    let batches = batches(examples, selection)?;
    let mut capacity = Extents::default();
    for batch in &batches {
        let tokens = batch.rows.iter().map(|&row| examples[selection.rows[row]].length());
        capacity.longest = capacity.longest.max(tokens.clone().max().unwrap_or(0));
        capacity.tokens = capacity.tokens.max(tokens.sum());
        capacity.sequences = capacity.sequences.max(batch.rows.len());
        capacity.samples = capacity.samples.max(batch.samples.len());
    }
    let mut memory = MemoryPlan::begin();
    let held = session.host_bytes();
    let prepared = session.prepare(Mode::EVALUATE, &options, capacity)?;
    memory.add("activations and inputs", session.host_bytes() - held);
    memory.add("the sample", 4 * samples * widths.iter().flatten().sum::<usize>());
    memory.add("the parameters, taken back", 4 * session.model().layout().block_len());
    progress.plan_memory(&memory);
    let mut sample = CalibrationSample {
        samples,
        head_dim: config.head_dim,
        heads: config.layers.iter().map(|layer| layer.heads).collect(),
        context: widths.iter().map(|width| vec![0.0; samples * width[0]]).collect(),
        activations: widths.iter().map(|width| vec![0.0; samples * width[1]]).collect(),
    };
    let mut stage = progress.stage("calibration", batches.len() as u64, "batches");
    let mut batch = Batch::default();
    let mut values = Vec::new();
    for Run { rows, samples, places } in &batches {
        progress.check(|| "calibration was not finished; nothing was written".into())?;
        let unlabelled: Vec<(usize, Example)> = rows
            .iter()
            .map(|&row| (row, Example { target: Target::None, ..examples[selection.rows[row]].clone() }))
            .collect();
        batch.refill(unlabelled.iter().map(|(row, example)| (*row, example)))?;
        let extents = session.feed(&prepared, &batch, Weighting::EachRow)?;
        let extents = Extents { samples: samples.len(), ..extents };
        if let Some(slot) = prepared.slots.inputs.samples {
            session.executor().write_ints(prepared.id, slot, samples)?;
        }
        session.run(&prepared, &extents)?;
        for (layer, slots) in prepared.slots.layers.iter().enumerate() {
            let taps = [
                (slots.sampled_context, &mut sample.context[layer], widths[layer][0]),
                (slots.sampled_activation, &mut sample.activations[layer], widths[layer][1]),
            ];
            for (slot, into, width) in taps {
                let Some(slot) = slot else { continue };
                session.read(&prepared, slot, &extents, &mut values)?;
                for (row, &place) in values.chunks(width).zip(places) {
                    into[place * width..(place + 1) * width].copy_from_slice(row);
                }
            }
        }
        stage.advance(1);
    }
    Ok(sample)
}

/// One forward pass of the calibration.
struct Run {
    /// Rows of the selection.
    rows: Vec<usize>,
    /// Flat token positions in the batch.
    samples: Vec<i32>,
    /// Where each of them stands in the draw.
    places: Vec<usize>,
}

/// Packs the rows that hold sampled tokens into batches, shortest first so that a batch has rows of like length.
fn batches(examples: &[Example], selection: &Selection) -> Result<Vec<Run>> {
    let length = |row: usize| examples[selection.rows[row]].length();
    if selection.rows.iter().any(|&row| row >= examples.len()) {
        return Err(Error::usage(format!("a calibration row is not among the {} examples", examples.len())));
    }
    let ends: Vec<usize> = (0..selection.rows.len())
        .scan(0, |end, row| {
            *end += length(row);
            Some(*end)
        })
        .collect();
    // Position and place in the draw of each row's sampled tokens.
    let mut wanted: Vec<Vec<(usize, usize)>> = vec![Vec::new(); selection.rows.len()];
    for (place, &flat) in selection.tokens.iter().enumerate() {
        let row = ends.partition_point(|&end| end <= flat);
        if row == ends.len() {
            let total = ends.last().copied().unwrap_or(0);
            let message =
                format!("token index {flat} is out of range: the calibration rows have {total} tokens");
            return Err(Error::usage(message));
        }
        wanted[row].push((flat + length(row) - ends[row], place));
    }
    let mut order: Vec<usize> = (0..wanted.len()).filter(|&row| !wanted[row].is_empty()).collect();
    order.sort_by_key(|&row| (length(row), row));
    let mut batches: Vec<Run> = Vec::new();
    let mut tokens = 0;
    for row in order {
        if batches.is_empty() || tokens + length(row) > TOKEN_BUDGET {
            batches.push(Run { rows: Vec::new(), samples: Vec::new(), places: Vec::new() });
            tokens = 0;
        }
        if let Some(batch) = batches.last_mut() {
            batch.rows.push(row);
            for &(position, place) in &wanted[row] {
                batch.samples.push((tokens + position) as i32);
                batch.places.push(place);
            }
        }
        tokens += length(row);
    }
    Ok(batches)
}
