//! Property tests of the operation families: every CPU path against the f64 reference.

#[path = "../support/mod.rs"]
mod support;

mod activation;
mod attention;
mod common;
mod dropout;
mod gemm;
mod loss;
mod mapping;
mod norm;
mod optimizer;
mod rows;
mod similarity;
