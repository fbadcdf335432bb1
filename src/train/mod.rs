//! Training loop, schedules and checkpoints.
