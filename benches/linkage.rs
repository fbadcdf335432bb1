//! Dual-CP's stages on one layer of BERT-base (12 heads of 64, 3072 neurons) and 200 tokens. Multiply by 12 for the model.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use secateur::data::random::{Purpose, Stream};
use secateur::ops::mapping::cpu::dimension_mapping;
use secateur::ops::similarity::cpu::{absolute_cosine, profile_distance};
use secateur::ops::{View, ViewMut};
use secateur::prune::clustering::{Linkage, Tree};
use secateur::prune::cost::{CostModel, LayerWidths};
use secateur::prune::dual_cp::{CalibrationSample, CpuBackend, Options, Search, Ties, cut, prune};

const SAMPLES: usize = 200;
const NEURONS: usize = 3072;
const HEADS: usize = 12;
const HEAD_DIM: usize = 64;

/// [SAMPLES, units]: 40 shared factors and noise, so that units are alike to different degrees, as activations are.
fn activations(units: usize, index: u64) -> Vec<f32> {
    const FACTORS: usize = 40;
    let mut stream = Stream::new(index, Purpose::Generation, 0);
    let mut values = |n: usize| (0..n).map(|_| stream.uniform() as f32 - 0.5).collect::<Vec<f32>>();
    let (factors, loadings, mut x) =
        (values(SAMPLES * FACTORS), values(FACTORS * units), values(SAMPLES * units));
    for s in 0..SAMPLES {
        for k in 0..FACTORS {
            for unit in 0..units {
                x[s * units + unit] += factors[s * FACTORS + k] * loadings[k * units + unit];
            }
        }
    }
    x
}

fn condensed(matrix: &[f32], n: usize, distance: impl Fn(f32) -> f64) -> Vec<f64> {
    (0..n)
        .flat_map(|i| matrix[i * n + i + 1..(i + 1) * n].iter().map(|v| distance(*v)).collect::<Vec<_>>())
        .collect()
}

fn stages(c: &mut Criterion) {
    let mut group = c.benchmark_group("dual_cp_layer");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));

    let neurons = activations(NEURONS, 1);
    let mut cosine = vec![0.0; NEURONS * NEURONS];
    group.bench_function("absolute_cosine_of_neurons", |b| {
        b.iter(|| {
            absolute_cosine(
                View::dense(&neurons, SAMPLES, NEURONS),
                &mut ViewMut::dense(&mut cosine, NEURONS, NEURONS),
            )
        })
    });

    let dimensions = HEADS * HEAD_DIM;
    let context = activations(dimensions, 2);
    let mut head_cosine = vec![0.0; dimensions * dimensions];
    group.bench_function("absolute_cosine_of_head_dimensions", |b| {
        b.iter(|| {
            let out = &mut ViewMut::dense(&mut head_cosine, dimensions, dimensions);
            absolute_cosine(View::dense(&context, SAMPLES, dimensions), out)
        })
    });
    let mut similarity = vec![0.0; HEADS * HEADS];
    group.bench_function("dimension_mapping", |b| {
        b.iter(|| {
            let out = &mut ViewMut::dense(&mut similarity, HEADS, HEADS);
            dimension_mapping(View::dense(&head_cosine, dimensions, dimensions), HEAD_DIM, out)
        })
    });

    let mut profile = vec![0.0; NEURONS * NEURONS];
    group.bench_function("profile_distance", |b| {
        b.iter(|| {
            profile_distance(
                View::dense(&cosine, NEURONS, NEURONS),
                &mut ViewMut::dense(&mut profile, NEURONS, NEURONS),
            )
        })
    });

    let direct = condensed(&cosine, NEURONS, |c| 1.0 - f64::from(c));
    let profile = condensed(&profile, NEURONS, f64::from);
    let build = |distances: &[f64], linkage| {
        Tree::build(&mut distances.to_vec(), NEURONS, linkage, "bench").expect("finite")
    };
    group
        .bench_function("linkage_average_direct", |b| b.iter(|| build(black_box(&direct), Linkage::Average)));
    group.bench_function("linkage_complete_profile", |b| {
        b.iter(|| build(black_box(&profile), Linkage::Complete))
    });

    let trees = vec![build(&direct, Linkage::Average); 12];
    group.bench_function("cut_of_12_layers_and_partition", |b| {
        b.iter(|| {
            let cut = cut(&trees, 1.0, 12.0 * 1000.0, Search::Exact, Ties::Ordered);
            trees
                .iter()
                .zip(&cut.merges)
                .map(|(tree, &merges)| tree.partition_after(merges).len())
                .sum::<usize>()
        })
    });
    group.finish();
}

/// The whole method on a model of BERT-base's shape, activations given: four keep fractions from one set of trees.
fn model(c: &mut Criterion) {
    const LAYERS: usize = 12;
    let widths = vec![LayerWidths { heads: HEADS, neurons: NEURONS }; LAYERS];
    let cost = CostModel::new(HEADS * HEAD_DIM, HEAD_DIM, 39.05, widths).expect("a usable model");
    let sample = CalibrationSample {
        samples: SAMPLES,
        head_dim: HEAD_DIM,
        heads: vec![HEADS; LAYERS],
        context: (0..LAYERS as u64).map(|layer| activations(HEADS * HEAD_DIM, 2 * layer + 10)).collect(),
        activations: (0..LAYERS as u64).map(|layer| activations(NEURONS, 2 * layer + 11)).collect(),
    };
    let mut group = c.benchmark_group("dual_cp_model");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(1));
    for (name, options) in [("default", Options::default()), ("authors", Options::authors())] {
        let options = Options { keep_flops: vec![0.9, 0.7, 0.5, 0.3], ..options };
        let mut stages = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| stages = prune(&sample, &cost, &options, &mut CpuBackend).expect("feasible").stages.0)
        });
        for (stage, seconds) in stages {
            println!("    {stage}: {:.0} ms", 1e3 * seconds);
        }
    }
    group.finish();
}

criterion_group!(benches, stages, model);
criterion_main!(benches);
