//! Training: one optimiser step is a list of programs, a run is a list of steps, and both can be repeated to the bit.
//!
//! A run is a function of its recipe, its seed and its data alone: batch order comes from (seed, epoch), dropout from
//! (seed, draw), and neither from time, thread count or the size of the micro-batches' arena. A checkpoint holds
//! weights, moments, step, draw and data cursor, so that an interrupted run continues to the same bits.

pub mod banks;
pub mod checkpoint;
pub mod contrast;
pub mod finetune;
pub mod masked;
pub mod objective;
pub mod recipe;
pub mod stepper;
pub mod teacher;
pub mod trainer;
pub mod update;

pub use recipe::Recipe;
pub use trainer::Trainer;
