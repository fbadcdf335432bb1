//! Reading models, tokenizers and tasks the same way in every command, and noting in the record what was read.

use std::path::{Path, PathBuf};

use secateur::data::{Dataset, LoadOptions, Split, Task, TaskKind, Tokenizer, batch, table::TableColumns};
use secateur::export::mask_file::{self, MaskFile};
use secateur::export::unit_masks;
use secateur::model::{
    self, EmptySublayers, Head, HeadRequest, LabelWordHead, LayerWidths, Model, ModelConfig, UnitMasks,
};
use secateur::report::RunRecord;
use secateur::report::record::{BadRows, InputFile, ModelSummary, TaskSummary};
use secateur::{Error, Result};

use super::context::Context;
use super::options::TaskOptions;

/// A model directory whose configuration and tokenizer have been read.
pub struct Source {
    pub directory: PathBuf,
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
}

/// Finds a model and reads what is needed before its weights.
pub fn source(name: &str) -> Result<Source> {
    let (directory, config) = configuration(name)?;
    let tokenizer = Tokenizer::from_directory(&directory, config.family.model_type())?;
    Ok(Source { directory, config, tokenizer })
}

/// Directory and configuration of a model.
pub fn configuration(name: &str) -> Result<(PathBuf, ModelConfig)> {
    let directory = model::resolve(name)?;
    let path = directory.join("config.json");
    if !path.is_file() {
        return Err(Error::format(&directory, "holds no config.json; it is not a model directory"));
    }
    let config = ModelConfig::read(&path)?;
    Ok((directory, config))
}

/// Loads the weights; says what was drawn afresh, and warns of what the checkpoint has and the model does not.
pub fn weights(
    context: &Context,
    record: &mut RunRecord,
    directory: &Path,
    name: &str,
    request: HeadRequest,
) -> Result<Model> {
    let stage = context.progress.stage("reading the model", 0, "");
    let model = Model::load(directory, request, context.seed)?;
    note_model(record, name, &model);
    hash_model(record, directory)?;
    stage.finish();
    let fresh = &model.report.initialised;
    if !fresh.is_empty() {
        context.progress.note(format!("new in the model, drawn by the seed: {}", fresh.join(", ")));
    }
    Ok(model)
}

/// Shape of the model before anything is done to it.
pub fn note_model(record: &mut RunRecord, name: &str, model: &Model) {
    let config = model.config();
    record.model = Some(ModelSummary {
        name: name.into(),
        family: config.family.model_type().into(),
        layers: config.layers.len(),
        hidden: config.hidden,
        head_dim: config.head_dim,
        vocabulary: config.vocab,
        positions: config.max_length(),
        parameters: model.layout().total_elements() as u64,
    });
}

/// Hashes of the files a model is made of.
fn hash_model(record: &mut RunRecord, directory: &Path) -> Result<()> {
    let entries = std::fs::read_dir(directory).map_err(Error::io(directory, "listing"))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let role = match name.as_str() {
            "config.json" => "configuration",
            "tokenizer.json" | "vocab.txt" | "vocab.json" | "merges.txt" => "tokenizer",
            n if n.ends_with(".safetensors") => "model",
            _ => continue,
        };
        record.inputs.push(InputFile::hash(role, &path)?);
    }
    Ok(())
}

/// Head and neuron masks of any known layout, for a model of these widths, and what becomes of empty sublayers.
pub fn unit_masks(
    record: &mut RunRecord,
    path: &Path,
    widths: &[LayerWidths],
) -> Result<(UnitMasks, EmptySublayers)> {
    let masks = unit_masks::read(path, widths)?;
    let json = if path.is_dir() { path.join("masks.json") } else { path.to_path_buf() };
    let ours = json.extension().is_some_and(|extension| extension == "json") && json.is_file();
    let empty = if ours { EmptySublayers::read(&json)? } else { EmptySublayers::KeepBias };
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        files = ["masks.json", "head_mask.pt", "neuron_mask.pt"].map(|name| path.join(name)).into();
        files.retain(|file| file.is_file());
    }
    for file in files {
        record.inputs.push(InputFile::hash("masks", &file)?);
    }
    Ok((masks, empty))
}

/// Weight masks that belong to a model.
pub fn weight_masks(record: &mut RunRecord, path: &Path, model: &Model) -> Result<MaskFile> {
    let file = mask_file::read(path, &model.architecture)?;
    file.check_weights(path, model)?;
    record.inputs.push(InputFile::hash("weight masks", path)?);
    Ok(file)
}

