//! When a method prunes.

use serde::{Deserialize, Serialize};

/// Before or after fine-tuning. Every method works at either stage: a pre-trained model has activations and weights to
/// rank, and one that is fine-tuned can be pruned again. What differs is what a method was published for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The pre-trained model is pruned, then fine-tuned.
    Pre,
    /// The model is fine-tuned, then pruned, and that is all.
    Post,
}

impl Stage {
    /// Its name on the command line and in records.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Pre => "pre",
            Stage::Post => "post",
        }
    }
}
