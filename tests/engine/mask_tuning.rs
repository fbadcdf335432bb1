//! Mask-Tuning on whole models: every family, budgets, devices, and inputs nobody wants.

use secateur::data::{Example, Target};
use secateur::error::Error;
use secateur::launch::Precision;
use secateur::model::{Head, Model, UnitMasks};
use secateur::progress::Progress;
use secateur::prune::mask_gradients::{Grouping, MaskGradients, Objective, Source, mask_gradients};
use secateur::prune::mask_tuning::latency::{LatencyOptions, LatencyTable};
use secateur::prune::mask_tuning::{
    Budget, Fisher, Options, RescaleOptions, Teacher, feasible, prune, rescale,
};
use secateur::prune::{CostModel, Job, Stream};
use secateur::session::{Device, Session};

use crate::models::{FAMILIES, examples, model};
use crate::runs::device;
use crate::support::numbers::{U32, gamma};

fn head(family: &str) -> Head {
    match family {
        "gpt2" | "opt" => Head::CausalLm,
        "roberta" => Head::Regression,
        "distilbert" => Head::Span,
        _ => Head::Classification { labels: 3 },
    }
}

fn cost(model: &Model) -> CostModel {
    let config = model.config();
    CostModel::new(config.hidden, config.head_dim, 11.5, config.widths()).unwrap()
}

struct Setting {
    model: Model,
    examples: Vec<Example>,
    cost: CostModel,
    progress: Progress,
}

impl Setting {
    fn new(family: &str, rows: usize) -> Setting {
        let model = model(family, head(family), 0.1);
        let examples = examples(family, head(family), rows, 8);
        Setting { cost: cost(&model), model, examples, progress: Progress::silent() }
    }

    fn job<'a>(&'a self, keep: &'a [f64], device: Device) -> Job<'a> {
        Job {
            model: &self.model,
            device,
            examples: &self.examples,
            batch_rows: 4,
            cost: &self.cost,
            keep,
            seed: 0,
            progress: &self.progress,
        }
    }
}

#[test]
fn every_family_is_pruned_within_its_budgets() {
    let keep = [0.9, 0.6, 0.3];
    for family in FAMILIES {
        let setting = Setting::new(family, 18);
        let by_row = Options { fisher: Fisher::Row, ..Options::default() };
        let paper = Options { teacher: Teacher::Dense, ..Options::paper() };
        for options in [Options::default(), by_row, paper] {
            let results = prune(&setting.job(&keep, Device::Cpu), &options).unwrap();
            assert_eq!(results.len(), keep.len());
            for (pruned, keep) in results.iter().zip(keep) {
                assert!(pruned.budget.reached <= keep * (1.0 + 1e-12), "{family} {keep}");
                assert!(pruned.budget.reached > keep - 0.1, "{family} {keep}: {}", pruned.budget.reached);
                pruned.masks.check_widths(&setting.cost.layers).unwrap();
                let trace = pruned.details["rescaling"].as_array().unwrap();
                // Two layers: neurons, heads, neurons, where any are kept.
                assert!((1..=3).contains(&trace.len()), "{family}: {trace:?}");
                let answers = trace.iter().filter(|solved| solved["answer_rows_only"] == true).count();
                let sequence = matches!(head(family), Head::Classification { .. } | Head::Regression);
                assert!(answers <= usize::from(sequence), "{family}");
                assert!(trace.iter().any(|solved| solved["accepted"] == true), "{family}: {trace:?}");
            }
            let again = prune(&setting.job(&keep, Device::Cpu), &options).unwrap();
            assert!(results.iter().zip(&again).all(|(a, b)| a.masks == b.masks), "{family}");
        }
    }
}

