//! Embeddings in f32: bound by memory.

use crate::ops::gather::cpu::{add_row, scatter_rows_add};
use crate::ops::parallel::{self, Shared};
use crate::ops::{View, ViewMut};

/// See the [module](super). `ids`, `positions`, `types`: `[T]`; tables `[entries, d]`; `out`: `[T, d]`.
pub fn embed(
    ids: &[i32],
    positions: &[i32],
    types: Option<&[i32]>,
    word: View<f32>,
    position: Option<View<f32>>,
    types_table: Option<View<f32>>,
    mut out: ViewMut<f32>,
) {
    assert_eq!((ids.len(), word.cols()), (out.rows(), out.cols()));
    let out = Shared::new(&mut out);
    parallel::rows(ids.len(), word.cols(), |rows| {
        for t in rows {
            // SAFETY: ranges of rows are disjoint.
            let row = unsafe { out.whole_row(t) };
            row.copy_from_slice(word.row(ids[t] as usize));
            if let Some(position) = position {
                add_row(position.row(positions[t] as usize), row);
            }
            if let (Some(table), Some(types)) = (types_table, types) {
                add_row(table.row(types[t] as usize), row);
            }
        }
    });
}

/// Adds the gradient of each table that is given.
pub fn embed_backward(
    dy: View<f32>,
    ids: &[i32],
    positions: &[i32],
    types: Option<&[i32]>,
    dword: Option<ViewMut<f32>>,
    dposition: Option<ViewMut<f32>>,
    dtypes_table: Option<ViewMut<f32>>,
) {
    for (indices, table) in [(Some(ids), dword), (Some(positions), dposition), (types, dtypes_table)] {
        if let (Some(indices), Some(table)) = (indices, table) {
            scatter_rows_add(dy, indices, table);
        }
    }
}
