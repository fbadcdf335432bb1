//! How to prune: methods, stages, profiles, and the choices that have options of their own.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secateur::prune::clustering::Linkage;
use secateur::prune::dual_cp;
use secateur::prune::method::Needs;
use secateur::prune::scaling::Scaling;
use secateur::prune::{Stage, method};
use secateur::{Error, Result};

use super::options::{Profile, value_name};

/// Pruning method names.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Cluster heads and neurons that respond alike, keep one of each cluster (P-pruning, LREC-COLING 2024).
    DualCp,
    /// Control: random units, in every layer as many as dual-cp keeps there.
    Random,
    /// Control: random units anywhere, in all as many as dual-cp keeps.
    RandomSpread,
    /// Control: the members of the largest clusters, everything else removed.
    Worst,
    /// Measure what each sublayer knows, prune it, tune its weights, from the bottom up (ICLR 2024).
    KPrune,
    /// Search by Fisher information, rearrange, rescale what is left (NeurIPS 2022).
    MaskTuning,
    /// Neurons that represent the others and respond to the data (KCM, ICML 2023); heads stay.
    Kcm,
    /// KCM's representative ranking alone.
    R2,
    /// KCM's data-driven ranking alone.
    D2,
    /// Neurons of the smallest weights go; heads stay.
    WeightMagnitude,
    /// The same, with what is kept scaled to imitate the dense model.
    WeightMagnitudeScale,
    /// Neurons of the smallest outputs go, all layers in one ranking; heads stay.
    OutputMagnitude,
    /// Whole layers, from the top unless chosen otherwise (Sajjad et al. 2023).
    LayerDropping,
    /// Heads and neurons whose masks change the loss least, to first order.
    Taylor,
    /// The same by the diagonal of the Fisher information.
    Fisher,
    /// Control: random heads and neurons; needs no data.
    RandomUnits,
}

impl Method {
    /// Its name on the command line.
    pub fn name(self) -> String {
        value_name(&self)
    }

    /// What `--help` says of it.
    pub fn about(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// When it was published to prune.
    pub fn stage(self) -> Stage {
        self.job(Profile::Default).map_or(Stage::Pre, |method| method.facts().stage)
    }

    /// The choice a name stands for that is another method's with one choice made.
    pub fn implied(self, profile: Profile) -> Option<(String, String)> {
        let score = |value: &str| Some(("score".to_string(), value.to_string()));
        match self {
            Method::R2 => score("r2"),
            Method::D2 => score("d2"),
            Method::Taylor => score("taylor"),
            Method::Fisher => score("fisher"),
            Method::WeightMagnitudeScale => {
                let scaling =
                    if profile == Profile::Authors { Scaling::authors() } else { Scaling::default() };
                Some(("scaling".into(), serde_json::to_string(&scaling).ok()?))
            }
            _ => None,
        }
    }

    /// The method with a profile's choices; none for Dual-CP and its controls, which have options of their own.
    pub fn job(self, profile: Profile) -> Option<method::Method> {
        let own = self.name();
        let name = match self {
            Method::R2 | Method::D2 => "kcm",
            Method::Taylor | Method::Fisher => "importance",
            Method::WeightMagnitudeScale => "weight-magnitude",
            _ => &own,
        };
        let mut method = method::Method::named(name, profile.into())?;
        if let Some((name, value)) = self.implied(profile) {
            method.choose(&name, &value).ok()?;
        }
        Some(method)
    }
}

/// When to prune.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageName {
    /// Before fine-tuning.
    Pre,
    /// After fine-tuning.
    Post,
}

