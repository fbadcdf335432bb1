//! A sublayer of which only the output bias is left.
//!
//! Masking every head or neuron of a sublayer leaves `y = dropout(bias) + residual` (its projection of zeros still
//! adds the bias). `bias`: `[n]`; `residual`, `y`: `[T, n]`. One addition an element, exact to its one rounding.

pub mod cpu;
pub mod cuda;
pub mod reference;
