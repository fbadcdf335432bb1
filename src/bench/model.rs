//! Whole models: forward passes and training steps, and where their time goes.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Seconds, Settings, Shape};
use crate::data::{Batch, Cursor, Dataset, Example, Step, Target, random};
use crate::error::{Error, Result};
use crate::exec::ProgramId;
use crate::model::{EmitOptions, Head, Logits};
use crate::program::cost::{self, Cost};
use crate::program::{Access, Extent, Extents, Mode, Op, Program};
use crate::progress::Progress;
use crate::session::{Session, Weighting};
use crate::train::stepper::Stepper as _;
use crate::train::{Recipe, Trainer};

/// One model, forward or training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelTimes {
    /// Model, "bert-base".
    pub model: String,
    /// "forward" or "training step".
    pub work: String,
    /// Mean tokens of a batch.
    pub tokens: f64,
    /// Sequences of a batch.
    pub sequences: usize,
    /// Seconds of a batch, the host's part included.
    pub seconds: Seconds,
    /// Mean floating-point operations of a batch.
    pub flops: f64,
    /// Bytes the executor holds.
    pub bytes_held: usize,
    /// Where the time goes, most expensive first.
    pub operations: Vec<OperationTime>,
}

impl ModelTimes {
    /// Tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens / self.seconds.median
    }
}

/// All operations of one kind and shape in a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationTime {
    /// Name and shape; for products the layout and m × n × k. T tokens, B sequences, R predicted positions.
    pub operation: String,
    /// How many there are.
    pub count: usize,
    /// Seconds of all of them in one run of the program, median over the runs.
    pub seconds: f64,
    /// Their floating-point operations.
    pub flops: u64,
    /// Bytes of their operands, each moved once, at four bytes an element.
    pub bytes: u64,
}

/// Forward pass and, where wished for, training step.
pub(super) fn measure(shape: Shape, settings: &Settings, progress: &Progress) -> Result<Vec<ModelTimes>> {
    let model = shape.model(settings.seed)?;
    let causal = model.architecture.head == Head::CausalLm;
    let data = examples(model.config().vocab, settings, causal);
    let mut times = Vec::new();

    let stage = progress.stage(&format!("{} forward", shape.name()), 0, "");
    let mut session = Session::new(model.clone(), settings.device)?;
    times.push(forward(shape, &mut session, &data, settings)?);
    drop(session);
    stage.finish();
    if settings.training {
        progress.check(|| "nothing was written".into())?;
        let stage = progress.stage(&format!("{} training", shape.name()), 0, "");
        let mut session = Session::new(model, settings.device)?;
        times.push(training(shape, &mut session, data, settings)?);
        stage.finish();
    }
    Ok(times)
}

/// Random rows of the wished lengths. Every token is another random word, as in text; labels are random.
fn examples(vocabulary: usize, settings: &Settings, causal: bool) -> Vec<Example> {
    let mut stream = random::Stream::new(settings.seed, random::Purpose::Bench, 0);
    let rows = settings.lengths.iter().map(|&length| {
        let input_ids: Vec<i32> = (0..length).map(|_| stream.below(vocabulary) as i32).collect();
        let target = if causal { Target::NextToken } else { Target::Class(stream.below(2) as u32) };
        Example { token_type_ids: vec![0; length], input_ids, target }
    });
    rows.collect()
}

/// Batches of consecutive rows.
fn batches(rows: usize, settings: &Settings) -> Vec<Vec<usize>> {
    let whole = rows / settings.sequences * settings.sequences;
    (0..whole).collect::<Vec<_>>().chunks(settings.sequences).map(<[usize]>::to_vec).collect()
}

/// The extents no batch exceeds.
fn capacity(data: &[Example], batches: &[Vec<usize>]) -> Result<Extents> {
    let mut capacity = Extents::default();
    for rows in batches {
        let batch = Batch::of(data, rows)?;
        capacity.tokens = capacity.tokens.max(batch.token_count());
        capacity.sequences = capacity.sequences.max(batch.row_count());
        capacity.longest = capacity.longest.max(batch.longest_row());
        capacity.targets = capacity.targets.max(batch.targets.len());
    }
    Ok(capacity)
}

