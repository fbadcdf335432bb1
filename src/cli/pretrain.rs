//! `secateur pretrain`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use secateur::data::text::{self, Grouping};
use secateur::data::tokenizer::{self, TokenizerKind};
use secateur::data::{Dataset, Example, ReadReport, Split, Task, Tokenizer, source};
use secateur::model::{Family, Head, Model, ModelConfig};
use secateur::report::record::{InputFile, TaskSummary};
use secateur::train::Recipe;
use secateur::{Error, Result};
use serde_json::{Value, json};

use super::context::Context;
use super::options::{OutputOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::{finetune, load, prune, training};

/// Train a language model from scratch: BERT by masked tokens, or GPT-2 by next tokens.
///
/// The result is a model directory that every command takes. Recipe if nothing else is said: learning rate 5e-4, 32
/// blocks a step, 10 epochs, 6 % warm-up, weight decay 0.01.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur pretrain --objective causal-lm --data wikitext-2 --train-tokenizer 8000 --layers 4 --hidden 256 \
                  --heads 4 --max-length 128 --out tiny-gpt2\n  \
                  secateur pretrain --objective masked-lm --data a.txt b.txt --tokenizer DIR --out tiny-bert"
)]
pub struct Pretrain {
    /// What is predicted.
    #[arg(long, value_enum)]
    objective: Objective,
    /// Text files, or one directory with train.txt and valid.txt (or wiki.train.tokens, ptb.train.txt and so on).
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Text to evaluate on after each epoch, where --data names files.
    #[arg(long, value_name = "FILE")]
    evaluation_data: Option<PathBuf>,
    /// Take the tokenizer of this model directory.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "train_tokenizer",
        required_unless_present = "train_tokenizer"
    )]
    tokenizer: Option<PathBuf>,
    /// Train a tokenizer of so many tokens on the text: lower-case WordPiece for masked-lm, byte-level BPE for causal-lm.
    #[arg(long, value_name = "TOKENS")]
    train_tokenizer: Option<usize>,
    /// Transformer layers.
    #[arg(long, value_name = "N", default_value_t = 4)]
    layers: usize,
    /// Hidden size.
    #[arg(long, value_name = "N", default_value_t = 256)]
    hidden: usize,
    /// Attention heads of a layer; the hidden size is a multiple of it.
    #[arg(long, value_name = "N", default_value_t = 4)]
    heads: usize,
    /// Neurons of a layer's FFN. Default: four times the hidden size.
    #[arg(long, value_name = "N")]
    intermediate: Option<usize>,
    /// Tokens of a block, and positions of the model.
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    max_length: usize,
    /// Dropout probability, everywhere.
    #[arg(long, value_name = "P", default_value_t = 0.1)]
    dropout: f64,
    #[command(flatten)]
    train: TrainOptions,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Objective {
    /// 15 % of the tokens are hidden and predicted from both sides (BERT).
    MaskedLm,
    /// Every token is predicted from those before it (GPT-2).
    CausalLm,
}

/// Shape of a model to be trained from scratch.
pub struct Shape {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub positions: usize,
    pub dropout: f64,
    /// Standard deviation of the first weights.
    pub initializer_range: f64,
}

/// The usual 0.02 belongs to a hidden size of 768. At a smaller one it starts attention so close to uniform that
/// training stands still for long; the same variance of a layer's outputs needs more.
pub fn initializer_range(hidden: usize) -> f64 {
    0.02 * (768.0 / hidden.max(1) as f64).sqrt()
}

/// The recipe of pre-training.
pub fn usual_recipe() -> Recipe {
    Recipe {
        learning_rate: 5e-4,
        batch_size: 32,
        epochs: 10,
        warmup: 0.06,
        weight_decay: 0.01,
        ..Recipe::default()
    }
}

impl Pretrain {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let output = Output::create(&self.output, self.train.resume)?;
        let mut record = context.record("pretrain");
        let (family, head, mut task) = match self.objective {
            Objective::MaskedLm => (Family::Bert, Head::MaskedLm, Task::by_name("mlm")?),
            Objective::CausalLm => (Family::Gpt2, Head::CausalLm, Task::by_name("lm")?),
        };
        task.max_length = self.max_length;
        let recipe = training::recipe(&self.train.recipe, usual_recipe())?;
        let (files, evaluation_file) = self.files()?;
        for (role, path) in
            files.iter().map(|f| ("train", f)).chain(evaluation_file.iter().map(|f| ("dev", f)))
        {
            record.inputs.push(InputFile::hash(role, path)?);
        }
        let tokenizer = self.tokenizer(context, family, &files)?;
        let shape = Shape {
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            intermediate: self.intermediate.unwrap_or(4 * self.hidden),
            positions: self.max_length,
            dropout: self.dropout,
            initializer_range: initializer_range(self.hidden),
        };
        let model = Model::from_config(config(family, &shape, &tokenizer)?, head, context.seed)?;
        load::note_model(&mut record, &self.output.out.display().to_string(), &model);

        let stage = context.progress.stage("reading the text", files.len() as u64, "files");
        let data = self.blocks(&task, &tokenizer, &files, context.seed)?;
        let evaluation = match &evaluation_file {
            Some(path) => Some(self.blocks(&task, &tokenizer, std::slice::from_ref(path), context.seed)?),
            None => None,
        };
        stage.finish();
        let metric = task.main_metric();
        let mut summary = TaskSummary {
            name: task.name.clone(),
            metric: metric.name().into(),
            larger_is_better: metric.larger_is_better(),
            max_length: self.max_length,
            ..TaskSummary::default()
        };
        for (split, data) in [("train", Some(&data)), ("dev", evaluation.as_ref())] {
            let Some(data) = data else { continue };
            summary.rows.set(split, data.examples.len());
            summary.mean_tokens.set(split, data.mean_length());
        }
        record.task = Some(summary);

