//! Training checkpoints: everything a run needs to continue to the same bits, in one file.
//!
//! `training_state.safetensors` holds the flat blocks (parameters, both moments) and, in its metadata, the step,
//! the dropout draw, the data cursor, the history so far and a fingerprint of recipe, data and parameter layout.
//! It is written under a temporary name and renamed, so there is always one whole checkpoint.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::data::batcher::Cursor;
use crate::error::{Error, Result};
use crate::exec::{Block, Executor};

/// Name of the checkpoint within an output directory.
pub const FILE_NAME: &str = "training_state.safetensors";

/// Where a run stands, apart from the blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    /// Forward passes with dropout done: the `draw` word of the random key.
    pub draw: u64,
    /// The next step of the data.
    pub cursor: Cursor,
    /// Hash of recipe, seed, data and layout; a checkpoint of another run is refused.
    pub fingerprint: String,
    /// What the run has recorded so far (losses, metrics by epoch), as the caller serialises it.
    pub history: serde_json::Value,
}

const BLOCKS: [(&str, Block); 3] = [
    ("parameters", Block::Parameters),
    ("first_moment", Block::FirstMoment),
    ("second_moment", Block::SecondMoment),
];

/// Writes a checkpoint into `directory`.
pub fn save(directory: &Path, executor: &dyn Executor, progress: &Progress) -> Result<()> {
    let path = directory.join(FILE_NAME);
    let blocks: Vec<(&str, Vec<f32>)> =
        BLOCKS.iter().map(|&(name, block)| Ok((name, executor.read_block(block)?))).collect::<Result<_>>()?;
    let mut views = Vec::new();
    for (name, block) in &blocks {
        let bytes: &[u8] = bytemuck::cast_slice(block);
        let view = TensorView::new(Dtype::F32, vec![block.len()], bytes)
            .map_err(|e| Error::format(&path, format!("cannot describe the block {name}: {e}")))?;
        views.push((*name, view));
    }
    let text = serde_json::to_string(progress).map_err(|e| Error::format(&path, e.to_string()))?;
    let metadata = HashMap::from([("progress".to_string(), text)]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::format(&path, format!("cannot serialise: {e}")))?;
    write_atomically(&path, &bytes)
}

/// Writes `bytes` to a temporary sibling of `path`, flushes it to disk and renames it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(Error::io(path, "writing"))?;
    file.write_all(bytes).map_err(Error::io(path, "writing"))?;
    file.as_file().sync_all().map_err(Error::io(path, "writing"))?;
    file.persist(path).map_err(|e| Error::io(path, "renaming")(e.error))?;
    Ok(())
}

/// Reads only the progress of the checkpoint in `directory`; `None` when there is none.
pub fn peek(directory: &Path) -> Result<Option<Progress>> {
    let path = directory.join(FILE_NAME);
    match std::fs::read(&path) {
        Ok(bytes) => parse(&path, &bytes).map(|(progress, _)| Some(progress)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(&path, "reading")(e)),
    }
}

/// Restores the checkpoint in `directory`, if there is one and it belongs to this run.
pub fn restore(directory: &Path, executor: &mut dyn Executor, fingerprint: &str) -> Result<Option<Progress>> {
    let path = directory.join(FILE_NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "reading")(e)),
    };
    let (progress, tensors) = parse(&path, &bytes)?;
    if progress.fingerprint != fingerprint {
        let message = "belongs to another run (other model, data, recipe or seed); remove it to start anew";
        return Err(Error::format(&path, message));
    }
    for (name, block) in BLOCKS {
        let tensor = tensors.tensor(name).map_err(|e| Error::format(&path, format!("block {name}: {e}")))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(Error::format(&path, format!("block {name} is {:?}, not F32", tensor.dtype())));
        }
        let values: Vec<f32> = floats(tensor.data());
        executor.write_block(block, &values)?;
    }
    Ok(Some(progress))
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<(Progress, SafeTensors<'a>)> {
    let broken = |e: &dyn std::fmt::Display| Error::format(path, format!("not a checkpoint: {e}"));
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| broken(&e))?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
    let text = metadata.metadata().as_ref().and_then(|m| m.get("progress"));
    let text = text.ok_or_else(|| broken(&"no progress in its metadata"))?;
    let progress = serde_json::from_str(text).map_err(|e| broken(&e))?;
    Ok((progress, tensors))
}

/// Little-endian floats of any alignment.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect()
}