/// A student that is its teacher has nothing to gain: the target is what it computes, and every scale stays 1.
#[test]
fn a_student_like_its_teacher_keeps_its_masks() {
    for family in FAMILIES {
        let setting = Setting::new(family, 12);
        let mut masks = UnitMasks::ones(&setting.cost.layers);
        masks.heads[1][2] = 0.0;
        masks.neurons[0][5..11].fill(0.0);
        let options = RescaleOptions { own_ffn_unmasked: false, ..RescaleOptions::default() };
        let rescaled = rescale(&setting.job(&[], Device::Cpu), &masks, &masks, &options).unwrap();
        assert_eq!(rescaled.trace.len(), 3, "{family}");
        for solved in &rescaled.trace {
            // Sums over the tokens in f32.
            assert!(solved.error_before <= gamma(solved.rows, U32), "{family}: {solved:?}");
        }
        let pairs = masks.heads.iter().chain(&masks.neurons).flatten();
        let found = rescaled.masks.heads.iter().chain(&rescaled.masks.neurons).flatten();
        assert!(pairs.zip(found).all(|(a, b)| (a - b).abs() <= 1e-3), "{family}");
    }
}

/// A device keeps no features but computes them again, with its own kernels.
#[test]
fn devices_agree_with_the_cpu() {
    let device = device(Precision::F32);
    for family in ["bert", "gpt2"] {
        let setting = Setting::new(family, 6);
        let options = Options::default();
        let host = prune(&setting.job(&[0.6], Device::Cpu), &options).unwrap();
        let found = prune(&setting.job(&[0.6], device), &options).unwrap();
        let (host, found) = (&host[0].masks, &found[0].masks);
        assert_eq!(host.kept(), found.kept(), "{family}");
        let all = |masks: &UnitMasks| -> Vec<f32> {
            masks.heads.iter().chain(&masks.neurons).flatten().copied().collect()
        };
        for (a, b) in all(host).into_iter().zip(all(found)) {
            assert!((a - b).abs() <= 1e-3, "{family}: {a} {b}");
        }
    }
}

fn gradients(setting: &Setting, source: Source, objective: Objective, masks: &UnitMasks) -> MaskGradients {
    let mut session = Session::of(&setting.model, Device::Reference).unwrap();
    let progress = Progress::silent();
    mask_gradients(&mut session, source, Grouping::MiniBatches(4), objective, masks, &progress).unwrap()
}

/// From the hidden states at a boundary the gradients above it are those of the whole model.
#[test]
fn gradients_from_a_boundary_are_those_of_the_whole() {
    for family in FAMILIES {
        let setting = Setting::new(family, 10);
        let ones = UnitMasks::ones(&setting.cost.layers);
        let whole = gradients(&setting, Source::Rows(&setting.examples), Objective::Loss, &ones);
        let mut session = Session::of(&setting.model, Device::Reference).unwrap();
        let mut stream = Stream::start(&mut session, &setting.examples, 64).unwrap();
        stream.advance(&mut session, 2, None, false, &setting.progress, |_| Ok(())).unwrap();
        let above = gradients(&setting, Source::Stream(&stream), Objective::Loss, &ones);
        assert!(above.heads[0].is_empty() && above.neurons[0].is_empty());
        for (found, expected) in [(&above.heads[1], &whole.heads[1]), (&above.neurons[1], &whole.neurons[1])]
        {
            let largest = expected.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            assert_eq!(found.len(), expected.len());
            // A stream holds f32.
            assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 1e-5 * largest), "{family}");
        }
    }
}

