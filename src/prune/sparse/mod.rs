//! Unstructured pruning: which weights of the layers' matrices to keep, learnt by training.
//!
//! Every method here is one loop (`train::masked`) with other choices, so a method is a value of [`Options`]:
//!
//! | method | masks | trained | gradient of scores | regulariser |
//! |---|---|---|---|---|
//! | SMP (Jiang et al. 2023) | top-k of scores | scores only | straight through | mean σ(S), ramped |
//! | movement (Sanh et al. 2020) | top-k of scores | weights and scores | straight through | none |
//! | soft movement | σ(S) > τ | weights and scores | straight through | mean σ(S), ramped |
//! | magnitude | top-k of abs(W) | weights | none | none |
//! | L0 (Louizos et al. 2018) | hard concrete | weights and scores | exact | mean σ(S + shift) |
//! | CAP-m, CAP-soft (Xu et al. 2022) | as movement, soft movement | as those | as those | as those, and contrastive terms |
//!
//! `options` holds the profiles, `schedule` what changes with the step, `fractions` SMP-S's shares of the budget,
//! `masking` the counts and thresholds of one step, `label_words` the words that answer for classes, `search` the weight
//! of the regulariser at which a threshold method keeps what was asked.
//!
//! Scores belong to the 2-dimensional weights of the layers ([`Architecture::layer_matrices`]); biases, LayerNorm,
//! embeddings and heads are never masked. A mask is computed once an optimiser step, before its forward passes, and once
//! before an evaluation.
//!
//! [`Architecture::layer_matrices`]: crate::model::Architecture::layer_matrices

pub mod fractions;
pub mod label_words;
pub mod masking;
pub mod options;
pub mod schedule;
pub mod search;

pub use masking::{Budget, MaskPlan};
pub use options::{Distillation, Head, Masking, Method, Options, Profile};
pub use schedule::{Curve, Ramp, Schedule};
pub use search::LambdaSearch;
