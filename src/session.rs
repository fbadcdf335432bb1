//! A model on an executor: batches in, results out.
//!
//! Training, evaluation, calibration and the parity tool all need the same few steps: emit a program for the model,
//! prepare it for a capacity, write a batch to its inputs, run, read. They stand here once.

use std::sync::Arc;

use crate::cuda::{self, Cuda};
use crate::data::batch::ModelLimits;
use crate::data::{Batch, Targets};
use crate::error::{Error, Result};
use crate::exec::{Block, Cpu, DeviceExecutor, Emulated, Executor, ProgramId, Reference};
use crate::launch::Precision;
use crate::model::{self, EmitOptions, Head, Model, ModelProgram, UnitMasks, WeightMasks};
use crate::ops::gemm::Factors;
use crate::program::{Builder, Extents, MaskFunction, Mode, Op, ParameterLayout, Plan, SlotId};

/// Which executor runs a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Device {
    /// f32 on all cores.
    #[default]
    Cpu,
    /// The same, with the factors of products rounded to bf16: several times as fast on processors with matrix tiles.
    CpuBf16,
    /// f64, slow.
    Reference,
    /// An NVIDIA GPU.
    Cuda {
        /// Its number.
        ordinal: usize,
        /// What products and activations are computed in.
        precision: Precision,
    },
    /// The GPU's kernels without a GPU, every access checked; very slow.
    Emulated {
        /// As on a GPU.
        precision: Precision,
    },
}

impl Device {
    /// The first GPU if it can be used, the CPU and the reason if not.
    pub fn best(precision: Precision) -> (Device, Option<Error>) {
        match cuda::usable(0) {
            Ok(_) => (Device::Cuda { ordinal: 0, precision }, None),
            Err(reason) if precision == Precision::Bf16 => (Device::CpuBf16, Some(reason)),
            Err(reason) => (Device::Cpu, Some(reason)),
        }
    }

    /// An executor on it, with zeroed parameters.
    pub fn executor(self, layout: Arc<ParameterLayout>) -> Result<Box<dyn Executor>> {
        Ok(match self {
            Device::Cpu => Box::new(Cpu::new(layout)),
            Device::CpuBf16 => Box::new(Cpu::with_factors(layout, Factors::Bf16)),
            Device::Reference => Box::new(Reference::new(layout)),
            Device::Cuda { ordinal, precision } => {
                let gpu = Cuda::open(ordinal, cuda::Cache::of_user())?;
                Box::new(DeviceExecutor::new(gpu, "cuda", layout, precision)?)
            }
            Device::Emulated { precision } => {
                Box::new(DeviceExecutor::new(Emulated::new(0)?, "emulated", layout, precision)?)
            }
        })
    }

    /// Where the numeric steps of pruning run: on the device, but in f32 whatever the precision of its products is, so
    /// that a choice of units does not depend on it more than through the activations.
    pub fn for_similarities(self) -> Device {
        match self {
            Device::Cpu | Device::CpuBf16 | Device::Reference => Device::Cpu,
            Device::Cuda { ordinal, .. } => Device::Cuda { ordinal, precision: Precision::F32 },
            Device::Emulated { .. } => Device::Emulated { precision: Precision::F32 },
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::CpuBf16 => f.write_str("cpu bf16"),
            Device::Reference => f.write_str("reference"),
            Device::Cuda { ordinal, precision } => write!(f, "cuda:{ordinal} {}", precision.name()),
            Device::Emulated { precision } => write!(f, "emulated {}", precision.name()),
        }
    }
}

/// How the losses of a batch's rows (or predicted tokens) are weighted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Weighting {
    /// Each by 1 / `total`: the mean over an optimiser step, of which a batch may be only a part.
    Mean {
        /// Rows (or predicted tokens) of the whole step.
        total: usize,
    },
    /// Each row by itself: weights of a row sum to 1. What per-example mask gradients and losses are defined by.
    EachRow,
}

/// A program of this session's model with its named slots.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its number within the executor.
    pub id: ProgramId,
    /// The program's inputs and outputs.
    pub slots: Arc<ModelProgram>,
}

