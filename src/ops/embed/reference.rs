//! The definitions, in f64.

use crate::ops::{View, ViewMut};

/// See the [module](super). `ids`, `positions`, `types`: `[T]`; tables `[entries, d]`; `out`: `[T, d]`.
pub fn embed(
    ids: &[i32],
    positions: &[i32],
    types: Option<&[i32]>,
    word: View<f64>,
    position: Option<View<f64>>,
    types_table: Option<View<f64>>,
    mut out: ViewMut<f64>,
) {
    for t in 0..ids.len() {
        for j in 0..word.cols() {
            let mut sum = word.at(ids[t] as usize, j);
            if let Some(position) = position {
                sum += position.at(positions[t] as usize, j);
            }
            if let (Some(table), Some(types)) = (types_table, types) {
                sum += table.at(types[t] as usize, j);
            }
            out.row_mut(t)[j] = sum;
        }
    }
}

/// Adds the gradient of each table that is given.
pub fn embed_backward(
    dy: View<f64>,
    ids: &[i32],
    positions: &[i32],
    types: Option<&[i32]>,
    dword: Option<ViewMut<f64>>,
    dposition: Option<ViewMut<f64>>,
    dtypes_table: Option<ViewMut<f64>>,
) {
    for (indices, table) in [(Some(ids), dword), (Some(positions), dposition), (types, dtypes_table)] {
        if let (Some(indices), Some(table)) = (indices, table) {
            crate::ops::gather::reference::scatter_rows_add(dy, indices, table);
        }
    }
}
