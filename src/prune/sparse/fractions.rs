//! SMP-S: how the budget of one kind of matrix is shared among the layers.
//!
//! For each kind (query, key, …) by itself, layer l keeps `k·L·m_l / Σ m`, with m_l the mean of σ(S_l / p) over its
//! scores (Jiang et al. 2023, section 3.2; the temperature p is in the released code only). A fraction above 1 keeps the
//! whole matrix, and what it has too much is lost, not given to others.

use crate::model::MatrixKind;

/// The temperature p that the released code uses for a final fraction `keep`, tasks MNLI and SQuAD by name having
/// exceptions without distillation.
pub fn authors_temperature(keep: f64, task: &str, distilled: bool) -> f64 {
    match (keep, distilled) {
        (keep, _) if keep >= 0.7 => 4.0,
        (0.5, false) if task.starts_with("mnli") => 3.0,
        (0.5, false) if task.starts_with("squad") => 4.0,
        _ => 1.0,
    }
}

/// Fraction of each matrix, from its kind and its mean σ(S/p).
pub fn fractions(keep: f64, matrices: &[(MatrixKind, f64)]) -> Vec<f64> {
    let share = |&(kind, mean): &(MatrixKind, f64)| {
        let same = matrices.iter().filter(|(other, _)| *other == kind);
        let (count, sum) = same.fold((0usize, 0.0), |(count, sum), (_, mean)| (count + 1, sum + mean));
        if sum > 0.0 { keep * count as f64 * mean / sum } else { keep }
    };
    matrices.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_shares_its_own_budget() {
        let found = fractions(0.4, &[(MatrixKind::Up, 0.5), (MatrixKind::Query, 0.2), (MatrixKind::Up, 0.3)]);
        assert!(
            (found[0] - 0.5).abs() < 1e-12
                && (found[1] - 0.4).abs() < 1e-12
                && (found[2] - 0.3).abs() < 1e-12
        );
        assert_eq!(fractions(0.4, &[(MatrixKind::Up, 0.0)]), [0.4]);
        assert_eq!(
            (authors_temperature(0.8, "mrpc", true), authors_temperature(0.5, "mnli", true)),
            (4.0, 1.0)
        );
    }
}
