//! `secateur run`

use std::path::Path;

use clap::Args;
use secateur::data::{Dataset, Split, Task, rows};
use secateur::model::{HeadRequest, Model};
use secateur::report::RunRecord;
use secateur::report::record::{Evaluation, InputFile};
use secateur::train::Recipe;
use secateur::{Error, Result};

use super::context::Context;
use super::load::Source;
use super::options::{ModelOptions, OutputOptions, PruneOptions, TaskOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::{evaluate, load, prune, training};

/// Prune a pre-trained model for a task, fine-tune what is left, evaluate it, and report: all in one.
///
/// The order is Dual-CP's: the masks come from the pre-trained model and the task's unlabelled inputs, the masked units
/// are removed, and only then is the small model fine-tuned. Writes the model, masks.json, run.json and report.html.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur run --model bert-base-uncased --task mrpc --data MRPC --keep-flops 0.6 --out small\n  \
                  secateur run --model DIR --task rte --data RTE --keep-flops 0.8,0.6 --with-dense --out compared\n    \
                  two budgets from one calibration, and the dense model fine-tuned the same way"
)]
pub struct Run {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    task: TaskOptions,
    #[command(flatten)]
    prune: PruneOptions,
    #[command(flatten)]
    train: TrainOptions,
    /// Fine-tune the dense model too, with the same recipe, for comparison; it is saved in `dense`.
    #[arg(long)]
    with_dense: bool,
    #[command(flatten)]
    output: OutputOptions,
}

/// What every fine-tuning of a run has in common.
struct Shared<'a> {
    task: &'a Task,
    source: &'a Source,
    data: &'a Dataset,
    dev: &'a Dataset,
    recipe: &'a Recipe,
    steps: Option<u64>,
}

impl Run {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let output = Output::create(&self.output, self.train.resume)?;
        let mut record = context.record("run");
        let mut task = load::task(&self.task)?;
        let recipe = training::recipe(&self.train, training::usual_recipe(&task)?)?;
        let source = load::source(&self.model.model)?;
        let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
        let dev = load::split(context, &mut record, &mut task, &self.task, &source, Split::Dev)?;
        let request = HeadRequest::Task(load::head(&task));
        let dense = load::weights(context, &mut record, &source.directory, &self.model.model, request)?;
        let (results, dense) = match &self.prune.calibration_inputs {
            None => {
                let task = Some(&task);
                prune::prune(context, &mut record, dense, &data.examples, task, &self.prune)?
            }
            Some(path) => {
                record.inputs.push(InputFile::hash("calibration inputs", path)?);
                let rows = rows::read(path)?;
                prune::prune(context, &mut record, dense, &rows, Some(&task), &self.prune)?
            }
        };

        let steps = self.train.steps;
        let shared = Shared { task: &task, source: &source, data: &data, dev: &dev, recipe: &recipe, steps };
        if self.with_dense {
            let folder = output.path().join("dense");
            let checkpoints = output.path().join(CHECKPOINTS).join("dense");
            shared.tune(context, &mut record, dense.clone(), ("dense", 1.0), &checkpoints, &folder)?;
        }
        let method = record.method.as_ref().map_or(String::new(), |method| method.name.clone());
        let widths = dense.config().widths();
        let mut records = Vec::new();
        // The dense model is let go before the last small one is trained.
        let mut dense = Some(dense);
        for (index, (masks, budget)) in results.iter().enumerate() {
            let mut own = record.clone();
            own.set_budget(budget, &widths);
            let variant = match results.len() {
                1 => method.clone(),
                _ => format!("{method} {}", budget.asked),
            };
            let Some(whole) = dense.take() else { break };
            let model = training::compact(context, &mut own, &whole, masks, &dev.examples)?;
            dense = Some(whole).filter(|_| index + 1 < results.len());
            let folder = prune::folder(output.path(), &self.prune, budget.asked)?;
            let checkpoints = output.path().join(CHECKPOINTS).join(format!("keep-{}", budget.asked));
            shared.tune(context, &mut own, model, (&variant, budget.reached), &checkpoints, &folder)?;
            context.finish(&mut own);
            masks.write(&folder.join("masks.json"))?;
            prune::write_report(&folder, &own, Some(masks))?;
            records.push(own);
        }
        output.commit()?;
        context.show(&records, |styled| {
            let budget = prune::summary(&records, styled);
            let mut evaluations: Vec<Evaluation> = record.evaluations.clone();
            evaluations.extend(records.iter().filter_map(|own| own.evaluations.last().cloned()));
            let quality = evaluate::summary(&evaluations, styled);
            format!("{budget}\n{}\n{quality}\nin {}\n", proofs(&records), self.output.out.display())
        });
        Ok(())
    }
}

impl Shared<'_> {
    /// Trains, evaluates and saves one model.
    fn tune(
        &self,
        context: &Context,
        record: &mut RunRecord,
        model: Model,
        (variant, keep): (&str, f64),
        checkpoints: &Path,
        folder: &Path,
    ) -> Result<()> {
        let _stage = context.progress.stage(variant, 0, "");
        let job = training::Job {
            variant,
            keep_flops: keep,
            objective: &self.task.name,
            task: self.task,
            data: self.data,
            evaluation: Some(self.dev),
            recipe: self.recipe,
            max_steps: self.steps,
            checkpoints: checkpoints.to_path_buf(),
        };
        let model = training::train_and_evaluate(context, record, model, &job)?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "creating"))?;
        training::save(folder, model, self.task, &self.source.tokenizer)
    }
}

/// One line a compact model: what it was shown to compute.
fn proofs(records: &[RunRecord]) -> String {
    let line = |record: &RunRecord| {
        let (proof, keep) = (record.compact?, record.keep_flops?);
        Some(format!(
            "keep {}: compact against masked model on {} rows, max |Δlogit| {:.2e} of {:.2}\n",
            keep.asked, proof.rows, proof.max_logit_difference, proof.max_logit
        ))
    };
    records.iter().filter_map(line).collect()
}