/// A model loaded on an executor.
pub struct Session {
    model: Model,
    executor: Box<dyn Executor>,
    /// Weights of the batch fed last.
    floats: Vec<f32>,
    /// Derived from the batch being fed; kept, as `losses` is, so that a step allocates nothing.
    ints: Vec<i32>,
    losses: Vec<f32>,
    /// The bits of the weight masks on their way to the executor, and the program that applies them.
    mask_words: Vec<u64>,
    mask_program: Option<ProgramId>,
}

impl Session {
    /// Moves a model to an executor.
    pub fn new(mut model: Model, device: Device) -> Result<Session> {
        let values = std::mem::take(&mut model.values);
        Session::start(model, &values, device)
    }

    /// Copies a model's parameters to an executor.
    pub fn of(model: &Model, device: Device) -> Result<Session> {
        let Model { architecture, values, report } = model;
        let (architecture, report) = (architecture.clone(), report.clone());
        Session::start(Model { architecture, values: Vec::new(), report }, values, device)
    }

    /// Moves a model to an executor, to stay as it is but for weight masks: [`Session::apply_weight_masks`] switches
    /// between those of any number of tasks. The executor holds the matrices of the layers a second time.
    pub fn frozen(mut model: Model, device: Device) -> Result<Session> {
        let matrices: Vec<_> = model.architecture.layer_matrices().iter().map(|matrix| matrix.id).collect();
        model.architecture.set_trainable(|_| false);
        Arc::make_mut(&mut model.architecture.layout).set_masked(&matrices);
        let values = std::mem::take(&mut model.values);
        let weights = Block::Weights.stretch(model.layout());
        let mut session = Session::start(model, &values, device)?;
        session.executor.write_block(Block::Weights, &values[weights])?;
        Ok(session)
    }

    /// Moves a model to `executor`, which is over its layout.
    pub fn on(mut model: Model, executor: Box<dyn Executor>) -> Result<Session> {
        let values = std::mem::take(&mut model.values);
        Session::over(model, &values, executor)
    }

    fn start(model: Model, values: &[f32], device: Device) -> Result<Session> {
        let executor = device.executor(model.layout().clone())?;
        Session::over(model, values, executor)
    }

