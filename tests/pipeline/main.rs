//! Behaviour of whole stages: budgets are met, degenerate inputs end in a result or a named error.

#[path = "../support/mod.rs"]
mod support;

mod budget;
mod clustering;
