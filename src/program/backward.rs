//! The backward pass: one rule an operation, applied to the forward list in reverse.
//!
//! There is no tape. The forward list is data, so its gradient is another list, emitted once. The exhaustive
//! match means that an operation without a gradient rule does not compile, and a parameter that trains must end
//! up in exactly the gradient operations its uses imply (tied weights have two), which tests assert.
//!
//! Residual additions cost nothing here: the gradient of a residual *is* the gradient slot of the sum, into which
//! later contributions accumulate.

use std::collections::HashSet;

use super::access::Access;
use super::builder::Builder;
use super::op::{DropoutSite, Epilogue, Op};
use super::slot::{Element, Extent, SlotId, Storage};

impl Builder {
    /// Appends the gradient operations of everything emitted so far. Loss operations have written the gradients
    /// of their logits; parameter gradients accumulate into the gradient block, which the caller zeroes once a
    /// step ([`Op::ZeroGradients`]).
    pub fn backward(&mut self) {
        assert!(self.mode.differentiates(), "a backward pass needs a mode with gradients");
        self.program.forward_len = self.program.ops.len();
        let required = self.required();
        for index in (0..self.program.forward_len).rev() {
            let op = self.program.ops[index].clone();
            self.emit_column_gradients(&op);
            self.emit_gradient_of(op, &required);
        }
        for &(slot, gradient) in &self.wanted_columns {
            assert!(gradient.is_some(), "the loss does not depend on {}", self.name(slot));
        }
        for mask in self.wanted_masks.clone() {
            assert!(self.gradient.contains_key(&mask), "no operation gave {} a gradient", self.name(mask));
        }
    }

    /// The gradient slot of `slot`, once a backward pass or a loss has made one.
    pub fn gradient_of(&self, slot: SlotId) -> Option<SlotId> {
        self.gradient.get(&slot).copied()
    }

    /// The gradient of a mask of ones on the columns of `slot`, `[1, n]`, once a backward pass has made it.
    pub fn column_gradient_of(&self, slot: SlotId) -> Option<SlotId> {
        self.wanted_columns.iter().find(|wanted| wanted.0 == slot).and_then(|wanted| wanted.1)
    }

    /// Products with the wanted gradients of what `op` wrote: all that comes after `op` has added to them by now.
    fn emit_column_gradients(&mut self, op: &Op) {
        let mut written = Vec::new();
        op.visit(|slot, access| {
            if access != Access::Read {
                written.push(slot);
            }
        });
        for i in 0..self.wanted_columns.len() {
            let (slot, done) = self.wanted_columns[i];
            if done.is_none()
                && written.contains(&slot)
                && let Some(gradient) = self.gradient_of(slot)
            {
                let name = format!("mask of {}", self.name(slot));
                self.wanted_columns[i].1 = Some(self.column_products(name, slot, gradient));
            }
        }
    }

    /// Slots through which a wanted gradient flows.
    fn required(&self) -> HashSet<SlotId> {
        let mut required: HashSet<SlotId> = self.wanted_masks.iter().copied().collect();
        required.extend(self.wanted_columns.iter().map(|wanted| wanted.0));
        for (id, slot) in self.program.slots() {
            if let Storage::Parameter(parameter) = slot.storage
                && self.mode.gradients
                && self.program.layout.get(parameter).differentiated()
            {
                required.insert(id);
            }
        }
        for op in &self.program.ops {
            let mut flows = false;
            op.visit(|slot, access| {
                flows |= access != Access::Write
                    && (required.contains(&slot) || required.contains(&self.program.root(slot)));
            });
            if flows {
                op.visit(|slot, access| {
                    if access != Access::Read {
                        required.insert(slot);
                        required.insert(self.program.root(slot));
                    }
                });
            }
        }
        required
    }

    fn is_required(&self, slot: SlotId, required: &HashSet<SlotId>) -> bool {
        required.contains(&slot) || required.contains(&self.program.root(slot))
    }

