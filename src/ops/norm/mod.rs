//! Layer normalisation (Ba, Kiros and Hinton 2016) over the columns of each token.
//!
//! With μ and σ² the mean and the biased variance of a row of n columns, rstd = 1/√(σ² + ε) and
//! x̂ = (x − μ)·rstd: `y = γ·x̂ + β`. Backward, with g = γ·dy:
//!
//! ```text
//! dx = rstd·(g − mean(g) − x̂·mean(g·x̂))        dγ += Σ_t dy·x̂        dβ += Σ_t dy
//! ```
//!
//! The variance is the mean of squared deviations from the computed mean, never `E[x²]` − μ², so a row with a
//! large common offset keeps its digits. Error, with k = ⌈n/32⌉ + 6 the roundings of a row's sum and
//! Δμ = γ_{k+2}·mean|x|: |Δx̂| ≤ rstd·Δμ + |x̂|·(γ_{k+5}/2 + (rstd·Δμ)²/2 + 7u), to first order. Cost:
//! one read and one write of x, the row staying in cache between its three passes; the backward reads dy
//! and x once. dγ and dβ are summed over fixed chunks of rows, and the chunks in order. On a device a row's sum
//! costs at most k = ⌈n/32⌉ + 12 roundings, and chunks depend on the number of rows alone, not on the device.

pub mod cpu;
pub mod cuda;
pub mod reference;
