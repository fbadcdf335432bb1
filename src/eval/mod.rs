//! Metrics of a model's outputs on a task.
//!
//! Everything here works on plain predictions and references and knows nothing of models. Undefined values follow
//! the field's reference implementations: F1 and Matthews correlation are 0 when undefined (scikit-learn), the
//! correlations of a constant list are NaN (SciPy), so that a collapsed regression model cannot pass for a score of
//! 0.

pub mod evaluate;
pub mod latency;
pub mod metrics;
pub mod perplexity;
pub mod squad;

use std::fmt;

use crate::data::{Metric, Task};
use crate::{Error, Result};

/// Metric values of one evaluation, the main one first.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskMetrics {
    values: Vec<(Metric, f64)>,
}

impl TaskMetrics {
    /// Values in order; the first is the main one.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no value.
    pub fn new(values: Vec<(Metric, f64)>) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::usage("an evaluation without a metric"));
        }
        Ok(TaskMetrics { values })
    }

    /// The metrics of a classification task, of predicted and true classes.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lists differ in length or are empty, [`Error::Usage`] when the task has other
    /// metrics.
    pub fn of_classes(task: &Task, predictions: &[u32], labels: &[u32]) -> Result<Self> {
        metrics::check_lengths(predictions.len(), labels.len())?;
        let classes = 1 + predictions.iter().chain(labels).max().map_or(0, |class| *class as usize);
        let classes = classes.max(task.labels.len());
        let counts = metrics::Confusion::count(predictions, labels, classes)?;
        Self::collect(task, |metric| match metric {
            Metric::Accuracy => Some(counts.accuracy()),
            Metric::F1 => Some(counts.f1(1)),
            Metric::MacroF1 => Some(counts.macro_f1()),
            Metric::Matthews => Some(counts.matthews()),
            _ => None,
        })
    }

    /// The metrics of a regression task.
    ///
    /// # Errors
    /// As [`TaskMetrics::of_classes`].
    pub fn of_values(task: &Task, predictions: &[f64], references: &[f64]) -> Result<Self> {
        metrics::check_lengths(predictions.len(), references.len())?;
        Self::collect(task, |metric| match metric {
            Metric::Pearson => Some(metrics::pearson(predictions, references)),
            Metric::Spearman => Some(metrics::spearman(predictions, references)),
            _ => None,
        })
    }

    fn collect(task: &Task, value: impl Fn(Metric) -> Option<f64>) -> Result<Self> {
        let one = |metric: &Metric| {
            let found = value(*metric).map(|value| (*metric, value));
            found.ok_or_else(|| {
                Error::usage(format!("{} does not apply to the task {}", metric.name(), task.name))
            })
        };
        Self::new(task.metrics.iter().map(one).collect::<Result<_>>()?)
    }

    /// All values, the main one first.
    pub fn values(&self) -> &[(Metric, f64)] {
        &self.values
    }

    /// The main metric and its value.
    pub fn main(&self) -> (Metric, f64) {
        self.values[0]
    }

    /// The value of a metric, if it was computed.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.values.iter().find(|(known, _)| *known == metric).map(|(_, value)| *value)
    }

    /// Whether the main value is better than another evaluation's. NaN is never better, and anything is better than
    /// NaN.
    pub fn better_than(&self, other: &TaskMetrics) -> bool {
        let (metric, value) = self.main();
        let (_, old) = other.main();
        if value.is_nan() || old.is_nan() {
            return !value.is_nan();
        }
        if metric.larger_is_better() { value > old } else { value < old }
    }
}

impl fmt::Display for TaskMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (metric, value)) in self.values.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            match value.is_nan() {
                true => write!(f, "{comma}{} undefined", metric.name())?,
                false => write!(f, "{comma}{} {value:.4}", metric.name())?,
            }
        }
        Ok(())
    }
}
