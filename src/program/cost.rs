//! Static cost of an operation: floating-point operations and bytes moved, from shapes alone.
//!
//! Matrix products and attention count two operations a multiply-add; element-wise work counts one per element
//! and pass, which is what the memory-bound operations cost in practice. Bytes are those of each operand once.

use super::access::Access;
use super::builder::Program;
use super::layout::Parameter;
use super::op::Op;
use super::slot::{Element, Extents, SlotId};

/// Cost of an operation or a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written with 4-byte elements.
    pub bytes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// Cost of `op` in `program` for a batch of `extents`. Attention is charged as if every sequence had the length
/// `tokens / sequences` (exact for equal lengths).
pub fn of_op(program: &Program, op: &Op, extents: &Extents) -> Cost {
    let size = |id| {
        let slot = program.slot(id);
        (extents.of(slot.rows) * slot.cols) as u64
    };
    let mut bytes = 0;
    let mut elements = 0;
    op.visit(|slot, access| {
        let passes = if access == Access::Update { 2 } else { 1 };
        bytes += 4 * passes * size(slot);
        if access != Access::Read && program.slot(slot).element == Element::Float {
            elements += size(slot);
        }
    });
    // `queries` of them, each against the keys of its own sequence.
    let attention = |q, queries: SlotId, products: u64| {
        let slot = program.slot(q);
        let length = extents.of(slot.rows).div_ceil(extents.sequences.max(1)) as u64;
        2 * products * extents.of(program.slot(queries).rows) as u64 * length * slot.cols as u64
    };
    let masked = program.layout().masked().map(|p| p.len() as u64).sum::<u64>();
    // Elements of the trained parameters, or of the scores.
    let updated = |scores: bool| match scores {
        true => masked,
        false => program.layout().iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.len() as u64).sum(),
    };
    let flops = match op {
        Op::Gemm { a, transpose_a, c, .. } => {
            let slot = program.slot(*a);
            let inner = if *transpose_a { extents.of(slot.rows) } else { slot.cols };
            2 * size(*c) * inner as u64
        }
        Op::LinearCrossEntropy { x, w, dx, dw, .. } => {
            let rows = extents.of(program.slot(*x).rows) as u64;
            let products = 1 + u64::from(dx.is_some()) + u64::from(dw.is_some());
            2 * products * rows * size(*w)
        }
        Op::Contrastive { x, bank, dx, .. } => {
            let rows = extents.of(program.slot(*x).rows) as u64;
            let candidates = rows + extents.of(program.slot(*bank).rows) as u64;
            2 * (1 + u64::from(dx.is_some())) * candidates * size(*x)
        }
        Op::Attention { q, .. } => attention(*q, *q, 2),
        // Recomputed scores, dP, dV, dQ, dK.
        Op::AttentionBackward { q, rows, .. } => attention(*q, rows.unwrap_or(*q), 5),
        Op::AbsoluteCosine { x, out } => extents.of(program.slot(*x).rows) as u64 * size(*out),
        Op::ProfileDistance { out, .. } => size(*out) * program.slot(*out).cols as u64,
        Op::DimensionMapping { cosine, .. } => size(*cosine),
        Op::ColumnMoments { x, .. } => 3 * size(*x),
        // Difference and multiply-add of half the pairs.
        Op::GaussianKernel { x, out, .. } => 3 * size(*out) * program.slot(*x).cols as u64 / 2,
        Op::SemiNmfUpdate { kernel, c, .. } => 2 * size(*kernel) * program.slot(*c).cols as u64,
        Op::ColumnProducts { x, .. } => 2 * size(*x),
        Op::ZeroGradients => 0,
        // Multiply-add of the norm; moments, bias correction, update of AdamW.
        Op::ClipFactor { scores, .. } => 2 * updated(*scores) + 2 * u64::from(*scores) * updated(false),
        Op::AdamW { scores, .. } => 12 * updated(*scores),
        // Comparisons of one digit, and of the threshold, a pass.
        Op::SelectMasks { .. } => 5 * masked,
        Op::ApplyMasks { .. } => masked,
        Op::ScoreGradients { .. } => 8 * masked,
        Op::MeanSigmoid { .. } => 4 * masked,
        _ => elements,
    };
    bytes += 4 * match op {
        Op::ZeroGradients => program.layout().stretch(Parameter::differentiated).len() as u64,
        Op::ClipFactor { scores, .. } => updated(*scores) + u64::from(*scores) * updated(false),
        Op::AdamW { scores, .. } => 7 * updated(*scores),
        Op::SelectMasks { .. } => 5 * masked,
        Op::ApplyMasks { .. } => 2 * masked,
        Op::ScoreGradients { .. } => (4 + u64::from(program.layout().trains_masked())) * masked,
        Op::MeanSigmoid { .. } => masked,
        _ => 0,
    };
    Cost { flops, bytes }
}

/// Cost of a whole program.
pub fn of_program(program: &Program, extents: &Extents) -> Cost {
    let mut total = Cost::default();
    for op in program.ops() {
        total += of_op(program, op, extents);
    }
    total
}
