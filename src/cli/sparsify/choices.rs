//! Options of `secateur sparsify`, and what they resolve to under a profile.

use clap::{Args, ValueEnum};
use secateur::data::Task;
use secateur::model::Family;
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Curve, Head, Masking, Method, Options, Profile};
use secateur::report::record::{Choice, Method as MethodRecord};
use secateur::{Error, Result};

use super::super::contrast::ContrastOptions;
use super::super::options;

/// Method and choices.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub struct Choices {
    /// How masks are learnt.
    #[arg(long, value_enum)]
    pub method: MethodName,
    /// Fraction of the layers' weights to keep, above 0 and at most 1. soft-movement and l0 reach it by --lambda and
    /// --threshold only; --snap makes them end with it.
    #[arg(long, value_name = "FRACTION")]
    pub keep_weights: f64,
    /// Where choices that are not given come from.
    #[arg(long, value_enum, default_value_t = options::Profile::Default)]
    pub profile: options::Profile,
    /// SMP: what the fraction is of. Default: fractions.
    #[arg(long, value_enum)]
    pub masking: Option<MaskingName>,
    /// SMP with `--masking fractions`: temperature p of the mean sigmoid.
    #[arg(long, value_name = "P")]
    pub score_temperature: Option<f64>,
    /// How the fraction falls: cubic or linear. (SMP's authors suggest linear for RoBERTa.)
    #[arg(long, value_enum)]
    pub schedule: Option<CurveName>,
    /// Steps over which it falls, from the first one on. Default: as published where that fits the training.
    #[arg(long, value_name = "STEPS")]
    pub prune_steps: Option<u64>,
    /// Weight λ of the regulariser (mean sigmoid of the scores); 0 for none.
    #[arg(long, value_name = "LAMBDA")]
    pub lambda: Option<f64>,
    /// Threshold on the sigmoid of the scores at the end of the schedule, of soft-movement and `--masking threshold`.
    #[arg(long, value_name = "TAU")]
    pub threshold: Option<f64>,
    /// Peak learning rate of the scores.
    #[arg(long, value_name = "RATE")]
    pub score_learning_rate: Option<f64>,
    /// End with exactly the fraction, by rank of the scores: for the methods whose threshold misses it.
    #[arg(long)]
    pub snap: bool,
    /// soft-movement, l0: train up to N times, with another λ each time, and take the training that comes nearest to the
    /// fraction (within 2 % of it ends the search).
    #[arg(long, value_name = "N", conflicts_with = "snap")]
    pub search_lambda: Option<usize>,
    /// SMP: train a new task head instead of the frozen head of label words.
    #[arg(long)]
    pub trained_head: bool,
    /// SMP: the word of each class, in class order (spans: start and end). Default: the published ones of the task.
    #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
    pub label_words: Option<Vec<String>>,
    /// Learn from this fine-tuned model's logits as well (weights ½ and ½, temperature 2). cap-m and cap-soft need it: they
    /// learn from its sentence vectors too (weights 0.1 and 0.9).
    #[arg(long, value_name = "DIR")]
    pub teacher: Option<String>,
    #[command(flatten)]
    pub contrast: ContrastOptions,
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
    /// Movement with contrastive terms: the sentence vectors stay near those of the pre-trained model, of the teacher and of
    /// earlier epochs (CAP, AAAI 2022). Needs --teacher.
    CapM,
    /// Soft movement with the same.
    CapSoft,
}

impl From<MethodName> for Method {
    fn from(name: MethodName) -> Method {
        match name {
            MethodName::Smp => Method::Smp,
            MethodName::Movement => Method::Movement,
            MethodName::SoftMovement => Method::SoftMovement,
            MethodName::Magnitude => Method::Magnitude,
            MethodName::L0 => Method::L0,
            MethodName::CapM => Method::CapMovement,
            MethodName::CapSoft => Method::CapSoftMovement,
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
    pub fn resolve(&self, task: &Task, family: Family) -> Result<Options> {
        let method = Method::from(self.method);
        let profile = match self.profile {
            options::Profile::Paper => Profile::Paper,
            options::Profile::Authors => Profile::Authors,
            options::Profile::Default => Profile::Default,
        };
        let setting =
            Setting { keep: self.keep_weights, task: &task.name, distilled: self.teacher.is_some() };
        let mut options = Options::new(method, profile, setting)?.for_family(family);
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
            let regularised = !matches!(method, Method::Movement | Method::Magnitude | Method::CapMovement);
            only(
                !regularised,
                "--lambda",
                "the methods with a regulariser: smp, soft-movement, cap-soft, l0",
            )?;
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
        only(
            self.search_lambda.is_some() && !thresholded,
            "--search-lambda",
            "the methods whose threshold misses the fraction",
        )?;
        if self.search_lambda.is_some() && (self.search_lambda == Some(0) || options.lambda == 0.0) {
            return Err(Error::usage(
                "--search-lambda needs at least 1 training and a λ above 0 to begin with",
            ));
        }
        if self.trained_head {
            options.head = Head::Trained;
        }
        match &mut options.contrast {
            Some(contrast) => self.contrast.resolve(contrast, task)?,
            None => only(
                self.contrast.given(),
                "--contrastive-weights, --contrastive-temperature or --extra-candidates",
                "--method cap-m and cap-soft",
            )?,
        }
        Ok(options)
    }

    /// The same for the record, each marked where it was given.
    pub fn record(&self, options: &Options) -> MethodRecord {
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
        if let Some(contrast) = &options.contrast {
            set("rests", format!("{:?}", options.rests), false);
            self.contrast.record(contrast, &mut record);
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