/// A model whose head for a task are label words. The first that is loaded is noted in the record.
pub fn label_word_model(
    context: &Context,
    record: &mut RunRecord,
    source: &Source,
    name: &str,
    head: Head,
    words: &[u32],
) -> Result<Model> {
    let mask = source.tokenizer.special().mask;
    let (model, kind) = Model::load_with_label_words(&source.directory, head, words, mask, context.seed)?;
    if record.model.is_some() {
        return Ok(model);
    }
    note_model(record, name, &model);
    hash_model(record, &source.directory)?;
    if kind == LabelWordHead::Embedding && !source.config.family.is_causal() {
        context.progress.warn(
            "the checkpoint has no masked-language-model head: a class's logit is the dot product of the first token's \
             state with its label word's embedding, the paper's form",
        );
    }
    Ok(model)
}

/// The task of the options.
pub fn task(options: &TaskOptions) -> Result<Task> {
    let Some(name) = options.task.as_deref() else {
        return Err(Error::usage("--task is missing; see --help for the tasks"));
    };
    let task = match (name, options.regression) {
        ("table", true) => Task::table_regression(),
        (name, false) => Task::by_name(name)?,
        (name, true) => {
            return Err(Error::usage(format!("--regression belongs to the task table, not to {name}")));
        }
    };
    if task.name != "agreement" && options.data.is_none() {
        return Err(Error::usage(format!("the task {} needs --data", task.name)));
    }
    Ok(task)
}

/// Reads and tokenises a split, checks it against the model, and notes it in the record.
pub fn split(
    context: &Context,
    record: &mut RunRecord,
    task: &mut Task,
    options: &TaskOptions,
    source: &Source,
    split: Split,
) -> Result<Dataset> {
    let stage = context.progress.stage(&format!("reading the {split} data"), 0, "");
    let positions = source.config.max_length();
    let max_length = options.max_length.unwrap_or(task.max_length.min(positions));
    if max_length > positions {
        let message = format!("--max-length {max_length}: the model has {positions} positions");
        return Err(Error::usage(message));
    }
    let limit = if split == Split::Train { options.train_rows } else { options.eval_rows };
    let load = LoadOptions {
        max_length: Some(max_length),
        columns: columns(options),
        grouping: options.grouping(),
        limit,
        seed: context.seed,
        ..LoadOptions::default()
    };
    // The built-in task reads no file.
    let path = options.data.as_deref().unwrap_or(Path::new(""));
    let data = task.load(path, split, &source.tokenizer, &load)?;
    data.report.require_rows()?;
    batch::check_limits(&data.examples, &limits(&source.config))?;
    stage.finish();

    let report = &data.report;
    if !report.bad.is_empty() {
        context.progress.warn(report.to_string());
        record.bad_rows.push(BadRows {
            path: report.path.display().to_string(),
            count: report.bad.len(),
            unit: report.unit.into(),
            rows: report.bad.iter().map(|bad| (bad.line, bad.reason.clone())).collect(),
        });
    }
    if report.path.is_file() {
        record.inputs.push(InputFile::hash(&split.to_string(), &report.path)?);
    }
    let metric = task.main_metric();
    let summary = record.task.get_or_insert_with(TaskSummary::default);
    summary.name = task.name.clone();
    summary.metric = metric.name().into();
    summary.larger_is_better = metric.larger_is_better();
    summary.max_length = max_length;
    summary.labels = task.labels.clone();
    summary.rows.set(split.to_string(), data.examples.len());
    summary.mean_tokens.set(split.to_string(), data.mean_length());
    Ok(data)
}

fn columns(options: &TaskOptions) -> TableColumns {
    let usual = TableColumns::default();
    TableColumns {
        text: options.text_column.clone().unwrap_or(usual.text),
        second_text: options.pair_column.clone(),
        label: options.label_column.clone().or(usual.label),
    }
}

fn limits(config: &ModelConfig) -> batch::ModelLimits {
    batch::ModelLimits {
        vocabulary_size: config.vocab,
        max_positions: config.max_length(),
        segments: config.type_vocab,
    }
}

/// The head that answers a task.
pub fn head(task: &Task) -> Head {
    match task.kind {
        TaskKind::Classification => Head::Classification { labels: task.labels.len() },
        TaskKind::Regression => Head::Regression,
        TaskKind::Span { .. } => Head::Span,
        TaskKind::CausalLanguageModel => Head::CausalLm,
        TaskKind::MaskedLanguageModel => Head::MaskedLm,
    }
}
