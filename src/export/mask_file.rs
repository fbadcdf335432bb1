//! Weight masks as a file: ours, with names, shapes and the weights they belong to, or the one SMP's authors released.
//!
//! Ours is a safetensors file with a U8 tensor for every mask, named as the matrix without the prefix of the class it was
//! saved from, its bits packed as `numpy.packbits` packs them. The metadata field `secateur` holds `kind`
//! ("weight-masks"), `version`, `model_type`, `shapes` (rows and columns by name), `label_words` (the tokens whose logits
//! answer for the classes, of masks learnt with SMP's frozen head) and `weights`: BLAKE3 of the masked weights W ∘ M. The dense model and the model with zeros have the same W ∘ M, so masks are recognised as theirs by
//! both, and by no other model, whatever its shapes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{npy, packed};
use crate::error::{Error, Result};
use crate::model::{Architecture, Model, WeightMask, WeightMasks};
use crate::program::ParameterId;

const KIND: &str = "weight-masks";

/// Masks that were read, with what the file says about them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaskFile {
    /// The masks, each of a matrix of the model.
    pub masks: WeightMasks,
    /// Hash of the masked weights they belong to, where the file names them.
    pub weights: Option<String>,
    /// Tokens that answer for the classes of the task, in their order; empty for masks of models with a head of their own.
    pub label_words: Vec<u32>,
}

/// The metadata field.
#[derive(Serialize, Deserialize)]
struct Description {
    kind: String,
    version: u32,
    model_type: String,
    shapes: BTreeMap<String, [usize; 2]>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    label_words: Vec<u32>,
    weights: String,
}

/// Reads masks of a model from a file of either layout. Whether they belong to its weights is for
/// [`MaskFile::check_weights`] to say; here they must fit its shapes.
pub fn read(path: &Path, architecture: &Architecture) -> Result<MaskFile> {
    let file = std::fs::read(path).map_err(Error::io(path, "reading"))?;
    if npy::is_npy(&file) {
        let masks = packed::decode(path, &file, architecture)?;
        return Ok(MaskFile { masks, weights: None, label_words: Vec::new() });
    }
    let broken = |message: String| Error::format(path, message);
    let unreadable = |e: safetensors::SafeTensorError| {
        broken(format!("is neither a .npy nor a usable safetensors file of masks: {e}"))
    };
    let (_, metadata) = SafeTensors::read_metadata(&file).map_err(unreadable)?;
    let tensors = SafeTensors::deserialize(&file).map_err(unreadable)?;
    let text = metadata.metadata().as_ref().and_then(|fields| fields.get("secateur"));
    let text = text.ok_or_else(|| broken("holds tensors, but no masks that secateur wrote".into()))?;
    let description: Description = serde_json::from_str(text)
        .map_err(|e| broken(format!("its metadata do not describe weight masks: {e}")))?;
    if description.kind != KIND || description.version != 1 {
        let message = format!(
            "holds {} in version {}; {KIND} in version 1 is known",
            description.kind, description.version
        );
        return Err(broken(message));
    }
    let family = architecture.config.family.model_type();
    if description.model_type != family {
        return Err(broken(format!(
            "holds masks of a {} model, not of this {family} model",
            description.model_type
        )));
    }
    let mut masks = WeightMasks::default();
    for (name, &[rows, cols]) in &description.shapes {
        let tensor = tensors.tensor(name).map_err(|e| broken(e.to_string()))?;
        if tensor.dtype() != Dtype::U8 {
            return Err(broken(format!("mask {name} is of type {:?}, not U8", tensor.dtype())));
        }
        let mask =
            WeightMask::from_packed(name, rows, cols, tensor.data()).map_err(|e| broken(e.to_string()))?;
        masks.matrices.push(mask);
    }
    let places = masks.places(architecture).map_err(|e| broken(e.to_string()))?;
    let mut placed: Vec<_> = places.into_iter().zip(masks.matrices).collect();
    placed.sort_by_key(|(id, _)| *id);
    let masks = WeightMasks { matrices: placed.into_iter().map(|(_, mask)| mask).collect() };
    Ok(MaskFile { masks, weights: Some(description.weights), label_words: description.label_words })
}

impl MaskFile {
    /// Fails where the file names other weights than those of `model`. `path` is for the message.
    pub fn check_weights(&self, path: &Path, model: &Model) -> Result<()> {
        match &self.weights {
            Some(expected) if *expected != weights_hash(model, &self.masks)? => Err(Error::format(
                path,
                "belongs to other weights of the same shapes than this model's: masks learnt on a frozen model \
                 belong to that model, masks learnt together with weights to those weights",
            )),
            _ => Ok(()),
        }
    }
}

/// Our file of `masks` learnt on `model` (or of the model they were applied to), as bytes. `label_words` are the tokens of
/// SMP's frozen head, and empty for every other.
pub fn encode(masks: &WeightMasks, model: &Model, label_words: &[u32]) -> Result<Vec<u8>> {
    let shapes = masks.matrices.iter().map(|mask| (mask.name.clone(), [mask.rows, mask.cols])).collect();
    let description = Description {
        kind: KIND.into(),
        version: 1,
        model_type: model.config().family.model_type().into(),
        shapes,
        label_words: label_words.to_vec(),
        weights: weights_hash(model, masks)?,
    };
    let failed = |e: String| Error::usage(format!("writing masks: {e}"));
    let text = serde_json::to_string(&description).map_err(|e| failed(e.to_string()))?;
    let packed: Vec<(&str, Vec<u8>)> =
        masks.matrices.iter().map(|mask| (mask.name.as_str(), mask.packed())).collect();
    let views: Vec<(&str, TensorView)> = packed
        .iter()
        .map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?)))
        .collect::<std::result::Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| failed(e.to_string()))?;
    let metadata = HashMap::from([("secateur".to_string(), text)]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))
}

/// BLAKE3, in hexadecimal, of the masked weights W ∘ M: of every masked matrix in the order of names, its name, shape
/// and kept values.
pub fn weights_hash(model: &Model, masks: &WeightMasks) -> Result<String> {
    let places = masks.places(&model.architecture)?;
    let digest = |(mask, id): (&WeightMask, &ParameterId)| {
        let parameter = model.layout().get(*id);
        let block = &model.values[parameter.offset..parameter.offset + parameter.span()];
        let mut hasher = blake3::Hasher::new();
        hasher.update(mask.name.as_bytes());
        hasher.update(&[mask.rows as u64, mask.cols as u64].map(u64::to_le_bytes).concat());
        let mut row = Vec::with_capacity(4 * mask.cols);
        for (r, values) in block.chunks(parameter.ld().max(1)).take(mask.rows).enumerate() {
            row.clear();
            for (c, value) in values[..mask.cols].iter().enumerate() {
                let kept = if mask.keeps(r * mask.cols + c) { value.to_bits() } else { 0 };
                row.extend(kept.to_le_bytes());
            }
            hasher.update(&row);
        }
        (mask.name.clone(), hasher.finalize())
    };
    let mut digests: Vec<_> = masks.matrices.par_iter().zip(&places).map(digest).collect();
    digests.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut whole = blake3::Hasher::new();
    for (_, digest) in &digests {
        whole.update(digest.as_bytes());
    }
    Ok(whole.finalize().to_hex().to_string())
}
