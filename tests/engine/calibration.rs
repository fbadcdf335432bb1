//! Calibration: tokens drawn first give the same activations as running everything and looking them up.

use secateur::model::{EmitOptions, Head};
use secateur::program::Mode;
use secateur::progress::Progress;
use secateur::prune::calibrate::{Selection, collect, select};
use secateur::prune::dual_cp::{CpuBackend, ExecutorBackend, Options, prune};
use secateur::prune::{CostModel, LayerWidths};
use secateur::session::{Device, Session, Weighting};

use crate::models;

#[test]
fn drawn_tokens_have_the_activations_of_a_full_run() {
    for family in ["bert", "gpt2"] {
        let examples = models::examples(family, Head::Backbone, 40, 8);
        let lengths: Vec<usize> = examples.iter().map(|example| example.length()).collect();
        let selection = select(&lengths, 25, 60, 3).expect("a selection");
        let mut session =
            Session::new(models::model(family, Head::Backbone, 0.1), Device::Cpu).expect("session");
        let sample = collect(&mut session, &examples, &selection, &Progress::silent()).expect("collects");

        let chosen: Vec<_> = selection.rows.iter().map(|&row| examples[row].clone()).collect();
        let batch = models::batch(&chosen);
        let options = EmitOptions { keep_hooks: true, ..EmitOptions::default() };
        let prepared = session.prepare(Mode::EVALUATE, &options, models::capacity(&batch)).expect("prepared");
        let extents = session.feed(&prepared, &batch, Weighting::EachRow).expect("fed");
        session.run(&prepared, &extents).expect("ran");
        for (layer, slots) in prepared.slots.layers.iter().enumerate() {
            let pairs =
                [(slots.context, &sample.context[layer]), (slots.activation, &sample.activations[layer])];
            for (slot, sampled) in pairs {
                let mut all = Vec::new();
                session.read(&prepared, slot.expect("kept"), &extents, &mut all).unwrap();
                let width = all.len() / batch.token_count();
                for (place, &token) in selection.tokens.iter().enumerate() {
                    let expected = &all[token * width..(token + 1) * width];
                    let found = &sampled[place * width..(place + 1) * width];
                    // Products over different batches may be cut differently: equal within rounding.
                    for (e, f) in expected.iter().zip(found) {
                        assert!(
                            (e - f).abs() < 1e-5 * (1.0 + e.abs()),
                            "{family} layer {layer} token {token}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn masks_do_not_depend_on_where_the_numeric_steps_run() {
    let examples = models::examples("bert", Head::Backbone, 60, 4);
    let lengths: Vec<usize> = examples.iter().map(|example| example.length()).collect();
    let selection = select(&lengths, 60, 80, 1).expect("a selection");
    let mut session = Session::new(models::model("bert", Head::Backbone, 0.0), Device::Cpu).expect("session");
    let sample = collect(&mut session, &examples, &selection, &Progress::silent()).expect("collects");
    let widths = vec![LayerWidths { heads: 3, neurons: 40 }; 2];
    let cost = CostModel::new(24, 8, 11.5, widths).expect("a cost model");
    let options = Options { keep_flops: vec![0.8, 0.7], ..Options::default() };
    let direct = prune(&sample, &cost, &options, &mut CpuBackend).expect("prunes");
    let layout = std::sync::Arc::new(secateur::program::ParameterLayout::new());
    let mut executor = secateur::exec::Cpu::new(layout.clone());
    let mut backend = ExecutorBackend::new(&mut executor, layout);
    let programs = prune(&sample, &cost, &options, &mut backend).expect("prunes");
    for (a, b) in direct.results.iter().zip(&programs.results) {
        assert_eq!(a.masks, b.masks);
    }
}

#[test]
fn selections_that_do_not_exist_are_refused() {
    let examples = models::examples("bert", Head::Backbone, 3, 8);
    let mut session = Session::new(models::model("bert", Head::Backbone, 0.0), Device::Cpu).expect("session");
    let tokens: usize = examples.iter().map(|example| example.length()).sum();
    for (rows, token) in [(vec![0, 1, 2], tokens), (vec![0, 9], 0)] {
        let selection = Selection { rows, tokens: vec![token] };
        let error = collect(&mut session, &examples, &selection, &Progress::silent()).expect_err("refused");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    assert!(select(&[], 10, 10, 0).is_err());
}
