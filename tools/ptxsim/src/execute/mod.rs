//! What instructions do.

pub mod convert;
pub mod float;
pub mod integer;
pub mod narrow;
pub mod tensor;
