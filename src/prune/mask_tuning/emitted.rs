//! The programs that move teacher and student through one sublayer.

use std::sync::Arc;
use std::time::Instant;

use super::normal::{NormalEquations, NormalSlots};
use crate::data::Batch;
use crate::error::Result;
use crate::exec::ProgramId;
use crate::model::SublayerEmitter;
use crate::program::{Extent, Extents, SlotId};
use crate::session::Session;

/// What a program of a sublayer has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    /// Units have a mask.
    pub mask: bool,
    /// Features are added to a sum that is an input: what another model left out.
    pub sum_given: bool,
    /// Only the tokens that answer for their rows are computed.
    pub answers_only: bool,
    /// Features are an input.
    pub features_given: bool,
    /// Normal equations of the features; the features can be read.
    pub normal: bool,
    /// The sum before LayerNorm can be read.
    pub target: bool,
    /// The hidden state of the next sublayer can be read.
    pub output: bool,
}

/// A prepared program of one sublayer.
#[derive(Clone, Debug)]
pub(super) struct Emitted {
    id: ProgramId,
    slots: Slots,
}

#[derive(Clone, Debug)]
struct Slots {
    cu_seqlens: SlotId,
    hidden: SlotId,
    rows: Option<SlotId>,
    mask: Option<SlotId>,
    sum: Option<SlotId>,
    features: Option<SlotId>,
    normal: Option<NormalSlots>,
    target: Option<SlotId>,
    output: Option<SlotId>,
}

fn emit(s: &mut SublayerEmitter, parts: Parts, hidden_size: usize, columns: usize) -> Slots {
    let cu_seqlens = s.cu_seqlens();
    let hidden = s.builder().input("hidden", Extent::Tokens, hidden_size);
    let rows = parts.answers_only.then(|| s.builder().int_input("rows", Extent::Sequences));
    let x = rows.map_or(hidden, |rows| s.builder().gather("answers", hidden, rows));
    let mask = parts.mask.then(|| s.mask("mask"));
    let features = if parts.features_given {
        Some(s.builder().input("features", Extent::Tokens, columns))
    } else {
        s.features("", x, mask)
    };
    let mut slots = Slots {
        cu_seqlens,
        hidden,
        rows,
        mask,
        sum: None,
        features,
        normal: None,
        target: None,
        output: None,
    };
    if let Some(features) = features.filter(|_| parts.normal) {
        s.builder().keep(features);
        slots.normal = Some(NormalSlots::emit(s.builder(), features, hidden_size));
    }
    if parts.target || parts.output {
        let sum = match features.filter(|_| parts.sum_given) {
            Some(features) => {
                let (rows, _) = s.builder().shape(x);
                let given = s.builder().input("given", rows, hidden_size);
                slots.sum = Some(given);
                s.add("", features, given)
            }
            None => s.sum("", features, mask, x),
        };
        if parts.target {
            s.builder().keep(sum);
            slots.target = Some(sum);
        }
        if parts.output {
            let output = s.output("", sum);
            s.builder().keep(output);
            slots.output = Some(output);
        }
    }
    slots
}

impl Emitted {
    pub fn prepare(
        session: &mut Session,
        sublayer: usize,
        capacity: Extents,
        parts: Parts,
    ) -> Result<Emitted> {
        let config = session.model().config();
        let (layer, hidden_size) = (config.layers[sublayer / 2], config.hidden);
        let columns = if sublayer.is_multiple_of(2) { layer.heads * config.head_dim } else { layer.neurons };
        let architecture = &session.model().architecture;
        let (program, slots) =
            architecture.emit_sublayer(sublayer, |s| emit(s, parts, hidden_size, columns))?;
        let id = session.executor().prepare(Arc::new(program), capacity)?;
        Ok(Emitted { id, slots })
    }

    /// Gives back this program and those prepared after it.
    pub fn forget(&self, session: &mut Session) -> Result<()> {
        session.executor().forget_from(self.id)
    }

