//! The operations. Semantic and fused: one variant is one kernel family call, on every executor.
//!
//! Every executor matches on [`Op`] exhaustively, so an operation exists everywhere or does not compile.
//! Which of an operation's slots are read and which written is said apart, by [`Op::visit`].

use super::slot::SlotId;
pub use crate::ops::activation::Activation;
pub use crate::ops::dropout::Dropout;
pub use crate::ops::optimizer::AdamWForm;
pub use crate::ops::weightmask::MaskFunction;

/// A dropout site and the slot that holds the random key `[seed low, seed high, draw]` of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutSite {
    /// Probability and site number.
    pub dropout: Dropout,
    /// Integer slot `[1, 3]`.
    pub key: SlotId,
}

/// What happens to a product tile before it is stored, in this order:
/// `z = Σ a·b + bias (+ C)`, `preactivation ← z`, `y = activation(z) · neuron_mask`, dropout, `+ residual`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Epilogue {
    /// `[1, n]`.
    pub bias: Option<SlotId>,
    /// Adds the old content of C.
    pub accumulate: bool,
    /// Element-wise function.
    pub activation: Option<Activation>,
    /// `[m, n]`, receives z; saved for the backward pass.
    pub preactivation: Option<SlotId>,
    /// `[1, n]`; columns with mask 0 are not computed.
    pub neuron_mask: Option<SlotId>,
    /// Computes columns with mask 0 too: the gradient of the mask needs their pre-activation.
    pub compute_masked: bool,
    /// Dropout of the result.
    pub dropout: Option<DropoutSite>,
    /// `[m, n]`, added last.
    pub residual: Option<SlotId>,
    /// `[1, k]`; a promise that column k of A is zero where this is, so the product may skip it.
    pub inner_mask: Option<SlotId>,
}

/// Shape and kind of an attention operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads present in this layer.
    pub heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Factor of the scores, 1/√head_dim as a rule.
    pub scale: f32,
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
}

