//! Which slots an operation reads, writes and updates.
//!
//! Planning, validation, printing and lock-step comparison go by [`Op::visit`] and know nothing else about operations. So
//! every slot that an operation touches is visited: one left out would be given memory that others use at the same time.

use super::op::{DropoutSite, Op};
use super::slot::SlotId;

/// How an operation uses a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Only read.
    Read,
    /// Every element is written; the old content is not looked at.
    Write,
    /// Read and written (accumulation).
    Update,
}

impl Op {
    /// Calls `f` for every slot the operation touches, inputs first.
    pub fn visit(&self, mut f: impl FnMut(SlotId, Access)) {
        use Access::{Read, Update, Write};
        let mut all = |access: Access, slots: &[Option<SlotId>]| {
            for slot in slots.iter().flatten() {
                f(*slot, access);
            }
        };
        let key = |site: &Option<DropoutSite>| site.map(|s| s.key);
        let some = Some::<SlotId>;
        let write_or_update = |accumulate: bool| if accumulate { Update } else { Write };
        match self {
            Op::Embed { ids, positions, token_types, word, position, token_type, out } => {
                all(Read, &[some(*ids), some(*positions), *token_types, some(*word), *position, *token_type]);
                all(Write, &[some(*out)]);
            }
            Op::EmbedBackward { ids, positions, token_types, dout, dword, dposition, dtoken_type } => {
                all(Read, &[some(*ids), some(*positions), *token_types, some(*dout)]);
                all(Update, &[*dword, *dposition, *dtoken_type]);
            }
            Op::Gemm { a, b, c, epilogue: e, .. } => {
                all(
                    Read,
                    &[some(*a), some(*b), e.bias, e.neuron_mask, e.inner_mask, e.residual, key(&e.dropout)],
                );
                all(Write, &[e.preactivation]);
                all(write_or_update(e.accumulate), &[some(*c)]);
            }
            Op::ColumnSum { x, out } => {
                all(Read, &[some(*x)]);
                all(Update, &[some(*out)]);
            }
            Op::BiasResidual { bias, dropout, residual, y } => {
                all(Read, &[some(*bias), some(*residual), key(dropout)]);
                all(Write, &[some(*y)]);
            }
            Op::LayerNorm { x, gamma, beta, y, mean, rstd, .. } => {
                all(Read, &[some(*x), some(*gamma), some(*beta)]);
                all(Write, &[some(*y), some(*mean), some(*rstd)]);
            }
            Op::LayerNormBackward { dy, x, gamma, mean, rstd, dx, accumulate, dgamma, dbeta } => {
                all(Read, &[some(*dy), some(*x), some(*gamma), some(*mean), some(*rstd)]);
                all(Update, &[*dgamma, *dbeta]);
                all(write_or_update(*accumulate), &[some(*dx)]);
            }
            Op::Attention { q, k, v, cu_seqlens, head_mask, dropout, out, lse, unmasked, .. } => {
                all(Read, &[some(*q), some(*k), some(*v), some(*cu_seqlens), *head_mask, key(dropout)]);
                all(Write, &[some(*out), some(*lse), *unmasked]);
            }
            Op::AttentionBackward {
                q,
                k,
                v,
                out,
                dout,
                rows,
                lse,
                unmasked,
                cu_seqlens,
                head_mask,
                dropout,
                dq,
                dk,
                dv,
                dmask,
                ..
            } => {
                all(Read, &[some(*q), some(*k), some(*v), some(*out), some(*dout), some(*lse), *unmasked]);
                all(Read, &[some(*cu_seqlens), *rows, *head_mask, key(dropout)]);
                all(Write, &[some(*dq), some(*dk), some(*dv), *dmask]);
            }
            Op::ActivationBackward { dy, preactivation, mask, dx, dmask, cu_seqlens, .. } => {
                all(Read, &[some(*dy), some(*preactivation), *mask, *cu_seqlens]);
                all(Write, &[some(*dx), *dmask]);
            }
            Op::Dropout { x, y, site } => {
                all(Read, &[some(*x), some(site.key)]);
                all(Write, &[some(*y)]);
            }
            Op::Gather { x, rows, y } => {
                all(Read, &[some(*x), some(*rows)]);
                all(Write, &[some(*y)]);
            }
            Op::ScatterAdd { dy, rows, dx, accumulate } => {
                all(Read, &[some(*dy), some(*rows)]);
                all(write_or_update(*accumulate), &[some(*dx)]);
            }
            Op::Add { x, y } => {
                all(Read, &[some(*x)]);
                all(Update, &[some(*y)]);
            }
            Op::CrossEntropy { logits, labels, weights, losses, dlogits } => {
                all(Read, &[some(*logits), some(*labels), some(*weights)]);
                all(Write, &[some(*losses), *dlogits]);
            }
            Op::LinearCrossEntropy { x, w, bias, labels, weights, losses, dx, dw, dbias } => {
                all(Read, &[some(*x), some(*w), *bias, some(*labels), some(*weights)]);
                all(Write, &[some(*losses), *dx]);
                all(Update, &[*dw, *dbias]);
            }
            Op::MeanSquaredError { x, targets, weights, losses, dx, accumulate } => {
                all(Read, &[some(*x), some(*targets), some(*weights)]);
                all(Write, &[some(*losses)]);
                all(write_or_update(*accumulate), &[*dx]);
            }
            Op::SpanLoss { logits, starts, ends, cu_seqlens, weights, losses, dlogits } => {
                all(Read, &[some(*logits), some(*starts), some(*ends), some(*cu_seqlens), some(*weights)]);
                all(Write, &[some(*losses), *dlogits]);
            }
            Op::Distillation { student, teacher, weights, losses, dstudent, accumulate, .. } => {
                all(Read, &[some(*student), some(*teacher), some(*weights)]);
                all(Write, &[some(*losses)]);
                all(write_or_update(*accumulate), &[*dstudent]);
            }
            Op::SpanDistillation {
                student,
                teacher,
                cu_seqlens,
                weights,
                losses,
                dstudent,
                accumulate,
                ..
            } => {
                all(Read, &[some(*student), some(*teacher), some(*cu_seqlens), some(*weights)]);
                all(Write, &[some(*losses)]);
                all(write_or_update(*accumulate), &[*dstudent]);
            }
            Op::Contrastive {
                x,
                bank,
                ids,
                bank_ids,
                labels,
                weights,
                losses,
                scales,
                dx,
                accumulate,
                ..
            } => {
                all(Read, &[some(*x), some(*bank), some(*ids), some(*bank_ids), some(*weights)]);
                all(Read, &labels.map_or([None; 2], |labels| labels.map(some)));
                all(Write, &[some(*losses), some(*scales)]);
                all(write_or_update(*accumulate), &[*dx]);
            }
            Op::ZeroGradients => {}
            Op::ClipFactor { norm, .. } => all(Write, &[some(*norm)]),
            Op::AdamW { hyper, norm, .. } => all(Read, &[some(*hyper), some(*norm)]),
            Op::SelectMasks { counts, threshold, kept, .. } => {
                all(Read, &[some(*counts), *threshold]);
                all(Write, &[some(*kept)]);
            }
            Op::ApplyMasks { key, .. } => all(Read, &[*key]),
            Op::ScoreGradients { key, penalty, .. } => all(Read, &[*key, some(*penalty)]),
            Op::MeanSigmoid { out, .. } => all(Write, &[some(*out)]),
            Op::AbsoluteCosine { x, out } => {
                all(Read, &[some(*x)]);
                all(Write, &[some(*out)]);
            }
            Op::ProfileDistance { cosine, out } | Op::DimensionMapping { cosine, out, .. } => {
                all(Read, &[some(*cosine)]);
                all(Write, &[some(*out)]);
            }
            Op::MeanAbsolute { x, out, .. }
            | Op::ColumnMoments { x, out }
            | Op::GaussianKernel { x, out, .. } => {
                all(Read, &[some(*x)]);
                all(Write, &[some(*out)]);
            }
            Op::SemiNmfStart { kernel, c, growth } => {
                all(Read, &[some(*kernel)]);
                all(Write, &[some(*c), some(*growth)]);
            }
            Op::SemiNmfUpdate { kernel, c, growth } => {
                all(Read, &[some(*kernel)]);
                all(Update, &[some(*c)]);
                all(Write, &[some(*growth)]);
            }
            Op::ColumnProducts { x, y, out } => {
                all(Read, &[some(*x), some(*y)]);
                all(Write, &[some(*out)]);
            }
        }
    }
}
