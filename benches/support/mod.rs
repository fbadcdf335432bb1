//! What several benchmarks share.

#![allow(dead_code)] // Each benchmark uses its part.

use secateur::ops::View;

/// A product as BERT has it: layout (is A, is B transposed), then m, n, k.
#[derive(Clone, Copy)]
pub struct Product {
    pub transpose_a: bool,
    pub transpose_b: bool,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// The products of BERT-base and MiniLM at 4,096 tokens: feed-forward and projection, forward (nt), gradients of input (nn)
/// and of weights (tn).
pub const PRODUCTS: [Product; 6] = [
    Product { transpose_a: false, transpose_b: false, m: 768, n: 3072, k: 4096 },
    Product { transpose_a: false, transpose_b: true, m: 4096, n: 3072, k: 768 },
    Product { transpose_a: false, transpose_b: true, m: 4096, n: 768, k: 3072 },
    Product { transpose_a: false, transpose_b: true, m: 4096, n: 768, k: 768 },
    Product { transpose_a: true, transpose_b: false, m: 3072, n: 768, k: 4096 },
    Product { transpose_a: false, transpose_b: true, m: 4096, n: 1536, k: 384 },
];

impl Product {
    /// "nt 4096 3072 768".
    pub fn name(&self) -> String {
        let letter = |transpose: bool| if transpose { 't' } else { 'n' };
        let (a, b) = (letter(self.transpose_a), letter(self.transpose_b));
        format!("{a}{b} {} {} {}", self.m, self.n, self.k)
    }

    /// Floating-point operations.
    pub fn flop(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// A as stored.
    pub fn a<'a>(&self, data: &'a [f32]) -> View<'a, f32> {
        let (rows, cols) = if self.transpose_a { (self.k, self.m) } else { (self.m, self.k) };
        View::dense(data, rows, cols)
    }

    /// B as stored.
    pub fn b<'a>(&self, data: &'a [f32]) -> View<'a, f32> {
        let (rows, cols) = if self.transpose_b { (self.n, self.k) } else { (self.k, self.n) };
        View::dense(data, rows, cols)
    }

    /// The same product by the `gemm` crate, on the current rayon pool.
    pub fn by_gemm_crate(&self, a: &[f32], b: &[f32], c: &mut [f32]) {
        let &Product { m, n, k, .. } = self;
        assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
        // (column stride, row stride) of op(A) and op(B).
        let (a_cs, a_rs) = if self.transpose_a { (m as isize, 1) } else { (1, k as isize) };
        let (b_cs, b_rs) = if self.transpose_b { (k as isize, 1) } else { (1, n as isize) };
        let threads = gemm::Parallelism::Rayon(rayon::current_num_threads());
        // SAFETY: the strides stay inside the three slices, whose lengths were checked; c is not read.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                a_cs,
                a_rs,
                b.as_ptr(),
                b_cs,
                b_rs,
                0.0,
                1.0,
                false,
                false,
                false,
                threads,
            );
        }
    }
}

/// Uniform in [-1, 1): zeros would run faster than real data.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