/// One operation. Shapes: T tokens, B sequences, R targets, S samples, d hidden size, V vocabulary.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Fields are named by role; shapes stand in each variant's description.
pub enum Op {
    /// `out[t] = word[ids[t]] + position[positions[t]] + token_type[token_types[t]]`, `[T, d]`.
    Embed {
        ids: SlotId,
        positions: SlotId,
        token_types: Option<SlotId>,
        word: SlotId,
        position: Option<SlotId>,
        token_type: Option<SlotId>,
        out: SlotId,
    },
    /// Adds `dout [T, d]` to the rows of the wanted table gradients.
    EmbedBackward {
        ids: SlotId,
        positions: SlotId,
        token_types: Option<SlotId>,
        dout: SlotId,
        dword: Option<SlotId>,
        dposition: Option<SlotId>,
        dtoken_type: Option<SlotId>,
    },
    /// `C [m, n] = op(A)·op(B)` and the epilogue.
    Gemm { a: SlotId, transpose_a: bool, b: SlotId, transpose_b: bool, c: SlotId, epilogue: Epilogue },
    /// `out [1, n] += Σ_rows x [m, n]` (bias gradients).
    ColumnSum { x: SlotId, out: SlotId },
    /// `y = dropout(bias) + residual`, every row: a sublayer of which only the output bias is left.
    BiasResidual { bias: SlotId, dropout: Option<DropoutSite>, residual: SlotId, y: SlotId },
    /// `y = (x − mean)·rstd·gamma + beta` over the columns; saves `mean`, `rstd [T, 1]`.
    LayerNorm { x: SlotId, gamma: SlotId, beta: SlotId, epsilon: f32, y: SlotId, mean: SlotId, rstd: SlotId },
    /// Gradients of LayerNorm; `dgamma`, `dbeta` accumulate, `dx` when told to.
    LayerNormBackward {
        dy: SlotId,
        x: SlotId,
        gamma: SlotId,
        mean: SlotId,
        rstd: SlotId,
        dx: SlotId,
        accumulate: bool,
        dgamma: Option<SlotId>,
        dbeta: Option<SlotId>,
    },
    /// Context `out [T, H·d_h] = softmax(scale·q kᵀ)·v · mask_h` within each sequence; `lse [T, H]` is saved,
    /// `unmasked` receives the context before the mask when mask gradients are wanted.
    Attention {
        q: SlotId,
        k: SlotId,
        v: SlotId,
        cu_seqlens: SlotId,
        shape: AttentionShape,
        head_mask: Option<SlotId>,
        dropout: Option<DropoutSite>,
        out: SlotId,
        lse: SlotId,
        unmasked: Option<SlotId>,
    },
    /// Gradients of attention; `dmask [B, H]` is exact per sequence. `rows [B]` is a promise that of each sequence only this
    /// token's row of `dout` is not zero, so that the other queries may be skipped.
    AttentionBackward {
        q: SlotId,
        k: SlotId,
        v: SlotId,
        out: SlotId,
        dout: SlotId,
        rows: Option<SlotId>,
        lse: SlotId,
        unmasked: Option<SlotId>,
        cu_seqlens: SlotId,
        shape: AttentionShape,
        head_mask: Option<SlotId>,
        dropout: Option<DropoutSite>,
        dq: SlotId,
        dk: SlotId,
        dv: SlotId,
        dmask: Option<SlotId>,
    },
    /// `dx = dy · mask · act'(preactivation)`; `dmask [B, n]` is `Σ_t dy · act(preactivation)` per sequence.
    ActivationBackward {
        kind: Activation,
        dy: SlotId,
        preactivation: SlotId,
        mask: Option<SlotId>,
        dx: SlotId,
        dmask: Option<SlotId>,
        cu_seqlens: Option<SlotId>,
    },
    /// `y = dropout(x)`; also its own backward.
    Dropout { x: SlotId, y: SlotId, site: DropoutSite },
    /// `y[i] = x[rows[i]]`.
    Gather { x: SlotId, rows: SlotId, y: SlotId },
    /// `dx[rows[i]] += dy[i]`, after zeroing `dx` unless accumulating. The backward of `Gather`; without accumulating also a
    /// forward operation, sums of rows.
    ScatterAdd { dy: SlotId, rows: SlotId, dx: SlotId, accumulate: bool },
    /// `y += x`.
    Add { x: SlotId, y: SlotId },
    /// Row-wise cross-entropy of `logits [R, C]`; ignored where `labels` is −100 or the weight is 0.
    /// `dlogits = weight · gradient`.
    CrossEntropy { logits: SlotId, labels: SlotId, weights: SlotId, losses: SlotId, dlogits: Option<SlotId> },
    /// Cross-entropy of `x wᵀ + bias` without storing the logits; gradients in the same pass
    /// (`dw`, `dbias` accumulate, `dx` is written).
    LinearCrossEntropy {
        x: SlotId,
        w: SlotId,
        bias: Option<SlotId>,
        labels: SlotId,
        weights: SlotId,
        losses: SlotId,
        dx: Option<SlotId>,
        dw: Option<SlotId>,
        dbias: Option<SlotId>,
    },
    /// `(x − target)²` row by row, `x [R, 1]`.
    MeanSquaredError {
        x: SlotId,
        targets: SlotId,
        weights: SlotId,
        losses: SlotId,
        dx: Option<SlotId>,
        accumulate: bool,
    },
    /// Half the sum of start and end cross-entropy over each sequence's own tokens, `logits [T, 2]`.
    SpanLoss {
        logits: SlotId,
        starts: SlotId,
        ends: SlotId,
        cu_seqlens: SlotId,
        weights: SlotId,
        losses: SlotId,
        dlogits: Option<SlotId>,
    },
    /// `t²·KL(softmax(teacher/t) ‖ softmax(student/t))` row by row; its gradient accumulates when told to.
    Distillation {
        student: SlotId,
        teacher: SlotId,
        temperature: f32,
        weights: SlotId,
        losses: SlotId,
        dstudent: Option<SlotId>,
        accumulate: bool,
    },
    /// [`Op::Distillation`] of the start and the end of an answer, their mean, over each sequence's own tokens: `student`,
    /// `teacher [T, 2]`, `weights`, `losses [B, 1]`; its gradient accumulates when told to.
    SpanDistillation {
        student: SlotId,
        teacher: SlotId,
        temperature: f32,
        cu_seqlens: SlotId,
        weights: SlotId,
        losses: SlotId,
        dstudent: Option<SlotId>,
        accumulate: bool,
    },
    /// Contrastive loss of the directions of `x [R, d]` over a bank `[K, d]` and over one another: `losses [R, 2]` for the
    /// positives of the same example (`ids [R]`, `bank_ids [K]`, a negative one being no row) and of the same label
    /// (`labels [R]` and `[K]`), `weights [1, 2]`; `scales [R, 1]` receives 1/‖x‖. The gradient accumulates when told to.
    Contrastive {
        x: SlotId,
        bank: SlotId,
        ids: SlotId,
        bank_ids: SlotId,
        labels: Option<[SlotId; 2]>,
        temperature: f32,
        weights: SlotId,
        losses: SlotId,
        scales: SlotId,
        dx: Option<SlotId>,
        accumulate: bool,
    },
    /// Zeroes the whole gradient block.
    ZeroGradients,
    /// `norm [1, 2] = [‖gradients‖₂ over trained parameters, min(1, max_norm / (norm + 1e-6))]`; over the scores of
    /// weight masks too where told so.
    ClipFactor { max_norm: f32, scores: bool, norm: SlotId },
    /// One AdamW step of every trained parameter (of a masked one the weights behind its mask), or of the scores in their
    /// place. `hyper [1, 7]` = learning rate, β₁, β₂, ε, weight decay (matrices only, never scores), 1 − β₁^s,
    /// 1 − β₂^s; `norm` as [`Op::ClipFactor`] wrote it.
    AdamW { form: AdamWForm, scores: bool, hyper: SlotId, norm: SlotId },
    /// Bits of the weights to keep: of each of M masked matrices (of all together where `global`) the largest scores, or
    /// the largest |weights| with `magnitude`. `counts [M or 1]` says how many; with `threshold [1, 1]` those above it
    /// are kept, but at least `counts`. `kept [1, M or 1]` receives how many were. Of equal scores the first are kept.
    SelectMasks { magnitude: bool, global: bool, counts: SlotId, threshold: Option<SlotId>, kept: SlotId },
    /// Masked parameters = underlying weights ⊙ mask; a weight whose bit is 0 becomes +0. `key` is the random key of a
    /// noisy mask.
    ApplyMasks { function: MaskFunction, key: Option<SlotId> },
    /// Gradients of scores and underlying weights from those of the masked parameters, in place in the gradient block
    /// where the weights are frozen. `penalty [1, 1]` is λ / M of the regulariser λ·mean over matrices of mean σ(S).
    ScoreGradients { function: MaskFunction, key: Option<SlotId>, scores: bool, penalty: SlotId },
    /// `out [1, M]`: mean of σ((S + shift) / temperature) over each masked matrix.
    MeanSigmoid { shift: f32, temperature: f32, out: SlotId },
    /// `out [n, n] = |cos|` of the columns of `x [S, n]`; zero columns give 0.
    AbsoluteCosine { x: SlotId, out: SlotId },
    /// `out [n, n]_ij = max_k |D_ik − D_jk|` with `D = 1 − cosine`.
    ProfileDistance { cosine: SlotId, out: SlotId },
    /// Greedy dimension mapping of all head pairs: `cosine [H·d_h, H·d_h]` to `out [H, H]`.
    DimensionMapping { cosine: SlotId, head_dim: usize, out: SlotId },
    /// `out [1, n / group]`: mean |x| over the rows and over `group` neighbouring columns of `x [S, n]`.
    MeanAbsolute { x: SlotId, group: usize, out: SlotId },
    /// `out [3, n]` = Σ x, Σ |x|, Σ x² over the rows of `x [T, n]`.
    ColumnMoments { x: SlotId, out: SlotId },
    /// `out [n, n]_ij = exp(−‖x_i − x_j‖² / scale)` of the rows of `x [n, d]`.
    GaussianKernel { x: SlotId, scale: f32, out: SlotId },
    /// `c [n, n]` after the first update of kernel Semi-NMF from 1/n everywhere under `kernel [n, n]`;
    /// `growth [1, 1] = (Σ c_new − Σ c_old) / Σ c_old`.
    SemiNmfStart { kernel: SlotId, c: SlotId, growth: SlotId },
    /// `c ← c ∘ √(kernel ⊘ (kernel·c))`, all `[n, n]`, `kernel` symmetric; `growth` as [`Op::SemiNmfStart`].
    SemiNmfUpdate { kernel: SlotId, c: SlotId, growth: SlotId },
    /// `out [1, n] = Σ_t x[t, j]·y[t, j]`, `x`, `y [T, n]`: with y the gradient of x, the gradient of a mask of ones on the
    /// columns of x; with y = x, their sums of squares.
    ColumnProducts { x: SlotId, y: SlotId, out: SlotId },
}

