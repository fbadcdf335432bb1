//! Models from and to directories in the Hugging Face layout.
//!
//! Loading is strict about the backbone (a missing, misshapen or non-finite tensor is an error that names it) and
//! generous about the head: what the checkpoint lacks is drawn afresh and reported. Shapes are compared before
//! anything is allocated, so a hostile configuration costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::ModelConfig;
use super::heads::Head;
use super::parameters::linear_ids;
use super::stored::{Rows, Saved, StoredType};
use super::weights::{self, TensorFiles};
use super::{Architecture, HeadParameters, Model, names};
use crate::error::{Error, Result};
use crate::program::{Parameter, ParameterId};

/// Which head a model is loaded with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeadRequest {
    /// The one it was saved with.
    AsSaved,
    /// This one; from the checkpoint where it has it, new otherwise. A classifier for another number of classes
    /// is replaced by a new one.
    Task(Head),
}

/// What loading found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Number of parameters read from the checkpoint.
    pub loaded: usize,
    /// Parameters drawn afresh, because the checkpoint lacks them.
    pub initialised: Vec<String>,
    /// Tensors of the checkpoint that this model has no use for.
    pub unused: Vec<String>,
}

impl Model {
    /// Loads a model from a directory with `config.json` and safetensors weights. `seed` draws what is missing.
    pub fn load(directory: &Path, request: HeadRequest, seed: u64) -> Result<Model> {
        let path = directory.join("config.json");
        if !path.is_file() {
            return Err(Error::format(directory, "holds no config.json; it is not a model directory"));
        }
        let config = ModelConfig::read(&path)?;
        let saved_labels = config.labels.len();
        let head = match request {
            HeadRequest::AsSaved => config.saved_head.ok_or_else(|| {
                let known = "sequence classification, question answering, causal and masked language models";
                Error::format(
                    &path,
                    format!("\"architectures\" names no head known here ({known}); name a task"),
                )
            })?,
            HeadRequest::Task(head) => head,
        };
        let architecture = Architecture::new(config, head)?;
        let new_classes = architecture.config.labels.len() != saved_labels;
        let files = TensorFiles::open(directory)?;
        architecture.load(directory, &files, new_classes, seed)
    }

    /// A model with fresh weights.
    pub fn from_config(config: ModelConfig, head: Head, seed: u64) -> Result<Model> {
        let architecture = Architecture::new(config, head)?;
        let mut values = architecture.allocate()?;
        let mut report = LoadReport::default();
        for (id, parameter) in architecture.layout.iter() {
            architecture.initialise(id, seed, &mut values);
            report.initialised.push(parameter.name.clone());
        }
        Ok(Model { architecture, values, report })
    }

    /// Saves `config.json` and `model.safetensors`, each under a temporary name first. The directory is created.
    pub fn save(&self, directory: &Path) -> Result<()> {
        self.save_as(directory, StoredType::F32)
    }

    /// [`Model::save`] in another type. Fails, before anything is written, on a value that the type cannot hold.
    pub fn save_as(&self, directory: &Path, stored: StoredType) -> Result<()> {
        self.check_storable(stored)?;
        std::fs::create_dir_all(directory).map_err(Error::io(directory, "creating"))?;
        let rows = |parameter| Saved::Rows(self.stored_rows(parameter, stored));
        let tensors: Vec<(String, Saved)> =
            self.layout().iter().map(|(_, parameter)| (parameter.name.clone(), rows(parameter))).collect();
        weights::write(&directory.join("model.safetensors"), &tensors, ("format", "pt"))?;
        self.save_config(directory, stored)
    }

    /// Saves `config.json` alone.
    pub(super) fn save_config(&self, directory: &Path, stored: StoredType) -> Result<()> {
        let Architecture { config, head, .. } = &self.architecture;
        let path = directory.join("config.json");
        let mut map = config.to_json(*head);
        map.insert("torch_dtype".into(), stored.torch_name().into());
        let mut text =
            serde_json::to_string_pretty(&map).map_err(|error| Error::format(&path, error.to_string()))?;
        text.push('\n');
        weights::atomically(&path, |temporary| {
            std::fs::write(temporary, text).map_err(Error::io(temporary, "writing"))
        })
    }

    /// Fails on the first value that is finite and would not be as `stored`.
    pub(super) fn check_storable(&self, stored: StoredType) -> Result<()> {
        if stored == StoredType::F32 {
            return Ok(());
        }
        for (_, parameter) in self.layout().iter() {
            for (row, values) in self.rows_of(parameter).enumerate() {
                if let Some(col) = values.iter().position(|value| !stored.rounded(*value).is_finite()) {
                    return Err(Error::NotFinite {
                        what: format!("tensor {} in {}", parameter.name, stored.torch_name()),
                        value: f64::from(values[col]),
                        place: format!("at row {row}, column {col}: too large for this type"),
                    });
                }
            }
        }
        Ok(())
    }

    pub(super) fn stored_rows(&self, parameter: &Parameter, stored: StoredType) -> Rows<'_> {
        Rows {
            values: &self.values[parameter.offset..parameter.offset + parameter.span()],
            shape: stored_shape(parameter),
            cols: parameter.cols,
            ld: parameter.ld(),
            stored,
        }
    }
}

fn stored_shape(parameter: &Parameter) -> Vec<usize> {
    if parameter.vector { vec![parameter.cols] } else { vec![parameter.rows, parameter.cols] }
}

