//! Property tests of the operation families: every CPU path against the f64 reference.

mod gemm;
