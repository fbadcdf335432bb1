//! Fine-tuning recipes: the hyper-parameters of a run, and the presets of the papers.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::optimizer::linear_schedule;

/// Hyper-parameters of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Examples an optimiser step.
    pub batch_size: usize,
    /// Passes over the training set.
    pub epochs: usize,
    /// Fraction of all steps over which the learning rate rises from 0.
    pub warmup: f64,
    /// Decoupled weight decay of matrices; vectors take none.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down.
    pub max_gradient_norm: f64,
    /// AdamW β₁.
    pub beta1: f64,
    /// AdamW β₂.
    pub beta2: f64,
    /// AdamW ε.
    pub epsilon: f64,
}

impl Default for Recipe {
    /// The GLUE recipe of the Dual-CP repository: Hugging Face Trainer defaults.
    fn default() -> Recipe {
        Recipe {
            learning_rate: 2e-5,
            batch_size: 16,
            epochs: 4,
            warmup: 0.0,
            weight_decay: 0.0,
            max_gradient_norm: 1.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }
}

/// Names of the presets, for help texts.
pub const PRESETS: [&str; 5] = ["glue", "bert-paper", "squad", "lm-paper", "lm-readme"];

impl Recipe {
    /// A preset by name.
    pub fn preset(name: &str) -> Result<Recipe> {
        let glue = Recipe::default();
        Ok(match name {
            "glue" => glue,
            // Devlin et al. 2019, A.3: 10 % warm-up, decay 0.01.
            "bert-paper" => Recipe { batch_size: 32, epochs: 3, warmup: 0.1, weight_decay: 0.01, ..glue },
            "squad" => Recipe { learning_rate: 3e-5, batch_size: 12, epochs: 2, ..glue },
            // P-pruning, text of the paper and README of its code: they differ.
            "lm-paper" => Recipe { learning_rate: 1e-4, batch_size: 32, epochs: 10, ..glue },
            "lm-readme" => Recipe { learning_rate: 5e-4, batch_size: 32, epochs: 8, ..glue },
            other => {
                let known = PRESETS.join(", ");
                return Err(Error::usage(format!("unknown recipe {other:?}; there are {known}")));
            }
        })
    }

    /// Refuses values no run can work with.
    pub fn check(&self) -> Result<()> {
        let positive = |name: &str, value: f64| match value {
            v if v.is_finite() && v > 0.0 => Ok(()),
            v => Err(Error::usage(format!("{name} must be a positive number, not {v}"))),
        };
        let fraction = |name: &str, value: f64| match value {
            v if (0.0..1.0).contains(&v) => Ok(()),
            v => Err(Error::usage(format!("{name} must be at least 0 and below 1, not {v}"))),
        };
        positive("learning rate", self.learning_rate)?;
        positive("maximal gradient norm", self.max_gradient_norm)?;
        positive("AdamW epsilon", self.epsilon)?;
        positive("batch size", self.batch_size as f64)?;
        positive("number of epochs", self.epochs as f64)?;
        fraction("warm-up", self.warmup)?;
        fraction("weight decay", self.weight_decay)?;
        fraction("beta1", self.beta1)?;
        fraction("beta2", self.beta2)
    }

    /// Steps of `total` over which the learning rate rises.
    pub fn warmup_steps(&self, total: u64) -> u64 {
        (self.warmup * total as f64).ceil() as u64
    }

    /// Learning rate of step `step` (from 0) of `total`: linear warm-up, then linear decay to 0.
    pub fn learning_rate_at(&self, step: u64, total: u64) -> f64 {
        self.learning_rate * linear_schedule(step, self.warmup_steps(total), total)
    }

    /// The `hyper` input of [`Op::AdamW`](crate::program::Op::AdamW) for step `step` (from 0) of `total`.
    pub fn hyper(&self, step: u64, total: u64) -> [f64; 7] {
        let power = (step + 1) as f64;
        [
            self.learning_rate_at(step, total),
            self.beta1,
            self.beta2,
            self.epsilon,
            self.weight_decay,
            1.0 - self.beta1.powf(power),
            1.0 - self.beta2.powf(power),
        ]
    }
}
