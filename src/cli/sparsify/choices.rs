//! Options of `secateur sparsify`, and what they resolve to under a profile.

use clap::{Args, ValueEnum};
use secateur::data::Task;
use secateur::model::{Family, Sentence};
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
    /// Fraction of the layers' weights to keep, above 0 and at most 1. soft-movement, cap-soft and l0 reach it by --lambda and
    /// --threshold only, and say so where they miss it; --snap makes them end with it, --search-lambda looks for the λ.
    #[arg(long, value_name = "FRACTION")]
    pub keep_weights: f64,
    /// Where choices that are not given come from.
    #[arg(long, value_enum, default_value_t = options::Profile::Default)]
    pub profile: options::Profile,
    /// What the fraction is of. smp: any, default fractions. movement, magnitude, cap-m: local or global, default local.
    #[arg(long, value_enum)]
    pub masking: Option<MaskingName>,
    /// SMP with `--masking fractions`: temperature p of the mean sigmoid.
    #[arg(long, value_name = "P")]
    pub score_temperature: Option<f64>,
    /// How the fraction falls: cubic or linear. (SMP's authors suggest linear for RoBERTa.)
    #[arg(long, value_enum)]
    pub schedule: Option<CurveName>,
    /// Steps over which it falls, from the first one on. Default: as published where that fits the training.
    #[arg(long, value_name = "STEPS", conflicts_with_all = ["schedule_warmup", "schedule_rests"])]
    pub prune_steps: Option<u64>,
    /// All methods but smp and l0: steps of the warm-up that --schedule-rests are multiples of. Default: those over which the
    /// learning rate rises (--warmup); of cap-m and cap-soft by --profile authors 11000, on SQuAD 5400.
    #[arg(long, value_name = "STEPS")]
    pub schedule_warmup: Option<u64>,
    /// The same methods: how many warm-ups long nothing is pruned at first, and the fraction stays what it is at the end
    /// (initial_warmup and final_warmup of the papers' code). Default: 1,2; of cap-m and cap-soft 2,3, on SQuAD 1,2.
    #[arg(long, value_name = "INITIAL,FINAL", value_delimiter = ',', num_args = 1)]
    pub schedule_rests: Option<Vec<u64>>,
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
    /// learn from its sentence vectors too (weights 0.1 and 0.9). A language model's teacher runs beside it, a forward pass
    /// more every step.
    #[arg(long, value_name = "DIR")]
    pub teacher: Option<String>,
    #[command(flatten)]
    pub contrast: ContrastOptions,
    /// cap-m, cap-soft: what stands for a sentence. Default: cls.
    #[arg(long, value_enum, help_heading = "Contrastive terms (cap-m, cap-soft, cap-f)")]
    pub sentence: Option<SentenceName>,
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
pub enum SentenceName {
    /// What the classifier reads of the first token (of BERT the pooler's output), as the released scripts do.
    Cls,
    /// The mean of the hidden states of all tokens.
    Mean,
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
        options.masking = self.masking(&options)?;
        if let Some(temperature) = self.score_temperature {
            let fractions = matches!(options.masking, Masking::Fractions { .. });
            only(!fractions, "--score-temperature", "--masking fractions")?;
            positive("--score-temperature", temperature)?;
            options.masking = Masking::Fractions { temperature };
        }
        self.schedule(&mut options)?;
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
            Some(contrast) => {
                self.contrast.resolve(contrast, task)?;
                if self.sentence == Some(SentenceName::Mean) {
                    options.sentence = Sentence::Mean;
                }
            }
            None => only(
                self.contrast.given() || self.sentence.is_some(),
                "--contrastive-weights, --contrastive-temperature, --extra-candidates or --sentence",
                "--method cap-m and cap-soft",
            )?,
        }
        Ok(options)
    }

    /// What the fraction is of.
    fn masking(&self, options: &Options) -> Result<Masking> {
        let smp = options.method == Method::Smp;
        let ranked = options.masking == Masking::Local;
        Ok(match self.masking {
            None => options.masking,
            Some(MaskingName::Fractions) if smp => options.masking,
            Some(MaskingName::Threshold) if smp => Masking::Threshold,
            Some(MaskingName::Local) if smp || ranked => Masking::Local,
            Some(MaskingName::Global) if smp || ranked => Masking::Global,
            Some(_) if ranked => {
                return Err(Error::usage("--masking fractions and threshold belong to --method smp"));
            }
            Some(_) => {
                return Err(Error::usage(
                    "--masking belongs to the methods that rank: smp, movement, magnitude, cap-m; soft-movement, cap-soft and \
                     l0 keep what is above a threshold, however much that is",
                ));
            }
        })
    }

    /// How the fraction, or the threshold, follows the steps.
    fn schedule(&self, options: &mut Options) -> Result<()> {
        let scheduled = options.masking != Masking::HardConcrete;
        let whose = "the methods with a schedule: l0's masks follow none";
        only(self.schedule.is_some() && !scheduled, "--schedule", whose)?;
        only(self.prune_steps.is_some() && !scheduled, "--prune-steps", whose)?;
        let given = self.schedule_warmup.is_some() || self.schedule_rests.is_some();
        only(
            given && !options.has_rests(),
            "--schedule-warmup and --schedule-rests",
            "movement, soft-movement, magnitude, cap-m and cap-soft; smp has --prune-steps",
        )?;
        options.curve = match self.schedule {
            None => options.curve,
            Some(CurveName::Cubic) => Curve::Cubic,
            Some(CurveName::Linear) => Curve::Linear,
        };
        options.prune_steps = self.prune_steps;
        options.warmup_steps = self.schedule_warmup.or(options.warmup_steps);
        options.rests = match self.schedule_rests.as_deref() {
            None => options.rests,
            Some(&[first, last]) => [first, last],
            Some(_) => return Err(Error::usage("--schedule-rests takes two whole numbers: INITIAL,FINAL")),
        };
        Ok(())
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
        if options.masking != Masking::HardConcrete {
            set("schedule", format!("{:?}", options.curve).to_lowercase(), self.schedule.is_some());
        }
        if let Some(steps) = options.prune_steps {
            set("prune-steps", steps.to_string(), true);
        }
        if options.has_rests() {
            let warmup =
                options.warmup_steps.map_or("of the learning rate".into(), |steps| steps.to_string());
            set("schedule-warmup", warmup, self.schedule_warmup.is_some());
            let [first, last] = options.rests;
            set("schedule-rests", format!("{first},{last}"), self.schedule_rests.is_some());
        }
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
        if options.masking == Masking::Threshold {
            set("least-survivors", options.least_survivors.to_string(), false);
        }
        set("adamw", format!("{:?}", options.form), false);
        set("head", format!("{:?}", options.head), self.trained_head);
        set("snap", options.snap.to_string(), self.snap);
        if let Some(distillation) = options.distillation {
            let (a, b, t) = (distillation.task_weight, distillation.teacher_weight, distillation.temperature);
            set("distillation", format!("{a} task, {b} teacher, temperature {t}"), false);
        }
        if let Some(contrast) = &options.contrast {
            set("sentence", format!("{:?}", options.sentence).to_lowercase(), self.sentence.is_some());
            self.contrast.record(contrast, &mut record);
        }
        record
    }
}

/// Fails where an option was given that is not read.
pub fn only(given: bool, what: &str, whose: &str) -> Result<()> {
    match given {
        true => Err(Error::usage(format!("{what} belongs to {whose}"))),
        false => Ok(()),
    }
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::usage(format!("{name} must be a positive number, not {value}")))
}