    /// Where a contribution to the gradient of activation `slot` goes, and whether it accumulates.
    fn contribution(&mut self, slot: SlotId, required: &HashSet<SlotId>) -> Option<(SlotId, bool)> {
        if !self.is_required(slot, required) {
            return None;
        }
        if let Some(&gradient) = self.gradient.get(&slot) {
            return Some((gradient, true));
        }
        Some((self.new_gradient(slot), false))
    }

    fn new_gradient(&mut self, slot: SlotId) -> SlotId {
        let name = format!("d {}", self.name(slot));
        let (rows, cols) = self.shape(slot);
        let gradient = match self.program.slot(slot).storage {
            Storage::Alias { of, column } => {
                let parent = match self.gradient.get(&of) {
                    Some(&parent) => parent,
                    None => self.new_gradient(of),
                };
                self.columns(name, parent, column, cols)
            }
            _ => self.temporary(name, rows, cols),
        };
        self.gradient.insert(slot, gradient);
        gradient
    }

    /// Like [`Builder::contribution`] for operations that can only write. None of the model families has a second
    /// consumer of such a slot; one that had would need an `Add`.
    fn sole_contribution(&mut self, slot: SlotId, required: &HashSet<SlotId>) -> Option<SlotId> {
        let (gradient, accumulate) = self.contribution(slot, required)?;
        assert!(!accumulate, "{} has a second consumer", self.name(slot));
        Some(gradient)
    }

    /// The gradient of the residual input is that of the sum itself, unless it has contributions already.
    fn residual_contribution(&mut self, residual: SlotId, dy: SlotId, required: &HashSet<SlotId>) {
        if !self.is_required(residual, required) {
            return;
        }
        match self.gradient.get(&residual) {
            Some(&gradient) => self.push(Op::Add { x: dy, y: gradient }),
            None => {
                self.gradient.insert(residual, dy);
            }
        }
    }

    /// Gradient before a fused dropout.
    fn through_dropout(&mut self, y: SlotId, dy: SlotId, dropout: Option<DropoutSite>) -> SlotId {
        let Some(site) = dropout else { return dy };
        let (rows, cols) = self.shape(y);
        let before = self.temporary(format!("d {} before dropout", self.name(y)), rows, cols);
        self.push(Op::Dropout { x: dy, y: before, site });
        before
    }

    fn mask_gradient(&mut self, mask: Option<SlotId>) -> Option<SlotId> {
        let mask = mask.filter(|m| self.wanted_masks.contains(m))?;
        let (_, cols) = self.shape(mask);
        let name = format!("d {}", self.name(mask));
        let gradient = self.slot(name, Extent::Sequences, cols, Element::Float, Storage::Output);
        let previous = self.gradient.insert(mask, gradient);
        assert!(previous.is_none(), "a mask is used by one operation");
        Some(gradient)
    }

