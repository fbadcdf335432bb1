//! Similarities on a device. Everything is computed for the upper triangle of 128 × 128 tiles and mirrored.

use super::NORM_FLOOR;
use crate::launch::kernels::similarity as kernels;
use crate::launch::{ElementType, Grid, Matrix, Queue, int};

/// Edge of an output tile.
const TILE: usize = 128;
/// Edge of the parts of a tile that one block mirrors.
const PART: usize = 32;
/// Rows whose squares one block sums.
const SQUARES_CHUNK: usize = 512;
/// Products are cut into chunks of rows until there are so many blocks: a few waves on the largest devices.
const BLOCKS: usize = 1024;
/// Rows that are worth a block of their own.
const SMALLEST_CHUNK: usize = 256;

fn upper_tiles(units: usize) -> (usize, usize) {
    let tiles = units.div_ceil(TILE);
    (tiles, tiles * (tiles + 1) / 2)
}

/// C [units, units] of the columns of `x` [samples, units], f32 or bf16; see the family's contract.
///
/// Sums run over at most `⌈samples / 256⌉` chunks of rows, each in order, then over the chunks in order: the family's
/// bound holds. Scratch: about 64 KB for each of 1,024 tiles.
pub fn absolute_cosine(queue: &mut Queue, x: Matrix, out: Matrix) {
    let (samples, units) = (x.rows, x.cols);
    assert_eq!((out.rows, out.cols), (units, units));
    if units == 0 {
        return;
    }
    let (tiles, upper) = upper_tiles(units);
    let vector = i32::from(x.aligned16());
    let scales = queue.scratch::<f32>(2 * units);
    let diagonal = queue.scratch::<f32>(units);

    let square_chunks = samples.div_ceil(SQUARES_CHUNK);
    let sums = queue.scratch::<f64>(square_chunks * units);
    // Chunks are numbered by y, of which a grid has 65,535.
    let grid = Grid::new([units.div_ceil(32), square_chunks, 1], 256);
    let (ld, rows, columns, step) = (int(x.ld), int(samples), int(units), int(SQUARES_CHUNK));
    if samples > 0 {
        queue.push(match x.element {
            ElementType::F32 => kernels::column_squares_f32(grid, x.f32(), ld, rows, columns, step, sums),
            ElementType::Bf16 => kernels::column_squares_bf16(grid, x.bf16(), ld, rows, columns, step, sums),
        });
    }
    let grid = Grid::linear(units.div_ceil(256), 256);
    queue.push(kernels::column_scales(grid, sums, int(square_chunks), columns, NORM_FLOOR, scales, diagonal));

    let most_chunks = BLOCKS.div_ceil(upper).min(samples.div_ceil(SMALLEST_CHUNK));
    let products = queue.scratch::<f32>(most_chunks * upper * TILE * TILE);
    let rows_per_chunk = samples.div_ceil(most_chunks.max(1)).max(1);
    let chunks = samples.div_ceil(rows_per_chunk);
    let grid = Grid::new([upper, chunks, 1], 256);
    let (step, tiles) = (int(rows_per_chunk), int(tiles));
    if samples > 0 {
        queue.push(match x.element {
            ElementType::F32 => {
                kernels::gram_f32(grid, x.f32(), ld, rows, columns, step, scales, products, tiles, vector)
            }
            ElementType::Bf16 => {
                kernels::gram_bf16(grid, x.bf16(), ld, rows, columns, step, scales, products, tiles, vector)
            }
        });
    }
    let grid = Grid::new([upper, (TILE / PART).pow(2), 1], 256);
    let chunks = int(chunks);
    queue.push(kernels::cosine(grid, products, chunks, diagonal, columns, tiles, out.f32(), int(out.ld)));
}

/// P [units, units], P_ij = max_k |D_ik − D_jk| with D = 1 − `cosine` [units, units]; see the family's contract.
pub fn profile_distance(queue: &mut Queue, cosine: Matrix, out: Matrix) {
    let units = cosine.rows;
    assert_eq!((cosine.cols, out.rows, out.cols), (units, units, units));
    if units == 0 {
        return;
    }
    let (tiles, upper) = upper_tiles(units);
    queue.push(kernels::profile_distance(
        Grid::linear(upper, 256),
        cosine.f32(),
        int(cosine.ld),
        int(units),
        int(tiles),
        i32::from(cosine.aligned16()),
        out.f32(),
        int(out.ld),
    ));
}
