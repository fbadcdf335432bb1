//! Checkpoints, configurations and the families that emit programs.
