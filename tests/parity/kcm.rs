//! KCM and the magnitude baselines against an independent restatement in f64: the factorisation on a small matrix, both
//! rankings on a tiny BERT, merged scores, and the masks of every budget.
//!
//! A part of the reference data is committed and always compared; where the whole is there, all of it is.

use secateur::Error;
use secateur::data::{Example, Target};
use secateur::model::{Head, HeadRequest, Model};
use secateur::ops::{View, ViewMut, seminmf};
use secateur::progress::Progress;
use secateur::prune::kcm::{self, KernelWidth, Normaliser, Options, Ranker, Score, Stop};
use secateur::prune::moments::ActivationMoments;
use secateur::prune::neuron_ranking::{self, Matrix, neuron_weights};
use secateur::prune::weight_magnitude::{self, Weights};
use secateur::prune::{CostModel, Job, LayerWidths, Pruned, output_magnitude};
use secateur::session::Device;
use serde_json::Value;

use crate::support;
use crate::support::tensors::Tensors;

/// f32 against f64.
const SINGLE: f64 = 1e-5;
const WIDTHS: [(&str, KernelWidth); 2] =
    [("s2", KernelWidth::SigmaSquared), ("2s2", KernelWidth::TwoSigmaSquared)];
const KEEP: [f64; 4] = [0.9, 0.8, 0.7, 0.6];

/// The committed part of a file, and the whole where it is there.
fn both(file: &str) -> Vec<Tensors> {
    let committed = Tensors::read(&support::reference(&format!("kcm/{file}.safetensors")));
    let whole = support::shared(&format!("fixtures/kcm/{file}.safetensors"));
    [Some(committed), whole.map(|path| Tensors::read(&path))].into_iter().flatten().collect()
}

fn json() -> Value {
    serde_json::from_slice(&std::fs::read(support::reference("kcm/kcm.json")).unwrap()).unwrap()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "{what}[{at}] is {f}, should be {e}");
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// K, then C and δ after each of `iterations`, in one precision, widened.
struct Trajectory {
    kernel: Vec<f64>,
    steps: Vec<(Vec<f64>, f64)>,
}

fn exact(x: &[f64], n: usize, scale: f64, iterations: usize) -> Trajectory {
    let (mut kernel, mut c) = (vec![0.0; n * n], vec![0.0; n * n]);
    let rows = View::dense(x, n, x.len() / n);
    seminmf::reference::gaussian_kernel(rows, scale, ViewMut::dense(&mut kernel, n, n));
    let steps = (0..iterations).map(|i| {
        let (kernel, view) = (View::dense(&kernel, n, n), ViewMut::dense(&mut c, n, n));
        let growth = match i {
            0 => seminmf::reference::first_update(kernel, view),
            _ => seminmf::reference::multiplicative_update(kernel, view),
        };
        (c.clone(), growth)
    });
    let steps = steps.collect();
    Trajectory { kernel, steps }
}

fn fast(x: &[f64], n: usize, scale: f64, iterations: usize) -> Trajectory {
    let x: Vec<f32> = x.iter().map(|&v| v as f32).collect();
    let (mut kernel, mut c) = (vec![0.0f32; n * n], vec![0.0f32; n * n]);
    let rows = View::dense(&x, n, x.len() / n);
    seminmf::cpu::gaussian_kernel(rows, scale as f32, ViewMut::dense(&mut kernel, n, n));
    let steps = (0..iterations).map(|i| {
        let (kernel, view) = (View::dense(&kernel, n, n), ViewMut::dense(&mut c, n, n));
        let growth = match i {
            0 => seminmf::cpu::first_update(kernel, view),
            _ => seminmf::cpu::multiplicative_update(kernel, view),
        };
        (wide(&c), growth)
    });
    let steps = steps.collect();
    Trajectory { kernel: wide(&kernel), steps }
}

