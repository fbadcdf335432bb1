//! Head and neuron masks as other programs save them.
//!
//! Mask-Tuning, KCM and P-pruning save `head_mask.pt` and `neuron_mask.pt` beside each other: a tensor `[layers, units]`,
//! or a list with a vector for every layer. transformers records heads it removed as `pruned_heads` in `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::torch;
use crate::error::{Error, Result};
use crate::model::{LayerWidths, UnitMasks};

/// Names of the two files of a directory.
const FILES: [&str; 2] = ["head_mask.pt", "neuron_mask.pt"];

/// Reads masks for a model of these widths from a `masks.json`, a `config.json` with `pruned_heads`, one `.pt` file (the
/// other kind of unit is kept whole), or a directory that holds `masks.json` or one or both of `head_mask.pt` and
/// `neuron_mask.pt`. Fails where they do not fit the widths.
pub fn read(path: &Path, widths: &[LayerWidths]) -> Result<UnitMasks> {
    let masks = if path.is_dir() {
        directory(path, widths)?
    } else if path.extension().is_some_and(|extension| extension == "pt") {
        let mut masks = UnitMasks::ones(widths);
        let layers = layers(path)?;
        let fits = |unit: fn(&LayerWidths) -> usize| {
            layers.len() == widths.len() && layers.iter().zip(widths).all(|(mask, w)| mask.len() == unit(w))
        };
        match (fits(|w| w.heads), fits(|w| w.neurons)) {
            (true, false) => masks.heads = layers,
            (false, true) => masks.neurons = layers,
            (true, true) => {
                let message =
                    "fits the heads and the neurons of this model; give the directory with both files";
                return Err(Error::format(path, message));
            }
            (false, false) => return Err(other_model(path, &layers, widths)),
        }
        masks
    } else {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        match serde_json::from_str::<Map<String, Value>>(&text) {
            Ok(map) if map.contains_key("pruned_heads") => pruned_heads(path, &map["pruned_heads"], widths)?,
            Ok(map) if map.contains_key("model_type") => {
                return Err(Error::format(path, "is a configuration without \"pruned_heads\": no masks"));
            }
            _ => UnitMasks::read(path)?,
        }
    };
    masks.check_widths(widths).map_err(|e| Error::format(path, e.to_string()))?;
    Ok(masks)
}

fn directory(path: &Path, widths: &[LayerWidths]) -> Result<UnitMasks> {
    let own = path.join("masks.json");
    if own.is_file() {
        return UnitMasks::read(&own);
    }
    let [heads, neurons] = FILES.map(|name| path.join(name));
    if !heads.is_file() && !neurons.is_file() {
        let message = format!("holds neither masks.json nor {} or {}", FILES[0], FILES[1]);
        return Err(Error::format(path, message));
    }
    let mut masks = UnitMasks::ones(widths);
    if heads.is_file() {
        masks.heads = layers(&heads)?;
    }
    if neurons.is_file() {
        masks.neurons = layers(&neurons)?;
    }
    Ok(masks)
}

/// One mask a layer.
fn layers(path: &Path) -> Result<Vec<Vec<f32>>> {
    let tensors = torch::read(path)?;
    match tensors.as_slice() {
        [matrix] if matrix.shape.len() == 2 => {
            Ok(matrix.values.chunks(matrix.shape[1].max(1)).map(<[f32]>::to_vec).collect())
        }
        vectors if vectors.iter().all(|vector| vector.shape.len() == 1) => {
            Ok(vectors.iter().map(|vector| vector.values.clone()).collect())
        }
        _ => {
            let shapes: Vec<&[usize]> = tensors.iter().map(|tensor| tensor.shape.as_slice()).collect();
            let message =
                format!("holds tensors of shapes {shapes:?}; a mask is [layers, units] or a vector a layer");
            Err(Error::format(path, message))
        }
    }
}

fn other_model(path: &Path, layers: &[Vec<f32>], widths: &[LayerWidths]) -> Error {
    let units = layers.first().map_or(0, Vec::len);
    let (heads, neurons) = widths.first().map_or((0, 0), |w| (w.heads, w.neurons));
    let message = format!(
        "masks {units} units in {} layers, but the model has {heads} heads and {neurons} neurons in {}: masks of \
         another model?",
        layers.len(),
        widths.len()
    );
    Error::format(path, message)
}

/// Masks of the heads that transformers' configuration lists as removed: an object from layer numbers to head numbers.
fn pruned_heads(path: &Path, value: &Value, widths: &[LayerWidths]) -> Result<UnitMasks> {
    let wrong = |what: String| Error::format(path, format!("\"pruned_heads\": {what}"));
    let mut masks = UnitMasks::ones(widths);
    let object = value.as_object().ok_or_else(|| wrong("is not an object".into()))?;
    for (layer, heads) in object {
        let mask = layer.parse::<usize>().ok().and_then(|layer| masks.heads.get_mut(layer));
        let mask = mask.ok_or_else(|| wrong(format!("the model has no layer {layer}")))?;
        for head in heads.as_array().ok_or_else(|| wrong(format!("layer {layer} is not a list")))? {
            let unit = head.as_u64().and_then(|head| mask.get_mut(head as usize));
            *unit.ok_or_else(|| wrong(format!("layer {layer} has no head {head}")))? = 0.0;
        }
    }
    Ok(masks)
}

/// `pruned_heads` of masks that do nothing but remove some, but not all, heads of layers; `None` for others, which it
/// cannot say.
pub fn to_pruned_heads(masks: &UnitMasks) -> Option<Map<String, Value>> {
    let whole = |mask: &Vec<f32>| mask.iter().all(|value| *value == 1.0);
    let plain = |mask: &Vec<f32>| mask.contains(&1.0) && mask.iter().all(|value| [0.0, 1.0].contains(value));
    if !masks.neurons.iter().all(whole) || !masks.heads.iter().all(plain) {
        return None;
    }
    let removed =
        |mask: &Vec<f32>| -> Vec<usize> { (0..mask.len()).filter(|&head| mask[head] == 0.0).collect() };
    let layers = masks.heads.iter().map(removed).enumerate().filter(|(_, heads)| !heads.is_empty());
    Some(layers.map(|(layer, heads)| (layer.to_string(), heads.into())).collect())
}
