//! Similarity of units: absolute cosine, profile distance, mean magnitude.
//!
//! Activation-based clustering asks how alike the columns of an activation matrix X [samples, units] are.
//! Three operations answer, each with an obvious f64 version (`reference`) and a fast f32 one (`cpu`):
//!
//! * `absolute_cosine`: X [samples, units] → C [units, units],
//!   C_ij = |x_i·x_j| / (max(|x_i|, ε) max(|x_j|, ε)), ε = [`NORM_FLOOR`]. A column of zeros gives zeros, on the
//!   diagonal too, never NaN. C is exactly symmetric and in [0, 1]; C_jj is exactly 1 for |x_j| ≥ ε.
//! * `profile_distance`: C [units, units] → P_ij = max_k |D_ik − D_jk| with D = 1 − C, the Chebyshev distance of two
//!   rows of D. P is exactly symmetric with a zero diagonal; a row with a non-finite entry gives NaN in its row and
//!   column.
//! * `mean_absolute`: X [samples, groups·width] → mean of |x| over the samples and the `width` columns of a group.
//!
//! Error of the f32 versions, u = 2⁻²⁴, γ_K = K·u / (1 − K·u), against exact arithmetic on the same input:
//!
//! * cosine: both columns are normalised (norms accumulated in f64, one rounding a stored element) and a dot
//!   product of K = samples terms follows, so |ΔC_ij| ≤ γ_{K+4} Σ_s |x̂_si||x̂_sj| ≤ γ_{K+4};
//! * profile distance: for C in [0, 1] each D is rounded once, to a multiple of 2⁻²⁴ in [0, 1]; the differences are
//!   such multiples too, so subtraction and maximum add nothing and |ΔP_ij| ≤ u. Given the same f32 D, the f32 and
//!   f64 results are equal bit for bit, which is why no f64 pass exists here;
//! * mean: accumulated in f64, one rounding of the result (relative error ≤ u plus f64 terms).
//!
//! Cost: cosine `samples·units²` multiply–adds (the symmetric half), profile distance `units³/2` steps of
//! subtract, absolute value, maximum; memory traffic is O(units²) for both.

pub mod cpu;
pub mod cuda;
pub mod reference;

/// Smallest norm a column is divided by; below it the cosine shrinks to zero instead of amplifying noise.
pub const NORM_FLOOR: f64 = 1e-8;
