//! The contrastive terms of a training that prunes (CAP): banks, candidates, and the inputs of each micro-batch.
//!
//! The bank of the teacher is there from the start. The model itself fills others: masked training one at the start of every
//! epoch, CAP-f one before every pruning; the first of them is of the model before any pruning. Each is written beside the
//! checkpoint when it is filled, so a run that continues reads what it compared with before. Candidates are drawn by (seed,
//! forward pass, bank).
//!
//! The published code takes a batch for what one device runs at a time. Here that is the micro-batch: its rows are each
//! other's candidates, and its term is weighted by its share of the optimiser step.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::banks::{Bank, Encoder};
use super::teacher::Teacher;
use crate::data::{Batch, Cursor, Dataset, Target, sampling};
use crate::error::{Error, Result};
use crate::model::{ContrastiveTerms, Sentence};
use crate::ops::contrastive::Keys;
use crate::program::Extents;
use crate::progress::Progress;
use crate::prune::contrastive::{Options, term_weights};
use crate::session::{Prepared, Session};

/// Banks, and what a micro-batch is given of them.
#[derive(Debug)]
pub struct Contrast {
    options: Options,
    sentence: Sentence,
    terms: ContrastiveTerms,
    seed: u64,
    token_budget: usize,
    teacher: Arc<Teacher>,
    /// Of the model at the start of each epoch so far.
    own: Vec<Arc<Bank>>,
    encoder: Option<Encoder>,
    /// What the losses of each bank were multiplied by in the last micro-batch.
    weights: [[f64; 2]; 3],
    /// Candidates on their way to the executor, some megabytes.
    rows: Vec<f32>,
    values: Vec<f32>,
}

/// File of the bank that the model filled before any pruning (0), or the n-th snapshot.
pub fn file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("sentences-{number}.f16"))
}

/// Class of a row; negative where it has none.
fn label(data: &Dataset, row: usize) -> i32 {
    match data.examples[row].target {
        Target::Class(class) => class as i32,
        _ => -1,
    }
}

impl Contrast {
    /// Terms against the bank of `teacher`, and against up to `banks` that the model fills itself, in trainings whose
    /// micro-batches have up to `rows` rows and `tokens` tokens. Fails where the teacher has no sentence vectors.
    pub fn new(
        options: &Options,
        supervised: bool,
        teacher: Arc<Teacher>,
        seed: u64,
        banks: u64,
        Extents { sequences: rows, tokens, .. }: Extents,
    ) -> Result<Contrast> {
        options.check()?;
        let Some(bank) = &teacher.sentences else {
            return Err(Error::usage("contrastive pruning needs the sentence vectors of its teacher"));
        };
        let snapshots = banks.saturating_sub(1) as usize;
        let bank_rows = [1, 1, snapshots].map(|count| options.bank_rows(rows, count, bank.rows()));
        let terms = ContrastiveTerms { temperature: options.temperature as f32, bank_rows, supervised };
        Ok(Contrast {
            options: *options,
            sentence: Sentence::Cls,
            terms,
            seed,
            token_budget: tokens,
            teacher,
            own: Vec::new(),
            encoder: None,
            weights: [[0.0; 2]; 3],
            rows: Vec::new(),
            values: Vec::new(),
        })
    }

    /// The same with what stands for a sentence, in the banks too; it is [`Sentence::Cls`] otherwise.
    pub fn of(self, sentence: Sentence) -> Contrast {
        Contrast { sentence, ..self }
    }

    /// What stands for a sentence.
    pub fn sentence(&self) -> Sentence {
        self.sentence
    }

    /// The same with banks that the model has filled before: of itself before any pruning, then its snapshots.
    pub fn with_banks(self, own: Vec<Arc<Bank>>) -> Contrast {
        Contrast { own, ..self }
    }

    /// Weights and sizes.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What to emit.
    pub fn terms(&self) -> ContrastiveTerms {
        self.terms
    }

    /// Bytes of the banks that a training of `epochs` epochs fills.
    pub fn bytes(&self, epochs: u64) -> usize {
        let of_teacher = self.teacher.sentences.as_ref();
        of_teacher.map_or(0, |bank| epochs as usize * Bank::bytes(bank.rows(), bank.width()))
    }