    fn over(model: Model, values: &[f32], mut executor: Box<dyn Executor>) -> Result<Session> {
        executor.write_block(Block::Parameters, values)?;
        let (floats, ints, losses) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Session { model, executor, floats, ints, losses, mask_words: Vec::new(), mask_program: None })
    }

    /// The model without its values: the executor holds the only copy until [`Session::into_model`].
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The executor.
    pub fn executor(&mut self) -> &mut dyn Executor {
        self.executor.as_mut()
    }

    /// Bytes of this process's memory that the executor holds (blocks, arena, inputs); a GPU's are not this process's.
    pub fn host_bytes(&self) -> usize {
        if self.executor.name() == "cuda" { 0 } else { self.executor.allocated_bytes() }
    }

    /// Takes the model back with the parameters the executor holds now.
    pub fn into_model(mut self) -> Result<Model> {
        self.model.values = self.executor.read_block(Block::Parameters)?;
        Ok(self.model)
    }

    /// Emits and prepares a program for batches up to `capacity`.
    pub fn prepare(&mut self, mode: Mode, options: &EmitOptions, capacity: Extents) -> Result<Prepared> {
        let slots = Arc::new(self.model.architecture.emit(mode, options)?);
        let id = self.executor.prepare(Arc::new(slots.program.clone()), capacity)?;
        Ok(Prepared { id, slots })
    }

    /// The memory plan of a prepared program.
    pub fn plan(&self, prepared: &Prepared) -> &Plan {
        self.executor.plan(prepared.id)
    }

    /// Writes head and neuron masks to a program emitted with masks.
    pub fn write_masks(&mut self, prepared: &Prepared, masks: &UnitMasks) -> Result<()> {
        for (slot, values) in prepared.slots.mask_inputs(masks)? {
            self.executor.write(prepared.id, slot, values)?;
        }
        Ok(())
    }

    /// Makes a frozen model ([`Session::frozen`]) serve the task whose masks these are: in the matrices of the layers what
    /// they do not keep is 0 from now on, everything else is as it was loaded, whatever masks were applied before. A
    /// matrix without a mask is whole. Fails, before anything is changed, where the masks do not fit the model.
    pub fn apply_weight_masks(&mut self, masks: &WeightMasks) -> Result<()> {
        let places = masks.places(&self.model.architecture)?;
        let layout = self.model.layout().clone();
        let stray = places.iter().zip(&masks.matrices).find(|(id, _)| !layout.get(**id).masked);
        if let Some((_, mask)) = stray {
            let message =
                "is of a matrix whose masks cannot be switched: those of the layers of a frozen model can";
            return Err(Error::shape(format!("mask {}", mask.name), message));
        }
        let start = Block::Weights.stretch(&layout).start;
        self.mask_words.clear();
        self.mask_words.resize(Block::Weights.stretch(&layout).len().div_ceil(64), u64::MAX);
        for (mask, id) in masks.matrices.iter().zip(places) {
            // Parameters begin at whole words.
            let parameter = layout.get(id);
            let bits = mask.padded_bits(parameter.ld());
            self.mask_words[(parameter.offset - start) / 64..][..bits.len()].copy_from_slice(&bits);
        }
        self.executor.write_masks(&self.mask_words)?;
        let program = match self.mask_program {
            Some(program) => program,
            None => {
                let mut builder = Builder::new("apply weight masks", layout, Mode::EVALUATE);
                builder.emit(Op::ApplyMasks { function: MaskFunction::Bits, key: None });
                let program = self.executor.prepare(Arc::new(builder.finish()), Extents::default())?;
                *self.mask_program.insert(program)
            }
        };
        self.executor.run(program, &Extents::default())
    }

    /// Sets the random key of dropout: `draw` must differ for every forward pass of a run.
    pub fn write_dropout_key(&mut self, prepared: &Prepared, seed: u64, draw: u64) -> Result<()> {
        let Some(slot) = prepared.slots.inputs.dropout_key else { return Ok(()) };
        let words = [seed as u32 as i32, (seed >> 32) as u32 as i32, draw as u32 as i32];
        self.executor.write_ints(prepared.id, slot, &words)
    }

    /// Writes a batch to the inputs of a program; returns its extents. Token ids and lengths are checked against the
    /// model: out-of-range values are errors, never reads out of bounds.
    pub fn feed(&mut self, prepared: &Prepared, batch: &Batch, weighting: Weighting) -> Result<Extents> {
        batch.check(&limits(&self.model))?;
        check_targets(&self.model, batch)?;
        let Session { executor, floats, ints, model, .. } = self;
        let (id, inputs) = (prepared.id, &prepared.slots.inputs);
        let mut write = |slot: Option<SlotId>, values: &[i32]| match slot {
            Some(slot) => executor.write_ints(id, slot, values),
            None => Ok(()),
        };
        write(inputs.input_ids, &batch.input_ids)?;
        write(Some(inputs.cu_seqlens), &batch.cu_seqlens)?;
        write(inputs.token_type_ids, &batch.token_type_ids)?;
        model::positions(model.config(), &batch.cu_seqlens, ints)?;
        write(inputs.positions, ints)?;
        if inputs.sequences.is_some() {
            ints.clear();
            for (row, bounds) in (0..).zip(batch.cu_seqlens.windows(2)) {
                ints.resize(bounds[1] as usize, row);
            }
            write(inputs.sequences, ints)?;
        }
        let mut targets = 0;
        if let Targets::Tokens { positions, labels } = &batch.targets {
            write(inputs.rows, positions)?;
            write(inputs.labels, labels)?;
            targets = positions.len();
        } else {
            model.architecture.answer_rows(&batch.input_ids, &batch.cu_seqlens, ints)?;
            write(inputs.rows, ints)?;
        }
        match &batch.targets {
            Targets::Classes(classes) => write(inputs.labels, classes)?,
            Targets::Spans { starts, ends } => {
                write(inputs.starts, starts)?;
                write(inputs.ends, ends)?;
            }
            Targets::Values(values) => {
                if let Some(slot) = inputs.targets {
                    executor.write(id, slot, values)?;
                }
            }
            Targets::Tokens { .. } | Targets::None => {}
        }
        if let Some(slot) = inputs.weights {
            fill_weights(batch, weighting, floats);
            executor.write(id, slot, floats)?;
        }
        Ok(Extents {
            tokens: batch.token_count(),
            sequences: batch.row_count(),
            targets,
            samples: 0,
            longest: batch.longest_row(),
        })
    }

    /// Runs a program on what was fed.
    pub fn run(&mut self, prepared: &Prepared, extents: &Extents) -> Result<()> {
        self.executor.run(prepared.id, extents)
    }

    /// Reads a slot as dense rows.
    pub fn read(
        &self,
        prepared: &Prepared,
        slot: SlotId,
        extents: &Extents,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.executor.read(prepared.id, slot, extents, out)
    }

    /// Reads a slot without narrowing.
    pub fn read_wide(&self, prepared: &Prepared, slot: SlotId, extents: &Extents) -> Result<Vec<f64>> {
        self.executor.read_wide(prepared.id, slot, extents)
    }

    /// The weighted sum of the batch's losses; an error naming `place` if it is not finite.
    pub fn loss(
        &mut self,
        prepared: &Prepared,
        batch: &Batch,
        weighting: Weighting,
        extents: &Extents,
        place: impl FnOnce() -> String,
    ) -> Result<f64> {
        let Some(losses) = prepared.slots.losses else {
            return Err(Error::shape(prepared.slots.program.name(), "was emitted without a loss"));
        };
        self.executor.read(prepared.id, losses, extents, &mut self.losses)?;
        fill_weights(batch, weighting, &mut self.floats);
        let loss: f64 =
            self.losses.iter().zip(&self.floats).map(|(l, w)| f64::from(*l) * f64::from(*w)).sum();
        if !loss.is_finite() {
            return Err(Error::NotFinite { what: "the loss".into(), value: loss, place: place() });
        }
        Ok(loss)
    }
}

