//! Calibration rows on their way up through a model, one sublayer after another.
//!
//! Methods that solve for one sublayer at a time need its input under the masks found so far, for every calibration
//! row. A [`Stream`] holds the hidden states at one sublayer boundary and moves them up, so that no sublayer is ever
//! computed twice: reaching the top costs one forward pass, however many stops there are on the way. Boundary `s`
//! lies below sublayer `s` (`2·i` the attention of layer i, `2·i + 1` its feed-forward network).

use crate::data::{Batch, Example};
use crate::error::{Error, Result};
use crate::model::EmitOptions;
use crate::program::{Extents, Mode};
use crate::progress::Progress;
use crate::prune::UnitMasks;
use crate::session::{self, Prepared, Session, Weighting};

/// Hidden states of all calibration rows at one boundary.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The rows in their order, packed into batches of whole rows.
    pub batches: Vec<Batch>,
    /// Hidden state of every token of each batch, `[T, d]`.
    pub hidden: Vec<Vec<f32>>,
    /// The boundary.
    pub at: usize,
    /// Extents that hold every batch.
    pub capacity: Extents,
}

/// A batch whose sublayers have just run: kept slots of the program can be read.
pub struct Visit<'a> {
    /// Number of the batch.
    pub index: usize,
    /// Where to read them from.
    pub session: &'a mut Session,
    /// The program and its slots.
    pub prepared: &'a Prepared,
    /// Extents of the batch.
    pub extents: &'a Extents,
    /// Hidden states below the first of the sublayers, `[T, d]`; empty for what starts with the embeddings.
    pub input: &'a [f32],
}

impl Stream {
    /// The rows after the embeddings, in batches of at most `token_budget` tokens (or one longer row).
    pub fn start(session: &mut Session, examples: &[Example], token_budget: usize) -> Result<Stream> {
        if examples.is_empty() {
            return Err(Error::usage("there are no calibration rows"));
        }
        let lengths: Vec<usize> = examples.iter().map(Example::length).collect();
        let packed = pack(&lengths, token_budget);
        let capacity = session::capacity(&packed, &lengths);
        let batches = packed.iter().map(|rows| Batch::of(examples, rows)).collect::<Result<Vec<_>>>()?;
        let options = EmitOptions { sublayers: Some(0..0), ..EmitOptions::default() };
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity)?;
        let mut hidden = Vec::with_capacity(batches.len());
        for batch in &batches {
            let extents = session.feed(&prepared, batch, Weighting::EachRow)?;
            session.run(&prepared, &extents)?;
            let mut values = Vec::new();
            session.read(&prepared, prepared.slots.output, &extents, &mut values)?;
            hidden.push(values);
        }
        Ok(Stream { batches, hidden, at: 0, capacity })
    }

    /// Moves every batch up to the boundary `to`, under `masks` where given, and calls `visit` for each batch when its
    /// sublayers have run. With `hooks`, contexts, activations and sublayer sums of these sublayers are kept for it.
    pub fn advance(
        &mut self,
        session: &mut Session,
        to: usize,
        masks: Option<&UnitMasks>,
        hooks: bool,
        progress: &Progress,
        mut visit: impl FnMut(Visit) -> Result<()>,
    ) -> Result<()> {
        let options = EmitOptions {
            sublayers: Some(self.at..to),
            head_masks: masks.is_some(),
            neuron_masks: masks.is_some(),
            keep_hooks: hooks,
            ..EmitOptions::default()
        };
        let prepared = session.prepare(Mode::EVALUATE, &options, self.capacity)?;
        if let Some(masks) = masks {
            session.write_masks(&prepared, masks)?;
        }
        for (index, batch) in self.batches.iter().enumerate() {
            progress.check(|| format!("at sublayer {to}; nothing was written"))?;
            let extents = session.feed(&prepared, batch, Weighting::EachRow)?;
            if let Some(slot) = prepared.slots.inputs.hidden {
                session.executor().write(prepared.id, slot, &self.hidden[index])?;
            }
            session.run(&prepared, &extents)?;
            let input = &self.hidden[index];
            visit(Visit { index, session, prepared: &prepared, extents: &extents, input })?;
            session.read(&prepared, prepared.slots.output, &extents, &mut self.hidden[index])?;
        }
        self.at = to;
        Ok(())
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.batches.iter().map(Batch::token_count).sum()
    }
}

/// Consecutive rows in batches of at most `token_budget` tokens.
pub(crate) fn pack(lengths: &[usize], token_budget: usize) -> Vec<Vec<usize>> {
    let mut packed: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for (row, &length) in lengths.iter().enumerate() {
        match packed.last_mut() {
            Some(rows) if tokens + length <= token_budget => {
                rows.push(row);
                tokens += length;
            }
            _ => {
                packed.push(vec![row]);
                tokens = length;
            }
        }
    }
    packed
}
