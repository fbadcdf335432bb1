//! The HTML page: well formed, self-contained, and everything from outside escaped.

use secateur::prune::cost::{CostModel, LayerWidths};
use secateur::prune::masks::UnitMasks;
use secateur::report::record::{
    BadRows, Calibration, Choice, CompactProof, Epoch, Evaluation, InputFile, LossPoint, Method,
    ModelSummary, RunRecord, Size, TaskSummary, Training,
};
use secateur::report::{Ordered, html};

/// A record in which every field is set, with markup in every string that comes from outside.
fn full_record() -> (RunRecord, UnitMasks) {
    let (layers, heads, neurons) = (6, 12, 1536);
    let dense = vec![LayerWidths { heads, neurons }; layers];
    let kept_heads: Vec<Vec<usize>> =
        (0..layers).map(|l| (0..heads).filter(|h| (h * 7 + l * 5) % 6 > 0).collect()).collect();
    let kept_neurons: Vec<Vec<usize>> = (0..layers)
        .map(|l| (0..neurons).filter(|n| (n * n / 97 + l * 31) % 100 < 38 + 6 * l).collect())
        .collect();
    let masks = UnitMasks::from_kept(&dense, &kept_heads, &kept_neurons);
    let cost = CostModel::new(384, 32, 53.24, dense.clone()).unwrap();
    let budget = cost.record(0.6, &masks).unwrap();

    let arguments =
        ["run", "--model", "/models/<MiniLM>", "--task", "mrpc", "--keep-flops", "0.6", "--out", "it's here"];
    let mut record = RunRecord::begin("run", arguments.map(String::from).to_vec(), 42, 2, "cpu");
    record.set_budget(&budget, &dense);
    record.inputs = vec![InputFile {
        role: "model".into(),
        path: "/models/<MiniLM>/model.safetensors".into(),
        bytes: 90_868_376,
        blake3: "5f".repeat(32),
    }];
    record.model = Some(ModelSummary {
        name: "/models/<MiniLM>".into(),
        family: "bert".into(),
        layers,
        hidden: 384,
        head_dim: 32,
        vocabulary: 30_522,
        positions: 512,
        parameters: 22_713_216,
    });
    record.task = Some(TaskSummary {
        name: "mrpc".into(),
        metric: "accuracy".into(),
        larger_is_better: true,
        rows: [("train", 3668), ("dev", 408)].into_iter().collect(),
        mean_tokens: [("train", 52.9), ("dev", 53.24)].into_iter().collect(),
        max_length: 128,
        labels: vec!["not <equivalent>".into(), "equivalent".into()],
    });
    let choice = |value: &str, given| Choice { value: value.into(), given };
    record.method = Some(Method {
        name: "dual-cp".into(),
        profile: "default".into(),
        choices: [
            ("linkage", choice("average", false)),
            ("space", choice("direct", false)),
            ("lambda", choice("5", true)),
            ("on-infeasible", choice("<error> & more", false)),
        ]
        .into_iter()
        .collect(),
    });
    record.calibration = Some(Calibration {
        source: "train".into(),
        rows_available: 3668,
        rows: (0..3000).collect(),
        tokens_available: 158_700,
        tokens: (0..200).collect(),
        cost_length: 53.24,
        dead_neurons: vec![0, 3, 0, 0, 1, 0],
    });
    record.size = Some(Size {
        parameters_dense: 22_713_216,
        parameters_kept: 18_401_000,
        bytes_dense: 90_868_376,
        bytes_kept: 73_604_000,
    });
    record.compact = Some(CompactProof { max_logit_difference: 3.1e-6, max_logit: 4.2, rows: 408 });
    let variants = [
        ("dense", 0.8652, 0.9043, 3.9, 1.0),
        ("dual-cp", 0.8505, 0.8920, 2.4, 0.5997),
        ("random", 0.7721, 0.8411, 2.4, 0.5997),
        ("worst", 0.7108, 0.8123, 2.4, 0.5997),
    ];
    for (index, (variant, accuracy, f1, seconds, keep_flops)) in variants.into_iter().enumerate() {
        record.evaluations.push(Evaluation {
            variant: variant.into(),
            split: "dev".into(),
            keep_flops,
            metrics: [("accuracy", accuracy), ("f1", f1)].into_iter().collect(),
            rows: 408,
            seconds,
        });
        let losses = (0..92)
            .map(|i| {
                let x = i as f64 / 92.0;
                let wobble = ((i * 37 + index * 11) % 17) as f64 / 17.0 - 0.5;
                LossPoint {
                    step: 10 * (i as u64 + 1),
                    loss: 0.22 + 0.05 * index as f64 + 0.45 * (-3.0 * x).exp() + 0.06 * wobble,
                }
            })
            .collect();
        let epochs = (1..=4)
            .map(|epoch| Epoch {
                epoch,
                loss: 0.6 - 0.1 * epoch as f64,
                metrics: [("accuracy", accuracy - 0.09 / epoch as f64)].into_iter().collect(),
            })
            .collect();
        record.training.push(Training {
            variant: variant.into(),
            objective: "mrpc".into(),
            recipe: [("learning_rate", 2e-5.into()), ("batch_size", 16.into())].into_iter().collect(),
            steps: 920,
            seconds: 212.0,
            losses,
            epochs,
            best_epoch: Some(4),
        });
    }
    let stages = [
        ("reading", 0.8),
        ("calibration", 21.3),
        ("clustering", 3.4),
        ("clustering / trees", 2.2),
        ("fine-tuning", 640.0),
        ("evaluation", 9.1),
        ("compaction", 0.6),
    ];
    record.seconds = stages.into_iter().collect::<Ordered<f64>>();
    record.peak_bytes = Some(812_000_000);
    record.planned_peak_bytes = Some(803_000_000);
    record.elapsed_seconds = 681.0;
    record.warnings = vec!["only 180 of 200 tokens: <short> rows".into()];
    record.bad_rows = vec![BadRows {
        path: "train.tsv".into(),
        count: 1,
        unit: "line".into(),
        rows: vec![(17, "<b>3 columns".into())],
    }];
    (record, masks)
}

