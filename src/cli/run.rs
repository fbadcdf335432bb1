//! `secateur run`

use std::path::Path;

use clap::Args;
use secateur::data::{Dataset, Split, Task, TaskKind, rows};
use secateur::model::{HeadRequest, Model};
use secateur::prune::Stage;
use secateur::report::RunRecord;
use secateur::report::record::{Evaluation, InputFile};
use secateur::session::Session;
use secateur::train::Recipe;
use secateur::{Error, Result};

use super::context::Context;
use super::options::{ModelOptions, OutputOptions, TaskOptions, TrainOptions};
use super::output::{CHECKPOINTS, Output};
use super::prune_options::PruneOptions;
use super::{evaluate, load, prune, training};

/// Prune a model for a task and fine-tune it, in the method's own order; evaluate it, and report: all in one.
///
/// Dual-CP prunes first: the masks come from the pre-trained model and the task's unlabelled inputs, the masked units are
/// removed, and only then is the small model fine-tuned. Methods that need no retraining come last: the model is
/// fine-tuned, unless it has a trained head for the task already, then pruned. --stage turns the order round. Writes the
/// model, masks.json, run.json and report.html.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  secateur run --model bert-base-uncased --task mrpc --data MRPC --keep-flops 0.6 --out small\n  \
                  secateur run --model DIR --task rte --data RTE --keep-flops 0.8,0.6 --with-dense --out compared\n    \
                  two budgets from one calibration, and the dense model fine-tuned the same way\n  \
                  secateur run --model TUNED --task mrpc --data MRPC --method mask-tuning --keep-flops 0.6 --out small"
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
    /// Train (or, where it is trained already, evaluate) the dense model too, for comparison; what was trained is saved in
    /// `dense`.
    #[arg(long)]
    with_dense: bool,
    /// Write records and masks, not the pruned models.
    #[arg(long)]
    no_model: bool,
    #[command(flatten)]
    output: OutputOptions,
}

/// What every fine-tuning of a run has in common.
struct Shared<'a> {
    task: &'a Task,
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
        let recipe = training::recipe(&self.train.recipe, training::usual_recipe(&task)?)?;
        let source = load::source(&self.model.model)?;
        let stage = self.prune.stage();
        let data = load::split(context, &mut record, &mut task, &self.task, &source, Split::Train)?;
        let dev = load::split(context, &mut record, &mut task, &self.task, &source, Split::Dev)?;
        let request = HeadRequest::Task(load::head(&task));
        let mut dense = load::weights(context, &mut record, &source.directory, &self.model.model, request)?;
        let steps = self.train.recipe.steps;
        let shared = Shared { task: &task, data: &data, dev: &dev, recipe: &recipe, steps };
        let trained = dense.report.initialised.is_empty();
        if stage == Stage::Post && trained {
            if task.kind == TaskKind::Classification {
                evaluate::adopt_labels(&mut task.clone(), &source.config.labels, &self.model.model)?;
            }
            if self.with_dense {
                dense = shared.evaluate(context, &mut record, dense, ("dense", 1.0))?;
            }
        } else if stage == Stage::Post || self.with_dense {
            let folder = (!self.no_model).then(|| output.path().join("dense"));
            let checkpoints = output.path().join(CHECKPOINTS).join("dense");
            let tuned = shared.tune(context, &mut record, dense.clone(), ("dense", 1.0), &checkpoints)?;
            if let Some(folder) = folder {
                std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "creating"))?;
                training::save(&folder, tuned.clone(), &task, &source.tokenizer)?;
            }
            if stage == Stage::Post {
                dense = tuned;
                dense.report.initialised.clear();
            }
        }

        let inputs;
        let rows = match &self.prune.calibration_inputs {
            None => &data.examples,
            Some(path) => {
                record.inputs.push(InputFile::hash("calibration inputs", path)?);
                inputs = rows::read(path)?;
                &inputs
            }
        };
        let (results, dense) = prune::prune(context, &mut record, dense, rows, Some(&task), &self.prune)?;

        let method = record.method.as_ref().map_or(String::new(), |method| method.name.clone());
        let widths = dense.config().widths();
        let mut records = Vec::new();
        // The dense model is let go before the last small one is trained.
        let mut dense = Some(dense);
        for (index, pruned) in results.iter().enumerate() {
            let budget = &pruned.budget;
            let mut own = record.clone();
            prune::note(&mut own, pruned, &widths);
            let variant = match results.len() {
                1 => method.clone(),
                _ => format!("{method} {}", budget.asked),
            };
            let Some(whole) = dense.take() else { break };
            let model = training::apply(context, &mut own, &whole, pruned, &dev.examples)?;
            dense = Some(whole).filter(|_| index + 1 < results.len());
            let folder = prune::folder(output.path(), &self.prune, budget.asked)?;
            let named = (variant.as_str(), budget.reached);
            let model = match stage {
                Stage::Pre => {
                    let checkpoints = output.path().join(CHECKPOINTS).join(format!("keep-{}", budget.asked));
                    shared.tune(context, &mut own, model, named, &checkpoints)?
                }
                Stage::Post => shared.evaluate(context, &mut own, model, named)?,
            };
            if !self.no_model {
                training::save(&folder, model, &task, &source.tokenizer)?;
            }
            context.finish(&mut own);
            pruned.masks.write_with_empty(&folder.join("masks.json"), pruned.empty)?;
            prune::write_report(&folder, &own, Some(&pruned.masks))?;
            records.push(own);
        }
        if results.is_empty() {
            prune::write_nothing(context, output.path(), &mut record)?;
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
    /// Trains and evaluates one model.
    fn tune(
        &self,
        context: &Context,
        record: &mut RunRecord,
        model: Model,
        (variant, keep): (&str, f64),
        checkpoints: &Path,
    ) -> Result<Model> {
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
        training::train_and_evaluate(context, record, model, &job)
    }

    /// Evaluates one model as it is.
    fn evaluate(
        &self,
        context: &Context,
        record: &mut RunRecord,
        model: Model,
        (variant, keep): (&str, f64),
    ) -> Result<Model> {
        let mut session = Session::new(model, context.device)?;
        let split = Split::Dev.to_string();
        let found =
            evaluate::measure(&mut session, self.task, self.dev, None, variant, &split, &context.progress)?;
        record.evaluations.push(Evaluation { keep_flops: keep, ..found });
        session.into_model()
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
