//! Methods side by side: the cells of a comparison, their records gathered, and the page that shows them.
//!
//! A comparison is a grid of tasks, seeds, methods and budgets. It is cut into cells ([`grid`]), each one command of
//! this program with an output directory of its own, so that a cell can run anywhere and a finished one is known by
//! its directory. Two things are computed once: the fine-tuned model of a task and seed, which all methods prune and are
//! measured against, and a method's scores, which serve all its budgets. Dual-CP and its controls, where they prune first,
//! are cut from the same trees; other methods share nothing with each other, each calibrates for itself. [`identity`] refuses a finished cell that is not the one asked for, [`results`] reads the
//! records that the cells left, whatever ran them, and [`page`] draws them. Nothing here computes; nothing is kept but
//! records and masks.

pub mod grid;
pub mod identity;
pub mod page;
pub mod results;

pub use grid::{Cell, Grid, MethodEntry, TaskEntry};
pub use results::{Results, Row, Summary};
