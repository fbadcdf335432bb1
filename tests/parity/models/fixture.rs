//! One fixture folder: its inputs as a batch, a step on it, and comparisons with what it expects.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use secateur::data::{Batch, Targets};
use secateur::model::{EmitOptions, Head, HeadRequest, Model};
use secateur::program::{Extents, Mode};
use secateur::session::{Device, Prepared, Session, Weighting};

use crate::support;
use crate::support::tensors::Tensors;

/// Fixtures that are part of the repository, cut to sums.
pub const COMMITTED: [&str; 2] = ["bert_cls", "gpt2_lm"];

/// How the losses are weighted.
#[derive(Clone, Copy, PartialEq)]
pub enum Weights {
    /// Mean over the rows (language models: over the predicted positions) of the batch.
    Mean,
    /// Each row's own mean.
    EachRow,
}

pub struct Fixture {
    pub name: &'static str,
    /// Whether the folder holds the tensors and not only sums of them.
    pub full: bool,
    folder: PathBuf,
    inputs: Tensors,
    pub expected: Tensors,
    pub grads: Tensors,
    pub masked: Tensors,
    pub train: Tensors,
}

/// Masks by layer.
pub struct Masks {
    heads: Vec<Vec<f64>>,
    neurons: Vec<Vec<f64>>,
}

impl Masks {
    /// Nothing is masked.
    pub fn ones(model: &Model) -> Masks {
        let layers = &model.config().layers;
        Masks {
            heads: layers.iter().map(|layer| vec![1.0; layer.heads]).collect(),
            neurons: layers.iter().map(|layer| vec![1.0; layer.neurons]).collect(),
        }
    }

    fn write(&self, session: &mut Session, prepared: &Prepared) {
        for (i, layer) in prepared.slots.layers.iter().enumerate() {
            let executor = session.executor();
            executor.write_wide(prepared.id, layer.head_mask.unwrap(), &self.heads[i]).unwrap();
            executor.write_wide(prepared.id, layer.neuron_mask.unwrap(), &self.neurons[i]).unwrap();
        }
    }
}

/// What a run left.
pub struct Run {
    /// Logits, hidden states and hooks by the fixture's names.
    pub kept: BTreeMap<String, Vec<f64>>,
    columns: BTreeMap<String, usize>,
    losses: Vec<f64>,
    weights: Vec<f64>,
    /// By parameter.
    pub gradients: BTreeMap<String, Vec<f64>>,
    heads: Vec<Vec<f64>>,
    neurons: Vec<Vec<f64>>,
    rows: usize,
}

impl Run {
    pub fn loss(&self) -> f64 {
        self.losses.iter().zip(&self.weights).map(|(loss, weight)| loss * weight).sum()
    }

    pub fn columns(&self, name: &str) -> usize {
        self.columns[name]
    }

    /// `[B, L, H]`.
    pub fn head_gradients(&self) -> Vec<f64> {
        interleave(&self.heads, self.rows)
    }

    /// `[B, L, N]`.
    pub fn neuron_gradients(&self) -> Vec<f64> {
        interleave(&self.neurons, self.rows)
    }

    /// Everything, with names.
    pub fn all(self) -> Vec<(String, Vec<f64>)> {
        let masks =
            [("head gradients", self.head_gradients()), ("neuron gradients", self.neuron_gradients())];
        let losses = [("losses".to_string(), self.losses)];
        let kept = self.kept.into_iter();
        let gradients = self.gradients.into_iter().map(|(name, values)| (format!("d {name}"), values));
        let masks = masks.into_iter().map(|(name, values)| (name.to_string(), values));
        kept.chain(losses).chain(gradients).chain(masks).collect()
    }
}

/// `[L][B, units]` to `[B, L, units]`.
fn interleave(layers: &[Vec<f64>], rows: usize) -> Vec<f64> {
    let row = |row: usize| {
        layers.iter().flat_map(move |layer| {
            let units = layer.len() / rows;
            layer[row * units..(row + 1) * units].iter().copied()
        })
    };
    (0..rows).flat_map(row).collect()
}

impl Fixture {
    /// All fixtures that are there: the full set, or the two that are part of the repository.
    pub fn all() -> Vec<Fixture> {
        let full = ["bert_cls", "bert_qa", "bert_reg", "distilbert_cls", "gpt2_lm", "opt_lm", "roberta_cls"];
        match support::shared("fixtures/models") {
            Some(folder) => full.map(|name| Fixture::open(name, folder.join(name), true)).into(),
            None => COMMITTED.map(Fixture::committed).into(),
        }
    }

