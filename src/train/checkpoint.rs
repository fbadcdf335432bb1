//! Training checkpoints: everything a run needs to continue to the same bits, in one file.
//!
//! `training_state.safetensors` holds the flat blocks (parameters, both moments) and, in its metadata, the step,
//! the dropout draw, the data cursor, the history so far and a fingerprint of recipe, data and parameter layout.
//! It is written under a temporary name and renamed, so there is always one whole checkpoint.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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

/// A block and its name in the file.
type Named = (&'static str, Block);

/// Writes a checkpoint of these blocks into `directory`. One block at a time is copied from the executor.
pub fn save(directory: &Path, executor: &dyn Executor, blocks: &[Named], progress: &Progress) -> Result<()> {
    let path = directory.join(FILE_NAME);
    let broken = |e: serde_json::Error| Error::format(&path, e.to_string());
    let text = serde_json::to_string(progress).map_err(broken)?;
    let mut header = serde_json::Map::from_iter([("__metadata__".to_string(), json!({ "progress": text }))]);
    let mut start = 0;
    for (name, block) in blocks {
        let len = executor.block_len(*block);
        let offsets = [start, start + 4 * len];
        header.insert((*name).into(), json!({"dtype": "F32", "shape": [len], "data_offsets": offsets}));
        start += 4 * len;
    }
    let mut header = serde_json::to_vec(&header).map_err(broken)?;
    // Spaces at its end align the blocks, as the format allows.
    header.resize(header.len().next_multiple_of(8), b' ');
    atomically(&path, |file| {
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io(&path, "writing"));
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        let mut blocks = blocks.iter();
        blocks.try_for_each(|(_, block)| write(bytemuck::cast_slice(&executor.read_block(*block)?)))
    })
}

/// Lets `fill` write a temporary sibling of `path`, flushes it to disk and renames it.
fn atomically(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(Error::io(path, "writing"))?;
    fill(file.as_file_mut())?;
    file.as_file().sync_all().map_err(Error::io(path, "writing"))?;
    file.persist(path).map_err(|e| Error::io(path, "renaming")(e.error))?;
    Ok(())
}

/// Writes `bytes` to a temporary sibling of `path`, flushes it to disk and renames it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    atomically(path, |file| file.write_all(bytes).map_err(Error::io(path, "writing")))
}

/// Restores the checkpoint in `directory`, if there is one and it belongs to this run.
pub fn restore(
    directory: &Path,
    executor: &mut dyn Executor,
    blocks: &[Named],
    fingerprint: &str,
) -> Result<Option<Progress>> {
    let path = directory.join(FILE_NAME);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "reading")(e)),
    };
    let broken = |e: &dyn std::fmt::Display| Error::format(&path, format!("not a checkpoint: {e}"));
    let bytes = file.metadata().map_err(Error::io(&path, "reading"))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| broken(&e))?;
    let length = u64::from_le_bytes(length);
    if length > bytes - 8 {
        return Err(broken(&format!("its header claims {length} of {bytes} bytes")));
    }
    let mut header = Vec::new();
    (&file).take(length).read_to_end(&mut header).map_err(Error::io(&path, "reading"))?;
    let header: Value = serde_json::from_slice(&header).map_err(|e| broken(&e))?;
    let text = header["__metadata__"]["progress"].as_str();
    let text = text.ok_or_else(|| broken(&"no progress in its metadata"))?;
    let progress: Progress = serde_json::from_str(text).map_err(|e| broken(&e))?;
    if progress.fingerprint != fingerprint {
        let message = "belongs to another run (other model, data, recipe or seed); remove it to start anew";
        return Err(Error::format(&path, message));
    }
    for &(name, block) in blocks {
        let [start, end] = [0, 1].map(|side| header[name]["data_offsets"][side].as_u64());
        let (Some(start), Some(end), Some("F32")) = (start, end, header[name]["dtype"].as_str()) else {
            return Err(broken(&format!("no block {name} of F32")));
        };
        if start > end || end > bytes - 8 - length {
            return Err(broken(&format!("block {name} is not inside the file's {bytes} bytes")));
        }
        // A block of which nothing is trained.
        if start == end {
            continue;
        }
        file.seek(SeekFrom::Start(8 + length + start)).map_err(Error::io(&path, "reading"))?;
        executor.write_block(block, &floats(&path, &file, (end - start) as usize)?)?;
    }
    Ok(Some(progress))
}

/// The next `bytes` of a file as little-endian floats, without a second copy of them.
pub(super) fn floats(path: &Path, mut file: &File, bytes: usize) -> Result<Vec<f32>> {
    let mut values = vec![0.0f32; bytes / 4];
    file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(Error::io(path, "reading"))?;
    if cfg!(target_endian = "big") {
        values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
    }
    Ok(values)
}
