//! The least-squares problem of one sublayer's unit scales, and when its solution is accepted.
//!
//! With a_j = vec(x_j·W_j) the contribution of unit j at scale 1, all tokens end to end, the scales s minimise
//! ‖A s − vec(B)‖². Its normal matrix M = AᵀA and right-hand side c = AᵀB follow from XᵀX and XᵀB without forming A:
//! `M_jj' = Σ_{k∈j, k'∈j'} (XᵀX)_kk'·(W Wᵀ)_kk'`, `c_j = Σ_{k∈j} (XᵀB)_k · W_k`, where a neuron has one feature k and a head
//! `head_dim`. For heads A has a column of ones too, whose coefficient is solved for and then dropped: it keeps a constant
//! offset out of the scales.
//!
//! The published solution is not that minimiser: LSMR runs on M x ≈ c − M·1 with damping 1, scale = 1 + x, so it
//! minimises ‖M x − (c − M·1)‖² + ‖x‖². The damping keeps scales of weak units near 1.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::normal::NormalEquations;
use super::options::{OnReject, RescaleOptions};
use crate::error::{Error, Result};
use crate::ops::simd::dot_wide;
use crate::prune::lsmr::{LsmrOptions, LsmrStop, lsmr_symmetric, mirror};

/// M, c and ‖B‖² of one sublayer.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    /// Units, without the intercept.
    pub units: usize,
    /// Unknowns: units, and 1 with an intercept.
    pub size: usize,
    /// M `[size, size]`, both halves.
    pub matrix: Vec<f64>,
    /// c `[size]`.
    pub rhs: Vec<f64>,
    /// ‖B‖².
    pub square: f64,
}

/// What was solved for a sublayer and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SublayerTrace {
    /// Layer.
    pub layer: usize,
    /// "heads" or "neurons".
    pub kind: String,
    /// Unknowns, the intercept included.
    pub size: usize,
    /// Tokens the target was compared at.
    pub rows: usize,
    /// Whether those were only the tokens that answer for their rows.
    pub answer_rows_only: bool,
    /// Damping of the last try.
    pub damp: f64,
    /// Why the solver stopped.
    pub stop: LsmrStop,
    /// Its iterations.
    pub iterations: usize,
    /// Smallest scale found.
    pub smallest: f64,
    /// Largest scale found.
    pub largest: f64,
    /// Whether the scales were applied.
    pub accepted: bool,
    /// ‖A s − B‖² / ‖B‖² at scales of 1.
    pub error_before: f64,
    /// The same at the scales found.
    pub error_after: f64,
}

impl System {
    /// From the normal equations of `features / units` features a unit and the projection's rows `weight` `[k, d]`.
    pub fn new(normal: &NormalEquations, weight: &[f64], group: usize, intercept: bool) -> System {
        let (columns, hidden) = (normal.columns, normal.hidden);
        let units = columns / group;
        let size = units + usize::from(intercept);
        let row_of = |k: usize| &weight[k * hidden..(k + 1) * hidden];
        let mut matrix = vec![0.0; size * size];
        matrix.par_chunks_mut(UNITS * size.max(1)).enumerate().for_each(|(block, rows)| {
            let first = block * UNITS;
            for tile in (first * group..columns).step_by(TILE) {
                for (unit, row) in (first..units).zip(rows.chunks_mut(size)) {
                    for k in unit * group..(unit + 1) * group {
                        for other in tile.max(k)..(tile + TILE).min(columns) {
                            let product =
                                normal.gram[k * columns + other] * dot_wide(row_of(k), row_of(other));
                            // Below the diagonal of a unit's own block stands the same once more.
                            let twice = if other / group == unit && other != k { 2.0 } else { 1.0 };
                            row[other / group] += twice * product;
                        }
                    }
                }
            }
        });
        mirror(&mut matrix, size);
        let features = |unit: usize| unit * group..(unit + 1) * group;
        let cross = |k: usize| dot_wide(&normal.cross[k * hidden..(k + 1) * hidden], row_of(k));
        let mut rhs: Vec<f64> = (0..units).map(|unit| features(unit).map(cross).sum()).collect();
        if intercept {
            for unit in 0..units {
                let with_ones = |k: usize| normal.sums[k] * row_of(k).iter().sum::<f64>();
                let value = features(unit).map(with_ones).sum();
                matrix[unit * size + units] = value;
                matrix[units * size + unit] = value;
            }
            matrix[size * size - 1] = (normal.rows * hidden) as f64;
            rhs.push(normal.target_sum);
        }
        System { units, size, matrix, rhs, square: normal.target_square }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.matrix[row * self.size..(row + 1) * self.size]
    }