/// Central differences of the distillation loss, and no gradient where the student is the teacher.
#[test]
fn distillation_gradients_are_derivatives() {
    use secateur::data::Batch;
    use secateur::model::{EmitOptions, Logits};
    use secateur::program::{Extents, Mode};
    use secateur::session::Weighting;
    for family in ["bert", "roberta", "gpt2"] {
        let setting = Setting::new(family, 4);
        let rows: Vec<usize> = (0..4).collect();
        let batch = Batch::of(&setting.examples, &rows).unwrap();
        let capacity = Extents {
            tokens: batch.token_count(),
            sequences: 4,
            targets: batch.targets.len(),
            samples: 0,
            longest: batch.longest_row(),
        };
        let answers = |masks: &UnitMasks| -> Vec<f64> {
            let mut session = Session::of(&setting.model, Device::Reference).unwrap();
            let options = EmitOptions {
                head_masks: true,
                neuron_masks: true,
                logits: Logits::Targets,
                ..EmitOptions::default()
            };
            let prepared = session.prepare(Mode::EVALUATE, &options, capacity).unwrap();
            session.write_masks(&prepared, masks).unwrap();
            let extents = session.feed(&prepared, &batch, Weighting::EachRow).unwrap();
            session.run(&prepared, &extents).unwrap();
            session.read_wide(&prepared, prepared.slots.logits.unwrap(), &extents).unwrap()
        };
        let ones = UnitMasks::ones(&setting.cost.layers);
        let teacher: Vec<f32> = answers(&ones).iter().map(|&v| v as f32).collect();
        let temperature = 2.0;
        let run = |masks: &UnitMasks| {
            let mut logits = |_: &Batch| Ok(teacher.clone());
            let objective = Objective::Distillation { temperature, teacher: &mut logits };
            gradients(&setting, Source::Rows(&setting.examples), objective, masks)
        };
        let at_teacher = run(&ones);
        let largest = |g: &MaskGradients| {
            g.heads.iter().chain(&g.neurons).flatten().fold(0.0, |m: f64, v| m.max(v.abs()))
        };
        assert!(largest(&at_teacher) <= 1e-5, "{family}: {}", largest(&at_teacher));

        let mut masks = ones.clone();
        masks.heads[0][0] = 0.25;
        masks.neurons[1][4] = 0.0;
        let found = run(&masks);
        let classes = teacher.len() / batch.targets.len();
        let loss = |masks: &UnitMasks| -> f64 {
            let student = answers(masks);
            let t = f64::from(temperature);
            let softmax = |logits: Vec<f64>| -> Vec<f64> {
                let sum: f64 = logits.iter().map(|v| (v / t).exp()).sum();
                logits.iter().map(|v| (v / t).exp() / sum).collect()
            };
            let each: Vec<f64> = student
                .chunks(classes)
                .zip(teacher.chunks(classes))
                .map(|(s, q)| {
                    if classes == 1 {
                        return (s[0] - f64::from(q[0])).powi(2);
                    }
                    let p = softmax(q.iter().map(|v| f64::from(*v)).collect());
                    let q = softmax(s.to_vec());
                    t * t * p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
                })
                .collect();
            each.iter().sum::<f64>() / each.len() as f64
        };
        for (layer, unit, is_head) in [(0, 0, true), (1, 1, true), (0, 3, false), (1, 4, false)] {
            let mut moved = [masks.clone(), masks.clone()];
            let step = 1e-3f32;
            for (masks, sign) in moved.iter_mut().zip([1.0, -1.0]) {
                let mask = if is_head { &mut masks.heads } else { &mut masks.neurons };
                mask[layer][unit] += sign * step;
            }
            let mask = |masks: &UnitMasks| {
                f64::from(if is_head { masks.heads[layer][unit] } else { masks.neurons[layer][unit] })
            };
            let slope = (loss(&moved[0]) - loss(&moved[1])) / (mask(&moved[0]) - mask(&moved[1]));
            let gradient = if is_head { found.heads[layer][unit] } else { found.neurons[layer][unit] };
            let scale = largest(&found);
            assert!((gradient - slope).abs() <= 1e-4 * scale, "{family} {layer} {unit}: {gradient} {slope}");
        }
    }
}

