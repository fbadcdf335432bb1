//! What a model computes on given tokens, tensor by tensor: the tool for checking parity against anything.
//!
//! Tensors hold the valid tokens of all rows, in the order of the rows: `logits`, `hidden.N` (output of the
//! embeddings, then of every layer), `ctx.N` and `ffn.N` (inputs of the attention output projection and of the FFN
//! down-projection), `loss`, `loss_per_row`, `grad/<parameter>` of the mean loss, and
//! `dhead_per_example`, `dneuron_per_example`: gradients of each row's own loss by the masks, `[rows, layers, units]`
//! (layers of different width are padded with zeros).

use std::collections::BTreeMap;

use crate::data::{Batch, Example, Target};
use crate::error::{Error, Result};
use crate::model::{EmitOptions, Head, Logits};
use crate::program::{Extents, Mode, SlotId};
use crate::progress::Progress;
use crate::prune::UnitMasks;
use crate::session::{self, Prepared, Session, Weighting};
use crate::train::update::zero_gradients;

/// What to compute besides the forward pass.
#[derive(Clone, Debug, Default)]
pub struct DumpOptions {
    /// Masks to apply.
    pub masks: Option<UnitMasks>,
    /// Gradients of the mean loss by every parameter.
    pub gradients: bool,
    /// Gradients of each row's loss by every mask entry.
    pub mask_gradients: bool,
    /// Hidden states, contexts and activations.
    pub hooks: bool,
    /// Most tokens of a batch; a longer row is a batch of its own.
    pub token_budget: usize,
}

/// A tensor: shape and values.
pub type Dumped = (Vec<usize>, Vec<f64>);

/// Runs the rows. Language models without labels are asked for the next token.
pub fn dump(
    session: &mut Session,
    mut examples: Vec<Example>,
    options: &DumpOptions,
    progress: &Progress,
) -> Result<BTreeMap<String, Dumped>> {
    let head = session.model().architecture.head;
    if head == Head::CausalLm {
        examples.iter_mut().for_each(|example| example.target = Target::NextToken);
    }
    let labelled = examples.iter().all(|example| example.target != Target::None) && head != Head::Backbone;
    if (options.gradients || options.mask_gradients) && !labelled {
        return Err(Error::usage("gradients need labels in the inputs and a model with a head"));
    }
    let batches = consecutive(&examples, options.token_budget);
    let lengths: Vec<usize> = examples.iter().map(Example::length).collect();
    let capacity = session::capacity(&batches, &lengths);
    let mut tensors = BTreeMap::new();
    forward(session, &examples, &batches, capacity, labelled, options, progress, &mut tensors)?;
    if options.gradients {
        gradients(session, &examples, &batches, capacity, options, progress, &mut tensors)?;
    }
    if options.mask_gradients {
        mask_gradients(session, &examples, &batches, capacity, options, progress, &mut tensors)?;
    }
    Ok(tensors)
}

/// Rows in their order, cut where a batch would exceed the budget.
fn consecutive(examples: &[Example], budget: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for (row, example) in examples.iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if tokens + example.length() <= budget => batch.push(row),
            _ => {
                batches.push(vec![row]);
                tokens = 0;
            }
        }
        tokens += example.length();
    }
    batches
}

/// Emits and prepares; masks given or needed are written, ones where none were given.
fn prepare(
    session: &mut Session,
    mode: Mode,
    mut emit: EmitOptions,
    capacity: Extents,
    masks: &Option<UnitMasks>,
) -> Result<Prepared> {
    let needed = masks.is_some() || mode.mask_gradients;
    (emit.head_masks, emit.neuron_masks) = (needed, needed);
    let prepared = session.prepare(mode, &emit, capacity)?;
    if needed {
        let widths = session.model().config().widths();
        let ones = UnitMasks::ones(&widths);
        let masks = masks.as_ref().unwrap_or(&ones);
        masks.check_widths(&widths)?;
        session.write_masks(&prepared, masks)?;
    }
    Ok(prepared)
}

fn forward(
    session: &mut Session,
    examples: &[Example],
    batches: &[Vec<usize>],
    capacity: Extents,
    labelled: bool,
    options: &DumpOptions,
    progress: &Progress,
    tensors: &mut BTreeMap<String, Dumped>,
) -> Result<()> {
    let backbone = session.model().architecture.head == Head::Backbone;
    let emit = EmitOptions {
        loss: labelled,
        logits: if backbone { Logits::None } else { Logits::All },
        keep_hidden: options.hooks,
        keep_hooks: options.hooks,
        ..EmitOptions::default()
    };
    let prepared = prepare(session, Mode::EVALUATE, emit, capacity, &options.masks)?;
    let slots = prepared.slots.clone();
    let mut wanted: Vec<(String, SlotId)> =
        slots.logits.map(|slot| ("logits".into(), slot)).into_iter().collect();
    if options.hooks {
        wanted.extend(slots.hidden.iter().enumerate().map(|(i, &slot)| (format!("hidden.{i}"), slot)));
        for (i, layer) in slots.layers.iter().enumerate() {
            wanted.extend(layer.context.map(|slot| (format!("ctx.{i}"), slot)));
            wanted.extend(layer.activation.map(|slot| (format!("ffn.{i}"), slot)));
        }
    }
    let mut stage = progress.stage("forward", examples.len() as u64, "rows");
    let (mut per_row, mut sum, mut predictions) = (Vec::new(), 0.0, 0);
    let mut batch = Batch::default();
    for rows in batches {
        progress.check(|| "nothing was written".into())?;
        batch.fill(examples, rows)?;
        let extents = session.feed(&prepared, &batch, Weighting::EachRow)?;
        session.run(&prepared, &extents)?;
        for (name, slot) in &wanted {
            let values = session.read_wide(&prepared, *slot, &extents)?;
            let cols = slots.program.slot(*slot).cols;
            let (shape, all) = tensors.entry(name.clone()).or_insert_with(|| (vec![0, cols], Vec::new()));
            shape[0] += values.len().checked_div(cols).unwrap_or(0);
            all.extend(values);
        }
        if let (true, Some(slot)) = (labelled, slots.losses) {
            let losses = session.read_wide(&prepared, slot, &extents)?;
            sum += losses.iter().sum::<f64>();
            predictions += losses.len();
            per_row.extend(row_means(&batch, &losses));
        }
        stage.advance(rows.len() as u64);
    }
    if labelled {
        let mean = sum / predictions.max(1) as f64;
        if !mean.is_finite() {
            return Err(Error::NotFinite {
                what: "the loss".into(),
                value: mean,
                place: "of the inputs".into(),
            });
        }
        tensors.insert("loss".into(), (vec![1], vec![mean]));
        tensors.insert("loss_per_row".into(), (vec![per_row.len()], per_row));
    }
    Ok(())
}