    /// c − M·1.
    pub fn shifted(&self) -> Vec<f64> {
        (0..self.size).map(|row| self.rhs[row] - self.row(row).iter().sum::<f64>()).collect()
    }

    /// ‖A s − B‖² / ‖B‖² of scales `[units]`, no intercept; 0 where B is 0. A difference of sums: it is as precise as the
    /// products are, about 1e-7 of ‖B‖², and never below 0.
    pub fn error(&self, scales: &[f64]) -> f64 {
        let quadratic: f64 =
            (0..self.units).map(|unit| scales[unit] * dot_wide(&self.row(unit)[..self.units], scales)).sum();
        let linear: f64 = dot_wide(&self.rhs[..self.units], scales);
        if self.square == 0.0 {
            return 0.0;
        }
        ((quadratic - 2.0 * linear + self.square) / self.square).max(0.0)
    }

    /// LSMR's scales `[size]` with `damp`, why it stopped, and its iterations.
    pub fn solve(&self, options: &RescaleOptions, damp: f64) -> (Vec<f64>, LsmrStop, usize) {
        let max_iterations = Some(options.iterations_per_unknown * self.size);
        let options = LsmrOptions { damp, max_iterations, ..options.solver };
        let solution = lsmr_symmetric(&self.matrix, &self.shifted(), &options);
        (solution.x.iter().map(|x| 1.0 + x).collect(), solution.stop, solution.iterations)
    }

    /// Scales `[units]` by the rules of `options`, `None` where they were rejected, and what happened. `trace` brings the
    /// place; the rest is filled in. Fails where M or c is not finite.
    pub fn tune(
        &self,
        options: &RescaleOptions,
        mut trace: SublayerTrace,
    ) -> Result<(Option<Vec<f64>>, SublayerTrace)> {
        if let Some(value) = self.matrix.iter().chain(&self.rhs).find(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                what: "the normal matrix of the mask rescaling".into(),
                value: *value,
                place: format!("for the {} of layer {}", trace.kind, trace.layer),
            });
        }
        trace.size = self.size;
        trace.error_before = self.error(&vec![1.0; self.units]);
        let tries = if options.on_reject == OnReject::Ridge { 1 + RIDGE_TRIES } else { 1 };
        let mut damp = options.solver.damp;
        for _ in 0..tries {
            let (mut scales, stop, iterations) = self.solve(options, damp);
            scales.truncate(self.units);
            (trace.damp, trace.stop, trace.iterations) = (damp, stop, iterations);
            trace.smallest = scales.iter().copied().fold(f64::INFINITY, f64::min);
            trace.largest = scales.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            trace.error_after = self.error(&scales);
            let solved = matches!(stop, LsmrStop::Zero | LsmrStop::Solved | LsmrStop::LeastSquares);
            if solved && scales.iter().all(|scale| scale.abs() <= options.largest_scale) {
                trace.accepted = true;
                return Ok((Some(scales), trace));
            }
            damp = if damp == 0.0 { 1.0 } else { 10.0 * damp };
        }
        Ok((None, trace))
    }
}

/// Tries with tenfold damping after the first.
const RIDGE_TRIES: usize = 6;

/// Rows of M that one piece of work computes, and rows of the projection that it goes through for all of them, which fit a
/// second-level cache.
const UNITS: usize = 16;
const TILE: usize = 64;
