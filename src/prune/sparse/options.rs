//! The choices of unstructured pruning, and the profiles that set them.
//!
//! `Paper` is the text, `Authors` the released code with its slips, `Default` the text with the code's reading where the
//! two contradict each other (its schedules and ramps are the ones the published numbers come from) and with what cannot
//! be run repaired. Every run record shows the resolved values.

use serde::{Deserialize, Serialize};

use super::fractions::authors_temperature;
use super::schedule::{Curve, Ramp, Schedule};
use crate::error::{Error, Result};
use crate::model::{Family, Sentence};
use crate::ops::weightmask::MaskFunction;
use crate::program::AdamWForm;
use crate::prune::contrastive;

/// Which method.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Method {
    /// Static model pruning: frozen weights, learnt masks.
    Smp,
    /// Movement pruning with top-k masks.
    Movement,
    /// Movement pruning with a threshold and a regulariser.
    SoftMovement,
    /// Gradual magnitude pruning.
    Magnitude,
    /// L0 regularisation with hard concrete masks.
    L0,
    /// CAP-m: movement pruning with contrastive terms.
    CapMovement,
    /// CAP-soft: soft movement pruning with contrastive terms.
    CapSoftMovement,
}

impl Method {
    /// Whether contrastive terms belong to it.
    pub fn is_contrastive(self) -> bool {
        matches!(self, Method::CapMovement | Method::CapSoftMovement)
    }
}

/// Where choices come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Profile {
    /// The papers' text.
    Paper,
    /// The authors' released code.
    Authors,
    /// The text, repaired.
    Default,
}

/// How scores become masks.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub enum Masking {
    /// The same fraction of every matrix (SMP-L, movement, magnitude).
    Local,
    /// Fractions by the mean sigmoid of the scores (SMP-S).
    Fractions {
        /// p.
        temperature: f64,
    },
    /// One ranking of all scores (G). It is made at every step; movement's code makes it at every 25th.
    Global,
    /// σ(S) above a threshold (T, soft movement).
    Threshold,
    /// The hard concrete (L0).
    HardConcrete,
}

/// The task head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Head {
    /// Label words, frozen.
    LabelWords,
    /// A new head, trained.
    Trained,
}

/// Learning from a teacher's logits beside the labels.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Distillation {
    /// Weight of the task's own loss.
    pub task_weight: f64,
    /// Weight of T²·KL.
    pub teacher_weight: f64,
    /// T.
    pub temperature: f64,
}

impl Distillation {
    /// α = ½ each, T = 2: all of these papers.
    pub const PUBLISHED: Distillation =
        Distillation { task_weight: 0.5, teacher_weight: 0.5, temperature: 2.0 };
    /// CAP's weights.
    pub const CONTRASTIVE: Distillation =
        Distillation { task_weight: 0.1, teacher_weight: 0.9, temperature: 2.0 };
}

/// λ of CAP-soft's released scripts, by task and by the sparsity they are for (90 % and 97 %); other sentence tasks take
/// MNLI's.
fn contrastive_lambda(keep: f64, task: &str) -> f64 {
    let [tenth, thirtieth] = match task {
        "qqp" => [190.0, 550.0],
        _ if task.starts_with("squad") => [600.0, 2000.0],
        _ => [290.0, 680.0],
    };
    if keep < 0.1 { thirtieth } else { tenth }
}

/// What the profiles depend on.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Fraction of the weights to keep.
    pub keep: f64,
    /// Name of the task.
    pub task: &'a str,
    /// Whether there is a teacher.
    pub distilled: bool,
}

