//! `secateur demo`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use secateur::data::agreement::{self, Sizes};
use secateur::data::{Dataset, Split, Task, Tokenizer, text};
use secateur::model::{Family, Head, HeadRequest, Model, ModelConfig};
use secateur::prune::{Pruned, UnitMasks};
use secateur::report::record::Evaluation;
use secateur::report::table::Table;
use secateur::report::{RunRecord, format};
use secateur::train::Recipe;
use secateur::{Error, Result};

use super::context::Context;
use super::load::Source;
use super::options::{LmGrouping, OutputOptions, TaskOptions};
use super::output::{CHECKPOINTS, Output};
use super::prune_options::{Method, PruneOptions};
use super::{evaluate, load, pretrain, prune, training};

/// See the whole method at work in minutes: nothing to download, nothing to prepare.
///
/// A tiny BERT learns the words of a small generated language by filling in masked words. Then a task: has the main verb
/// of a sentence the number of its subject, whatever nouns stand between them? The model is fine-tuned for it as it is,
/// and after half of its FLOPs were pruned away by Dual-CP and, for comparison, at random.
#[derive(Args, Debug)]
pub struct Demo {
    /// Directory to write: the models, their masks, run.json and report.html.
    #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
    out: PathBuf,
    /// Replace the directory if it exists. That of an earlier demo is replaced without being asked.
    #[arg(long)]
    overwrite: bool,
    /// Continue an interrupted demo.
    #[arg(long)]
    resume: bool,
    /// Do only this fraction of the training: quicker, and the numbers mean less.
    #[arg(long, value_name = "FRACTION", default_value_t = 1.0)]
    effort: f64,
}

const DIRECTORY: &str = "secateur-demo";
/// Fraction of FLOPs kept.
const KEEP: f64 = 0.5;
/// Sentences of the pre-training corpus, and of its evaluation.
const CORPUS: usize = 60_000;
const HELD_OUT: usize = 1_000;
/// Words of a short sentence, full stop included: few have anything between subject and verb. Pre-training begins with
/// these. Where the noun next to the verb is mostly not its subject, number is a signal too weak to be found first: on
/// the whole corpus alone the loss stands still where every word's part of speech is known and nothing more.
const SHORT_SENTENCE: usize = 6;
const SHORT_EPOCHS: usize = 8;
/// Training sentences of the task: so few that it matters what pre-training has left in the model.
const TASK_ROWS: usize = 2_000;
/// Times a model is evaluated; the fastest counts.
const TIMINGS: usize = 3;

fn shape() -> pretrain::Shape {
    let hidden = 64;
    let initializer_range = pretrain::initializer_range(hidden);
    pretrain::Shape {
        layers: 4,
        hidden,
        heads: 8,
        intermediate: 4 * hidden,
        positions: 64,
        dropout: 0.0,
        initializer_range,
    }
}

fn pretraining() -> Recipe {
    Recipe {
        learning_rate: 1e-3,
        batch_size: 32,
        epochs: 4,
        warmup: 0.1,
        weight_decay: 0.01,
        ..Recipe::default()
    }
}

fn fine_tuning() -> Recipe {
    Recipe { learning_rate: 3e-4, batch_size: 32, epochs: 3, warmup: 0.1, ..Recipe::default() }
}

/// What the stages share.
struct Demonstration<'a> {
    context: &'a Context,
    folder: &'a Path,
    effort: f64,
}

/// The task, its data, and the pre-trained model.
struct Stage {
    task: Task,
    source: Source,
    train: Dataset,
    dev: Dataset,
    test: Dataset,
}

