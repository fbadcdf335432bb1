//! The methods that take a [`Job`], by name: what a command line, a comparison or another program needs to treat them
//! alike.
//!
//! A method's choices are the fields of its options. They are shown, recorded and changed by their names in JSON, so a
//! choice that is added to a method needs nothing here.

use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{CostModel, Job, Pruned, Stage};
use crate::error::{Error, Result};

/// A set of choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The paper's text.
    Paper,
    /// The authors' released code, its slips included.
    Authors,
    /// The paper with what is broken or infeasible repaired.
    Default,
}

/// What a method looks at besides the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Nothing: no rows are run.
    Weights,
    /// Rows of the task, without labels.
    Inputs,
    /// Rows, and the answers of a trained head.
    Answers,
    /// Rows with labels, and a trained head.
    Labels,
}

/// How a method draws its calibration rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rows {
    /// So many rows.
    Count(usize),
    /// So many tokens, counted in rows of the cost model's length.
    Tokens(usize),
}

impl Rows {
    /// Rows of `length` tokens, at least one.
    pub fn at(self, length: f64) -> usize {
        match self {
            Rows::Count(rows) => rows,
            Rows::Tokens(tokens) => ((tokens as f64 / length) as usize).max(1),
        }
    }
}

/// What is published about a method and no choice changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// When it was published to prune.
    pub stage: Stage,
    /// What it looks at.
    pub needs: Needs,
    /// Calibration rows.
    pub rows: Rows,
    /// Whether it takes gradients of means over mini-batches, of a size that can be chosen.
    pub mini_batches: bool,
    /// Whether the released code draws rows with replacement.
    pub authors_replace: bool,
    /// Who published it, in a line.
    pub source: &'static str,
}

/// Options of one method: a profile, changed by name. Choices within choices have names with a dot.
trait Choices: Serialize + DeserializeOwned + Sized {
    fn fields(&self) -> Value {
        // Options are records of plain data.
        serde_json::to_value(self).unwrap_or_default()
    }

    fn choose(&mut self, name: &str, value: &str) -> Result<()> {
        let key = name.replace('-', "_");
        let mut fields = self.fields();
        if key.split('.').try_fold(&mut fields, |at, part| at.as_object_mut()?.get_mut(part)).is_none() {
            let known: Vec<String> = self.shown().into_iter().map(|(name, _)| name).collect();
            let known = known.join(", ");
            return Err(Error::usage(format!("the method has no choice {name:?}; it has {known}")));
        }
        let mut problem = String::new();
        for candidate in candidates(value) {
            let place = key.split('.').try_fold(&mut fields, |at, part| at.as_object_mut()?.get_mut(part));
            if let Some(place) = place {
                *place = candidate;
            }
            match serde_json::from_value(fields.clone()) {
                Ok(changed) => {
                    *self = changed;
                    return Ok(());
                }
                Err(e) => problem = e.to_string(),
            }
        }
        Err(Error::usage(format!("{name}={value}: {problem}")))
    }

    fn shown(&self) -> Vec<(String, String)> {
        let mut shown = Vec::new();
        flatten("", &self.fields(), &mut shown);
        shown
    }
}

/// Notes every choice below `value` by its name.
fn flatten(name: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        // A record; an object of one entry is a value with a parameter, "fixed:7".
        Value::Object(fields) if name.is_empty() || fields.len() > 1 => {
            for (field, value) in fields {
                let field = field.replace('_', "-");
                let name = if name.is_empty() { field } else { format!("{name}.{field}") };
                flatten(&name, value, into);
            }
        }
        other => into.push((name.into(), show(other))),
    }
}

impl<T: Serialize + DeserializeOwned> Choices for T {}

/// What a word of the command line may mean, the likeliest last: its message is the one shown.
fn candidates(value: &str) -> Vec<Value> {
    let mut found: Vec<Value> = serde_json::from_str(value).into_iter().collect();
    if value == "none" {
        found.push(Value::Null);
    }
    if let Some((name, inner)) = value.split_once(':') {
        let inner = serde_json::from_str(inner).unwrap_or_else(|_| Value::String(inner.into()));
        found.push(Value::Object([(name.to_string(), inner)].into_iter().collect()));
    }
    found.push(Value::String(value.into()));
    found
}

/// A value as it is typed: `candidates` reads it back.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.len() == 1 => match fields.iter().next() {
            Some((name, inner)) => format!("{name}:{}", show(inner)),
            None => String::new(),
        },
        other => other.to_string(),
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $options:ty, $module:path, $facts:expr;)+) => {
        /// A method with its choices.
        #[derive(Clone, Debug)]
        pub enum Method {
            $($(#[$doc])* $variant($options),)+
        }

        impl Method {
            /// All names.
            pub const NAMES: &[&str] = &[$($name),+];

            /// The method of that name with the choices of a profile.
            pub fn named(name: &str, profile: Profile) -> Option<Method> {
                match name {
                    $($name => Some(Method::$variant(match profile {
                        Profile::Paper => <$options>::paper(),
                        Profile::Authors => <$options>::authors(),
                        Profile::Default => <$options>::default(),
                    })),)+
                    _ => None,
                }
            }

            /// Its name.
            pub fn name(&self) -> &'static str {
                match self { $(Method::$variant(_) => $name,)+ }
            }

            /// What is published about it.
            pub fn facts(&self) -> Facts {
                match self { $(Method::$variant(options) => ($facts)(options),)+ }
            }

            /// Changes one choice. Fails, with what there is, on a name or value it does not know.
            pub fn choose(&mut self, name: &str, value: &str) -> Result<()> {
                match self { $(Method::$variant(options) => options.choose(name, value),)+ }
            }

            /// Every choice, as (name, value).
            pub fn choices(&self) -> Vec<(String, String)> {
                match self { $(Method::$variant(options) => options.shown(),)+ }
            }

            /// The value of one choice.
            pub fn choice(&self, name: &str) -> Option<String> {
                self.choices().into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
            }

            /// Budgets it can reach.
            pub fn feasible(&self, cost: &CostModel) -> RangeInclusive<f64> {
                match self { $(Method::$variant(options) => { use $module as module; module::feasible(cost, options) })+ }
            }

            /// Prunes for every budget of the job.
            pub fn prune(&self, job: &Job) -> Result<Vec<Pruned>> {
                match self { $(Method::$variant(options) => { use $module as module; module::prune(job, options) })+ }
            }
        }
    };
}

