//! `secateur sparsify`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use secateur::data::{Dataset, Split, Task, TaskKind, Tokenizer};
use secateur::export::mask_file;
use secateur::model::{Head as TaskHead, HeadRequest, LabelWordHead, Model, WeightMasks};
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Curve, Head, Masking, Method, Options, Profile, label_words};
use secateur::report::RunRecord;
use secateur::report::format;
use secateur::report::record::{Choice, Method as MethodRecord};
use secateur::session::Session;
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::{Recipe, finetune, teacher};
use secateur::{Error, Result};

use super::context::Context;
use super::options::{self, ModelOptions, OutputOptions, TaskOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::prune::write_report;
use super::{evaluate, finetune as finetune_command, load, training};

/// Most tokens of a batch that a teacher answers at once.
const TOKEN_BUDGET: usize = 4096;

/// Learn which weights of the layers to keep (unstructured pruning): SMP, movement pruning and its relatives.
///
/// Writes masks.safetensors (a bit for every weight of the layers), run.json and report.html; where the method trains
/// weights, also model.safetensors, config.json and the tokenizer, masked weights being zero. SMP trains no weight: its
/// masks belong to the model they were learnt on, `evaluate --mask-file` puts the two together. Zeros in dense matrices
/// make a model smaller to store, not faster. Interrupted with Ctrl-C, the run is continued by the same command with
/// --resume.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur sparsify --method smp --keep-weights 0.1 --model bert-base-uncased --task mrpc --data MRPC --out masks\n  \
                  secateur sparsify --method movement --keep-weights 0.1 --model bert-base-uncased --task mrpc --data MRPC \\\n    \
                  --teacher tuned --out sparse"
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

/// Method and choices.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub struct Choices {
    /// How masks are learnt.
    #[arg(long, value_enum)]
    method: MethodName,
    /// Fraction of the layers' weights to keep, above 0 and at most 1. soft-movement and l0 reach it by --lambda and
    /// --threshold only; --snap makes them end with it.
    #[arg(long, value_name = "FRACTION")]
    keep_weights: f64,
    /// Where choices that are not given come from.
    #[arg(long, value_enum, default_value_t = options::Profile::Default)]
    profile: options::Profile,
    /// SMP: what the fraction is of. Default: fractions.
    #[arg(long, value_enum)]
    masking: Option<MaskingName>,
    /// SMP with `--masking fractions`: temperature p of the mean sigmoid.
    #[arg(long, value_name = "P")]
    score_temperature: Option<f64>,
    /// How the fraction falls: cubic or linear. (SMP's authors suggest linear for RoBERTa.)
    #[arg(long, value_enum)]
    schedule: Option<CurveName>,
    /// Steps over which it falls, from the first one on. Default: as published where that fits the training.
    #[arg(long, value_name = "STEPS")]
    prune_steps: Option<u64>,
    /// Weight λ of the regulariser (mean sigmoid of the scores); 0 for none.
    #[arg(long, value_name = "LAMBDA")]
    lambda: Option<f64>,
    /// Threshold on the sigmoid of the scores at the end of the schedule, of soft-movement and `--masking threshold`.
    #[arg(long, value_name = "TAU")]
    threshold: Option<f64>,
    /// Peak learning rate of the scores.
    #[arg(long, value_name = "RATE")]
    score_learning_rate: Option<f64>,
    /// End with exactly the fraction, by rank of the scores: for the methods whose threshold misses it.
    #[arg(long)]
    snap: bool,
    /// SMP: train a new task head instead of the frozen head of label words.
    #[arg(long)]
    trained_head: bool,
    /// SMP: the word of each class, in class order (spans: start and end). Default: the published ones of the task.
    #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
    label_words: Option<Vec<String>>,
    /// Learn from this fine-tuned model's logits as well (weights ½ and ½, temperature 2).
    #[arg(long, value_name = "DIR")]
    teacher: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodName {
    /// Frozen weights, learnt scores (SMP, ACL 2023).
    Smp,
    /// Weights and scores trained together, top-k of the scores (Sanh et al., NeurIPS 2020).
    Movement,
    /// The same with a threshold and a regulariser.
    SoftMovement,
    /// Gradual magnitude pruning (Zhu and Gupta 2018).
    Magnitude,
    /// Hard concrete masks (Louizos et al., ICLR 2018).
    L0,
}

impl From<MethodName> for Method {
    fn from(name: MethodName) -> Method {
        match name {
            MethodName::Smp => Method::Smp,
            MethodName::Movement => Method::Movement,
            MethodName::SoftMovement => Method::SoftMovement,
            MethodName::Magnitude => Method::Magnitude,
            MethodName::L0 => Method::L0,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskingName {
    /// Every matrix by itself (SMP-L).
    Local,
    /// Every kind of matrix by itself, layers by the mean sigmoid of their scores (SMP-S).
    Fractions,
    /// All scores in one ranking (G).
    Global,
    /// Scores whose sigmoid is above --threshold (T).
    Threshold,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurveName {
    Cubic,
    Linear,
}

impl Choices {
    /// The choices of the profile with those that were given.
    fn resolve(&self, task: &Task) -> Result<Options> {
        let method = Method::from(self.method);
        let profile = match self.profile {
            options::Profile::Paper => Profile::Paper,
            options::Profile::Authors => Profile::Authors,
            options::Profile::Default => Profile::Default,
        };
        let setting =
            Setting { keep: self.keep_weights, task: &task.name, distilled: self.teacher.is_some() };
        let mut options = Options::new(method, profile, setting)?;
        let smp = method == Method::Smp;
        let only = |given: bool, what: &str, whose: &str| match given {
            true => Err(Error::usage(format!("{what} belongs to {whose}"))),
            false => Ok(()),
        };
        only(self.masking.is_some() && !smp, "--masking", "--method smp")?;
        only(
            self.trained_head && !smp,
            "--trained-head",
            "--method smp (the others train their head always)",
        )?;
        only(
            self.label_words.is_some() && (!smp || self.trained_head),
            "--label-words",
            "SMP's frozen head",
        )?;
        options.masking = match self.masking {
            None => options.masking,
            Some(MaskingName::Fractions) => options.masking,
            Some(MaskingName::Local) => Masking::Local,
            Some(MaskingName::Global) => Masking::Global,
            Some(MaskingName::Threshold) => Masking::Threshold,
        };
        if let Some(temperature) = self.score_temperature {
            let fractions = matches!(options.masking, Masking::Fractions { .. });
            only(!fractions, "--score-temperature", "--masking fractions")?;
            positive("--score-temperature", temperature)?;
            options.masking = Masking::Fractions { temperature };
        }
        options.curve = match self.schedule {
            None => options.curve,
            Some(CurveName::Cubic) => Curve::Cubic,
            Some(CurveName::Linear) => Curve::Linear,
        };
        options.prune_steps = self.prune_steps.or(options.prune_steps);
        if let Some(lambda) = self.lambda {
            let regularised = !matches!(method, Method::Movement | Method::Magnitude);
            only(!regularised, "--lambda", "the methods with a regulariser: smp, soft-movement, l0")?;
            if !(lambda >= 0.0 && lambda.is_finite()) {
                return Err(Error::usage(format!("--lambda must be at least 0, not {lambda}")));
            }
            options.lambda = lambda;
        }
        if let Some(threshold) = self.threshold {
            only(
                options.masking != Masking::Threshold,
                "--threshold",
                "soft-movement and --masking threshold",
            )?;
            if !(threshold > 0.0 && threshold < 1.0) {
                return Err(Error::usage(format!("--threshold must be between 0 and 1, not {threshold}")));
            }
            options.final_threshold = threshold;
        }
        if let Some(rate) = self.score_learning_rate {
            only(method == Method::Magnitude, "--score-learning-rate", "the methods with scores")?;
            positive("--score-learning-rate", rate)?;
            options.score_learning_rate = rate;
        }
        let thresholded = matches!(options.masking, Masking::Threshold | Masking::HardConcrete);
        only(self.snap && !thresholded, "--snap", "the methods whose threshold misses the fraction")?;
        options.snap = self.snap;
        if self.trained_head {
            options.head = Head::Trained;
        }
        Ok(options)
    }

    /// The same for the record, each marked where it was given.
    fn record(&self, options: &Options) -> MethodRecord {
        let mut record = MethodRecord {
            name: self.method.to_possible_value().map_or(String::new(), |value| value.get_name().into()),
            profile: self.profile.to_possible_value().map_or(String::new(), |value| value.get_name().into()),
            ..MethodRecord::default()
        };
        let mut set =
            |name: &str, value: String, given: bool| record.choices.set(name, Choice { value, given });
        set("keep-weights", options.keep.to_string(), true);
        set(
            "masking",
            format!("{:?}", options.masking),
            self.masking.is_some() || self.score_temperature.is_some(),
        );
        set("schedule", format!("{:?}", options.curve).to_lowercase(), self.schedule.is_some());
        set("lambda", options.lambda.to_string(), self.lambda.is_some());
        set("ramp", format!("{:?}", options.ramp), false);
        if options.masking == Masking::Threshold {
            set("threshold", options.final_threshold.to_string(), self.threshold.is_some());
        }
        if options.has_scores() {
            set(
                "score-learning-rate",
                options.score_learning_rate.to_string(),
                self.score_learning_rate.is_some(),
            );
            set("initial-score", options.initial_score.to_string(), false);
        }
        set("least-survivors", options.least_survivors.to_string(), false);
        set("adamw", format!("{:?}", options.form), false);
        set("head", format!("{:?}", options.head), self.trained_head);
        set("snap", options.snap.to_string(), self.snap);
        if let Some(distillation) = options.distillation {
            let (a, b, t) = (distillation.task_weight, distillation.teacher_weight, distillation.temperature);
            set("distillation", format!("{a} task, {b} teacher, temperature {t}"), false);
        }
        record
    }
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::usage(format!("{name} must be a positive number, not {value}")))
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
        let mut options = self.choices.resolve(&task)?;
        let recipe = training::recipe(&self.train, masked::usual_recipe(&options, &task.name))?;
        let output = Output::create(&self.output, self.train.resume)?;
        let mut record = context.record("sparsify");
        let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
        let dev = load::split(context, &mut record, &mut task, &self.task, &source, Split::Dev)?;
        let head = load::head(&task);
        let language_model = task.kind == TaskKind::CausalLanguageModel;
        if language_model {
            // The model's own head answers, frozen as the rest of it is.
            options.head = Head::LabelWords;
        }
        let words = match options.head {
            Head::LabelWords if !language_model => {
                let words = self.choices.label_words.as_deref();
                Some(label_words::tokens(&task, words, options.profile, &source.tokenizer)?)
            }
            _ => None,
        };
        let teacher = self.teacher(context, &task, head, &data, &source.tokenizer)?;
        let mut model = match &words {
            Some(words) => {
                let ids: Vec<u32> = words.iter().map(|(_, id)| *id).collect();
                let mask = source.tokenizer.special().mask;
                let (model, kind) =
                    Model::load_with_label_words(&source.directory, head, &ids, mask, context.seed)?;
                load::note_model(&mut record, &self.model.model, &model);
                load::hash_model(&mut record, &source.directory)?;
                if kind == LabelWordHead::Embedding && !source.config.family.is_causal() {
                    context.progress.warn(
                        "the checkpoint has no masked-language-model head: a class's logit is the dot product of the \
                         first token's state with its label word's embedding, the paper's form",
                    );
                }
                model
            }
            None => {
                let request = HeadRequest::Task(head);
                load::weights(context, &mut record, &source.directory, &self.model.model, request)?
            }
        };
        masked::prepare_model(&mut model, &options);
        let mut method = self.choices.record(&options);
        if let Some(words) = &words {
            let shown: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
            let given = self.choices.label_words.is_some();
            method.choices.set("label-words", Choice { value: shown.join(","), given });
        }
        record.method = Some(method);

        let job = Job { options: &options, recipe: &recipe, task: &task, data: &data, dev: &dev };
        let (mut model, masks) = self.train(context, &mut record, model, teacher, &job, output.path())?;
        write_masks(output.path(), &masks, &model)?;
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

    /// What the teacher says of each training row.
    fn teacher(
        &self,
        context: &Context,
        task: &Task,
        head: TaskHead,
        data: &Dataset,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(name) = &self.choices.teacher else { return Ok(None) };
        if head.is_language_model() {
            return Err(Error::usage(
                "--teacher: the logits of a language model's teacher do not fit memory",
            ));
        }
        let source = load::source(name)?;
        teacher::check_labels(&source.config, head, task)?;
        teacher::check_tokens(&source.tokenizer, tokenizer)?;
        let model = Model::load(&source.directory, HeadRequest::Task(head), context.seed)?;
        let progress = &context.progress;
        teacher::outputs(model, context.device, task, data, TOKEN_BUDGET, progress).map(Some)
    }

    /// Trains, evaluates the result, and gives back the model (frozen weights as they were loaded) and the masks.
    fn train(
        &self,
        context: &Context,
        record: &mut RunRecord,
        model: Model,
        teacher: Option<Vec<Vec<f32>>>,
        job: &Job,
        folder: &Path,
    ) -> Result<(Model, WeightMasks)> {
        let mut session = Session::new(model, context.device)?;
        let run = finetune::Options {
            seed: context.seed,
            max_steps: self.train.steps,
            checkpoints: Some(folder.join(CHECKPOINTS)),
            ..finetune::Options::default()
        };
        let Job { options, recipe, task, data, dev } = *job;
        let make = |session: &mut Session, size| {
            MaskedTrainer::new(session, recipe, options, task, teacher, run.seed, size)
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
#[derive(Clone, Copy)]
struct Job<'a> {
    options: &'a Options,
    recipe: &'a Recipe,
    task: &'a Task,
    data: &'a Dataset,
    dev: &'a Dataset,
}

/// Writes `masks.safetensors`.
fn write_masks(folder: &Path, masks: &WeightMasks, model: &Model) -> Result<()> {
    let path: PathBuf = folder.join("masks.safetensors");
    std::fs::write(&path, mask_file::encode(masks, model)?).map_err(Error::io(&path, "writing"))
}
