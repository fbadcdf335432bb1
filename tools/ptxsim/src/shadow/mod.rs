//! What the checks remember about memory and registers besides their values.

pub mod initialisation;
pub mod outputs;
pub mod races;
