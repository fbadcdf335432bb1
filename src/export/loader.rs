//! `load.py`: how a compact model gets into Python.
//!
//! transformers' configurations know one number of heads and one of neurons for all layers, so a model whose layers
//! differ needs a few lines that resize its modules. They are written beside the model; they need torch, transformers and
//! safetensors, execute nothing that was saved, and load no pickle.

use std::path::Path;

use serde_json::{Map, Value};

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

/// Adds transformers' own record of removed heads to the `config.json` of a directory: with it its version 4 loads the model
/// by itself.
pub fn note_pruned_heads(directory: &Path, removed: Map<String, Value>) -> Result<()> {
    let path = directory.join("config.json");
    let broken = |e: serde_json::Error| Error::format(&path, e.to_string());
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "reading"))?;
    let mut config: Map<String, Value> = serde_json::from_str(&text).map_err(broken)?;
    config.insert("pruned_heads".into(), Value::Object(removed));
    let mut text = serde_json::to_string_pretty(&config).map_err(broken)?;
    text.push('\n');
    std::fs::write(&path, text).map_err(Error::io(&path, "writing"))
}

/// Writes the loader into the directory of a model.
pub fn write(directory: &Path) -> Result<()> {
    let path = directory.join(FILE_NAME);
    std::fs::write(&path, SOURCE).map_err(Error::io(&path, "writing"))
}
