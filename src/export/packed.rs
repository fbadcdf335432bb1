//! The mask file that SMP's authors released: every bit of a model's masks in one `.npy` array.
//!
//! The masks of all matrices of the layers, in the lexicographic order of their parameters' names (layer 10 before
//! layer 2), each row-major as the checkpoint stores it, are one sequence of bits, eight a byte, the most significant
//! first, the last byte filled with zeros (`numpy.packbits`; kongds/SMP). 84,934,656 bits, 10.6 MB, for BERT-base. The
//! file says nothing about shapes: it is read for a model, and another number of bits is all that can be noticed.

use std::path::Path;

use super::npy;
use crate::error::{Error, Result};
use crate::model::{Architecture, WeightMask, WeightMasks, stray_bits};

/// The file of `masks`, which must hold a mask for every matrix of the layers of `architecture`.
pub fn encode(masks: &WeightMasks, architecture: &Architecture) -> Result<Vec<u8>> {
    masks.places(architecture)?;
    let matrices = matrices(architecture);
    let mut bytes = vec![0; total(&matrices).div_ceil(8)];
    let mut at = 0;
    for (name, ..) in &matrices {
        let mask = masks.find(name).ok_or_else(|| {
            let message = "is missing; this layout holds one for every matrix of the layers";
            Error::shape(format!("mask {name}"), message)
        })?;
        mask.pack_at(&mut bytes, at);
        at += mask.len();
    }
    Ok(npy::encode(&bytes))
}

/// Reads a file as the masks of a model; `path` is for error messages. Fails on another number of bits than the layers'
/// matrices have, and where the bits that fill the last byte are not zero.
pub fn decode(path: &Path, file: &[u8], architecture: &Architecture) -> Result<WeightMasks> {
    let bytes = npy::decode(path, file)?;
    let matrices = matrices(architecture);
    let total = total(&matrices);
    if bytes.len() != total.div_ceil(8) || stray_bits(bytes, total) {
        let message = format!(
            "holds {} bits, but the layers' matrices of this {} model have {total}: masks of another model?",
            8 * bytes.len(),
            architecture.config.family.model_type(),
        );
        return Err(Error::format(path, message));
    }
    let mut at = 0;
    let mut masks = WeightMasks::default();
    for (name, rows, cols) in matrices {
        masks.matrices.push(WeightMask::unpack_at(&name, rows, cols, bytes, at)?);
        at += rows * cols;
    }
    // From the file's order to the model's.
    let places = masks.places(architecture)?;
    let mut placed: Vec<_> = places.into_iter().zip(masks.matrices).collect();
    placed.sort_by_key(|(id, _)| *id);
    Ok(WeightMasks { matrices: placed.into_iter().map(|(_, mask)| mask).collect() })
}

/// Name, rows and columns of the matrices of the layers in the file's order.
fn matrices(architecture: &Architecture) -> Vec<(String, usize, usize)> {
    let described = |matrix: &crate::model::LayerMatrix| {
        let parameter = architecture.layout.get(matrix.id);
        (architecture.mask_name(matrix.id), parameter.rows, parameter.cols)
    };
    let mut matrices: Vec<_> = architecture.layer_matrices().iter().map(described).collect();
    matrices.sort();
    matrices
}

fn total(matrices: &[(String, usize, usize)]) -> usize {
    matrices.iter().map(|(_, rows, cols)| rows * cols).sum()
}
