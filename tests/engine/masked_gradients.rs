//! Gradients of scores and masks, against difference quotients of a whole model's loss in f64.
//!
//! What is differentiated is the problem that training solves in place of the pruned one: masks that are real numbers
//! (straight through the bits) or hard concrete variables with the regulariser. Dropout and noise are fixed.

use std::sync::Arc;

use secateur::data::Batch;
use secateur::exec::{Block, ProgramId};
use secateur::model::EmitOptions;
use secateur::ops::weightmask::hard_concrete_shift;
use secateur::program::{Builder, Extent, Extents, MaskFunction, Mode, Op, Program, Storage};
use secateur::prune::sparse::Method;
use secateur::session::{Device, Prepared, Session, Weighting};

use crate::masked::{options, padded};
use crate::models;
use crate::runs::CLASSES;
use crate::support::numbers::Random;

/// Loss of a batch as a function of scores (or of the masked weights), in f64, dropout and noise fixed.
struct Relaxed {
    session: Session,
    prepared: Prepared,
    batch: Batch,
    masks: [(Arc<Program>, ProgramId); 3],
}

impl Relaxed {
    fn new(function: MaskFunction) -> Relaxed {
        let options = options(if function == MaskFunction::Bits { Method::Smp } else { Method::L0 }, 0.3);
        let mut model = padded(&options);
        // Frozen: the gradient block holds the scores' gradients.
        model.architecture.set_trainable(|_| false);
        let batch = models::batch(&models::examples("bert", CLASSES, 5, 21));
        let mut session = Session::new(model, Device::Reference).expect("a session");
        let emit = EmitOptions { loss: true, ..EmitOptions::default() };
        let prepared = session.prepare(Mode::TRAIN, &emit, models::capacity(&batch)).expect("prepared");
        let layout = session.model().layout().clone();
        let build = |name: &str, fill: &dyn Fn(&mut Builder)| {
            let mut b = Builder::new(name, layout.clone(), Mode::EVALUATE);
            fill(&mut b);
            Arc::new(b.finish())
        };
        let key = |b: &mut Builder| {
            (function == MaskFunction::HardConcrete).then(|| b.int_input("key", Extent::Fixed(3)))
        };
        let programs = [
            build("masks", &|b| {
                let key = key(b);
                b.emit(Op::ApplyMasks { function, key });
            }),
            build("gradients", &|b| {
                let key = key(b);
                let penalty = b.input("penalty", Extent::Fixed(1), 1);
                b.emit(Op::ScoreGradients { function, key, scores: true, penalty });
            }),
            build("means", &|b| {
                let out = b.temporary("means", Extent::Fixed(1), layout.masked().count());
                b.keep(out);
                b.emit(Op::MeanSigmoid { shift: hard_concrete_shift() as f32, temperature: 1.0, out });
            }),
        ];
        let masks = programs.map(|program| {
            let id = session.executor().prepare(program.clone(), Extents::default()).expect("prepared");
            if let Some(key) = program.find("key") {
                session.executor().write_ints(id, key, &[5, 6, 7]).expect("key");
            }
            (program, id)
        });
        let stretch = Block::Weights.stretch(&layout);
        let parameters = session.executor().read_block(Block::Parameters).expect("parameters");
        session.executor().write_block(Block::Weights, &parameters[stretch.clone()]).expect("weights");
        // Multiples of 2⁻⁸, so that a step of 2⁻¹² is exact in f32.
        let mut random = Random(8);
        let mut scores = vec![0.0f32; stretch.len()];
        for p in layout.masked() {
            for row in scores[p.offset - stretch.start..][..p.span()].chunks_mut(p.ld()) {
                row[..p.cols].fill_with(|| ((random.normal() * 256.0).round() / 256.0) as f32);
                row[p.cols..].fill(f32::NEG_INFINITY);
            }
        }
        session.executor().write_block(Block::Scores, &scores).expect("scores");
        let words: Vec<u64> = (0..stretch.len().div_ceil(64)).map(|_| random.bits()).collect();
        session.executor().write_masks(&words).expect("bits");
        Relaxed { session, prepared, batch, masks }
    }

    fn apply(&mut self) {
        self.session.executor().run(self.masks[0].1, &Extents::default()).expect("applied");
    }

    /// The loss with the masked weights that are there; their gradients as a side effect.
    fn loss(&mut self) -> f64 {
        let zeros = vec![0.0; Block::Gradients.stretch(self.session.model().layout()).len()];
        self.session.executor().write_block(Block::Gradients, &zeros).expect("zeroed");
        let weighting = Weighting::Mean { total: self.batch.targets.len() };
        let extents = self.session.feed(&self.prepared, &self.batch, weighting).expect("fed");
        self.session.write_dropout_key(&self.prepared, 1, 2).expect("key");
        self.session.run(&self.prepared, &extents).expect("ran");
        let losses = self.prepared.slots.losses.expect("a loss");
        let weight = f64::from(1.0f32 / self.batch.targets.len() as f32);
        self.session.read_wide(&self.prepared, losses, &extents).unwrap().iter().map(|l| l * weight).sum()
    }