fn forward(shape: Shape, session: &mut Session, data: &[Example], settings: &Settings) -> Result<ModelTimes> {
    let batches = batches(data.len(), settings);
    let options = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
    let prepared = session.prepare(Mode::EVALUATE, &options, capacity(data, &batches)?)?;
    let logits = prepared.slots.logits;
    let mut seconds = Vec::new();
    let mut out = Vec::new();
    for run in 0..settings.repeats + 2 {
        let batch = Batch::of(data, &batches[run % batches.len()])?;
        let start = Instant::now();
        let extents = session.feed(&prepared, &batch, Weighting::EachRow)?;
        session.run(&prepared, &extents)?;
        match logits {
            // Logits of a whole language-model batch are hundreds of megabytes that nobody copies to the host.
            Some(slot) if shape != Shape::Gpt2 => session.read(&prepared, slot, &extents, &mut out)?,
            _ => session.executor().synchronize()?,
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    let feed = |session: &mut Session, run: usize| {
        let batch = Batch::of(data, &batches[run % batches.len()])?;
        session.feed(&prepared, &batch, Weighting::EachRow)
    };
    let (operations, flops) = times_of(session, prepared.id, settings, feed)?;
    Ok(ModelTimes {
        model: shape.name().into(),
        work: "forward".into(),
        tokens: mean_tokens(data, &batches),
        sequences: settings.sequences,
        seconds: Seconds::of(seconds.split_off(2)),
        flops,
        bytes_held: session.executor().allocated_bytes(),
        operations,
    })
}

fn training(
    shape: Shape,
    session: &mut Session,
    data: Vec<Example>,
    settings: &Settings,
) -> Result<ModelTimes> {
    let batches = batches(data.len(), settings);
    let capacity = capacity(&data, &batches)?;
    let data = Dataset { examples: data, ..Dataset::default() };
    let recipe = Recipe { batch_size: settings.sequences, ..Recipe::default() };
    let total = settings.repeats as u64 + 2;
    let mut trainer = Trainer::new(session, &recipe, settings.seed, total, capacity)?;
    let mut seconds = Vec::new();
    for run in 0..settings.repeats + 2 {
        let rows = batches[run % batches.len()].clone();
        let step = Step { cursor: Cursor { epoch: 0, step: run as u64 }, micro_batches: vec![rows] };
        let start = Instant::now();
        trainer.run(session, &data, &step)?;
        session.executor().synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let prepared = trainer.program().clone();
    let feed = |session: &mut Session, run: usize| {
        let batch = Batch::of(&data.examples, &batches[run % batches.len()])?;
        session.write_dropout_key(&prepared, settings.seed, run as u64)?;
        session.feed(&prepared, &batch, Weighting::Mean { total: batch.targets.len() })
    };
    let (mut operations, flops) = times_of(session, prepared.id, settings, feed)?;
    for id in trainer.update_programs() {
        operations.extend(times_of(session, id, settings, |_, _| Ok(Extents::default()))?.0);
    }
    operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(ModelTimes {
        model: shape.name().into(),
        work: "training step".into(),
        tokens: mean_tokens(&data.examples, &batches),
        sequences: settings.sequences,
        seconds: Seconds::of(seconds.split_off(2)),
        flops,
        bytes_held: session.executor().allocated_bytes(),
        operations,
    })
}

fn mean_tokens(data: &[Example], batches: &[Vec<usize>]) -> f64 {
    let tokens: usize = batches.iter().flatten().map(|&row| data[row].length()).sum();
    tokens as f64 / batches.len().max(1) as f64
}

/// Runs a program several times with a clock on each operation; the operations by kind and shape, and the mean number of
/// floating-point operations of a run.
fn times_of(
    session: &mut Session,
    id: ProgramId,
    settings: &Settings,
    mut feed: impl FnMut(&mut Session, usize) -> Result<Extents>,
) -> Result<(Vec<OperationTime>, f64)> {
    let runs = settings.repeats.clamp(1, 9);
    let program = session.executor().program(id).clone();
    let mut all: Vec<Vec<f64>> = vec![Vec::with_capacity(runs); program.ops().len()];
    let mut costs = vec![Cost::default(); program.ops().len()];
    for run in 0..runs + 1 {
        let extents = feed(session, run)?;
        let mut seconds = Vec::with_capacity(program.ops().len());
        session.executor().run_timed(id, &extents, &mut seconds)?;
        if seconds.len() != program.ops().len() {
            return Err(Error::shape(program.name(), "was not timed operation by operation"));
        }
        if run == 0 {
            continue; // warm-up
        }
        for ((op, seconds), (values, cost)) in
            program.ops().iter().zip(&seconds).zip(all.iter_mut().zip(&mut costs))
        {
            values.push(*seconds);
            *cost += cost::of_op(&program, op, &extents);
        }
    }
    let mut grouped: BTreeMap<String, OperationTime> = BTreeMap::new();
    let mut flops = 0;
    for ((op, values), cost) in program.ops().iter().zip(all).zip(costs) {
        let operation = kind(&program, op);
        flops += cost.flops;
        let entry = grouped.entry(operation.clone()).or_insert(OperationTime {
            operation,
            count: 0,
            seconds: 0.0,
            flops: 0,
            bytes: 0,
        });
        entry.count += 1;
        entry.seconds += Seconds::of(values).median;
        entry.flops += cost.flops / runs as u64;
        entry.bytes += cost.bytes / runs as u64;
    }
    let mut operations: Vec<OperationTime> = grouped.into_values().collect();
    operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok((operations, flops as f64 / runs as f64))
}

/// Name and shape of an operation, without the names of its slots: equal for the same operation of all layers.
fn kind(program: &Program, op: &Op) -> String {
    let rows = |slot| match program.slot(slot).rows {
        Extent::Fixed(rows) => rows.to_string(),
        Extent::Tokens => "T".into(),
        Extent::Sequences => "B".into(),
        Extent::Boundaries => "B+1".into(),
        Extent::Targets => "R".into(),
        Extent::Samples => "S".into(),
    };
    if let Op::Gemm { a, transpose_a, transpose_b, c, epilogue, .. } = op {
        let letter = |transposed: bool| if transposed { 't' } else { 'n' };
        let inner = if *transpose_a { rows(*a) } else { program.slot(*a).cols.to_string() };
        let mut text = format!(
            "gemm {}{} {}×{}×{inner}",
            letter(*transpose_a),
            letter(*transpose_b),
            rows(*c),
            program.slot(*c).cols
        );
        let parts = [
            ("bias", epilogue.bias.is_some()),
            ("accumulate", epilogue.accumulate),
            ("activation", epilogue.activation.is_some()),
            ("mask", epilogue.neuron_mask.is_some()),
            ("dropout", epilogue.dropout.is_some()),
            ("residual", epilogue.residual.is_some()),
        ];
        for (name, _) in parts.iter().filter(|(_, there)| *there) {
            text.push_str(" + ");
            text.push_str(name);
        }
        return text;
    }
    let mut shape = None;
    op.visit(|slot, access| {
        // The first result tells most; what writes none (the optimiser) is told by its name.
        if access != Access::Read && shape.is_none() {
            shape = Some(format!(" {}×{}", rows(slot), program.slot(slot).cols));
        }
    });
    op.name().to_owned() + &shape.unwrap_or_default()
}