    /// A fixture that is part of the repository.
    pub fn committed(name: &'static str) -> Fixture {
        Fixture::open(name, support::reference(&format!("models/{name}")), false)
    }

    /// Fails unless every tensor here is the same in `full`.
    pub fn assert_cut_from(&self, full: &Fixture) {
        for (cut, whole) in self.files().into_iter().zip(full.files()) {
            for name in cut.names() {
                assert_eq!(cut.shape(&name), whole.shape(&name), "{}", self.what(&name));
                assert_eq!(cut.f64(&name), whole.f64(&name), "{}", self.what(&name));
            }
        }
        for name in ["config.json", "model.safetensors"] {
            let read = |fixture: &Fixture| std::fs::read(fixture.folder.join(name)).unwrap();
            assert!(read(self) == read(full), "{}", self.what(name));
        }
    }

    fn open(name: &'static str, folder: PathBuf, full: bool) -> Fixture {
        let read = |file: &str| Tensors::read(&folder.join(file));
        Fixture {
            name,
            full,
            inputs: read("inputs.safetensors"),
            expected: read("expected.safetensors"),
            grads: read("grads.safetensors"),
            masked: read("masked.safetensors"),
            train: read("train5.safetensors"),
            folder,
        }
    }

    fn files(&self) -> [&Tensors; 5] {
        [&self.inputs, &self.expected, &self.grads, &self.masked, &self.train]
    }

    /// Names a tensor in a message.
    pub fn what(&self, tensor: &str) -> String {
        format!("{}: {tensor}", self.name)
    }

    pub fn session(&self, device: Device) -> Session {
        let model = Model::load(&self.folder, HeadRequest::AsSaved, 0).unwrap();
        assert_eq!(model.report.initialised, Vec::<String>::new(), "{}", self.name);
        assert_eq!(model.report.unused, Vec::<String>::new(), "{}", self.name);
        Session::new(model, device).unwrap()
    }

    fn head(&self) -> Head {
        match self.name {
            "bert_qa" => Head::Span,
            "bert_reg" => Head::Regression,
            name if name.ends_with("_lm") => Head::CausalLm,
            _ => Head::Classification { labels: 3 },
        }
    }

    /// Some of the 24 rows.
    pub fn batch(&self, rows: Range<usize>) -> Batch {
        let bounds = self.inputs.usize("cu_seqlens");
        let (first, last) = (bounds[rows.start], bounds[rows.end]);
        let ints = |name: &str| -> Vec<i32> { self.inputs.f64(name).iter().map(|&v| v as i32).collect() };
        let input_ids = ints("input_ids")[first..last].to_vec();
        let token_type_ids = match self.inputs.has("token_type_ids") {
            true => ints("token_type_ids")[first..last].to_vec(),
            false => vec![0; last - first],
        };
        let cu_seqlens: Vec<i32> =
            bounds[rows.start..=rows.end].iter().map(|bound| (bound - first) as i32).collect();
        let targets = match self.head() {
            Head::Classification { .. } => Targets::Classes(ints("labels")[rows.clone()].to_vec()),
            Head::Regression => Targets::Values(self.inputs.f32("labels")[rows.clone()].to_vec()),
            Head::Span => Targets::Spans {
                starts: ints("start_positions")[rows.clone()].to_vec(),
                ends: ints("end_positions")[rows.clone()].to_vec(),
            },
            _ => {
                let positions: Vec<i32> = cu_seqlens.windows(2).flat_map(|row| row[0]..row[1] - 1).collect();
                let labels = positions.iter().map(|&p| input_ids[p as usize + 1]).collect();
                Targets::Tokens { positions, labels }
            }
        };
        Batch { input_ids, token_type_ids, cu_seqlens, rows: rows.collect(), targets }
    }

    pub fn extents(&self, batch: &Batch) -> Extents {
        Extents {
            tokens: batch.token_count(),
            sequences: batch.row_count(),
            targets: if let Targets::Tokens { labels, .. } = &batch.targets { labels.len() } else { 0 },
            samples: 0,
            longest: batch.longest_row(),
        }
    }

