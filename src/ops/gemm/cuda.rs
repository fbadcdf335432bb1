//! Launches of `kernels/gemm_*.cu` and `kernels/column_sums.cu`.
//!
//! What the device version keeps true:
//! - **Bits depend on shapes, alignment and the device's size alone**, not on the schedule of blocks: every sum has one
//!   order, and no atomics are used.
//! - **Error** as on the CPU for f32, with γ_{k+s+2} for a product of which k is cut into s parts. bf16, f16 and tf32 factors
//!   are rounded before (bf16 and f16 by whoever stored them), their products are exact and summed in f32 by the tensor cores.
//! - Tiles in which every column is masked are not multiplied, nor slices of k that are masked as a whole; within a
//!   slice a masked k multiplies the zeros that A has there. A masked column's result depends on nothing that is masked.

mod choice;

pub use choice::{Choice, Tile, choose, tiles};

use crate::launch::kernels::{self, column_sums as sums, gemm_finish, gemm_strided};
use crate::launch::{
    self, DropoutOperand, ElementType, Factor, FactorType, Grid, Launch, Matrix, Pointer, Precision, Queue,
    int, or_null,
};
use crate::ops::activation::{self, Activation};

/// What is done with the product before it reaches memory, see [`super::Epilogue`]; the same fields, on the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    /// `[n]`.
    pub bias: Option<Pointer<f32>>,
    /// Adds the old content of C.
    pub accumulate: bool,
    /// Applied to z elementwise.
    pub activation: Option<Activation>,
    /// `[m, n]`, of C's type; receives z.
    pub preactivation: Option<Matrix>,
    /// `[n]`.
    pub neuron_mask: Option<Pointer<f32>>,
    /// Computes columns with mask 0 too.
    pub compute_masked: bool,
    /// Dropout of the result.
    pub dropout: Option<DropoutOperand>,
    /// `[m, n]`, of C's type; added last.
    pub residual: Option<Matrix>,
    /// `[k]`.
    pub inner_mask: Option<Pointer<f32>>,
}

/// `C = epilogue(op(A)·op(B))`, A and B both f32, both bf16 or both f16, C f32 or bf16; see the formula in [the family's
/// module](super). f32 factors are multiplied in the queue's precision (in tf32 if that is bf16 or f16).
pub fn gemm(
    queue: &mut Queue,
    a: impl Into<Factor>,
    transpose_a: bool,
    b: impl Into<Factor>,
    transpose_b: bool,
    c: Matrix,
    epilogue: Epilogue,
) {
    gemm_with(queue, None, a, transpose_a, b, transpose_b, c, epilogue);
}

