//! Gradients of whole models in f64 against directional finite differences of their loss.

use secateur::exec::Block;
use secateur::model::{EmitOptions, Head};
use secateur::program::{Mode, Storage};
use secateur::session::{Device, Prepared, Session, Weighting};

use crate::models::{self, FAMILIES};
use crate::support::numbers::Random;

struct Setup {
    session: Session,
    prepared: Prepared,
    batch: secateur::data::Batch,
}

impl Setup {
    fn new(family: &str, head: Head, masks: bool) -> Setup {
        let batch = models::batch(&models::examples(family, head, 5, 21));
        let mut session = Session::new(models::model(family, head, 0.2), Device::Reference).expect("session");
        let options =
            EmitOptions { loss: true, head_masks: masks, neuron_masks: masks, ..EmitOptions::default() };
        let mode = Mode { dropout: true, gradients: true, mask_gradients: masks };
        let prepared = session.prepare(mode, &options, models::capacity(&batch)).expect("prepared");
        Setup { session, prepared, batch }
    }

    /// Loss (and gradients, as a side effect) with the present parameters, the dropout bits fixed.
    fn loss(&mut self) -> f64 {
        let weighting = Weighting::Mean { total: self.batch.targets.len() };
        let zeros = vec![0.0; self.session.model().layout().block_len()];
        self.session.executor().write_block(Block::Gradients, &zeros).expect("zeroed");
        let extents = self.session.feed(&self.prepared, &self.batch, weighting).expect("fed");
        self.session.write_dropout_key(&self.prepared, 1, 2).expect("key");
        self.session.run(&self.prepared, &extents).expect("ran");
        let losses = self.prepared.slots.losses.expect("a loss");
        let weight = 1.0f64 / self.batch.targets.len() as f64;
        let losses = self.session.read_wide(&self.prepared, losses, &extents).unwrap();
        losses.iter().map(|loss| loss * f64::from(weight as f32)).sum()
    }
}

#[test]
fn parameter_gradients_are_the_derivatives_of_the_loss() {
    for family in FAMILIES {
        let causal = matches!(family, "gpt2" | "opt");
        let language_model = if causal { Head::CausalLm } else { Head::MaskedLm };
        for head in [Head::Classification { labels: 3 }, Head::Regression, Head::Span, language_model] {
            let mut setup = Setup::new(family, head, false);
            setup.loss();
            let program = setup.session.executor().program(setup.prepared.id).clone();
            let extents = Default::default();
            let gradients: Vec<_> = program
                .slots()
                .filter_map(|(slot, description)| match description.storage {
                    Storage::Gradient(id) => Some((id, slot)),
                    _ => None,
                })
                .map(|(id, slot)| (id, setup.session.read_wide(&setup.prepared, slot, &extents).unwrap()))
                .collect();
            let slots: Vec<_> = program
                .slots()
                .filter_map(|(slot, description)| match description.storage {
                    Storage::Parameter(id) => Some((id, slot)),
                    _ => None,
                })
                .collect();
            // Every parameter along a random direction of its own: an error in one cannot hide behind the others.
            let mut random = Random(99);
            for (id, slot) in slots {
                let name = program.slot(slot).name.clone();
                let values = setup.session.read_wide(&setup.prepared, slot, &extents).unwrap();
                let direction: Vec<f64> = values.iter().map(|_| random.normal()).collect();
                let norm = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
                // Central differences: truncation h², rounding u/h; both are about 1e-10 at h = 1e-5.
                let step = 1e-5 / norm;
                let mut at = |sign: f64| {
                    let moved: Vec<f64> =
                        values.iter().zip(&direction).map(|(v, d)| v + sign * step * d).collect();
                    let executor = setup.session.executor();
                    executor.write_wide(setup.prepared.id, slot, &moved).expect("moved");
                    setup.loss()
                };
                let numeric = (at(1.0) - at(-1.0)) / (2.0 * step);
                setup.session.executor().write_wide(setup.prepared.id, slot, &values).expect("restored");
                let (_, gradient) = gradients.iter().find(|(other, _)| *other == id).expect("a gradient");
                let analytic: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let scale = norm * (1.0 + gradient.iter().map(|g| g * g).sum::<f64>().sqrt());
                let error = (numeric - analytic).abs();
                assert!(
                    error < 1e-7 * scale,
                    "{family} {head:?} {name}: {analytic} against {numeric} (off by {error:e})"
                );
            }
        }
    }
}

