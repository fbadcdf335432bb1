//! Gradients of a loss with respect to head and neuron masks, by mini-batch or by row.
//!
//! A mask multiplies a unit's output, so its gradient at 1 says how the loss changes when the unit fades. Methods square
//! these gradients (diagonal Fisher information), and the square depends on what is averaged before: the published
//! scores square gradients of mini-batch means, the Fisher information proper those of single rows.
//!
//! Executors give the gradient of every sequence apart. A mini-batch's gradient is a weighted sum of those, taken here in
//! f64, so rows are packed into forward batches of whatever size is fast, and what a mini-batch is changes no pass. The
//! weight of a row is its share of the mini-batch's predictions: the loss of a mini-batch is the mean over its rows, of a
//! language model over all its predicted tokens.

use serde::{Deserialize, Serialize};

use crate::data::{Batch, Example, Target, Targets};
use crate::error::{Error, Result};
use crate::memory::MemoryPlan;
use crate::model::{EmitOptions, Head};
use crate::program::{Extents, Mode};
use crate::progress::Progress;
use crate::prune::stream::{Stream, pack};
use crate::prune::{LayerWidths, UnitMasks};
use crate::session::{self, Prepared, Session, Weighting};

/// Tokens of a forward batch: enough for full-speed products.
const TOKEN_BUDGET: usize = 2048;

/// Where the rows start from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// From their tokens.
    Rows(&'a [Example]),
    /// From the hidden states at a boundary: units below it get no gradient, and nothing below it is computed.
    Stream(&'a Stream),
}

/// Which rows share a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// So many consecutive rows; the last mini-batch may have fewer.
    MiniBatches(usize),
    /// Each row is its own.
    Rows,
}

/// What is differentiated.
pub enum Objective<'a> {
    /// The loss of the model's head against the rows' labels.
    Loss,
    /// The distance to a teacher's answers: `t²·KL(teacher ‖ student)` of class or vocabulary logits at temperature t,
    /// squared error of a regression.
    Distillation {
        /// Temperature t, positive.
        temperature: f32,
        /// The teacher's logits of a batch: `[R, classes]` for its R rows, of a language model `[P, vocabulary]` for its P
        /// predicted positions.
        teacher: &'a mut dyn FnMut(&Batch) -> Result<Vec<f32>>,
    },
}

/// Gradients of every mini-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskGradients {
    /// Number of mini-batches (or rows).
    pub batches: usize,
    /// By layer `[batches, heads]`; empty where the layer has no heads or lies below the start.
    pub heads: Vec<Vec<f64>>,
    /// By layer `[batches, neurons]`; empty likewise.
    pub neurons: Vec<Vec<f64>>,
}

impl MaskGradients {
    /// Bytes of the numbers.
    fn bytes(&self) -> usize {
        self.heads.iter().chain(&self.neurons).map(|layer| size_of_val(layer.as_slice())).sum()
    }

    /// Σ_b g_b² for every unit: the importance of Mask-Tuning.
    pub fn fisher(&self) -> Importance {
        let squares = |layer: &Vec<f64>| {
            let mut sums = vec![0.0; layer.len() / self.batches.max(1)];
            for row in layer.chunks(sums.len().max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += g * g);
            }
            sums
        };
        Importance {
            heads: self.heads.iter().map(squares).collect(),
            neurons: self.neurons.iter().map(squares).collect(),
        }
    }
}

/// Importance of every unit, not negative: what methods rank units by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Importance {
    /// `[layers][heads]`
    pub heads: Vec<Vec<f64>>,
    /// `[layers][neurons]`
    pub neurons: Vec<Vec<f64>>,
}

impl Importance {
    /// Widths of the model it belongs to.
    pub fn widths(&self) -> Vec<LayerWidths> {
        let both = self.heads.iter().zip(&self.neurons);
        both.map(|(heads, neurons)| LayerWidths { heads: heads.len(), neurons: neurons.len() }).collect()
    }

    /// Fails on a value that is not finite, and where all are zero: then nothing tells one unit from another.
    pub fn check(&self) -> Result<()> {
        for (kind, layers) in [("head", &self.heads), ("neuron", &self.neurons)] {
            for (layer, values) in layers.iter().enumerate() {
                if let Some(unit) = values.iter().position(|value| !value.is_finite()) {
                    return Err(Error::NotFinite {
                        what: "importance".into(),
                        value: values[unit],
                        place: format!("of layer {layer}, {kind} {unit}"),
                    });
                }
            }
        }
        if self.heads.iter().chain(&self.neurons).flatten().all(|value| *value == 0.0) {
            return Err(Error::usage(
                "every mask gradient is zero, so no unit is more important than another: is the loss constant \
                 (a model that was not fine-tuned, one class only)?",
            ));
        }
        Ok(())
    }

