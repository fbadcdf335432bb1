//! Pruning time of every method that needs no retraining, by stage, on a model of BERT-base's shape with random weights:
//! seconds, floating-point operations, the share of the rate of a large product measured in the same run, and the memory that
//! the process needed in all.
//!
//! `cargo bench --bench stages -- [METHOD…]` prints a table in Markdown. It runs [`ROWS`] rows of [`TOKENS`] tokens; the last
//! column is what the method's published number of rows of this length would take, where a stage's work is proportional to
//! tokens its seconds times as many, otherwise its seconds. Half of the multiply–accumulates are kept.

use std::time::Instant;

use secateur::bench::Shape;
use secateur::data::{Example, Target};
use secateur::memory;
use secateur::model::{Architecture, EmitOptions, Model};
use secateur::ops::gemm::{self, Epilogue};
use secateur::ops::{View, ViewMut};
use secateur::program::{Extents, Mode, cost};
use secateur::progress::Progress;
use secateur::prune::k_prune::{self, Wanted};
use secateur::prune::method::{Method, Profile};
use secateur::prune::{CostModel, Job, UnitMasks};
use secateur::session::Device;
use support::random;

mod support;

/// Calibration rows.
const ROWS: usize = 32;
/// Tokens of each.
const TOKENS: usize = 64;
/// Fraction of multiply–accumulates kept.
const KEEP: f64 = 0.5;
/// Rows of a gradient mini-batch.
const BATCH: usize = 32;

/// A method under the name it is asked for, and the choices that make it.
type Named = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const METHODS: [Named; 11] = [
    ("weight-magnitude", "weight-magnitude", &[]),
    ("output-magnitude", "output-magnitude", &[]),
    ("layer-dropping", "layer-dropping", &[("strategy", "contribution")]),
    ("taylor", "importance", &[("score", "taylor")]),
    ("fisher", "importance", &[("score", "fisher")]),
    ("mask-tuning", "mask-tuning", &[]),
    ("mask-tuning-by-row", "mask-tuning", &[("fisher", "row")]),
    ("d2", "kcm", &[("score", "d2")]),
    ("r2", "kcm", &[("score", "r2"), ("stop", "fixed:20"), ("scaling", "none")]),
    ("kcm", "kcm", &[("score", "r2d2"), ("stop", "fixed:20")]),
    ("k-prune", "k-prune", &[]),
];

/// Operations per second of a product 3072 × 3072 × 3072, the best of three.
fn product_rate() -> f64 {
    const N: usize = 3072;
    let (a, b) = (random(N * N, 1), random(N * N, 2));
    let mut c = vec![0.0; N * N];
    let mut once = || {
        let start = Instant::now();
        let [a, b] = [&a, &b].map(|data| View::dense(data, N, N));
        gemm::cpu::gemm(a, false, b, false, &mut ViewMut::dense(&mut c, N, N), Epilogue::default());
        start.elapsed().as_secs_f64()
    };
    let best = (0..3).map(|_| once()).fold(f64::INFINITY, f64::min);
    2.0 * (N as f64).powi(3) / best
}

/// The part of rescaling that its stage is shown without: systems and LSMR, whose iterations depend on the weights.
const SOLVING: &str = "rescaling / solving";

/// Counts the work of stages.
struct Work<'a> {
    architecture: &'a Architecture,
    /// What the method kept.
    masks: &'a UnitMasks,
}