const fn facts(stage: Stage, needs: Needs, rows: usize, source: &'static str) -> Facts {
    Facts { stage, needs, rows: Rows::Count(rows), mini_batches: false, authors_replace: false, source }
}

methods! {
    /// KCM: representative ranking and data-driven ranking of neurons.
    Kcm, "kcm", super::kcm::Options, super::kcm,
        |options: &super::kcm::Options| facts(Stage::Post, options.needs(), 2000, "KCM (Nova, Dai and Schuurmans, ICML 2023)");
    /// Neurons by the magnitude of their weights.
    WeightMagnitude, "weight-magnitude", super::weight_magnitude::Options, super::weight_magnitude,
        |options: &super::weight_magnitude::Options| {
            let needs = if options.scaling.is_some() { Needs::Inputs } else { Needs::Weights };
            facts(Stage::Post, needs, 2000, "Li et al. 2017, as KCM compares it")
        };
    /// Neurons by the magnitude of their outputs.
    OutputMagnitude, "output-magnitude", super::output_magnitude::Options, super::output_magnitude,
        |_: &super::output_magnitude::Options| facts(Stage::Post, Needs::Inputs, 2000, "as KCM compares it");
    /// Whole layers.
    LayerDropping, "layer-dropping", super::layer_dropping::Options, super::layer_dropping,
        |options: &super::layer_dropping::Options| {
            let contribution = options.strategy == super::layer_dropping::Strategy::Contribution;
            let needs = if contribution { Needs::Inputs } else { Needs::Weights };
            facts(Stage::Pre, needs, 2000, "Sajjad et al. 2023")
        };
    /// Units by the first or second moment of their mask gradients.
    Importance, "importance", super::importance::Options, super::importance,
        |options: &super::importance::Options| Facts { mini_batches: !options.by_row, ..facts(Stage::Post, Needs::Labels, 2048, "Taylor: Molchanov et al. 2017; Fisher: the diagonal of Mask-Tuning's") };
    /// Mask-Tuning: Fisher search, rearrangement, rescaling.
    MaskTuning, "mask-tuning", super::mask_tuning::Options, super::mask_tuning,
        |options: &super::mask_tuning::Options| Facts { authors_replace: true, mini_batches: options.uses_mini_batches(), ..facts(Stage::Post, Needs::Labels, 2048, "Kwon et al., NeurIPS 2022") };
    /// K-prune: knowledge measurement, mask search and weight tuning, sublayer by sublayer.
    KPrune, "k-prune", super::k_prune::Options, super::k_prune,
        |options: &super::k_prune::Options| Facts {
            stage: Stage::Post,
            needs: Needs::Answers,
            rows: Rows::Tokens(options.tokens),
            mini_batches: true,
            authors_replace: true,
            source: "Park, Choi and Kang, ICLR 2024",
        };
    /// Random units: the control.
    Random, "random-units", super::random::Options, super::random,
        |_: &super::random::Options| facts(Stage::Post, Needs::Weights, 0, "control");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every choice of every method can be typed as it is shown.
    #[test]
    fn choices_are_read_back_as_shown() {
        for name in Method::NAMES {
            for profile in [Profile::Paper, Profile::Authors, Profile::Default] {
                let method = Method::named(name, profile).unwrap();
                assert_eq!(method.name(), *name);
                let mut again = method.clone();
                for (choice, value) in method.choices() {
                    again.choose(&choice, &value).unwrap();
                }
                assert_eq!(again.choices(), method.choices(), "{name}");
            }
        }
        assert!(Method::named("no such", Profile::Default).is_none());
    }

    #[test]
    fn choices_within_choices_have_a_dot() {
        let mut method = Method::named("mask-tuning", Profile::Default).unwrap();
        method.choose("rescale.on-reject", "ridge").unwrap();
        assert_eq!(method.choice("rescale.on-reject").as_deref(), Some("ridge"));
        method.choose("rescale", "none").unwrap();
        assert_eq!(method.choice("rescale").as_deref(), Some("none"));
        assert!(method.choose("rescale.on-reject", "ridge").is_err());
    }

    #[test]
    fn unknown_choices_name_the_known() {
        let mut method = Method::named("kcm", Profile::Default).unwrap();
        let error = method.choose("kernal", "s2").unwrap_err().to_string();
        assert!(error.contains("kernel"), "{error}");
        let error = method.choose("kernel", "s3").unwrap_err().to_string();
        assert!(error.contains("2s2"), "{error}");
        method.choose("stop", "fixed:7").unwrap();
        assert_eq!(method.choice("stop").as_deref(), Some("fixed:7"));
    }
}