impl Op {
    /// Name of the operation in print-outs, errors and timings.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::EmbedBackward { .. } => "embed_backward",
            Op::Gemm { .. } => "gemm",
            Op::ColumnSum { .. } => "column_sum",
            Op::BiasResidual { .. } => "bias_residual",
            Op::LayerNorm { .. } => "layer_norm",
            Op::LayerNormBackward { .. } => "layer_norm_backward",
            Op::Attention { .. } => "attention",
            Op::AttentionBackward { .. } => "attention_backward",
            Op::ActivationBackward { .. } => "activation_backward",
            Op::Dropout { .. } => "dropout",
            Op::Gather { .. } => "gather",
            Op::ScatterAdd { .. } => "scatter_add",
            Op::Add { .. } => "add",
            Op::CrossEntropy { .. } => "cross_entropy",
            Op::LinearCrossEntropy { .. } => "linear_cross_entropy",
            Op::MeanSquaredError { .. } => "mean_squared_error",
            Op::SpanLoss { .. } => "span_loss",
            Op::Distillation { .. } => "distillation",
            Op::SpanDistillation { .. } => "span_distillation",
            Op::Contrastive { .. } => "contrastive",
            Op::ZeroGradients => "zero_gradients",
            Op::ClipFactor { .. } => "clip_factor",
            Op::AdamW { .. } => "adamw",
            Op::SelectMasks { .. } => "select_masks",
            Op::ApplyMasks { .. } => "apply_masks",
            Op::ScoreGradients { .. } => "score_gradients",
            Op::MeanSigmoid { .. } => "mean_sigmoid",
            Op::AbsoluteCosine { .. } => "absolute_cosine",
            Op::ProfileDistance { .. } => "profile_distance",
            Op::DimensionMapping { .. } => "dimension_mapping",
            Op::MeanAbsolute { .. } => "mean_absolute",
            Op::ColumnMoments { .. } => "column_moments",
            Op::GaussianKernel { .. } => "gaussian_kernel",
            Op::SemiNmfStart { .. } => "semi_nmf_start",
            Op::SemiNmfUpdate { .. } => "semi_nmf_update",
            Op::ColumnProducts { .. } => "column_products",
        }
    }
}
