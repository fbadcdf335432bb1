//! Kernel Semi-NMF with the data as its own basis: which rows of a matrix represent the others.
//!
//! KCM (Nova, Dai and Schuurmans, ICML 2023) scores the neurons of a layer by the diagonal of C, n × n, in the
//! factorisation φ(X) ≈ φ(X)·C under a Gaussian kernel, where the rows of X are the neurons' output weights:
//!
//! * `gaussian_kernel`: X `[n, d]` → K `[n, n]`, K_ij = exp(−‖x_i − x_j‖² / scale). Symmetric, 1 on the diagonal.
//! * `multiplicative_update`: C ← C ∘ √(K ⊘ (K·C)), K and C `[n, n]` with K symmetric, C ≥ 0; an entry becomes 0 where
//!   K is 0. Returns the relative growth (Σ C_new − Σ C_old) / Σ C_old, on which the iteration stops.
//! * `first_update`: the same from C = 1/n everywhere, where K·C is the row sums of K over n: no product.
//!
//! Error of the f32 versions: the exponent is off by at most γ_{d+3} of itself, so K_ij by K_ij·(γ_{d+3}·e + 4u) with
//! e = ‖x_i − x_j‖²/scale; the update by γ_{n+2}/2 + 4u of the result, all terms of K·C being positive. Sums of C are f64.
//! Distances are sums of squared differences: |x|² + |y|² − 2xy would lose the digits of close neighbours.
//!
//! Cost: n²·d/2 steps of difference and square; an update 2·n³ FLOPs of a matrix product and one pass over C; the first
//! update two passes over K. With n = 3,072 and d = 768 twenty iterations ran at 0.90 of the rate
//! of their nineteen products alone, timed in turns on two busy cores: the kernel takes 0.4 of a product, the pass over C
//! 0.1. The bench `pruning` repeats it.

pub mod cpu;
pub mod cuda;
pub mod reference;
