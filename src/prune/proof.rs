//! Proof that a compact model computes what the masked one does: both run, and their answers are compared.

use crate::data::Batch;
use crate::error::Result;
use crate::model::{EmitOptions, Head, Logits, Model, UnitMasks};
use crate::program::{Extents, Mode};
use crate::session::{Device, Session, Weighting};

/// How far two models are apart on some batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompactionProof {
    /// max |Δlogit| (of a model without a head: of its last hidden state).
    pub largest_difference: f64,
    /// max |logit| of the masked model, the scale to read it by.
    pub largest_logit: f64,
}

/// Runs `model` with `masks` and `compact` without on the same batches. A NaN anywhere makes the difference
/// infinite.
pub fn compare(
    model: &Model,
    masks: &UnitMasks,
    compact: &Model,
    batches: &[Batch],
    device: Device,
) -> Result<CompactionProof> {
    let masked = answers(model, Some(masks), batches, device)?;
    let found = answers(compact, None, batches, device)?;
    let mut proof = CompactionProof::default();
    for (expected, found) in masked.iter().zip(&found) {
        let difference = (expected - found).abs();
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        proof.largest_difference = proof.largest_difference.max(difference);
        proof.largest_logit = proof.largest_logit.max(expected.abs());
    }
    Ok(proof)
}

/// Logits of all batches, one after the other.
fn answers(model: &Model, masks: Option<&UnitMasks>, batches: &[Batch], device: Device) -> Result<Vec<f64>> {
    let capacity = batches.iter().fold(Extents::default(), |most, batch| Extents {
        tokens: most.tokens.max(batch.token_count()),
        sequences: most.sequences.max(batch.row_count()),
        targets: most.targets.max(batch.targets.len()),
        samples: 0,
        longest: most.longest.max(batch.longest_row()),
    });
    let options = EmitOptions {
        logits: Logits::All,
        keep_hidden: model.architecture.head == Head::Backbone,
        head_masks: masks.is_some(),
        neuron_masks: masks.is_some(),
        ..EmitOptions::default()
    };
    let mut session = Session::of(model, device)?;
    let prepared = session.prepare(Mode::EVALUATE, &options, capacity)?;
    if let Some(masks) = masks {
        session.write_masks(&prepared, masks)?;
    }
    let last = prepared.slots.hidden[prepared.slots.hidden.len() - 1];
    let answer = prepared.slots.logits.unwrap_or(last);
    let mut answers = Vec::new();
    for batch in batches {
        let extents = session.feed(&prepared, batch, Weighting::EachRow)?;
        session.run(&prepared, &extents)?;
        answers.extend(session.read_wide(&prepared, answer, &extents)?);
    }
    Ok(answers)
}
