//! Emission: model code calls a [`Builder`] method per operation and gets a [`Program`].
//!
//! The builder allocates result slots, numbers dropout sites and, where gradients are wanted, saves what the
//! backward pass needs. [`Builder::backward`](super::backward) then appends the gradient operations.

use std::collections::HashMap;
use std::sync::Arc;

use super::layout::ParameterLayout;
use super::op::{Activation, AttentionShape, Dropout, DropoutSite, Epilogue, Op};
use super::slot::{Element, Extent, ParameterId, Slot, SlotId, Storage};

/// A list of operations over named slots.
#[derive(Clone, Debug)]
pub struct Program {
    pub(crate) name: String,
    pub(crate) layout: Arc<ParameterLayout>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) ops: Vec<Op>,
    /// Operations before this index are the forward pass.
    pub(crate) forward_len: usize,
    pub(crate) by_name: HashMap<String, SlotId>,
}

impl Program {
    /// What the program is for: "bert forward", "adamw".
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The parameter block it works on.
    pub fn layout(&self) -> &Arc<ParameterLayout> {
        &self.layout
    }
    /// All operations in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }
    /// The operations of the forward pass.
    pub fn forward_ops(&self) -> &[Op] {
        &self.ops[..self.forward_len]
    }
    /// Whether a backward pass follows the forward pass.
    pub fn differentiates(&self) -> bool {
        self.forward_len < self.ops.len()
    }
    /// The slot `id`.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.index()]
    }
    /// All slots with their numbers.
    pub fn slots(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        self.slots.iter().enumerate().map(|(i, s)| (SlotId(i as u32), s))
    }
    /// Looks a slot up by name.
    pub fn find(&self, name: &str) -> Option<SlotId> {
        self.by_name.get(name).copied()
    }
    /// The slot whose memory `id` lives in: itself, or what it is columns of.
    pub fn root(&self, id: SlotId) -> SlotId {
        match self.slot(id).storage {
            Storage::Alias { of, .. } => self.root(of),
            _ => id,
        }
    }
}

/// Which of its two dimensions a weight matrix has first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightOrder {
    /// `[out, in]`, `y = x Wᵀ`: the Linear of BERT, RoBERTa, DistilBERT, OPT.
    OutIn,
    /// `[in, out]`, `y = x W`: the Conv1D of GPT-2.
    InOut,
}

/// A linear layer's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Weight matrix.
    pub weight: ParameterId,
    /// Bias vector, if any.
    pub bias: Option<ParameterId>,
    /// Layout of the weight.
    pub order: WeightOrder,
}

/// What is fused into a linear layer after its product, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fused {
    /// Element-wise function.
    pub activation: Option<Activation>,
    /// `[1, out]` mask of the activations.
    pub neuron_mask: Option<SlotId>,
    /// Dropout probability; 0 is none.
    pub dropout: f32,
    /// Added last.
    pub residual: Option<SlotId>,
    /// `[1, in]` mask the input was already multiplied with; zero columns are skipped.
    pub inner_mask: Option<SlotId>,
}

/// What a program is emitted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mode {
    /// Dropout is applied (training).
    pub dropout: bool,
    /// Parameter gradients will be asked for: losses write theirs, saved slots are kept.
    pub gradients: bool,
    /// Per-example gradients of head and neuron masks will be asked for.
    pub mask_gradients: bool,
}

impl Mode {
    /// Forward only, no dropout.
    pub const EVALUATE: Mode = Mode { dropout: false, gradients: false, mask_gradients: false };
    /// Forward with dropout, loss and gradients.
    pub const TRAIN: Mode = Mode { dropout: true, gradients: true, mask_gradients: false };

    /// Whether a backward pass will be emitted at all.
    pub fn differentiates(self) -> bool {
        self.gradients || self.mask_gradients
    }
}

/// Emits a program.
#[derive(Debug)]
pub struct Builder {
    pub(crate) program: Program,
    pub(crate) mode: Mode,
    /// Gradient slot of each slot that has one.
    pub(crate) gradient: HashMap<SlotId, SlotId>,
    /// Mask slots whose per-example gradients are wanted.
    pub(crate) wanted_masks: Vec<SlotId>,
    /// Slots for whose columns the gradient of a mask of ones is wanted, and where the backward pass puts it.
    pub(crate) wanted_columns: Vec<(SlotId, Option<SlotId>)>,
    /// Slots whose gradient is zero outside some rows, and those rows.
    pub(crate) gradient_rows: HashMap<SlotId, SlotId>,
    parameter_slots: HashMap<ParameterId, SlotId>,
    key: Option<SlotId>,
    sites: u32,
}