/// All choices but those of the recipe of the training.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    /// Which method.
    pub method: Method,
    /// Which profile the other choices began as.
    pub profile: Profile,
    /// Fraction of the masked weights to keep; the threshold methods reach it only approximately.
    pub keep: f64,
    /// How scores become masks.
    pub masking: Masking,
    /// How the fraction follows the steps.
    pub curve: Curve,
    /// Steps until the final fraction is reached; by the profile where not given.
    pub prune_steps: Option<u64>,
    /// Movement's warm-up in steps, that of the learning rate where not given: multiples of it precede and follow the pruning.
    pub warmup_steps: Option<u64>,
    /// Those multiples (the code's `initial_warmup` and `final_warmup`).
    pub rests: [u64; 2],
    /// λ of the regulariser; 0 is none.
    pub lambda: f64,
    /// How λ follows the steps.
    pub ramp: Ramp,
    /// τ at the end of the schedule, of [`Masking::Threshold`].
    pub final_threshold: f64,
    /// Fraction of a matrix that survives any threshold.
    pub least_survivors: f64,
    /// Scores at the start.
    pub initial_score: f64,
    /// Peak learning rate of the scores.
    pub score_learning_rate: f64,
    /// Where AdamW adds ε.
    #[serde(skip)]
    pub form: AdamWForm,
    /// The task head.
    pub head: Head,
    /// Whether the threshold methods end with exactly the fraction `keep`, by rank.
    pub snap: bool,
    /// Distillation, where there is a teacher.
    pub distillation: Option<Distillation>,
    /// Whether a global ranking keeps one more than asked, as movement's code does.
    pub extra_global_survivor: bool,
    /// Contrastive terms, which need a teacher.
    pub contrast: Option<contrastive::Options>,
    /// What they take for a sentence.
    pub sentence: Sentence,
}

/// Steps after which the schedule of SMP's code is over before the training is.
const SMP_GLUE_REST: u64 = 30_000;
/// The same for SQuAD.
const SMP_SQUAD_REST: u64 = 5_000;
/// Share of the training that is left for the schedule where the code's would have none.
const SMP_SHARE: f64 = 0.6;

impl Options {
    /// The choices of a method under a profile. Fails on a fraction outside (0, 1].
    pub fn new(method: Method, profile: Profile, setting: Setting) -> Result<Options> {
        let Setting { keep, task, distilled } = setting;
        if !(keep > 0.0 && keep <= 1.0) {
            return Err(Error::usage(format!(
                "the fraction of weights to keep must be above 0 and at most 1, not {keep}"
            )));
        }
        if method.is_contrastive() && !distilled {
            return Err(Error::usage(
                "contrastive pruning (cap-m, cap-soft) needs a teacher: the fine-tuned model whose answers and sentence \
                 vectors it learns from (--teacher DIR)",
            ));
        }
        let squad = task.starts_with("squad");
        let base = Options {
            method,
            profile,
            keep,
            masking: Masking::Local,
            curve: Curve::Cubic,
            prune_steps: None,
            warmup_steps: None,
            rests: [1, 2],
            lambda: 0.0,
            ramp: Ramp::Constant,
            final_threshold: 0.1,
            least_survivors: 0.0,
            initial_score: 0.0,
            score_learning_rate: 1e-2,
            form: match profile {
                Profile::Authors => AdamWForm::HuggingFaceUncorrected,
                _ => AdamWForm::Torch,
            },
            head: Head::Trained,
            snap: false,
            distillation: distilled.then_some(Distillation::PUBLISHED),
            extra_global_survivor: profile == Profile::Authors && method == Method::Movement,
            contrast: None,
            sentence: Sentence::Cls,
        };
        let soft = Options {
            masking: Masking::Threshold,
            lambda: 400.0,
            ramp: Ramp::Threshold,
            least_survivors: 0.005,
            ..base.clone()
        };
        // CAP's code warms up over a fixed number of steps, about a tenth of its trainings.
        let contrasting = |base: Options| Options {
            warmup_steps: (profile == Profile::Authors).then_some(if squad { 5400 } else { 11_000 }),
            rests: if squad { [1, 2] } else { [2, 3] },
            distillation: Some(Distillation::CONTRASTIVE),
            contrast: Some(contrastive::Options::unstructured(squad)),
            ..base
        };
        Ok(match method {
            Method::Smp => Options {
                masking: Masking::Fractions {
                    temperature: match profile {
                        // The text knows no temperature.
                        Profile::Paper => 1.0,
                        _ => authors_temperature(keep, task, distilled),
                    },
                },
                lambda: 400.0,
                ramp: if profile == Profile::Paper { Ramp::Sparsity } else { Ramp::WholeTraining },
                score_learning_rate: 2e-2,
                head: Head::LabelWords,
                ..base
            },
            Method::Movement | Method::Magnitude => base,
            Method::SoftMovement => soft,
            Method::CapMovement => contrasting(base),
            Method::CapSoftMovement => {
                contrasting(Options { lambda: contrastive_lambda(keep, task), ..soft })
            }
            // Neither its masks nor λ follow a schedule.
            Method::L0 => Options {
                masking: Masking::HardConcrete,
                lambda: 125.0,
                initial_score: 2.197,
                score_learning_rate: if squad { 1e-1 } else { 1e-2 },
                ..base
            },
        })
    }

