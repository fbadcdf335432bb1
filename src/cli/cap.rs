//! `secateur cap-f`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use secateur::data::{Dataset, Split, Task, TaskKind};
use secateur::model::{EmptySublayers, Head, HeadRequest, LayerWidths, Model};
use secateur::prune::cap::{self, Options};
use secateur::prune::{CostModel, UnitMasks};
use secateur::report::RunRecord;
use secateur::report::record::{Choice, Evaluation, Feasible, Method, Size, Training};
use secateur::session::Session;
use secateur::train::banks::{Bank, Encoder};
use secateur::train::contrast::{self, Contrast};
use secateur::train::finetune;
use secateur::train::objective::Objective;
use secateur::train::stepper::RunSize;
use secateur::train::teacher::Teacher;
use secateur::train::{Recipe, Trainer};
use secateur::{Error, Result};

use super::context::Context;
use super::contrast::{ContrastOptions, TOKEN_BUDGET, teacher};
use super::options::{ModelOptions, OutputOptions, TaskOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::prune::write_report;
use super::{evaluate, finetune as finetune_command, load, prune, training};

/// Prune heads and neurons a tenth at a time, training with a teacher and contrastive terms after each step (CAP-f).
///
/// Before each step the units are scored by the gradients of their masks on the training rows; those that go are removed, so
/// every step trains a smaller model. The training learns from the labels, from the teacher's answers, and from the sentence
/// vectors of the pre-trained model, of the teacher and of the model before each step. --epochs and --steps are those after
/// each step; the default is 2 epochs of batches of 16, learning rate 2e-5 (SQuAD 3e-5), decay 0.01, warm-up 0.1.
///
/// Writes the model, masks.json (of the model as it was given), run.json and report.html. Interrupted with Ctrl-C, the run is
/// continued by the same command with --resume.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur cap-f --model bert-base-uncased --teacher TUNED --task mrpc --data MRPC --keep-flops 0.5 --out small"
)]
pub struct CapF {
    #[command(flatten)]
    model: ModelOptions,
    /// Fine-tuned model of the task, of the same hidden size: it teaches.
    #[arg(long, value_name = "DIR|NAME")]
    teacher: String,
    #[command(flatten)]
    task: TaskOptions,
    /// Fraction of the heads and of the neurons to keep, and so of the multiply–accumulates of the transformer blocks. The
    /// best head of every layer stays.
    #[arg(long, value_name = "FRACTION")]
    keep_flops: f64,
    #[command(flatten)]
    contrast: ContrastOptions,
    #[command(flatten)]
    train: TrainOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// The released recipe of the training after each step.
fn usual_recipe(task: &Task) -> Recipe {
    let squad = matches!(task.kind, TaskKind::Span { .. });
    let learning_rate = if squad { 3e-5 } else { 2e-5 };
    Recipe { learning_rate, batch_size: 16, epochs: 2, warmup: 0.1, weight_decay: 0.01, ..Recipe::default() }
}

/// What no step changes.
struct Job<'a> {
    context: &'a Context,
    task: &'a Task,
    head: Head,
    data: &'a Dataset,
    dev: &'a Dataset,
    source: &'a load::Source,
    teacher: Arc<Teacher>,
    options: &'a Options,
    recipe: &'a Recipe,
    /// Widths before any pruning.
    dense: &'a [LayerWidths],
    steps: Option<u64>,
    folder: PathBuf,
    identity: String,
}

/// The model after some steps.
struct State {
    model: Model,
    /// Units of the dense model that are left.
    kept: UnitMasks,
    /// Of the model before each step.
    banks: Vec<Arc<Bank>>,
    training: Vec<Training>,
}

