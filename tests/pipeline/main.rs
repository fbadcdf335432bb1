//! Behaviour of whole stages: budgets are met, data reaches batches whole, degenerate inputs end in a result or a
//! named error.

#[path = "../support/mod.rs"]
mod support;

mod budget;
mod clustering;
mod data;
