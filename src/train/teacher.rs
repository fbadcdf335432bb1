//! A teacher for distillation: a model that has been trained for the task, asked once for every training row.
//!
//! Dropout is off when a teacher answers, so its outputs never change and are computed once: two numbers a token for
//! spans, the logits of the classes for everything else. A teacher must number the classes as the task does, which is
//! checked by their names, and read the same tokens.

use super::banks::{Bank, Encoder};
use crate::data::{Dataset, Task, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::evaluate::Evaluator;
use crate::model::{Head, Model, ModelConfig};
use crate::progress::Progress;
use crate::session::{Device, Session};

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

/// What a teacher says of every row of the data, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Teacher {
    /// Its outputs.
    pub outputs: Vec<Vec<f32>>,
    /// Its sentence vectors, where they were asked for.
    pub sentences: Option<Bank>,
}

impl Teacher {
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

/// Asks a teacher for its outputs and, where `sentences` says so, for its sentence vectors.
pub fn ask(
    model: Model,
    device: Device,
    task: &Task,
    data: &Dataset,
    token_budget: usize,
    sentences: bool,
    progress: &Progress,
) -> Result<Teacher> {
    let mut session = Session::new(model, device)?;
    let mut evaluator = Evaluator::new(&mut session, task, data, token_budget, false)?;
    let (outputs, _) = evaluator.outputs(&mut session, task, data, "asking the teacher", progress)?;
    let sentences = match sentences {
        true => Some(Encoder::new(&mut session, data, token_budget)?.fill(&mut session, data, progress)?),
        false => None,
    };
    Ok(Teacher { outputs, sentences })
}
