//! Latency in place of multiply–accumulates: how long a sublayer takes with so many units, on the user's device.
//!
//! A device is no faster for a unit less until enough are gone, so the time of a sublayer is modelled as flat up to a
//! threshold and linear above it. The first units of a sublayer then cost all of its flat part, and the units above the
//! threshold a slope each; a sublayer without units costs nothing. `measure` fills the tables, `search` spends a budget.

mod measure;
mod search;

pub use measure::LatencyOptions;
pub use search::{LatencyPlan, search_latency};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Seconds of one attention and of one feed-forward sublayer, LayerNorm and residual included, by number of units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyTable {
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens of each row.
    pub length: usize,
    /// What it was measured on.
    pub device: String,
    /// With 1 … H heads.
    pub heads: Vec<f64>,
    /// With 1 … N neurons.
    pub neurons: Vec<f64>,
    /// Numbers of neurons that were measured; those between are interpolated.
    pub measured_neurons: Vec<usize>,
}

/// Time of a sublayer with n units: 0 without any, `flat` up to `threshold` units, `slope` more for each one above.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyFit {
    /// τ, at least 1.
    pub threshold: usize,
    /// Seconds.
    pub flat: f64,
    /// Seconds a unit, at least 0.
    pub slope: f64,
}

impl LatencyTable {
    /// The fits of both kinds. Fails as [`LatencyFit::of`].
    pub fn fits(&self) -> Result<(LatencyFit, LatencyFit)> {
        Ok((LatencyFit::of(&self.heads)?, LatencyFit::of(&self.neurons)?))
    }
}

impl LatencyFit {
    /// The fit of smallest squared error to a table of 1, 2, … units: for each τ the flat part is the mean of the first τ
    /// entries, and the slope the least-squares line through it of the entries above, not below 0. Of equally good τ the
    /// smallest. Fails on an empty table and on times that are not positive numbers.
    pub fn of(table: &[f64]) -> Result<LatencyFit> {
        if table.is_empty() {
            return Err(Error::usage("a latency table without entries"));
        }
        if let Some(at) = table.iter().position(|seconds| !(seconds.is_finite() && *seconds > 0.0)) {
            return Err(Error::NotFinite {
                what: "a latency".into(),
                value: table[at],
                place: format!("of {} units, where a positive time is needed", at + 1),
            });
        }
        let mut best: Option<(f64, LatencyFit)> = None;
        for threshold in 1..=table.len() {
            let (low, high) = table.split_at(threshold);
            let flat = low.iter().sum::<f64>() / threshold as f64;
            let above = || high.iter().enumerate().map(|(i, seconds)| ((i + 1) as f64, seconds - flat));
            let products: f64 = above().map(|(x, y)| x * y).sum();
            let squares: f64 = above().map(|(x, _)| x * x).sum();
            let slope = if squares > 0.0 { (products / squares).max(0.0) } else { 0.0 };
            let error = low.iter().map(|seconds| (seconds - flat).powi(2)).sum::<f64>()
                + above().map(|(x, y)| (y - slope * x).powi(2)).sum::<f64>();
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, LatencyFit { threshold, flat, slope }));
            }
        }
        best.map(|(_, fit)| fit).ok_or_else(|| Error::usage("a latency table without entries"))
    }

    /// Predicted seconds with `units`.
    pub fn at(&self, units: usize) -> f64 {
        match units {
            0 => 0.0,
            units => self.flat + self.slope * units.saturating_sub(self.threshold) as f64,
        }
    }
}
