//! secateur prunes and fine-tunes BERT- and GPT-2-class language models on its own compute engine.
//!
//! ```text
//! text ─ data ─► tokens ─ model ─► program ─ exec ─► activations, gradients
//!                                                       │
//!    report ◄─ eval ◄─ train ◄─ compact model ◄─ masks ◄─ prune
//! ```
//!
//! Nothing lower imports anything higher. `docs/architecture.md` is the tour, `docs/embedding.md` has two whole programs:
//! one that prunes a model, and one that runs a program of its own on the engine.

pub mod bench;
pub mod compare;
pub mod cuda;
pub mod data;
pub mod dump;
pub mod error;
pub mod eval;
pub mod exec;
pub mod export;
pub mod launch;
pub mod memory;
pub mod model;
pub mod ops;
pub mod program;
pub mod progress;
pub mod prune;
pub mod report;
pub mod session;
pub mod train;

pub use error::{Error, Result};

/// The programs of the page on embedding are tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct Embedding;