impl From<StageName> for Stage {
    fn from(name: StageName) -> Stage {
        match name {
            StageName::Pre => Stage::Pre,
            StageName::Post => Stage::Post,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkageName {
    /// Mean distance of all pairs.
    Average,
    /// Largest distance of all pairs.
    Complete,
}

impl From<LinkageName> for Linkage {
    fn from(name: LinkageName) -> Linkage {
        match name {
            LinkageName::Average => Linkage::Average,
            LinkageName::Complete => Linkage::Complete,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceName {
    /// 1 − similarity (the paper).
    Direct,
    /// Chebyshev distance of rows of the distance matrix (the authors' code).
    Profile,
}

impl From<SpaceName> for dual_cp::Space {
    fn from(name: SpaceName) -> dual_cp::Space {
        match name {
            SpaceName::Direct => dual_cp::Space::Direct,
            SpaceName::Profile => dual_cp::Space::Profile,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CentroidName {
    /// The member with the largest mean magnitude (the paper).
    Member,
    /// A random member.
    Random,
    /// The member nearest to the others.
    ClusterCentre,
    /// As the authors' code reads it, slip included.
    AuthorsHeadPrefix,
}

impl From<CentroidName> for dual_cp::Centroid {
    fn from(name: CentroidName) -> dual_cp::Centroid {
        match name {
            CentroidName::Member => dual_cp::Centroid::Member,
            CentroidName::Random => dual_cp::Centroid::Random,
            CentroidName::ClusterCentre => dual_cp::Centroid::ClusterCentre,
            CentroidName::AuthorsHeadPrefix => dual_cp::Centroid::AuthorsHeadPrefix,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInfeasibleName {
    /// Fail, and say which budgets can be reached.
    Error,
    /// Leave the part that runs out one unit a layer and take the rest from the other part.
    Shift,
}

impl PruneOptions {
    /// A method at one budget, all else as published.
    pub fn of(method: Method, keep_flops: f64) -> PruneOptions {
        PruneOptions {
            method,
            keep_flops: vec![keep_flops],
            keep_latency: Vec::new(),
            latency_batch: 1,
            latency_length: 128,
            profile: Profile::Default,
            stage: None,
            choose: Vec::new(),
            on_reject: None,
            round_to: None,
            skip_infeasible: false,
            subdirectories: false,
            calibration_batch: None,
            lambda: None,
            delta: None,
            calibration_tokens: None,
            calibration_rows: None,
            linkage: None,
            space: None,
            centroid: None,
            on_infeasible: None,
            calibration_inputs: None,
            token_indices: None,
            cost_length: None,
        }
    }

    /// The budgets, of whichever kind.
    pub fn budgets(&self) -> &[f64] {
        if self.keep_latency.is_empty() { &self.keep_flops } else { &self.keep_latency }
    }

    /// Fails on options that belong to dual-cp and its controls where another method is asked for, and the other way round:
    /// they would be ignored.
    pub fn check_belong(&self, dual_cp: bool) -> Result<()> {
        let of_dual_cp = [
            ("--lambda", self.lambda.is_some()),
            ("--delta", self.delta.is_some()),
            ("--calibration-tokens", self.calibration_tokens.is_some()),
            ("--linkage", self.linkage.is_some()),
            ("--space", self.space.is_some()),
            ("--centroid", self.centroid.is_some()),
            ("--on-infeasible", self.on_infeasible.is_some()),
            ("--token-indices", self.token_indices.is_some()),
        ];
        let of_others = [
            ("--choose", !self.choose.is_empty()),
            ("--on-reject", self.on_reject.is_some()),
            ("--round-to", self.round_to.is_some()),
            ("--calibration-batch", self.calibration_batch.is_some()),
            ("--keep-latency", !self.keep_latency.is_empty()),
        ];
        let foreign = if dual_cp { &of_others[..] } else { &of_dual_cp[..] };
        match foreign.iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(Error::usage(format!("{name} means nothing to {}", self.method.name()))),
            None => Ok(()),
        }
    }

    /// What the method looks at with the choices made. Dual-CP and its controls look at inputs.
    pub fn needs(&self) -> Result<Needs> {
        let Some(mut method) = self.method.job(self.profile) else { return Ok(Needs::Inputs) };
        for (name, value) in self.choose.iter().filter_map(|choice| choice.split_once('=')) {
            method.choose(name, value)?;
        }
        Ok(method.facts().needs)
    }

    /// Before or after fine-tuning.
    pub fn stage(&self) -> Stage {
        self.stage.map_or(self.method.stage(), Into::into)
    }
}

/// How to prune.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub struct PruneOptions {
    /// What decides which units stay.
    #[arg(long, value_enum, default_value_t = Method::DualCp)]
    pub method: Method,
    /// Fraction of the blocks' FLOPs to keep, above 0 and at most 1: 0.6 keeps 60 %. Several, separated by commas or
    /// repeated, come from one calibration; each gets its own directory `keep-F` in the output.
    #[arg(long, value_name = "F", value_delimiter = ',', required_unless_present = "keep_latency")]
    pub keep_flops: Vec<f64>,
    /// mask-tuning: fraction of the dense model's latency on this device to keep, in place of FLOPs. Sublayers of every
    /// width are timed first (--latency-batch, --latency-length), on a machine that should do nothing else.
    #[arg(long, value_name = "F", value_delimiter = ',', conflicts_with = "keep_flops")]
    pub keep_latency: Vec<f64>,
    /// Rows of the batch whose latency counts.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "keep_latency")]
    pub latency_batch: usize,
    /// Tokens of its rows.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, requires = "keep_latency")]
    pub latency_length: usize,
    /// Set of choices to start from; the options below change single ones.
    #[arg(long, value_enum, default_value_t = Profile::Default)]
    pub profile: Profile,
    /// Prune before fine-tuning (pre) or a fine-tuned model (post). Default: what the method was published for.
    #[arg(long, value_enum)]
    pub stage: Option<StageName>,
    /// Change one choice of the method, by the name the run record shows it under; repeatable. `secateur
    /// methods NAME` lists a method's choices with what each profile sets.
    #[arg(long, value_name = "NAME=VALUE")]
    pub choose: Vec<String>,
    /// Methods that rescale: what to do with a sublayer whose scales are rejected: skip it, break off (leaving all above
    /// untuned), or ridge (solve again with more damping).
    #[arg(long, value_name = "skip|break|ridge")]
    pub on_reject: Option<String>,
    /// Keep neurons of a layer at multiples of N, which wide products like: mask-tuning, kcm, weight-magnitude and
    /// output-magnitude. Short for --choose round-to=N.
    #[arg(long, value_name = "N")]
    pub round_to: Option<usize>,
    /// Leave budgets out that the method cannot reach, and say so, in place of failing. Where it can reach none of them, this
    /// still fails unless every budget has a directory of its own (--subdirectories).
    #[arg(long)]
    pub skip_infeasible: bool,
    /// Give every budget its own directory `keep-F` even where there is only one.
    #[arg(long)]
    pub subdirectories: bool,
    /// Rows of a gradient mini-batch, for methods that square gradients of batch means. Default 32; 12 for SQuAD.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub calibration_batch: Option<u32>,
    /// dual-cp: FLOPs removed from the FFN for each removed from attention (λ). Default 5.
    #[arg(long, value_name = "RATIO")]
    pub lambda: Option<f64>,
    /// dual-cp: step of the threshold search (δ), for the profiles that step: 0.001 in the paper, 0.0005 in the code. Giving it
    /// chooses that search.
    #[arg(long, value_name = "STEP")]
    pub delta: Option<f64>,
    /// dual-cp: tokens whose activations are compared. Default 200.
    #[arg(long, value_name = "N")]
    pub calibration_tokens: Option<usize>,
    /// Training rows to calibrate on, drawn by the seed; all if there are fewer. Default: the method's own number (3000
    /// for dual-cp).
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub calibration_rows: Option<usize>,
    /// dual-cp: linkage of the cluster trees.
    #[arg(long, value_enum)]
    pub linkage: Option<LinkageName>,
    /// dual-cp: distance of the cluster trees.
    #[arg(long, value_enum)]
    pub space: Option<SpaceName>,
    /// dual-cp: which member of a cluster is kept.
    #[arg(long, value_enum)]
    pub centroid: Option<CentroidName>,
    /// dual-cp: what to do with a budget that λ makes impossible.
    #[arg(long, value_enum)]
    pub on_infeasible: Option<OnInfeasibleName>,
    /// Use exactly these rows (safetensors with input_ids and cu_seqlens) instead of drawing from the data.
    #[arg(long, value_name = "FILE")]
    pub calibration_inputs: Option<PathBuf>,
    /// Use exactly these tokens: flat indices into the concatenated rows (safetensors with `token_indices`, or a JSON
    /// list).
    #[arg(long, value_name = "FILE", requires = "calibration_inputs")]
    pub token_indices: Option<PathBuf>,
    /// Sequence length T at which FLOPs are counted; may be fractional. Default: the mean length of the rows read, or
    /// the published value of the task with the profiles `paper` and `authors`. Methods that look at weights alone
    /// (random-units, weight-magnitude, layers by position) need no --task where this is given.
    #[arg(long, value_name = "TOKENS")]
    pub cost_length: Option<f64>,
}
