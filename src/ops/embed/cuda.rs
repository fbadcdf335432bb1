//! Launches of `kernels/embed.cu`; the backward is the scatter-add of `kernels/gather.cu`.

use crate::launch::{ElementType, Matrix, Pointer, Queue, int, kernels, or_null};
use crate::ops::gather::cuda::scatter_rows_add;
use crate::ops::rows::{assert_vector_access, one_piece_a_thread};

/// See the [module](super). `ids`, `positions`, `types`: `[T]`; tables `[entries, d]` in f32; `out`: `[T, d]`.
pub fn embed(
    queue: &mut Queue,
    ids: Pointer<i32>,
    positions: Pointer<i32>,
    types: Option<Pointer<i32>>,
    word: Matrix,
    position: Option<Matrix>,
    types_table: Option<Matrix>,
    out: Matrix,
) {
    assert_eq!(word.cols, out.cols);
    assert_vector_access(&out);
    if out.is_empty() {
        return;
    }
    let table = |table: Option<Matrix>| match table {
        Some(table) => {
            assert_eq!(table.cols, out.cols);
            (table.f32(), int(table.ld))
        }
        None => (Pointer::NULL, 0),
    };
    let (word, ldw) = table(Some(word));
    let (position, ldp) = table(position);
    let (types_table, ldt) = table(types_table.filter(|_| types.is_some()));
    let (types, ldo, rows, cols) = (or_null(types), int(out.ld), int(out.rows), int(out.cols));
    let grid = one_piece_a_thread(&out);
    queue.push(match out.element {
        ElementType::F32 => kernels::embed::embed_f32(
            grid,
            ids,
            positions,
            types,
            word,
            ldw,
            position,
            ldp,
            types_table,
            ldt,
            out.f32(),
            ldo,
            rows,
            cols,
        ),
        ElementType::Bf16 => kernels::embed::embed_bf16(
            grid,
            ids,
            positions,
            types,
            word,
            ldw,
            position,
            ldp,
            types_table,
            ldt,
            out.bf16(),
            ldo,
            rows,
            cols,
        ),
    });
}

/// Adds the gradient of each table that is given; tables are f32.
pub fn embed_backward(
    queue: &mut Queue,
    dy: Matrix,
    ids: Pointer<i32>,
    positions: Pointer<i32>,
    types: Option<Pointer<i32>>,
    dword: Option<Matrix>,
    dposition: Option<Matrix>,
    dtypes_table: Option<Matrix>,
) {
    for (indices, table) in [(Some(ids), dword), (Some(positions), dposition), (types, dtypes_table)] {
        if let (Some(indices), Some(table)) = (indices, table) {
            scatter_rows_add(queue, dy, indices, table);
        }
    }
}
