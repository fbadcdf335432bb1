//! The same on a device: tiles of distances, then a matrix product and one fused pass an update.

use crate::launch::kernels::seminmf as kernels;
use crate::launch::{ElementType, Grid, Matrix, Pointer, Queue, int};
use crate::ops::gemm::cuda::{Epilogue, gemm};

/// Edge of an output tile of the Gaussian kernel.
const TILE: usize = 128;

/// K `[n, n]` of the rows of `x` `[n, d]`.
pub fn gaussian_kernel(queue: &mut Queue, x: Matrix, scale: f32, out: Matrix) {
    assert_eq!((out.rows, out.cols), (x.rows, x.rows));
    if x.rows == 0 {
        return;
    }
    let tiles = x.rows.div_ceil(TILE);
    queue.push(kernels::gaussian_kernel(
        Grid::linear(tiles * (tiles + 1) / 2, 256),
        x.f32(),
        int(x.ld),
        int(x.rows),
        int(x.cols),
        1.0 / scale,
        int(tiles),
        i32::from(x.aligned16()),
        out.f32(),
        int(out.ld),
    ));
}

/// The first update, from 1/n everywhere: writes `c` `[n, n]`; `growth` `[1]` receives the relative growth of its sum.
pub fn first_update(queue: &mut Queue, kernel: Matrix, c: Matrix, growth: Pointer<f32>) {
    let n = kernel.rows;
    assert_eq!((kernel.cols, c.rows, c.cols), (n, n, n));
    if n == 0 {
        return;
    }
    let sums = queue.scratch::<f64>(2 * n);
    let (kernel, ld, ld_c) = (kernel.f32(), int(kernel.ld), int(c.ld));
    queue.push(kernels::first_update(Grid::linear(n, 256), c.f32(), ld_c, kernel, ld, int(n), sums));
    queue.push(kernels::relative_growth(Grid::linear(1, 256), sums, int(n), growth));
}

/// One update of `c` `[n, n]` under `kernel` `[n, n]`; `growth` `[1]` receives the relative growth of its sum. The
/// product is computed in the queue's precision.
pub fn multiplicative_update(queue: &mut Queue, kernel: Matrix, c: Matrix, growth: Pointer<f32>) {
    let n = kernel.rows;
    assert_eq!((kernel.cols, c.rows, c.cols), (n, n, n));
    if n == 0 {
        return;
    }
    let ld = n.next_multiple_of(8);
    let product = queue.scratch::<f32>(n * ld);
    let sums = queue.scratch::<f64>(2 * n);
    let product = Matrix { address: product.address, element: ElementType::F32, rows: n, cols: n, ld };
    gemm(queue, kernel, false, c, false, product, Epilogue::default());
    queue.push(kernels::multiplicative_update(
        Grid::linear(n, 256),
        c.f32(),
        int(c.ld),
        kernel.f32(),
        int(kernel.ld),
        product.f32(),
        int(ld),
        int(n),
        sums,
    ));
    queue.push(kernels::relative_growth(Grid::linear(1, 256), sums, int(n), growth));
}