impl Work<'_> {
    /// Operations of a program over all rows.
    fn program(&self, mode: Mode, options: &EmitOptions) -> f64 {
        let extents = Extents {
            tokens: ROWS * TOKENS,
            sequences: ROWS,
            targets: ROWS,
            longest: TOKENS,
            ..Extents::default()
        };
        let emitted = self.architecture.emit(mode, options).expect("a program");
        cost::of_program(&emitted.program, &extents).flops as f64
    }

    /// The forward pass of all sublayers.
    fn forward(&self) -> f64 {
        let sublayers = Some(0..2 * self.architecture.config.layers.len());
        self.program(Mode::EVALUATE, &EmitOptions { sublayers, ..EmitOptions::default() })
    }

    fn gradients(&self) -> f64 {
        let options =
            EmitOptions { head_masks: true, neuron_masks: true, loss: true, ..EmitOptions::default() };
        self.program(Mode { mask_gradients: true, ..Mode::EVALUATE }, &options)
    }

    /// Of each sublayer: features, units and features kept.
    fn widths(&self) -> Vec<[f64; 3]> {
        let head_dim = self.architecture.config.head_dim;
        let (heads, neurons) = self.masks.kept();
        let both = self.architecture.config.layers.iter().zip(heads.iter().zip(&neurons));
        both.flat_map(|(layer, (heads, neurons))| {
            [(layer.heads, heads.len(), head_dim), (layer.neurons, neurons.len(), 1)]
        })
        .map(|(units, kept, group)| [(units * group) as f64, kept as f64, (kept * group) as f64])
        .collect()
    }

    /// Features of the kept units and their projection, and the same of all sublayers.
    fn kept_forward(&self) -> f64 {
        let (d, tokens) = (self.architecture.config.hidden as f64, (ROWS * TOKENS) as f64);
        let attention = |kept: f64| (8.0 * d + 4.0 * TOKENS as f64) * kept * tokens;
        let widths = self.widths();
        widths.chunks(2).map(|pair| attention(pair[0][2]) + 4.0 * d * pair[1][2] * tokens).sum()
    }

    /// The teacher whole, the student, and its normal equations, the upper half of the Gram matrix.
    fn rescaling(&self, tunes_heads: bool) -> f64 {
        let (d, tokens) = (self.architecture.config.hidden as f64, (ROWS * TOKENS) as f64);
        let tuned = self.widths().into_iter().enumerate();
        let tuned = tuned.filter(|(sublayer, _)| sublayer % 2 == 1 || (tunes_heads && *sublayer > 0));
        let normal: f64 = tuned.map(|(_, [_, _, kept])| tokens * kept * (kept + 2.0 * d)).sum();
        self.forward() + self.kept_forward() + normal
    }

    fn measurement(&self, options: &k_prune::Options) -> f64 {
        let of = |from| {
            let wanted = if from == 0 { Wanted::Outputs } else { Wanted::Gradients };
            let (mode, emitted) =
                k_prune::program(self.architecture, options, from, wanted).expect("a program");
            self.program(mode, &emitted)
        };
        (0..2 * self.architecture.config.layers.len()).map(of).sum()
    }

    /// Each sublayer before and after its solve, Gram columns of what is kept, and a Cholesky factorisation.
    fn tuning(&self) -> f64 {
        let (d, tokens) = (self.architecture.config.hidden as f64, (ROWS * TOKENS) as f64);
        let solve = |[all, _, kept]: [f64; 3]| {
            2.0 * tokens * all * (kept + d) + kept.powi(3) / 3.0 + 2.0 * kept * kept * d
        };
        2.0 * self.kept_forward() + self.widths().into_iter().map(solve).sum::<f64>()
    }

    /// Operations of a stage, and whether they are proportional to tokens; `None` where it has too few to speak of.
    fn of(&self, method: &Method, stage: &str) -> Option<(f64, bool)> {
        let layers = self.architecture.config.layers.iter();
        let cube = |n: usize| 19.0 * 2.0 * (n as f64).powi(3);
        Some(match (stage, method) {
            ("mask gradients", _) => (self.gradients(), true),
            ("activation moments", _) => {
                let options = EmitOptions { moments: true, ..EmitOptions::default() };
                (self.program(Mode::EVALUATE, &options), true)
            }
            ("contribution of layers", _) => (self.forward(), true),
            ("representative ranking", _) => (layers.map(|layer| cube(layer.neurons)).sum(), false),
            ("rearrangement", Method::MaskTuning(options)) => {
                let by_row = options.fisher == secateur::prune::mask_tuning::Fisher::Row;
                let vectors = if by_row { ROWS } else { ROWS.div_ceil(BATCH) } as f64;
                let units = |n: usize| (n * n) as f64;
                (layers.map(|l| vectors * (units(l.heads) + units(l.neurons))).sum(), false)
            }
            ("rescaling", Method::MaskTuning(_)) => (self.rescaling(true), true),
            ("rescaling", _) => (self.rescaling(false), true),
            ("k-prune / measurement", Method::KPrune(options)) => (self.measurement(options), true),
            ("k-prune / teacher", _) => (self.forward(), true),
            ("k-prune / search and tuning", _) => (self.tuning(), true),
            _ => return None,
        })
    }
}

