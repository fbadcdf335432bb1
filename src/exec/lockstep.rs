//! Lock-step: two executors run the same program operation by operation, and the first operation whose result
//! leaves its error bound is named.
//!
//! After each operation both results are read. If they agree, the candidate's result is replaced by the
//! oracle's, so that the next operation starts from equal inputs and errors do not add up over the program:
//! every operation is judged alone.

use std::collections::HashMap;

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

/// Error allowed of one operation: γ_n·(scale of the terms it sums), with n the longest sum behind an element, its
/// roundings and those of the (at most four) element-wise steps around it, and γ_n = n·u / (1 − n·u).
fn bound(program: &Program, op: &Op, extents: &Extents, scale: f64) -> f64 {
    const UNIT: f64 = 1.0 / 16_777_216.0; // 2^-24
    let roundings = terms(program, op, extents) as f64 + 8.0;
    4.0 * roundings * UNIT / (1.0 - roundings * UNIT) * scale
}

/// A bound on the sum of magnitudes behind any element of the operation's results. `largest` is the largest magnitude
/// of a slot, `row` and `column` the largest Euclidean norm of one of its rows or columns.
///
/// For products this is Cauchy–Schwarz, so it holds however much cancels (the gradient of a key bias is zero in exact
/// arithmetic). Gradients are linear in the upstream gradient, which bounds them together with their other factors.
fn scale(
    op: &Op,
    largest: impl Fn(SlotId) -> f64,
    row: impl Fn(SlotId) -> f64,
    column: impl Fn(SlotId) -> f64,
) -> f64 {
    let at_least_one = |slot: SlotId| largest(slot).max(1.0);
    match op {
        Op::Gemm { a, transpose_a, b, transpose_b, .. } => {
            let left = if *transpose_a { column(*a) } else { row(*a) };
            let right = if *transpose_b { row(*b) } else { column(*b) };
            left * right
        }
        Op::ColumnSum { x, .. } => largest(*x),
        // Sums are f64 on all executors; what is left is the rounding of the result and of the factors on their way there.
        Op::ColumnProducts { x, y, .. } => column(*x) * column(*y),
        // (x − mean)·rstd cancels: an error of x is scaled by rstd and gamma.
        Op::LayerNorm { x, gamma, rstd, .. } => largest(*x) * at_least_one(*rstd) * at_least_one(*gamma),
        Op::LayerNormBackward { dy, x, gamma, rstd, .. } => {
            largest(*dy) * at_least_one(*gamma) * at_least_one(*rstd).powi(2) * at_least_one(*x)
        }
        // Scores are rounded before they are exponentiated: an error of a score is a relative error of a probability.
        Op::Attention { q, k, v, .. } => largest(*v) * (1.0 + row(*q) * row(*k)),
        Op::AttentionBackward { q, k, v, dout, unmasked, .. } => {
            let context = unmasked.map_or(1.0, &at_least_one);
            let factors = at_least_one(*q) * at_least_one(*k) * at_least_one(*v);
            largest(*dout) * factors * context * (1.0 + row(*q) * row(*k))
        }
        Op::ActivationBackward { dy, preactivation, .. } => largest(*dy) * at_least_one(*preactivation),
        Op::EmbedBackward { dout, .. } => largest(*dout),
        Op::ScatterAdd { dy, .. } => largest(*dy),
        Op::Add { x, .. } => largest(*x),
        Op::CrossEntropy { logits, .. } | Op::SpanLoss { logits, .. } => at_least_one(*logits),
        Op::LinearCrossEntropy { x, w, .. } => {
            at_least_one(*x) * at_least_one(*w) * (1.0 + row(*x) * row(*w))
        }
        Op::Distillation { student, teacher, temperature, .. }
        | Op::SpanDistillation { student, teacher, temperature, .. } => {
            at_least_one(*student) * at_least_one(*teacher) * f64::from(temperature.max(1.0)).powi(2)
        }
        // Scores are at most 1/τ, of which an error is a relative error of a probability, and log(R + K) is below 32; in the
        // gradient the weights of the candidates sum to twice those of the losses, before the division by τ and the norm.
        Op::Contrastive { temperature, weights, scales, .. } => {
            let steep = f64::from(1.0 / temperature.min(1.0));
            (32.0 + steep) * (1.0 + 4.0 * largest(*weights) * steep * largest(*scales))
        }
        // The growth of a sum is a difference of sums that are alike, relative to one of them.
        Op::SemiNmfStart { .. } | Op::SemiNmfUpdate { .. } => 1.0,
        Op::MeanSquaredError { x, targets, .. } => (at_least_one(*x) + at_least_one(*targets)).powi(2),
        // Results are at least as large as what is rounded on the way to them.
        _ => 0.0,
    }
}

/// Largest magnitude, and largest Euclidean norm of a row and of a column.
fn norms(values: &[f64], cols: usize) -> [f64; 3] {
    let mut columns = vec![0.0; cols];
    let (mut largest, mut row_norm) = (0.0f64, 0.0f64);
    for row in values.chunks(cols.max(1)) {
        let mut sum = 0.0;
        for (value, column) in row.iter().zip(&mut columns) {
            largest = largest.max(value.abs());
            sum += value * value;
            *column += value * value;
        }
        row_norm = row_norm.max(sum.sqrt());
    }
    [largest, row_norm, columns.iter().fold(0.0f64, |m, c| m.max(c.sqrt()))]
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
        Op::Contrastive { x, bank, .. } => cols(*x) + rows(*bank) + rows(*x),
        Op::SpanLoss { .. } => extents.longest,
        Op::SpanDistillation { .. } => 2 * extents.longest,
        Op::AbsoluteCosine { x, .. } | Op::MeanAbsolute { x, .. } => rows(*x),
        Op::GaussianKernel { x, .. } => cols(*x),
        Op::SemiNmfStart { c, .. } | Op::SemiNmfUpdate { c, .. } => cols(*c),
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
        let mut slots = Vec::new();
        op.visit(|slot, access| {
            if program.slot(slot).element == Element::Float {
                slots.push((slot, access));
            }
        });
        let mut before = 0.0f64;
        for &(slot, access) in &slots {
            if access == Access::Update {
                let values = oracle.read_wide(oracle_id, slot, extents)?;
                before = before.max(norms(&values, program.slot(slot).cols)[0]);
            }
        }
        oracle.run_range(oracle_id, index..index + 1, extents)?;
        candidate.run_range(candidate_id, index..index + 1, extents)?;
        let mut sizes = HashMap::new();
        for &(slot, _) in &slots {
            let values = oracle.read_wide(oracle_id, slot, extents)?;
            sizes.insert(slot, norms(&values, program.slot(slot).cols));
        }
        let of = |which: usize| {
            let sizes = &sizes;
            move |slot: SlotId| sizes[&slot][which]
        };
        let terms_scale = scale(op, of(0), of(1), of(2)).max(before);
        for (slot, _) in slots.into_iter().filter(|(_, access)| *access != Access::Read) {
            let expected = oracle.read_wide(oracle_id, slot, extents)?;
            let found = candidate.read_wide(candidate_id, slot, extents)?;
            let cols = program.slot(slot).cols;
            let scale = expected.iter().fold(terms_scale, |m, v| m.max(v.abs()));
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
                let rounded = candidate.read_wide(candidate_id, slot, extents)?;
                oracle.write_wide(oracle_id, slot, &rounded)?;
            }
        }
    }
    Ok(None)
}
