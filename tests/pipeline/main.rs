//! Behaviour of whole stages: budgets are met, data reaches batches whole, models load, emit and compact as they
//! should, degenerate inputs end in a result or a named error.

#[path = "../support/mod.rs"]
mod support;

mod baselines;
mod budget;
mod clustering;
mod compact;
mod data;
mod density;
mod emission;
mod hostile;
mod k_prune;
mod loading;
mod mask_tuning;
mod ranking;
mod tiny;
mod unit_masks;
mod weight_masks;
