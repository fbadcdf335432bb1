//! Which slots of a program are stored in bf16.
//!
//! With [`Precision::Bf16`] a slot is bf16 iff every operation that touches it takes bf16 there, and operands that a
//! kernel wants of one type agree. So activations and their gradients are bf16; inputs, parameters, gradients of
//! parameters, statistics, logits and losses are f32. Products read bf16 always: f32 factors are rounded on the way in. With
//! [`Precision::F16`] that is all there is: nothing is stored in f16, which overflows, but the factors of products.

use crate::launch::{ElementType, Precision};
use crate::program::{Element, Op, Program, SlotId, Storage};

/// Element types of the float slots of `program`, by slot number.
pub fn assign(program: &Program, precision: Precision) -> Vec<ElementType> {
    let mut half = vec![false; program.slots().count()];
    if precision == Precision::Bf16 {
        for (id, slot) in program.slots() {
            let arena = matches!(slot.storage, Storage::Temporary | Storage::Output);
            half[id.index()] = arena && slot.element == Element::Float;
        }
        let mut groups = Vec::new();
        for op in program.ops() {
            let (full, alike) = constraints(program, op);
            for slot in full {
                half[program.root(slot).index()] = false;
            }
            groups.push(alike.into_iter().map(|slot| program.root(slot).index()).collect::<Vec<_>>());
        }
        // A slot only ever turns to f32, so this ends.
        let mut changed = true;
        while changed {
            changed = false;
            for group in &groups {
                if group.iter().any(|&slot| half[slot]) && !group.iter().all(|&slot| half[slot]) {
                    group.iter().for_each(|&slot| half[slot] = false);
                    changed = true;
                }
            }
        }
        for (id, _) in program.slots() {
            half[id.index()] = half[program.root(id).index()];
        }
    }
    half.into_iter().map(|half| if half { ElementType::Bf16 } else { ElementType::F32 }).collect()
}

/// Slots that `op` needs in f32, and slots that it needs in one type. What is in neither may be of either type.
fn constraints(program: &Program, op: &Op) -> (Vec<SlotId>, Vec<SlotId>) {
    let some = Some::<SlotId>;
    let list = |slots: &[Option<SlotId>]| slots.iter().flatten().copied().collect::<Vec<_>>();
    match op {
        Op::Embed { .. } | Op::EmbedBackward { .. } => (vec![], vec![]),
        Op::Gemm { c, epilogue: e, .. } => match program.slot(program.root(*c)).storage {
            // What the host reads as the result of a product (logits) keeps its precision.
            Storage::Output => (list(&[some(*c), e.preactivation, e.residual]), vec![]),
            Storage::Gradient(_) => (vec![], vec![]),
            _ => (vec![], list(&[some(*c), e.preactivation, e.residual])),
        },
        Op::ColumnSum { out, .. } => (vec![*out], vec![]),
        Op::BiasResidual { residual, y, .. } => (vec![], vec![*residual, *y]),
        Op::LayerNorm { x, y, mean, rstd, .. } => (vec![*mean, *rstd], vec![*x, *y]),
        Op::LayerNormBackward { dy, x, mean, rstd, dx, .. } => (vec![*mean, *rstd], vec![*dy, *x, *dx]),
        Op::Attention { q, k, v, out, lse, unmasked, .. } => {
            (vec![*lse], list(&[some(*q), some(*k), some(*v), some(*out), *unmasked]))
        }
        Op::AttentionBackward { q, k, v, out, dout, lse, unmasked, dq, dk, dv, dmask, .. } => {
            let alike = [*q, *k, *v, *out, *dout, *dq, *dk, *dv].map(some);
            (list(&[some(*lse), *dmask]), alike.into_iter().chain([*unmasked]).flatten().collect())
        }
        Op::ActivationBackward { dy, preactivation, dx, dmask, .. } => {
            (list(&[*dmask]), vec![*dy, *preactivation, *dx])
        }
        Op::Dropout { x, y, .. } | Op::Gather { x, y, .. } | Op::Add { x, y } => (vec![], vec![*x, *y]),
        Op::ScatterAdd { dy, dx, .. } => (vec![], vec![*dy, *dx]),
        Op::Contrastive { x, losses, scales, dx, .. } => (vec![*losses, *scales], list(&[some(*x), *dx])),
        Op::LinearCrossEntropy { x, losses, dx, .. } => (vec![*losses], list(&[some(*x), *dx])),
        Op::AbsoluteCosine { out, .. }
        | Op::MeanAbsolute { out, .. }
        | Op::ColumnMoments { out, .. }
        | Op::GaussianKernel { out, .. } => (vec![*out], vec![]),
        Op::ColumnProducts { x, y, out } => (vec![*out], vec![*x, *y]),
        Op::CrossEntropy { .. }
        | Op::SpanDistillation { .. }
        | Op::MeanSquaredError { .. }
        | Op::SpanLoss { .. }
        | Op::Distillation { .. }
        | Op::ZeroGradients
        | Op::ClipFactor { .. }
        | Op::AdamW { .. }
        | Op::SelectMasks { .. }
        | Op::ApplyMasks { .. }
        | Op::ScoreGradients { .. }
        | Op::MeanSigmoid { .. }
        | Op::ProfileDistance { .. }
        | Op::DimensionMapping { .. }
        | Op::SemiNmfStart { .. }
        | Op::SemiNmfUpdate { .. } => {
            let mut all = Vec::new();
            op.visit(|slot, _| {
                if program.slot(slot).element == Element::Float {
                    all.push(slot);
                }
            });
            (all, vec![])
        }
    }
}
