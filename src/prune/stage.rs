//! When a method prunes.

use serde::{Deserialize, Serialize};

/// Before or after fine-tuning. A pre-trained model has activations and weights to rank, so methods that look at no more
/// work at either stage. Those that look at answers need a head that gives some: before fine-tuning a language model has
/// one, a classifier has not.
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