impl Demo {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        if !(self.effort > 0.0 && self.effort <= 1.0) {
            return Err(Error::usage(format!("--effort must be above 0 and at most 1, not {}", self.effort)));
        }
        let overwrite = self.overwrite || self.is_earlier_demo();
        let output = Output::create(&OutputOptions { out: self.out.clone(), overwrite }, self.resume)?;
        let mut record = context.record("demo");
        let demonstration = Demonstration { context, folder: output.path(), effort: self.effort };
        let tokenizer = agreement::tokenizer()?;
        demonstration.pretrain(&mut record, &tokenizer)?;
        let stage = demonstration.stage(&mut record, tokenizer)?;
        let masks = demonstration.compare(&mut record, &stage)?;
        context.finish(&mut record);
        prune::write_report(output.path(), &record, Some(&masks))?;
        output.commit()?;
        context.show(&[record.clone()], |styled| self.summary(&record, context.seed, styled));
        Ok(())
    }

    /// Whether the output directory holds an earlier demo and may be replaced.
    fn is_earlier_demo(&self) -> bool {
        RunRecord::read(&self.out.join("run.json")).is_ok_and(|record| record.command == "demo")
    }

    fn summary(&self, record: &RunRecord, seed: u64, styled: bool) -> String {
        let mut table = Table::new(&[
            "model",
            "FLOPs kept>",
            "parameters>",
            "accuracy>",
            "pruning>",
            "fine-tuning>",
            "evaluation>",
        ]);
        for evaluation in &record.evaluations {
            let dense = evaluation.variant == "dense";
            let parameters = record.size.map(|s| if dense { s.parameters_dense } else { s.parameters_kept });
            let tuning = record
                .training
                .iter()
                .find(|run| run.variant == evaluation.variant && run.objective == "agreement");
            let pruning = record.seconds.get(&format!("pruning by {}", evaluation.variant));
            let seconds = |value: Option<f64>| value.map_or(String::new(), format::seconds);
            table.row([
                evaluation.variant.clone(),
                format::percent(evaluation.keep_flops),
                parameters.map_or(String::new(), format::grouped),
                evaluation.metrics.get("accuracy").map_or(String::new(), |v| format::percent(*v)),
                seconds(pruning.copied()),
                seconds(tuning.map(|run| run.seconds)),
                seconds(Some(evaluation.seconds)),
            ]);
        }
        let sentences = agreement::sentences(Split::Test, &Sizes::default(), seed);
        let share = |answer: fn(&agreement::Sentence, bool) -> bool| {
            let right = sentences.iter().filter(|(s, grammatical)| answer(s, *grammatical) == *grammatical);
            format::percent(right.count() as f64 / sentences.len() as f64)
        };
        format!(
            "{}\non {} test sentences; who goes by the nearest noun is right in {}, by the first noun in {}\n\
             report: {}\n",
            table.render(styled),
            sentences.len(),
            share(agreement::Sentence::nearest_noun_agrees),
            share(agreement::Sentence::first_noun_agrees),
            self.out.join("report.html").display()
        )
    }
}

