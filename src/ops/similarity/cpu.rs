//! f32 versions: one symmetric matrix product for the cosine, a register-tiled (max, |a − b|) product for the
//! profile distance. Results do not depend on the number of threads: every output element is computed by one
//! thread in one order.

use rayon::prelude::*;

use super::NORM_FLOOR;
use crate::ops::gemm::{self, Epilogue};
use crate::ops::simd::simd_fn;
use crate::ops::{View, ViewMut};

/// Columns of the cosine matrix computed by one matrix product: the part below the diagonal of a block is wasted work.
const COSINE_BLOCK: usize = 256;

/// C [units, units] of the columns of `x` [samples, units]; see the family's contract.
pub fn absolute_cosine(x: View<f32>, out: &mut ViewMut<f32>) {
    let units = x.cols();
    assert_eq!((out.rows(), out.cols()), (units, units));
    let norms = column_norms(x);
    let normalised = normalise(x, &norms);
    let normalised = View::dense(&normalised, x.rows(), units);
    let ld = out.ld();
    for start in (0..units).step_by(COSINE_BLOCK) {
        let rows = COSINE_BLOCK.min(units - start);
        let (left, right) = (normalised.cols_at(start, rows), normalised.cols_at(start, units - start));
        let mut block = ViewMut::new(&mut out.data_mut()[start * ld + start..], rows, units - start, ld);
        gemm::cpu::gemm(left, true, right, false, &mut block, Epilogue::default());
    }
    for i in 0..units {
        for value in &mut out.row_mut(i)[i..] {
            let magnitude = value.abs();
            *value = if magnitude > 1.0 { 1.0 } else { magnitude };
        }
        out.row_mut(i)[i] = (norms[i] / norms[i].max(NORM_FLOOR)).powi(2) as f32;
    }
    mirror_upper(out);
}