/// Extents that hold every batch of rows of the given `lengths`, each of their tokens predicted.
pub fn capacity(batches: &[Vec<usize>], lengths: &[usize]) -> Extents {
    let mut capacity = Extents::default();
    for rows in batches {
        let lengths = rows.iter().map(|&row| lengths[row]);
        capacity.longest = capacity.longest.max(lengths.clone().max().unwrap_or(0));
        capacity.tokens = capacity.tokens.max(lengths.sum());
        capacity.sequences = capacity.sequences.max(rows.len());
    }
    Extents { targets: capacity.tokens, ..capacity }
}

/// Weight of each row (of each predicted token for language models).
fn fill_weights(batch: &Batch, weighting: Weighting, out: &mut Vec<f32>) {
    out.clear();
    let count = batch.targets.len();
    match (weighting, &batch.targets) {
        (Weighting::Mean { total }, _) => out.resize(count, 1.0 / total.max(1) as f32),
        (Weighting::EachRow, Targets::Tokens { positions, .. }) => {
            for row in batch.cu_seqlens.windows(2) {
                let inside = positions.iter().filter(|p| (row[0]..row[1]).contains(p)).count();
                out.extend(std::iter::repeat_n(1.0 / inside.max(1) as f32, inside));
            }
        }
        (Weighting::EachRow, _) => out.resize(count, 1.0),
    }
}

/// What `model` can take.
pub fn limits(model: &Model) -> ModelLimits {
    let config = model.config();
    ModelLimits {
        vocabulary_size: config.vocab,
        max_positions: config.max_length(),
        segments: config.type_vocab,
    }
}

/// Labels index rows of logits: out-of-range ones are errors here, not reads out of bounds there.
fn check_targets(model: &Model, batch: &Batch) -> Result<()> {
    let wrong = |row: usize, message: String| Err(Error::shape(format!("row {row}"), message));
    let classes = match model.architecture.head {
        Head::Classification { labels } => labels,
        _ => model.config().vocab,
    };
    match &batch.targets {
        Targets::Classes(labels) | Targets::Tokens { labels, .. } => {
            let bad =
                labels.iter().position(|&l| l != -100 && usize::try_from(l).map_or(true, |l| l >= classes));
            if let Some(at) = bad {
                return wrong(
                    at,
                    format!("the label {} is not one of the model's {classes} classes", labels[at]),
                );
            }
        }
        Targets::Spans { starts, ends } => {
            for (row, bounds) in batch.cu_seqlens.windows(2).enumerate() {
                let length = bounds[1] - bounds[0];
                let inside = |position: i32| (0..length).contains(&position);
                if !inside(starts[row]) || !inside(ends[row]) {
                    let span = format!("{}..={}", starts[row], ends[row]);
                    return wrong(row, format!("the answer span {span} is not inside its {length} tokens"));
                }
            }
        }
        Targets::Values(values) => {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return wrong(at, format!("the regression target is {}", values[at]));
            }
        }
        Targets::None => {}
    }
    Ok(())
}
