//! Comparison with what the reference implementations computed.

#[path = "../support/mod.rs"]
mod support;

mod dual_cp;
mod mask_tuning;
mod metrics;
mod models;
mod ops;