/// |x_j| of every column, accumulated in f64 so that neither 1e30 overflows nor 1e-30 vanishes.
fn column_norms(x: View<f32>) -> Vec<f64> {
    let mut squares = vec![0.0f64; x.cols()];
    for s in 0..x.rows() {
        for (sum, &value) in squares.iter_mut().zip(x.row(s)) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    squares.into_iter().map(f64::sqrt).collect()
}

fn normalise(x: View<f32>, norms: &[f64]) -> Vec<f32> {
    let inverse: Vec<f64> = norms.iter().map(|norm| 1.0 / norm.max(NORM_FLOOR)).collect();
    let mut normalised = Vec::with_capacity(x.rows() * x.cols());
    for s in 0..x.rows() {
        normalised.extend(x.row(s).iter().zip(&inverse).map(|(&v, scale)| (f64::from(v) * scale) as f32));
    }
    normalised
}

/// Copies the upper triangle below the diagonal, tile by tile because a plain transpose misses the cache.
fn mirror_upper(out: &mut ViewMut<f32>) {
    const TILE: usize = 64;
    let (units, ld) = (out.rows(), out.ld());
    let data = out.data_mut();
    for row_tile in (0..units).step_by(TILE) {
        for column_tile in (0..=row_tile).step_by(TILE) {
            for i in row_tile..(row_tile + TILE).min(units) {
                for j in column_tile..(column_tile + TILE).min(i) {
                    data[i * ld + j] = data[j * ld + i];
                }
            }
        }
    }
}

/// Rows of one packed panel and edge of one output tile: 16 f32 fill an AVX-512 register.
const PANEL: usize = 16;

/// P [units, units], P_ij = max_k |D_ik − D_jk| with D = 1 − `cosine` [units, units]; see the family's contract.
///
/// The rows are packed in panels of 16, column by column, so that the inner loop reads two contiguous streams and
/// keeps its tile of maxima in registers; panel pairs on and above the diagonal run in parallel.
pub fn profile_distance(cosine: View<f32>, out: &mut ViewMut<f32>) {
    let units = cosine.rows();
    assert_eq!((cosine.cols(), out.rows(), out.cols()), (units, units, units));
    let finite: Vec<bool> = (0..units).map(|i| cosine.row(i).iter().all(|v| v.is_finite())).collect();
    let packed = pack(cosine);
    let panels = units.div_ceil(PANEL);
    let ld = out.ld();
    out.data_mut().par_chunks_mut((PANEL * ld).max(1)).take(panels).enumerate().for_each(
        |(row_panel, rows)| {
            let left = &packed[row_panel * units * PANEL..][..units * PANEL];
            for column_panel in row_panel..panels {
                let right = &packed[column_panel * units * PANEL..][..units * PANEL];
                let tile = tile(left, right);
                let columns = PANEL.min(units - column_panel * PANEL);
                for (i, maxima) in tile.iter().enumerate().take(units - row_panel * PANEL) {
                    rows[i * ld + column_panel * PANEL..][..columns].copy_from_slice(&maxima[..columns]);
                }
            }
        },
    );
    for i in (0..units).filter(|&i| !finite[i]) {
        out.row_mut(i).fill(f32::NAN);
        (0..i).for_each(|j| out.row_mut(j)[i] = f32::NAN);
    }
    mirror_upper(out);
}

/// D = 1 − C in panels: panel p holds rows 16p..16p+16 as [units, 16]; rows beyond the last are zero and their results unused.
fn pack(cosine: View<f32>) -> Vec<f32> {
    let units = cosine.rows();
    let mut packed = vec![0.0; units.next_multiple_of(PANEL) * units];
    packed.par_chunks_mut((PANEL * units).max(1)).enumerate().for_each(|(panel, block)| {
        for lane in 0..PANEL.min(units - panel * PANEL) {
            for (k, &value) in cosine.row(panel * PANEL + lane).iter().enumerate() {
                block[k * PANEL + lane] = 1.0 - value;
            }
        }
    });
    packed
}

type Tile = [[f32; PANEL]; PANEL];

simd_fn! {
    /// max_k |left_k,i − right_k,j| of two packed panels. Every instruction set gives the same bits: a maximum of
    /// differences, each rounded once, does not depend on the order.
    ///
    /// Four rows of maxima at a time, as four values and not as an array of rows: the compiler keeps the former in
    /// vector registers (0.04 ns a step, one AVX-512 core) and indexes the latter in memory (0.4 to 0.6 ns).
    fn tile<I>(left: &[f32], right: &[f32]) -> Tile {
        let mut result = [[0.0; PANEL]; PANEL];
        for (quarter, rows) in result.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let [mut row0, mut row1, mut row2, mut row3] = *rows;
            for (a, b) in left.as_chunks::<PANEL>().0.iter().zip(right.as_chunks::<PANEL>().0) {
                let a = &a.as_chunks::<4>().0[quarter];
                row0 = farther(row0, a[0], b);
                row1 = farther(row1, a[1], b);
                row2 = farther(row2, a[2], b);
                row3 = farther(row3, a[3], b);
            }
            *rows = [row0, row1, row2, row3];
        }
        result
    }
}

/// max(maxima_j, |a − b_j|) for finite values.
#[inline(always)]
fn farther(maxima: [f32; PANEL], a: f32, b: &[f32; PANEL]) -> [f32; PANEL] {
    std::array::from_fn(|j| {
        let gap = (a - b[j]).abs();
        if gap > maxima[j] { gap } else { maxima[j] }
    })
}

/// Mean |x| of each group of `width` adjacent columns of `x` [samples, groups·width]; `out` has one entry a group.
/// No samples give zeros.
pub fn mean_absolute(x: View<f32>, width: usize, out: &mut [f32]) {
    assert_eq!(out.len() * width, x.cols());
    let mut sums = vec![0.0f64; x.cols()];
    for s in 0..x.rows() {
        for (sum, value) in sums.iter_mut().zip(x.row(s)) {
            *sum += f64::from(value.abs());
        }
    }
    for (group, mean) in out.iter_mut().enumerate() {
        let sum: f64 = sums[group * width..(group + 1) * width].iter().sum();
        *mean = (sum / (x.rows() * width).max(1) as f64) as f32;
    }
}
