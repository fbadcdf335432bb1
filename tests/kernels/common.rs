//! What the property tests share: random matrices with gaps, error bounds, thread pools, finite differences.

use rayon::{ThreadPool, ThreadPoolBuilder};
use secateur::ops::{View, ViewMut};
use std::sync::OnceLock;

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;
/// Stands in every gap between rows of an output: must survive.
const CANARY: f32 = -1.234_567_9e30;

/// γ_q = q·u/(1 − q·u): bound of the relative error of q roundings.
pub fn gamma(q: usize) -> f64 {
    q as f64 * U / (1.0 - q as f64 * U)
}

/// Roundings that an n-element sum of a row costs at most: partial sums of every 32nd element, then a tree.
pub fn row_sum(n: usize) -> usize {
    n.div_ceil(32) + 6
}

/// SplitMix64 (Steele, Lea and Flood 2014): values for the cases.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
    /// In [-scale, scale).
    pub fn value(&mut self, scale: f32) -> f32 {
        scale * ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
    }
    pub fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.value(scale)).collect()
    }
    /// `cu_seqlens` of sequences of up to `longest` tokens, some of them of one and some of none.
    pub fn cu_seqlens(&mut self, sequences: usize, longest: usize) -> Vec<i32> {
        let mut bounds = vec![0];
        for _ in 0..sequences {
            let len = match self.below(5) {
                0 => 1,
                1 => 0,
                _ => 1 + self.below(longest),
            };
            bounds.push(bounds[bounds.len() - 1] + len as i32);
        }
        bounds
    }
    /// A mask with zeros, ones and other values.
    pub fn mask(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| match self.below(4) {
                0 => 0.0,
                1 => self.value(1.0) + 1.5,
                _ => 1.0,
            })
            .collect()
    }
}

/// f32 as f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Rows with gaps between them.
#[derive(Clone, Debug)]
pub struct Matrix {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    ld: usize,
}

impl Matrix {
    /// Random elements in [-scale, scale).
    pub fn random(random: &mut Random, rows: usize, cols: usize, gap: usize, scale: f32) -> Matrix {
        let mut matrix = Matrix::poisoned(rows, cols, gap);
        for r in 0..rows {
            for c in 0..cols {
                matrix.data[r * matrix.ld + c] = random.value(scale);
            }
        }
        matrix
    }
    /// NaN in every element: an output to be written whole.
    pub fn poisoned(rows: usize, cols: usize, gap: usize) -> Matrix {
        let ld = cols + gap;
        let data = (0..rows * ld).map(|i| if i % ld < cols { f32::NAN } else { CANARY }).collect();
        Matrix { data, rows, cols, ld }
    }
    /// The elements of `wide`, rounded.
    pub fn of(wide: &Wide) -> Matrix {
        let data = wide.data.iter().map(|&x| x as f32).collect();
        Matrix { data, rows: wide.rows, cols: wide.cols, ld: wide.cols }
    }
    pub fn view(&self) -> View<'_, f32> {
        View::new(&self.data, self.rows, self.cols, self.ld)
    }
    pub fn view_mut(&mut self) -> ViewMut<'_, f32> {
        ViewMut::new(&mut self.data, self.rows, self.cols, self.ld)
    }
    /// The elements without the gaps, in f64.
    pub fn wide(&self) -> Wide {
        let data = (0..self.rows).flat_map(|r| wide(self.view().row(r))).collect();
        Wide { data, rows: self.rows, cols: self.cols }
    }
    /// The bits of the elements.
    pub fn bits(&self) -> Vec<u32> {
        (0..self.rows).flat_map(|r| self.view().row(r)).map(|x| x.to_bits()).collect()
    }
    /// Asserts |self − exact| ≤ bound element by element, and that the gaps are untouched.
    pub fn assert_within(&self, what: &str, exact: &Wide, bound: impl Fn(usize, usize) -> f64) {
        assert_eq!((self.rows, self.cols), (exact.rows, exact.cols), "{what}");
        for r in 0..self.rows {
            for c in 0..self.cols {
                let (ours, exact) = (f64::from(self.view().at(r, c)), exact.at(r, c));
                let bound = bound(r, c) + f64::from(f32::MIN_POSITIVE);
                let error = (ours - exact).abs();
                assert!(
                    error <= bound,
                    "{what}[{r}, {c}] is {ours}, should be {exact}: error {error:e} > {bound:e}"
                );
            }
            for gap in self.cols..self.ld {
                assert_eq!(
                    self.data[r * self.ld + gap],
                    CANARY,
                    "{what}: row {r} was written beyond its end"
                );
            }
        }
    }
}

/// A dense f64 matrix.
#[derive(Clone, Debug)]
pub struct Wide {
    pub data: Vec<f64>,
    pub rows: usize,
    pub cols: usize,
}

impl Wide {
    pub fn poisoned(rows: usize, cols: usize) -> Wide {
        Wide { data: vec![f64::NAN; rows * cols], rows, cols }
    }
    pub fn zeros(rows: usize, cols: usize) -> Wide {
        Wide { data: vec![0.0; rows * cols], rows, cols }
    }
    pub fn view(&self) -> View<'_, f64> {
        View::dense(&self.data, self.rows, self.cols)
    }
    pub fn view_mut(&mut self) -> ViewMut<'_, f64> {
        ViewMut::dense(&mut self.data, self.rows, self.cols)
    }
    pub fn at(&self, r: usize, c: usize) -> f64 {
        self.data[r * self.cols + c]
    }
}

/// Asserts |ours − exact| ≤ bound element by element.
pub fn assert_within(what: &str, ours: &[f32], exact: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    for (i, (&ours, exact)) in ours.iter().zip(exact).enumerate() {
        let (error, bound) = ((f64::from(ours) - exact).abs(), bound(i) + f64::from(f32::MIN_POSITIVE));
        assert!(error <= bound, "{what}[{i}] is {ours}, should be {exact}: error {error:e} > {bound:e}");
    }
}

/// Asserts that `run` gives the same bits on 1, 2 and 5 threads, and returns them.
pub fn same_bits_on_any_threads(run: impl Fn() -> Vec<u32> + Sync) -> Vec<u32> {
    static POOLS: OnceLock<Vec<ThreadPool>> = OnceLock::new();
    let pools = POOLS.get_or_init(|| {
        [1, 2, 5].map(|n| ThreadPoolBuilder::new().num_threads(n).build().unwrap()).into_iter().collect()
    });
    let results: Vec<Vec<u32>> = pools.iter().map(|pool| pool.install(&run)).collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "bits depend on the number of threads");
    results.into_iter().next().unwrap()
}

/// Asserts that `gradient` is the derivative of `f` at `x`, by central differences with h = 2⁻¹⁷.
///
/// The difference quotient is off by h²/6·|f'''| ≈ 1e-11·|f'''| and by rounding 2⁻⁵³·|f|·√terms/h ≈ 1e-10; the
/// test functions have derivatives of order 1 to 100, so that 1e-7 relative to 1 + |f'| leaves two digits.
pub fn assert_gradient(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    const H: f64 = 1.0 / (1 << 17) as f64;
    assert_eq!(x.len(), gradient.len());
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        moved[i] = x[i] + H;
        let above = f(&moved);
        moved[i] = x[i] - H;
        let quotient = (above - f(&moved)) / (2.0 * H);
        moved[i] = x[i];
        let error = (quotient - gradient[i]).abs();
        assert!(
            error <= 1e-7 * (1.0 + quotient.abs()),
            "{what}[{i}] is {}, the difference quotient {quotient}",
            gradient[i]
        );
    }
}
