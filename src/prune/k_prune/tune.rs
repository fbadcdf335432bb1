//! Knowledge-preserving weight tuning: the output projection that brings a pruned sublayer closest to the teacher's.
//!
//! With X the features of the units that stay, Y = teacher's residual sum − the student's input − bias, the released code
//! solves XᵀX·W = XᵀY. Here the correction Δ = W − W_old is solved for: XᵀX·Δ = XᵀR with R = Y − X·W_old, the teacher's
//! sum minus the student's with the old weights. The solution is the same; but R is small where little was pruned, so that
//! f32 sums lose less, and a ridge pulls towards the old weights, where it otherwise pulls towards 0: directions that the
//! rows say nothing about keep their weights.
//!
//! XᵀX and XᵀR are products on the device, one of each a batch, in f32; batches are added up in f64.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::exec::{Executor, ProgramId};
use crate::program::{Builder, Epilogue, Extent, Extents, Mode, Op, ParameterLayout, SlotId};
use crate::prune::cholesky::{Ridged, solve_with_ridge};
use crate::session::Device;

/// The two products for one number of features.
#[derive(Clone, Copy, Debug)]
struct Products {
    id: ProgramId,
    x: SlotId,
    residual: SlotId,
    mask: SlotId,
    gram: SlotId,
    cross: SlotId,
}

/// Computes normal equations.
pub struct LeastSquares {
    executor: Box<dyn Executor>,
    layout: Arc<ParameterLayout>,
    programs: HashMap<usize, Products>,
    capacity: Extents,
    hidden: usize,
}

/// Normal equations of the features that stay.
#[derive(Debug)]
pub struct Normal {
    /// All features, `n`.
    width: usize,
    /// Those that stay, rising.
    kept: Vec<usize>,
    /// `[kept, kept]`, the lower triangle.
    gram: Vec<f64>,
    /// `[kept, d]`.
    cross: Vec<f64>,
}

impl Normal {
    /// Equations of the features `kept` of `width`, with `outputs` right-hand sides, all zero.
    pub fn new(width: usize, kept: Vec<usize>, outputs: usize) -> Normal {
        let (gram, cross) = (vec![0.0; kept.len() * kept.len()], vec![0.0; kept.len() * outputs]);
        Normal { width, kept, gram, cross }
    }

    /// The correction of the weights of the features that stay, `[kept, d]`; `None` where there is no usable solution.
    pub fn solve(&self, ridge: f64) -> Option<Ridged> {
        let n = self.kept.len();
        solve_with_ridge(&self.gram, n, &self.cross, self.cross.len() / n.max(1), ridge)
    }

    /// The features that stay.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }
}

impl LeastSquares {
    /// On `device`, in f32 whatever the precision of its products for models is (in f64 on the reference).
    pub fn new(device: Device, capacity: Extents, hidden: usize) -> Result<LeastSquares> {
        let device = if device == Device::Reference { device } else { device.for_similarities() };
        let layout = Arc::new(ParameterLayout::new());
        let executor = device.executor(layout.clone())?;
        Ok(LeastSquares { executor, layout, programs: HashMap::new(), capacity, hidden })
    }

    fn products(&mut self, width: usize) -> Result<Products> {
        if let Some(products) = self.programs.get(&width) {
            return Ok(*products);
        }
        let mut b = Builder::new("normal equations", self.layout.clone(), Mode::EVALUATE);
        let x = b.input("x", Extent::Tokens, width);
        let residual = b.input("residual", Extent::Tokens, self.hidden);
        let mask = b.input("mask", Extent::Fixed(1), width);
        let gram = b.temporary("gram", Extent::Fixed(width), width);
        let cross = b.temporary("cross", Extent::Fixed(width), self.hidden);
        // Columns of features that went are zeros and are not computed.
        let epilogue = Epilogue { neuron_mask: Some(mask), ..Epilogue::default() };
        for (right, c, epilogue) in [(x, gram, epilogue), (residual, cross, Epilogue::default())] {
            b.keep(c);
            b.emit(Op::Gemm { a: x, transpose_a: true, b: right, transpose_b: false, c, epilogue });
        }
        let id = self.executor.prepare(Arc::new(b.finish()), self.capacity)?;
        let products = Products { id, x, residual, mask, gram, cross };
        self.programs.insert(width, products);
        Ok(products)
    }

    /// Adds a batch: features `x [T, n]`, zero where they went, and what the student lacks, `residual [T, d]`.
    pub fn add(&mut self, normal: &mut Normal, x: &[f32], residual: &[f32]) -> Result<()> {
        let width = normal.width;
        let products = self.products(width)?;
        let extents = Extents { tokens: x.len() / width.max(1), ..Extents::default() };
        let mut mask = vec![0.0; width];
        normal.kept.iter().for_each(|&feature| mask[feature] = 1.0);
        self.executor.write(products.id, products.x, x)?;
        self.executor.write(products.id, products.residual, residual)?;
        self.executor.write(products.id, products.mask, &mask)?;
        self.executor.run(products.id, &extents)?;
        let gram = self.executor.read_wide(products.id, products.gram, &extents)?;
        let cross = self.executor.read_wide(products.id, products.cross, &extents)?;
        let n = normal.kept.len();
        for (i, &row) in normal.kept.iter().enumerate() {
            for (sum, &col) in normal.gram[i * n..i * n + i + 1].iter_mut().zip(&normal.kept) {
                *sum += gram[row * width + col];
            }
            let of_row = &cross[row * self.hidden..(row + 1) * self.hidden];
            for (sum, value) in normal.cross[i * self.hidden..].iter_mut().zip(of_row) {
                *sum += value;
            }
        }
        Ok(())
    }

    /// Bytes of this process that the products take for `width` features.
    pub fn bytes(width: usize, hidden: usize, tokens: usize) -> usize {
        // Inputs and what they are written from, results in f32 and read back in f64, sums in f64, and a factor.
        2 * 4 * tokens * (width + hidden)
            + 12 * width * (width + hidden)
            + 8 * width * (2 * width + 2 * hidden)
    }
}