impl Builder {
    /// An empty program over the parameters of `layout`.
    pub fn new(name: impl Into<String>, layout: Arc<ParameterLayout>, mode: Mode) -> Builder {
        let program = Program {
            name: name.into(),
            layout,
            slots: Vec::new(),
            ops: Vec::new(),
            forward_len: 0,
            by_name: HashMap::new(),
        };
        Builder {
            program,
            mode,
            gradient: HashMap::new(),
            wanted_masks: Vec::new(),
            wanted_columns: Vec::new(),
            gradient_rows: HashMap::new(),
            parameter_slots: HashMap::new(),
            key: None,
            sites: 0,
        }
    }

    /// What the program is emitted for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The program so far.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Ends the emission. Panics if the program is not well formed: that is a bug of the emitting code.
    pub fn finish(mut self) -> Program {
        if self.program.forward_len == 0 {
            self.program.forward_len = self.program.ops.len();
        }
        if let Err(message) = super::validate::validate(&self.program) {
            panic!("program {} is not well formed: {message}", self.program.name);
        }
        self.program
    }

    // ---- slots -------------------------------------------------------------------------------------------

    pub(crate) fn slot(
        &mut self,
        name: impl Into<String>,
        rows: Extent,
        cols: usize,
        element: Element,
        storage: Storage,
    ) -> SlotId {
        let name = name.into();
        let id = SlotId(self.program.slots.len() as u32);
        let previous = self.program.by_name.insert(name.clone(), id);
        assert!(previous.is_none(), "slot {name} is declared twice");
        self.program.slots.push(Slot { name, rows, cols, element, storage });
        id
    }

    /// A float matrix the host writes.
    pub fn input(&mut self, name: impl Into<String>, rows: Extent, cols: usize) -> SlotId {
        self.slot(name, rows, cols, Element::Float, Storage::Input)
    }

    /// An integer column the host writes.
    pub fn int_input(&mut self, name: impl Into<String>, rows: Extent) -> SlotId {
        self.slot(name, rows, 1, Element::Int, Storage::Input)
    }

    /// The slot of a parameter.
    pub fn parameter(&mut self, id: ParameterId) -> SlotId {
        if let Some(&slot) = self.parameter_slots.get(&id) {
            return slot;
        }
        let parameter = self.program.layout.get(id).clone();
        let rows = Extent::Fixed(parameter.rows);
        let slot = self.slot(parameter.name, rows, parameter.cols, Element::Float, Storage::Parameter(id));
        self.parameter_slots.insert(id, slot);
        slot
    }

    /// A float matrix of the arena.
    pub fn temporary(&mut self, name: impl Into<String>, rows: Extent, cols: usize) -> SlotId {
        self.slot(name, rows, cols, Element::Float, Storage::Temporary)
    }

    /// Columns `start .. start + cols` of `slot`, without copying.
    pub fn columns(&mut self, name: impl Into<String>, slot: SlotId, start: usize, cols: usize) -> SlotId {
        let of = self.program.slot(slot);
        assert!(start + cols <= of.cols, "columns {start}+{cols} of {} which has {}", of.name, of.cols);
        let rows = of.rows;
        self.slot(name, rows, cols, Element::Float, Storage::Alias { of: slot, column: start })
    }

    /// Keeps a temporary (or what it is columns of) readable after the run.
    pub fn keep(&mut self, slot: SlotId) {
        let root = self.program.root(slot);
        let storage = &mut self.program.slots[root.index()].storage;
        if *storage == Storage::Temporary {
            *storage = Storage::Output;
        }
    }

    /// Asks for the per-example gradient of a head or neuron mask: the backward pass will write
    /// `d <mask>`, `[B, units]`.
    pub fn want_mask_gradient(&mut self, mask: SlotId) {
        assert!(self.mode.mask_gradients, "mask gradients need Mode::mask_gradients");
        self.wanted_masks.push(mask);
    }

