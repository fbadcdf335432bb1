//! Moving rows: picking some, adding them back, and whole-matrix copy, sum and fill.
//!
//! `gather_rows`: `y[i] = x[rows[i]]`. `scatter_rows_add`: `dx[rows[i]] += dy[i]`, its backward; `rows` may
//! name a row more than once, and then its terms are added in the order of i whatever the number of
//! threads, because threads share the columns out, not the rows. On a device the terms are added in the order of i
//! within runs of at most 32, and then the runs' sums in a fixed tree. Cost: memory only.

pub mod cpu;
pub mod cuda;
pub mod reference;
