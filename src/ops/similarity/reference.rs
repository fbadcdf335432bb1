//! The definitions, element by element in f64.

use super::NORM_FLOOR;
use crate::ops::{View, ViewMut};

/// C [units, units] of the columns of `x` [samples, units]; see the family's contract.
pub fn absolute_cosine(x: View<f64>, out: &mut ViewMut<f64>) {
    let units = x.cols();
    assert_eq!((out.rows(), out.cols()), (units, units));
    let dot = |i: usize, j: usize| -> f64 { (0..x.rows()).map(|s| x.at(s, i) * x.at(s, j)).sum() };
    let norms: Vec<f64> = (0..units).map(|i| dot(i, i).sqrt()).collect();
    for i in 0..units {
        for j in 0..=i {
            let value = if i == j {
                (norms[i] / norms[i].max(NORM_FLOOR)).powi(2)
            } else {
                dot(i, j).abs() / (norms[i].max(NORM_FLOOR) * norms[j].max(NORM_FLOOR))
            };
            // Rounding may exceed the bound of Cauchy and Schwarz; a distance 1 − C must not become negative.
            let value = if value > 1.0 { 1.0 } else { value };
            out.row_mut(i)[j] = value;
            out.row_mut(j)[i] = value;
        }
    }
}

/// P [units, units], P_ij = max_k |D_ik − D_jk| with D = 1 − `cosine` [units, units].
pub fn profile_distance(cosine: View<f64>, out: &mut ViewMut<f64>) {
    let units = cosine.rows();
    assert_eq!((cosine.cols(), out.rows(), out.cols()), (units, units, units));
    for i in 0..units {
        for j in 0..units {
            let (a, b) = (cosine.row(i), cosine.row(j));
            let finite = a.iter().chain(b).all(|v| v.is_finite());
            let widest = a.iter().zip(b).map(|(p, q)| ((1.0 - p) - (1.0 - q)).abs()).fold(0.0, f64::max);
            out.row_mut(i)[j] = if finite { widest } else { f64::NAN };
        }
    }
}

/// Mean |x| of each group of `width` adjacent columns of `x` [samples, groups·width]; `out` has one entry a group.
/// No samples give zeros.
pub fn mean_absolute(x: View<f64>, width: usize, out: &mut [f64]) {
    assert_eq!(out.len() * width, x.cols());
    for (group, mean) in out.iter_mut().enumerate() {
        let columns = group * width..(group + 1) * width;
        let sum: f64 = (0..x.rows()).flat_map(|s| &x.row(s)[columns.clone()]).map(|v| v.abs()).sum();
        *mean = sum / (x.rows() * width).max(1) as f64;
    }
}
