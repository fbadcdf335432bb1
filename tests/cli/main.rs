//! The command line and what it writes, as a user meets them.

#[path = "../support/mod.rs"]
mod support;

mod budget;
mod cap;
mod commands;
mod compare;
mod damage;
mod driver;
mod export;
mod hostile;
mod latency;
mod memory;
mod parity;
mod precision;
mod report;
mod sparsify;
mod train;
