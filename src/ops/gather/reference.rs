//! The definitions, in f64.

use crate::ops::{View, ViewMut};

/// `y[i] = x[rows[i]]`.
pub fn gather_rows(x: View<f64>, rows: &[i32], mut y: ViewMut<f64>) {
    for (i, &row) in rows.iter().enumerate() {
        y.row_mut(i).copy_from_slice(x.row(row as usize));
    }
}

/// `dx[rows[i]] += dy[i]`.
pub fn scatter_rows_add(dy: View<f64>, rows: &[i32], mut dx: ViewMut<f64>) {
    for (i, &row) in rows.iter().enumerate() {
        for j in 0..dy.cols() {
            dx.row_mut(row as usize)[j] += dy.at(i, j);
        }
    }
}

/// `y = x`.
pub fn copy(x: View<f64>, mut y: ViewMut<f64>) {
    for t in 0..x.rows() {
        y.row_mut(t).copy_from_slice(x.row(t));
    }
}

/// `y += x`.
pub fn add_in_place(mut y: ViewMut<f64>, x: View<f64>) {
    for t in 0..x.rows() {
        for j in 0..x.cols() {
            y.row_mut(t)[j] += x.at(t, j);
        }
    }
}

/// `y = value` everywhere.
pub fn fill(mut y: ViewMut<f64>, value: f64) {
    for t in 0..y.rows() {
        y.row_mut(t).fill(value);
    }
}
