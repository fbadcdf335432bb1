//! One sublayer as a program: the teacher's residual sums, the student's features, and the move to the next boundary.

use super::measure::output_projection;
use super::rows::Rows;
use crate::error::Result;
use crate::model::{EmitOptions, UnitMasks};
use crate::program::{Extents, Linear, Mode, SlotId};
use crate::progress::Progress;
use crate::session::{Prepared, Session, Weighting};

/// The program of one sublayer.
#[derive(Debug)]
pub struct Sublayer {
    prepared: Prepared,
    /// Input of the output projection, `[T, n]`, where the sublayer has units.
    features: Option<SlotId>,
    /// The sublayer with its residual, `[T, d]`.
    sum: Option<SlotId>,
    /// The output projection.
    pub projection: Option<Linear>,
}

/// A batch that has just run.
pub struct Ran<'a> {
    /// Its number.
    pub index: usize,
    session: &'a Session,
    sublayer: &'a Sublayer,
    extents: Extents,
}

impl Ran<'_> {
    fn read(&self, slot: Option<SlotId>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        if let Some(slot) = slot {
            self.session.read(&self.sublayer.prepared, slot, &self.extents, &mut values)?;
        }
        Ok(values)
    }

    /// Input of the output projection under the masks, `[T, n]`; empty where the sublayer has no units.
    pub fn features(&self) -> Result<Vec<f32>> {
        self.read(self.sublayer.features)
    }

    /// The sublayer with its residual before a LayerNorm that follows, `[T, d]`.
    pub fn sum(&self) -> Result<Vec<f32>> {
        self.read(self.sublayer.sum)
    }

    /// The hidden states above the sublayer, `[T, d]`.
    pub fn output(&self) -> Result<Vec<f32>> {
        self.read(Some(self.sublayer.prepared.slots.output))
    }
}

impl Sublayer {
    /// Prepares the program of sublayer `at` (`2·i` the attention of layer i, `2·i + 1` its feed-forward network).
    pub fn prepare(session: &mut Session, at: usize, capacity: Extents) -> Result<Sublayer> {
        let options = EmitOptions {
            sublayers: Some(at..at + 1),
            head_masks: true,
            neuron_masks: true,
            keep_hooks: true,
            ..EmitOptions::default()
        };
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity)?;
        let slots = &prepared.slots.layers[at / 2];
        let (features, sum) = match at % 2 {
            0 => (slots.context, slots.attention_sum),
            _ => (slots.activation, slots.ffn_sum),
        };
        let projection = output_projection(&session.model().architecture, at);
        Ok(Sublayer { prepared, features, sum, projection })
    }

    /// Runs every batch from the hidden states below, under `masks`.
    pub fn run(
        &self,
        session: &mut Session,
        rows: &Rows,
        masks: &UnitMasks,
        hidden: &[Vec<f32>],
        progress: &Progress,
        mut visit: impl FnMut(Ran) -> Result<()>,
    ) -> Result<()> {
        session.write_masks(&self.prepared, masks)?;
        for (index, batch) in rows.batches.iter().enumerate() {
            progress.check(|| "K-prune was not finished; nothing was written".into())?;
            let extents = session.feed(&self.prepared, batch, Weighting::EachRow)?;
            if let Some(slot) = self.prepared.slots.inputs.hidden {
                session.executor().write(self.prepared.id, slot, &hidden[index])?;
            }
            session.run(&self.prepared, &extents)?;
            visit(Ran { index, session, sublayer: self, extents })?;
        }
        Ok(())
    }

    /// Replaces a parameter of this sublayer; `values` dense, row by row.
    pub fn write(&self, session: &mut Session, name: &str, values: &[f32]) -> Result<()> {
        match self.prepared.slots.program.find(name) {
            Some(slot) => session.executor().write(self.prepared.id, slot, values),
            None => Ok(()),
        }
    }
}
