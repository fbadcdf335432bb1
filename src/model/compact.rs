//! A masked model made truly smaller.
//!
//! A mask value multiplies the context of a head or the activation of a neuron, so it can as well multiply the rows
//! of the projection that reads them: `(m·c)·W = c·(m·W)`. Units with mask 0 are then never read and are removed:
//! of a head, its outputs of the query, key and value projections and its inputs of the output projection; of a
//! neuron, its output of the up- and its input of the down-projection. The biases of the output projections stay,
//! so a sublayer without units left still adds one. In exact arithmetic the result is the masked model; in f32 the
//! folded factors round once more.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::Sublayer;
use super::masks::{LayerWidths, UnitMasks};
use super::parameters::{Projections, SublayerParameters};
use super::{Architecture, LoadReport, Model};
use crate::error::Result;
use crate::program::{Linear, Parameter, ParameterId, WeightOrder};

/// What becomes of a sublayer whose units are all masked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptySublayers {
    /// It adds the bias of its output projection, as the masked model does.
    #[default]
    KeepBias,
    /// It goes, bias and all: the released code of K-prune, which is another function than the masked model.
    Remove,
    /// It adds its bias, but a layer both of whose sublayers are empty goes whole, LayerNorms included, and the layers
    /// above it move down ([`Model::without_layers`]): layer dropping.
    DropLayers,
}

/// What is kept of a matrix.
#[derive(Default)]
struct Selection {
    rows: Option<Vec<usize>>,
    cols: Option<Vec<usize>>,
    /// Factor of each kept row.
    row_scale: Option<Vec<f32>>,
    /// Factor of each kept column.
    col_scale: Option<Vec<f32>>,
}

impl Model {
    /// The model without the units whose mask is 0 and with the other mask values folded into its weights. Fails
    /// where the masks do not fit the model.
    pub fn compact(&self, masks: &UnitMasks, empty: EmptySublayers) -> Result<Model> {
        let old = &self.architecture;
        masks.check_widths(&old.config.widths())?;
        if empty == EmptySublayers::DropLayers {
            return self.compact_without_empty_layers(masks);
        }
        let mut config = old.config.clone();
        let left = |units: usize, before: Sublayer| match (units, before, empty) {
            (0, Sublayer::Full, EmptySublayers::KeepBias) => Sublayer::BiasOnly,
            (0, Sublayer::Full, EmptySublayers::Remove) => Sublayer::Removed,
            _ => before,
        };
        for (layer, widths) in config.layers.iter_mut().zip(masks.widths()) {
            (layer.heads, layer.neurons) = (widths.heads, widths.neurons);
            layer.attention = left(widths.heads, layer.attention);
            layer.ffn = left(widths.neurons, layer.ffn);
        }
        let mut new = Architecture::new(config, old.head)?;
        let layout = Arc::make_mut(&mut new.layout);
        layout.set_trainable(|name| old.layout.find(name).is_none_or(|id| old.layout.get(id).trainable));
        let selections = selections(old, masks);
        let mut values = new.allocate()?;
        let everything = Selection::default();
        for (_, parameter) in new.layout.iter() {
            // Compaction only removes parameters.
            let Some(id) = old.layout.find(&parameter.name) else {
                unreachable!("{} is not in the model it came from", parameter.name)
            };
            let selection = selections.get(&id).unwrap_or(&everything);
            copy(old.layout.get(id), &self.values, selection, parameter, &mut values);
        }
        Ok(Model { architecture: new, values, report: LoadReport::default() })
    }

    fn compact_without_empty_layers(&self, masks: &UnitMasks) -> Result<Model> {
        let (gone, kept): (Vec<usize>, Vec<usize>) =
            (0..masks.heads.len()).partition(|&i| masks.widths()[i] == LayerWidths { heads: 0, neurons: 0 });
        let of = |layers: &[Vec<f32>]| kept.iter().map(|&layer| layers[layer].clone()).collect();
        let masks = UnitMasks { heads: of(&masks.heads), neurons: of(&masks.neurons) };
        self.without_layers(&gone)?.compact(&masks, EmptySublayers::KeepBias)
    }
}