#[test]
fn a_measured_table_gives_a_plan() {
    let setting = Setting::new("bert", 8);
    let options = LatencyOptions { batch: 2, length: 8, warm_up: 1, repeats: 3, stride: 16 };
    let table =
        LatencyTable::measure(Device::Cpu, setting.model.config(), &options, &setting.progress).unwrap();
    assert_eq!((table.heads.len(), table.neurons.len()), (3, 40));
    assert_eq!(table.measured_neurons, [1, 16, 32, 40]);
    assert!(table.heads.iter().chain(&table.neurons).all(|seconds| *seconds > 0.0));
    // What was measured is noise at this size; the plan follows a made-up table.
    let heads = (1..=3).map(|n| 1e-3 * n as f64).collect();
    let neurons = (1..=40).map(|n| 1e-4 * (n.max(10) as f64)).collect();
    let options =
        Options { budget: Budget::Latency(LatencyTable { heads, neurons, ..table }), ..Options::default() };
    let pruned = &prune(&setting.job(&[0.7], Device::Cpu), &options).unwrap()[0];
    let latency = &pruned.details["latency"];
    let seconds = |name: &str| latency[name].as_f64().unwrap();
    assert!(seconds("predicted_seconds") <= seconds("budget_seconds"), "{latency}");
    assert!((seconds("dense_seconds") - 0.014).abs() < 1e-6, "{latency}");
    let wrong = LatencyOptions { length: 1000, ..LatencyOptions::default() };
    assert!(LatencyTable::measure(Device::Cpu, setting.model.config(), &wrong, &setting.progress).is_err());
}

#[test]
fn what_cannot_be_pruned_is_an_error_that_says_why() {
    let options = Options::default();
    let fails =
        |setting: &Setting, keep: &[f64]| prune(&setting.job(keep, Device::Cpu), &options).unwrap_err();
    let mut setting = Setting::new("bert", 6);
    let least = *feasible(&setting.cost, &options).start();
    for keep in [0.0, -0.5, 1.5, f64::NAN, least / 2.0] {
        let error = fails(&setting, &[0.5, keep]);
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains("feasible here"), "{error}");
    }
    setting.examples[3].target = Target::None;
    assert!(fails(&setting, &[0.5]).to_string().contains("row 3 has no label"));
    setting.examples.clear();
    assert!(fails(&setting, &[0.5]).to_string().contains("no calibration rows"));

    let mut setting = Setting::new("bert", 6);
    let name = "classifier.weight";
    let layout = setting.model.layout().clone();
    let weight = layout.get(layout.find(name).unwrap());
    setting.model.values[weight.offset] = f32::NAN;
    assert!(matches!(fails(&setting, &[0.5]), Error::NotFinite { .. }));
    // A classifier of zeros: the loss does not depend on what is below it.
    let range = weight.offset..weight.offset + weight.span();
    setting.model.values[range].fill(0.0);
    assert!(fails(&setting, &[0.5]).to_string().contains("every mask gradient is zero"));

    let bare = Setting { model: model("bert", Head::Backbone, 0.0), ..Setting::new("bert", 6) };
    assert!(matches!(fails(&bare, &[0.5]), Error::Usage(_)));

    let setting = Setting::new("bert", 6);
    let job = setting.job(&[], Device::Cpu);
    let ones = UnitMasks::ones(&setting.cost.layers);
    let mut narrow = ones.clone();
    narrow.neurons[1].pop();
    for (student, teacher) in [(&narrow, &ones), (&ones, &narrow)] {
        let error = rescale(&job, student, teacher, &RescaleOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}

/// One row of one token; a layer without heads, one without neurons, one with a single neuron.
#[test]
fn the_smallest_inputs_are_pruned() {
    let mut setting = Setting::new("bert", 1);
    setting.examples[0].input_ids.truncate(1);
    setting.examples[0].token_type_ids.truncate(1);
    let pruned = &prune(&setting.job(&[0.5], Device::Cpu), &Options::default()).unwrap()[0];
    assert!(pruned.budget.reached <= 0.5);
    let setting = Setting::new("opt", 5);
    let mut masks = UnitMasks::ones(&setting.cost.layers);
    masks.heads[1].fill(0.0);
    masks.neurons[0].fill(0.0);
    masks.neurons[1][1..].fill(0.0);
    let ones = UnitMasks::ones(&setting.cost.layers);
    let rescaled =
        rescale(&setting.job(&[], Device::Cpu), &masks, &ones, &RescaleOptions::default()).unwrap();
    assert_eq!(rescaled.trace.len(), 1);
    assert_eq!((rescaled.trace[0].layer, rescaled.trace[0].size), (1, 1));
    assert_eq!(rescaled.masks.heads, masks.heads);
}
