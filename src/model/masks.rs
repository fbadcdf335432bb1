//! Head and neuron masks: the one result of every structured method, and its file format.
//!
//! `masks.json` is `{"heads": [[…], …], "neurons": [[…], …]}`, one list a layer, one number a unit. Zero removes the
//! unit, any other finite number scales it. Layers may differ in width, and a layer may be empty. A third entry, `empty`,
//! says what becomes of a sublayer without units where that is not the rule ([`EmptySublayers`]).

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::compact::EmptySublayers;
use super::emit::ModelProgram;
use super::weights::atomically;
use crate::error::{Error, Result};
use crate::program::SlotId;

/// Heads and neurons of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerWidths {
    /// Attention heads.
    pub heads: usize,
    /// FFN neurons (intermediate size).
    pub neurons: usize,
}

/// Real-valued masks of all layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitMasks {
    /// `[layers][heads]`
    pub heads: Vec<Vec<f32>>,
    /// `[layers][neurons]`
    pub neurons: Vec<Vec<f32>>,
}

impl UnitMasks {
    /// Masks that keep everything.
    pub fn ones(widths: &[LayerWidths]) -> UnitMasks {
        UnitMasks {
            heads: widths.iter().map(|w| vec![1.0; w.heads]).collect(),
            neurons: widths.iter().map(|w| vec![1.0; w.neurons]).collect(),
        }
    }

    /// Zero–one masks from the indices kept in every layer; the indices must be below the widths.
    pub fn from_kept(widths: &[LayerWidths], heads: &[Vec<usize>], neurons: &[Vec<usize>]) -> UnitMasks {
        let mark = |width: usize, kept: &Vec<usize>| {
            let mut mask = vec![0.0; width];
            kept.iter().for_each(|&unit| mask[unit] = 1.0);
            mask
        };
        UnitMasks {
            heads: widths.iter().zip(heads).map(|(w, kept)| mark(w.heads, kept)).collect(),
            neurons: widths.iter().zip(neurons).map(|(w, kept)| mark(w.neurons, kept)).collect(),
        }
    }

    /// Units kept (mask not zero) in every layer.
    pub fn widths(&self) -> Vec<LayerWidths> {
        let kept = |mask: &[f32]| mask.iter().filter(|v| **v != 0.0).count();
        let both = self.heads.iter().zip(&self.neurons);
        both.map(|(heads, neurons)| LayerWidths { heads: kept(heads), neurons: kept(neurons) }).collect()
    }

    /// Indices of the units kept in every layer: (heads, neurons).
    pub fn kept(&self) -> (Vec<Vec<usize>>, Vec<Vec<usize>>) {
        let indices = |mask: &Vec<f32>| (0..mask.len()).filter(|&unit| mask[unit] != 0.0).collect();
        (self.heads.iter().map(indices).collect(), self.neurons.iter().map(indices).collect())
    }

    /// Fails on a NaN or infinite entry, or when heads and neurons disagree on the number of layers.
    pub fn check_values(&self) -> Result<()> {
        if self.heads.len() != self.neurons.len() {
            let message =
                format!("{} layers of heads, {} layers of neurons", self.heads.len(), self.neurons.len());
            return Err(Error::shape("masks", message));
        }
        for (kind, layers) in [("head", &self.heads), ("neuron", &self.neurons)] {
            for (layer, mask) in layers.iter().enumerate() {
                if let Some(unit) = mask.iter().position(|value| !value.is_finite()) {
                    return Err(Error::NotFinite {
                        what: format!("{kind} mask"),
                        value: f64::from(mask[unit]),
                        place: format!("at layer {layer}, {kind} {unit}"),
                    });
                }
            }
        }
        Ok(())
    }

    /// [`UnitMasks::check_values`], and every layer must have the widths of the model.
    pub fn check_widths(&self, expected: &[LayerWidths]) -> Result<()> {
        self.check_values()?;
        if self.heads.len() != expected.len() {
            let message = format!("{} layers, but the model has {}", self.heads.len(), expected.len());
            return Err(Error::shape("masks", message));
        }
        for (layer, widths) in expected.iter().enumerate() {
            let found = LayerWidths { heads: self.heads[layer].len(), neurons: self.neurons[layer].len() };
            if found != *widths {
                let message = format!(
                    "layer {layer} has {} heads and {} neurons, but the model has {} and {}",
                    found.heads, found.neurons, widths.heads, widths.neurons
                );
                return Err(Error::shape("masks", message));
            }
        }
        Ok(())
    }

    /// Reads and checks a `masks.json`.
    pub fn read(path: &Path) -> Result<UnitMasks> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        let masks: UnitMasks = serde_json::from_str(&text).map_err(|e| {
            Error::format(path, format!("not a masks file {{\"heads\": [[…]], \"neurons\": [[…]]}}: {e}"))
        })?;
        masks.check_values().map_err(|e| Error::format(path, e.to_string()))?;
        Ok(masks)
    }

    /// Writes a `masks.json`; the file appears whole or not at all. Fails on values [`UnitMasks::read`] would refuse.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_with_empty(path, EmptySublayers::KeepBias)
    }

    /// [`UnitMasks::write`], with what becomes of empty sublayers.
    pub fn write_with_empty(&self, path: &Path, empty: EmptySublayers) -> Result<()> {
        self.check_values()?;
        let file = MasksFile { masks: self, rule: Rule { empty } };
        let text = serde_json::to_string(&file).map_err(|e| Error::format(path, e.to_string()))?;
        atomically(path, |temporary| std::fs::write(temporary, text).map_err(Error::io(temporary, "writing")))
    }
}

impl EmptySublayers {
    /// What a `masks.json` says of empty sublayers.
    pub fn read(path: &Path) -> Result<EmptySublayers> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        let rule: Rule = serde_json::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
        Ok(rule.empty)
    }
}

/// The content of a `masks.json`.
#[derive(Serialize)]
struct MasksFile<'a> {
    #[serde(flatten)]
    masks: &'a UnitMasks,
    #[serde(flatten)]
    rule: Rule,
}

/// What a `masks.json` says besides the masks.
#[derive(Default, Serialize, Deserialize)]
struct Rule {
    #[serde(default, skip_serializing_if = "is_usual")]
    empty: EmptySublayers,
}

fn is_usual(empty: &EmptySublayers) -> bool {
    *empty == EmptySublayers::default()
}

impl ModelProgram {
    /// The mask inputs of the program with their values, to be written before a run. Fails where the masks do not
    /// fit the model; layers and kinds of mask that the program was emitted without are left out.
    pub fn mask_inputs<'a>(&self, masks: &'a UnitMasks) -> Result<Vec<(SlotId, &'a [f32])>> {
        masks.check_values()?;
        if masks.heads.len() != self.layers.len() {
            let message = format!("{} layers, but the model has {}", masks.heads.len(), self.layers.len());
            return Err(Error::shape("masks", message));
        }
        let mut inputs = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let kinds = [
                ("heads", layer.head_mask, &masks.heads[i]),
                ("neurons", layer.neuron_mask, &masks.neurons[i]),
            ];
            for (kind, slot, values) in kinds {
                let Some(slot) = slot else { continue };
                let units = self.program.slot(slot).cols;
                if values.len() != units {
                    let message = format!("layer {i} has {} {kind}, but the model has {units}", values.len());
                    return Err(Error::shape("masks", message));
                }
                inputs.push((slot, values.as_slice()));
            }
        }
        Ok(inputs)
    }
}
