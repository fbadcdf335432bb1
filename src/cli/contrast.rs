//! What the commands with contrastive terms share: their options, and asking the teacher.

use std::sync::Arc;

use clap::Args;
use secateur::data::{Dataset, Task, TaskKind};
use secateur::model::{Head, HeadRequest, Model, Sentence};
use secateur::prune::contrastive;
use secateur::report::record::{Choice, Method};
use secateur::train::teacher::{self, Teacher};
use secateur::{Error, Result};

use super::context::Context;
use super::load;

/// Most tokens of a batch that a teacher answers at once, or that a bank is filled with.
pub const TOKEN_BUDGET: usize = 4096;

/// Choices of contrastive terms.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Contrastive terms (cap-m, cap-soft, cap-f)")]
pub struct ContrastOptions {
    /// Weights of the contrastive losses, of the same example and of the same class. Default: as published; 0 for the second
    /// where the task has no classes.
    #[arg(long, value_name = "EXAMPLE,CLASS", value_delimiter = ',', num_args = 1)]
    pub contrastive_weights: Option<Vec<f64>>,
    /// Temperature of the contrastive losses. Default: 0.1; of cap-f on SQuAD 0.3.
    #[arg(long, value_name = "TAU")]
    pub contrastive_temperature: Option<f64>,
    /// Sentence vectors of each bank that a batch is compared with beside its own. Default: 4096.
    #[arg(long, value_name = "N")]
    pub extra_candidates: Option<usize>,
}

impl ContrastOptions {
    /// Whether any was given.
    pub fn given(&self) -> bool {
        let ContrastOptions { contrastive_weights, contrastive_temperature, extra_candidates } = self;
        contrastive_weights.is_some() || contrastive_temperature.is_some() || extra_candidates.is_some()
    }

    /// Changes what was given.
    pub fn resolve(&self, contrast: &mut contrastive::Options, task: &Task) -> Result<()> {
        let classes = task.kind == TaskKind::Classification;
        match self.contrastive_weights.as_deref() {
            None if !classes => contrast.supervised_weight = 0.0,
            None => {}
            Some(&[example, class]) if classes || class == 0.0 => {
                (contrast.unsupervised_weight, contrast.supervised_weight) = (example, class);
            }
            Some([_, class]) => {
                return Err(Error::usage(format!(
                    "--contrastive-weights: the task {} has no classes, so the second weight must be 0, not {class}",
                    task.name
                )));
            }
            Some(_) => return Err(Error::usage("--contrastive-weights takes two numbers: EXAMPLE,CLASS")),
        }
        contrast.temperature = self.contrastive_temperature.unwrap_or(contrast.temperature);
        contrast.extra = self.extra_candidates.unwrap_or(contrast.extra);
        contrast.check()
    }

    /// Notes the choices, each marked where it was given.
    pub fn record(&self, contrast: &contrastive::Options, record: &mut Method) {
        let mut set =
            |name: &str, value: String, given: bool| record.choices.set(name, Choice { value, given });
        let weights = format!("{},{}", contrast.unsupervised_weight, contrast.supervised_weight);
        set("contrastive-weights", weights, self.contrastive_weights.is_some());
        let temperature = contrast.temperature.to_string();
        set("contrastive-temperature", temperature, self.contrastive_temperature.is_some());
        set("extra-candidates", contrast.extra.to_string(), self.extra_candidates.is_some());
    }
}

/// What the teacher `name` says of each training row, the vectors of [`Sentence::Cls`] too where they are wanted.
pub fn teacher(
    context: &Context,
    name: &str,
    of: (&Task, Head),
    data: &Dataset,
    student: &load::Source,
    sentences: bool,
) -> Result<Arc<Teacher>> {
    taught(context, name, of, data, student, sentences.then_some(Sentence::Cls))
}

/// The same with any sentence vectors; a language model's teacher is loaded, to run beside the student.
pub fn taught(
    context: &Context,
    name: &str,
    (task, head): (&Task, Head),
    data: &Dataset,
    student: &load::Source,
    sentences: Option<Sentence>,
) -> Result<Arc<Teacher>> {
    if head.is_language_model() && sentences.is_some() {
        return Err(Error::usage(
            "contrastive terms compare sentences: they need a task that classifies, or answers, not a language model",
        ));
    }
    let source = load::source(name)?;
    teacher::check_labels(&source.config, head, task)?;
    teacher::check_tokens(&source.tokenizer, &student.tokenizer)?;
    if sentences.is_some() {
        teacher::check_width(&source.config, &student.config)?;
    }
    if head.is_language_model() {
        let longest = data.lengths().into_iter().max().unwrap_or(0);
        teacher::check_language_model(&source.config, &student.config, longest)?;
    }
    let model = Model::load(&source.directory, HeadRequest::Task(head), context.seed)?;
    if head.is_language_model() {
        return Ok(Arc::new(Teacher::of_language_model(model, context.device)));
    }
    let progress = &context.progress;
    Ok(Arc::new(teacher::ask(model, context.device, task, data, TOKEN_BUDGET, sentences, progress)?))
}
