//! Which weights of a model are kept: a bit for every element of some of its matrices, and their application.
//!
//! Unstructured pruning leaves dense matrices in which most entries are zero, so its result is a set of bits and not a
//! smaller model. A matrix is named by its checkpoint name without the prefix that depends on the class it was saved
//! from, so that the masks learnt on a classifier apply to the backbone and to the language model alike. Bits are
//! dense and row-major in the order the checkpoint stores the matrix (`[out, in]`, `[in, out]` for GPT-2's Conv1D),
//! element i in bit i mod 64 of word i / 64; bits beyond the last element are 0.

use super::parameters::{Projections, SublayerParameters};
use super::{Architecture, Model, names};
use crate::error::{Error, Result};
use crate::ops::select;
use crate::program::{Parameter, ParameterId};

/// What a matrix of a layer does: SMP-S shares a budget among the matrices of one kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum MatrixKind {
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// Query, key and value projections in one matrix (GPT-2).
    QueryKeyValue,
    /// Attention output projection.
    AttentionOutput,
    /// Feed-forward up-projection, `d → neurons`.
    Up,
    /// Feed-forward down-projection, `neurons → d`.
    Down,
}

/// A weight matrix of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerMatrix {
    /// Its layer, from 0.
    pub layer: usize,
    /// What it does.
    pub kind: MatrixKind,
    /// The parameter.
    pub id: ParameterId,
}

/// The bits of one matrix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WeightMask {
    /// Name in the checkpoint, without the prefix of the class it was saved from.
    pub name: String,
    /// Rows as stored.
    pub rows: usize,
    /// Columns as stored.
    pub cols: usize,
    /// `[rows·cols]` bits, row-major, 64 a word.
    bits: Vec<u64>,
}

/// The masks of a model's matrices, in the order of its parameters.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct WeightMasks {
    /// One mask a matrix; what has none is kept whole.
    pub matrices: Vec<WeightMask>,
}

impl WeightMask {
    /// A mask from its words. Fails where their number is not that of `rows · cols` bits, or a bit beyond the last
    /// element is set.
    pub fn new(name: impl Into<String>, rows: usize, cols: usize, bits: Vec<u64>) -> Result<WeightMask> {
        let name = name.into();
        let len = rows
            .checked_mul(cols)
            .ok_or_else(|| Error::shape(&name, format!("a mask of {rows} × {cols} bits is too large")))?;
        if bits.len() != len.div_ceil(64) {
            let message = format!("{} words do not hold {rows} × {cols} bits", bits.len());
            return Err(Error::shape(&name, message));
        }
        let beyond = bits.last().filter(|_| !len.is_multiple_of(64)).map_or(0, |last| last >> (len % 64));
        if beyond != 0 {
            return Err(Error::shape(&name, format!("has bits beyond its {len} elements")));
        }
        Ok(WeightMask { name, rows, cols, bits })
    }

    /// A mask from a decision for each element, by its number in row-major order.
    pub fn from_fn(
        name: impl Into<String>,
        rows: usize,
        cols: usize,
        keep: impl Fn(usize) -> bool,
    ) -> WeightMask {
        let len = rows * cols;
        let word = |w: usize| {
            (64 * w..len.min(64 * w + 64)).fold(0, |bits, i| bits | u64::from(keep(i)) << (i % 64))
        };
        WeightMask { name: name.into(), rows, cols, bits: (0..len.div_ceil(64)).map(word).collect() }
    }

    /// Elements of the matrix.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether the matrix has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The words.
    pub fn bits(&self) -> &[u64] {
        &self.bits
    }

    /// Whether element `index` (row-major) is kept.
    pub fn keeps(&self, index: usize) -> bool {
        self.bits[index / 64] >> (index % 64) & 1 == 1
    }

    /// Number of elements kept.
    pub fn kept(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Sets what is masked in `values`, the matrix in rows that start every `ld` elements, to +0.
    fn apply(&self, values: &mut [f32], ld: usize) {
        for (row, values) in values.chunks_mut(ld.max(1)).take(self.rows).enumerate() {
            for (col, value) in values[..self.cols].iter_mut().enumerate() {
                if !self.keeps(row * self.cols + col) {
                    *value = 0.0;
                }
            }
        }
    }
}

impl WeightMasks {
    /// Elements of all masked matrices.
    pub fn total(&self) -> usize {
        self.matrices.iter().map(WeightMask::len).sum()
    }

    /// Elements kept.
    pub fn kept(&self) -> usize {
        self.matrices.iter().map(WeightMask::kept).sum()
    }

    /// Fraction of the masked matrices' elements that is kept; 1 without any.
    pub fn kept_fraction(&self) -> f64 {
        if self.total() == 0 { 1.0 } else { self.kept() as f64 / self.total() as f64 }
    }

    /// The mask of a matrix by its name without prefix.
    pub fn find(&self, name: &str) -> Option<&WeightMask> {
        self.matrices.iter().find(|mask| mask.name == name)
    }