        let job = training::Job {
            variant: "pretrained",
            keep_flops: 1.0,
            objective: match self.objective {
                Objective::MaskedLm => "masked-lm",
                Objective::CausalLm => "causal-lm",
            },
            task: &task,
            data: &data,
            evaluation: evaluation.as_ref(),
            recipe: &recipe,
            max_steps: self.train.recipe.steps,
            checkpoints: output.path().join(CHECKPOINTS),
        };
        let model = training::train_and_evaluate(context, &mut record, model, &job)?;
        training::save(output.path(), model, &task, &tokenizer)?;
        context.finish(&mut record);
        prune::write_report(output.path(), &record, None)?;
        output.commit()?;
        context.show(&[record.clone()], |styled| finetune::summary(&record, styled));
        Ok(())
    }

    /// Training files, and the file to evaluate on.
    fn files(&self) -> Result<(Vec<PathBuf>, Option<PathBuf>)> {
        match self.data.as_slice() {
            [directory] if directory.is_dir() => {
                let evaluation = match &self.evaluation_data {
                    Some(path) => Some(path.clone()),
                    // A directory may hold training text only.
                    None => text::find(directory, Split::Dev).ok(),
                };
                Ok((vec![text::find(directory, Split::Train)?], evaluation))
            }
            files => {
                if let Some(directory) = files.iter().find(|path| path.is_dir()) {
                    let message = format!("--data {}: one directory, or files", directory.display());
                    return Err(Error::usage(message));
                }
                Ok((files.to_vec(), self.evaluation_data.clone()))
            }
        }
    }

    fn tokenizer(&self, context: &Context, family: Family, files: &[PathBuf]) -> Result<Tokenizer> {
        if let Some(directory) = &self.tokenizer {
            return Tokenizer::from_directory(directory, family.model_type());
        }
        let stage = context.progress.stage("training the tokenizer", 0, "");
        let texts: Vec<String> = files.iter().map(|path| source::read_text(path)).collect::<Result<_>>()?;
        let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
        let kind = match self.objective {
            Objective::MaskedLm => TokenizerKind::WordPiece { lowercase: true },
            Objective::CausalLm => TokenizerKind::ByteLevelBpe,
        };
        let trained = tokenizer::train(&lines, kind, self.train_tokenizer.unwrap_or_default());
        stage.finish();
        trained
    }

    /// The blocks of all files; no block spans two.
    fn blocks(&self, task: &Task, tokenizer: &Tokenizer, files: &[PathBuf], seed: u64) -> Result<Dataset> {
        let mut examples: Vec<Example> = Vec::new();
        for path in files {
            examples.extend(match self.objective {
                Objective::MaskedLm => text::masked_blocks(path, tokenizer, task.max_length)?,
                Objective::CausalLm => {
                    text::causal_blocks(path, tokenizer, task.max_length, Grouping::Global)?
                }
            });
        }
        match self.objective {
            Objective::MaskedLm => Dataset::masked(examples, tokenizer, seed),
            Objective::CausalLm => {
                let report = ReadReport { rows: examples.len(), ..ReadReport::default() };
                Ok(Dataset { examples, report, ..Dataset::default() })
            }
        }
    }
}

/// The configuration of a fresh BERT or GPT-2.
pub fn config(family: Family, shape: &Shape, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    if shape.heads == 0 || !shape.hidden.is_multiple_of(shape.heads) {
        let message = format!("--hidden {} is not a multiple of --heads {}", shape.hidden, shape.heads);
        return Err(Error::usage(message));
    }
    for (option, value) in [
        ("--layers", shape.layers),
        ("--hidden", shape.hidden),
        ("--intermediate", shape.intermediate),
        ("--max-length", shape.positions),
    ] {
        if value == 0 {
            return Err(Error::usage(format!("{option} must be at least 1")));
        }
    }
    if !(0.0..1.0).contains(&shape.dropout) {
        return Err(Error::usage(format!("--dropout must be at least 0 and below 1, not {}", shape.dropout)));
    }
    let special = tokenizer.special();
    let vocabulary = tokenizer.vocabulary_size();
    let fields = match family {
        Family::Gpt2 => json!({
            "model_type": "gpt2",
            "vocab_size": vocabulary,
            "n_embd": shape.hidden,
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_inner": shape.intermediate,
            "n_positions": shape.positions,
            "activation_function": "gelu_new",
            "embd_pdrop": shape.dropout,
            "attn_pdrop": shape.dropout,
            "resid_pdrop": shape.dropout,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": shape.initializer_range,
            "bos_token_id": special.bos,
            "eos_token_id": special.eos,
        }),
        _ => json!({
            "model_type": "bert",
            "vocab_size": vocabulary,
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "intermediate_size": shape.intermediate,
            "max_position_embeddings": shape.positions,
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": shape.dropout,
            "attention_probs_dropout_prob": shape.dropout,
            "layer_norm_eps": 1e-12,
            "initializer_range": shape.initializer_range,
            "pad_token_id": special.pad.unwrap_or(0),
        }),
    };
    let Value::Object(fields) = fields else { unreachable!("an object literal") };
    ModelConfig::from_json(fields, Path::new("the configuration"))
}
