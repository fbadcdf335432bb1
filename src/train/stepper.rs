//! What a run of training repeats, whatever is trained: one optimiser step, and how its state is saved.

use std::path::Path;

use crate::data::{Cursor, Dataset, Step};
use crate::error::Result;
use crate::exec::Block;
use crate::program::Extents;
use crate::progress::Progress;
use crate::session::Session;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss over the step's examples (or predicted tokens), before the update.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
}

/// One kind of optimiser step.
pub trait Stepper {
    /// Optimiser steps done.
    fn step(&self) -> u64;
    /// Forward passes with dropout done.
    fn draw(&self) -> u64;
    /// Continues at a saved place.
    fn seek(&mut self, step: u64, draw: u64);
    /// Runs one optimiser step on the rows of `step`, taken from `data`.
    fn run(&mut self, session: &mut Session, data: &Dataset, step: &Step) -> Result<StepReport>;
    /// Blocks that a checkpoint holds, by their names in it.
    fn blocks(&self) -> &'static [(&'static str, Block)];
    /// Prepares for the epoch whose first step comes next; what it leaves in `folder`, that of the checkpoints, is for
    /// [`Stepper::restore`].
    fn begin_epoch(
        &mut self,
        _: &mut Session,
        _data: &Dataset,
        _epoch: u64,
        _folder: Option<&Path>,
        _: &Progress,
    ) -> Result<()> {
        Ok(())
    }
    /// Takes back from `folder` what earlier epochs left there, for a run that continues at `place`.
    fn restore(&mut self, _folder: &Path, _place: Cursor) -> Result<()> {
        Ok(())
    }
    /// What it will hold beside the executor's memory, in bytes, and what that is.
    fn held_bytes(&mut self) -> Option<(&'static str, usize)> {
        None
    }
    /// Brings the parameters to the state that is evaluated and returned.
    fn settle(&mut self, _: &mut Session) -> Result<()> {
        Ok(())
    }
    /// Whether an epoch that ends now may be kept as the best.
    fn may_be_best(&self) -> bool {
        true
    }
    /// What to show beside the loss.
    fn detail(&self) -> String {
        String::new()
    }
    /// What decides the bits of a run beside its recipe.
    fn identity(&self) -> String {
        String::new()
    }
}

/// Length of a run and of its batches, known before anything is prepared.
#[derive(Clone, Copy, Debug)]
pub struct RunSize {
    /// Optimiser steps.
    pub total_steps: u64,
    /// Optimiser steps of an epoch.
    pub epoch_steps: u64,
    /// Largest micro-batch.
    pub capacity: Extents,
}

impl RunSize {
    /// Epochs, the last of which may be cut short.
    pub fn epochs(&self) -> u64 {
        self.total_steps.div_ceil(self.epoch_steps.max(1))
    }
}