#[test]
fn kernel_factor_and_growth_equal_the_restated_ones() {
    for (expected, tensors) in both("small").iter().zip([1, 12]) {
        let (n, x) = (expected.shape("X")[0], expected.f64("X"));
        let mut compared = 0;
        for (name, width) in WIDTHS {
            let scale = f64::from(width.scale());
            for (run, tolerance) in [(exact(&x, n, scale, 20), 1e-12), (fast(&x, n, scale, 20), SINGLE)] {
                let growth: Vec<f64> = run.steps.iter().map(|step| step.1).collect();
                assert_close(name, &growth, &expected.f64(&format!("{name}.delta")), tolerance);
                let kernel = format!("{name}.K");
                if expected.has(&kernel) {
                    assert_close(&kernel, &run.kernel, &expected.f64(&kernel), tolerance);
                    compared += 1;
                }
                for i in [1, 2, 5, 10, 20] {
                    let c = format!("{name}.C.{i}");
                    if expected.has(&c) {
                        assert_close(&c, &run.steps[i - 1].0, &expected.f64(&c), tolerance);
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!(compared, 2 * tensors);
    }
}

fn model() -> Model {
    Model::load(&support::reference("models/bert_cls"), HeadRequest::AsSaved, 0).unwrap()
}

fn rank(ranker: &mut Ranker, rows: &[f32], hidden: usize, options: &Options) -> kcm::Representatives {
    ranker.rank(rows, hidden, options, &Progress::silent()).unwrap()
}

#[test]
fn representative_ranking_equals_the_restated_one() {
    let model = model();
    for (expected, diagonals) in both("model").iter().zip([12, 30]) {
        let mut compared = 0;
        for (name, kernel) in WIDTHS {
            // Programs are prepared for one kernel width.
            let mut ranker = Ranker::new(Device::Cpu).unwrap();
            for layer in 0..3 {
                let rows = neuron_weights(&model, layer, Matrix::Down);
                let steps = exact(&wide(&rows), 128, f64::from(kernel.scale()), 20).steps;
                for i in [1, 2, 5, 10, 20] {
                    let options = Options { kernel, stop: Stop::Fixed(i), ..Options::default() };
                    let found = rank(&mut ranker, &rows, 64, &options);
                    let delta = &expected.f64(&format!("{name}.delta.{layer}"))[..i];
                    assert_close("growth", &found.growth, delta, SINGLE);
                    let diagonal = format!("{name}.diag.{i}.{layer}");
                    if expected.has(&diagonal) {
                        assert_close(&diagonal, &found.diagonal, &expected.f64(&diagonal), SINGLE);
                        compared += 1;
                    }
                    let sums = format!("{name}.rowsum.{i}.{layer}");
                    if expected.has(&sums) {
                        let found: Vec<f64> =
                            steps[i - 1].0.chunks(128).map(|row| row.iter().sum()).collect();
                        assert_close(&sums, &found, &expected.f64(&sums), 1e-10);
                    }
                }
            }
        }
        assert_eq!(compared, diagonals);
    }
}

#[test]
fn the_iteration_stops_where_the_restated_one_does() {
    let (json, model) = (json(), model());
    let small = Tensors::read(&support::reference("kcm/small.safetensors"));
    let (x, columns) = (small.f32("X"), small.shape("X")[1]);
    for (name, kernel) in WIDTHS {
        let mut ranker = Ranker::new(Device::Cpu).unwrap();
        for (rule, stop) in [("abs", Stop::Abs), ("signed", Stop::Signed)] {
            let options = Options { kernel, stop, min_iterations: 1, ..Options::default() };
            let iterations = rank(&mut ranker, &x, columns, &options).growth.len();
            assert_eq!(Some(iterations as u64), json["small_stop"][name][rule].as_u64(), "{name} {rule}");
            for layer in 0..3 {
                let rows = neuron_weights(&model, layer, Matrix::Down);
                let iterations = rank(&mut ranker, &rows, 64, &options).growth.len();
                let expected = &json["model_stop"][name][layer][rule];
                assert_eq!(Some(iterations as u64), expected.as_u64(), "{name} {rule} layer {layer}");
            }
        }
    }
}

/// The calibration rows of the fixture, without labels.
fn rows() -> (Vec<Example>, f64) {
    let inputs = Tensors::read(&support::reference("kcm/inputs.safetensors"));
    let ints = |name: &str| -> Vec<i32> { inputs.f64(name).iter().map(|&value| value as i32).collect() };
    let (ids, segments, bounds) = (ints("input_ids"), ints("token_type_ids"), inputs.usize("cu_seqlens"));
    let row = |bounds: &[usize]| Example {
        input_ids: ids[bounds[0]..bounds[1]].to_vec(),
        token_type_ids: segments[bounds[0]..bounds[1]].to_vec(),
        target: Target::None,
    };
    (bounds.windows(2).map(row).collect(), inputs.f64("T")[0])
}

/// Calls `body` with a job over the fixture's rows for budgets `keep`.
fn with_job<R>(device: Device, keep: &[f64], body: impl FnOnce(&Job) -> R) -> R {
    let (model, (examples, length)) = (model(), rows());
    let config = model.config();
    let cost = CostModel::new(config.hidden, config.head_dim, length, config.widths()).unwrap();
    let (model, examples, cost, progress) = (&model, &examples, &cost, &Progress::silent());
    body(&Job { model, device, examples, batch_rows: 8, cost, keep, seed: 0, progress })
}

#[test]
fn activation_statistics_equal_the_restated_ones() {
    let expected = Tensors::read(&support::reference("kcm/model.safetensors"));
    for device in [Device::Reference, Device::Cpu] {
        let moments = with_job(device, &[], |job| ActivationMoments::collect(job).unwrap());
        assert_eq!(moments.tokens, 2269);
        for (name, found) in [
            ("mean", moments.means()),
            ("absmean", moments.mean_magnitudes()),
            ("rms", moments.root_mean_squares()),
        ] {
            assert_close(name, &found.concat(), &expected.f64(&format!("D2.valid.{name}")), 1e-6);
        }
    }
    let means = expected.f64("D2.valid.mean");
    for (name, normaliser) in [
        ("minmax", Normaliser::Minmax),
        ("zscore", Normaliser::Zscore),
        ("l2", Normaliser::L2),
        ("sum", Normaliser::Sum),
    ] {
        let found: Vec<f64> = means.chunks(128).flat_map(|layer| normaliser.apply(layer)).collect();
        let expected = expected.f64(&format!("D2.valid.mean.norm_{name}"));
        let largest = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        assert_close(name, &found, &expected, 1e-12 * largest);
    }
}

/// Neuron masks of every budget against the fixture's, bit by bit; every head is kept.
fn assert_masks(what: &str, results: &[Pruned], expected: &Tensors) {
    for (pruned, keep) in results.iter().zip(KEEP) {
        let name = format!("{what}.{keep}");
        let found: Vec<f64> = wide(&pruned.masks.neurons.concat());
        assert_eq!(found, expected.f64(&name), "{name}");
        assert!(pruned.masks.heads.iter().flatten().all(|&mask| mask == 1.0));
        assert!(pruned.budget.reached <= keep + 1e-12);
        assert_eq!(
            Some(pruned.budget.ffn.units_kept as u64),
            json()["masks"][keep.to_string()]["k"].as_u64()
        );
    }
}

#[test]
fn merged_scores_and_masks_equal_the_restated_ones() {
    for (scores, masks) in both("model").iter().zip(both("masks")) {
        let mut compared = 0;
        for (name, kernel) in WIDTHS {
            for iterations in [1, 10] {
                let what = format!("R2D2.{name}.{iterations}");
                if !scores.has(&what) {
                    continue;
                }
                let stop = Stop::Fixed(iterations);
                let options = Options { kernel, stop, scaling: None, ..Options::default() };
                with_job(Device::Cpu, &KEEP, |job| {
                    let found = kcm::Scores::compute(job, &options).unwrap();
                    assert_close(&what, &found.merged.concat(), &scores.f64(&what), SINGLE);
                    assert_masks(&what, &kcm::prune(job, &options).unwrap(), &masks);
                });
                compared += 1;
            }
        }
        assert!(compared >= 2);
    }
}

#[test]
fn magnitude_baselines_equal_the_restated_ones() {
    let scores = Tensors::read(&support::reference("kcm/model.safetensors"));
    let masks = Tensors::read(&support::reference("kcm/masks.safetensors"));
    with_job(Device::Cpu, &KEEP, |job| {
        for (name, weights) in [("w1", Weights::W1), ("w2", Weights::W2), ("both", Weights::Both)] {
            let found = weight_magnitude::scores(job.model, weights).concat();
            assert_close(name, &found, &scores.f64(&format!("magnitude.{name}")), 1e-12 * 64.0);
            let options = weight_magnitude::Options { weights, ..Default::default() };
            let results = weight_magnitude::prune(job, &options).unwrap();
            assert_masks(&format!("magnitude.{name}"), &results, &masks);
        }
        let results = output_magnitude::prune(job, &output_magnitude::Options::default()).unwrap();
        assert_masks("output_magnitude", &results, &masks);
        // It is D2 alone, of magnitudes, not normalised.
        let options = Options {
            score: Score::D2,
            statistic: kcm::Statistic::Absmean,
            normaliser: Normaliser::None,
            scaling: None,
            ..Options::default()
        };
        assert_masks("output_magnitude", &kcm::prune(job, &options).unwrap(), &masks);
    });
}

#[test]
fn budgets_below_the_share_of_attention_are_refused() {
    let json = json();
    let minimum = json["min_keep"].as_f64().unwrap();
    for keep in [0.5, 0.3] {
        with_job(Device::Cpu, &[0.9, keep], |job| {
            let options = Options { scaling: None, ..Options::default() };
            assert!((*kcm::feasible(job.cost, &options).start() - minimum).abs() < 1e-12);
            match kcm::prune(job, &options) {
                Err(Error::Infeasible { asked, minimum: named, .. }) => {
                    assert_eq!(asked, keep);
                    assert!(named >= minimum && named < minimum + 1e-4);
                }
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn the_number_of_neurons_is_that_of_the_papers_table() {
    let lengths = [
        ("stsb", 31.47),
        ("squad", 170.75),
        ("squad_T170", 170.0),
        ("lm", 512.0),
        ("mrpc", 53.24),
        ("mnli", 39.05),
    ];
    let json = json();
    let mut compared = 0;
    for (task, length) in lengths {
        let widths = vec![LayerWidths { heads: 12, neurons: 3072 }; 12];
        let cost = CostModel::new(768, 64, length, widths).unwrap();
        for (keep, expected) in json["bert_base_k"][task].as_object().unwrap() {
            let found = neuron_ranking::count("KCM", &cost, keep.parse().unwrap()).unwrap();
            assert_eq!(Some(found as u64), expected.as_u64(), "{task} {keep}");
            compared += 1;
        }
    }
    assert_eq!(compared, 10);
}

/// The criterion needs no task head: a backbone gives the masks of the model it belongs to.
#[test]
fn a_backbone_is_pruned_as_its_model_is() {
    let folder = support::reference("models/bert_cls");
    let backbone = Model::load(&folder, HeadRequest::Task(Head::Backbone), 0).unwrap();
    let options = Options { scaling: None, ..Options::default() };
    with_job(Device::Cpu, &KEEP, |job| {
        let own = kcm::prune(job, &options).unwrap();
        let bare = kcm::prune(&Job { model: &backbone, ..*job }, &options).unwrap();
        for (own, bare) in own.iter().zip(&bare) {
            assert_eq!(own.masks, bare.masks);
        }
    });
}