    /// Weights of the losses, in f64: the session's own are f32 and would be the largest error.
    fn weights(&self, batch: &Batch, weights: Weights) -> Vec<f64> {
        let count = batch.targets.len();
        if weights == Weights::Mean {
            return vec![1.0 / count as f64; count];
        }
        if self.head() != Head::CausalLm {
            return vec![1.0; count];
        }
        let lengths = batch.cu_seqlens.windows(2).map(|row| (row[1] - row[0] - 1) as usize);
        lengths.flat_map(|length| std::iter::repeat_n(1.0 / length as f64, length)).collect()
    }

    /// Loss of each row by itself.
    pub fn loss_by_row(&self, run: &Run) -> Vec<f64> {
        let batch = self.batch(0..24);
        if self.head() != Head::CausalLm {
            return run.losses.clone();
        }
        let mut losses = run.losses.iter();
        let lengths = batch.cu_seqlens.windows(2).map(|row| (row[1] - row[0] - 1) as usize);
        lengths.map(|length| losses.by_ref().take(length).sum::<f64>() / length as f64).collect()
    }

    /// Masks in f64, as transformers had them: rounded to f32 they would be the largest error.
    pub fn masks(&self, case: &str) -> Masks {
        let split = |name: String| {
            let units = self.masked.shape(&name)[1];
            self.masked.f64(&name).chunks(units).map(<[f64]>::to_vec).collect()
        };
        Masks { heads: split(format!("{case}.head_mask")), neurons: split(format!("{case}.neuron_mask")) }
    }

    pub fn write_inputs(
        &self,
        session: &mut Session,
        prepared: &Prepared,
        batch: &Batch,
        weights: Weights,
        masks: Option<&Masks>,
    ) {
        session.feed(prepared, batch, Weighting::EachRow).unwrap();
        session.write_dropout_key(prepared, 1, 0).unwrap();
        if let Some(slot) = prepared.slots.inputs.weights {
            let weights = self.weights(batch, weights);
            session.executor().write_wide(prepared.id, slot, &weights).unwrap();
        }
        if let Some(masks) = masks {
            masks.write(session, prepared);
        }
    }

    /// Prepares and runs a program from zeroed gradients.
    pub fn run(
        &self,
        session: &mut Session,
        mode: Mode,
        options: &EmitOptions,
        rows: Range<usize>,
        weights: Weights,
        masks: Option<&Masks>,
    ) -> Run {
        let batch = self.batch(rows);
        let extents = self.extents(&batch);
        let prepared = session.prepare(mode, options, extents).unwrap();
        if let Some(masks) = masks {
            masks.write(session, &prepared);
        }
        if mode.gradients {
            let layout = session.model().layout().clone();
            let zero = secateur::train::update::zero_gradients(layout);
            let zero = session.executor().prepare(zero, extents).unwrap();
            session.executor().run(zero, &extents).unwrap();
        }
        self.run_prepared(session, &prepared, &batch, weights)
    }

    /// Runs a prepared program; masks were written before.
    pub fn run_prepared(
        &self,
        session: &mut Session,
        prepared: &Prepared,
        batch: &Batch,
        weights: Weights,
    ) -> Run {
        self.write_inputs(session, prepared, batch, weights, None);
        session.executor().poison().unwrap();
        session.run(prepared, &self.extents(batch)).unwrap();
        self.read(session, prepared, batch, weights)
    }

    /// Reads what a run left.
    pub fn read(&self, session: &Session, prepared: &Prepared, batch: &Batch, weights: Weights) -> Run {
        let slots = &prepared.slots;
        let extents = self.extents(batch);
        let (mut kept, mut columns) = (BTreeMap::new(), BTreeMap::new());
        let hidden = slots.hidden.iter().enumerate().map(|(i, &slot)| (format!("hidden.{i}"), Some(slot)));
        let hooks = slots.layers.iter().enumerate();
        let hooks =
            hooks.flat_map(|(i, l)| [(format!("ctx.{i}"), l.context), (format!("ffn.{i}"), l.activation)]);
        for (name, slot) in hidden.chain(hooks).chain([("logits".to_string(), slots.logits)]) {
            let Some(slot) = slot else { continue };
            let root = slots.program.root(slot);
            if slots.program.slot(root).storage == secateur::program::Storage::Output {
                columns.insert(name.clone(), slots.program.slot(slot).cols);
                kept.insert(name, session.read_wide(prepared, slot, &extents).unwrap());
            }
        }
        let layout = session.model().layout();
        let gradients = layout.iter().filter_map(|(_, parameter)| {
            let slot = slots.program.find(&format!("d {}", parameter.name))?;
            Some((parameter.name.clone(), session.read_wide(prepared, slot, &extents).unwrap()))
        });
        let masks = |slot: Option<_>| slot.map(|slot| session.read_wide(prepared, slot, &extents).unwrap());
        Run {
            kept,
            columns,
            losses: session.read_wide(prepared, slots.losses.unwrap(), &extents).unwrap(),
            weights: self.weights(batch, weights),
            gradients: gradients.collect(),
            heads: slots.layers.iter().filter_map(|layer| masks(layer.head_mask_gradient)).collect(),
            neurons: slots.layers.iter().filter_map(|layer| masks(layer.neuron_mask_gradient)).collect(),
            rows: batch.row_count(),
        }
    }

