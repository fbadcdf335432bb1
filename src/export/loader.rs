//! `load.py`: how a compact model gets into Python.
//!
//! transformers' configurations know one number of heads and one of neurons for all layers, so a model whose layers
//! differ needs a few lines that resize its modules. They are written beside the model; they need torch, transformers and
//! safetensors, execute nothing that was saved, and load no pickle.

use std::path::Path;

use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Name of the file.
pub const FILE_NAME: &str = "load.py";

/// The program.
pub const SOURCE: &str = include_str!("load.py");

/// Whether a model of this configuration needs the loader: stock tools build layers of one width only.
pub fn is_needed(config: &ModelConfig) -> bool {
    let (first, before) = (config.layers[0], config.original_widths()[0]);
    !config.layers.iter().all(|layer| *layer == first && layer.heads == before.heads && layer.neurons > 0)
}

/// Writes the loader into the directory of a model.
pub fn write(directory: &Path) -> Result<()> {
    let path = directory.join(FILE_NAME);
    std::fs::write(&path, SOURCE).map_err(Error::io(&path, "writing"))
}
