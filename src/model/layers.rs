//! A model without some of its layers.
//!
//! A layer that is dropped goes whole, LayerNorms included, and those above it move down; embeddings, a final LayerNorm
//! and the head stay. (Removing its two sublayers would leave the LayerNorms that follow them.) Where scores are scaled by
//! the layer's number (an option of GPT-2), the new number counts.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Architecture, LoadReport, Model};
use crate::error::{Error, Result};
use crate::program::ParameterId;

/// Fails on a list of layers to drop that repeats one, names one that is not there, or names all of `layers`.
pub fn check_dropped(dropped: &[usize], layers: usize) -> Result<()> {
    if let Some(layer) = dropped.iter().find(|&&layer| layer >= layers) {
        return Err(Error::usage(format!(
            "layer {layer} cannot be dropped: the model has layers 0 to {}",
            layers.saturating_sub(1)
        )));
    }
    if let Some(at) = (1..dropped.len()).find(|&at| dropped[..at].contains(&dropped[at])) {
        return Err(Error::usage(format!("layer {} is named twice among those to drop", dropped[at])));
    }
    if dropped.len() == layers {
        return Err(Error::usage(format!("all {layers} layers cannot be dropped: at least one must stay")));
    }
    Ok(())
}

impl Model {
    /// The model without the layers numbered `dropped`, in any order. Fails as [`check_dropped`] does.
    pub fn without_layers(&self, dropped: &[usize]) -> Result<Model> {
        let old = &self.architecture;
        check_dropped(dropped, old.config.layers.len())?;
        let kept: Vec<usize> =
            (0..old.config.layers.len()).filter(|layer| !dropped.contains(layer)).collect();
        let mut config = old.config.clone();
        config.layers = kept.iter().map(|&layer| old.config.layers[layer]).collect();
        let mut new = Architecture::new(config, old.head)?;
        let mut sources: HashMap<ParameterId, ParameterId> = HashMap::new();
        for (layer, &source) in new.parameters.layers.iter().zip(&kept) {
            sources.extend(layer.ids().zip(old.parameters.layers[source].ids()));
        }
        // What is in no layer has the name it had.
        let source =
            |id: ParameterId, name: &str| sources.get(&id).copied().or_else(|| old.layout.find(name));
        let mut values = new.allocate()?;
        let mut frozen = Vec::new();
        for (id, parameter) in new.layout.iter() {
            let Some(source) = source(id, &parameter.name) else {
                unreachable!("{} is not in the model it came from", parameter.name)
            };
            let from = old.layout.get(source);
            values[parameter.offset..parameter.offset + parameter.span()]
                .copy_from_slice(&self.values[from.offset..from.offset + from.span()]);
            if !from.trainable {
                frozen.push(parameter.name.clone());
            }
        }
        Arc::make_mut(&mut new.layout).set_trainable(|name| !frozen.iter().any(|frozen| frozen == name));
        Ok(Model { architecture: new, values, report: LoadReport::default() })
    }
}