    /// Sum of the importances of the units that `masks` keep.
    pub fn kept(&self, masks: &UnitMasks) -> f64 {
        let sum = |values: &[Vec<f64>], masks: &[Vec<f32>]| -> f64 {
            let pairs = values.iter().flatten().zip(masks.iter().flatten());
            pairs.filter(|(_, mask)| **mask != 0.0).map(|(value, _)| value).sum()
        };
        sum(&self.heads, &masks.heads) + sum(&self.neurons, &masks.neurons)
    }
}

/// Gradients at `masks`, without dropout. Fails on rows without the label the objective needs, on mini-batches without
/// a prediction, and on losses and gradients that are not finite.
pub fn mask_gradients(
    session: &mut Session,
    source: Source,
    grouping: Grouping,
    mut objective: Objective,
    masks: &UnitMasks,
    progress: &Progress,
) -> Result<MaskGradients> {
    let packed;
    let (batches, hidden, start, capacity) = match source {
        Source::Stream(stream) => {
            (stream.batches.as_slice(), Some(stream.hidden.as_slice()), stream.at, stream.capacity)
        }
        Source::Rows(examples) => {
            packed = forward_batches(examples, matches!(objective, Objective::Loss))?;
            (packed.0.as_slice(), None, 0, packed.1)
        }
    };
    let head = session.model().architecture.head;
    let distils = match &objective {
        Objective::Distillation { temperature, .. } if head != Head::Regression => Some(*temperature),
        _ => None,
    };
    let layers = session.model().config().layers.len();
    let options = EmitOptions {
        head_masks: true,
        neuron_masks: true,
        loss: distils.is_none(),
        distillation: distils,
        sublayers: (start > 0).then_some(start..2 * layers),
        ..EmitOptions::default()
    };
    let mode = Mode { dropout: false, gradients: false, mask_gradients: true };
    let mut memory = MemoryPlan::begin();
    let held = session.host_bytes();
    let prepared = session.prepare(mode, &options, capacity)?;
    session.write_masks(&prepared, masks)?;
    let groups = Groups::of(batches, grouping)?;
    let mut gradients = groups.zeros(&prepared);
    memory.add("activations and inputs", session.host_bytes() - held);
    memory.add("mask gradients", gradients.bytes());
    progress.plan_memory(&memory);

    let mut stage = progress.stage("mask gradients", batches.len() as u64, "batches");
    let mut values;
    for (index, batch) in batches.iter().enumerate() {
        progress.check(|| "mask gradients were not finished; nothing was written".into())?;
        let mut batch = batch;
        let with_teacher;
        let mut answers = None;
        if let Objective::Distillation { teacher, .. } = &mut objective {
            let logits = teacher(batch)?;
            if distils.is_some() {
                answers = Some(logits);
            } else {
                with_teacher = Batch { targets: Targets::Values(logits), ..batch.clone() };
                batch = &with_teacher;
            }
        }
        let extents = session.feed(&prepared, batch, Weighting::EachRow)?;
        if let (Some(slot), Some(hidden)) = (prepared.slots.inputs.hidden, hidden) {
            session.executor().write(prepared.id, slot, &hidden[index])?;
        }
        if let Some(logits) = answers {
            write_teacher(session, &prepared, batch, &extents, &logits)?;
        }
        session.run(&prepared, &extents)?;
        if prepared.slots.losses.is_some() {
            session.loss(&prepared, batch, Weighting::EachRow, &extents, || format!("in batch {index}"))?;
        }
        for (layer, slots) in prepared.slots.layers.iter().enumerate() {
            let kinds = [
                ("head", slots.head_mask_gradient, &mut gradients.heads[layer]),
                ("neuron", slots.neuron_mask_gradient, &mut gradients.neurons[layer]),
            ];
            for (kind, slot, into) in kinds {
                let Some(slot) = slot else { continue };
                values = session.read_wide(&prepared, slot, &extents)?;
                groups.add(batch, &values, into, |unit| format!("in layer {layer}, {kind} {unit}"))?;
            }
        }
        stage.advance(1);
    }
    Ok(gradients)
}

