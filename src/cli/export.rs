//! `secateur export`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use secateur::data::Tokenizer;
use secateur::export::snap::{self, Pattern};
use secateur::export::{loader, mask_file, packed, unit_masks};
use secateur::model::{
    EmptySublayers, Head, HeadRequest, Model, ModelConfig, StoredType, UnitMasks, WeightMasks,
};
use secateur::report::RunRecord;
use secateur::report::format;
use secateur::{Error, Result};
use serde_json::{Value, json};

use super::context::Context;
use super::load;
use super::options::{ModelOptions, OutputOptions};
use super::output::Output;

/// Write a masked model, or its masks, as files that other programs read.
///
/// Weight masks leave zeros in matrices of the same size. Stored densely they save nothing, and dense kernels multiply zeros
/// like any other number: such a model is as large in memory and as slow as before. It is small on disk (`sparse`, or the
/// masks alone beside the one frozen model of all tasks), and that is all. Removed heads and neurons do make a model
/// smaller and faster.
///
/// Masks of SMP answer by label words. `hf` and `sparse` note them in config.json, where `evaluate` reads them; other programs
/// take the logits of these words from the language-model head.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur export --model frozen --mask-file masks.npy --format hf --out masked\n    \
                  plain transformers layout, zeros where the masks say\n  \
                  secateur export --model frozen --mask-file masks.npy --format sparse --dtype f16 --out sparse\n    \
                  a bit a weight and the weights that are kept; a model directory for secateur\n  \
                  secateur export --model DIR --masks masks.json --format hf --out small\n    \
                  without the masked heads and neurons, and load.py for transformers\n  \
                  secateur export --model DIR --masks FOLDER --format masks-json --out converted\n    \
                  head_mask.pt and neuron_mask.pt of another program as masks.json"
)]
pub struct Export {
    #[command(flatten)]
    model: ModelOptions,
    /// Head and neuron masks: masks.json, a folder with head_mask.pt and neuron_mask.pt, one of these, or a config.json
    /// with pruned_heads.
    #[arg(long, value_name = "PATH")]
    masks: Option<PathBuf>,
    /// Weight masks: .npy in SMP's layout, or .safetensors of secateur. Without it the weights that are zero are masked.
    #[arg(long, value_name = "FILE")]
    mask_file: Option<PathBuf>,
    /// What to write.
    #[arg(long, value_enum)]
    format: FormatName,
    /// Type of the stored weights (hf, sparse). Default f32.
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<TypeName>,
    /// Keep at most N of every M weights along the inputs of an output, those with the largest magnitudes: 2:4 is what
    /// sparse tensor cores skip, in kernels made for it.
    #[arg(long, value_name = "N:M", value_parser = |text: &str| text.parse::<Pattern>().map_err(|e| e.to_string()))]
    snap: Option<Pattern>,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum FormatName {
    /// config.json, model.safetensors, tokenizer: what stock tools load. Masked weights are zeros; masked heads and neurons
    /// are gone, and where layers then differ, load.py rebuilds the model in transformers.
    Hf,
    /// The same with model.sparse.safetensors: a bit a weight, and the weights that are not zero.
    Sparse,
    /// masks.npy: the bits of all matrices as SMP's authors released them.
    Npy,
    /// masks.safetensors: the bits with names, shapes and a hash of the weights they belong to.
    SafetensorsMasks,
    /// masks.json: head and neuron masks.
    MasksJson,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum TypeName {
    F32,
    F16,
    Bf16,
}

impl From<TypeName> for StoredType {
    fn from(name: TypeName) -> StoredType {
        match name {
            TypeName::F32 => StoredType::F32,
            TypeName::F16 => StoredType::F16,
            TypeName::Bf16 => StoredType::Bf16,
        }
    }
}

impl Export {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        self.check_usage()?;
        let output = Output::create(&self.output, false)?;
        let mut record = context.record("export");
        let (directory, config) = load::configuration(&self.model.model)?;
        let request = match config.saved_head {
            Some(_) => HeadRequest::AsSaved,
            None => HeadRequest::Task(Head::Backbone),
        };
        let mut model = load::weights(context, &mut record, &directory, &self.model.model, request)?;
        if let Some(fresh) = model.report.initialised.first() {
            let message = format!("lacks {fresh}; weights drawn at random are not exported");
            return Err(Error::format(&directory, message));
        }
        let units = match &self.masks {
            Some(path) => Some(load::unit_masks(&mut record, path, &config.widths())?),
            None => None,
        };
        let (weights, label_words) = self.weight_masks(&mut record, &model)?;
        let folder = output.path();
        let mut text = String::new();
        let result = match self.format {
            FormatName::Npy => {
                let masks = weights.unwrap_or_else(|| model.nonzero_masks());
                self.write_masks(
                    &masks,
                    "masks.npy",
                    packed::encode(&masks, &model.architecture)?,
                    folder,
                    &mut text,
                )?
            }
            FormatName::SafetensorsMasks => {
                let masks = weights.unwrap_or_else(|| model.nonzero_masks());
                self.write_masks(
                    &masks,
                    "masks.safetensors",
                    mask_file::encode(&masks, &model, &label_words)?,
                    folder,
                    &mut text,
                )?
            }
            FormatName::MasksJson => {
                let (masks, empty) =
                    units.unwrap_or_else(|| (UnitMasks::ones(&config.widths()), EmptySublayers::KeepBias));
                masks.write_with_empty(&folder.join("masks.json"), empty)?;
                json!({ "widths": masks.widths() })
            }
            FormatName::Hf | FormatName::Sparse => {
                if let Some(masks) = &weights {
                    masks.apply(&mut model)?;
                }
                model.architecture.config.label_words = label_words.clone();
                self.write_model(context, model, units.as_ref(), &directory, folder, &mut text)?
            }
        };
        text.push_str(&self.about_words(&label_words, &directory, &config));
        output.commit()?;
        record.result = Some(result);
        context.finish(&mut record);
        let _ = writeln!(text, "in {}", self.output.out.display());
        context.show(&[record], |_| text);
        Ok(())
    }

    /// Combinations that say nothing.
    fn check_usage(&self) -> Result<()> {
        let of_model = matches!(self.format, FormatName::Hf | FormatName::Sparse);
        let of_units = self.format == FormatName::MasksJson;
        let refuse = |message: &str| Err(Error::usage(message));
        match self {
            _ if self.dtype.is_some() && !of_model => refuse("--dtype belongs to the formats hf and sparse"),
            _ if of_units && self.masks.is_none() => refuse("--format masks-json needs --masks"),
            _ if of_units && (self.mask_file.is_some() || self.snap.is_some()) => refuse(
                "--format masks-json writes head and neuron masks; weight masks have npy and safetensors-masks",
            ),
            _ if !of_model && !of_units && self.masks.is_some() => {
                refuse("npy and safetensors-masks hold weight masks; head and neuron masks have masks-json")
            }
            _ => Ok(()),
        }
    }

    /// The masks of the file, snapped where asked to (`None` if there is nothing to mask), and its label words.
    fn weight_masks(&self, record: &mut RunRecord, model: &Model) -> Result<(Option<WeightMasks>, Vec<u32>)> {
        let mut label_words = model.config().label_words.clone();
        let masks = match &self.mask_file {
            Some(path) => {
                let file = load::weight_masks(record, path, model)?;
                label_words = file.label_words;
                Some(file.masks)
            }
            None if self.snap.is_some() => Some(model.nonzero_masks()),
            None => None,
        };
        match (masks, self.snap) {
            (Some(masks), Some(pattern)) => Ok((Some(snap::snap(&masks, model, pattern)?), label_words)),
            (masks, _) => Ok((masks, label_words)),
        }
    }

    /// What to say of the words that answer for the classes, where the masks have some.
    fn about_words(&self, words: &[u32], directory: &Path, config: &ModelConfig) -> String {
        let tokenizer = Tokenizer::from_directory(directory, config.family.model_type());
        let (false, Ok(tokenizer)) = (words.is_empty(), tokenizer) else { return String::new() };
        let words: Vec<String> = words.iter().filter_map(|&id| tokenizer.token(id)).collect();
        let words = words.join(",");
        let of_task =
            matches!(config.saved_head, Some(Head::Classification { .. } | Head::Regression | Head::Span));
        match self.format {
            FormatName::Hf | FormatName::Sparse if !of_task => {
                format!("label words {words} answer, noted in config.json for `evaluate`\n")
            }
            FormatName::Hf | FormatName::Sparse | FormatName::Npy => {
                format!("label words answer, which are not noted: give `evaluate --label-words {words}`\n")
            }
            FormatName::SafetensorsMasks | FormatName::MasksJson => String::new(),
        }
    }

    fn write_masks(
        &self,
        masks: &WeightMasks,
        name: &str,
        file: Vec<u8>,
        folder: &Path,
        text: &mut String,
    ) -> Result<Value> {
        let path = folder.join(name);
        let bytes = file.len() as u64;
        std::fs::write(&path, file).map_err(Error::io(&path, "writing"))?;
        let line = format!(
            "{name}: {} of {} weights kept ({}), {}",
            format::grouped(masks.kept() as u64),
            format::grouped(masks.total() as u64),
            format::percent(masks.kept_fraction()),
            format::bytes(bytes)
        );
        let _ = writeln!(text, "{line}");
        Ok(json!({ "weights_kept": masks.kept(), "weights": masks.total(), "bytes": bytes }))
    }

    fn write_model(
        &self,
        context: &Context,
        model: Model,
        units: Option<&(UnitMasks, EmptySublayers)>,
        source: &Path,
        folder: &Path,
        text: &mut String,
    ) -> Result<Value> {
        let dense = model.layout().total_elements();
        let model = match units {
            Some((masks, empty)) => model.compact(masks, *empty)?,
            None => model,
        };
        let stored = self.dtype.map_or(StoredType::F32, StoredType::from);
        let masks = model.nonzero_masks();
        let parameters = model.layout().total_elements();
        let size = (parameters * stored.bytes()) as u64;
        if dense != parameters {
            let share = format::percent(parameters as f64 / dense as f64);
            let line = format!(
                "{} of {} parameters ({share})",
                format::count(parameters as f64),
                format::count(dense as f64)
            );
            let _ = writeln!(text, "{line} are left: smaller and faster everywhere");
        }
        let mut bytes = size;
        if self.format == FormatName::Sparse {
            bytes = model.save_sparse(folder, stored)?.file;
        } else {
            model.save_as(folder, stored)?;
            if let Some(removed) = units.and_then(|(masks, _)| unit_masks::to_pruned_heads(masks)) {
                loader::note_pruned_heads(folder, removed)?;
            }
            if loader::is_needed(model.config()) {
                loader::write(folder)?;
                let _ = writeln!(
                    text,
                    "layers differ in width; in Python, with torch, transformers and safetensors:"
                );
                let _ = writeln!(
                    text,
                    "    from load import load  # load.py in the directory\n    model = load()"
                );
            }
        }
        let _ = writeln!(
            text,
            "{} in {}, {} densely",
            format::bytes(bytes),
            stored.torch_name(),
            format::bytes(size)
        );
        if masks.kept() < masks.total() {
            let line = format!(
                "{} of the layers' weights are kept; dense kernels multiply the zeros too: neither memory nor time is saved",
                format::percent(masks.kept_fraction())
            );
            let _ = writeln!(text, "{line}");
        }
        // A model without a tokenizer, as a fixture or a backbone may be, is exported without one.
        match Tokenizer::from_directory(source, model.config().family.model_type()) {
            Ok(tokenizer) => tokenizer.save(folder)?,
            Err(error) => context.progress.warn(format!("exported without a tokenizer: {error}")),
        }
        Ok(json!({
            "weights_kept": masks.kept(), "weights": masks.total(), "parameters": parameters,
            "parameters_before": dense, "bytes": bytes, "bytes_dense": size,
        }))
    }
}
