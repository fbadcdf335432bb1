//! K-prune beside what it must keep true, part by part.

mod cholesky;
mod prunings;
mod search;
mod work;

/// Euclidean norm.
fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}
