//! Operation families: each has a contract (`mod.rs`), an obvious f64 reference and a fast CPU version.
//!
//! A family folder holds `mod.rs` (shapes, formula, error bound, cost), `reference.rs` and `cpu.rs`.
//! The functions work on [`View`]s and know nothing of programs or models; `exec` binds slots to them.

pub mod activation;
pub mod attention;
pub mod bias;
pub mod contrastive;
pub mod dropout;
pub mod embed;
pub mod gather;
pub mod gemm;
pub mod loss;
pub mod mapping;
pub mod norm;
pub mod optimizer;
pub mod reduce;
pub mod select;
pub mod seminmf;
pub mod similarity;
pub mod weightmask;

mod elementary;
mod parallel;
mod rows;
mod scratch;
pub mod simd;
mod view;

pub use view::{Elem, View, ViewMut};