/// Mean loss of each row: its loss, or the mean over its predicted tokens.
fn row_means(batch: &Batch, losses: &[f64]) -> Vec<f64> {
    let crate::data::Targets::Tokens { positions, .. } = &batch.targets else { return losses.to_vec() };
    let mut at = 0;
    let rows = batch.cu_seqlens.windows(2);
    rows.map(|bounds| {
        let start = at;
        at += positions[at..].iter().take_while(|&&p| p < bounds[1]).count();
        losses[start..at].iter().sum::<f64>() / (at - start).max(1) as f64
    })
    .collect()
}

fn gradients(
    session: &mut Session,
    examples: &[Example],
    batches: &[Vec<usize>],
    capacity: Extents,
    options: &DumpOptions,
    progress: &Progress,
    tensors: &mut BTreeMap<String, Dumped>,
) -> Result<()> {
    let mode = Mode { dropout: false, gradients: true, mask_gradients: false };
    let emit = EmitOptions { loss: true, ..EmitOptions::default() };
    let prepared = prepare(session, mode, emit, capacity, &options.masks)?;
    let layout = session.model().layout().clone();
    let zero = session.executor().prepare(zero_gradients(layout.clone()), Extents::default())?;
    session.executor().run(zero, &Extents::default())?;
    let mut batch = Batch::default();
    let mut total = 0;
    for rows in batches {
        batch.fill(examples, rows)?;
        total += batch.targets.len();
    }
    let mut stage = progress.stage("gradients", examples.len() as u64, "rows");
    let mut last = Extents::default();
    for rows in batches {
        progress.check(|| "nothing was written".into())?;
        batch.fill(examples, rows)?;
        last = session.feed(&prepared, &batch, Weighting::Mean { total })?;
        session.run(&prepared, &last)?;
        stage.advance(rows.len() as u64);
    }
    for (_, parameter) in layout.iter() {
        // A parameter the loss does not depend on has no gradient slot.
        let Some(slot) = prepared.slots.program.find(&format!("d {}", parameter.name)) else { continue };
        let values = session.read_wide(&prepared, slot, &last)?;
        let shape =
            if parameter.vector { vec![parameter.cols] } else { vec![parameter.rows, parameter.cols] };
        tensors.insert(format!("grad/{}", parameter.name), (shape, values));
    }
    Ok(())
}

fn mask_gradients(
    session: &mut Session,
    examples: &[Example],
    batches: &[Vec<usize>],
    capacity: Extents,
    options: &DumpOptions,
    progress: &Progress,
    tensors: &mut BTreeMap<String, Dumped>,
) -> Result<()> {
    let mode = Mode { dropout: false, gradients: false, mask_gradients: true };
    let emit = EmitOptions { loss: true, ..EmitOptions::default() };
    let prepared = prepare(session, mode, emit, capacity, &options.masks)?;
    let layers = prepared.slots.layers.clone();
    let widths = session.model().config().widths();
    let heads = widths.iter().map(|w| w.heads).max().unwrap_or(0);
    let neurons = widths.iter().map(|w| w.neurons).max().unwrap_or(0);
    let mut by_head = vec![0.0; examples.len() * layers.len() * heads];
    let mut by_neuron = vec![0.0; examples.len() * layers.len() * neurons];
    let mut stage = progress.stage("mask gradients", examples.len() as u64, "rows");
    let mut batch = Batch::default();
    for rows in batches {
        progress.check(|| "nothing was written".into())?;
        batch.fill(examples, rows)?;
        let extents = session.feed(&prepared, &batch, Weighting::EachRow)?;
        session.run(&prepared, &extents)?;
        for (layer, slots) in layers.iter().enumerate() {
            for (slot, units, all) in [
                (slots.head_mask_gradient, heads, &mut by_head),
                (slots.neuron_mask_gradient, neurons, &mut by_neuron),
            ] {
                let Some(slot) = slot else { continue };
                let values = session.read_wide(&prepared, slot, &extents)?;
                let width = values.len() / rows.len();
                for (&row, gradient) in rows.iter().zip(values.chunks_exact(width.max(1))) {
                    let start = (row * layers.len() + layer) * units;
                    all[start..start + width].copy_from_slice(gradient);
                }
            }
        }
        stage.advance(rows.len() as u64);
    }
    tensors.insert("dhead_per_example".into(), (vec![examples.len(), layers.len(), heads], by_head));
    tensors.insert("dneuron_per_example".into(), (vec![examples.len(), layers.len(), neurons], by_neuron));
    Ok(())
}
