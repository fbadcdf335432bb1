//! Executors of a program.
