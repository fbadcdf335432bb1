//! Comparison with what the reference implementations computed.

#[path = "../support/mod.rs"]
mod support;

mod dual_cp;
mod k_prune;
mod kcm;
mod mask_tuning;
mod metrics;
mod models;
mod movement;
mod ops;
mod smp;