    /// The same for a model of `family`: SMP's text has RoBERTa's fraction fall linearly, its code never does.
    pub fn for_family(self, family: Family) -> Options {
        let linear = (self.method, self.profile, family) == (Method::Smp, Profile::Paper, Family::Roberta);
        Options { curve: if linear { Curve::Linear } else { self.curve }, ..self }
    }

    /// How scores become masks in a forward pass.
    pub fn function(&self) -> MaskFunction {
        match self.masking {
            Masking::HardConcrete => MaskFunction::HardConcrete,
            _ => MaskFunction::Bits,
        }
    }

    /// Whether there are scores: magnitude pruning ranks weights.
    pub fn has_scores(&self) -> bool {
        self.method != Method::Magnitude
    }

    /// Whether the weights are trained.
    pub fn trains_weights(&self) -> bool {
        self.method != Method::Smp
    }

    /// Whether the schedule rests before and after the pruning, as movement's does.
    pub fn has_rests(&self) -> bool {
        self.method != Method::Smp && self.masking != Masking::HardConcrete && self.prune_steps.is_none()
    }

    /// The schedule of a training of `total` steps, an epoch of which has `epoch_steps`, and whose learning rate rises over
    /// `warmup`. Fails where it would be longer than the training.
    pub fn schedule(&self, task: &str, total: u64, epoch_steps: u64, warmup: u64) -> Result<Schedule> {
        if self.masking == Masking::HardConcrete {
            return Ok(Schedule::constant(1.0));
        }
        let ends = match self.masking {
            Masking::Threshold => [0.0, self.final_threshold],
            _ => [1.0, self.keep],
        };
        if let Some(steps) = self.prune_steps {
            if steps > total {
                return Err(Error::usage(format!(
                    "a schedule longer than the training: pruning over {steps} steps, but there are {total}"
                )));
            }
            let [initial, last] = ends;
            return Ok(Schedule { curve: self.curve, begin: 0, end: steps, initial, last });
        }
        if self.has_rests() {
            let warmup = self.warmup_steps.unwrap_or(warmup);
            return Schedule::movement(self.curve, ends, warmup, total, self.rests);
        }
        let [initial, last] = ends;
        let end = self.smp_steps(task, total, epoch_steps)?;
        Ok(Schedule { curve: self.curve, begin: 0, end, initial, last })
    }

    /// SMP's N.
    fn smp_steps(&self, task: &str, total: u64, epoch_steps: u64) -> Result<u64> {
        let squad = task.starts_with("squad");
        let steps = match self.profile {
            Profile::Paper if self.keep > 0.7 => 7 * epoch_steps,
            Profile::Paper => 3500,
            _ if squad && self.keep > 0.5 => SMP_SQUAD_REST,
            _ if squad => total.saturating_sub(SMP_SQUAD_REST),
            _ if self.keep >= 0.8 => 3500,
            _ if self.keep >= 0.7 => 5250,
            _ => total.saturating_sub(SMP_GLUE_REST),
        };
        if steps > 0 && steps <= total {
            return Ok(steps);
        }
        if self.profile == Profile::Default {
            return Ok(((SMP_SHARE * total as f64) as u64).max(1));
        }
        Err(Error::usage(format!(
            "a schedule longer than the training: the published schedule does not fit {total} steps (it would prune over \
             {steps}); give --prune-steps, or train longer"
        )))
    }

