//! Emission of losses, where gradients start.
//!
//! The loss of a program is Σ weight·loss of all rows of all its losses. Each writes its losses by row, readable after the
//! run, and where gradients are wanted the gradient of what it read, weights included. The first loss of a slot writes
//! that gradient and later ones add to it; one whose kernel cannot add must be the first.

use super::builder::Builder;
use super::op::Op;
use super::slot::{Element, Extent, ParameterId, SlotId, Storage};

impl Builder {
    /// Gradient slot a loss writes for `slot`, and whether another loss has written it before.
    fn loss_gradient(&mut self, slot: SlotId) -> (Option<SlotId>, bool) {
        if !self.mode.differentiates() {
            return (None, false);
        }
        if let Some(&gradient) = self.gradient.get(&slot) {
            return (Some(gradient), true);
        }
        let (rows, cols) = self.shape(slot);
        let name = format!("d {}", self.name(slot));
        let gradient = self.temporary(name, rows, cols);
        self.gradient.insert(slot, gradient);
        (Some(gradient), false)
    }

    fn losses(&mut self, name: &str, rows: Extent) -> SlotId {
        self.slot(name, rows, 1, Element::Float, Storage::Output)
    }

    /// Cross-entropy of `logits` by row; returns the losses `[rows, 1]`. Must be the first loss of its logits.
    pub fn cross_entropy(&mut self, name: &str, logits: SlotId, labels: SlotId, weights: SlotId) -> SlotId {
        let losses = self.losses(name, self.shape(logits).0);
        let (dlogits, accumulate) = self.loss_gradient(logits);
        assert!(!accumulate, "{name}: cross-entropy comes before other losses of the same logits");
        self.push(Op::CrossEntropy { logits, labels, weights, losses, dlogits });
        losses
    }

    /// Cross-entropy of `x Wᵀ + b` without stored logits, W `[V, d]`; returns the losses `[rows, 1]`.
    pub fn linear_cross_entropy(
        &mut self,
        name: &str,
        x: SlotId,
        weight: ParameterId,
        bias: Option<ParameterId>,
        labels: SlotId,
        weights: SlotId,
    ) -> SlotId {
        let w = self.parameter(weight);
        let bias_slot = bias.map(|b| self.parameter(b));
        let losses = self.losses(name, self.shape(x).0);
        let (dx, accumulate) = self.loss_gradient(x);
        assert!(!accumulate, "{name}: the fused loss must be the first loss of its input");
        let dw = self.parameter_gradient(w);
        let dbias = bias_slot.and_then(|b| self.parameter_gradient(b));
        self.push(Op::LinearCrossEntropy { x, w, bias: bias_slot, labels, weights, losses, dx, dw, dbias });
        losses
    }

    /// Squared error of `x [rows, 1]`; returns the losses.
    pub fn mean_squared_error(&mut self, name: &str, x: SlotId, targets: SlotId, weights: SlotId) -> SlotId {
        let losses = self.losses(name, self.shape(x).0);
        let (dx, accumulate) = self.loss_gradient(x);
        self.push(Op::MeanSquaredError { x, targets, weights, losses, dx, accumulate });
        losses
    }

    /// Span loss of `logits [T, 2]`; returns the losses `[B, 1]`.
    pub fn span_loss(
        &mut self,
        name: &str,
        logits: SlotId,
        [starts, ends]: [SlotId; 2],
        cu_seqlens: SlotId,
        weights: SlotId,
    ) -> SlotId {
        let losses = self.losses(name, Extent::Sequences);
        let (dlogits, accumulate) = self.loss_gradient(logits);
        assert!(!accumulate, "{name}: the span loss comes before other losses of the same logits");
        self.push(Op::SpanLoss { logits, starts, ends, cu_seqlens, weights, losses, dlogits });
        losses
    }

    /// Distillation loss of `student` against `teacher` logits; returns the losses by row.
    pub fn distillation(
        &mut self,
        name: &str,
        student: SlotId,
        teacher: SlotId,
        temperature: f32,
        weights: SlotId,
    ) -> SlotId {
        let losses = self.losses(name, self.shape(student).0);
        let (dstudent, accumulate) = self.loss_gradient(student);
        self.push(Op::Distillation { student, teacher, temperature, weights, losses, dstudent, accumulate });
        losses
    }

    /// Distillation loss of the start and end `student [T, 2]` over each sequence's tokens; returns the losses `[B, 1]`.
    pub fn span_distillation(
        &mut self,
        name: &str,
        [student, teacher]: [SlotId; 2],
        temperature: f32,
        cu_seqlens: SlotId,
        weights: SlotId,
    ) -> SlotId {
        let losses = self.losses(name, Extent::Sequences);
        let (dstudent, accumulate) = self.loss_gradient(student);
        self.push(Op::SpanDistillation {
            student,
            teacher,
            temperature,
            cu_seqlens,
            weights,
            losses,
            dstudent,
            accumulate,
        });
        losses
    }

    /// Contrastive loss of the directions of `x [R, d]` over the bank `[K, d]`; `ids` and `labels` are those of the queries and
    /// of the bank. Returns the losses `[R, 2]`.
    pub fn contrastive(
        &mut self,
        name: &str,
        x: SlotId,
        bank: SlotId,
        [ids, bank_ids]: [SlotId; 2],
        labels: Option<[SlotId; 2]>,
        temperature: f32,
        weights: SlotId,
    ) -> SlotId {
        let (rows, _) = self.shape(x);
        let losses = self.slot(name, rows, 2, Element::Float, Storage::Output);
        let scales = self.temporary(format!("{name}.scales"), rows, 1);
        let (dx, accumulate) = self.loss_gradient(x);
        self.push(Op::Contrastive {
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
        });
        losses
    }
}
