//! What f32 rounding does to a whole step, measured and not guessed.
//!
//! The f64 executor runs operation by operation, and after each its results get noise as a naive f32 evaluation
//! would: a sum of K products errs by about √K·u relative to the size of its terms (Higham and Mary 2019, the
//! probabilistic form of γ_K), for which the root mean square of the result stands. The step amplifies the noise as
//! it amplifies true rounding errors, so its effect on each final tensor is the naive error; a good implementation
//! (blocked sums, fused multiply-adds) must stay below twice that, the rule of flash-attention's tests.

use secateur::model::EmitOptions;
use secateur::program::{Access, Element, Mode, Storage};
use secateur::session::Session;

use super::fixture::{Fixture, Masks, Run, Weights};
use crate::support::numbers::{Random, U32};

/// A step on all 24 rows with the noise of draw `draw`.
pub fn run(
    fixture: &Fixture,
    session: &mut Session,
    mode: Mode,
    options: &EmitOptions,
    masks: Option<&Masks>,
    draw: u64,
) -> Run {
    let batch = fixture.batch(0..24);
    let extents = fixture.extents(&batch);
    let prepared = session.prepare(mode, options, extents).unwrap();
    fixture.write_inputs(session, &prepared, &batch, Weights::Mean, masks);
    let layout = session.model().layout().clone();
    let executor = session.executor();
    let zero = executor.prepare(secateur::train::update::zero_gradients(layout), extents).unwrap();
    executor.run(zero, &extents).unwrap();
    let mut random = Random(0x5eed + draw);
    let program = executor.program(prepared.id).clone();
    for (index, op) in program.ops().iter().enumerate() {
        executor.run_range(prepared.id, index..index + 1, &extents).unwrap();
        let (mut written, mut longest) = (Vec::new(), 1);
        op.visit(|id, access| {
            let slot = program.slot(id);
            if slot.element == Element::Float {
                longest = longest.max(slot.cols).max(extents.of(slot.rows));
                if access != Access::Read && !matches!(slot.storage, Storage::Input) {
                    written.push(id);
                }
            }
        });
        for slot in written {
            let mut values = executor.read_wide(prepared.id, slot, &extents).unwrap();
            let mean_square = values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64;
            let size = U32 * (longest as f64).sqrt() * mean_square.sqrt();
            values.iter_mut().for_each(|v| *v += size * (2.0 * random.unit() - 1.0));
            executor.write_wide(prepared.id, slot, &values).unwrap();
        }
    }
    fixture.read(session, &prepared, &batch, Weights::Mean)
}

/// Root mean square of the difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let distance = (squares / a.len().max(1) as f64).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}
