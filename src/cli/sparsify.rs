//! `secateur sparsify`

mod choices;

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use secateur::data::{Dataset, Split, Task, TaskKind};
use secateur::export::mask_file;
use secateur::model::{Head as TaskHead, HeadRequest, Model, WeightMasks};
use secateur::prune::sparse::{Head, LambdaSearch, Masking, Options, label_words};
use secateur::report::RunRecord;
use secateur::report::format;
use secateur::report::record::Choice;
use secateur::session::Session;
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::teacher::Teacher;
use secateur::train::{Recipe, finetune};
use secateur::{Error, Result};

use self::choices::{Choices, only};
use super::context::Context;
use super::contrast::taught;
use super::options::{ModelOptions, OutputOptions, TaskOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::prune::write_report;
use super::{evaluate, finetune as finetune_command, load, training};

/// Distance from the fraction asked for, relative to it, at which a search for λ ends and beyond which there is a warning.
const TOLERANCE: f64 = 0.02;

/// Most tokens of a micro-batch of a language model that learns from another: the logits of both, and their gradient, are
/// held for every token (600 MB for GPT-2).
const TAUGHT_TOKENS: usize = 1024;

/// Learn which weights of the layers to keep (unstructured pruning): SMP, movement pruning and its relatives.
///
/// Writes masks.safetensors (a bit for every weight of the layers), run.json and report.html; where the method trains
/// weights, also model.safetensors, config.json and the tokenizer, masked weights being zero. SMP trains no weight: its
/// masks belong to the model they were learnt on, `evaluate --mask-file` puts the two together. cap-m and cap-soft are
/// movement pruning that also learns from the sentence vectors of the teacher, and of the model itself at the start of every
/// epoch; each of these keeps a vector a training row in memory and beside the checkpoint, 2 bytes a number: 6.6 GB for
/// BERT-base in 10 epochs of MNLI. Zeros in dense matrices
/// make a model smaller to store, not faster. Interrupted with Ctrl-C, the run is continued by the same command with
/// --resume.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur sparsify --method smp --keep-weights 0.1 --model bert-base-uncased --task mrpc --data MRPC --out masks\n  \
                  secateur sparsify --method movement --keep-weights 0.1 --model bert-base-uncased --task mrpc --data MRPC \\\n    \
                  --teacher tuned --out sparse\n  \
                  secateur sparsify --method cap-m --keep-weights 0.1 --model bert-base-uncased --task mrpc --data MRPC \\\n    \
                  --teacher tuned --out contrastive"
)]
pub struct Sparsify {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    task: TaskOptions,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    train: TrainOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Sparsify {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let source = load::source(&self.model.model)?;
        let mut task = load::task(&self.task)?;
        if matches!(task.kind, TaskKind::MaskedLanguageModel) {
            return Err(Error::usage(
                "masks are learnt for a task; masked language modelling is how models begin",
            ));
        }
        let mut options = self.choices.resolve(&task, source.config.family)?;
        let language_model = task.kind == TaskKind::CausalLanguageModel;
        if language_model {
            // The model's own head answers, frozen as the rest of it is.
            options.head = Head::LabelWords;
        }
        self.check_read(&options, language_model)?;
        let recipe = training::recipe(&self.train.recipe, masked::usual_recipe(&options, &task.name))?;
        let output = Output::create(&self.output, self.train.resume)?;
        let mut record = context.record("sparsify");
        let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
        let dev = load::split(context, &mut record, &mut task, &self.task, &source, Split::Dev)?;
        let head = load::head(&task);
        let words = match options.head {
            Head::LabelWords if !language_model => {
                let words = self.choices.label_words.as_deref();
                Some(label_words::tokens(&task, words, options.profile, &source.tokenizer)?)
            }
            _ => None,
        };
        let sentences = options.contrast.map(|_| options.sentence);
        let teacher = match &self.choices.teacher {
            Some(name) => Some(taught(context, name, (&task, head), &data, &source, sentences)?),
            None => None,
        };
        let mut method = self.choices.record(&options);
        if let Some(words) = &words {
            let shown: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
            let given = self.choices.label_words.is_some();
            method.choices.set("label-words", Choice { value: shown.join(","), given });
        }
        if language_model {
            let frozen = if options.trains_weights() { "" } else { ", frozen" };
            method.choices.set("head", Choice { value: format!("language model{frozen}"), given: false });
        }
        record.method = Some(method);

