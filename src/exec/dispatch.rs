//! Binds slots to operands and calls the kernels of one precision. The match is exhaustive: an operation exists on
//! every executor or the crate does not compile.

use std::ops::Range;

use super::Block;
use super::host::{CpuKernels, Kernels, ReferenceKernels};
use super::host_binding::Binding;
use crate::ops::dropout::{AppliedDropout, DropoutKey};
use crate::ops::weightmask::{Gradients, Noise};
use crate::ops::{
    Elem, ViewMut, activation, attention, bias, contrastive, dropout, embed, gather, gemm, loss, mapping,
    norm, optimizer,
};
use crate::ops::{reduce, select, seminmf, similarity, weightmask};
use crate::program::{DropoutSite, MaskFunction, Op, SLOT_ALIGNMENT, SlotId};

/// The dropout of a site under the key of this run.
fn applied<T: Elem>(site: &Option<DropoutSite>, bind: &Binding<'_, T>) -> Option<AppliedDropout> {
    let site = site.as_ref()?;
    Some(AppliedDropout { dropout: site.dropout, key: random_key(site.key, bind) })
}

/// Noise of a mask under the key of this run.
fn noise<T: Elem>(key: SlotId, bind: &Binding<'_, T>) -> Noise {
    Noise(random_key(key, bind))
}