/// [`gemm`] with a given tile and number of parts, so that tests reach every path and measurements compare them; `None`
/// chooses. Products of unaligned operands have but one way.
pub fn gemm_with(
    queue: &mut Queue,
    choice: Option<Choice>,
    a: impl Into<Factor>,
    transpose_a: bool,
    b: impl Into<Factor>,
    transpose_b: bool,
    c: Matrix,
    epilogue: Epilogue,
) {
    let (a, b): (Factor, Factor) = (a.into(), b.into());
    let (m, k) = if transpose_a { (a.cols, a.rows) } else { (a.rows, a.cols) };
    let (inner, n) = if transpose_b { (b.cols, b.rows) } else { (b.rows, b.cols) };
    assert_eq!(k, inner, "op(A) has {k} columns, op(B) {inner} rows");
    assert_eq!((m, n), (c.rows, c.cols), "C is not [{m}, {n}]");
    assert_eq!(a.element, b.element, "A and B are of one type");
    for other in [epilogue.preactivation, epilogue.residual].into_iter().flatten() {
        assert_eq!((m, n), (other.rows, other.cols), "preactivation and residual have the shape of C");
        assert_eq!(c.element, other.element, "preactivation and residual have the type of C");
    }
    if m == 0 || n == 0 {
        return;
    }
    let tail = Tail::new(c, &epilogue);
    let layout = match (transpose_a, transpose_b) {
        (false, true) => Some(0),
        (false, false) => Some(1),
        (true, false) => Some(2),
        (true, true) => None,
    };
    let Some(layout) = layout.filter(|_| a.aligned16() && b.aligned16()) else {
        let product = Strided { a, transpose_a, b, transpose_b, k, inner_mask: or_null(epilogue.inner_mask) };
        return queue.push(product.chosen(&tail));
    };
    let precision = match (a.element, queue.precision()) {
        (FactorType::Bf16, _) => Precision::Bf16,
        (FactorType::F16, _) => Precision::F16,
        (FactorType::F32, Precision::F32) => Precision::F32,
        (FactorType::F32, _) => Precision::Tf32,
    };
    let limits = queue.device();
    let choice = choice.unwrap_or_else(|| choose(limits, precision, m, n, k));
    let Choice { tile, splits } = choice;
    let needed = splits * m * n.next_multiple_of(4);
    let capacity = choice::partial_capacity(limits, m, n, k);
    let partials = queue.scratch::<f32>(if splits > 1 { needed.max(capacity) } else { capacity });
    let shape = &tiles(precision)[tile];
    let inner_mask = epilogue.inner_mask.filter(|_| choice::can_list(precision, k));
    let list = if inner_mask.is_some() { 2 * (choice::slices(precision, k) + 1) } else { 0 };
    let grid =
        Grid::new([shape.count(m, n), splits, 1], shape.threads()).with_shared(shape.stage_bytes() + list);
    let product = Product { a, b, k, layout, inner_mask: or_null(inner_mask), splits, partials };
    queue.push(match precision {
        Precision::Bf16 => product.launch(grid, BF16[tile], &tail),
        Precision::F16 => product.launch(grid, F16[tile], &tail),
        Precision::Tf32 => product.launch(grid, TF32[tile], &tail),
        Precision::F32 => product.launch(grid, F32[tile], &tail),
    });
    if splits > 1 {
        queue.push(tail.finish(partials, splits));
    }
}

/// The launch functions of the tiles, in the order of [`tiles`].
const BF16: [Kernel<launch::Bf16>; 4] = [
    kernels::gemm_bf16_128x256::gemm_bf16_128x256,
    kernels::gemm_bf16_128x192::gemm_bf16_128x192,
    kernels::gemm_bf16_128x128::gemm_bf16_128x128,
    kernels::gemm_bf16_64x64::gemm_bf16_64x64,
];
const F16: [Kernel<launch::F16>; 4] = [
    kernels::gemm_f16_128x256::gemm_f16_128x256,
    kernels::gemm_f16_128x192::gemm_f16_128x192,
    kernels::gemm_f16_128x128::gemm_f16_128x128,
    kernels::gemm_f16_64x64::gemm_f16_64x64,
];
const TF32: [Kernel<f32>; 3] = [
    kernels::gemm_tf32_128x192::gemm_tf32_128x192,
    kernels::gemm_tf32_128x128::gemm_tf32_128x128,
    kernels::gemm_tf32_64x64::gemm_tf32_64x64,
];
const F32: [Kernel<f32>; 1] = [kernels::gemm_f32::gemm_f32_64x128];

/// A product kernel of elements T: A, B, sizes and layout, inner mask, parts, and the epilogue's operands.
#[rustfmt::skip]
type Kernel<T> = fn(
    Grid, Pointer<T>, i32, Pointer<T>, i32, i32, i32, i32, i32, Pointer<f32>, i32, Pointer<f32>,
    Pointer<u8>, i32, Pointer<u8>, i32, Pointer<u8>, i32, Pointer<f32>, Pointer<f32>, Pointer<i32>, u32, u64, f32, i32,
) -> Launch;