    /// Fills the bank of the epoch that begins, with the model as it is, and saves it in `folder`.
    pub fn begin_epoch(
        &mut self,
        session: &mut Session,
        data: &Dataset,
        epoch: u64,
        folder: Option<&Path>,
        progress: &Progress,
    ) -> Result<()> {
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            None => self.encoder.insert(Encoder::of(self.sentence, session, data, self.token_budget)?),
        };
        let bank = encoder.fill(session, data, progress)?;
        self.teacher.check(&bank)?;
        if let Some(folder) = folder {
            bank.save(&file(folder, epoch as usize))?;
        }
        self.own.truncate(epoch as usize);
        self.own.push(Arc::new(bank));
        Ok(())
    }

    /// Reads back the banks that were filled before a run stopped at `place`.
    pub fn restore(&mut self, folder: &Path, place: Cursor) -> Result<()> {
        let Some(like) = &self.teacher.sentences else { return Ok(()) };
        let filled = place.epoch as usize + usize::from(place.step > 0);
        let load = |epoch| Bank::load(&file(folder, epoch), like.rows(), like.width()).map(Arc::new);
        self.own = (0..filled).map(load).collect::<Result<_>>()?;
        Ok(())
    }

    /// Writes what the contrastive terms of a micro-batch read. `share`: the part of the optimiser step that it is; `draw`
    /// must differ for every micro-batch of a run.
    pub fn feed(
        &mut self,
        session: &mut Session,
        prepared: &Prepared,
        data: &Dataset,
        batch: &Batch,
        share: f64,
        draw: u64,
    ) -> Result<()> {
        let Some(slots) = prepared.slots.contrastive else {
            return Err(Error::shape(prepared.slots.program.name(), "was emitted without contrastive terms"));
        };
        let ids: Vec<i32> = batch.rows.iter().map(|&row| row as i32).collect();
        let labels: Vec<i32> = batch.rows.iter().map(|&row| label(data, row)).collect();
        session.executor().write_ints(prepared.id, slots.ids, &ids)?;
        if let Some(slot) = slots.labels {
            session.executor().write_ints(prepared.id, slot, &labels)?;
        }
        for (which, bank) in slots.banks.iter().enumerate() {
            let candidates = self.candidates(data, &batch.rows, which, 3 * draw + which as u64);
            let capacity = Extents::default().of(prepared.slots.program.slot(bank.rows).rows);
            self.weights[which] = [0.0; 2];
            if let Some((mut bank_ids, mut bank_labels)) = candidates {
                bank_ids.resize(capacity, -1);
                bank_labels.resize(capacity, -1);
                let labels = self.terms.supervised.then_some((&labels[..], &bank_labels[..]));
                let keys = Keys { ids: &ids, bank_ids: &bank_ids, labels };
                self.weights[which] = term_weights(&self.options, &keys, share);
                session.executor().write(prepared.id, bank.rows, &self.rows)?;
                session.executor().write_ints(prepared.id, bank.ids, &bank_ids)?;
                if let Some(slot) = bank.labels {
                    session.executor().write_ints(prepared.id, slot, &bank_labels)?;
                }
            }
            session.executor().write_wide(prepared.id, bank.weights, &self.weights[which])?;
        }
        Ok(())
    }

    /// The candidates that a bank gives a batch: their vectors in `rows`, their examples and labels. `None` where the bank is
    /// empty still.
    fn candidates(
        &mut self,
        data: &Dataset,
        batch: &[usize],
        which: usize,
        draw: u64,
    ) -> Option<(Vec<i32>, Vec<i32>)> {
        let banks: Vec<&Bank> = match which {
            0 => self.own.iter().take(1).map(Arc::as_ref).collect(),
            1 => self.teacher.sentences.iter().collect(),
            _ => self.own.iter().skip(1).map(Arc::as_ref).collect(),
        };
        let first = banks.first()?;
        let extra = self.options.extra_examples(banks.len());
        let drawn = sampling::choose_candidates(first.rows(), extra, self.seed, draw);
        let width = first.width();
        self.rows.resize((batch.len() + drawn.len()) * banks.len() * width, 0.0);
        let vectors = batch.iter().chain(&drawn).flat_map(|&row| banks.iter().map(move |bank| (bank, row)));
        vectors.clone().zip(self.rows.chunks_mut(width)).for_each(|((bank, row), out)| bank.read(row, out));
        Some(vectors.map(|(_, row)| (row as i32, label(data, row))).unzip())
    }

    /// The contrastive terms of the micro-batch that has run.
    pub fn loss(&mut self, session: &Session, prepared: &Prepared, extents: &Extents) -> Result<f64> {
        let mut loss = 0.0;
        let banks = prepared.slots.contrastive.iter().flat_map(|slots| slots.banks);
        for (bank, weights) in banks.zip(self.weights) {
            session.read(prepared, bank.losses, extents, &mut self.values)?;
            for pair in self.values.chunks(2) {
                loss += weights[0] * f64::from(pair[0]) + weights[1] * f64::from(pair[1]);
            }
        }
        Ok(loss)
    }
}
