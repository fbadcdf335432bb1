//! A model run in parts is the model.

use secateur::data::Batch;
use secateur::model::{EmitOptions, Head, Logits};
use secateur::program::Mode;
use secateur::progress::Progress;
use secateur::prune::{Stream, UnitMasks};
use secateur::session::{self, Device, Session, Weighting};

use crate::models::{FAMILIES, examples, model};

/// Masks with zeros and scales.
fn masks(session: &Session) -> UnitMasks {
    let mut masks = UnitMasks::ones(&session.model().config().widths());
    for (layer, heads) in masks.heads.iter_mut().enumerate() {
        heads[layer] = 0.0;
        heads[2] = 1.5;
    }
    masks.neurons.iter_mut().for_each(|layer| layer[3..9].fill(0.0));
    masks
}

/// In steps of any size a stream arrives, to the bit, where the whole model does.
#[test]
fn stream_in_steps_equals_the_whole_model() {
    for family in FAMILIES {
        let mut session = Session::new(model(family, Head::Backbone, 0.0), Device::Cpu).unwrap();
        let examples = examples(family, Head::Backbone, 7, 3);
        let masks = masks(&session);
        let progress = Progress::silent();
        let mut stream = Stream::start(&mut session, &examples, 30).unwrap();
        assert!(stream.batches.len() > 1);
        let rows: Vec<i32> = stream.batches.iter().flat_map(|batch| batch.input_ids.clone()).collect();
        assert_eq!(rows, examples.iter().flat_map(|row| row.input_ids.clone()).collect::<Vec<_>>());
        let mut visits = 0;
        for to in [1, 2, 4] {
            let advance = stream.advance(&mut session, to, Some(&masks), true, &progress, |visit| {
                visits += 1;
                let layer = (to - 1) / 2;
                let slots = visit.prepared.slots.layers[layer];
                let hook = if to == 1 { slots.context } else { slots.activation };
                let mut values = Vec::new();
                visit.session.read(visit.prepared, hook.unwrap(), visit.extents, &mut values)?;
                let width = values.len() / visit.extents.tokens;
                let masked = if to == 1 { 0..8 } else { 3..9 };
                assert!(values.chunks(width).all(|row| row[masked.clone()].iter().all(|v| *v == 0.0)));
                Ok(())
            });
            advance.unwrap();
        }
        assert_eq!(visits, 3 * stream.batches.len());

        let options =
            EmitOptions { head_masks: true, neuron_masks: true, keep_hidden: true, ..EmitOptions::default() };
        let whole = session.prepare(Mode::EVALUATE, &options, stream.capacity).unwrap();
        session.write_masks(&whole, &masks).unwrap();
        for (batch, found) in stream.batches.iter().zip(&stream.hidden) {
            let extents = session.feed(&whole, batch, Weighting::EachRow).unwrap();
            session.run(&whole, &extents).unwrap();
            let mut expected = Vec::new();
            session.read(&whole, whole.slots.output, &extents, &mut expected).unwrap();
            assert_eq!(found, &expected, "{family}");
        }
    }
}

/// From any boundary upwards, logits and mask gradients are those of the whole model.
#[test]
fn upper_part_has_the_losses_and_mask_gradients_of_the_whole() {
    let head = Head::Classification { labels: 3 };
    for family in FAMILIES {
        let mut session = Session::new(model(family, head, 0.0), Device::Cpu).unwrap();
        let examples = examples(family, head, 5, 4);
        let masks = masks(&session);
        let progress = Progress::silent();
        let batch = Batch::of(&examples, &[0, 1, 2, 3, 4]).unwrap();
        let lengths: Vec<usize> = examples.iter().map(|row| row.input_ids.len()).collect();
        let capacity = session::capacity(&[vec![0, 1, 2, 3, 4]], &lengths);
        let mode = Mode { mask_gradients: true, ..Mode::EVALUATE };
        let mut results = Vec::new();
        for from in 0..=4 {
            let mut stream = Stream::start(&mut session, &examples, 1000).unwrap();
            stream.advance(&mut session, from, Some(&masks), false, &progress, |_| Ok(())).unwrap();
            // Nothing to differentiate is left above the last sublayer.
            let mode = if from == 4 { Mode::EVALUATE } else { mode };
            let options = EmitOptions {
                head_masks: true,
                neuron_masks: true,
                loss: true,
                logits: Logits::All,
                sublayers: Some(from..4),
                ..EmitOptions::default()
            };
            let part = session.prepare(mode, &options, capacity).unwrap();
            session.write_masks(&part, &masks).unwrap();
            let extents = session.feed(&part, &batch, Weighting::EachRow).unwrap();
            if let Some(slot) = part.slots.inputs.hidden {
                session.executor().write(part.id, slot, &stream.hidden[0]).unwrap();
            }
            session.run(&part, &extents).unwrap();
            let mut read = |slot| {
                let mut values = Vec::new();
                session.read(&part, slot, &extents, &mut values).unwrap();
                values
            };
            let logits = read(part.slots.logits.unwrap());
            let losses = read(part.slots.losses.unwrap());
            let last = part.slots.layers[1];
            let gradient = last.neuron_mask_gradient.map(&mut read);
            results.push((logits, losses, gradient));
        }
        for (from, found) in results.iter().enumerate().skip(1) {
            assert_eq!((&found.0, &found.1), (&results[0].0, &results[0].1), "{family} from {from}");
            assert!(from == 4 || found.2 == results[0].2, "{family} from {from}");
        }
    }
}

/// A part that does not exist, and a head without the top, are errors.
#[test]
fn impossible_parts_are_refused() {
    let head = Head::Classification { labels: 3 };
    let mut session = Session::new(model("bert", head, 0.0), Device::Cpu).unwrap();
    let capacity = secateur::program::Extents { tokens: 8, sequences: 1, longest: 8, ..Default::default() };
    let backwards = std::ops::Range { start: 3, end: 2 };
    for (part, loss) in [(backwards, false), (0..5, false), (0..3, true)] {
        let options = EmitOptions { sublayers: Some(part.clone()), loss, ..EmitOptions::default() };
        assert!(session.prepare(Mode::EVALUATE, &options, capacity).is_err(), "{part:?}");
    }
    assert!(Stream::start(&mut session, &[], 100).is_err());
}
