//! `secateur inspect`

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secateur::data::Task;
use secateur::export::{mask_file, unit_masks};
use secateur::model::{EmitOptions, Head, HeadRequest, Logits, Model};
use secateur::program::{Extents, Mode, cost};
use secateur::prune::dual_cp::feasible_range;
use secateur::prune::overlap::overlap;
use secateur::prune::{CostModel, UnitMasks};
use secateur::report::density::{self, Density};
use secateur::report::format;
use secateur::report::table::Table;
use secateur::train::checkpoint::write_atomically;
use secateur::{Error, Result};
use serde_json::{Value, json};

use super::context::Context;
use super::options::ModelOptions;
use super::{load, training};

/// Look at a model: shape, parameters, bytes, FLOPs, the budgets pruning can reach, masks, programs.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur inspect --model bert-base-uncased --length 53.24\n  secateur inspect --model DIR --masks a/masks.json --masks b/masks.json\n  secateur inspect --model DIR --mask-file smp.npy --mask-file movement --figure kept.html\n  secateur inspect --model DIR --task mrpc --program train"
)]
pub struct Inspect {
    #[command(flatten)]
    model: ModelOptions,
    /// Sequence length T in tokens at which FLOPs are counted; may be fractional.
    #[arg(long, value_name = "TOKENS", default_value_t = 128.0)]
    length: f64,
    /// FLOPs removed from the FFN for each removed from attention (λ), for the feasible budgets.
    #[arg(long, value_name = "RATIO", default_value_t = 5.0)]
    lambda: f64,
    /// Show what these masks keep; two or more are compared with each other.
    #[arg(long, value_name = "FILE")]
    masks: Vec<PathBuf>,
    /// Show what these weight masks keep, by layer, matrix and head: mask files (.npy, .safetensors), or directories of
    /// models of this shape with zeros in their matrices.
    #[arg(long, value_name = "PATH")]
    mask_file: Vec<PathBuf>,
    /// Draw what is shown of weight masks to this file, .svg or .html.
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
    /// List the operations of a program for one row of the given length.
    #[arg(long, value_enum)]
    program: Option<ProgramName>,
    /// Give the model the head of this task, for `--program`: needed where the checkpoint has none.
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ProgramName {
    /// Evaluation.
    Forward,
    /// One training step without the update.
    Train,
}

/// The head that answers a task. The classes of a table are in its file, which is not read here.
fn task_head(name: &str) -> Result<Head> {
    let task = Task::by_name(name)?;
    match load::head(&task) {
        Head::Classification { labels: 0 } => {
            Err(Error::usage(format!("--task {name}: its classes are known from its data only")))
        }
        head => Ok(head),
    }
}

impl Inspect {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        if !(self.lambda.is_finite() && self.lambda >= 0.0) {
            return Err(Error::usage(format!(
                "--lambda must be a number of at least 0, not {}",
                self.lambda
            )));
        }
        let mut record = context.record("inspect");
        let (directory, config) = load::configuration(&self.model.model)?;
        let request = match (&self.task, config.saved_head) {
            (Some(name), _) => HeadRequest::Task(task_head(name)?),
            (None, Some(_)) => HeadRequest::AsSaved,
            (None, None) => HeadRequest::Task(Head::Backbone),
        };
        let model = load::weights(context, &mut record, &directory, &self.model.model, request)?;
        let widths = config.widths();
        let cost = CostModel::new(config.hidden, config.head_dim, self.length, widths.clone())?;
        let masks: Vec<UnitMasks> =
            self.masks.iter().map(|path| unit_masks::read(path, &widths)).collect::<Result<_>>()?;
        let mut text = String::new();
        let mut result = self.summary(&model, &cost, &mut text)?;
        self.layers(&model, &cost, &masks, &mut text);
        result["masks"] = self.compare(&cost, &masks, &mut text)?;
        result["weights"] = self.densities(&model, &mut text)?;
        if let Some(name) = self.program {
            let listing = self.listing(&model, name)?;
            result["program"] = json!(listing.lines().collect::<Vec<_>>());
            let _ = write!(text, "\n{listing}");
        }
        record.result = Some(result);
        context.finish(&mut record);
        context.show(&[record], |_| text);
        Ok(())
    }

