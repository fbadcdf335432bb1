//! The same in f32: tiles and rows in parallel, sums of C in f64.

use crate::ops::elementary::exp;
use crate::ops::gemm::{Epilogue, cpu::gemm};
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::{Isa, simd_fn};
use crate::ops::{View, ViewMut, scratch};

/// Rows of one packed panel and edge of one output tile: 16 f32 fill an AVX-512 register.
const PANEL: usize = 16;

simd_fn! {
    /// exp(−|left_i − right_j|²·inverse_scale) of the rows of two packed panels `[d, 16]`, i of 16 and j of 16. Each
    /// distance is one chain over d in rising order.
    ///
    /// Eight rows of sums at a time, as eight values and not as an array of rows, so that they stay in registers: the
    /// additions of eight chains overlap where one chain would wait for each.
    fn tile<I>(left: &[f32], right: &[f32], inverse_scale: f32) -> [[f32; PANEL]; PANEL] {
        let mut result = [[0.0; PANEL]; PANEL];
        for (half, rows) in result.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let [mut row0, mut row1, mut row2, mut row3, mut row4, mut row5, mut row6, mut row7] = *rows;
            for (a, b) in left.as_chunks::<PANEL>().0.iter().zip(right.as_chunks::<PANEL>().0) {
                let a = &a.as_chunks::<8>().0[half];
                row0 = add_square::<I>(row0, a[0], b);
                row1 = add_square::<I>(row1, a[1], b);
                row2 = add_square::<I>(row2, a[2], b);
                row3 = add_square::<I>(row3, a[3], b);
                row4 = add_square::<I>(row4, a[4], b);
                row5 = add_square::<I>(row5, a[5], b);
                row6 = add_square::<I>(row6, a[6], b);
                row7 = add_square::<I>(row7, a[7], b);
            }
            *rows = [row0, row1, row2, row3, row4, row5, row6, row7];
        }
        for row in &mut result {
            row.iter_mut().for_each(|distance| *distance = exp::<I>(-*distance * inverse_scale));
        }
        result
    }
}

/// sums_j + (a − b_j)².
#[inline(always)]
fn add_square<I: Isa>(sums: [f32; PANEL], a: f32, b: &[f32; PANEL]) -> [f32; PANEL] {
    std::array::from_fn(|j| I::mul_add(a - b[j], a - b[j], sums[j]))
}

/// The rows of `x` `[n, d]` in panels: panel p holds rows 16p..16p+16 as `[d, 16]`; rows beyond the last are zero and their
/// results unused.
fn pack(x: View<f32>, packed: &mut [f32]) {
    let (n, d) = (x.rows(), x.cols());
    let shared = Shared::slice(packed);
    parallel::rows(n.div_ceil(PANEL), PANEL * d, |panels| {
        for panel in panels {
            // SAFETY: panels are disjoint.
            let block = unsafe { shared.range_mut(panel * PANEL * d..(panel + 1) * PANEL * d) };
            block.fill(0.0);
            for lane in 0..PANEL.min(n - panel * PANEL) {
                for (k, &value) in x.row(panel * PANEL + lane).iter().enumerate() {
                    block[k * PANEL + lane] = value;
                }
            }
        }
    });
}

/// K `[n, n]` of the rows of `x` `[n, d]`.
///
/// Tiles of the upper triangle from packed panels, each with its mirror image; rows of tiles are handed out longest first.
pub fn gaussian_kernel(x: View<f32>, scale: f32, mut out: ViewMut<f32>) {
    let (n, d) = (x.rows(), x.cols());
    assert_eq!((out.rows(), out.cols()), (n, n));
    let panels = n.div_ceil(PANEL);
    scratch::with(panels * PANEL * d, |packed| {
        pack(x, packed);
        let packed: &[f32] = packed;
        let panel = |p: usize| &packed[p * PANEL * d..(p + 1) * PANEL * d];
        let shared = Shared::new(&mut out);
        parallel::items(panels, |upper| {
            let rows = upper * PANEL..n.min((upper + 1) * PANEL);
            for right in upper..panels {
                let columns = right * PANEL..n.min((right + 1) * PANEL);
                let tile = tile(panel(upper), panel(right), 1.0 / scale);
                for (i, values) in rows.clone().zip(&tile) {
                    // SAFETY: a tile and its mirror image are written by the one piece of work that has this pair.
                    unsafe { shared.row_mut(i, columns.clone()) }.copy_from_slice(&values[..columns.len()]);
                }
                if upper != right {
                    for (j, row) in columns.enumerate() {
                        // SAFETY: as above.
                        let mirror = unsafe { shared.row_mut(row, rows.clone()) };
                        mirror.iter_mut().zip(&tile).for_each(|(to, from)| *to = from[j]);
                    }
                }
            }
        });
    });
}

