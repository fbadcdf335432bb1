//! Statistics of activations that pruning scores are made of.
//!
//! `mean_absolute`: `out[g] = mean |x[t, j]|` over the rows t and the `group` neighbouring columns j of group g
//! (a head's columns, or 1 for single neurons), 0 where there are no rows. Sums run over the tokens in a
//! fixed order; error at most γ_{T + group + 1} of the result, γ_{T + group + 16} on a device. Cost: one read of x.
//!
//! `column_moments`: `out [3, n]` = Σ x, Σ |x|, Σ x² of each column over the rows, zeros where there are no rows. Sums are
//! f64, so the error is one rounding of the result (u·|Σ x| and so on) plus T·2⁻⁵³ of the sum of magnitudes, which sums of
//! opposite signs keep. Mean, mean magnitude and root mean square follow, of one batch or, added up in f64, of many. Cost:
//! one read of x; T·n·3 additions in f64.
//!
//! `column_products`: `out[j] = Σ_t x[t, j]·y[t, j]`, 0 where there are no rows. With y the gradient of x this is the gradient
//! of a mask of ones on the columns of x; with y = x, the sum of squares. Products of f32 are exact in f64 and sums are f64:
//! the error is one rounding of the result plus T·2⁻⁵³ of Σ |x·y|. Cost: one read of x and y.

pub mod cpu;
pub mod cuda;
pub mod reference;
