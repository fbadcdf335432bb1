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

/// Largest error allowed in a result of `op`.
///
/// A result element is a sum of `terms` products, each with relative error u: the classic bound is `γ_n·Σ|a||b|`,
/// `γ_n = n·u / (1 − n·u)`. Where Σ|a||b| is known from the operands (`magnitude`), that is the bound, also for sums
/// that cancel to nothing: the gradient of a key bias is exactly zero, and what is computed is rounding noise.
/// Elsewhere the largest result stands for it: Σab of random signs is about √n times smaller than Σ|ab|.
fn bound(program: &Program, op: &Op, extents: &Extents, result: f64, magnitude: Option<f64>) -> f64 {
    const UNIT: f64 = 1.0 / 16_777_216.0; // 2^-24
    let terms = terms(program, op, extents).max(8) as f64;
    let from_result = terms.sqrt() * result;
    let size = match (op, magnitude) {
        // Every result of these operations is one such sum.
        (Op::Gemm { .. } | Op::ColumnSum { .. }, Some(magnitude)) => magnitude + result,
        (_, Some(magnitude)) => magnitude.max(from_result),
        (_, None) => from_result,
    };
    (terms + 8.0) * UNIT * size
}

/// A bound on Σ|a||b| over the elements of the sums in `op`, from its operands before it runs; `None` for
/// operations whose results are not plain sums.
fn magnitude(oracle: &dyn Executor, id: ProgramId, op: &Op, extents: &Extents) -> Option<f64> {
    let program = oracle.program(id);
    let read = |slot: SlotId| (oracle.read_wide(id, slot, extents), program.slot(slot).cols);
    let largest = |slot: SlotId| read(slot).0.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    Some(match op {
        Op::Gemm { a, transpose_a, b, transpose_b, epilogue, .. } => {
            // Cauchy and Schwarz: Σ|a||b| ≤ ‖a‖·‖b‖, over the vectors that are multiplied.
            let (left, right) = (norms(read(*a), *transpose_a), norms(read(*b), !*transpose_b));
            // What follows the product multiplies its error: a GELU has slope up to 1.13.
            let mut factor = if epilogue.activation.is_some() { 1.13 } else { 1.0 };
            factor *= epilogue.neuron_mask.map_or(1.0, |mask| largest(mask).max(1.0));
            factor *= epilogue.dropout.map_or(1.0, |site| 1.0 / (1.0 - f64::from(site.dropout.probability)));
            let added = epilogue.bias.map_or(0.0, largest) + epilogue.residual.map_or(0.0, largest);
            factor * (left * right + added)
        }
        Op::ColumnSum { x, .. } => column_sums(read(*x)),
        Op::EmbedBackward { dout, .. } => column_sums(read(*dout)),
        Op::LayerNormBackward { dy, x, .. } => {
            // dgamma = Σ dy·x̂, and |x̂| ≤ √cols.
            column_sums(read(*dy)) * (program.slot(*x).cols as f64).sqrt()
        }
        _ => return None,
    })
}

/// Largest Euclidean norm of a row, or of a column.
fn norms((values, cols): (Vec<f64>, usize), of_columns: bool) -> f64 {
    let squares: Vec<f64> = if of_columns {
        (0..cols).map(|col| values.iter().skip(col).step_by(cols).map(|v| v * v).sum()).collect()
    } else {
        values.chunks(cols.max(1)).map(|row| row.iter().map(|v| v * v).sum()).collect()
    };
    squares.into_iter().fold(0.0, f64::max).sqrt()
}

/// Largest Σ|x| of a column.
fn column_sums((values, cols): (Vec<f64>, usize)) -> f64 {
    let sum = |col: usize| values.iter().skip(col).step_by(cols).map(|v| v.abs()).sum();
    (0..cols).map(sum).fold(0.0, f64::max)
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
        let magnitude = magnitude(oracle, oracle_id, op, extents);
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
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let bound = bound(&program, op, extents, largest, magnitude);
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