fn random_key<T: Elem>(slot: SlotId, bind: &Binding<'_, T>) -> DropoutKey {
    let &[low, high, draw] = bind.ints(slot) else { panic!("a random key has three words") };
    DropoutKey { seed: u64::from(low as u32) | u64::from(high as u32) << 32, draw: draw as u32 }
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
                        gemm::$flavour::gemm_of(
                            bind.factors(),
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
                        rows,
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
                            rows.map(|s| bind.ints(s)),
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
                            bind.factors(),
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
                    Op::Contrastive {
                        x,
                        bank,
                        ids,
                        bank_ids,
                        labels,
                        temperature,
                        weights,
                        losses,
                        scales,
                        dx,
                        accumulate,
                    } => {
                        let keys = contrastive::Keys {
                            ids: bind.ints(*ids),
                            bank_ids: bind.ints(*bank_ids),
                            labels: labels.map(|[rows, of_bank]| (bind.ints(rows), bind.ints(of_bank))),
                        };
                        contrastive::$flavour::contrastive(
                            view(*x),
                            view(*bank),
                            keys,
                            Float::from(*temperature),
                            bind.slice(*weights),
                            view_mut(*losses),
                            bind.slice_mut(*scales),
                            dx.map(view_mut),
                            *accumulate,
                        );
                    }
                    Op::ZeroGradients => {
                        let gradients = bind.block_mut(Block::Gradients);
                        let rows = gradients.len() / SLOT_ALIGNMENT;
                        gather::$flavour::fill(ViewMut::dense(gradients, rows, SLOT_ALIGNMENT), 0.0);
                    }
                    Op::ClipFactor { max_norm, scores, norm } => {
                        let trained =
                            bind.trained_parameters().map(|(_, range)| bind.part(Block::Gradients, &range));
                        let masked = bind.masked().filter(|_| *scores);
                        let scored = masked.map(|matrix| bind.part(bind.score_gradients(), &matrix.range));
                        let total = optimizer::$flavour::global_norm(trained.chain(scored));
                        let out = bind.slice_mut(*norm);
                        out[0] = total as Float;
                        out[1] = optimizer::clip_factor(f64::from(*max_norm), total) as Float;
                    }
                    Op::AdamW { form, scores, hyper, norm } => {
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
                        let update =
                            |blocks: [Block; 4], range: &Range<usize>, settings: &optimizer::AdamW| {
                                let [values, gradients, first, second] = blocks;
                                optimizer::$flavour::adamw(
                                    bind.part_mut(values, range),
                                    bind.part(gradients, range),
                                    bind.part_mut(first, range),
                                    bind.part_mut(second, range),
                                    settings,
                                    None,
                                );
                            };
                        if *scores {
                            let moments = (Block::ScoreFirstMoment, Block::ScoreSecondMoment);
                            let blocks = [Block::Scores, bind.score_gradients(), moments.0, moments.1];
                            bind.masked().for_each(|matrix| update(blocks, &matrix.range, &settings));
                            return;
                        }
                        for (parameter, range) in bind.trained_parameters() {
                            settings.weight_decay = if parameter.vector { 0.0 } else { f64::from(hyper[4]) };
                            let values = if parameter.masked { Block::Weights } else { Block::Parameters };
                            let blocks = [values, Block::Gradients, Block::FirstMoment, Block::SecondMoment];
                            update(blocks, &range, &settings);
                        }
                    }
                    Op::SelectMasks { magnitude, global, counts, threshold, kept } => {
                        let source = if *magnitude { Block::Weights } else { Block::Scores };
                        let threshold = threshold.map(|slot| bind.slice(slot)[0]);
                        let mut matrices: Vec<_> = bind
                            .masked()
                            .map(|matrix| select::Matrix {
                                scores: bind.part(source, &matrix.range),
                                cols: matrix.parameter.cols,
                                ld: matrix.parameter.ld(),
                                keep: bind.bits_mut(&matrix),
                            })
                            .collect();
                        let size = if *global { matrices.len().max(1) } else { 1 };
                        let groups = matrices.chunks_mut(size).zip(bind.ints(*counts));
                        for ((group, &count), kept) in groups.zip(bind.slice_mut(*kept)) {
                            let above = threshold.map_or(0, |threshold| {
                                group.iter().map(|m| select::$flavour::count_above(m, threshold)).sum()
                            });
                            let count = above.max(usize::try_from(count).unwrap_or(0));
                            *kept = select::$flavour::keep_largest(group, *magnitude, count) as Float;
                        }
                    }
                    Op::ApplyMasks { function, key } => {
                        for matrix in bind.masked() {
                            let weights = bind.part(Block::Weights, &matrix.range);
                            let out = bind.part_mut(Block::Parameters, &matrix.range);
                            match function {
                                MaskFunction::Bits => {
                                    weightmask::$flavour::apply(weights, bind.bits(&matrix), out);
                                }
                                MaskFunction::HardConcrete => weightmask::$flavour::apply_hard_concrete(
                                    weights,
                                    bind.part(Block::Scores, &matrix.range),
                                    key.map(|key| noise(key, bind)),
                                    matrix.first,
                                    out,
                                ),
                            }
                        }
                    }
                    Op::ScoreGradients { function, key, scores, penalty } => {
                        for matrix in bind.masked() {
                            let range = &matrix.range;
                            let penalty = bind.slice(*penalty)[0] / matrix.parameter.len().max(1) as Float;
                            let weights = bind.part(Block::Weights, range);
                            let gradients = bind.part_mut(Block::Gradients, range);
                            let into = match (scores, matrix.parameter.trainable) {
                                (true, false) => Gradients::Scores(gradients),
                                (false, _) => Gradients::Weights(gradients),
                                (true, true) => Gradients::Both {
                                    weights: gradients,
                                    scores: bind.part_mut(Block::ScoreGradients, range),
                                },
                            };
                            let scores = if *scores { bind.part(Block::Scores, range) } else { &[] };
                            match function {
                                MaskFunction::Bits => weightmask::$flavour::score_gradients(
                                    weights,
                                    scores,
                                    bind.bits(&matrix),
                                    penalty,
                                    into,
                                ),
                                MaskFunction::HardConcrete => weightmask::$flavour::hard_concrete_gradients(
                                    weights,
                                    scores,
                                    key.map(|key| noise(key, bind)),
                                    matrix.first,
                                    penalty,
                                    into,
                                ),
                            }
                        }
                    }
                    Op::MeanSigmoid { shift, temperature, out } => {
                        for (matrix, out) in bind.masked().zip(bind.slice_mut(*out)) {
                            let scores = bind.part(Block::Scores, &matrix.range);
                            let (shift, temperature) = (Float::from(*shift), Float::from(*temperature));
                            let sum = weightmask::$flavour::sigmoid_sum(scores, shift, temperature);
                            *out = (sum / matrix.parameter.len().max(1) as f64) as Float;
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