impl Architecture {
    /// A zeroed parameter block.
    pub(super) fn allocate(&self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        let len = self.layout.block_len();
        values.try_reserve_exact(len).map_err(|_| {
            let gigabytes = len as f64 * 4.0 / 1e9;
            Error::usage(format!("a model of {gigabytes:.1} GB of parameters does not fit into memory"))
        })?;
        values.resize(len, 0.0);
        Ok(values)
    }

    fn load(self, directory: &Path, files: &TensorFiles, new_classifier: bool, seed: u64) -> Result<Model> {
        let family = self.config.family;
        let mut by_stem: BTreeMap<String, &str> = BTreeMap::new();
        for (name, _) in files.iter() {
            let stem = names::stem(family, name);
            if let Some(other) = by_stem.insert(stem, name) {
                return Err(Error::format(
                    directory,
                    format!("tensors {other} and {name} are the same parameter"),
                ));
            }
        }
        let replaced = self.replaced_classifier(new_classifier);
        let plan = self.plan(directory, files, &by_stem, &replaced)?;
        let mut values = self.allocate()?;
        let mut report = LoadReport::default();
        for ((id, parameter), source) in self.layout.iter().zip(&plan) {
            match source {
                Some(name) => {
                    let block = &mut values[parameter.offset..parameter.offset + parameter.span()];
                    files.copy_rows(name, parameter.cols, parameter.ld(), block)?;
                    report.loaded += 1;
                }
                None => {
                    self.initialise(id, seed, &mut values);
                    report.initialised.push(parameter.name.clone());
                }
            }
        }
        let used: BTreeSet<&str> = plan.iter().flatten().copied().collect();
        self.check_tied(directory, files, &by_stem, &used, &values)?;
        let copies: Vec<&str> = names::tied(family).iter().map(|(copy, _)| *copy).collect();
        report.unused = by_stem
            .iter()
            .filter(|(stem, name)| !used.contains(*name) && !names::is_buffer(family, stem))
            .filter(|(stem, _)| !(self.head.is_language_model() && copies.contains(&stem.as_str())))
            .map(|(_, name)| name.to_string())
            .collect();
        Ok(Model { architecture: self, values, report })
    }

    /// Where each parameter comes from, shapes checked; `None` is drawn afresh.
    fn plan<'a>(
        &self,
        directory: &Path,
        files: &TensorFiles,
        by_stem: &BTreeMap<String, &'a str>,
        replaced: &[ParameterId],
    ) -> Result<Vec<Option<&'a str>>> {
        let head = self.parameters.head_ids();
        let mut plan = Vec::with_capacity(self.layout.count());
        let mut missing: Vec<&str> = Vec::new();
        for (id, parameter) in self.layout.iter() {
            let name = by_stem.get(&names::stem(self.config.family, &parameter.name)).copied();
            let tensor = name.and_then(|name| files.find(name));
            match (name, tensor) {
                (Some(name), Some(tensor)) => {
                    let expected = stored_shape(parameter);
                    if tensor.shape == expected {
                        plan.push(Some(name));
                        continue;
                    }
                    if !replaced.contains(&id) {
                        let message = format!(
                            "has shape {:?} in {}, but config.json asks for {expected:?}; see {}",
                            tensor.shape,
                            files.path_of(tensor).display(),
                            self.parameters.config_field(id)
                        );
                        return Err(Error::shape(format!("tensor {name}"), message));
                    }
                    plan.push(None);
                }
                _ => {
                    if !head.contains(&id) {
                        missing.push(&parameter.name);
                    }
                    plan.push(None);
                }
            }
        }
        match missing.as_slice() {
            [] => Ok(plan),
            [first, rest @ ..] => {
                let others =
                    if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
                let family = self.config.family.model_type();
                let message =
                    format!("lacks tensor {first}{others}, which the {family} model of its config.json has");
                Err(Error::format(directory, message))
            }
        }
    }

    /// Parameters that may have another shape in the checkpoint, because other classes were asked for.
    fn replaced_classifier(&self, new_classifier: bool) -> Vec<ParameterId> {
        match self.parameters.head {
            HeadParameters::Sequence { classifier, .. } if new_classifier => linear_ids(classifier).collect(),
            _ => Vec::new(),
        }
    }

    /// A checkpoint may repeat tied parameters; it may not contradict itself.
    fn check_tied(
        &self,
        directory: &Path,
        files: &TensorFiles,
        by_stem: &BTreeMap<String, &str>,
        used: &BTreeSet<&str>,
        values: &[f32],
    ) -> Result<()> {
        if !self.head.is_language_model() {
            return Ok(());
        }
        for (copy, original) in names::tied(self.config.family) {
            let Some(name) = by_stem.get(*copy).filter(|name| !used.contains(*name)) else { continue };
            let found =
                self.layout.iter().find(|(_, p)| names::stem(self.config.family, &p.name) == *original);
            let (Some((_, parameter)), Some(tensor)) = (found, files.find(name)) else { continue };
            let same_shape = tensor.shape == stored_shape(parameter);
            let mut copied = vec![0.0; if same_shape { parameter.span() } else { 0 }];
            if same_shape {
                files.copy_rows(name, parameter.cols, parameter.ld(), &mut copied)?;
            }
            if copied != values[parameter.offset..parameter.offset + copied.len()] || !same_shape {
                let message = format!(
                    "tensor {name} differs from {}, which it is tied to; if the two are meant to differ, set \
                     \"tie_word_embeddings\": false in config.json",
                    parameter.name
                );
                return Err(Error::format(directory, message));
            }
        }
        Ok(())
    }
}
