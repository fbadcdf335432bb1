//! One optimiser step: zero the gradients, run the micro-batches, clip, update.

use std::sync::Arc;

use super::objective::Objective;
use super::recipe::Recipe;
use super::stepper::{StepReport, Stepper};
use super::update::{Update, zero_gradients};
use crate::data::{Batch, Dataset, Step};
use crate::error::{Error, Result};
use crate::exec::{Block, ProgramId};
use crate::model::Head;
use crate::program::{AdamWForm, Extents, Mode};
use crate::session::{Prepared, Session};

/// The programs of a training run and where it stands.
#[derive(Debug)]
pub struct Trainer {
    recipe: Recipe,
    objective: Objective,
    seed: u64,
    train: Prepared,
    zero: ProgramId,
    update: Update,
    update_id: ProgramId,
    /// Optimiser steps of the whole run: what the learning rate decays over.
    total_steps: u64,
    step: u64,
    draw: u64,
    batch: Batch,
    totals: Vec<Batch>,
    norm: Vec<f32>,
}

impl Trainer {
    /// Emits and prepares the programs for micro-batches up to `capacity`.
    pub fn new(
        session: &mut Session,
        recipe: &Recipe,
        seed: u64,
        total_steps: u64,
        capacity: Extents,
    ) -> Result<Trainer> {
        Trainer::with_objective(session, recipe, Objective::default(), seed, total_steps, capacity)
    }

    /// The same with a loss to which other models add.
    pub fn with_objective(
        session: &mut Session,
        recipe: &Recipe,
        mut objective: Objective,
        seed: u64,
        total_steps: u64,
        capacity: Extents,
    ) -> Result<Trainer> {
        recipe.check()?;
        objective.prepare(capacity)?;
        let options = objective.emit_options(session.model().architecture.head == Head::Regression);
        let train = session.prepare(Mode::TRAIN, &options, capacity)?;
        let layout = session.model().layout().clone();
        let update = Update::emit(layout.clone(), recipe.max_gradient_norm as f32, AdamWForm::Torch);
        let nothing = Extents::default();
        let update_id = session.executor().prepare(Arc::clone(&update.program), nothing)?;
        let zero = session.executor().prepare(zero_gradients(layout), nothing)?;
        Ok(Trainer {
            recipe: recipe.clone(),
            objective,
            seed,
            train,
            zero,
            update,
            update_id,
            total_steps,
            step: 0,
            draw: 0,
            batch: Batch::default(),
            totals: Vec::new(),
            norm: Vec::new(),
        })
    }

    /// The program of a micro-batch: forward, loss, backward.
    pub fn program(&self) -> &Prepared {
        &self.train
    }

    /// The programs around the micro-batches: zeroing the gradients, and the update.
    pub fn update_programs(&self) -> [ProgramId; 2] {
        [self.zero, self.update_id]
    }
}

/// Fills a batch for each micro-batch of a step; returns the number of losses of the step.
///
/// The mean runs over the whole step, so its size must be known before the first micro-batch. Where a row has one loss that
/// is the number of rows; predicted tokens have to be counted.
pub(super) fn fill_step(batches: &mut Vec<Batch>, data: &Dataset, step: &Step) -> Result<usize> {
    batches.resize_with(step.micro_batches.len().max(batches.len()), Batch::default);
    let mut total = 0;
    for (batch, rows) in batches.iter_mut().zip(&step.micro_batches) {
        data.fill(batch, rows, step.cursor.epoch)?;
        total += batch.targets.len();
    }
    if total == 0 {
        return Err(Error::usage("the rows of a training step have nothing to predict (no labels)"));
    }
    Ok(total)
}

impl Stepper for Trainer {
    fn step(&self) -> u64 {
        self.step
    }

    fn draw(&self) -> u64 {
        self.draw
    }

    fn seek(&mut self, step: u64, draw: u64) {
        (self.step, self.draw) = (step, draw);
    }

    fn blocks(&self) -> &'static [(&'static str, Block)] {
        &[
            ("parameters", Block::Parameters),
            ("first_moment", Block::FirstMoment),
            ("second_moment", Block::SecondMoment),
        ]
    }

    fn identity(&self) -> String {
        self.objective.identity()
    }

    fn run(&mut self, session: &mut Session, data: &Dataset, step: &Step) -> Result<StepReport> {
        let total = fill_step(&mut self.totals, data, step)?;
        let nothing = Extents::default();
        session.executor().run(self.zero, &nothing)?;
        let mut loss = 0.0;
        for index in 0..step.micro_batches.len() {
            std::mem::swap(&mut self.batch, &mut self.totals[index]);
            let of_step = (step, total);
            let extents = self.objective.feed(session, &self.train, data, &self.batch, of_step, self.draw)?;
            session.write_dropout_key(&self.train, self.seed, self.draw)?;
            self.draw += 1;
            session.run(&self.train, &extents)?;
            let place = || format!("at training step {}", self.step + 1);
            loss += self.objective.loss(session, &self.train, &self.batch, total, &extents, place)?;
        }
        let hyper = self.recipe.hyper(self.step, self.total_steps);
        session.executor().write_wide(self.update_id, self.update.hyper, &hyper)?;
        session.executor().run_range(self.update_id, 0..1, &nothing)?;
        session.executor().read(self.update_id, self.update.norm, &nothing, &mut self.norm)?;
        let gradient_norm = f64::from(self.norm[0]);
        if !gradient_norm.is_finite() {
            // Found before the update, so the parameters are still those of the last good step.
            let place = format!("at training step {}; no parameter was changed by it", self.step + 1);
            return Err(Error::NotFinite { what: "the gradient norm".into(), value: gradient_norm, place });
        }
        session.executor().run_range(self.update_id, 1..2, &nothing)?;
        self.step += 1;
        Ok(StepReport { loss, gradient_norm, learning_rate: hyper[0] })
    }
}