    fn emit_gradient_of(&mut self, op: Op, required: &HashSet<SlotId>) {
        match op {
            Op::Embed { ids, positions, token_types, word, position, token_type, out } => {
                let Some(dout) = self.gradient_of(out) else { return };
                let dword = self.parameter_gradient(word);
                let dposition = position.and_then(|p| self.parameter_gradient(p));
                let dtoken_type = token_type.and_then(|t| self.parameter_gradient(t));
                if dword.or(dposition).or(dtoken_type).is_some() {
                    self.push(Op::EmbedBackward {
                        ids,
                        positions,
                        token_types,
                        dout,
                        dword,
                        dposition,
                        dtoken_type,
                    });
                }
            }
            Op::Gemm { a, transpose_a, b, transpose_b, c, epilogue } => {
                assert!(!transpose_a && !epilogue.accumulate, "not a form that models emit");
                let Some(dy) = self.gradient_of(c) else { return };
                self.gemm_gradient(a, b, transpose_b, c, dy, epilogue, required);
            }
            Op::BiasResidual { bias, dropout, residual, y } => {
                let Some(dy) = self.gradient_of(y) else { return };
                let before = self.through_dropout(y, dy, dropout);
                if let Some(dbias) = self.parameter_gradient(bias) {
                    self.push(Op::ColumnSum { x: before, out: dbias });
                }
                self.residual_contribution(residual, dy, required);
            }
            Op::LayerNorm { x, gamma, beta, epsilon: _, y, mean, rstd } => {
                let Some(dy) = self.gradient_of(y) else { return };
                let dgamma = self.parameter_gradient(gamma);
                let dbeta = self.parameter_gradient(beta);
                let (dx, accumulate) = match self.contribution(x, required) {
                    Some(found) => found,
                    None if dgamma.or(dbeta).is_some() => (self.new_gradient(x), false),
                    None => return,
                };
                self.push(Op::LayerNormBackward { dy, x, gamma, mean, rstd, dx, accumulate, dgamma, dbeta });
            }
            Op::Attention { q, k, v, cu_seqlens, shape, head_mask, dropout, out, lse, unmasked } => {
                let Some(dout) = self.gradient_of(out) else { return };
                let dmask = self.mask_gradient(head_mask);
                if dmask.is_none() && ![q, k, v].iter().any(|&slot| self.is_required(slot, required)) {
                    return;
                }
                // dq, dk, dv are computed together; where only a mask gradient is wanted they are discarded.
                let mut gradient = |slot| match self.sole_contribution(slot, required) {
                    Some(gradient) => gradient,
                    None => self.new_gradient(slot),
                };
                let (dq, dk, dv) = (gradient(q), gradient(k), gradient(v));
                // A query's gradient is zero where its context's is.
                let rows = self.gradient_rows.get(&out).copied();
                if let Some(rows) = rows {
                    self.gradient_rows.insert(q, rows);
                }
                self.push(Op::AttentionBackward {
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
                });
            }
            Op::Dropout { x, y, site } => {
                let Some(dy) = self.gradient_of(y) else { return };
                if let Some(dx) = self.sole_contribution(x, required) {
                    self.push(Op::Dropout { x: dy, y: dx, site });
                }
            }
            Op::Gather { x, rows, y } => {
                let Some(dy) = self.gradient_of(y) else { return };
                if let Some((dx, accumulate)) = self.contribution(x, required) {
                    self.push(Op::ScatterAdd { dy, rows, dx, accumulate });
                }
            }
            // Sums of rows, in a forward pass: each row's gradient is that of its sum.
            Op::ScatterAdd { dy: x, rows, dx: y, accumulate: false } => {
                let Some(dy) = self.gradient_of(y) else { return };
                match self.contribution(x, required) {
                    None => {}
                    Some((dx, false)) => self.push(Op::Gather { x: dy, rows, y: dx }),
                    Some((dx, true)) => {
                        let more = self.gather(&format!("{} from {}", self.name(dx), self.name(y)), dy, rows);
                        self.push(Op::Add { x: more, y: dx });
                    }
                }
            }
            // Losses write the gradients of their logits themselves.
            Op::CrossEntropy { .. }
            | Op::LinearCrossEntropy { .. }
            | Op::MeanSquaredError { .. }
            | Op::SpanLoss { .. }
            | Op::Distillation { .. }
            | Op::SpanDistillation { .. }
            | Op::Contrastive { .. } => {}
            // Measurements of activations; nothing is differentiated through them.
            Op::AbsoluteCosine { .. }
            | Op::ProfileDistance { .. }
            | Op::DimensionMapping { .. }
            | Op::MeanAbsolute { .. }
            | Op::ColumnProducts { .. }
            | Op::ColumnMoments { .. }
            | Op::GaussianKernel { .. }
            | Op::SemiNmfStart { .. }
            | Op::SemiNmfUpdate { .. } => {}
            Op::EmbedBackward { .. }
            | Op::ColumnSum { .. }
            | Op::LayerNormBackward { .. }
            | Op::AttentionBackward { .. }
            | Op::ActivationBackward { .. }
            | Op::ScatterAdd { .. }
            | Op::Add { .. }
            | Op::ZeroGradients
            | Op::ClipFactor { .. }
            | Op::AdamW { .. }
            | Op::SelectMasks { .. }
            | Op::ApplyMasks { .. }
            | Op::ScoreGradients { .. }
            | Op::MeanSigmoid { .. } => panic!("{} has no place in a forward pass", op.name()),
        }
    }