/// The operands of a product before its epilogue.
struct Product {
    a: Factor,
    b: Factor,
    k: usize,
    layout: i32,
    inner_mask: Pointer<f32>,
    splits: usize,
    partials: Pointer<f32>,
}

impl Product {
    /// With a kernel of the factors' type.
    #[rustfmt::skip]
    fn launch<T>(&self, grid: Grid, kernel: Kernel<T>, t: &Tail) -> Launch {
        let (a, b) = (Pointer::new(self.a.address), Pointer::new(self.b.address));
        kernel(
            grid, a, int(self.a.ld), b, int(self.b.ld), t.m, t.n, int(self.k), self.layout, self.inner_mask,
            int(self.splits), self.partials, t.c, t.ldc, t.preactivation, t.ld_preactivation, t.residual, t.ld_residual,
            t.bias, t.neuron_mask, t.dropout.key, t.dropout.site, t.dropout.threshold, t.dropout.scale, t.flags,
        )
    }
}

/// An epilogue as kernels take it.
struct Tail {
    m: i32,
    n: i32,
    c: Pointer<u8>,
    ldc: i32,
    preactivation: Pointer<u8>,
    ld_preactivation: i32,
    residual: Pointer<u8>,
    ld_residual: i32,
    bias: Pointer<f32>,
    neuron_mask: Pointer<f32>,
    dropout: DropoutOperand,
    flags: i32,
}

impl Tail {
    fn new(c: Matrix, epilogue: &Epilogue) -> Tail {
        let matrix = |matrix: Option<Matrix>| match matrix {
            Some(matrix) => (Pointer::new(matrix.address), int(matrix.ld)),
            None => (Pointer::NULL, 0),
        };
        let (bias, neuron_mask) = (or_null(epilogue.bias), or_null(epilogue.neuron_mask));
        let matrices = [Some(c), epilogue.preactivation, epilogue.residual];
        let vectors = matrices.iter().flatten().all(quads) && bias.aligned16() && neuron_mask.aligned16();
        // Bits of kernels/gemm_epilogue.cuh.
        let flags = i32::from(c.element == ElementType::Bf16)
            | i32::from(epilogue.accumulate) << 1
            | i32::from(epilogue.compute_masked) << 2
            | i32::from(vectors) << 3
            | epilogue.activation.map_or(0, activation::cuda::code) << 4;
        let (preactivation, ld_preactivation) = matrix(epilogue.preactivation);
        let (residual, ld_residual) = matrix(epilogue.residual);
        Tail {
            m: int(c.rows),
            n: int(c.cols),
            c: Pointer::new(c.address),
            ldc: int(c.ld),
            preactivation,
            ld_preactivation,
            residual,
            ld_residual,
            bias,
            neuron_mask,
            dropout: DropoutOperand::or_none(epilogue.dropout),
            flags,
        }
    }

    #[rustfmt::skip]
    fn finish(&self, partials: Pointer<f32>, splits: usize) -> Launch {
        const THREADS: u32 = 256;
        let quads = self.m as usize * (self.n as usize).div_ceil(4);
        let grid = Grid::linear(quads.div_ceil(THREADS as usize), THREADS);
        gemm_finish::gemm_finish(
            grid, self.m, self.n, int(splits), partials, self.c, self.ldc, self.preactivation, self.ld_preactivation,
            self.residual, self.ld_residual, self.bias, self.neuron_mask, self.dropout.key, self.dropout.site,
            self.dropout.threshold, self.dropout.scale, self.flags,
        )
    }
}

/// A strided kernel of elements T.
#[rustfmt::skip]
type StridedKernel<T> = fn(
    Grid, Pointer<T>, i32, i32, Pointer<T>, i32, i32, i32, i32, i32, Pointer<f32>,
    Pointer<u8>, i32, Pointer<u8>, i32, Pointer<u8>, i32, Pointer<f32>, Pointer<f32>, Pointer<i32>, u32, u64, f32, i32,
) -> Launch;

