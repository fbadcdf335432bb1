//! Pruning methods at BERT-base's size on random weights, by stage, beside the rate of a large product measured in the same
//! run: what a stage takes of the machine is its floating-point operations over that rate. Criterion's "elements" are
//! floating-point operations, so Gelem/s reads as GFLOP/s.
//!
//! A method adds its stages as a function of the list at the end.

use std::path::Path;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use secateur::data::{Example, Target};
use secateur::model::{Head, Model, ModelConfig};
use secateur::ops::gemm::{self, Epilogue};
use secateur::ops::{View, ViewMut, seminmf};
use secateur::progress::Progress;
use secateur::prune::kcm::{Options, Ranker, Stop};
use secateur::prune::mask_gradients::{Grouping, MaskGradients, Objective, Source, mask_gradients};
use secateur::prune::mask_tuning::{RescaleOptions, rearrange, rescale};
use secateur::prune::{CostModel, Job, UnitMasks};
use secateur::session::{Device, Session};
use support::random;

mod support;

/// Neurons of a layer and hidden size of BERT-base.
const NEURONS: usize = 3072;
const HIDDEN: usize = 768;

/// Times `stage`, which does `operations` floating-point operations.
fn stage(group: &mut BenchmarkGroup<WallTime>, name: &str, operations: usize, mut stage: impl FnMut()) {
    group.throughput(Throughput::Elements(operations as u64)).sample_size(10);
    group.bench_function(name, |bencher| bencher.iter(&mut stage));
}

/// The ceiling: the product that KCM's iterations consist of.
fn product(criterion: &mut Criterion) {
    let (a, b) = (random(NEURONS * NEURONS, 1), random(NEURONS * NEURONS, 2));
    let mut c = vec![0.0; NEURONS * NEURONS];
    let mut group = criterion.benchmark_group("ceiling");
    stage(&mut group, "product 3072 3072 3072", 2 * NEURONS.pow(3), || {
        let [a, b] = [&a, &b].map(|data| View::dense(data, NEURONS, NEURONS));
        let mut c = ViewMut::dense(&mut c, NEURONS, NEURONS);
        gemm::cpu::gemm(a, false, b, false, &mut c, Epilogue::default());
    });
    group.finish();
}

/// KCM's representative ranking of one layer: rows of W2 with the norm that BERT's have (‖x‖² near 1.2).
fn representative_ranking(criterion: &mut Criterion) {
    let uniform = random(NEURONS * HIDDEN, 3);
    let scale = (3.0 * 1.2 / HIDDEN as f32).sqrt();
    let rows: Vec<f32> = uniform.iter().map(|x| scale * x).collect();
    let (mut kernel, mut c) = (vec![0.0; NEURONS * NEURONS], vec![0.0; NEURONS * NEURONS]);
    let mut group = criterion.benchmark_group("KCM representative ranking, one layer");
    // Difference and multiply-add of half the pairs.
    stage(&mut group, "kernel", 3 * NEURONS * NEURONS * HIDDEN / 2, || {
        let rows = View::dense(&rows, NEURONS, HIDDEN);
        seminmf::cpu::gaussian_kernel(rows, 1.0, ViewMut::dense(&mut kernel, NEURONS, NEURONS));
    });
    stage(&mut group, "first update", NEURONS * NEURONS, || {
        let c = ViewMut::dense(&mut c, NEURONS, NEURONS);
        seminmf::cpu::first_update(View::dense(&kernel, NEURONS, NEURONS), c);
    });
    stage(&mut group, "update", 2 * NEURONS.pow(3), || {
        let c = ViewMut::dense(&mut c, NEURONS, NEURONS);
        seminmf::cpu::multiplicative_update(View::dense(&kernel, NEURONS, NEURONS), c);
    });
    // All of it, through the executor: a kernel, a first update and nineteen products.
    let options = Options { stop: Stop::Fixed(20), ..Options::default() };
    let mut ranker = Ranker::new(Device::Cpu).expect("a ranker");
    stage(&mut group, "twenty iterations", 19 * 2 * NEURONS.pow(3), || {
        ranker.rank(&rows, HIDDEN, &options, &Progress::silent()).expect("ranks");
    });
    group.finish();
}

