//! The engine as a whole: plans, executors in lock-step, gradients of whole models, training that repeats and resumes.

#[path = "../support/mod.rs"]
mod support;

mod calibration;
mod contrast;
mod contrast_training;
mod emulated;
mod failing;
mod gradients;
mod knowledge;
mod label_words;
mod lockstep;
mod mask_tuning;
mod masked;
mod masked_gradients;
mod measurements;
mod models;
mod naive;
mod objective;
mod plan;
mod runs;
mod stream;
mod training;