#[test]
fn mask_gradients_are_the_derivatives_of_each_rows_own_loss() {
    for family in ["bert", "gpt2"] {
        let head = if family == "gpt2" { Head::CausalLm } else { Head::Classification { labels: 3 } };
        let mut setup = Setup::new(family, head, true);
        let layers = setup.prepared.slots.layers.clone();
        let masks: Vec<_> = layers
            .iter()
            .flat_map(|l| [(l.head_mask, l.head_mask_gradient), (l.neuron_mask, l.neuron_mask_gradient)])
            .map(|(mask, gradient)| (mask.expect("a mask"), gradient.expect("its gradient")))
            .collect();
        let mut values: Vec<Vec<f64>> = Vec::new();
        for (mask, _) in &masks {
            let units = setup.prepared.slots.program.slot(*mask).cols;
            let mask_values: Vec<f64> = (0..units).map(|i| [1.0, 0.0, 0.6][i % 3]).collect();
            setup.session.executor().write_wide(setup.prepared.id, *mask, &mask_values).expect("mask");
            values.push(mask_values);
        }
        // Weights of 1 a row: the gradient of the sum, by row, is that of each row alone.
        let run = |setup: &mut Setup| {
            let extents = setup.session.feed(&setup.prepared, &setup.batch, Weighting::EachRow).expect("fed");
            setup.session.write_dropout_key(&setup.prepared, 1, 2).expect("key");
            setup.session.run(&setup.prepared, &extents).expect("ran");
            let losses = setup.prepared.slots.losses.expect("a loss");
            let losses = setup.session.read_wide(&setup.prepared, losses, &extents).unwrap();
            let rows: Vec<f64> = match &setup.batch.targets {
                secateur::data::Targets::Tokens { positions, .. } => {
                    let mut at = 0;
                    let row = |row: &[i32]| {
                        let inside: Vec<f64> = positions[at..]
                            .iter()
                            .zip(&losses[at..])
                            .take_while(|(p, _)| **p < row[1])
                            .map(|(_, loss)| *loss)
                            .collect();
                        at += inside.len();
                        // Weights are f32, as the engine's inputs are.
                        inside.iter().sum::<f64>() * f64::from(1.0 / inside.len() as f32)
                    };
                    setup.batch.cu_seqlens.windows(2).map(row).collect()
                }
                _ => losses,
            };
            (rows, extents)
        };
        let (_, extents) = run(&mut setup);
        let gradients: Vec<Vec<f64>> = masks
            .iter()
            .map(|(_, g)| setup.session.read_wide(&setup.prepared, *g, &extents).unwrap())
            .collect();
        for (index, (mask, _)) in masks.iter().enumerate() {
            let units = values[index].len();
            for unit in [0, 1, units - 1] {
                let mut at = |sign: f64| {
                    let mut moved = values[index].clone();
                    moved[unit] += sign * 1e-5;
                    setup.session.executor().write_wide(setup.prepared.id, *mask, &moved).expect("moved");
                    run(&mut setup).0
                };
                let (plus, minus) = (at(1.0), at(-1.0));
                setup
                    .session
                    .executor()
                    .write_wide(setup.prepared.id, *mask, &values[index])
                    .expect("restored");
                for row in 0..plus.len() {
                    let numeric = (plus[row] - minus[row]) / 2e-5;
                    let analytic = gradients[index][row * units + unit];
                    assert!(
                        (numeric - analytic).abs() < 1e-7 * (1.0 + analytic.abs()),
                        "{family} mask {index} unit {unit} row {row}: {analytic} against {numeric}"
                    );
                }
            }
        }
    }
}
