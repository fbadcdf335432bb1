//! The flat parameter block: one table of names and ranges, shared by parameters, gradients and moments.
//!
//! Order is the order of addition, which is the checkpoint's; in the block the matrices of the layers stand before the
//! vectors of the layers, so that what has weight masks is one stretch without anything else in it. Every parameter starts on
//! a [`SLOT_ALIGNMENT`] boundary and its rows are padded to [`leading_dimension`]; the padding is zero
//! in all blocks and stays zero, so that norms and updates may run over whole ranges. (Scores of weight masks are the
//! exception: theirs is −∞, which no gradient moves.)
//!
//! What is not trained costs nothing: gradients and moments span only the stretch of the block between the first and the
//! last parameter that has some, scores and underlying weights only the masked matrices.

use std::collections::HashMap;
use std::ops::Range;

use super::slot::{ParameterId, SLOT_ALIGNMENT, leading_dimension};

/// One parameter of the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the checkpoint.
    pub name: String,
    /// Rows; 1 for vectors.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Whether the checkpoint holds it as a vector. Vectors take no weight decay.
    pub vector: bool,
    /// Whether it is trained. Frozen parameters are never updated, and get a gradient only if they are masked.
    pub trainable: bool,
    /// Whether products read it multiplied by a weight mask; its own values are then in
    /// [`Block::Weights`](crate::exec::Block::Weights).
    pub masked: bool,
    /// First element in the block.
    pub offset: usize,
}

impl Parameter {
    /// Distance between the starts of two rows.
    pub fn ld(&self) -> usize {
        leading_dimension(self.cols)
    }
    /// Elements in the block, padding included.
    pub fn span(&self) -> usize {
        self.rows * self.ld()
    }
    /// Its elements in the block, padding included.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.span()
    }
    /// Whether a backward pass computes its gradient.
    pub fn differentiated(&self) -> bool {
        self.trainable || self.masked
    }
    /// Elements in the checkpoint.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }
    /// Whether the parameter has no elements (a fully pruned projection).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Names and ranges of all parameters of a model.
#[derive(Clone, Debug, Default)]
pub struct ParameterLayout {
    parameters: Vec<Parameter>,
    by_name: HashMap<String, ParameterId>,
    len: usize,
}

impl ParameterLayout {
    /// An empty layout.
    pub fn new() -> ParameterLayout {
        ParameterLayout::default()
    }

    /// Appends a matrix. Panics on a repeated name (a bug of the model code).
    pub fn matrix(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> ParameterId {
        self.push(name.into(), rows, cols, false)
    }

    /// Appends a vector. Panics on a repeated name (a bug of the model code).
    pub fn vector(&mut self, name: impl Into<String>, cols: usize) -> ParameterId {
        self.push(name.into(), 1, cols, true)
    }

    fn push(&mut self, name: String, rows: usize, cols: usize, vector: bool) -> ParameterId {
        let id = ParameterId(self.parameters.len() as u32);
        let previous = self.by_name.insert(name.clone(), id);
        assert!(previous.is_none(), "parameter {name} is declared twice");
        let parameter =
            Parameter { name, rows, cols, vector, trainable: true, masked: false, offset: self.len };
        self.len += parameter.span().next_multiple_of(SLOT_ALIGNMENT);
        self.parameters.push(parameter);
        id
    }

    /// Lays out the parameters from number `first` on again, matrices before vectors.
    pub fn matrices_first(&mut self, first: usize) {
        let Some(start) = self.parameters.get(first).map(|p| p.offset) else { return };
        let mut end = start;
        for vectors in [false, true] {
            for parameter in self.parameters[first..].iter_mut().filter(|p| p.vector == vectors) {
                parameter.offset = end;
                end += parameter.span().next_multiple_of(SLOT_ALIGNMENT);
            }
        }
    }

    /// Marks parameters as trained or frozen by name.
    pub fn set_trainable(&mut self, trainable: impl Fn(&str) -> bool) {
        for parameter in &mut self.parameters {
            parameter.trainable = trainable(&parameter.name);
        }
    }

    /// Marks matrices whose products go through a weight mask, by number. Panics on a vector (a bug of the caller).
    pub fn set_masked(&mut self, masked: &[ParameterId]) {
        for &id in masked {
            let parameter = &mut self.parameters[id.index()];
            assert!(!parameter.vector, "{} is a vector", parameter.name);
            parameter.masked = true;
        }
    }

    /// The masked matrices, in order.
    pub fn masked(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(|p| p.masked)
    }

    /// Whether masked matrices are trained themselves, beside their scores.
    pub fn trains_masked(&self) -> bool {
        self.masked().any(|p| p.trainable)
    }

    /// The stretch of the block that holds every parameter `wanted` picks, up to the next parameter; empty if it picks none.
    pub fn stretch(&self, wanted: impl Fn(&Parameter) -> bool) -> Range<usize> {
        let wanted = self.parameters.iter().filter(|p| wanted(p));
        let ranges = wanted.map(|p| p.offset..p.range().end.next_multiple_of(SLOT_ALIGNMENT));
        ranges.reduce(|all, range| all.start.min(range.start)..all.end.max(range.end)).unwrap_or(0..0)
    }

    /// Looks a parameter up by its checkpoint name.
    pub fn find(&self, name: &str) -> Option<ParameterId> {
        self.by_name.get(name).copied()
    }

    /// The parameter `id`.
    pub fn get(&self, id: ParameterId) -> &Parameter {
        &self.parameters[id.index()]
    }

    /// All parameters with their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Parameter)> {
        self.parameters.iter().enumerate().map(|(i, p)| (ParameterId(i as u32), p))
    }

    /// Number of parameters (tensors).
    pub fn count(&self) -> usize {
        self.parameters.len()
    }

    /// Elements of the flat block, padding included.
    pub fn block_len(&self) -> usize {
        self.len
    }

    /// Elements of the checkpoint, padding excluded.
    pub fn total_elements(&self) -> usize {
        self.parameters.iter().map(Parameter::len).sum()
    }
}
