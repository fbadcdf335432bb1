//! What other models add to the loss of a task: a teacher's answers (distillation), and banks of sentence vectors (CAP).
//!
//! The task's own loss and the teacher's share the logits: for classes and spans they are two losses with two weights, for
//! one number a squared error to the weighted mean of target and teacher. Every trainer feeds and reads its micro-batches
//! through here, so that a teacher means the same to all of them.

use std::sync::Arc;

use super::contrast::Contrast;
use super::teacher::Teacher;
use crate::data::{Batch, Dataset, Step, Targets};
use crate::error::{Error, Result};
use crate::model::EmitOptions;
use crate::program::{Extents, SlotId};
use crate::prune::sparse::Distillation;
use crate::session::{Prepared, Session, Weighting};

/// The loss of a training step.
#[derive(Debug, Default)]
pub struct Objective {
    teaching: Option<(Distillation, Arc<Teacher>)>,
    contrast: Option<Contrast>,
    values: Vec<f32>,
}

impl Objective {
    /// The task's loss with what a teacher and banks add. Fails where one is given without the other that it needs.
    pub fn new(
        distillation: Option<Distillation>,
        teacher: Option<Arc<Teacher>>,
        contrast: Option<Contrast>,
    ) -> Result<Objective> {
        let teaching = match (distillation, teacher) {
            (Some(distillation), Some(teacher)) => Some((distillation, teacher)),
            (None, None) => None,
            _ => return Err(Error::usage("distillation needs a teacher, and a teacher distillation")),
        };
        Ok(Objective { teaching, contrast, values: Vec::new() })
    }

    /// The contrastive terms.
    pub fn contrast(&mut self) -> Option<&mut Contrast> {
        self.contrast.as_mut()
    }

    /// What the program of a micro-batch computes; `one_number`: its head answers with one.
    pub fn emit_options(&self, one_number: bool) -> EmitOptions {
        let temperature = self.teaching.as_ref().map(|(distillation, _)| distillation.temperature as f32);
        EmitOptions {
            loss: true,
            distillation: temperature.filter(|_| !one_number),
            contrastive: self.contrast.as_ref().map(Contrast::terms),
            ..EmitOptions::default()
        }
    }

    /// Writes the inputs of a micro-batch of `step` that has `total` losses. `draw` must differ for every micro-batch of
    /// a run.
    pub fn feed(
        &mut self,
        session: &mut Session,
        prepared: &Prepared,
        data: &Dataset,
        batch: &Batch,
        (step, total): (&Step, usize),
        draw: u64,
    ) -> Result<Extents> {
        let extents = session.feed(prepared, batch, Weighting::Mean { total })?;
        if let Some((distillation, teacher)) = &self.teaching {
            feed_teacher(session, prepared, batch, total, distillation, teacher)?;
        }
        if let Some(contrast) = &mut self.contrast {
            let share = batch.row_count() as f64 / step.examples() as f64;
            contrast.feed(session, prepared, data, batch, share, draw)?;
        }
        Ok(extents)
    }

    /// The loss of the micro-batch that has run, its part of the step's mean. Fails, naming `place`, where it is not finite.
    pub fn loss(
        &mut self,
        session: &mut Session,
        prepared: &Prepared,
        batch: &Batch,
        total: usize,
        extents: &Extents,
        place: impl Fn() -> String,
    ) -> Result<f64> {
        let mut loss = 0.0;
        match &self.teaching {
            None => loss = session.loss(prepared, batch, Weighting::Mean { total }, extents, &place)?,
            Some((distillation, _)) => {
                let parts = [
                    (prepared.slots.losses, distillation.task_weight),
                    (prepared.slots.distillation_losses, distillation.teacher_weight),
                ];
                for (slot, share) in parts {
                    let Some(slot) = slot else { continue };
                    session.read(prepared, slot, extents, &mut self.values)?;
                    let sum: f64 = self.values.iter().map(|&loss| f64::from(loss)).sum();
                    loss += share * sum / total as f64;
                }
            }
        }
        if let Some(contrast) = &mut self.contrast {
            loss += contrast.loss(session, prepared, extents)?;
        }
        if !loss.is_finite() {
            return Err(Error::NotFinite { what: "the loss".into(), value: loss, place: place() });
        }
        Ok(loss)
    }

    /// Everything of it that decides the bits of a run; empty where that is the task alone.
    pub fn identity(&self) -> String {
        let Some((distillation, teacher)) = &self.teaching else { return String::new() };
        let mut hash = blake3::Hasher::new();
        hash.update(
            format!("{distillation:?}{:?}", self.contrast.as_ref().map(Contrast::options)).as_bytes(),
        );
        for outputs in &teacher.outputs {
            hash.update(bytemuck::cast_slice(outputs));
        }
        if let Some(bank) = &teacher.sentences {
            hash.update(bank.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }
}

/// Writes what a teacher changes of the inputs of a micro-batch whose step has `total` losses.
fn feed_teacher(
    session: &mut Session,
    prepared: &Prepared,
    batch: &Batch,
    total: usize,
    distillation: &Distillation,
    teacher: &Teacher,
) -> Result<()> {
    let (task_share, teacher_share) = (distillation.task_weight, distillation.teacher_weight);
    let (rows, inputs, id) = (&batch.rows, prepared.slots.inputs, prepared.id);
    let mut write = |slot: Option<SlotId>, values: &[f32]| match slot {
        Some(slot) => session.executor().write(id, slot, values),
        None => Ok(()),
    };
    let each = |share: f64| vec![(share / total as f64) as f32; rows.len()];
    if let Targets::Values(targets) = &batch.targets {
        // For one number: a·(x − y)² + b·(x − t)² has the gradient of (a + b)·(x − m)², m the weighted mean.
        let sum = task_share + teacher_share;
        let mixed = |(target, row): (&f32, &usize)| {
            let said = f64::from(teacher.outputs[*row][0]);
            ((task_share * f64::from(*target) + teacher_share * said) / sum) as f32
        };
        write(inputs.targets, &targets.iter().zip(rows).map(mixed).collect::<Vec<_>>())?;
        return write(inputs.weights, &each(sum));
    }
    write(inputs.weights, &each(task_share))?;
    write(inputs.teacher_weights, &each(teacher_share))?;
    let outputs: Vec<f32> = rows.iter().flat_map(|&row| teacher.outputs[row].iter().copied()).collect();
    write(inputs.teacher_logits, &outputs)
}
