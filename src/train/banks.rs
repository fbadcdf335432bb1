//! Banks of sentence vectors: what a model says of every training row, as a direction.
//!
//! A bank is n × d numbers: 604 MB in f16 for BERT-base on MNLI, and contrastive pruning keeps one an epoch, so f16 is what
//! they are stored in. Its rounding is 2⁻¹¹ of a number below 1, far below what dropout does to the vector it is compared with.

use std::fs::File;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::checkpoint;
use crate::data::{Batch, Dataset, EvaluationPlan};
use crate::error::{Error, Result};
use crate::model::{EmitOptions, Sentence};
use crate::ops::contrastive::NORM_FLOOR;
use crate::program::Mode;
use crate::progress::Progress;
use crate::session::{self, Prepared, Session, Weighting};

/// A normalised sentence vector for every row of a data set, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Bank {
    width: usize,
    values: Vec<f16>,
}

impl Bank {
    /// A bank of dense rows of `width` numbers, which are normalised; rows without a direction stay 0.
    pub fn of(width: usize, mut values: Vec<f32>) -> Bank {
        for row in values.chunks_mut(width.max(1)) {
            let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let scale = if norm < NORM_FLOOR { 0.0 } else { 1.0 / norm };
            row.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
        }
        let mut bank = Bank { width, values: vec![f16::ZERO; values.len()] };
        bank.values.convert_from_f32_slice(&values);
        bank
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Bytes of a bank of so many rows.
    pub fn bytes(rows: usize, width: usize) -> usize {
        rows * width * size_of::<f16>()
    }

    /// Copies the vector of a row to `out`, `width` numbers.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        self.values[row * self.width..(row + 1) * self.width].convert_to_f32_slice(out);
    }

    /// The stored numbers, for hashing.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values)
    }

    /// Writes the bank to a file, under its name only when it is whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        checkpoint::write_atomically(path, self.as_bytes())
    }

    /// Reads a bank of `rows` vectors of `width` numbers back.
    pub fn load(path: &Path, rows: usize, width: usize) -> Result<Bank> {
        use std::io::Read as _;
        let mut file = File::open(path).map_err(Error::io(path, "reading"))?;
        let bytes = file.metadata().map_err(Error::io(path, "reading"))?.len();
        if bytes != Bank::bytes(rows, width) as u64 {
            let message = format!("{bytes} bytes are no bank of {rows} sentence vectors of {width} numbers");
            return Err(Error::format(path, message));
        }
        let mut values = vec![f16::ZERO; rows * width];
        file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(Error::io(path, "reading"))?;
        Ok(Bank { width, values })
    }
}

/// A prepared pass over a data set that fills banks: run it as often as the model changes.
#[derive(Debug)]
pub struct Encoder {
    prepared: Prepared,
    plan: EvaluationPlan,
    batch: Batch,
    values: Vec<f32>,
}

impl Encoder {
    /// Emits and prepares the program, for batches of up to `token_budget` tokens, of [`Sentence::Cls`].
    pub fn new(session: &mut Session, data: &Dataset, token_budget: usize) -> Result<Encoder> {
        Encoder::of(Sentence::Cls, session, data, token_budget)
    }

    /// The same with what stands for a sentence.
    pub fn of(
        sentence: Sentence,
        session: &mut Session,
        data: &Dataset,
        token_budget: usize,
    ) -> Result<Encoder> {
        let lengths = data.lengths();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let plan = EvaluationPlan::new(&lengths, token_budget.max(longest))?;
        let options = EmitOptions { sentences: true, sentence, ..EmitOptions::default() };
        let capacity = session::capacity(&plan.batches, &lengths);
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity)?;
        Ok(Encoder { prepared, plan, batch: Batch::default(), values: Vec::new() })
    }

    /// The bank of the session's model as it is, without dropout. Fails on a vector that is not finite.
    pub fn fill(&mut self, session: &mut Session, data: &Dataset, progress: &Progress) -> Result<Bank> {
        let Some(slot) = self.prepared.slots.sentence else {
            return Err(Error::usage("the model has no sentence vectors"));
        };
        let width = self.prepared.slots.program.slot(slot).cols;
        let count = data.examples.len();
        let mut values = vec![f16::ZERO; count * width];
        let mut stage = progress.stage("sentence vectors", count as u64, "rows");
        for rows in &self.plan.batches {
            progress.check(|| "the bank of sentence vectors was not finished".into())?;
            data.fill(&mut self.batch, rows, 0)?;
            let extents = session.feed(&self.prepared, &self.batch, Weighting::EachRow)?;
            session.run(&self.prepared, &extents)?;
            session.read(&self.prepared, slot, &extents, &mut self.values)?;
            if let Some(at) = self.values.iter().position(|value| !value.is_finite()) {
                let (value, place) = (f64::from(self.values[at]), format!("of row {}", rows[at / width]));
                return Err(Error::NotFinite { what: "the sentence vector".into(), value, place });
            }
            let filled = Bank::of(width, std::mem::take(&mut self.values));
            for (&row, vector) in rows.iter().zip(filled.values.chunks(width)) {
                values[row * width..(row + 1) * width].copy_from_slice(vector);
            }
            stage.advance(rows.len() as u64);
        }
        Ok(Bank { width, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_directions_and_files_hold_them() {
        let bank = Bank::of(2, vec![3.0, 4.0, 0.0, 0.0, -5e20, 0.0]);
        let row = |row| {
            let mut out = [9.0; 2];
            bank.read(row, &mut out);
            out
        };
        assert!((row(0)[0] - 0.6).abs() < 2e-4 && (row(0)[1] - 0.8).abs() < 3e-4, "{:?}", row(0));
        assert_eq!((row(1), row(2), bank.rows(), bank.width()), ([0.0; 2], [-1.0, 0.0], 3, 2));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bank");
        bank.save(&path).unwrap();
        assert_eq!(Bank::load(&path, 3, 2).unwrap(), bank);
        assert!(Bank::load(&path, 4, 2).unwrap_err().to_string().contains("12 bytes"));
    }
}