    pub fn write_mask(&self, session: &mut Session, mask: &[f32]) -> Result<()> {
        self.write(session, self.slots.mask, mask)
    }

    pub fn write_features(&self, session: &mut Session, features: &[f32]) -> Result<()> {
        self.write(session, self.slots.features, features)
    }

    pub fn write_sum(&self, session: &mut Session, sum: &[f32]) -> Result<()> {
        self.write(session, self.slots.sum, sum)
    }

    fn write(&self, session: &mut Session, slot: Option<SlotId>, values: &[f32]) -> Result<()> {
        match slot {
            Some(slot) => session.executor().write(self.id, slot, values),
            None => Ok(()),
        }
    }

    pub fn write_target(&self, session: &mut Session, target: &[f32], hidden_size: usize) -> Result<()> {
        match &self.slots.normal {
            Some(normal) => normal.write(session.executor(), self.id, target, target.len() / hidden_size),
            None => Ok(()),
        }
    }

    /// Runs on `hidden` `[T, d]` of a batch; `rows` are the tokens that answer, where only those are computed.
    pub fn run(&self, session: &mut Session, batch: &Batch, hidden: &[f32], rows: &[i32]) -> Result<Extents> {
        let executor = session.executor();
        executor.write_ints(self.id, self.slots.cu_seqlens, &batch.cu_seqlens)?;
        executor.write(self.id, self.slots.hidden, hidden)?;
        if let Some(slot) = self.slots.rows {
            executor.write_ints(self.id, slot, rows)?;
        }
        let extents = Extents {
            tokens: batch.token_count(),
            sequences: batch.row_count(),
            longest: batch.longest_row(),
            ..Extents::default()
        };
        executor.run(self.id, &extents)?;
        Ok(extents)
    }

    /// Seconds of each of `repeats` runs on one batch that was written before, after `warm_up` more.
    pub fn time(
        &self,
        session: &mut Session,
        batch: &Batch,
        hidden: &[f32],
        warm_up: usize,
        repeats: usize,
    ) -> Result<Vec<f64>> {
        let extents = self.run(session, batch, hidden, &[])?;
        let executor = session.executor();
        let mut run = || {
            let start = Instant::now();
            executor.run(self.id, &extents)?;
            executor.synchronize()?;
            Ok(start.elapsed().as_secs_f64())
        };
        (0..warm_up).try_for_each(|_| run().map(|_| ()))?;
        (0..repeats).map(|_| run()).collect()
    }

    /// Columns of the features.
    pub fn feature_columns(&self, session: &mut Session) -> usize {
        self.slots.features.map_or(0, |slot| session.executor().program(self.id).slot(slot).cols)
    }

    pub fn add_normal(
        &self,
        session: &mut Session,
        normal: &mut NormalEquations,
        extents: &Extents,
        target: &[f32],
    ) -> Result<()> {
        match &self.slots.normal {
            Some(slots) => normal.add(session.executor(), self.id, slots, extents, target),
            None => Ok(()),
        }
    }

    pub fn read_features(&self, session: &mut Session, extents: &Extents, out: &mut Vec<f32>) -> Result<()> {
        self.read(session, self.slots.features, extents, out)
    }

    pub fn read_target(&self, session: &mut Session, extents: &Extents, out: &mut Vec<f32>) -> Result<()> {
        self.read(session, self.slots.target, extents, out)
    }

    pub fn read_output(&self, session: &mut Session, extents: &Extents, out: &mut Vec<f32>) -> Result<()> {
        self.read(session, self.slots.output, extents, out)
    }

    fn read(
        &self,
        session: &mut Session,
        slot: Option<SlotId>,
        extents: &Extents,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        match slot {
            Some(slot) => session.executor().read(self.id, slot, extents, out),
            None => Ok(()),
        }
    }
}
