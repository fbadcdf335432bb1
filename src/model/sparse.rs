//! Models whose pruned weights are not stored: a bit for every element of a matrix, and the elements that are not zero.
//!
//! A model directory may hold `model.sparse.safetensors` in place of `model.safetensors`. In it a matrix W is two
//! tensors, `W.mask` (U8, packed as `numpy.packbits` packs: row-major, the most significant bit first) and `W.values`
//! (F32, F16 or BF16: the elements whose bit is set, in the same order); what is not sparse enough to gain is stored as
//! ever. The file's metadata field `secateur` names the sparse matrices with their shapes:
//! `{"kind": "sparse", "version": 1, "shapes": {"W": [rows, cols], …}}`. Reading gives back the very bits: a +0 is what
//! has no bit, every other value (−0 too) has one.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::stored::{Saved, StoredType};
use super::weight_masks::WeightMask;
use super::weights::{self, Tensor};
use super::{Model, WeightMasks, packed_bits};
use crate::error::{Error, Result};
use crate::program::Parameter;

/// Name of the file.
pub const FILE_NAME: &str = "model.sparse.safetensors";

/// Bytes that the weights of a model took and take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SparseSize {
    /// All weights of the model, stored densely in the same type.
    pub dense: u64,
    /// The file.
    pub file: u64,
}

impl Model {
    /// Saves `config.json` and `model.sparse.safetensors`, each under a temporary name first. The directory is created.
    /// Fails on a value that the type cannot hold.
    pub fn save_sparse(&self, directory: &Path, stored: StoredType) -> Result<SparseSize> {
        std::fs::create_dir_all(directory).map_err(Error::io(directory, "creating"))?;
        self.check_storable(stored)?;
        let mut shapes = Map::new();
        let mut tensors = Vec::new();
        let mut dense = 0;
        for (_, parameter) in self.layout().iter() {
            let name = &parameter.name;
            dense += (parameter.len() * stored.bytes()) as u64;
            let mask = (!parameter.vector).then(|| self.nonzero(parameter));
            match mask.filter(|mask| {
                mask.kept() * stored.bytes() + mask.len().div_ceil(8) < mask.len() * stored.bytes()
            }) {
                Some(mask) => {
                    shapes.insert(name.clone(), json!([mask.rows, mask.cols]));
                    let values = self.rows_of(parameter).flatten().copied();
                    let values = values.filter(|value| value.to_bits() != 0).collect();
                    tensors.push((format!("{name}.mask"), Saved::Packed(mask.packed())));
                    tensors.push((format!("{name}.values"), Saved::Values(values, stored)));
                }
                None => tensors.push((name.clone(), Saved::Rows(self.stored_rows(parameter, stored)))),
            }
        }
        let metadata = json!({ "kind": "sparse", "version": 1, "shapes": shapes }).to_string();
        let path = directory.join(FILE_NAME);
        weights::write(&path, &tensors, ("secateur", &metadata))?;
        self.save_config(directory, stored)?;
        let file = std::fs::metadata(&path).map_err(Error::io(&path, "reading"))?.len();
        Ok(SparseSize { dense, file })
    }

    /// A bit for every element of a matrix that is not +0.
    fn nonzero(&self, parameter: &Parameter) -> WeightMask {
        let block = &self.values[parameter.offset..];
        let (cols, ld) = (parameter.cols, parameter.ld());
        WeightMask::from_fn(&parameter.name, parameter.rows, cols, |i| {
            block[i / cols * ld + i % cols].to_bits() != 0
        })
    }

    /// What is not +0 in the matrices of the layers: the masks of a model that was saved with zeros.
    pub fn nonzero_masks(&self) -> WeightMasks {
        let architecture = &self.architecture;
        let mask = |id| {
            let mut mask = self.nonzero(architecture.layout.get(id));
            mask.name = architecture.mask_name(id);
            mask
        };
        WeightMasks { matrices: architecture.layer_matrices().iter().map(|matrix| mask(matrix.id)).collect() }
    }

    /// Rows of a parameter without their padding.
    pub(super) fn rows_of<'a>(&'a self, parameter: &Parameter) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let cols = parameter.cols;
        let block = &self.values[parameter.offset..parameter.offset + parameter.span()];
        block.chunks(parameter.ld().max(1)).map(move |row| &row[..cols])
    }
}

/// Joins the two tensors of every sparse matrix of a file to one. `bytes` is the whole file, into which tensors point.
pub(super) fn join(
    path: &Path,
    mut tensors: Vec<(String, Tensor)>,
    bytes: &[u8],
    metadata: &str,
) -> Result<Vec<(String, Tensor)>> {
    let broken = |message: String| Error::format(path, message);
    let metadata: Value = serde_json::from_str(metadata)
        .map_err(|e| broken(format!("its metadata field \"secateur\": {e}")))?;
    if metadata["kind"] != "sparse" {
        return Err(broken(format!("holds {}, not the weights of a model", metadata["kind"])));
    }
    if metadata["version"] != 1 {
        return Err(broken(format!(
            "is in version {} of the sparse layout; 1 is known",
            metadata["version"]
        )));
    }
    let empty = Map::new();
    for (name, shape) in metadata["shapes"].as_object().unwrap_or(&empty) {
        let extents: Option<Vec<usize>> = shape.as_array().and_then(|shape| {
            shape.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect()
        });
        let mut take = |part: &str| {
            let index = tensors.iter().position(|(found, _)| *found == format!("{name}.{part}"))?;
            Some(tensors.swap_remove(index).1)
        };
        let (Some(&[rows, cols]), Some(mask), Some(values)) =
            (extents.as_deref(), take("mask"), take("values"))
        else {
            return Err(broken(format!("the sparse matrix {name} lacks its shape, mask or values")));
        };
        let packed = &bytes[mask.range()];
        let length = rows.checked_mul(cols).filter(|length| length.div_ceil(8) == packed.len());
        let kept: usize = packed.iter().map(|byte| byte.count_ones() as usize).sum();
        let Some(length) = length.filter(|&length| !packed_bits::stray_bits(packed, length)) else {
            let message = format!("{} bytes are no mask of the {rows} × {cols} matrix {name}", packed.len());
            return Err(broken(message));
        };
        if values.shape != [kept] {
            let message =
                format!("the mask of {name} keeps {kept} of {length} values, stored are {:?}", values.shape);
            return Err(broken(message));
        }
        tensors.push((name.clone(), values.expanded(vec![rows, cols], mask)));
    }
    Ok(tensors)
}

/// Writes the values of a sparse matrix to rows of `cols` elements that start every `ld`, zeros between them.
pub(super) fn expand<const N: usize>(
    values: &[u8],
    mask: &[u8],
    cols: usize,
    ld: usize,
    out: &mut [f32],
    to: impl Fn([u8; N]) -> f32,
) {
    let (values, _) = values.as_chunks::<N>();
    let mut values = values.iter();
    let mut at = 0;
    for row in out.chunks_mut(ld.max(1)) {
        for value in row.iter_mut().take(cols) {
            let kept = mask[at / 8] & (0x80 >> (at % 8)) != 0;
            // As many values as bits: `join` has counted them.
            *value = if kept { values.next().map_or(0.0, |bytes| to(*bytes)) } else { 0.0 };
            at += 1;
        }
    }
}
