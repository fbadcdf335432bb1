//! LSMR: least squares by Golub–Kahan bidiagonalisation (D. C.-L. Fong and M. Saunders, *LSMR: An iterative algorithm for
//! sparse least-squares problems*, SIAM J. Sci. Comput. 33(5), 2011), in f64.
//!
//! Minimises ‖A x − b‖² + damp²·‖x‖². It is MINRES on the normal equations, so ‖Aᵀr‖ falls monotonically and stopping
//! early is safe. Mask-Tuning depends on it in two ways that an exact solver would not give: where it stops is part of the
//! published result (it regularises), and its stop code decides whether a solution is accepted. Stop codes and tests are
//! therefore those of the paper's section 4 in the numbering that its implementations share.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ops::simd::symmetric_row_wide;

/// When to stop, and the damping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LsmrOptions {
    /// Weight of ‖x‖, not squared.
    pub damp: f64,
    /// Relative uncertainty of A: stops when ‖Aᵀr‖ ≤ atol·‖A‖·‖r‖ (estimates).
    pub atol: f64,
    /// Relative uncertainty of b: stops when ‖r‖ ≤ btol·‖b‖ + atol·‖A‖·‖x‖.
    pub btol: f64,
    /// Stops when the estimated condition number of the damped matrix exceeds this; 0 is never.
    pub conlim: f64,
    /// Most iterations; `None` is min(rows, columns). Not a choice of a method: those limit iterations by the unknowns.
    #[serde(skip)]
    pub max_iterations: Option<usize>,
}

impl Default for LsmrOptions {
    fn default() -> LsmrOptions {
        LsmrOptions { damp: 0.0, atol: 1e-6, btol: 1e-6, conlim: 1e8, max_iterations: None }
    }
}

/// Why the iteration ended. The discriminants are the codes that SciPy and CuPy return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum LsmrStop {
    /// x = 0 is the solution.
    Zero = 0,
    /// A x = b within atol and btol.
    Solved = 1,
    /// The least-squares problem is solved within atol.
    LeastSquares = 2,
    /// The condition number exceeds conlim.
    IllConditioned = 3,
    /// As `Solved`, within rounding.
    SolvedToRounding = 4,
    /// As `LeastSquares`, within rounding.
    LeastSquaresToRounding = 5,
    /// As `IllConditioned`, with conlim at 1 / rounding.
    SingularToRounding = 6,
    /// The iteration limit.
    IterationLimit = 7,
}

