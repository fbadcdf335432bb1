//! Metrics and evaluation of a model on a task.