/// Selections of the layers' matrices; every other parameter is copied whole.
fn selections(model: &Architecture, masks: &UnitMasks) -> HashMap<ParameterId, Selection> {
    let mut selections = HashMap::new();
    let head_dim = model.config.head_dim;
    for (i, layer) in model.parameters.layers.iter().enumerate() {
        if let SublayerParameters::Full(attention) = layer.attention {
            let mask = &masks.heads[i];
            let kept = kept(mask);
            let columns = |of: &[usize]| -> Vec<usize> {
                of.iter().flat_map(|&head| head * head_dim..(head + 1) * head_dim).collect()
            };
            match attention.projections {
                Projections::Separate { query, key, value } => {
                    for layer in [query, key, value] {
                        select_outputs(&mut selections, layer, columns(&kept));
                    }
                }
                Projections::Fused(layer) => {
                    let thirds =
                        (0..3).flat_map(|third| kept.iter().map(move |head| third * mask.len() + head));
                    select_outputs(&mut selections, layer, columns(&thirds.collect::<Vec<_>>()));
                }
            }
            let scale = kept.iter().flat_map(|&head| std::iter::repeat_n(mask[head], head_dim)).collect();
            select_inputs(&mut selections, attention.output, columns(&kept), scale);
        }
        if let SublayerParameters::Full(ffn) = layer.ffn {
            let mask = &masks.neurons[i];
            let kept = kept(mask);
            select_outputs(&mut selections, ffn.up, kept.clone());
            let scale = kept.iter().map(|&neuron| mask[neuron]).collect();
            select_inputs(&mut selections, ffn.down, kept, scale);
        }
    }
    selections
}

fn kept(mask: &[f32]) -> Vec<usize> {
    (0..mask.len()).filter(|&unit| mask[unit] != 0.0).collect()
}

fn select_outputs(selections: &mut HashMap<ParameterId, Selection>, layer: Linear, kept: Vec<usize>) {
    if let Some(bias) = layer.bias {
        selections.insert(bias, Selection { cols: Some(kept.clone()), ..Selection::default() });
    }
    let selection = match layer.order {
        WeightOrder::OutIn => Selection { rows: Some(kept), ..Selection::default() },
        WeightOrder::InOut => Selection { cols: Some(kept), ..Selection::default() },
    };
    selections.insert(layer.weight, selection);
}

fn select_inputs(
    selections: &mut HashMap<ParameterId, Selection>,
    layer: Linear,
    kept: Vec<usize>,
    scale: Vec<f32>,
) {
    let selection = match layer.order {
        WeightOrder::OutIn => Selection { cols: Some(kept), col_scale: Some(scale), ..Selection::default() },
        WeightOrder::InOut => Selection { rows: Some(kept), row_scale: Some(scale), ..Selection::default() },
    };
    selections.insert(layer.weight, selection);
}

/// Copies what is selected of `from` in `old` to `to` in `new`.
fn copy(from: &Parameter, old: &[f32], selection: &Selection, to: &Parameter, new: &mut [f32]) {
    let at = |list: &Option<Vec<usize>>, i: usize| list.as_ref().map_or(i, |list| list[i]);
    let factor = |list: &Option<Vec<f32>>, i: usize| list.as_ref().map_or(1.0, |list| list[i]);
    for row in 0..to.rows {
        let source = &old[from.offset + at(&selection.rows, row) * from.ld()..][..from.cols];
        let target = &mut new[to.offset + row * to.ld()..][..to.cols];
        let row_factor = factor(&selection.row_scale, row);
        for (col, value) in target.iter_mut().enumerate() {
            let factor = row_factor * factor(&selection.col_scale, col);
            *value = factor * source[at(&selection.cols, col)];
        }
    }
}