impl LsmrStop {
    /// The number of the code.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// What LSMR found.
#[derive(Clone, Debug, PartialEq)]
pub struct LsmrSolution {
    /// `[columns]`
    pub x: Vec<f64>,
    /// Why it stopped.
    pub stop: LsmrStop,
    /// Iterations done.
    pub iterations: usize,
    /// Estimate of √(‖b − A x‖² + damp²·‖x‖²).
    pub residual_norm: f64,
    /// Estimate of ‖Aᵀ(b − A x) − damp²·x‖.
    pub gradient_norm: f64,
    /// Estimate of the Frobenius norm of the damped matrix.
    pub matrix_norm: f64,
    /// Estimate of its condition number.
    pub condition: f64,
}

/// A Givens rotation `[c, s; s, −c]` that takes (a, b) to (r, 0), without overflow.
fn rotation(a: f64, b: f64) -> (f64, f64, f64) {
    let sign = |value: f64| if value == 0.0 { 0.0 } else { value.signum() };
    if b == 0.0 {
        (sign(a), 0.0, a.abs())
    } else if a == 0.0 {
        (0.0, sign(b), b.abs())
    } else if b.abs() > a.abs() {
        let tau = a / b;
        let s = sign(b) / (1.0 + tau * tau).sqrt();
        (s * tau, s, b / s)
    } else {
        let tau = b / a;
        let c = sign(a) / (1.0 + tau * tau).sqrt();
        (c, c * tau, a / c)
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Divides by the norm, if there is one, and returns it.
fn normalise(x: &mut [f64]) -> f64 {
    let length = norm(x);
    if length > 0.0 {
        x.iter_mut().for_each(|v| *v /= length);
    }
    length
}

/// Solves for `columns` unknowns. `product(x, y)` is to write y = A x `[rows]`, `transposed(y, x)` x = Aᵀ y
/// `[columns]`; `b` has `rows` elements. A NaN or infinity in either ends in a solution that is not finite, after at most
/// the iteration limit: callers check.
pub fn lsmr(
    columns: usize,
    mut product: impl FnMut(&[f64], &mut [f64]),
    mut transposed: impl FnMut(&[f64], &mut [f64]),
    b: &[f64],
    options: &LsmrOptions,
) -> LsmrSolution {
    let limit = options.max_iterations.unwrap_or(b.len().min(columns));
    let mut u = b.to_vec();
    let mut v = vec![0.0; columns];
    let mut product_of_v = vec![0.0; b.len()];
    let mut product_of_u = vec![0.0; columns];
    let b_norm = normalise(&mut u);
    let mut beta = b_norm;
    let mut alpha = 0.0;
    if beta > 0.0 {
        transposed(&u, &mut v);
        alpha = normalise(&mut v);
    }

    // Names follow the paper: the first bidiagonal factorisation's rotations have (rho, c, s), the second's (rhobar, …).
    let mut x = vec![0.0; columns];
    let mut h = v.clone();
    let mut hbar = vec![0.0; columns];
    let (mut zetabar, mut alphabar) = (alpha * beta, alpha);
    let (mut rho, mut rhobar, mut cbar, mut sbar) = (1.0, 1.0, 1.0, 0.0);
    // Estimation of ‖r‖ (section 3.3).
    let (mut betadd, mut betad) = (beta, 0.0);
    let (mut rhodold, mut tautildeold, mut thetatilde, mut zeta, mut d) = (1.0, 0.0, 0.0, 0.0, 0.0);
    // Estimation of ‖A‖ and cond(A) (section 3.4).
    let mut matrix_norm_squared: f64 = alpha * alpha;
    let (mut largest_rhobar, mut smallest_rhobar) = (0.0f64, 1e100f64);
    let ctol = if options.conlim > 0.0 { 1.0 / options.conlim } else { 0.0 };

    let mut solution = LsmrSolution {
        x: Vec::new(),
        stop: LsmrStop::Zero,
        iterations: 0,
        residual_norm: beta,
        gradient_norm: alpha * beta,
        matrix_norm: alpha,
        condition: 1.0,
    };
    // Aᵀb = 0: x = 0 is the solution. No comparison with a NaN holds, so those go through the loop to the limit.
    if solution.gradient_norm == 0.0 {
        solution.x = x;
        return solution;
    }
    let mut stop = LsmrStop::IterationLimit;
    while solution.iterations < limit {
        solution.iterations += 1;
        // Golub–Kahan: beta·u = A v − alpha·u, alpha·v = Aᵀu − beta·v.
        product(&v, &mut product_of_v);
        u.iter_mut().zip(&product_of_v).for_each(|(u, p)| *u = p - alpha * *u);
        beta = normalise(&mut u);
        if beta > 0.0 {
            transposed(&u, &mut product_of_u);
            v.iter_mut().zip(&product_of_u).for_each(|(v, p)| *v = p - beta * *v);
            alpha = normalise(&mut v);
        }

        let (chat, shat, alphahat) = rotation(alphabar, options.damp);
        let rhoold = rho;
        let (c, s, rho_now) = rotation(alphahat, beta);
        rho = rho_now;
        let thetanew = s * alpha;
        alphabar = c * alpha;

        let (rhobarold, zetaold) = (rhobar, zeta);
        let thetabar = sbar * rho;
        let rhotemp = cbar * rho;
        (cbar, sbar, rhobar) = rotation(rhotemp, thetanew);
        zeta = cbar * zetabar;
        zetabar *= -sbar;

        let along_hbar = thetabar * rho / (rhoold * rhobarold);
        let step = zeta / (rho * rhobar);
        let along_h = thetanew / rho;
        for i in 0..columns {
            hbar[i] = h[i] - along_hbar * hbar[i];
            x[i] += step * hbar[i];
            h[i] = v[i] - along_h * h[i];
        }

        let (betaacute, betacheck) = (chat * betadd, -shat * betadd);
        let betahat = c * betaacute;
        betadd = -s * betaacute;
        let thetatildeold = thetatilde;
        let (ctildeold, stildeold, rhotildeold) = rotation(rhodold, thetabar);
        thetatilde = stildeold * rhobar;
        rhodold = ctildeold * rhobar;
        betad = -stildeold * betad + ctildeold * betahat;
        tautildeold = (zetaold - thetatildeold * tautildeold) / rhotildeold;
        let taud = (zeta - thetatilde * tautildeold) / rhodold;
        d += betacheck * betacheck;
        let residual_norm = (d + (betad - taud).powi(2) + betadd * betadd).sqrt();

        matrix_norm_squared += beta * beta;
        let matrix_norm = matrix_norm_squared.sqrt();
        matrix_norm_squared += alpha * alpha;
        largest_rhobar = largest_rhobar.max(rhobarold);
        if solution.iterations > 1 {
            smallest_rhobar = smallest_rhobar.min(rhobarold);
        }
        let condition = largest_rhobar.max(rhotemp) / smallest_rhobar.min(rhotemp);
        let gradient_norm = zetabar.abs();
        let x_norm = norm(&x);
        (solution.residual_norm, solution.gradient_norm) = (residual_norm, gradient_norm);
        (solution.matrix_norm, solution.condition) = (matrix_norm, condition);

        let test1 = residual_norm / b_norm;
        let product_norm = matrix_norm * residual_norm;
        let test2 = if product_norm == 0.0 { f64::INFINITY } else { gradient_norm / product_norm };
        let test3 = 1.0 / condition;
        let scaled = matrix_norm * x_norm / b_norm;
        // The weakest statement first; a later line overrules an earlier one.
        let tests = [
            (1.0 + test3 <= 1.0, LsmrStop::SingularToRounding),
            (1.0 + test2 <= 1.0, LsmrStop::LeastSquaresToRounding),
            (1.0 + test1 / (1.0 + scaled) <= 1.0, LsmrStop::SolvedToRounding),
            (test3 <= ctol, LsmrStop::IllConditioned),
            (test2 <= options.atol, LsmrStop::LeastSquares),
            (test1 <= options.btol + options.atol * scaled, LsmrStop::Solved),
        ];
        if let Some((_, found)) = tests.iter().rev().find(|(met, _)| *met) {
            stop = *found;
            break;
        }
    }
    solution.stop = stop;
    solution.x = x;
    solution
}

/// [`lsmr`] with a dense symmetric `matrix` `[n, n]`, of which only what stands on and above the diagonal is read: the time of
/// a product is that of reading it. Stripes of rows are multiplied in parallel and added up in their order, so the bits do not
/// depend on the number of threads. Panics if the sizes do not fit.
pub fn lsmr_symmetric(matrix: &[f64], b: &[f64], options: &LsmrOptions) -> LsmrSolution {
    let n = b.len();
    assert_eq!(matrix.len(), n * n, "a matrix of {n} rows and columns");
    let stripe = n.div_ceil(STRIPES).max(1);
    let multiply = |x: &[f64], y: &mut [f64]| {
        let mut sums = vec![0.0; STRIPES * n];
        // Every stripe has rows from all over the triangle, so that all have as much to do.
        let rows_of =
            |number: usize| (0..stripe).map(move |i| i * STRIPES + number).take_while(|&row| row < n);
        sums.par_chunks_mut(n.max(1)).enumerate().for_each(|(number, sums)| {
            for row in rows_of(number) {
                let above = &matrix[row * n + row..(row + 1) * n];
                let (sum, below) = sums[row..].split_at_mut(1);
                let across = symmetric_row_wide(&above[1..], x[row], &x[row + 1..], below);
                sum[0] += above[0] * x[row] + across;
            }
        });
        y.fill(0.0);
        for sums in sums.chunks(n.max(1)) {
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
        }
    };
    lsmr(n, multiply, multiply, b, options)
}

/// Parts of a product with a symmetric matrix.
const STRIPES: usize = 8;

/// Copies what stands above the diagonal of a `[n, n]` matrix below it, by tiles that fit a first-level cache.
pub(crate) fn mirror(matrix: &mut [f64], n: usize) {
    const TILE: usize = 32;
    for top in (0..n).step_by(TILE) {
        for left in (0..=top).step_by(TILE) {
            for row in top..(top + TILE).min(n) {
                for column in left..(left + TILE).min(row) {
                    matrix[row * n + column] = matrix[column * n + row];
                }
            }
        }
    }
}