    /// Asks for the gradient that a mask of ones on the columns of `slot` would have, summed over the batch: the backward
    /// pass will write `mask of <slot>`, `[1, n]` ([`Builder::column_gradient_of`]).
    pub fn want_column_gradient(&mut self, slot: SlotId) {
        assert!(self.mode.mask_gradients, "mask gradients need Mode::mask_gradients");
        self.wanted_columns.push((slot, None));
    }

    /// Promises that the gradient of `slot`, the result of a linear layer or of attention, is zero outside `rows` (of
    /// attention one of each sequence): the backward pass then computes the product, or the queries, of those rows alone.
    pub fn gradient_only_in(&mut self, slot: SlotId, rows: SlotId) {
        self.gradient_rows.insert(slot, rows);
    }

    /// Extents and columns of a slot.
    pub fn shape(&self, slot: SlotId) -> (Extent, usize) {
        let slot = self.program.slot(slot);
        (slot.rows, slot.cols)
    }

    /// Name of a slot.
    pub fn name(&self, slot: SlotId) -> &str {
        &self.program.slot(slot).name
    }

    /// A new dropout site, or `None` where the mode or a probability of 0 turns it off.
    fn site(&mut self, probability: f32) -> Option<DropoutSite> {
        // Sites are numbered even where dropout is off, so that a site keeps its number in every mode.
        let site = self.sites;
        self.sites += 1;
        if !self.mode.dropout || probability == 0.0 {
            return None;
        }
        let key = match self.key {
            Some(key) => key,
            None => {
                let key = self.slot("dropout_key", Extent::Fixed(1), 3, Element::Int, Storage::Input);
                self.key = Some(key);
                key
            }
        };
        Some(DropoutSite { dropout: Dropout { probability, site }, key })
    }

    /// Appends an operation whose slots the caller has made: the few that models do not emit (optimiser, similarity).
    pub fn emit(&mut self, op: Op) {
        self.push(op);
    }

    pub(crate) fn push(&mut self, op: Op) {
        self.program.ops.push(op);
    }

    // ---- operations --------------------------------------------------------------------------------------

    /// Sum of embeddings, `[T, d]`.
    pub fn embed(
        &mut self,
        name: &str,
        ids: SlotId,
        word: ParameterId,
        position: Option<(SlotId, ParameterId)>,
        token_type: Option<(SlotId, ParameterId)>,
    ) -> SlotId {
        let word = self.parameter(word);
        let (rows, _) = self.shape(ids);
        let (_, d) = self.shape(word);
        let out = self.temporary(name, rows, d);
        let positions = position.map_or(ids, |(slot, _)| slot);
        let position = position.map(|(_, table)| self.parameter(table));
        let token_types = token_type.map(|(slot, _)| slot);
        let token_type = token_type.map(|(_, table)| self.parameter(table));
        self.push(Op::Embed { ids, positions, token_types, word, position, token_type, out });
        out
    }

    /// `y = fused(x·W + b)`, `[rows of x, out]`.
    pub fn linear(&mut self, name: &str, x: SlotId, layer: Linear, fused: Fused) -> SlotId {
        let weight = self.parameter(layer.weight);
        let bias = layer.bias.map(|b| self.parameter(b));
        let (rows, _) = self.shape(x);
        let parameter = self.program.layout.get(layer.weight);
        let out = match layer.order {
            WeightOrder::OutIn => parameter.rows,
            WeightOrder::InOut => parameter.cols,
        };
        let c = self.temporary(name, rows, out);
        let preactivation = (fused.activation.is_some() && self.mode.differentiates())
            .then(|| self.temporary(format!("{name}.preactivation"), rows, out));
        let dropout = if fused.dropout > 0.0 { self.site(fused.dropout) } else { None };
        let epilogue = Epilogue {
            bias,
            accumulate: false,
            activation: fused.activation,
            preactivation,
            neuron_mask: fused.neuron_mask,
            compute_masked: fused.neuron_mask.is_some_and(|mask| self.wanted_masks.contains(&mask)),
            dropout,
            residual: fused.residual,
            inner_mask: fused.inner_mask,
        };
        let transpose_b = layer.order == WeightOrder::OutIn;
        self.push(Op::Gemm { a: x, transpose_a: false, b: weight, transpose_b, c, epilogue });
        c
    }

