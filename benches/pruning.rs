//! Pruning methods at BERT-base's size on random weights, by stage, beside the rate of a large product measured in the same
//! run: what a stage takes of the machine is its floating-point operations over that rate. Criterion's "elements" are
//! floating-point operations, so Gelem/s reads as GFLOP/s.
//!
//! A method adds its stages as a function of the list at the end.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use secateur::ops::gemm::{self, Epilogue};
use secateur::ops::{View, ViewMut, seminmf};
use secateur::progress::Progress;
use secateur::prune::kcm::{Options, Ranker, Stop};
use secateur::session::Device;
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

criterion_group!(benches, product, representative_ranking);
criterion_main!(benches);