    /// The masks that keep the `counts[i]` largest scores of matrix i of `matrices`; of equal scores the first are kept.
    /// `scores` is a block laid out as the model's parameters (only the matrices are read).
    pub fn largest(
        architecture: &Architecture,
        matrices: &[LayerMatrix],
        scores: &[f32],
        counts: &[usize],
    ) -> WeightMasks {
        let mask = |(matrix, &count): (&LayerMatrix, &usize)| {
            let parameter = architecture.layout.get(matrix.id);
            let dense = dense(parameter, &scores[parameter.offset..parameter.offset + parameter.span()]);
            let mut bits = vec![0; parameter.len().div_ceil(64)];
            let rows = select::Matrix::dense(&dense, &mut bits);
            select::cpu::keep_largest(&mut [rows], false, count);
            let name = names::stem(architecture.config.family, &parameter.name);
            WeightMask { name, rows: parameter.rows, cols: parameter.cols, bits }
        };
        WeightMasks { matrices: matrices.iter().zip(counts).map(mask).collect() }
    }

    /// Sets every masked weight of `model` to +0. Fails, before anything is changed, where a mask names no matrix of the
    /// model or has another shape.
    pub fn apply(&self, model: &mut Model) -> Result<()> {
        let places = self.places(&model.architecture)?;
        let layout = model.architecture.layout.clone();
        for (mask, id) in self.matrices.iter().zip(places) {
            let parameter = layout.get(id);
            let range = parameter.offset..parameter.offset + parameter.span();
            mask.apply(&mut model.values[range], parameter.ld());
        }
        Ok(())
    }

    /// The parameter each mask belongs to. Fails where a mask names no matrix of the model, has another shape, or names
    /// one twice.
    pub fn places(&self, architecture: &Architecture) -> Result<Vec<ParameterId>> {
        let family = architecture.config.family;
        let mut places = Vec::with_capacity(self.matrices.len());
        for mask in &self.matrices {
            let found = architecture
                .layout
                .iter()
                .find(|(_, p)| !p.vector && names::stem(family, &p.name) == mask.name);
            let Some((id, parameter)) = found else {
                let message = format!(
                    "no matrix of this {} model has this name; masks of another model?",
                    family.model_type()
                );
                return Err(Error::shape(format!("mask {}", mask.name), message));
            };
            if (parameter.rows, parameter.cols) != (mask.rows, mask.cols) {
                let message = format!(
                    "has {} × {} bits, but the model's matrix is {} × {}; masks of another model?",
                    mask.rows, mask.cols, parameter.rows, parameter.cols
                );
                return Err(Error::shape(format!("mask {}", mask.name), message));
            }
            if places.contains(&id) {
                return Err(Error::shape(format!("mask {}", mask.name), "is given twice"));
            }
            places.push(id);
        }
        Ok(places)
    }
}

/// A matrix without the padding of its rows.
fn dense(parameter: &Parameter, values: &[f32]) -> Vec<f32> {
    values
        .chunks(parameter.ld().max(1))
        .flat_map(|row| &row[..parameter.cols.min(row.len())])
        .copied()
        .collect()
}

impl Architecture {
    /// The weight matrices of the layers, in the order of the layout: what unstructured pruning masks (the 72 matrices of
    /// BERT-base). Biases, LayerNorm, embeddings and heads are not among them.
    pub fn layer_matrices(&self) -> Vec<LayerMatrix> {
        let mut matrices = Vec::new();
        for (layer, parameters) in self.parameters.layers.iter().enumerate() {
            let mut push = |kind, id| matrices.push(LayerMatrix { layer, kind, id });
            if let SublayerParameters::Full(attention) = parameters.attention {
                match attention.projections {
                    Projections::Separate { query, key, value } => {
                        push(MatrixKind::Query, query.weight);
                        push(MatrixKind::Key, key.weight);
                        push(MatrixKind::Value, value.weight);
                    }
                    Projections::Fused(linear) => push(MatrixKind::QueryKeyValue, linear.weight),
                }
                push(MatrixKind::AttentionOutput, attention.output.weight);
            }
            if let SublayerParameters::Full(ffn) = parameters.ffn {
                push(MatrixKind::Up, ffn.up.weight);
                push(MatrixKind::Down, ffn.down.weight);
            }
        }
        matrices.sort_by_key(|matrix| matrix.id);
        matrices
    }

    /// Name of a parameter without the prefix of the class it was saved from: what masks call it.
    pub fn mask_name(&self, id: ParameterId) -> String {
        names::stem(self.config.family, &self.layout.get(id).name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_and_checked() {
        let mask = WeightMask::from_fn("w", 3, 5, |i| i % 2 == 0);
        assert_eq!((mask.len(), mask.kept()), (15, 8));
        assert!(mask.keeps(14) && !mask.keeps(13));
        assert!(WeightMask::new("w", 3, 5, vec![1 << 15]).is_err());
        assert!(WeightMask::new("w", 3, 5, vec![0, 0]).is_err());
        assert_eq!(WeightMask::new("w", 3, 5, mask.bits().to_vec()).unwrap(), mask);
    }

    #[test]
    fn masked_elements_become_zero_and_padding_is_left() {
        let mask = WeightMask::from_fn("w", 2, 3, |i| i != 4);
        let mut values: Vec<f32> = (1..=16).map(|v| v as f32).collect();
        mask.apply(&mut values, 8);
        assert_eq!(values[..4], [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(values[8..12], [9.0, 0.0, 11.0, 12.0]);
    }
}