        let job = Job {
            source: &source,
            words: words.as_deref(),
            head,
            options: &options,
            recipe: &recipe,
            task: &task,
            data: &data,
            dev: &dev,
            teacher,
        };
        let (mut model, masks) = self.search(context, &mut record, &job, output.path())?;
        if let Some(missed) = missed(&options, masks.kept_fraction()) {
            context.progress.warn(missed);
        }
        let words = words.as_deref().map_or(Vec::new(), ids);
        write_masks(output.path(), &masks, &model, &words)?;
        if options.trains_weights() || options.head == Head::Trained {
            masks.apply(&mut model)?;
            training::save(output.path(), model, &task, &source.tokenizer)?;
        }
        context.finish(&mut record);
        write_report(output.path(), &record, None)?;
        output.commit()?;
        let kept = format!(
            "kept {} of {} weights ({})\n",
            masks.kept(),
            masks.total(),
            format::percent(masks.kept_fraction())
        );
        context.show(&[record.clone()], |styled| kept + &finetune_command::summary(&record, styled));
        Ok(())
    }

    /// Fails on options that would not be read.
    fn check_read(&self, options: &Options, language_model: bool) -> Result<()> {
        let Sparsify { choices, train: TrainOptions { recipe, .. }, .. } = self;
        only(
            language_model && (choices.trained_head || choices.label_words.is_some()),
            "--trained-head or --label-words",
            "tasks with classes, numbers or spans; a language model answers with its own head",
        )?;
        let nothing_else = !options.trains_weights() && options.head == Head::LabelWords;
        only(
            nothing_else && (recipe.learning_rate.is_some() || recipe.weight_decay.is_some()),
            "--learning-rate or --weight-decay",
            "what is trained beside the scores, here nothing; --score-learning-rate is that of the scores",
        )
    }

    /// The model with its task head, masked and frozen as the options say.
    fn load(&self, context: &Context, record: &mut RunRecord, job: &Job) -> Result<Model> {
        let Job { source, head, .. } = *job;
        // Another trial of a search reads what is in the record already.
        let fresh = record.model.is_none();
        let mut model = match job.words {
            Some(words) => {
                load::label_word_model(context, record, source, &self.model.model, head, &ids(words))?
            }
            None if fresh => {
                let request = HeadRequest::Task(head);
                load::weights(context, record, &source.directory, &self.model.model, request)?
            }
            None => Model::load(&source.directory, HeadRequest::Task(head), context.seed)?,
        };
        masked::prepare_model(&mut model, job.options);
        Ok(model)
    }

    /// One training, or those of a search for λ, of which the nearest is taken.
    fn search(
        &self,
        context: &Context,
        record: &mut RunRecord,
        job: &Job,
        folder: &Path,
    ) -> Result<(Model, WeightMasks)> {
        let Some(most) = self.choices.search_lambda else {
            return self.train(context, record, job, &folder.join(CHECKPOINTS));
        };
        let mut search = LambdaSearch::new(job.options.keep, TOLERANCE, job.options.lambda, most);
        let mut best = None;
        while let Some(lambda) = search.next_lambda() {
            let options = Options { lambda, ..job.options.clone() };
            let number = search.trials().len();
            let checkpoints = folder.join(CHECKPOINTS).join(format!("trial-{}", number + 1));
            let job = Job { options: &options, teacher: job.teacher.clone(), ..*job };
            let mut trial = record.clone();
            let (model, masks) = self.train(context, &mut trial, &job, &checkpoints)?;
            search.record(lambda, masks.kept_fraction());
            let kept = format::percent(masks.kept_fraction());
            context.progress.note(format!("λ {lambda:.3}: {kept} of the weights are kept"));
            if search.best().is_some_and(|(nearest, _)| nearest == number) {
                best = Some((trial, model, masks, lambda));
            }
        }
        let Some((trial, model, masks, lambda)) = best else {
            return Err(Error::usage("a search without a trial"));
        };
        *record = trial;
        if let Some(method) = &mut record.method {
            method.choices.set("lambda", Choice { value: lambda.to_string(), given: false });
        }
        let trials = search
            .trials()
            .iter()
            .map(|(lambda, kept)| serde_json::json!({"lambda": lambda, "keep_weights": kept}));
        if let Some(result) = &mut record.result {
            result["lambda_search"] = trials.collect::<Vec<_>>().into();
        }
        Ok((model, masks))
    }