    /// Compares logits and loss of a masked model.
    pub fn check_masked(&self, case: &str, logits: &[f64], loss: f64) {
        let name = format!("{case}.logits");
        let tolerance = super::F64;
        assert_close(&self.what(&name), &self.masked.f64(&format!("{case}.loss")), &[loss], tolerance);
        let sums = format!("{name}.colsum");
        if self.masked.has(&sums) {
            let expected = self.masked.f64(&sums);
            assert_close(&self.what(&sums), &expected, &column_sums(logits, expected.len()), tolerance);
        }
        if self.full || self.masked.has(&name) {
            let expected = self.masked.f64(&name);
            assert_close(&self.what(&name), &expected, &logits[..expected.len()], tolerance);
        }
    }

    /// Which elements of a gradient are exactly zero in exact arithmetic and rounding noise in torch.
    pub fn noisy_gradient(&self, name: &str) -> Vec<bool> {
        if !self.grads.has(&format!("grad/{name}")) {
            // The committed subset has sums only: attention scores do not depend on key biases.
            return vec![name.ends_with("key.bias") || name.ends_with("c_attn.bias")];
        }
        self.grads.f64(&format!("grad/{name}")).iter().map(|&g| g != 0.0 && g.abs() < 1e-14).collect()
    }

    /// Compares a gradient or parameter with the tensor or the projections of the full set. Elements may differ by
    /// `floor` whatever their size.
    pub fn check_projections(&self, file: &Tensors, name: &str, values: &[f64], kind: &str, floor: f64) {
        if !self.full {
            return;
        }
        let (tensor, what) = (format!("{kind}/{name}"), self.what(&format!("{kind} {name}")));
        let mut compared = false;
        if file.has(&tensor) {
            let expected = file.f64(&tensor);
            let narrow = file.is_f32(&tensor);
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let tolerance = if narrow { support::numbers::U32 } else { 0.0 } + super::F64;
            for (i, (e, f)) in expected.iter().zip(values).enumerate() {
                assert!((e - f).abs() <= tolerance * largest + floor, "{what}[{i}]: expected {e}, found {f}");
            }
            compared = !narrow;
        }
        let cosine = |i: usize| (0.7 * (i as f64 + 1.0)).cos();
        for side in ["left", "right"] {
            let projection = format!("{side}/{name}");
            if !file.has(&projection) {
                continue;
            }
            let expected = file.f64(&projection);
            let other = values.len() / expected.len();
            let at = |i: usize, j: usize| match side {
                "left" => values[j * expected.len() + i],
                _ => values[i * other + j],
            };
            let terms = |i: usize| (0..other).map(move |j| (at(i, j) * cosine(j), at(i, j).abs()));
            for (i, expected) in expected.iter().enumerate() {
                let (found, size) = terms(i).fold((0.0, 0.0), |(s, m), (t, a)| (s + t, m + a));
                assert!(
                    (expected - found).abs() <= super::F64 * size,
                    "{what} {side}[{i}]: {expected} {found}"
                );
            }
            compared = true;
        }
        assert!(compared, "{what} is not in the fixture");
    }
}

/// Sums over the rows of `[rows, columns]`.
pub fn column_sums(values: &[f64], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    values.chunks(columns).for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value));
    sums
}

/// Every element within `tolerance` of the largest magnitude expected.
pub fn assert_close(what: &str, expected: &[f64], found: &[f64], tolerance: f64) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        assert!(
            (e - f).abs() <= tolerance * largest,
            "{what}[{i}]: expected {e}, found {f} (largest {largest})"
        );
    }
}