    /// λ at `step` of `total`.
    pub fn lambda_at(&self, step: u64, total: u64, schedule: &Schedule) -> f64 {
        self.ramp.at(self.lambda, step, total, schedule)
    }

    /// The step a schedule is asked for in the optimiser step after `done` others: movement's code counts from 1.
    pub fn schedule_step(&self, done: u64) -> u64 {
        if self.method == Method::Smp { done } else { done + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(method: Method, profile: Profile, keep: f64) -> Result<Options> {
        Options::new(method, profile, Setting { keep, task: "mnli", distilled: false })
    }

    #[test]
    fn fractions_outside_their_range_are_refused() {
        for keep in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(options(Method::Smp, Profile::Default, keep).is_err());
        }
        assert!(options(Method::Smp, Profile::Default, 1.0).is_ok());
    }

    #[test]
    fn the_text_lets_roberta_fall_linearly() {
        let curve = |profile, family| options(Method::Smp, profile, 0.5).unwrap().for_family(family).curve;
        assert_eq!(curve(Profile::Paper, Family::Roberta), Curve::Linear);
        assert_eq!(curve(Profile::Authors, Family::Roberta), Curve::Cubic);
        assert_eq!(curve(Profile::Paper, Family::Bert), Curve::Cubic);
    }

    #[test]
    fn contrastive_pruning_wants_a_teacher_and_has_no_classes_on_squad() {
        assert!(
            options(Method::CapMovement, Profile::Default, 0.1)
                .unwrap_err()
                .to_string()
                .contains("--teacher")
        );
        let of = |method, profile, task, keep| {
            Options::new(method, profile, Setting { keep, task, distilled: true }).unwrap()
        };
        let glue = of(Method::CapSoftMovement, Profile::Authors, "qqp", 0.03);
        let squad = of(Method::CapMovement, Profile::Authors, "squad", 0.1);
        assert_eq!((glue.lambda, glue.rests, glue.warmup_steps), (550.0, [2, 3], Some(11_000)));
        assert_eq!((squad.lambda, squad.rests, squad.warmup_steps), (0.0, [1, 2], Some(5400)));
        assert_eq!(glue.contrast.unwrap().supervised_weight, 10.0);
        let squad = squad.contrast.unwrap();
        assert_eq!((squad.unsupervised_weight, squad.supervised_weight), (0.5, 0.0));
        assert!(of(Method::Movement, Profile::Default, "qqp", 0.1).contrast.is_none());
    }

    #[test]
    fn the_schedules_of_text_and_code_differ_as_they_do() {
        let end = |profile, keep, total| {
            options(Method::Smp, profile, keep).unwrap().schedule("mnli", total, 6136, 0).map(|s| s.end)
        };
        assert_eq!(end(Profile::Authors, 0.1, 73_632).unwrap(), 43_632);
        assert_eq!(end(Profile::Paper, 0.1, 73_632).unwrap(), 3500);
        assert_eq!(end(Profile::Authors, 0.8, 73_632).unwrap(), 3500);
        assert_eq!(end(Profile::Paper, 0.8, 73_632).unwrap(), 42_952);
        assert!(end(Profile::Authors, 0.1, 5000).is_err());
        assert_eq!(end(Profile::Default, 0.1, 5000).unwrap(), 3000);
        let longer =
            Options { prune_steps: Some(11), ..options(Method::Smp, Profile::Default, 0.5).unwrap() };
        assert!(longer.schedule("mnli", 10, 5, 0).is_err());
    }
}
