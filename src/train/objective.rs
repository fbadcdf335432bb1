//! What other models add to the loss of a task: a teacher's answers (distillation), and banks of sentence vectors (CAP).
//!
//! The task's own loss and the teacher's share the logits: for classes and spans they are two losses with two weights, for
//! one number a squared error to the weighted mean of target and teacher. Every trainer feeds and reads its micro-batches
//! through here, so that a teacher means the same to all of them.

use std::sync::Arc;

use super::contrast::Contrast;
use super::teacher::{Beside, Teacher};
use crate::data::{Batch, Dataset, Step, Targets};
use crate::error::{Error, Result};
use crate::model::{EmitOptions, Sentence};
use crate::program::{Extents, SlotId};
use crate::prune::sparse::Distillation;
use crate::session::{Prepared, Session, Weighting};

/// The loss of a training step.
#[derive(Debug, Default)]
pub struct Objective {
    teaching: Option<(Distillation, Arc<Teacher>)>,
    /// The teacher of a language model.
    beside: Option<Beside>,
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
        Ok(Objective { teaching, beside: None, contrast, values: Vec::new() })
    }

    /// Makes room for micro-batches up to `capacity`: a teacher that runs beside the student is loaded.
    pub fn prepare(&mut self, capacity: Extents) -> Result<()> {
        if let Some((_, teacher)) = &self.teaching
            && let Some((model, device)) = &teacher.model
        {
            self.beside = Some(Beside::new(model, *device, capacity)?);
        }
        Ok(())
    }

    /// Bytes that it will hold beside the executor of the student, and what they are.
    pub fn held_bytes(&self, epochs: u64) -> Option<(&'static str, usize)> {
        match (&self.contrast, &self.beside) {
            (Some(contrast), _) => Some(("banks of sentence vectors", contrast.bytes(epochs))),
            (None, Some(beside)) => Some(("the teacher, beside the model", beside.host_bytes())),
            (None, None) => None,
        }
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
            sentence: self.contrast.as_ref().map_or(Sentence::Cls, Contrast::sentence),
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
            let said = match &mut self.beside {
                Some(beside) => Said::Now(beside.answer(batch)?),
                None => Said::Before(&teacher.outputs),
            };
            feed_teacher(session, prepared, batch, total, distillation, said)?;
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
        match (&self.teaching, &batch.targets) {
            (None, _) => loss = session.loss(prepared, batch, Weighting::Mean { total }, extents, &place)?,
            (Some((distillation, teacher)), Targets::Values(targets)) => {
                let Some(slot) = prepared.slots.losses else {
                    return Err(Error::shape(prepared.slots.program.name(), "was emitted without a loss"));
                };
                session.read(prepared, slot, extents, &mut self.values)?;
                let mixtures = targets.iter().zip(&batch.rows).map(|(target, row)| {
                    Mixture::new(distillation, f64::from(*target), f64::from(teacher.outputs[*row][0]))
                });
                let rows = mixtures.zip(&self.values).map(|(mixture, &loss)| mixture.loss(f64::from(loss)));
                loss = rows.sum::<f64>() / total as f64;
            }
            (Some((distillation, _)), _) => {
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
        if let Some((model, _)) = &teacher.model {
            hash.update(bytemuck::cast_slice(&model.values));
        }
        hash.finalize().to_hex().to_string()
    }
}

/// Two squared errors of one number x as one: `a·(x − y)² + b·(x − t)² = (a + b)·(x − m)² + ab/(a + b)·(y − t)²`, m being
/// the weighted mean of target y and teacher t.
struct Mixture {
    /// a + b.
    weight: f64,
    mean: f64,
    /// What does not depend on x.
    rest: f64,
}

impl Mixture {
    fn new(distillation: &Distillation, target: f64, said: f64) -> Mixture {
        let (a, b) = (distillation.task_weight, distillation.teacher_weight);
        let weight = a + b;
        Mixture {
            weight,
            mean: (a * target + b * said) / weight,
            rest: a * b / weight * (target - said).powi(2),
        }
    }

    /// The loss where (x − m)² is `square`.
    fn loss(&self, square: f64) -> f64 {
        self.weight * square + self.rest
    }
}

/// Outputs of a teacher.
enum Said<'a> {
    /// Of every row of the data.
    Before(&'a [Vec<f32>]),
    /// Of the predicted tokens of the micro-batch, a row of logits each.
    Now(&'a [f32]),
}

/// Writes what a teacher changes of the inputs of a micro-batch whose step has `total` losses.
fn feed_teacher(
    session: &mut Session,
    prepared: &Prepared,
    batch: &Batch,
    total: usize,
    distillation: &Distillation,
    said: Said,
) -> Result<()> {
    let (rows, inputs, id) = (&batch.rows, prepared.slots.inputs, prepared.id);
    let mut write = |slot: Option<SlotId>, values: &[f32]| match slot {
        Some(slot) => session.executor().write(id, slot, values),
        None => Ok(()),
    };
    let each = |share: f64| vec![(share / total as f64) as f32; batch.targets.len()];
    let outputs: Vec<f32>;
    let said = match (said, &batch.targets) {
        (Said::Before(outputs), Targets::Values(targets)) => {
            let mixtures = targets.iter().zip(rows).map(|(target, row)| {
                Mixture::new(distillation, f64::from(*target), f64::from(outputs[*row][0]))
            });
            write(inputs.targets, &mixtures.map(|mixture| mixture.mean as f32).collect::<Vec<_>>())?;
            return write(inputs.weights, &each(distillation.task_weight + distillation.teacher_weight));
        }
        (Said::Before(_), Targets::Tokens { .. }) => {
            let message = "the teacher of a language model runs beside it";
            return Err(Error::shape(prepared.slots.program.name(), message));
        }
        (Said::Before(all), _) => {
            outputs = rows.iter().flat_map(|&row| all[row].iter().copied()).collect();
            &outputs
        }
        (Said::Now(logits), _) => logits,
    };
    write(inputs.weights, &each(distillation.task_weight))?;
    write(inputs.teacher_weights, &each(distillation.teacher_weight))?;
    write(inputs.teacher_logits, said)
}