/// Mask-Tuning on two layers of BERT-base's size with a span head, whose last layer is fitted at all tokens; half of the heads
/// and neurons kept, the teacher at √½. What the published code spends most of its time on, rearrangement and rescaling,
/// stands beside the gradient pass that both rest on.
fn mask_tuning(criterion: &mut Criterion) {
    let (layers, rows, length) = (2, 64, 64);
    let config = format!(
        r#"{{"model_type": "bert", "vocab_size": 100, "hidden_size": {HIDDEN}, "num_attention_heads": 12,
            "num_hidden_layers": {layers}, "intermediate_size": {NEURONS}, "max_position_embeddings": 512}}"#
    );
    let config = serde_json::from_str(&config).expect("JSON");
    let config = ModelConfig::from_json(config, Path::new("bench")).expect("a configuration");
    let model = Model::from_config(config, Head::Span, 1).expect("a model");
    let widths = model.config().widths();
    let cost = CostModel::new(HIDDEN, HIDDEN / 12, length as f64, widths.clone()).expect("a cost model");
    let ids = random(rows * length, 2);
    let row = |ids: &[f32]| Example {
        input_ids: ids.iter().map(|x| ((x + 1.0) * 49.0) as i32).collect(),
        token_type_ids: vec![0; length],
        target: Target::Span { start: 3, end: 5 },
    };
    let examples: Vec<Example> = ids.chunks(length).map(row).collect();
    let progress = Progress::silent();
    let (device, keep) = (Device::Cpu, [0.5]);
    let job = Job {
        model: &model,
        device,
        examples: &examples,
        batch_rows: 32,
        cost: &cost,
        keep: &keep,
        seed: 0,
        progress: &progress,
    };
    // Every second unit, and of the teacher every unit but the last of four.
    let masks = |kept: fn(usize) -> bool| {
        let mask = |units: usize| (0..units).map(|unit| f32::from(u8::from(kept(unit)))).collect();
        UnitMasks {
            heads: widths.iter().map(|layer| mask(layer.heads)).collect(),
            neurons: widths.iter().map(|layer| mask(layer.neurons)).collect(),
        }
    };
    let (student, teacher) = (masks(|unit| unit % 2 == 0), masks(|unit| unit % 4 != 3));

    let tokens = rows * length;
    let (d, n) = (HIDDEN, NEURONS);
    let attention = 2 * 4 * d * d + 2 * 2 * d * length;
    let mut group = criterion.benchmark_group("Mask-Tuning, two layers");
    let ones = UnitMasks::ones(&widths);
    let mut gradients = None;
    stage(&mut group, "gradients", 2 * layers * tokens * (attention + 4 * d * n), || {
        let mut session = Session::of(&model, device).expect("a session");
        let (source, grouping) = (Source::Rows(&examples), Grouping::MiniBatches(job.batch_rows));
        let found = mask_gradients(&mut session, source, grouping, Objective::Loss, &ones, &progress);
        gradients = Some(found.expect("gradients"));
    });
    // As many mini-batches as 2,048 rows have.
    let batches = 64;
    let many = |units: usize, seed: u64| {
        random(units * batches, seed).iter().map(|x| f64::from(*x)).collect::<Vec<f64>>()
    };
    let many = MaskGradients { batches, heads: vec![many(12, 3); layers], neurons: vec![many(n, 4); layers] };
    stage(&mut group, "rearrangement", 2 * layers * n * n * batches, || {
        std::hint::black_box(rearrange(&student, &many));
    });
    // The teacher whole; of the student half, with the upper half of its Gram matrices and their products with the target.
    let half = n / 2;
    let solved = attention / 2 + 4 * d * half + 2 * half * half * 9 / 16 + 2 * half * d;
    stage(&mut group, "rescaling", layers * tokens * (attention + 4 * d * n + solved), || {
        rescale(&job, &student, &teacher, &RescaleOptions::default()).expect("rescales");
    });
    group.finish();
}

criterion_group!(benches, product, representative_ranking, mask_tuning);
criterion_main!(benches);
