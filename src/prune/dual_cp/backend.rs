//! Where the numeric steps run: the seam between the method and an executor.

use crate::error::Result;
use crate::ops::{View, ViewMut, mapping, similarity};

/// The four numeric steps on one layer. The contracts are those of [`crate::ops::similarity`] and
/// [`crate::ops::mapping`]; all matrices are f32.
pub trait SimilarityBackend {
    /// `x` [samples, units] → `out` [units, units], absolute cosine of columns.
    fn absolute_cosine(&mut self, x: View<f32>, out: &mut ViewMut<f32>) -> Result<()>;
    /// `cosine` [units, units] → `out` [units, units], Chebyshev distance of the rows of 1 − cosine.
    fn profile_distance(&mut self, cosine: View<f32>, out: &mut ViewMut<f32>) -> Result<()>;
    /// `absolute_cosine` [H·d_h, H·d_h] → `out` [H, H], head similarity.
    fn dimension_mapping(
        &mut self,
        absolute_cosine: View<f32>,
        head_dim: usize,
        out: &mut ViewMut<f32>,
    ) -> Result<()>;
    /// `x` [samples, groups·width] → `out` `[groups]`, mean magnitude.
    fn mean_absolute(&mut self, x: View<f32>, width: usize, out: &mut [f32]) -> Result<()>;
}

/// The fast CPU operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuBackend;

impl SimilarityBackend for CpuBackend {
    fn absolute_cosine(&mut self, x: View<f32>, out: &mut ViewMut<f32>) -> Result<()> {
        similarity::cpu::absolute_cosine(x, out);
        Ok(())
    }
    fn profile_distance(&mut self, cosine: View<f32>, out: &mut ViewMut<f32>) -> Result<()> {
        similarity::cpu::profile_distance(cosine, out);
        Ok(())
    }
    fn dimension_mapping(
        &mut self,
        absolute_cosine: View<f32>,
        head_dim: usize,
        out: &mut ViewMut<f32>,
    ) -> Result<()> {
        mapping::cpu::dimension_mapping(absolute_cosine, head_dim, out);
        Ok(())
    }
    fn mean_absolute(&mut self, x: View<f32>, width: usize, out: &mut [f32]) -> Result<()> {
        similarity::cpu::mean_absolute(x, width, out);
        Ok(())
    }
}

/// The f64 definitions, each result rounded once to f32: slow, for checking other backends.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

fn widen(x: View<f32>) -> Vec<f64> {
    (0..x.rows()).flat_map(|r| x.row(r).iter().map(|v| f64::from(*v))).collect()
}

/// Runs `operation` on an f64 copy of `x` with an f64 output of the shape of `out`.
fn in_f64(
    x: View<f32>,
    out: &mut ViewMut<f32>,
    operation: impl FnOnce(View<f64>, &mut ViewMut<f64>),
) -> Result<()> {
    let wide = widen(x);
    let (rows, cols) = (out.rows(), out.cols());
    let mut result = vec![0.0; rows * cols];
    operation(View::dense(&wide, x.rows(), x.cols()), &mut ViewMut::dense(&mut result, rows, cols));
    for r in 0..rows {
        for (narrow, value) in out.row_mut(r).iter_mut().zip(&result[r * cols..]) {
            *narrow = *value as f32;
        }
    }
    Ok(())
}

impl SimilarityBackend for ReferenceBackend {
    fn absolute_cosine(&mut self, x: View<f32>, out: &mut ViewMut<f32>) -> Result<()> {
        in_f64(x, out, similarity::reference::absolute_cosine)
    }
    fn profile_distance(&mut self, cosine: View<f32>, out: &mut ViewMut<f32>) -> Result<()> {
        in_f64(cosine, out, similarity::reference::profile_distance)
    }
    fn dimension_mapping(
        &mut self,
        absolute_cosine: View<f32>,
        head_dim: usize,
        out: &mut ViewMut<f32>,
    ) -> Result<()> {
        in_f64(absolute_cosine, out, |wide, result| {
            mapping::reference::dimension_mapping(wide, head_dim, result)
        })
    }
    fn mean_absolute(&mut self, x: View<f32>, width: usize, out: &mut [f32]) -> Result<()> {
        let groups = out.len();
        in_f64(x, &mut ViewMut::dense(out, 1, groups), |wide, result| {
            similarity::reference::mean_absolute(wide, width, result.row_mut(0))
        })
    }
}