/// Partial sums of a row: as many f64 as fill two AVX-512 registers.
const PARTIALS: usize = 16;

/// Σ of `PARTIALS` sums as a tree.
#[inline(always)]
fn total(mut sums: [f64; PARTIALS]) -> f64 {
    let mut width = PARTIALS / 2;
    while width > 0 {
        (0..width).for_each(|l| sums[l] += sums[l + width]);
        width /= 2;
    }
    sums[0]
}

simd_fn! {
    /// Σ x in f64.
    fn sum<I>(x: &[f32]) -> f64 {
        let mut sums = [0.0; PARTIALS];
        let (whole, tail) = x.as_chunks::<PARTIALS>();
        for x in whole {
            (0..PARTIALS).for_each(|l| sums[l] += f64::from(x[l]));
        }
        sums.iter_mut().zip(tail).for_each(|(sum, &x)| *sum += f64::from(x));
        total(sums)
    }
}

/// `c·√(k / p)`, 0 where k is.
#[inline(always)]
fn updated(c: f32, k: f32, p: f32) -> f32 {
    if k == 0.0 { 0.0 } else { c * (k / p).sqrt() }
}

simd_fn! {
    /// A row of C ← C ∘ √(K ⊘ P); returns the sums of the row before and after.
    fn update_row<I>(c: &mut [f32], kernel: &[f32], product: &[f32]) -> (f64, f64) {
        let (mut before, mut after) = ([0.0; PARTIALS], [0.0; PARTIALS]);
        let (c, tail) = c.as_chunks_mut::<PARTIALS>();
        let (kernel, kernel_tail) = kernel.as_chunks::<PARTIALS>();
        let (product, product_tail) = product.as_chunks::<PARTIALS>();
        for ((c, k), p) in c.iter_mut().zip(kernel).zip(product) {
            (0..PARTIALS).for_each(|l| before[l] += f64::from(c[l]));
            *c = std::array::from_fn(|l| updated(c[l], k[l], p[l]));
            (0..PARTIALS).for_each(|l| after[l] += f64::from(c[l]));
        }
        for (l, ((c, &k), &p)) in tail.iter_mut().zip(kernel_tail).zip(product_tail).enumerate() {
            before[l] += f64::from(*c);
            *c = updated(*c, k, p);
            after[l] += f64::from(*c);
        }
        (total(before), total(after))
    }
}

simd_fn! {
    /// A row of the first update: √(k·factor) with factor = 1/(n·row sum of K); returns the sum of the row.
    fn first_row<I>(c: &mut [f32], kernel: &[f32], factor: f32) -> f64 {
        c.iter_mut().zip(kernel).for_each(|(c, &k)| *c = (k * factor).sqrt());
        sum(c)
    }
}

/// The first update, from 1/n everywhere: writes `c` `[n, n]`; returns the relative growth of its sum.
pub fn first_update(kernel: View<f32>, mut c: ViewMut<f32>) -> f64 {
    let n = kernel.rows();
    assert_eq!((kernel.cols(), c.rows(), c.cols()), (n, n, n));
    let mut sums = vec![0.0f64; n];
    let (c, shared) = (Shared::new(&mut c), Shared::slice(&mut sums));
    parallel::rows(n, n, |range| {
        for i in range {
            // SAFETY: ranges of rows are disjoint.
            let (row, after) = unsafe { (c.whole_row(i), &mut shared.range_mut(i..i + 1)[0]) };
            let factor = 1.0 / (n as f64 * sum(kernel.row(i)));
            *after = first_row(row, kernel.row(i), factor as f32);
        }
    });
    let before = n as f64;
    (sums.iter().sum::<f64>() - before) / before
}

/// One update of `c` `[n, n]` under `kernel` `[n, n]`; returns the relative growth of its sum.
pub fn multiplicative_update(kernel: View<f32>, mut c: ViewMut<f32>) -> f64 {
    let n = kernel.rows();
    assert_eq!((kernel.cols(), c.rows(), c.cols()), (n, n, n));
    let mut sums = vec![(0.0f64, 0.0f64); n];
    scratch::with(n * n, |product| {
        let mut product = ViewMut::dense(product, n, n);
        gemm(kernel, false, c.as_view(), false, &mut product, Epilogue::default());
        let (product, c, sums) = (product.as_view(), Shared::new(&mut c), Shared::slice(&mut sums));
        parallel::rows(n, n, |range| {
            for i in range {
                // SAFETY: ranges of rows are disjoint.
                let (row, sum) = unsafe { (c.whole_row(i), &mut sums.range_mut(i..i + 1)[0]) };
                *sum = update_row(row, kernel.row(i), product.row(i));
            }
        });
    });
    let (before, after) = sums.iter().fold((0.0, 0.0), |(a, b), sum| (a + sum.0, b + sum.1));
    (after - before) / before
}