/// Makes the system forget the most memory this process had resident; where it cannot, peaks are those of all methods so far.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn run(named: &Named, model: &Model, examples: &[Example], cost: &CostModel, rate: f64) {
    let &(label, name, choices) = named;
    let mut method = Method::named(name, Profile::Default).expect("a method");
    for (choice, value) in choices {
        method.choose(choice, value).expect("a choice");
    }
    let progress = Progress::silent();
    let (device, keep) = (Device::Cpu, [KEEP]);
    let job =
        Job { model, device, examples, batch_rows: BATCH, cost, keep: &keep, seed: 1, progress: &progress };
    forget_peak();
    let start = Instant::now();
    let pruned = method.prune(&job).expect("pruned").remove(0);
    let total = start.elapsed().as_secs_f64();
    let peak = memory::peak_bytes().map_or("?".into(), |bytes| format!("{:.2}", bytes as f64 / 1e9));

    let work = Work { architecture: &model.architecture, masks: &pruned.masks };
    let published = method.facts().rows.at(TOKENS as f64) as f64 / ROWS as f64;
    let (mut rest, mut scaled) = (total, 0.0);
    let stages = progress.seconds();
    let solving = stages.iter().find(|stage| stage.stage == SOLVING).map_or(0.0, |stage| stage.seconds);
    // The stage around K-prune's parts is told by them.
    for stage in stages.iter().filter(|stage| stage.stage != "k-prune") {
        let seconds = stage.seconds - if stage.stage == "rescaling" { solving } else { 0.0 };
        rest -= seconds;
        let (operations, by_tokens) = work.of(&method, &stage.stage).unwrap_or((0.0, false));
        let at_published = if by_tokens { published * seconds } else { seconds };
        scaled += at_published;
        let share = match operations > 0.0 {
            true => format!("{:.1} | {:.2}", operations / 1e9, operations / seconds / rate),
            false => " | ".into(),
        };
        println!("| {label} | {} | {seconds:.3} | {share} | | {at_published:.1} |", stage.stage);
    }
    println!("| {label} | the rest | {rest:.3} | | | | {rest:.1} |");
    println!("| {label} | **in all** | {total:.3} | | | {peak} | {:.1} |", scaled + rest);
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let model = Shape::BertBase.model(1).expect("a model");
    let config = model.config();
    let cost = CostModel::new(config.hidden, config.head_dim, TOKENS as f64, config.widths());
    let cost = cost.expect("a cost model");
    let ids = random(ROWS * TOKENS, 2);
    let vocabulary = config.vocab as f32;
    let row = |(index, ids): (usize, &[f32])| Example {
        input_ids: ids.iter().map(|x| ((x + 1.0) * 0.49 * vocabulary) as i32).collect(),
        token_type_ids: vec![0; TOKENS],
        target: Target::Class(index as u32 % 2),
    };
    let examples: Vec<Example> = ids.chunks(TOKENS).enumerate().map(row).collect();
    let rate = product_rate();
    println!("A product 3072 × 3072 × 3072: {:.0} GFLOP/s. {ROWS} rows of {TOKENS} tokens.\n", rate / 1e9);
    println!(
        "| method | stage | seconds | GFLOP | of the product's rate | GB in all | seconds at the published rows |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for named in &METHODS {
        if asked.is_empty() || asked.iter().any(|asked| asked == named.0) {
            run(named, &model, &examples, &cost, rate);
        }
    }
}