    /// Trains, evaluates the result, and gives back the model (frozen weights as they were loaded) and the masks.
    fn train(
        &self,
        context: &Context,
        record: &mut RunRecord,
        job: &Job,
        checkpoints: &Path,
    ) -> Result<(Model, WeightMasks)> {
        let mut session = Session::new(self.load(context, record, job)?, context.device)?;
        let mut run = finetune::Options {
            seed: context.seed,
            max_steps: self.train.recipe.steps,
            checkpoints: Some(checkpoints.to_path_buf()),
            ..finetune::Options::default()
        };
        let Job { options, recipe, task, data, dev, .. } = *job;
        if job.head.is_language_model() && job.teacher.is_some() {
            run.token_budget = TAUGHT_TOKENS;
        }
        let make = |session: &mut Session, size| {
            MaskedTrainer::new(session, recipe, options, task, job.teacher.clone(), run.seed, size)
        };
        let progress = &context.progress;
        let history = finetune::drive(&mut session, task, data, Some(dev), recipe, &run, progress, make)?;
        let name = record.method.as_ref().map_or(String::new(), |method| method.name.clone());
        record.training.push(training::training_record(&name, &task.name, recipe, history));
        let masks = masked::weight_masks(&mut session)?;
        let split = Split::Dev.to_string();
        let mut found = evaluate::measure(&mut session, task, dev, None, &name, &split, progress)?;
        // Dense kernels multiply the zeros too.
        found.keep_flops = 1.0;
        record.evaluations.push(found);
        record.result = Some(serde_json::json!({
            "weights": masks.total(),
            "weights_kept": masks.kept(),
            "keep_weights": masks.kept_fraction(),
        }));
        Ok((masked::into_model(session)?, masks))
    }
}

/// One run.
struct Job<'a> {
    source: &'a load::Source,
    /// Label words with their tokens; without, the head is the task's own.
    words: Option<&'a [(String, u32)]>,
    head: TaskHead,
    options: &'a Options,
    recipe: &'a Recipe,
    task: &'a Task,
    data: &'a Dataset,
    dev: &'a Dataset,
    /// What the teacher says of each training row.
    teacher: Option<Arc<Teacher>>,
}

/// What to say where a method keeps another fraction than it was asked for.
fn missed(options: &Options, kept: f64) -> Option<String> {
    if (kept - options.keep).abs() <= TOLERANCE * options.keep {
        return None;
    }
    let why = match options.masking {
        Masking::Threshold | Masking::HardConcrete if !options.snap => {
            "what is kept follows from the threshold and λ; --snap ends with exactly the fraction, --search-lambda N looks \
             for the λ that leads to it, in up to N trainings"
        }
        Masking::Fractions { .. } => {
            "a matrix whose fraction came to more than 1 is kept whole, and the rest is not given to others; --masking local \
             and global keep exactly the fraction"
        }
        // Whole numbers of weights.
        _ => return None,
    };
    let (kept, asked) = (format::percent(kept), format::percent(options.keep));
    Some(format!("{kept} of the weights are kept, not {asked}: {why}"))
}

/// Tokens of label words.
fn ids(words: &[(String, u32)]) -> Vec<u32> {
    words.iter().map(|(_, id)| *id).collect()
}

/// Writes `masks.safetensors`.
fn write_masks(folder: &Path, masks: &WeightMasks, model: &Model, label_words: &[u32]) -> Result<()> {
    let path = folder.join("masks.safetensors");
    let file = mask_file::encode(masks, model, label_words)?;
    std::fs::write(&path, file).map_err(Error::io(&path, "writing"))
}
