//! The definitions, in f64.

use crate::ops::View;

/// `out[g]` = mean of `|x|` over rows and the columns of group g; `x`: `[T, n]`, `out`: `[n / group]`.
pub fn mean_absolute(x: View<f64>, group: usize, out: &mut [f64]) {
    for g in 0..out.len() {
        let columns = g * group..(g + 1) * group;
        let sum: f64 = (0..x.rows()).flat_map(|t| &x.row(t)[columns.clone()]).map(|x| x.abs()).sum();
        out[g] = sum / (x.rows() * group).max(1) as f64;
    }
}