impl Demonstration<'_> {
    /// So much of `full`, at least enough for a few steps.
    fn scaled(&self, full: usize) -> usize {
        ((full as f64 * self.effort) as usize).max(64)
    }

    /// Trains the masked language model and saves it in `pretrained`.
    fn pretrain(&self, record: &mut RunRecord, tokenizer: &Tokenizer) -> Result<()> {
        let context = self.context;
        let _stage = context.progress.stage("pre-training", 0, "");
        let shape = shape();
        let config = pretrain::config(Family::Bert, &shape, tokenizer)?;
        let mut model = Model::from_config(config, Head::MaskedLm, context.seed)?;
        load::note_model(record, "the demo's BERT", &model);
        let held_out = self.scaled(HELD_OUT);
        let corpus = held_out + self.scaled(CORPUS);
        let sentences = agreement::corpus(corpus, &Sizes::default(), context.seed);
        let (held_out, corpus) = sentences.split_at(held_out);
        let short: Vec<String> =
            corpus.iter().filter(|text| text.split(' ').count() <= SHORT_SENTENCE).cloned().collect();
        let masked = |texts: &[String]| {
            let rows = text::sentences(texts, tokenizer, shape.positions)?;
            Dataset::masked(rows, tokenizer, context.seed)
        };
        let held_out = masked(held_out)?;
        let task = Task::by_name("mlm")?;
        let first = Recipe { epochs: SHORT_EPOCHS, ..pretraining() };
        for (objective, texts, recipe, evaluation) in [
            ("masked-lm, short sentences", &short[..], first, None),
            ("masked-lm", corpus, pretraining(), Some(&held_out)),
        ] {
            let job = training::Job {
                variant: "pretrained",
                keep_flops: 1.0,
                objective,
                task: &task,
                data: &masked(texts)?,
                evaluation,
                recipe: &recipe,
                max_steps: None,
                checkpoints: self.folder.join(CHECKPOINTS).join(objective),
            };
            model = training::train(context, record, model, &job)?.into_model()?;
        }
        training::save(&self.folder.join("pretrained"), model, &task, tokenizer)
    }

    /// Reads the task's splits.
    fn stage(&self, record: &mut RunRecord, tokenizer: Tokenizer) -> Result<Stage> {
        let directory = self.folder.join("pretrained");
        let config = ModelConfig::read(&directory.join("config.json"))?;
        let source = Source { directory, config, tokenizer };
        let options = TaskOptions {
            task: Some("agreement".into()),
            data: None,
            max_length: None,
            train_rows: Some(self.scaled(TASK_ROWS)),
            eval_rows: Some(self.scaled(Sizes::default().test)),
            text_column: None,
            pair_column: None,
            label_column: None,
            regression: false,
            lm_grouping: LmGrouping::Global,
            lm_batch: 1,
            lm_workers: 1,
        };
        let mut task = load::task(&options)?;
        let mut read = |split| load::split(self.context, record, &mut task, &options, &source, split);
        let (train, dev, test) = (read(Split::Train)?, read(Split::Dev)?, read(Split::Test)?);
        Ok(Stage { task, source, train, dev, test })
    }

    /// Fine-tunes the dense model and the two pruned ones; returns the masks of Dual-CP.
    fn compare(&self, record: &mut RunRecord, stage: &Stage) -> Result<UnitMasks> {
        let request = HeadRequest::Task(load::head(&stage.task));
        let mut dense = Model::load(&stage.source.directory, request, self.context.seed)?;
        self.tune(record, stage, dense.clone(), ("dense", 1.0))?;
        let mut kept = None;
        for (method, name) in [(Method::DualCp, "dual-cp"), (Method::Random, "random")] {
            // The page is about Dual-CP; what the control was is in the evaluations.
            let mut own = record.clone();
            let start = Instant::now();
            let options = PruneOptions::of(method, KEEP);
            let rows = &stage.train.examples;
            let (results, model) =
                prune::prune(self.context, &mut own, dense, rows, Some(&stage.task), &options)?;
            dense = model;
            self.context
                .progress
                .record_seconds(&format!("pruning by {name}"), start.elapsed().as_secs_f64());
            for Pruned { masks, budget, empty, .. } in results {
                own.set_budget(&budget, &dense.config().widths());
                let model =
                    training::compact(self.context, &mut own, &dense, &masks, empty, &stage.dev.examples)?;
                self.tune(&mut own, stage, model, (name, budget.reached))?;
                masks.write(&self.folder.join(name).join("masks.json"))?;
                kept.get_or_insert(masks);
            }
            if method == Method::DualCp {
                *record = own;
            } else {
                record.training = own.training;
                record.evaluations = own.evaluations;
            }
        }
        kept.ok_or_else(|| Error::usage("no budget was asked for"))
    }

    /// Fine-tunes, evaluates on the test split and saves one model.
    fn tune(
        &self,
        record: &mut RunRecord,
        stage: &Stage,
        model: Model,
        (variant, keep): (&str, f64),
    ) -> Result<()> {
        let context = self.context;
        let _stage = context.progress.stage(&format!("fine-tuning, {variant}"), 0, "");
        let job = training::Job {
            variant,
            keep_flops: keep,
            objective: &stage.task.name,
            task: &stage.task,
            data: &stage.train,
            evaluation: Some(&stage.dev),
            recipe: &fine_tuning(),
            max_steps: None,
            checkpoints: self.folder.join(CHECKPOINTS).join(variant),
        };
        let mut session = training::train(context, record, model, &job)?;
        let mut timings = Vec::new();
        for _ in 0..TIMINGS {
            let split = Split::Test.to_string();
            let (task, data) = (&stage.task, &stage.test);
            timings.push(evaluate::measure(
                &mut session,
                task,
                data,
                None,
                variant,
                &split,
                &context.progress,
            )?);
        }
        let fastest = timings.into_iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds));
        record.evaluations.extend(fastest.map(|found| Evaluation { keep_flops: keep, ..found }));
        let folder = self.folder.join(variant);
        training::save(&folder, session.into_model()?, &stage.task, &stage.source.tokenizer)
    }
}