    fn summary(&self, model: &Model, cost: &CostModel, text: &mut String) -> Result<Value> {
        let config = model.config();
        let parameters = model.layout().total_elements();
        let range = feasible_range(cost, self.lambda);
        let (minimum, part) = range.minimum();
        let mut table = Table::new(&["", ""]);
        table.row(["family".to_string(), config.family.model_type().to_string()]);
        table.row(["head".to_string(), model.architecture.head.architecture(config.family)]);
        table.row(["hidden size".to_string(), format!("{}, heads of {}", config.hidden, config.head_dim)]);
        table.row(["vocabulary".to_string(), format::grouped(config.vocab as u64)]);
        table.row(["positions".to_string(), format::grouped(config.max_length() as u64)]);
        let bytes = format::bytes(4 * parameters as u64);
        table.row([
            "parameters".to_string(),
            format!("{} ({bytes} in f32)", format::grouped(parameters as u64)),
        ]);
        let share = |macs: f64| format::percent(macs / cost.total());
        let macs = format!(
            "{} a row of {} tokens: attention {}, FFN {}",
            format::count(cost.total()),
            self.length,
            share(cost.attention()),
            share(cost.ffn())
        );
        table.row(["MACs of the blocks".to_string(), macs]);
        let kept = training::kept(config, self.length, &cost.layers)?;
        if !config.is_unpruned() {
            let of = "of those before pruning".to_string();
            table.row(["MACs kept".to_string(), format!("{} {of}", format::percent(kept))]);
        }
        let feasible = format!(
            "{:.4} to 1 with lambda {} ({part} runs out first); {:.4} with --on-infeasible shift",
            minimum.max(0.0),
            self.lambda,
            range.shifted
        );
        table.row(["--keep-flops, dual-cp".to_string(), feasible]);
        // The heads of this table say nothing.
        let lines: Vec<String> = table.render(false).lines().skip(1).map(String::from).collect();
        let _ = writeln!(text, "{}\n", lines.join("\n"));
        Ok(json!({
            "family": config.family.model_type(),
            "head": model.architecture.head.architecture(config.family),
            "layers": config.layers.len(),
            "hidden_size": config.hidden,
            "head_dim": config.head_dim,
            "heads": config.layers.iter().map(|l| l.heads).collect::<Vec<_>>(),
            "neurons": config.layers.iter().map(|l| l.neurons).collect::<Vec<_>>(),
            "parameters": parameters,
            "bytes": 4 * parameters,
            "length": self.length,
            "keep_flops": kept,
            "macs": {"total": cost.total(), "attention": cost.attention(), "ffn": cost.ffn(),
                     "head": cost.head(), "neuron": cost.neuron()},
            "feasible_keep_flops": {"minimum": minimum.max(0.0), "shifted": range.shifted, "lambda": self.lambda},
        }))
    }

    fn layers(&self, model: &Model, cost: &CostModel, masks: &[UnitMasks], text: &mut String) {
        let config = model.config();
        let mut heads = vec!["layer>", "heads>", "neurons>", "parameters>", "MACs>"];
        let names: Vec<String> = self.masks.iter().map(|path| format!("{}>", path.display())).collect();
        heads.extend(names.iter().map(String::as_str));
        let mut table = Table::new(&heads);
        for (index, layer) in cost.layers.iter().enumerate() {
            let macs = layer.heads as f64 * cost.head() + layer.neurons as f64 * cost.neuron();
            let parameters = cost.block_parameters(&cost.layers[index..=index]);
            let mut row = vec![
                (index + 1).to_string(),
                config.layers[index].heads.to_string(),
                config.layers[index].neurons.to_string(),
                format::count(parameters as f64),
                format::count(macs),
            ];
            for masks in masks {
                let kept = masks.widths()[index];
                row.push(format!("{} + {}", kept.heads, kept.neurons));
            }
            table.row(row);
        }
        text.push_str(&table.render(false));
    }

