//! One model of the fixtures with its calibration rows.

use std::path::PathBuf;

use secateur::data::{Example, Target};
use secateur::model::{HeadRequest, Model, UnitMasks};
use secateur::prune::CostModel;
use secateur::prune::mask_gradients::MaskGradients;
use serde_json::Value;

use crate::support;
use crate::support::tensors::Tensors;

pub const CASES: [&str; 3] = ["bert_cls", "bert_reg", "bert_qa"];
pub const KEEP: [&str; 7] = ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"];
/// Rows of a mini-batch.
pub const BATCH: usize = 8;

pub struct Case {
    pub model: Model,
    pub examples: Vec<Example>,
    pub cost: CostModel,
    pub search: Tensors,
    pub trace: Value,
}

/// bert_cls is committed, in part; the others are in the full reference data.
pub fn locate(name: &str, file: &str) -> Option<PathBuf> {
    let committed = ["inputs", "search", "rescale_0.5_maxiter10", "rescale_0.7"];
    if name == "bert_cls" && committed.contains(&file) {
        Some(support::reference(&format!("mask_tuning/{name}/{file}.safetensors")))
    } else {
        support::shared(&format!("fixtures/mask_tuning/{name}/{file}.safetensors"))
    }
}

pub fn tensors(name: &str, file: &str) -> Option<Tensors> {
    locate(name, file).map(|path| Tensors::read(&path))
}

impl Case {
    /// `None` where the full reference data are needed and absent.
    pub fn open(name: &'static str) -> Option<Case> {
        let (inputs, search) = (tensors(name, "inputs")?, tensors(name, "search")?);
        let folder = match name {
            "bert_cls" => support::reference("models/bert_cls"),
            _ => support::shared(&format!("fixtures/models/{name}"))?,
        };
        let model = Model::load(&folder, HeadRequest::AsSaved, 0).unwrap();
        let ints = |name: &str| -> Vec<i32> { inputs.f64(name).iter().map(|&value| value as i32).collect() };
        let (ids, segments) = (ints("input_ids"), ints("token_type_ids"));
        let bounds = inputs.usize("cu_seqlens");
        let target = |row: usize| match name {
            "bert_cls" => Target::Class(inputs.usize("labels")[row] as u32),
            "bert_reg" => Target::Value(inputs.f32("labels")[row]),
            _ => Target::Span {
                start: inputs.usize("start_positions")[row] as u32,
                end: inputs.usize("end_positions")[row] as u32,
            },
        };
        let row = |(row, bounds): (usize, &[usize])| Example {
            input_ids: ids[bounds[0]..bounds[1]].to_vec(),
            token_type_ids: segments[bounds[0]..bounds[1]].to_vec(),
            target: target(row),
        };
        let examples: Vec<Example> = bounds.windows(2).enumerate().map(row).collect();
        let config = model.config();
        let length = inputs.f64("T")[0];
        let cost = CostModel::new(config.hidden, config.head_dim, length, config.widths()).unwrap();
        let trace = std::fs::read(support::reference("mask_tuning/trace.json")).unwrap();
        let trace: Value = serde_json::from_slice(&trace).unwrap();
        Some(Case { model, examples, cost, search, trace: trace[name].clone() })
    }

    /// The gradients that the fixture's searches started from.
    pub fn gradients(&self) -> MaskGradients {
        let layers = self.cost.layers.len();
        let split = |name: &str| {
            let [batches, _, units] = self.search.shape(name)[..] else { panic!("{name}") };
            let values = self.search.f64(name);
            let layer = |layer: usize| {
                let row = |batch: usize| &values[(batch * layers + layer) * units..][..units];
                (0..batches).flat_map(row).copied().collect()
            };
            (0..layers).map(layer).collect()
        };
        let (heads, neurons) = (split("head_grads"), split("neuron_grads"));
        MaskGradients { batches: self.search.shape("head_grads")[0], heads, neurons }
    }

    /// Masks of the fixture: "search", "rearranged", "teacher".
    pub fn masks(&self, stage: &str, keep: &str) -> UnitMasks {
        masks_of(&self.search, &format!("{stage}.head.{keep}"), &format!("{stage}.neuron.{keep}"))
    }
}

/// Two `[layers, units]` tensors.
pub fn masks_of(tensors: &Tensors, heads: &str, neurons: &str) -> UnitMasks {
    let rows = |name: &str| tensors.f32(name).chunks(tensors.shape(name)[1]).map(<[f32]>::to_vec).collect();
    UnitMasks { heads: rows(heads), neurons: rows(neurons) }
}