/// The way for operands of any alignment and layout: one element at a time, in f32. What it reads before its epilogue.
struct Strided {
    a: Factor,
    transpose_a: bool,
    b: Factor,
    transpose_b: bool,
    k: usize,
    inner_mask: Pointer<f32>,
}

impl Strided {
    fn chosen(&self, tail: &Tail) -> Launch {
        match self.a.element {
            FactorType::F32 => self.launch(gemm_strided::gemm_strided_f32, tail),
            FactorType::Bf16 => self.launch(gemm_strided::gemm_strided_bf16, tail),
            FactorType::F16 => self.launch(gemm_strided::gemm_strided_f16, tail),
        }
    }

    /// With a kernel of the factors' type.
    #[rustfmt::skip]
    fn launch<T>(&self, kernel: StridedKernel<T>, t: &Tail) -> Launch {
        const SIDE: usize = 64;
        let grid = Grid::linear((t.m as usize).div_ceil(SIDE) * (t.n as usize).div_ceil(SIDE), 256);
        let (a, b) = (Pointer::new(self.a.address), Pointer::new(self.b.address));
        let (a_row, a_k) = if self.transpose_a { (1, int(self.a.ld)) } else { (int(self.a.ld), 1) };
        let (b_k, b_column) = if self.transpose_b { (1, int(self.b.ld)) } else { (int(self.b.ld), 1) };
        kernel(
            grid, a, a_row, a_k, b, b_k, b_column, t.m, t.n, int(self.k), self.inner_mask, t.c, t.ldc, t.preactivation,
            t.ld_preactivation, t.residual, t.ld_residual, t.bias, t.neuron_mask, t.dropout.key, t.dropout.site,
            t.dropout.threshold, t.dropout.scale, t.flags,
        )
    }
}

/// `out[j] = Σ_i x[i,j]`, added to what `out` (`[cols]`) holds if `accumulate`. Error at most γ_q·Σ|x| with
/// q = 24 + (rows of a part)/8 + parts/8.
pub fn column_sums(queue: &mut Queue, x: Matrix, out: Pointer<f32>, accumulate: bool) {
    /// Rows that one block adds up where there are several.
    const PART: usize = 64;
    if x.cols == 0 {
        return;
    }
    let parts = x.rows.div_ceil(PART);
    if parts <= 1 {
        return queue.push(sums_of(x, 1, PART, out, accumulate));
    }
    let partials = queue.scratch::<f32>(parts * x.cols);
    queue.push(sums_of(x, parts, PART, partials, false));
    let element = ElementType::F32;
    let partials = Matrix { address: partials.address, element, rows: parts, cols: x.cols, ld: x.cols };
    queue.push(sums_of(partials, 1, parts, out, accumulate));
}

/// Sums of the columns of `parts` parts of `part` rows, to `out` `[parts, cols]`.
fn sums_of(x: Matrix, parts: usize, part: usize, out: Pointer<f32>, accumulate: bool) -> Launch {
    /// Columns of a block.
    const STRIP: usize = 128;
    let grid = Grid::new([x.cols.div_ceil(STRIP), parts, 1], 256);
    let (ld, rows, cols, part, accumulate) =
        (int(x.ld), int(x.rows), int(x.cols), int(part), i32::from(accumulate));
    let quads = i32::from(quads(&x));
    match x.element {
        ElementType::F32 => {
            sums::column_sums_f32(grid, x.f32(), ld, rows, cols, part, out, accumulate, quads)
        }
        ElementType::Bf16 => {
            sums::column_sums_bf16(grid, x.bf16(), ld, rows, cols, part, out, accumulate, quads)
        }
    }
}

/// Whether four neighbouring elements of a row can be accessed at once.
fn quads(matrix: &Matrix) -> bool {
    matrix.address.is_multiple_of(4 * matrix.element.bytes() as u64) && matrix.ld.is_multiple_of(4)
}