impl CapF {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let source = load::source(&self.model.model)?;
        let mut task = load::task(&self.task)?;
        if matches!(task.kind, TaskKind::CausalLanguageModel | TaskKind::MaskedLanguageModel) {
            return Err(Error::usage("cap-f compares sentences: it needs a task that classifies or answers"));
        }
        let mut options = Options::new(matches!(task.kind, TaskKind::Span { .. }));
        self.contrast.resolve(&mut options.contrast, &task)?;
        let stages = options.stages(self.keep_flops, &source.config.widths())?;
        let recipe = training::recipe(&self.train.recipe, usual_recipe(&task))?;
        let output = Output::create(&self.output, self.train.resume)?;
        let mut record = context.record("cap-f");
        let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
        let dev = load::split(context, &mut record, &mut task, &self.task, &source, Split::Dev)?;
        let head = load::head(&task);
        let teacher = teacher(context, &self.teacher, (&task, head), &data, &source, true)?;
        let request = HeadRequest::Task(head);
        let model = load::weights(context, &mut record, &source.directory, &self.model.model, request)?;
        let dense = model.config().widths();
        let parameters = model.layout().total_elements() as u64;
        let (hidden, head_dim) = (model.config().hidden, model.config().head_dim);
        let cost = CostModel::new(hidden, head_dim, data.mean_length(), dense.clone())?;
        record.method = Some(self.describe(&options));
        record.feasible = Some(Feasible { least: options.least(&dense), most: 1.0 });
        let folder = output.path().join(CHECKPOINTS);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "creating"))?;
        let (keep, steps, seed) = (self.keep_flops, self.train.recipe.steps, context.seed);
        let choices = format!("{options:?}{recipe:?}{keep}{steps:?}{seed}");
        let identity = identity(&model, &teacher, &data, &choices);
        let job = Job {
            context,
            task: &task,
            head,
            data: &data,
            dev: &dev,
            source: &source,
            teacher,
            options: &options,
            recipe: &recipe,
            dense: &dense,
            steps,
            folder,
            identity,
        };
        let mut state =
            State { model, kept: UnitMasks::ones(&dense), banks: Vec::new(), training: Vec::new() };
        let done = job.resume(&mut state)?;
        for (number, &left) in stages.iter().enumerate().skip(done) {
            state = job.step(&mut record, state, number, left)?;
        }

        let State { model, kept, training: trained, .. } = state;
        let kept_parameters = model.layout().total_elements() as u64;
        record.size = Some(Size::of_f32(parameters, kept_parameters));
        record.training = trained;
        let budget = cost.record(self.keep_flops, &kept)?;
        record.set_budget(&budget, &dense);
        let mut session = Session::new(model, context.device)?;
        let (split, progress) = (Split::Dev.to_string(), &context.progress);
        let found = evaluate::measure(&mut session, &task, &dev, None, "cap-f", &split, progress)?;
        record.evaluations.push(Evaluation { keep_flops: budget.reached, ..found });
        training::save(output.path(), session.into_model()?, &task, &source.tokenizer)?;
        kept.write(&output.path().join("masks.json"))?;
        context.finish(&mut record);
        write_report(output.path(), &record, Some(&kept))?;
        output.commit()?;
        context.show(&[record.clone()], |styled| {
            let budget = prune::summary(std::slice::from_ref(&record), styled);
            format!("{budget}\n{}", finetune_command::summary(&record, styled))
        });
        Ok(())
    }

    fn describe(&self, options: &Options) -> Method {
        let mut record = Method { name: "cap-f".into(), profile: "default".into(), ..Method::default() };
        let mut set = |name: &str, value: String| record.choices.set(name, Choice { value, given: false });
        set("step", options.step.to_string());
        set("normalise", options.normalise.to_string());
        set("least-heads", options.least_heads.to_string());
        let distillation = options.distillation;
        let (a, b, t) = (distillation.task_weight, distillation.teacher_weight, distillation.temperature);
        set("distillation", format!("{a} task, {b} teacher, temperature {t}"));
        self.contrast.record(&options.contrast, &mut record);
        record
    }
}

/// Identifies a run: a step that another left is refused.
fn identity(model: &Model, teacher: &Teacher, data: &Dataset, choices: &str) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(choices.as_bytes());
    hash.update(bytemuck::cast_slice(&model.values));
    for example in &data.examples {
        hash.update(format!("{example:?}").as_bytes());
    }
    for outputs in &teacher.outputs {
        hash.update(bytemuck::cast_slice(outputs));
    }
    hash.update(teacher.sentences.as_ref().map_or(&[], Bank::as_bytes));
    hash.finalize().to_hex().to_string()
}

/// File beside the model of a finished step: whose it is, and the trainings so far.
const STEP: &str = "step.json";

