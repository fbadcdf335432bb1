//! Statistics of activations that pruning scores are made of.
//!
//! `mean_absolute`: `out[g] = mean |x[t, j]|` over the rows t and the `group` neighbouring columns j of group g
//! (a head's columns, or 1 for single neurons), 0 where there are no rows. Sums run over the tokens in a
//! fixed order; error at most γ_{T + group + 1} of the result, γ_{T + group + 16} on a device. Cost: one read of x.

pub mod cpu;
pub mod cuda;
pub mod reference;
