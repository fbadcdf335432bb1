//! Methods side by side: the cells of a comparison, their records gathered, and the page that shows them.
//!
//! A comparison is a grid of tasks, seeds, methods and budgets. It is cut into cells ([`grid`]), each one command of
//! this program with an output directory of its own, so that a cell can run anywhere and a finished one is known by
//! its directory. What cells have in common is a cell that the others wait for: the fine-tuned model of a task and
//! seed, the masks of a method for all budgets. [`results`] reads the records that the cells left, whatever ran them,
//! and [`page`] draws them. Nothing here computes; nothing is kept but records and masks.

pub mod grid;
pub mod page;
pub mod results;

pub use grid::{Cell, Grid, MethodEntry, TaskEntry};
pub use results::{Results, Row, Summary};