/// Fails unless a page is well formed and refers to nothing outside; its number of elements.
pub fn assert_page(page: &str) -> usize {
    for outside in ["http:", "https:", "//", "url(", "@import", "<script", "src=", "href=", "javascript:"] {
        assert!(!page.contains(outside), "the page refers to the outside: {outside}");
    }
    check_well_formed(page)
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_from_outside() {
    let (record, masks) = full_record();
    for masks in [Some(&masks), None] {
        let page = html::render(&record, masks);
        let name = if masks.is_some() { "report.html" } else { "report-without-masks.html" };
        std::fs::write(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), &page).unwrap();
        let elements = assert_page(&page);
        assert!(elements > 200, "{elements} elements");
        for shown in ["MiniLM", "60.", "Accuracy", "random", "train.tsv"] {
            assert!(page.contains(shown), "{shown} is missing");
        }
    }
}

#[test]
fn markup_in_names_stays_text() {
    let (record, masks) = full_record();
    let page = html::render(&record, Some(&masks));
    for name in ["<MiniLM>", "<short>", "<error>", "<b>3"] {
        assert!(!page.contains(name), "{name} became markup");
        assert!(page.contains(&name.replace('<', "&lt;").replace('>', "&gt;")), "{name} is missing");
    }
}

#[test]
fn an_almost_empty_record_still_gives_a_page() {
    let record = RunRecord::begin("evaluate", vec![], 0, 1, "cpu");
    check_well_formed(&html::render(&record, None));
}

#[test]
fn the_record_survives_a_file() {
    let (record, _) = full_record();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    std::fs::write(&path, record.to_json()).unwrap();
    let read: serde_json::Value = serde_json::from_str(&RunRecord::read(&path).unwrap().to_json()).unwrap();
    let written: serde_json::Value = serde_json::from_str(&record.to_json()).unwrap();
    assert!(same_but_for_last_bits(&read, &written), "not the same record");
    std::fs::write(&path, record.to_json().replacen("\"format\": 1", "\"format\": 99", 1)).unwrap();
    assert!(RunRecord::read(&path).unwrap_err().to_string().contains("format 99"));
    std::fs::write(&path, "{}{").unwrap();
    assert!(RunRecord::read(&path).unwrap_err().to_string().contains("not a run record"));
}

/// Equal, numbers to a unit in the last place: the JSON reader may round a decimal to the neighbour of the nearest one.
fn same_but_for_last_bits(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (a, b) {
        (Number(a), Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= f64::EPSILON * a.abs()
        }
        (Array(a), Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_but_for_last_bits(a, b))
        }
        (Object(a), Object(b)) => {
            a.keys().eq(b.keys()) && a.values().zip(b.values()).all(|(a, b)| same_but_for_last_bits(a, b))
        }
        _ => a == b,
    }
}

/// Checks that every element is closed in order, attributes are quoted, and bare `<` and `&` do not occur in text.
/// Returns the number of elements. The page is written so that it is XML but for its first line.
fn check_well_formed(page: &str) -> usize {
    let rest = page.strip_prefix("<!DOCTYPE html>").expect("a document type");
    let mut open: Vec<String> = Vec::new();
    let mut count = 0;
    let mut at = rest;
    while let Some(start) = at.find('<') {
        check_text(&at[..start]);
        at = &at[start + 1..];
        let end = at.find('>').expect("an unclosed tag");
        let tag = &at[..end];
        at = &at[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closing tag out of order");
            continue;
        }
        count += 1;
        let body = tag.strip_suffix('/').unwrap_or(tag);
        let (name, attributes) = body.split_once(' ').unwrap_or((body, ""));
        assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()), "tag name {name:?}");
        check_attributes(attributes);
        if tag.ends_with('/') {
            continue;
        }
        if name == "style" {
            let end = at.find("</style>").expect("an unclosed style");
            assert!(!at[..end].contains('<'));
            at = &at[end + "</style>".len()..];
            continue;
        }
        open.push(name.to_string());
    }
    check_text(at);
    assert!(open.is_empty(), "never closed: {open:?}");
    count
}

fn check_text(text: &str) {
    assert!(!text.contains('>'), "bare > in {text:?}");
    for part in text.split('&').skip(1) {
        let (entity, _) = part.split_once(';').expect("a bare &");
        assert!(["amp", "lt", "gt", "quot", "#39"].contains(&entity), "unknown entity &{entity};");
    }
}

fn check_attributes(mut attributes: &str) {
    while !attributes.trim().is_empty() {
        let (name, rest) = attributes.trim_start().split_once("=\"").expect("an attribute without quotes");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "attribute name {name:?}");
        let (value, rest) = rest.split_once('"').expect("an unclosed attribute");
        check_text(value);
        attributes = rest;
    }
}