impl Job<'_> {
    fn finished(&self, number: usize) -> PathBuf {
        self.folder.join(format!("step-{}", number + 1))
    }

    fn checkpoints(&self, number: usize) -> PathBuf {
        self.folder.join(format!("step-{}-training", number + 1))
    }

    /// Continues behind the last step that was finished, if there is one; returns how many were.
    fn resume(&self, state: &mut State) -> Result<usize> {
        let Some(number) = (0..1000).rev().find(|&number| self.finished(number).is_dir()) else {
            return Ok(0);
        };
        let folder = self.finished(number);
        let path = folder.join(STEP);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "reading"))?;
        let (identity, trained): (String, Vec<Training>) =
            serde_json::from_str(&text).map_err(|e| Error::format(&path, e.to_string()))?;
        if identity != self.identity {
            let message = "belongs to another run (other model, teacher, data, choices or seed); remove it to start anew";
            return Err(Error::format(&path, message));
        }
        state.model = Model::load(&folder, HeadRequest::Task(self.head), self.context.seed)?;
        state.kept = UnitMasks::read(&folder.join("masks.json"))?;
        state.kept.check_widths(self.dense)?;
        state.training = trained;
        if let Some(like) = &self.teacher.sentences {
            let load = |number| {
                Bank::load(&contrast::file(&self.folder, number), like.rows(), like.width()).map(Arc::new)
            };
            state.banks = (0..=number).map(load).collect::<Result<_>>()?;
        }
        self.context.progress.note(format!("resuming after step {}", number + 1));
        Ok(number + 1)
    }

    /// Prunes until `left` of the units are left, and trains.
    fn step(&self, record: &mut RunRecord, state: State, number: usize, left: f64) -> Result<State> {
        let State { model, kept, mut banks, mut training } = state;
        let Job { context, options, recipe, data, .. } = *self;
        let progress = &context.progress;
        let _stage = progress.stage(&format!("step {}", number + 1), 0, "");
        let rows = &data.examples;
        let scores = cap::score(&model, context.device, rows, recipe.batch_size, options, progress)?;
        let masks = cap::select(&scores, left, self.dense, options);
        banks.push(Arc::new(self.bank(&model, number)?));
        let examples = &self.dev.examples;
        let small = training::compact(context, record, &model, &masks, EmptySublayers::KeepBias, examples)?;
        drop(model);
        let kept = cap::compose(&kept, &masks);
        let (session, history) = self.train(small, &banks, number)?;
        let name = format!("cap-f {left:.3}");
        training.push(training::training_record(&name, &self.task.name, recipe, history));
        let state = State { model: session.into_model()?, kept, banks, training };
        self.save(&state, number)?;
        Ok(state)
    }

    /// The sentence vectors of the model before a step, kept beside the checkpoints.
    fn bank(&self, model: &Model, number: usize) -> Result<Bank> {
        let mut session = Session::of(model, self.context.device)?;
        let mut encoder = Encoder::new(&mut session, self.data, TOKEN_BUDGET)?;
        let bank = encoder.fill(&mut session, self.data, &self.context.progress)?;
        self.teacher.check(&bank)?;
        bank.save(&contrast::file(&self.folder, number))?;
        Ok(bank)
    }

    fn train(
        &self,
        model: Model,
        banks: &[Arc<Bank>],
        number: usize,
    ) -> Result<(Session, finetune::History)> {
        let Job { context, task, options, recipe, .. } = *self;
        let mut session = Session::new(model, context.device)?;
        // Every step draws rows and candidates of its own.
        let seed = context.seed.wrapping_add(number as u64);
        let run = finetune::Options {
            seed,
            max_steps: self.steps,
            checkpoints: Some(self.checkpoints(number)),
            // The learning rate has fallen to 0: the last epoch is the result.
            keep_best: false,
            ..finetune::Options::default()
        };
        let make = |session: &mut Session, size: RunSize| {
            let (supervised, teacher) = (task.kind == TaskKind::Classification, self.teacher.clone());
            let (count, capacity) = (banks.len() as u64, size.capacity);
            let terms = Contrast::new(&options.contrast, supervised, teacher.clone(), seed, count, capacity)?;
            let terms = Some(terms.with_banks(banks.to_vec()));
            let objective = Objective::new(Some(options.distillation), Some(teacher), terms)?;
            Trainer::with_objective(session, recipe, objective, seed, size.total_steps, capacity)
        };
        let (dev, progress) = (Some(self.dev), &context.progress);
        let history = finetune::drive(&mut session, task, self.data, dev, recipe, &run, progress, make)?;
        Ok((session, history))
    }

    /// Keeps what a step led to, in place of what the one before did.
    fn save(&self, state: &State, number: usize) -> Result<()> {
        let finished = self.finished(number);
        let partial = finished.with_extension("partial");
        remove(&partial)?;
        std::fs::create_dir_all(&partial).map_err(Error::io(&partial, "creating"))?;
        training::save(&partial, state.model.clone(), self.task, &self.source.tokenizer)?;
        state.kept.write(&partial.join("masks.json"))?;
        let path = partial.join(STEP);
        let text = serde_json::to_string(&(&self.identity, &state.training))
            .map_err(|e| Error::format(&path, e.to_string()))?;
        std::fs::write(&path, text).map_err(Error::io(&path, "writing"))?;
        std::fs::rename(&partial, &finished).map_err(Error::io(&finished, "renaming"))?;
        // The checkpoint of this step stays: it says that the directory is one to resume.
        if let Some(before) = number.checked_sub(1) {
            remove(&self.finished(before))?;
            remove(&self.checkpoints(before))?;
        }
        Ok(())
    }
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, "removing")(e)),
        _ => Ok(()),
    }
}
