//! Binds slots to operands and calls the kernels of one precision. The match is exhaustive: an operation exists on
//! every executor or the crate does not compile.

use super::Block;
use super::host::{Binding, CpuKernels, Kernels, ReferenceKernels};
use crate::ops::dropout::{AppliedDropout, DropoutKey};
use crate::ops::{
    Elem, ViewMut, activation, attention, bias, dropout, embed, gather, gemm, loss, mapping, norm, optimizer,
};
use crate::ops::{reduce, seminmf, similarity};
use crate::program::{DropoutSite, Op, SLOT_ALIGNMENT};

/// The dropout of a site under the key of this run.
fn applied<T: Elem>(site: &Option<DropoutSite>, bind: &Binding<'_, T>) -> Option<AppliedDropout> {
    let site = site.as_ref()?;
    let &[low, high, draw] = bind.ints(site.key) else { panic!("a dropout key has three words") };
    let seed = u64::from(low as u32) | u64::from(high as u32) << 32;
    Some(AppliedDropout { dropout: site.dropout, key: DropoutKey { seed, draw: draw as u32 } })
}

macro_rules! kernels {
    ($kernels:ident, $flavour:ident, $element:ty, $name:literal) => {
        impl Kernels for $kernels {
            type Element = $element;
            const NAME: &'static str = $name;

            fn run(op: &Op, bind: &Binding<'_, $element>) {
                type Float = $element;
                let view = |slot| bind.view(slot);
                let view_mut = |slot| bind.view_mut(slot);
                match op {
                    Op::Embed { ids, positions, token_types, word, position, token_type, out } => {
                        embed::$flavour::embed(
                            bind.ints(*ids),
                            bind.ints(*positions),
                            token_types.map(|s| bind.ints(s)),
                            view(*word),
                            position.map(view),
                            token_type.map(view),
                            view_mut(*out),
                        );
                    }
                    Op::EmbedBackward {
                        ids,
                        positions,
                        token_types,
                        dout,
                        dword,
                        dposition,
                        dtoken_type,
                    } => {
                        embed::$flavour::embed_backward(
                            view(*dout),
                            bind.ints(*ids),
                            bind.ints(*positions),
                            token_types.map(|s| bind.ints(s)),
                            dword.map(view_mut),
                            dposition.map(view_mut),
                            dtoken_type.map(view_mut),
                        );
                    }
                    Op::Gemm { a, transpose_a, b, transpose_b, c, epilogue: e } => {
                        let epilogue = gemm::Epilogue {
                            bias: e.bias.map(|s| bind.slice(s)),
                            accumulate: e.accumulate,
                            activation: e.activation,
                            preactivation: e.preactivation.map(view_mut),
                            neuron_mask: e.neuron_mask.map(|s| bind.slice(s)),
                            compute_masked: e.compute_masked,
                            dropout: applied(&e.dropout, bind),
                            residual: e.residual.map(view),
                            inner_mask: e.inner_mask.map(|s| bind.slice(s)),
                        };
                        gemm::$flavour::gemm(
                            view(*a),
                            *transpose_a,
                            view(*b),
                            *transpose_b,
                            &mut view_mut(*c),
                            epilogue,
                        );
                    }
                    Op::ColumnSum { x, out } => {
                        gemm::$flavour::column_sums(view(*x), bind.slice_mut(*out), true);
                    }
                    Op::BiasResidual { bias, dropout: site, residual, y } => {
                        let applied = applied(site, bind);
                        bias::$flavour::bias_residual(
                            bind.slice(*bias),
                            applied,
                            view(*residual),
                            view_mut(*y),
                        );
                    }
                    Op::LayerNorm { x, gamma, beta, epsilon, y, mean, rstd } => {
                        norm::$flavour::layer_norm(
                            view(*x),
                            bind.slice(*gamma),
                            bind.slice(*beta),
                            Float::from(*epsilon),
                            view_mut(*y),
                            bind.slice_mut(*mean),
                            bind.slice_mut(*rstd),
                        );
                    }
                    Op::LayerNormBackward { dy, x, gamma, mean, rstd, dx, accumulate, dgamma, dbeta } => {
                        norm::$flavour::layer_norm_backward(
                            view(*dy),
                            view(*x),
                            bind.slice(*gamma),
                            bind.slice(*mean),
                            bind.slice(*rstd),
                            view_mut(*dx),
                            *accumulate,
                            dgamma.map(|s| bind.slice_mut(s)),
                            dbeta.map(|s| bind.slice_mut(s)),
                        );
                    }
                    Op::Attention { q, k, v, cu_seqlens, shape, head_mask, dropout, out, lse, unmasked } => {
                        attention::$flavour::forward(
                            view(*q),
                            view(*k),
                            view(*v),
                            bind.ints(*cu_seqlens),
                            shape.heads,
                            shape.head_dim,
                            Float::from(shape.scale),
                            shape.causal,
                            head_mask.map(|s| bind.slice(s)),
                            applied(dropout, bind),
                            view_mut(*out),
                            view_mut(*lse),
                            unmasked.map(view_mut),
                        );
                    }
                    Op::AttentionBackward {
                        q,
                        k,
                        v,
                        out,
                        dout,
                        lse,
                        unmasked,
                        cu_seqlens,
                        shape,
                        head_mask,
                        dropout,
                        dq,
                        dk,
                        dv,
                        dmask,
                    } => {
                        attention::$flavour::backward(
                            view(*q),
                            view(*k),
                            view(*v),
                            view(*out),
                            view(*dout),
                            view(*lse),
                            unmasked.map(view),
                            bind.ints(*cu_seqlens),
                            shape.heads,
                            shape.head_dim,
                            Float::from(shape.scale),
                            shape.causal,
                            head_mask.map(|s| bind.slice(s)),
                            applied(dropout, bind),
                            view_mut(*dq),
                            view_mut(*dk),
                            view_mut(*dv),
                            dmask.map(view_mut),
                        );
                    }
                    Op::ActivationBackward { kind, dy, preactivation, mask, dx, dmask, cu_seqlens } => {
                        let dmask = dmask.zip(*cu_seqlens).map(|(d, cu)| (bind.ints(cu), view_mut(d)));
                        activation::$flavour::backward(
                            *kind,
                            view(*dy),
                            view(*preactivation),
                            mask.map(|s| bind.slice(s)),
                            view_mut(*dx),
                            false,
                            dmask,
                        );
                    }
                    Op::Dropout { x, y, site } => {
                        if let Some(applied) = applied(&Some(*site), bind) {
                            dropout::$flavour::dropout(view(*x), view_mut(*y), applied);
                        }
                    }
                    Op::Gather { x, rows, y } => {
                        gather::$flavour::gather_rows(view(*x), bind.ints(*rows), view_mut(*y));
                    }
                    Op::ScatterAdd { dy, rows, dx, accumulate } => {
                        if !accumulate {
                            gather::$flavour::fill(view_mut(*dx), 0.0);
                        }
                        gather::$flavour::scatter_rows_add(view(*dy), bind.ints(*rows), view_mut(*dx));
                    }
                    Op::Add { x, y } => gather::$flavour::add_in_place(view_mut(*y), view(*x)),
                    Op::CrossEntropy { logits, labels, weights, losses, dlogits } => {
                        loss::$flavour::cross_entropy(
                            view(*logits),
                            bind.ints(*labels),
                            bind.slice(*weights),
                            bind.slice_mut(*losses),
                            dlogits.map(view_mut),
                            false,
                        );
                    }
                    Op::LinearCrossEntropy { x, w, bias, labels, weights, losses, dx, dw, dbias } => {
                        loss::$flavour::linear_cross_entropy(
                            view(*x),
                            view(*w),
                            bias.map(|s| bind.slice(s)),
                            bind.ints(*labels),
                            bind.slice(*weights),
                            bind.slice_mut(*losses),
                            dx.map(view_mut),
                            dw.map(view_mut),
                            dbias.map(|s| bind.slice_mut(s)),
                        );
                    }
                    Op::MeanSquaredError { x, targets, weights, losses, dx, accumulate } => {
                        loss::$flavour::mean_squared_error(
                            view(*x),
                            bind.slice(*targets),
                            bind.slice(*weights),
                            bind.slice_mut(*losses),
                            dx.map(view_mut),
                            *accumulate,
                        );
                    }
                    Op::SpanLoss { logits, starts, ends, cu_seqlens, weights, losses, dlogits } => {
                        loss::$flavour::span(
                            view(*logits),
                            bind.ints(*starts),
                            bind.ints(*ends),
                            bind.ints(*cu_seqlens),
                            bind.slice(*weights),
                            bind.slice_mut(*losses),
                            dlogits.map(view_mut),
                        );
                    }
                    Op::Distillation {
                        student,
                        teacher,
                        temperature,
                        weights,
                        losses,
                        dstudent,
                        accumulate,
                    } => {
                        loss::$flavour::distillation(
                            view(*student),
                            view(*teacher),
                            Float::from(*temperature),
                            bind.slice(*weights),
                            bind.slice_mut(*losses),
                            dstudent.map(view_mut),
                            *accumulate,
                        );
                    }
                    Op::SpanDistillation {
                        student,
                        teacher,
                        temperature,
                        cu_seqlens,
                        weights,
                        losses,
                        dstudent,
                        accumulate,
                    } => {
                        loss::$flavour::span_distillation(
                            view(*student),
                            view(*teacher),
                            Float::from(*temperature),
                            bind.ints(*cu_seqlens),
                            bind.slice(*weights),
                            bind.slice_mut(*losses),
                            dstudent.map(view_mut),
                            *accumulate,
                        );
                    }
                    Op::ZeroGradients => {
                        let gradients = bind.block_mut(Block::Gradients);
                        let rows = gradients.len() / SLOT_ALIGNMENT;
                        gather::$flavour::fill(ViewMut::dense(gradients, rows, SLOT_ALIGNMENT), 0.0);
                    }
                    Op::ClipFactor { max_norm, norm } => {
                        let gradients = bind.block(Block::Gradients);
                        let trained = bind.trained_parameters().map(|(_, range)| &gradients[range]);
                        let total = optimizer::$flavour::global_norm(trained);
                        let out = bind.slice_mut(*norm);
                        out[0] = total as Float;
                        out[1] = optimizer::clip_factor(f64::from(*max_norm), total) as Float;
                    }
                    Op::AdamW { form, hyper, norm } => {
                        let hyper = bind.slice(*hyper);
                        let mut settings = optimizer::AdamW {
                            lr: f64::from(hyper[0]),
                            beta1: f64::from(hyper[1]),
                            beta2: f64::from(hyper[2]),
                            eps: f64::from(hyper[3]),
                            weight_decay: 0.0,
                            bias_correction1: f64::from(hyper[5]),
                            bias_correction2: f64::from(hyper[6]),
                            clip_factor: f64::from(bind.slice(*norm)[1]),
                            form: *form,
                        };
                        let parameters = bind.block_mut(Block::Parameters);
                        let gradients = bind.block(Block::Gradients);
                        let first = bind.block_mut(Block::FirstMoment);
                        let second = bind.block_mut(Block::SecondMoment);
                        for (parameter, range) in bind.trained_parameters() {
                            settings.weight_decay = if parameter.vector { 0.0 } else { f64::from(hyper[4]) };
                            optimizer::$flavour::adamw(
                                &mut parameters[range.clone()],
                                &gradients[range.clone()],
                                &mut first[range.clone()],
                                &mut second[range],
                                &settings,
                                None,
                            );
                        }
                    }
                    Op::AbsoluteCosine { x, out } => {
                        similarity::$flavour::absolute_cosine(view(*x), &mut view_mut(*out));
                    }
                    Op::ProfileDistance { cosine, out } => {
                        similarity::$flavour::profile_distance(view(*cosine), &mut view_mut(*out));
                    }
                    Op::DimensionMapping { cosine, head_dim, out } => {
                        mapping::$flavour::dimension_mapping(view(*cosine), *head_dim, &mut view_mut(*out));
                    }
                    Op::MeanAbsolute { x, group, out } => {
                        reduce::$flavour::mean_absolute(view(*x), *group, bind.slice_mut(*out));
                    }
                    Op::ColumnMoments { x, out } => {
                        reduce::$flavour::column_moments(view(*x), view_mut(*out));
                    }
                    Op::GaussianKernel { x, scale, out } => {
                        seminmf::$flavour::gaussian_kernel(view(*x), Float::from(*scale), view_mut(*out));
                    }
                    Op::SemiNmfStart { kernel, c, growth } => {
                        let change = seminmf::$flavour::first_update(view(*kernel), view_mut(*c));
                        bind.slice_mut(*growth)[0] = change as Float;
                    }
                    Op::SemiNmfUpdate { kernel, c, growth } => {
                        let change = seminmf::$flavour::multiplicative_update(view(*kernel), view_mut(*c));
                        bind.slice_mut(*growth)[0] = change as Float;
                    }
                    Op::ColumnProducts { x, y, out } => {
                        reduce::$flavour::column_products(view(*x), view(*y), bind.slice_mut(*out));
                    }
                }
            }
        }
    };
}

kernels!(CpuKernels, cpu, f32, "cpu");
kernels!(ReferenceKernels, reference, f64, "reference");