    fn gemm_gradient(
        &mut self,
        a: SlotId,
        b: SlotId,
        transpose_b: bool,
        c: SlotId,
        dy: SlotId,
        epilogue: Epilogue,
        required: &HashSet<SlotId>,
    ) {
        // Where the wanted gradients end at C, what lies below needs none.
        let flows = self.mode.gradients
            || self.is_required(a, required)
            || epilogue.residual.is_some_and(|residual| self.is_required(residual, required))
            || epilogue.neuron_mask.is_some_and(|mask| self.wanted_masks.contains(&mask));
        if !flows {
            return;
        }
        let mut dz = self.through_dropout(c, dy, epilogue.dropout);
        if let Some(kind) = epilogue.activation {
            let Some(preactivation) = epilogue.preactivation else {
                panic!("{} did not save its pre-activation", self.name(c));
            };
            let dmask = self.mask_gradient(epilogue.neuron_mask);
            let cu_seqlens = dmask.map(|_| self.cu_seqlens());
            let (rows, cols) = self.shape(c);
            let dx = self.temporary(format!("d {}", self.name(preactivation)), rows, cols);
            let mask = epilogue.neuron_mask;
            self.push(Op::ActivationBackward { kind, dy: dz, preactivation, mask, dx, dmask, cu_seqlens });
            dz = dx;
        } else {
            assert!(epilogue.neuron_mask.is_none(), "a neuron mask belongs to an activation");
        }
        if let Some(dbias) = epilogue.bias.and_then(|bias| self.parameter_gradient(bias)) {
            self.push(Op::ColumnSum { x: dz, out: dbias });
        }
        if let Some(dw) = self.parameter_gradient(b) {
            let (left, right) = if transpose_b { (dz, a) } else { (a, dz) };
            let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
            self.push(Op::Gemm { a: left, transpose_a: true, b: right, transpose_b: false, c: dw, epilogue });
        }
        // The product that feeds dA reads dz, which may be the residual's gradient slot: it comes before anything
        // accumulates into that slot.
        if let Some((da, accumulate)) = self.contribution(a, required) {
            let transpose_b = !transpose_b;
            match self.gradient_rows.get(&c).copied() {
                None => {
                    let epilogue = Epilogue { accumulate, ..Epilogue::default() };
                    self.push(Op::Gemm { a: dz, transpose_a: false, b, transpose_b, c: da, epilogue });
                }
                Some(rows) => {
                    let few = self.gather(&format!("rows of {}", self.name(dz)), dz, rows);
                    let (extent, _) = self.shape(few);
                    let name = format!("rows of {} from {}", self.name(da), self.name(c));
                    let dy = self.temporary(name, extent, self.shape(a).1);
                    let epilogue = Epilogue::default();
                    self.push(Op::Gemm { a: few, transpose_a: false, b, transpose_b, c: dy, epilogue });
                    self.push(Op::ScatterAdd { dy, rows, dx: da, accumulate });
                }
            }
        }
        if let Some(residual) = epilogue.residual {
            self.residual_contribution(residual, dy, required);
        }
    }

    /// The row offsets of the batch, by the name every family gives them.
    fn cu_seqlens(&self) -> SlotId {
        match self.program.find("cu_seqlens") {
            Some(slot) => slot,
            None => panic!("per-example gradients need the input cu_seqlens"),
        }
    }
}
