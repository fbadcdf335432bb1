//! Metrics of classification and regression.

use crate::{Error, Result};

/// Checks that predictions and references belong together.
///
/// # Errors
/// [`Error::Shape`] when the counts differ or are 0.
pub fn check_lengths(predictions: usize, references: usize) -> Result<()> {
    if predictions == references && predictions > 0 {
        return Ok(());
    }
    Err(Error::shape("metric", format!("{predictions} predictions of {references} references")))
}

/// How often each class was predicted for each true class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `counts[true class * classes + predicted class]`
    counts: Vec<u64>,
}

impl Confusion {
    /// Counts predictions of `classes` classes.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lists differ in length or are empty, or hold a class that does not exist.
    pub fn count(predictions: &[u32], labels: &[u32], classes: usize) -> Result<Self> {
        check_lengths(predictions.len(), labels.len())?;
        let mut counts = vec![0; classes * classes];
        for (row, (prediction, label)) in predictions.iter().zip(labels).enumerate() {
            let (prediction, label) = (*prediction as usize, *label as usize);
            if prediction >= classes || label >= classes {
                return Err(Error::shape(
                    "metric",
                    format!("row {row}: class {prediction} predicted for class {label} of {classes} classes"),
                ));
            }
            counts[label * classes + prediction] += 1;
        }
        Ok(Confusion { classes, counts })
    }

    /// Rows of class `label` that were predicted as `prediction`.
    pub fn at(&self, label: usize, prediction: usize) -> u64 {
        self.counts[label * self.classes + prediction]
    }

    /// Rows of a class.
    pub fn labelled(&self, class: usize) -> u64 {
        (0..self.classes).map(|other| self.at(class, other)).sum()
    }

    /// Rows predicted to be of a class.
    pub fn predicted(&self, class: usize) -> u64 {
        (0..self.classes).map(|other| self.at(other, class)).sum()
    }

    fn right(&self) -> u64 {
        (0..self.classes).map(|class| self.at(class, class)).sum()
    }

    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of rows whose class was predicted.
    pub fn accuracy(&self) -> f64 {
        self.right() as f64 / self.total() as f64
    }

    /// F1 of one class: 2 TP / (2 TP + FP + FN); 0 when the class neither occurs nor is predicted.
    pub fn f1(&self, class: usize) -> f64 {
        if class >= self.classes {
            return 0.0;
        }
        let denominator = self.labelled(class) + self.predicted(class);
        if denominator == 0 { 0.0 } else { 2.0 * self.at(class, class) as f64 / denominator as f64 }
    }

    /// Mean F1 of the classes that occur or are predicted.
    pub fn macro_f1(&self) -> f64 {
        let present: Vec<usize> =
            (0..self.classes).filter(|class| self.labelled(*class) + self.predicted(*class) > 0).collect();
        present.iter().map(|class| self.f1(*class)).sum::<f64>() / present.len() as f64
    }

    /// Matthews correlation coefficient, in its form for any number of classes (Gorodkin 2004); 0 when all labels or
    /// all predictions are of one class.
    pub fn matthews(&self) -> f64 {
        let (right, total) = (self.right() as f64, self.total() as f64);
        let (mut cross, mut labelled_squares, mut predicted_squares) = (0.0, 0.0, 0.0);
        for class in 0..self.classes {
            let (labelled, predicted) = (self.labelled(class) as f64, self.predicted(class) as f64);
            cross += labelled * predicted;
            labelled_squares += labelled * labelled;
            predicted_squares += predicted * predicted;
        }
        let spread = (total * total - labelled_squares) * (total * total - predicted_squares);
        if spread == 0.0 { 0.0 } else { (right * total - cross) / spread.sqrt() }
    }
}

/// Pearson's r; NaN when either list is constant or holds a value that is not finite.
///
/// # Panics
/// When the lists differ in length.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "pearson needs pairs");
    // Comparing values, not the sum of squares, so that rounding of the mean cannot hide a constant list.
    let constant = |values: &[f64]| values.iter().all(|value| *value == values[0]);
    if x.is_empty() || constant(x) || constant(y) {
        return f64::NAN;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xy += dx * dy;
        xx += dx * dx;
        yy += dy * dy;
    }
    // Two roots rather than the root of a product, which could overflow or underflow; rounding may still pass 1.
    let r = xy / (xx.sqrt() * yy.sqrt());
    if r.is_nan() { r } else { r.clamp(-1.0, 1.0) }
}

/// Spearman's ρ: Pearson's r of the ranks, ties given their average rank; NaN when either list is constant or holds
/// NaN.
///
/// # Panics
/// When the lists differ in length.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "spearman needs pairs");
    if x.iter().chain(y).any(|value| value.is_nan()) {
        return f64::NAN;
    }
    pearson(&average_ranks(x), &average_ranks(y))
}

/// Ranks from 1, equal values given the mean of their places. Values must not be NaN.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    // `==` joins 0 and -0, which total_cmp keeps next to each other.
    let mut before = 0;
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = before as f64 + (tied.len() as f64 + 1.0) / 2.0;
        for row in tied {
            ranks[*row] = rank;
        }
        before += tied.len();
    }
    ranks
}
