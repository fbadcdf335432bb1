//! From operations to launches. The match is exhaustive: an operation exists on devices too, or the crate does not
//! compile.

use super::binding::{Binding, widened};
use super::pieces::Tables;
use crate::exec::Block;
use crate::launch::{ElementType, FactorType, Matrix, Pointer, Queue, or_null};
use crate::ops::optimizer::cuda::Blocks;
use crate::ops::{
    activation, attention, bias, contrastive, dropout, embed, gather, gemm, loss, mapping, norm, optimizer,
    reduce, select, seminmf, similarity, weightmask,
};
use crate::program::{MaskFunction, Op};

/// Queues the launches of one operation.
pub fn dispatch(op: &Op, bind: &Binding<'_>, tables: Tables, queue: &mut Queue) {
    let matrix = |slot| bind.matrix(slot);
    let vector = |slot| bind.vector(slot);
    let ints = |slot| bind.ints(slot);
    match op {
        Op::Embed { ids, positions, token_types, word, position, token_type, out } => {
            embed::cuda::embed(
                queue,
                ints(*ids),
                ints(*positions),
                token_types.map(ints),
                matrix(*word),
                position.map(matrix),
                token_type.map(matrix),
                matrix(*out),
            );
        }
        Op::EmbedBackward { ids, positions, token_types, dout, dword, dposition, dtoken_type } => {
            embed::cuda::embed_backward(
                queue,
                matrix(*dout),
                ints(*ids),
                ints(*positions),
                token_types.map(ints),
                dword.map(matrix),
                dposition.map(matrix),
                dtoken_type.map(matrix),
            );
        }
        Op::Gemm { a, transpose_a, b, transpose_b, c, epilogue: e } => {
            let (a, b) = (bind.factor(queue, *a), bind.factor(queue, *b));
            let epilogue = gemm::cuda::Epilogue {
                bias: e.bias.map(vector),
                accumulate: e.accumulate,
                activation: e.activation,
                preactivation: e.preactivation.map(matrix),
                neuron_mask: e.neuron_mask.map(vector),
                compute_masked: e.compute_masked,
                dropout: bind.dropout(&e.dropout),
                residual: e.residual.map(matrix),
                inner_mask: e.inner_mask.map(vector),
            };
            gemm::cuda::gemm(queue, a, *transpose_a, b, *transpose_b, matrix(*c), epilogue);
        }
        Op::ColumnSum { x, out } => gemm::cuda::column_sums(queue, matrix(*x), vector(*out), true),
        Op::BiasResidual { bias, dropout, residual, y } => {
            let dropout = bind.dropout(dropout);
            bias::cuda::bias_residual(queue, vector(*bias), dropout, matrix(*residual), matrix(*y));
        }
        Op::LayerNorm { x, gamma, beta, epsilon, y, mean, rstd } => {
            norm::cuda::layer_norm(
                queue,
                matrix(*x),
                vector(*gamma),
                vector(*beta),
                *epsilon,
                matrix(*y),
                vector(*mean),
                vector(*rstd),
            );
        }
        Op::LayerNormBackward { dy, x, gamma, mean, rstd, dx, accumulate, dgamma, dbeta } => {
            norm::cuda::layer_norm_backward(
                queue,
                matrix(*dy),
                matrix(*x),
                vector(*gamma),
                vector(*mean),
                vector(*rstd),
                matrix(*dx),
                *accumulate,
                dgamma.map(vector),
                dbeta.map(vector),
            );
        }
        Op::Attention { q, k, v, cu_seqlens, shape, head_mask, dropout, out, lse, unmasked } => {
            attention::cuda::forward(
                queue,
                matrix(*q),
                matrix(*k),
                matrix(*v),
                ints(*cu_seqlens),
                bind.sequences(*cu_seqlens),
                shape.heads,
                shape.head_dim,
                shape.scale,
                shape.causal,
                head_mask.map(vector),
                bind.dropout(dropout),
                matrix(*out),
                matrix(*lse),
                unmasked.map(matrix),
            );
        }
        Op::AttentionBackward {
            q,
            k,
            v,
            out,
            dout,
            // The kernels compute all queries.
            rows: _,
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
            attention::cuda::backward(
                queue,
                matrix(*q),
                matrix(*k),
                matrix(*v),
                matrix(*out),
                matrix(*dout),
                matrix(*lse),
                unmasked.map(matrix),
                ints(*cu_seqlens),
                bind.sequences(*cu_seqlens),
                shape.heads,
                shape.head_dim,
                shape.scale,
                shape.causal,
                head_mask.map(vector),
                bind.dropout(dropout),
                matrix(*dq),
                matrix(*dk),
                matrix(*dv),
                dmask.map(matrix),
            );
        }
        Op::ActivationBackward { kind, dy, preactivation, mask, dx, dmask, cu_seqlens } => {
            let dmask = dmask.zip(*cu_seqlens).map(|(dmask, cu)| (ints(cu), matrix(dmask)));
            let (dy, preactivation, dx) = (matrix(*dy), matrix(*preactivation), matrix(*dx));
            activation::cuda::backward(queue, *kind, dy, preactivation, mask.map(vector), dx, dmask);
        }
        Op::Dropout { x, y, site } => {
            if let Some(applied) = bind.dropout(&Some(*site)) {
                dropout::cuda::dropout(queue, matrix(*x), matrix(*y), applied);
            }
        }
        Op::Gather { x, rows, y } => gather::cuda::gather_rows(queue, matrix(*x), ints(*rows), matrix(*y)),
        Op::ScatterAdd { dy, rows, dx, accumulate } => {
            if !accumulate {
                gather::cuda::fill(queue, matrix(*dx), 0.0);
            }
            gather::cuda::scatter_rows_add(queue, matrix(*dy), ints(*rows), matrix(*dx));
        }
        Op::Add { x, y } => gather::cuda::add_in_place(queue, matrix(*y), matrix(*x)),
        Op::CrossEntropy { logits, labels, weights, losses, dlogits } => {
            loss::cuda::cross_entropy(
                queue,
                matrix(*logits),
                ints(*labels),
                vector(*weights),
                vector(*losses),
                dlogits.map(matrix),
                false,
            );
        }
        Op::LinearCrossEntropy { x, w, bias, labels, weights, losses, dx, dw, dbias } => {
            // An x that stayed f32 beside bf16 is multiplied in tf32, as its gradient is.
            let exact =
                matrix(*x).element == ElementType::F32 && bind.addresses.factors == Some(FactorType::Bf16);
            let (x, w) = match exact {
                true => (matrix(*x).into(), matrix(*w).into()),
                false => (bind.factor(queue, *x), bind.factor(queue, *w)),
            };
            loss::cuda::linear_cross_entropy(
                queue,
                x,
                w,
                bias.map(vector),
                ints(*labels),
                vector(*weights),
                vector(*losses),
                dx.map(matrix),
                dw.map(matrix),
                dbias.map(vector),
            );
        }
        Op::MeanSquaredError { x, targets, weights, losses, dx, accumulate } => {
            loss::cuda::mean_squared_error(
                queue,
                matrix(*x),
                vector(*targets),
                vector(*weights),
                vector(*losses),
                dx.map(matrix),
                *accumulate,
            );
        }
        Op::SpanLoss { logits, starts, ends, cu_seqlens, weights, losses, dlogits } => {
            loss::cuda::span(
                queue,
                matrix(*logits),
                ints(*starts),
                ints(*ends),
                ints(*cu_seqlens),
                bind.sequences(*cu_seqlens),
                vector(*weights),
                vector(*losses),
                dlogits.map(matrix),
            );
        }
        Op::Distillation { student, teacher, temperature, weights, losses, dstudent, accumulate } => {
            loss::cuda::distillation(
                queue,
                matrix(*student),
                matrix(*teacher),
                *temperature,
                vector(*weights),
                vector(*losses),
                dstudent.map(matrix),
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
            loss::cuda::span_distillation(
                queue,
                matrix(*student),
                matrix(*teacher),
                *temperature,
                ints(*cu_seqlens),
                bind.sequences(*cu_seqlens),
                vector(*weights),
                vector(*losses),
                dstudent.map(matrix),
                *accumulate,
            );
        }
        Op::Contrastive {
            x,
            bank,
            ids: of_rows,
            bank_ids,
            labels,
            temperature,
            weights,
            losses,
            scales,
            dx,
            accumulate,
        } => {
            let keys = contrastive::cuda::Keys {
                ids: ints(*of_rows),
                bank_ids: ints(*bank_ids),
                labels: labels.map(|[of_rows, of_bank]| (ints(of_rows), ints(of_bank))),
            };
            contrastive::cuda::contrastive(
                queue,
                matrix(*x),
                matrix(*bank),
                keys,
                *temperature,
                vector(*weights),
                matrix(*losses),
                vector(*scales),
                dx.map(matrix),
                *accumulate,
            );
        }
        Op::ZeroGradients => {
            let bytes = Block::Gradients.stretch(bind.program.layout()).len() * 4;
            queue.fill_zero(bind.addresses.blocks[Block::Gradients as usize], bytes);
        }
        Op::ClipFactor { max_norm, scores, norm } => {
            let gradients = bind.origin(Block::Gradients);
            let of_scores = bind.origin(Block::of_score_gradients(bind.program.layout()));
            let mut parts = vec![(gradients, tables.plain), (gradients, tables.weights)];
            parts.extend(scores.then_some((of_scores, tables.scores)));
            optimizer::cuda::clip_factor(queue, &parts, *max_norm, vector(*norm));
        }
        Op::AdamW { form, scores, hyper, norm } => {
            let mut update = |blocks: [Block; 4], copy, pieces| {
                let [parameters, gradients, first_moment, second_moment] =
                    blocks.map(|block| bind.origin(block));
                let keep = Pointer::NULL;
                let blocks = Blocks { parameters, gradients, first_moment, second_moment, copy, keep };
                optimizer::cuda::adamw(queue, blocks, pieces, *form, vector(*hyper), vector(*norm));
            };
            if *scores {
                let gradients = Block::of_score_gradients(bind.program.layout());
                let blocks = [Block::Scores, gradients, Block::ScoreFirstMoment, Block::ScoreSecondMoment];
                update(blocks, Pointer::NULL, tables.scores);
            } else {
                let rest = [Block::Gradients, Block::FirstMoment, Block::SecondMoment];
                let of = |values| [values, rest[0], rest[1], rest[2]];
                let copy = bind.copy_in_bf16();
                update(of(Block::Parameters), copy, tables.plain);
                update(of(Block::Weights), Pointer::NULL, tables.weights);
            }
        }
        Op::SelectMasks { magnitude, global, counts, threshold, kept } => {
            let source = if *magnitude { Block::Weights } else { Block::Scores };
            let matrices: Vec<_> = bind
                .masked()
                .map(|(parameter, first)| select::cuda::Matrix {
                    scores: bind.part(source, parameter),
                    values: parameter.span(),
                    cols: parameter.cols,
                    ld: parameter.ld(),
                    keep: bind.bits(first),
                })
                .collect();
            let size = if *global { matrices.len().max(1) } else { 1 };
            for (number, group) in matrices.chunks(size).enumerate() {
                let budget = select::cuda::Budget {
                    count: ints(*counts).offset(number),
                    threshold: or_null(threshold.map(vector)),
                    kept: vector(*kept).offset(number),
                };
                select::cuda::keep_largest(queue, group, *magnitude, budget);
            }
        }
        Op::ApplyMasks { function, key } => {
            for (parameter, first) in bind.masked() {
                let weights = bind.part(Block::Weights, parameter);
                let (out, copy) = (bind.part(Block::Parameters, parameter), bind.part_in_bf16(parameter));
                let length = parameter.span();
                match function {
                    MaskFunction::Bits => {
                        weightmask::cuda::apply(queue, weights, bind.bits(first), length, out, copy);
                    }
                    MaskFunction::HardConcrete => {
                        let scores = bind.part(Block::Scores, parameter);
                        let matrix = weightmask::cuda::Scored { weights, scores, length, first };
                        let key = or_null(key.map(ints));
                        weightmask::cuda::apply_hard_concrete(queue, matrix, key, out, copy);
                    }
                }
            }
        }
        Op::ScoreGradients { function, key, scores, penalty } => {
            let of_scores = Block::of_score_gradients(bind.program.layout());
            for (parameter, first) in bind.masked() {
                let part = |block| bind.part(block, parameter);
                let either = |block| if *scores { part(block) } else { Pointer::NULL };
                let matrix = weightmask::cuda::Scored {
                    weights: part(Block::Weights),
                    scores: either(Block::Scores),
                    length: parameter.span(),
                    first,
                };
                let how = weightmask::cuda::ScoreGradients {
                    keep: if *function == MaskFunction::Bits { bind.bits(first) } else { Pointer::NULL },
                    key: or_null(key.map(ints)),
                    penalty: vector(*penalty),
                    share: 1.0 / parameter.len().max(1) as f32,
                    gradients: part(Block::Gradients),
                    of_scores: either(of_scores),
                    trained: parameter.trainable,
                };
                weightmask::cuda::score_gradients(queue, matrix, how);
            }
        }
        Op::MeanSigmoid { shift, temperature, out } => {
            for (number, (parameter, _)) in bind.masked().enumerate() {
                weightmask::cuda::mean_sigmoid(
                    queue,
                    bind.part(Block::Scores, parameter),
                    parameter.span(),
                    parameter.len(),
                    *shift,
                    *temperature,
                    vector(*out).offset(number),
                );
            }
        }
        Op::AbsoluteCosine { x, out } => {
            let x = in_f32(queue, matrix(*x));
            similarity::cuda::absolute_cosine(queue, x, matrix(*out));
        }
        Op::ProfileDistance { cosine, out } => {
            similarity::cuda::profile_distance(queue, matrix(*cosine), matrix(*out));
        }
        Op::DimensionMapping { cosine, head_dim, out } => {
            mapping::cuda::dimension_mapping(queue, matrix(*cosine), *head_dim, matrix(*out));
        }
        Op::MeanAbsolute { x, group, out } => {
            reduce::cuda::mean_absolute(queue, matrix(*x), *group, vector(*out));
        }
        Op::ColumnMoments { x, out } => reduce::cuda::column_moments(queue, matrix(*x), matrix(*out)),
        Op::GaussianKernel { x, scale, out } => {
            let x = in_f32(queue, matrix(*x));
            seminmf::cuda::gaussian_kernel(queue, x, *scale, matrix(*out));
        }
        Op::SemiNmfStart { kernel, c, growth } => {
            seminmf::cuda::first_update(queue, matrix(*kernel), matrix(*c), vector(*growth));
        }
        Op::SemiNmfUpdate { kernel, c, growth } => {
            seminmf::cuda::multiplicative_update(queue, matrix(*kernel), matrix(*c), vector(*growth));
        }
        Op::ColumnProducts { x, y, out } => {
            reduce::cuda::column_products(queue, matrix(*x), matrix(*y), vector(*out));
        }
    }
}

/// The matrix, converted to f32 in scratch if it is not f32.
fn in_f32(queue: &mut Queue, matrix: Matrix) -> Matrix {
    match matrix.element {
        ElementType::F32 => matrix,
        ElementType::Bf16 => widened(queue, matrix),
    }
}
