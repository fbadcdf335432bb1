//! A teacher for distillation: a model that has been trained for the task, asked once for every training row.
//!
//! Dropout is off when a teacher answers, so its outputs never change and are computed once: two numbers a token for
//! spans, the logits of the classes for everything else. Those of a language model, a number for every token of the
//! vocabulary at every token of the data, would fit no memory: it runs beside the student and answers every micro-batch
//! anew. A teacher must number the classes as the task does, which is checked by their names, and read the same tokens.

use super::banks::{Bank, Encoder};
use crate::data::{Batch, Dataset, Task, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::evaluate::Evaluator;
use crate::model::{EmitOptions, Head, Logits, Model, ModelConfig, Sentence};
use crate::program::{Extents, Mode};
use crate::progress::Progress;
use crate::session::{Device, Prepared, Session, Weighting};

/// Fails, naming both, where the teacher answers another question than the task, or names or orders its classes otherwise.
pub fn check_labels(teacher: &ModelConfig, head: Head, task: &Task) -> Result<()> {
    let wrong = |message: String| Err(Error::usage(format!("the teacher {message}")));
    match teacher.saved_head {
        Some(saved) if saved == head => {}
        // Regression is saved as a classifier of one class.
        Some(Head::Classification { .. } | Head::Regression)
            if matches!(head, Head::Classification { .. } | Head::Regression)
                && teacher.labels.len() == task.outputs().unwrap_or(0) => {}
        Some(Head::Classification { .. }) if matches!(head, Head::Classification { .. }) => {
            let (has, wants) = (teacher.labels.join(", "), task.labels.join(", "));
            return wrong(format!(
                "tells {} classes apart ({has}), the task {} ({wants})",
                teacher.labels.len(),
                task.labels.len()
            ));
        }
        Some(saved) => {
            return wrong(format!("has a head for {saved:?}, the task {} needs {head:?}", task.name));
        }
        None => return wrong("has no task head; fine-tune it first".into()),
    }
    if matches!(head, Head::Classification { .. }) && teacher.labels != task.labels {
        let (has, wants) = (teacher.labels.join(", "), task.labels.join(", "));
        return wrong(format!(
            "numbers its classes {has}, the task {} numbers them {wants}; \"id2label\" in its config.json says so",
            task.name
        ));
    }
    Ok(())
}

/// Fails where the teacher's tokens are not the student's.
pub fn check_tokens(teacher: &Tokenizer, student: &Tokenizer) -> Result<()> {
    let (ours, theirs) = (student.vocabulary_size(), teacher.vocabulary_size());
    let differs = (0..ours.max(theirs) as u32).find(|&id| teacher.token(id) != student.token(id));
    let Some(id) = differs else { return Ok(()) };
    Err(Error::usage(format!(
        "the teacher reads other tokens than the student: number {id} is {:?} for it, {:?} for the student",
        teacher.token(id).unwrap_or_default(),
        student.token(id).unwrap_or_default()
    )))
}

/// Fails where the sentence vectors of the teacher cannot be compared with the student's.
pub fn check_width(teacher: &ModelConfig, student: &ModelConfig) -> Result<()> {
    let (theirs, ours) = (teacher.embedding_size, student.embedding_size);
    if theirs == ours {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the teacher's sentence vectors have {theirs} numbers, the student's {ours}: contrastive pruning compares them, so \
         teacher and student need the same hidden size"
    )))
}

/// Fails where the logits of a language model's teacher are not of the student's vocabulary, or where it has fewer
/// positions than the longest row has tokens.
pub fn check_language_model(teacher: &ModelConfig, student: &ModelConfig, longest: usize) -> Result<()> {
    if teacher.vocab != student.vocab {
        return Err(Error::usage(format!(
            "the teacher has logits of {} tokens, the student of {}: a language model learns from one of its own vocabulary",
            teacher.vocab, student.vocab
        )));
    }
    if teacher.max_length() < longest {
        return Err(Error::usage(format!(
            "the teacher has {} positions, the longest row {longest} tokens; give --max-length {}",
            teacher.max_length(),
            teacher.max_length()
        )));
    }
    Ok(())
}

/// What a teacher says of every row of the data, in order; or, of a language model, the teacher itself.
#[derive(Clone, Debug, Default)]
pub struct Teacher {
    /// Its outputs; empty where it runs beside the student.
    pub outputs: Vec<Vec<f32>>,
    /// Its sentence vectors, where they were asked for.
    pub sentences: Option<Bank>,
    /// The teacher of a language model, and where it computes.
    pub model: Option<(Model, Device)>,
}

/// A language model's teacher at work.
pub struct Beside {
    session: Session,
    prepared: Prepared,
    logits: Vec<f32>,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beside").field("prepared", &self.prepared).finish_non_exhaustive()
    }
}

impl Beside {
    /// Prepares `model` for micro-batches up to `capacity`.
    pub fn new(model: &Model, device: Device, capacity: Extents) -> Result<Beside> {
        let mut session = Session::of(model, device)?;
        let options = EmitOptions { logits: Logits::Targets, ..EmitOptions::default() };
        let prepared = session.prepare(Mode::EVALUATE, &options, capacity)?;
        Ok(Beside { session, prepared, logits: Vec::new() })
    }

    /// Its logits of the predicted tokens of a micro-batch, `[R, V]`.
    pub fn answer(&mut self, batch: &Batch) -> Result<&[f32]> {
        let Beside { session, prepared, logits } = self;
        let Some(slot) = prepared.slots.logits else {
            return Err(Error::usage("the teacher has no head"));
        };
        let extents = session.feed(prepared, batch, Weighting::EachRow)?;
        session.run(prepared, &extents)?;
        session.read(prepared, slot, &extents, logits)?;
        Ok(logits)
    }

    /// Bytes of this process's memory that it holds.
    pub fn host_bytes(&self) -> usize {
        self.session.host_bytes() + size_of::<f32>() * self.logits.capacity()
    }
}

impl Teacher {
    /// One that stands beside a language model.
    pub fn of_language_model(model: Model, device: Device) -> Teacher {
        Teacher { model: Some((model, device)), ..Teacher::default() }
    }

    /// Fails where a bank of the model it teaches has other rows than its own, or vectors of another width.
    pub fn check(&self, bank: &Bank) -> Result<()> {
        let Some(own) = &self.sentences else { return Ok(()) };
        if (own.rows(), own.width()) == (bank.rows(), bank.width()) {
            return Ok(());
        }
        let of = |bank: &Bank| format!("{} vectors of {} numbers", bank.rows(), bank.width());
        let message = format!("the teacher gave {}, the model {}", of(own), of(bank));
        Err(Error::shape("banks of sentence vectors", message))
    }
}

/// Asks a teacher for its outputs and, where `sentences` says which, for its sentence vectors.
pub fn ask(
    model: Model,
    device: Device,
    task: &Task,
    data: &Dataset,
    token_budget: usize,
    sentences: Option<Sentence>,
    progress: &Progress,
) -> Result<Teacher> {
    let mut session = Session::new(model, device)?;
    let mut evaluator = Evaluator::new(&mut session, task, data, token_budget, false)?;
    let (outputs, _) = evaluator.outputs(&mut session, task, data, "asking the teacher", progress)?;
    let sentences = match sentences {
        Some(sentence) => {
            let mut encoder = Encoder::of(sentence, &mut session, data, token_budget)?;
            Some(encoder.fill(&mut session, data, progress)?)
        }
        None => None,
    };
    Ok(Teacher { outputs, sentences, model: None })
}