/// The rows packed into forward batches, and extents that hold them.
fn forward_batches(examples: &[Example], labelled: bool) -> Result<(Vec<Batch>, Extents)> {
    if examples.is_empty() {
        return Err(Error::usage("there are no calibration rows"));
    }
    if labelled && let Some(row) = examples.iter().position(|example| example.target == Target::None) {
        return Err(Error::usage(format!(
            "calibration row {row} has no label, and the gradient of a loss needs one"
        )));
    }
    let lengths: Vec<usize> = examples.iter().map(Example::length).collect();
    let packed = pack(&lengths, TOKEN_BUDGET);
    let batches = packed.iter().map(|rows| Batch::of(examples, rows)).collect::<Result<_>>()?;
    Ok((batches, session::capacity(&packed, &lengths)))
}

/// Predictions of each row of a batch: 1, of a language model its predicted tokens.
fn predictions(batch: &Batch) -> Vec<usize> {
    match &batch.targets {
        Targets::Tokens { positions, .. } => {
            let bound = |at: i32| positions.partition_point(|position| *position < at);
            batch.cu_seqlens.windows(2).map(|row| bound(row[1]) - bound(row[0])).collect()
        }
        _ => vec![1; batch.row_count()],
    }
}

fn write_teacher(
    session: &mut Session,
    prepared: &Prepared,
    batch: &Batch,
    extents: &Extents,
    logits: &[f32],
) -> Result<()> {
    let inputs = &prepared.slots.inputs;
    let (Some(slot), Some(weights)) = (inputs.teacher_logits, inputs.teacher_weights) else {
        return Ok(());
    };
    let counts = predictions(batch);
    let each: Vec<f32> =
        counts.iter().flat_map(|&count| std::iter::repeat_n(1.0 / count as f32, count)).collect();
    let classes = prepared.slots.program.slot(slot).cols;
    let rows = extents.of(prepared.slots.program.slot(slot).rows);
    if logits.len() != rows * classes {
        let message = format!("{} teacher logits for {rows} predictions of {classes} classes", logits.len());
        return Err(Error::shape("distillation", message));
    }
    session.executor().write(prepared.id, slot, logits)?;
    session.executor().write(prepared.id, weights, &each)
}

/// Which mini-batch a row belongs to, and how much it weighs in it.
struct Groups {
    rows: usize,
    /// Predictions of each mini-batch.
    totals: Vec<usize>,
}

impl Groups {
    fn of(batches: &[Batch], grouping: Grouping) -> Result<Groups> {
        let rows = match grouping {
            Grouping::MiniBatches(0) => return Err(Error::usage("a mini-batch of 0 rows")),
            Grouping::MiniBatches(rows) => rows,
            Grouping::Rows => 1,
        };
        let mut totals = Vec::new();
        for batch in batches {
            for (&row, count) in batch.rows.iter().zip(predictions(batch)) {
                totals.resize(totals.len().max(row / rows + 1), 0);
                totals[row / rows] += count;
            }
        }
        if let Some(group) = totals.iter().position(|total| *total == 0) {
            let message = format!("mini-batch {group} of the calibration rows has nothing to predict");
            return Err(Error::usage(message));
        }
        Ok(Groups { rows, totals })
    }

    fn zeros(&self, prepared: &Prepared) -> MaskGradients {
        let batches = self.totals.len();
        let zeros = |mask: Option<_>| {
            vec![0.0; mask.map_or(0, |slot| prepared.slots.program.slot(slot).cols) * batches]
        };
        let layers = &prepared.slots.layers;
        MaskGradients {
            batches,
            heads: layers.iter().map(|layer| zeros(layer.head_mask)).collect(),
            neurons: layers.iter().map(|layer| zeros(layer.neuron_mask)).collect(),
        }
    }

    /// Adds the rows' gradients `[B, units]` of a batch to their mini-batches' `[batches, units]`.
    fn add(
        &self,
        batch: &Batch,
        values: &[f64],
        into: &mut [f64],
        place: impl Fn(usize) -> String,
    ) -> Result<()> {
        let units = into.len() / self.totals.len();
        for ((&row, count), gradient) in batch.rows.iter().zip(predictions(batch)).zip(values.chunks(units)) {
            if let Some(unit) = gradient.iter().position(|value| !value.is_finite()) {
                return Err(Error::NotFinite {
                    what: "a mask gradient".into(),
                    value: gradient[unit],
                    place: format!("{} on calibration row {row}", place(unit)),
                });
            }
            let group = row / self.rows;
            let weight = count as f64 / self.totals[group] as f64;
            let sums = &mut into[group * units..(group + 1) * units];
            sums.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += weight * value);
        }
        Ok(())
    }
}