    /// ∂/∂S of the loss just computed, plus `lambda` times the regulariser.
    fn score_gradients(&mut self, lambda: f64) -> Vec<f32> {
        let (program, id) = self.masks[1].clone();
        let matrices = self.session.model().layout().masked().count() as f64;
        let executor = self.session.executor();
        executor.write_wide(id, program.find("penalty").expect("a slot"), &[lambda / matrices]).expect("λ");
        executor.run(id, &Extents::default()).expect("ran");
        executor.read_block(Block::Gradients).expect("gradients")
    }

    fn regulariser(&mut self) -> f64 {
        let (program, id) = self.masks[2].clone();
        let nothing = Extents::default();
        self.session.executor().run(id, &nothing).expect("ran");
        let means =
            self.session.executor().read_wide(id, program.find("means").expect("a slot"), &nothing).unwrap();
        means.iter().sum::<f64>() / means.len() as f64
    }
}

#[test]
fn gradients_of_scores_are_derivatives_of_the_regularised_loss() {
    let mut relaxed = Relaxed::new(MaskFunction::HardConcrete);
    let lambda = 3.0;
    relaxed.apply();
    relaxed.loss();
    let gradients = relaxed.score_gradients(lambda);
    let scores = relaxed.session.executor().read_block(Block::Scores).unwrap();
    let layout = relaxed.session.model().layout().clone();
    let start = Block::Scores.stretch(&layout).start;
    let step = 1.0f32 / 4096.0;
    let mut random = Random(77);
    for parameter in layout.masked() {
        // Sixteen scores of each matrix at once, each up or down.
        let chosen: Vec<(usize, f32)> = (0..16)
            .map(|_| {
                let (row, col) = (random.below(parameter.rows), random.below(parameter.cols));
                let sign = if random.below(2) == 0 { step } else { -step };
                (parameter.offset - start + row * parameter.ld() + col, sign)
            })
            .collect();
        let mut at = |sign: f32| {
            let mut moved = scores.clone();
            for &(i, by) in &chosen {
                moved[i] = scores[i] + sign * by;
            }
            relaxed.session.executor().write_block(Block::Scores, &moved).unwrap();
            relaxed.apply();
            relaxed.loss() + lambda * relaxed.regulariser()
        };
        let numeric = (at(1.0) - at(-1.0)) / 2.0;
        let mut seen = std::collections::BTreeMap::new();
        chosen.iter().for_each(|&(i, by)| {
            seen.insert(i, by);
        });
        let analytic: f64 = seen.iter().map(|(&i, &by)| f64::from(gradients[i]) * f64::from(by)).sum();
        let scale: f64 = seen.iter().map(|(&i, &by)| f64::from(gradients[i] * by).abs()).sum();
        // Truncation of third order in the step (6e-8), f32 storage of the gradients; a mask that reaches an end of [0, 1]
        // inside the step has a corner there, worth at most its weight's part of the step.
        assert!(
            (numeric - analytic).abs() <= 2e-3 * scale + 1e-9,
            "{}: {numeric} is not {analytic}",
            parameter.name
        );
    }
}

#[test]
fn straight_through_gradients_are_derivatives_with_respect_to_a_real_mask() {
    let mut relaxed = Relaxed::new(MaskFunction::Bits);
    relaxed.apply();
    relaxed.loss();
    let gradients = relaxed.score_gradients(0.0);
    let layout = relaxed.session.model().layout().clone();
    let start = Block::Gradients.stretch(&layout).start;
    let weights = relaxed.session.executor().read_block(Block::Weights).unwrap();
    let slots: Vec<_> = relaxed.prepared.slots.program.slots().map(|(id, slot)| (id, slot.storage)).collect();
    let mut random = Random(78);
    for (slot, storage) in slots {
        let Storage::Parameter(id) = storage else { continue };
        let parameter = layout.get(id).clone();
        if !parameter.masked {
            continue;
        }
        let nothing = Extents::default();
        let values = relaxed.session.read_wide(&relaxed.prepared, slot, &nothing).unwrap();
        let place =
            |i: usize| parameter.offset - start + i / parameter.cols * parameter.ld() + i % parameter.cols;
        // The mask moves by h·d: the masked weights by h·W·d, whether they are kept or not.
        let direction: Vec<f64> = values.iter().map(|_| random.normal()).collect();
        let change: Vec<f64> =
            direction.iter().enumerate().map(|(i, d)| d * f64::from(weights[place(i)])).collect();
        let step = 1e-5 / change.iter().map(|c| c * c).sum::<f64>().sqrt();
        let mut at = |sign: f64| {
            let moved: Vec<f64> = values.iter().zip(&change).map(|(v, c)| v + sign * step * c).collect();
            relaxed.session.executor().write_wide(relaxed.prepared.id, slot, &moved).unwrap();
            relaxed.loss()
        };
        let numeric = (at(1.0) - at(-1.0)) / (2.0 * step);
        relaxed.session.executor().write_wide(relaxed.prepared.id, slot, &values).unwrap();
        let of = |i: usize| f64::from(gradients[place(i)]);
        let analytic: f64 = direction.iter().enumerate().map(|(i, d)| d * of(i)).sum();
        let scale: f64 = direction.iter().enumerate().map(|(i, d)| (d * of(i)).abs()).sum();
        assert!(
            (numeric - analytic).abs() <= 1e-5 * scale,
            "{}: {numeric} is not {analytic}",
            parameter.name
        );
    }
}
