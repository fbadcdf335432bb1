//! Lock-step: two executors run the same program operation by operation, and the first operation whose result
//! leaves its error bound is named.
//!
//! After each operation both results are read. If they agree, the candidate's result is replaced by the
//! oracle's, so that the next operation starts from equal inputs and errors do not add up over the program:
//! every operation is judged alone.

use super::{Executor, ProgramId};
use crate::error::Result;
use crate::program::{Access, Element, Extents, Op, Program, SlotId, Storage};

/// Two results of one operation that differ by more than the bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// Index of the operation in the program.
    pub index: usize,
    /// Its listing line.
    pub operation: String,
    /// Name of the slot.
    pub slot: String,
    /// Row and column of the worst element.
    pub at: (usize, usize),
    /// The oracle's value there.
    pub expected: f64,
    /// The candidate's value there.
    pub found: f64,
    /// What was allowed there.
    pub bound: f64,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (row, col) = self.at;
        write!(
            f,
            "operation {} {}: {}[{row},{col}] is {} but should be {} ± {:e}",
            self.index, self.operation, self.slot, self.found, self.expected, self.bound
        )
    }
}

/// Relative error allowed of one operation, as a multiple of the largest magnitude in the same result.
///
/// A result element is a sum of at most `terms` products, each with relative error u; the classic bound is
/// `γ_n·Σ|a||b|` with `γ_n = n·u / (1 − n·u)`. Lock-step sees results, not factors, so Σ|a||b| is bounded by
/// the norm of the result's row times the cancellation allowance below.
fn bound(program: &Program, op: &Op, extents: &Extents, scale: f64) -> f64 {
    const UNIT: f64 = 1.0 / 16_777_216.0; // 2^-24
    // Sums over random signs cancel: |Σab| is about √n times smaller than Σ|ab|.
    let terms = terms(program, op, extents).max(8) as f64;
    terms * terms.sqrt() * UNIT * scale
}

/// Length of the longest sum an element of the operation's result goes through.
fn terms(program: &Program, op: &Op, extents: &Extents) -> usize {
    let cols = |slot: SlotId| program.slot(slot).cols;
    let rows = |slot: SlotId| extents.of(program.slot(slot).rows);
    match op {
        Op::Gemm { a, transpose_a, .. } => {
            if *transpose_a {
                rows(*a)
            } else {
                cols(*a)
            }
        }
        Op::ColumnSum { x, .. } => rows(*x),
        Op::LayerNorm { x, .. } => cols(*x),
        Op::LayerNormBackward { x, .. } => cols(*x).max(rows(*x)),
        Op::Attention { shape, .. } => shape.head_dim + extents.longest,
        Op::AttentionBackward { shape, .. } => 2 * (shape.head_dim + extents.longest),
        Op::EmbedBackward { dout, .. } => rows(*dout),
        Op::ActivationBackward { dmask: Some(_), .. } => extents.longest,
        Op::CrossEntropy { logits, .. } => cols(*logits),
        Op::LinearCrossEntropy { x, w, .. } => cols(*x) + rows(*w) + rows(*x),
        Op::Distillation { student, .. } => 2 * cols(*student),
        Op::SpanLoss { .. } => extents.longest,
        Op::AbsoluteCosine { x, .. } | Op::MeanAbsolute { x, .. } => rows(*x),
        _ => 8,
    }
}

/// Runs `program` on both executors; inputs must have been written to both. Returns the first divergence.
pub fn compare(
    oracle: &mut dyn Executor,
    oracle_id: ProgramId,
    candidate: &mut dyn Executor,
    candidate_id: ProgramId,
    extents: &Extents,
) -> Result<Option<Divergence>> {
    let program = oracle.program(oracle_id).clone();
    for (index, op) in program.ops().iter().enumerate() {
        oracle.run_range(oracle_id, index..index + 1, extents)?;
        candidate.run_range(candidate_id, index..index + 1, extents)?;
        let mut written = Vec::new();
        op.visit(|slot, access| {
            if access != Access::Read && program.slot(slot).element == Element::Float {
                written.push(slot);
            }
        });
        for slot in written {
            let expected = oracle.read_wide(oracle_id, slot, extents);
            let found = candidate.read_wide(candidate_id, slot, extents);
            let cols = program.slot(slot).cols;
            let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let bound = bound(&program, op, extents, scale);
            let worst = (0..expected.len())
                .map(|i| {
                    let error = (expected[i] - found[i]).abs();
                    (if error.is_nan() { f64::INFINITY } else { error }, i)
                })
                .max_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((error, i)) = worst
                && error > bound
            {
                return Ok(Some(Divergence {
                    index,
                    operation: format!("{} {}", op.name(), program.signature(op)),
                    slot: program.slot(slot).name.clone(),
                    at: (i / cols, i % cols),
                    expected: expected[i],
                    found: found[i],
                    bound,
                }));
            }
            if !matches!(program.slot(slot).storage, Storage::Alias { .. }) {
                // The oracle's value rounded to the candidate's precision is what both go on from.
                candidate.write_wide(candidate_id, slot, &expected)?;
                let rounded = candidate.read_wide(candidate_id, slot, extents);
                oracle.write_wide(oracle_id, slot, &rounded)?;
            }
        }
    }
    Ok(None)
}
