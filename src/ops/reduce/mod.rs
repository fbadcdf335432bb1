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

pub mod cpu;
pub mod cuda;
pub mod reference;
