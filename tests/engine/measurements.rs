//! The operations that score units, in one program, operation by operation against the f64 reference.

use std::sync::Arc;

use secateur::exec::lockstep;
use secateur::launch::Precision;
use secateur::model::Head;
use secateur::program::{Builder, Extent, Extents, Mode, Op, ParameterLayout, Program, SlotId};
use secateur::progress::Progress;
use secateur::prune::kcm::{self, Options, Stop};
use secateur::prune::{CostModel, Job};
use secateur::session::Device;

use crate::models;

/// Moments of an input of one row a token, and the Gaussian kernel of `n` rows with three updates of Semi-NMF.
fn program(layout: Arc<ParameterLayout>, n: usize, d: usize) -> (Program, [SlotId; 2]) {
    let mut builder = Builder::new("measurements", layout, Mode::EVALUATE);
    let activations = builder.input("activations", Extent::Tokens, n);
    let rows = builder.input("rows", Extent::Fixed(n), d);
    let mut output = |name: &str, rows, cols| {
        let slot = builder.temporary(name, rows, cols);
        builder.keep(slot);
        slot
    };
    let moments = output("moments", Extent::Fixed(3), n);
    let kernel = output("kernel", Extent::Fixed(n), n);
    let c = output("C", Extent::Fixed(n), n);
    let growth = output("growth", Extent::Fixed(1), 1);
    builder.emit(Op::ColumnMoments { x: activations, out: moments });
    builder.emit(Op::GaussianKernel { x: rows, scale: 2.0, out: kernel });
    builder.emit(Op::SemiNmfStart { kernel, c, growth });
    builder.emit(Op::SemiNmfUpdate { kernel, c, growth });
    builder.emit(Op::SemiNmfUpdate { kernel, c, growth });
    (builder.finish(), [activations, rows])
}

fn compare(device: Device, n: usize, d: usize, tokens: usize) {
    let layout = Arc::new(ParameterLayout::new());
    let (program, inputs) = program(layout.clone(), n, d);
    let program = Arc::new(program);
    let extents = Extents { tokens, sequences: 1, longest: tokens, ..Extents::default() };
    let mut prepared = [Device::Reference, device].map(|device| {
        let mut executor = device.executor(layout.clone()).expect("an executor");
        let id = executor.prepare(program.clone(), extents).expect("prepared");
        executor.poison().expect("poisoned");
        for (slot, len) in inputs.into_iter().zip([tokens * n, n * d]) {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37 + 11) % 101) as f32 / 60.0 - 0.8).collect();
            executor.write(id, slot, &values).expect("written");
        }
        (executor, id)
    });
    let [(reference, id), (candidate, _)] = &mut prepared;
    let found = lockstep::compare(reference.as_mut(), *id, candidate.as_mut(), *id, &extents).expect("runs");
    if let Some(divergence) = found {
        panic!("{device}: {divergence}");
    }
}

#[test]
fn the_cpu_agrees_with_the_reference() {
    compare(Device::Cpu, 70, 19, 300);
    compare(Device::Cpu, 1, 1, 1);
}

#[test]
fn the_kernels_of_devices_agree_with_the_reference() {
    compare(Device::Emulated { precision: Precision::F32 }, 21, 9, 130);
}

#[test]
fn kcm_on_a_device_gives_the_masks_of_the_cpu() {
    for family in ["bert", "opt"] {
        let model = models::model(family, Head::Backbone, 0.0);
        let examples = models::examples(family, Head::Backbone, 12, 4);
        let config = model.config();
        let cost =
            CostModel::new(config.hidden, config.head_dim, 11.5, config.widths()).expect("a cost model");
        let options = Options { stop: Stop::Fixed(3), scaling: None, ..Options::default() };
        let prune = |device| {
            let (model, examples, cost, progress) = (&model, &examples, &cost, &Progress::silent());
            let keep = &[0.9, 0.7];
            let job = Job { model, device, examples, batch_rows: 4, cost, keep, seed: 0, progress };
            kcm::prune(&job, &options).expect("prunes").into_iter().map(|pruned| pruned.masks)
        };
        let device = Device::Emulated { precision: Precision::F32 };
        assert!(prune(device).eq(prune(Device::Cpu)), "{family}");
    }
}