    fn compare(&self, cost: &CostModel, masks: &[UnitMasks], text: &mut String) -> Result<Value> {
        if masks.is_empty() {
            return Ok(json!([]));
        }
        let mut kept = Vec::new();
        let _ = writeln!(text);
        for (path, masks) in self.masks.iter().zip(masks) {
            let budget = cost.record(1.0, masks)?;
            let line = format!(
                "{}: keeps {} of the FLOPs at {} tokens: {} of attention, {} of the FFN",
                path.display(),
                format::percent(budget.reached),
                self.length,
                format::percent(budget.attention.macs_kept / budget.attention.macs_total),
                format::percent(budget.ffn.macs_kept / budget.ffn.macs_total)
            );
            let _ = writeln!(text, "{line}");
            kept.push(json!({
                "path": path.display().to_string(), "keep_flops": budget.reached,
                "heads_kept": budget.layers.iter().map(|l| l.heads).collect::<Vec<_>>(),
                "neurons_kept": budget.layers.iter().map(|l| l.neurons).collect::<Vec<_>>(),
            }));
        }
        let mut value = json!({ "files": kept });
        if masks.len() > 1 {
            let (heads, neurons) = overlap(&masks.iter().collect::<Vec<_>>())?;
            for (kind, found) in [("heads", &heads), ("neurons", &neurons)] {
                let _ = writeln!(text, "\n{kind} kept by the row's masks that the column's keep too");
                let names: Vec<String> = (1..=masks.len()).map(|n| format!("{n}>")).collect();
                let columns: Vec<&str> =
                    std::iter::once("masks").chain(names.iter().map(String::as_str)).collect();
                let mut table = Table::new(&columns);
                for (row, path) in self.masks.iter().enumerate() {
                    let name = format!("{} {}", row + 1, path.display());
                    let shares = found.shared[row].iter().map(|share| format::percent(*share));
                    table.row(std::iter::once(name).chain(shares));
                }
                text.push_str(&table.render(false));
            }
            value["overlap"] = json!({ "heads": heads, "neurons": neurons });
        }
        Ok(value)
    }

    /// What is kept of the layers' weights: of the model if it has zeros, and of every mask file.
    fn densities(&self, model: &Model, text: &mut String) -> Result<Value> {
        let mut densities = Vec::new();
        let own = model.nonzero_masks();
        // A trained model has hardly a zero.
        if self.mask_file.is_empty() && own.kept_fraction() < 0.99 {
            densities.push(Density::of(&self.model.model, &model.architecture, &own));
        }
        for path in &self.mask_file {
            let masks = if path.is_dir() {
                let other = Model::load(path, HeadRequest::Task(Head::Backbone), 0)?;
                let masks = other.nonzero_masks();
                masks.places(&model.architecture).map_err(|e| Error::format(path, e.to_string()))?;
                masks
            } else {
                mask_file::read(path, &model.architecture)?.masks
            };
            densities.push(Density::of(path.display().to_string(), &model.architecture, &masks));
        }
        if densities.is_empty() {
            return match &self.figure {
                Some(_) => Err(Error::usage("--figure: there are no weight masks to draw; give --mask-file")),
                None => Ok(Value::Null),
            };
        }
        let _ = write!(text, "\n{}", density::text(&densities, false));
        if let Some(path) = &self.figure {
            let drawn = match path.extension().and_then(|extension| extension.to_str()) {
                Some("svg") => density::svg(&densities),
                Some("html") => density::html("Weights kept", &densities),
                _ => return Err(Error::usage(format!("--figure {}: .svg or .html", path.display()))),
            };
            write_atomically(path, drawn.as_bytes())?;
        }
        Ok(densities.iter().map(Density::to_json).collect())
    }

    fn listing(&self, model: &Model, name: ProgramName) -> Result<String> {
        let backbone = model.architecture.head == Head::Backbone;
        let (mode, options) = match name {
            ProgramName::Forward => {
                let logits = if backbone { Logits::None } else { Logits::All };
                (Mode::EVALUATE, EmitOptions { logits, keep_hidden: backbone, ..EmitOptions::default() })
            }
            ProgramName::Train => (Mode::TRAIN, EmitOptions { loss: true, ..EmitOptions::default() }),
        };
        let emitted = model.architecture.emit(mode, &options)?;
        let tokens = self.length.ceil().clamp(1.0, model.config().max_length() as f64) as usize;
        let extents = Extents { tokens, sequences: 1, targets: tokens, samples: 0, longest: tokens };
        let total = cost::of_program(&emitted.program, &extents);
        let mut listing = emitted.program.listing(&extents);
        let _ = writeln!(
            listing,
            "{} FLOPs, {} moved",
            format::count(total.flops as f64),
            format::bytes(total.bytes)
        );
        Ok(listing)
    }
}