    /// `y = dropout(bias) + residual`: a sublayer with nothing left but its output bias.
    pub fn bias_residual(&mut self, name: &str, bias: ParameterId, dropout: f32, residual: SlotId) -> SlotId {
        let bias = self.parameter(bias);
        let (rows, cols) = self.shape(residual);
        let y = self.temporary(name, rows, cols);
        let dropout = if dropout > 0.0 { self.site(dropout) } else { None };
        self.push(Op::BiasResidual { bias, dropout, residual, y });
        y
    }

    /// LayerNorm over the columns of `x`.
    pub fn layer_norm(
        &mut self,
        name: &str,
        x: SlotId,
        gamma: ParameterId,
        beta: ParameterId,
        epsilon: f32,
    ) -> SlotId {
        let (gamma, beta) = (self.parameter(gamma), self.parameter(beta));
        let (rows, cols) = self.shape(x);
        let y = self.temporary(name, rows, cols);
        let mean = self.temporary(format!("{name}.mean"), rows, 1);
        let rstd = self.temporary(format!("{name}.rstd"), rows, 1);
        self.push(Op::LayerNorm { x, gamma, beta, epsilon, y, mean, rstd });
        y
    }

    /// Unpadded attention; returns the context `[T, heads·head_dim]`.
    pub fn attention(
        &mut self,
        name: &str,
        [q, k, v]: [SlotId; 3],
        cu_seqlens: SlotId,
        shape: AttentionShape,
        head_mask: Option<SlotId>,
        dropout: f32,
    ) -> SlotId {
        let (rows, cols) = self.shape(q);
        let out = self.temporary(name, rows, cols);
        let lse = self.temporary(format!("{name}.lse"), rows, shape.heads);
        let unmasked = head_mask
            .filter(|mask| self.wanted_masks.contains(mask))
            .map(|_| self.temporary(format!("{name}.unmasked"), rows, cols));
        let dropout = if dropout > 0.0 { self.site(dropout) } else { None };
        self.push(Op::Attention { q, k, v, cu_seqlens, shape, head_mask, dropout, out, lse, unmasked });
        out
    }

    /// `dropout(x)`, or `x` itself where dropout is off.
    pub fn dropout(&mut self, name: &str, x: SlotId, probability: f32) -> SlotId {
        let Some(site) = self.site(probability) else { return x };
        let (rows, cols) = self.shape(x);
        let y = self.temporary(name, rows, cols);
        self.push(Op::Dropout { x, y, site });
        y
    }

    /// Rows `rows[i]` of `x`.
    pub fn gather(&mut self, name: &str, x: SlotId, rows: SlotId) -> SlotId {
        let (extent, _) = self.shape(rows);
        let (_, cols) = self.shape(x);
        let y = self.temporary(name, extent, cols);
        self.push(Op::Gather { x, rows, y });
        y
    }

    /// Sums of rows: row `rows[i]` of the result, one of `extent`, has row `i` of `x` in it.
    pub fn sum_rows(&mut self, name: &str, x: SlotId, rows: SlotId, extent: Extent) -> SlotId {
        let (_, cols) = self.shape(x);
        let y = self.temporary(name, extent, cols);
        self.push(Op::ScatterAdd { dy: x, rows, dx: y, accumulate: false });
        y
    }

    /// `Σ_t x·y` of each column, `[1, n]`, readable after the run.
    pub fn column_products(&mut self, name: impl Into<String>, x: SlotId, y: SlotId) -> SlotId {
        let (_, cols) = self.shape(x);
        let out = self.slot(name, Extent::Fixed(1), cols, Element::Float, Storage::Output);
        self.push(Op::ColumnProducts { x, y, out });
        out
    }

    /// Gradient slot of a parameter, if the mode wants it and the parameter is trained.
    pub(crate) fn parameter_gradient(&mut self, slot: SlotId) -> Option<SlotId> {
        let Storage::Parameter(id) = self.program.slot(slot).storage else {
            panic!("{} is not a parameter", self.name(slot));
        };
        if !self.mode.gradients || !self.program.layout.get(id).differentiated() {
            return None;
        }
        if let Some(&gradient) = self.gradient.get(&slot) {
            return Some(gradient);
        }
        let (rows, cols) = self.shape(slot);
        let name = format!("d {}", self.name(slot));
        let gradient = self.slot(name, rows, cols, Element::Float, Storage::Gradient(id));
        self.gradient.insert(slot, gradient);
        Some(gradient)
    }
}
