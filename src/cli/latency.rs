//! The latency part of `evaluate` and of `compare`.

use std::path::Path;

use clap::Args;
use secateur::Result;
use secateur::eval::latency::{self, Contestant, Latency};
use secateur::model::{HeadRequest, Model};
use secateur::report::table::Table;
use secateur::report::{RunRecord, format};
use secateur::session::Session;

use super::context::Context;
use super::load;

/// How to measure latency.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Latency")]
pub struct LatencyOptions {
    /// Measure how long a batch takes on this device, inputs in and logits out: median and 95th percentile, after a
    /// warm-up. Without --task nothing else is done. With --masks the compact model is measured.
    #[arg(long)]
    pub latency: bool,
    /// Measure this model too, in turns with the other, and give the ratio: the dense one, as a rule.
    #[arg(long, value_name = "DIR|NAME")]
    pub against: Option<String>,
    /// Rows of a batch. Latency at 1 and at 32 are different questions: at 1 launches and narrow products count.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 32])]
    pub latency_batches: Vec<usize>,
    /// Tokens of every row.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [32, 128])]
    pub latency_lengths: Vec<usize>,
    /// Timed runs of each batch size and length, at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub latency_repeats: usize,
    /// Seconds after which a batch size and length is left with fewer runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub latency_seconds: f64,
}

impl LatencyOptions {
    /// As the library takes them.
    pub fn resolve(&self, seed: u64) -> latency::Options {
        latency::Options {
            batches: self.latency_batches.clone(),
            lengths: self.latency_lengths.clone(),
            repeats: self.latency_repeats,
            seconds: self.latency_seconds,
            seed,
            ..latency::Options::default()
        }
    }
}

/// Measures the named model, compacted by masks where given, and the one to compare with; notes them in the record.
pub fn run(
    context: &Context,
    record: &mut RunRecord,
    name: &str,
    masks: Option<&Path>,
    options: &LatencyOptions,
) -> Result<()> {
    // The model measured is noted last: it is the one the record is about.
    let against = options.against.as_deref().map(|name| open(context, record, name)).transpose()?;
    let mut model = open(context, record, name)?;
    if let Some(path) = masks {
        let (masks, empty) = load::unit_masks(record, path, &model.config().widths())?;
        model = model.compact(&masks, empty)?;
    }
    let mut session = Session::new(model, context.device)?;
    let mut other = against.map(|model| Session::new(model, context.device)).transpose()?;
    let mut models = vec![Contestant { variant: "model".into(), session: &mut session }];
    models.extend(other.as_mut().map(|session| Contestant { variant: "against".into(), session }));
    record.latency = latency::measure(&mut models, &options.resolve(context.seed), &context.progress)?;
    Ok(())
}

/// The model with the head its checkpoint has.
fn open(context: &Context, record: &mut RunRecord, name: &str) -> Result<Model> {
    let (directory, _) = load::configuration(name)?;
    load::weights(context, record, &directory, name, HeadRequest::AsSaved)
}

/// One line a batch size and length; batch 1 first and by itself, since other things count there.
pub fn summary(latencies: &[Latency], styled: bool) -> String {
    let (single, batches): (Vec<&Latency>, Vec<&Latency>) = latencies.iter().partition(|l| l.batch == 1);
    let tables = [single, batches].into_iter().filter(|group| !group.is_empty());
    tables.map(|group| table(&group, styled)).collect::<Vec<_>>().join("\n")
}

fn table(latencies: &[&Latency], styled: bool) -> String {
    let compared = latencies.iter().any(|l| l.variant == "against");
    let mut heads = vec!["batch>", "tokens a row>", "median>", "95th percentile>", "runs>"];
    if compared {
        heads.extend(["against, median>", "faster>"]);
    }
    let mut table = Table::new(&heads);
    for found in latencies.iter().filter(|l| l.variant != "against") {
        let mut cells = vec![
            found.batch.to_string(),
            found.length.to_string(),
            format::seconds(found.median),
            format::seconds(found.p95),
            found.repeats.to_string(),
        ];
        let same =
            |l: &&&Latency| l.variant == "against" && (l.batch, l.length) == (found.batch, found.length);
        if let Some(other) = latencies.iter().find(same) {
            cells.push(format::seconds(other.median));
            cells.push(format!("{:.2} ×", other.median / found.median));
        }
        table.row(cells);
    }
    table.render(styled)
}
