//! Scores, searches under a cost budget, and the methods built of them.
//!
//! `cost` is the one cost model every method shares, [`UnitMasks`] the one result every structured method gives. A
//! method is one file or one folder: `dual_cp` (clustering of activations before fine-tuning), with `calibrate` (its
//! inputs), `clustering` (its trees) and `overlap` (how much two tasks' masks share) beside it. [`Job`] is what the
//! methods that need no retraining are given, [`Stream`] their calibration rows on the way up through the model. `kcm`
//! and the magnitude baselines rank neurons (`neuron_ranking`) by weights and by `moments` of their activations;
//! `importance`, `layer_dropping` and `random` are the other baselines. `k_prune` prunes and tunes sublayer by sublayer, with
//! `cholesky` for its normal equations.

pub mod calibrate;
pub mod cap;
pub mod cholesky;
pub mod clustering;
pub mod contrastive;
pub mod cost;
pub mod dual_cp;
pub mod importance;
pub mod job;
pub mod k_prune;
pub mod kcm;
pub mod layer_dropping;
pub mod lsmr;
pub mod mask_gradients;
pub mod mask_tuning;
pub mod method;
pub mod moments;
pub mod neuron_ranking;
pub mod output_magnitude;
pub mod overlap;
pub mod proof;
pub mod random;
pub mod rounding;
pub mod scaling;
pub mod sparse;
pub mod stage;
pub mod stream;
pub mod weight_magnitude;

pub use crate::model::masks::{self, UnitMasks};
pub use cost::{BudgetRecord, CostModel, LayerWidths};
pub use job::{Job, Pruned};
pub use stage::Stage;
pub use stream::Stream;
