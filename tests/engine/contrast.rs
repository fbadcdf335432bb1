//! Contrastive terms in programs of whole models: the published loss on fixed banks, its gradient, executors in lock-step,
//! and the scores of structured pruning that come from it.

use secateur::data::Batch;
use secateur::exec::{Block, lockstep};
use secateur::launch::Precision;
use secateur::model::{ContrastiveSlots, ContrastiveTerms, EmitOptions, Head, Sentence};
use secateur::ops::contrastive::Keys;
use secateur::program::{Extents, Mode, Storage};
use secateur::progress::Progress;
use secateur::prune::UnitMasks;
use secateur::prune::cap;
use secateur::prune::contrastive::{self, term_weights};
use secateur::prune::mask_gradients::{Grouping, Importance, Objective, Source, mask_gradients};
use secateur::session::{Device, Prepared, Session, Weighting};

use crate::models;
use crate::runs::{CLASSES, device};
use crate::support::numbers::Random;

/// Elements of a sentence vector.
pub const WIDTH: usize = 24;

/// What the three banks give a batch: vectors, examples and labels, absent rows included.
struct Candidates {
    rows: [Vec<f32>; 3],
    ids: [Vec<i32>; 3],
    labels: [Vec<i32>; 3],
}

const BANK_ROWS: [usize; 3] = [9, 11, 23];

impl Candidates {
    fn new(batch: usize) -> Candidates {
        let mut random = Random(77);
        let mut bank = |count: usize| {
            let mut out = vec![0.0f32; WIDTH * count];
            for row in out.chunks_mut(WIDTH) {
                row.fill_with(|| random.normal() as f32);
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm);
            }
            out
        };
        let rows = BANK_ROWS.map(&mut bank);
        // First the batch's own, then others, of which some are of the batch too; the last is not there.
        let numbers = |count: usize, copies: usize| {
            let mut list: Vec<i32> = (0..count).map(|k| (k / copies % (batch + 4)) as i32).collect();
            list[count - 1] = -1;
            list
        };
        let ids = [numbers(9, 1), numbers(11, 1), numbers(23, 2)];
        let labels = ids.clone().map(|ids| ids.iter().map(|id| if *id < 0 { -1 } else { id % 2 }).collect());
        Candidates { rows, ids, labels }
    }

    /// Writes the inputs of the contrastive terms; returns the weights.
    fn feed(&self, session: &mut Session, prepared: &Prepared, rows: usize) -> [[f64; 2]; 3] {
        let slots = prepared.slots.contrastive.expect("contrastive terms");
        let ids: Vec<i32> = (0..rows as i32).collect();
        let labels: Vec<i32> = ids.iter().map(|id| id % 2).collect();
        let executor = session.executor();
        executor.write_ints(prepared.id, slots.ids, &ids).expect("ids");
        if let Some(slot) = slots.labels {
            executor.write_ints(prepared.id, slot, &labels).expect("labels");
        }
        let mut weights = [[0.0; 2]; 3];
        for (which, bank) in slots.banks.iter().enumerate() {
            let supervised = slots.labels.map(|_| (&labels[..], &self.labels[which][..]));
            let keys = Keys { ids: &ids, bank_ids: &self.ids[which], labels: supervised };
            weights[which] = term_weights(&contrastive::Options::unstructured(false), &keys, 1.0);
            executor.write(prepared.id, bank.rows, &self.rows[which]).expect("rows");
            executor.write_ints(prepared.id, bank.ids, &self.ids[which]).expect("ids");
            if let Some(slot) = bank.labels {
                executor.write_ints(prepared.id, slot, &self.labels[which]).expect("labels");
            }
            executor.write_wide(prepared.id, bank.weights, &weights[which]).expect("weights");
        }
        weights
    }

    /// The published loss of one bank, restated: scores over all candidates with the query itself at −10⁶, log-softmax, the
    /// positives' sum over their number, the whole over the number of positive pairs.
    fn published(&self, which: usize, sentences: &[Vec<f64>], supervised: bool) -> f64 {
        let directions: Vec<Vec<f64>> = sentences
            .iter()
            .map(|x| {
                let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                x.iter().map(|x| x / norm).collect()
            })
            .collect();
        let mut candidates: Vec<(Vec<f64>, i32)> = directions.iter().cloned().zip(0..).collect();
        for (row, &id) in self.rows[which].chunks(WIDTH).zip(&self.ids[which]) {
            if id >= 0 {
                candidates.push((row.iter().map(|&x| f64::from(x)).collect(), id));
            }
        }
        let (mut sums, mut pairs) = ([0.0; 2], [0usize; 2]);
        for (i, q) in directions.iter().enumerate() {
            let score = |(j, (c, _)): (usize, &(Vec<f64>, i32))| {
                if i == j {
                    -1e6
                } else {
                    q.iter().zip(c).map(|(q, c)| q * c).sum::<f64>() / f64::from(0.1f32)
                }
            };
            let scores: Vec<f64> = candidates.iter().enumerate().map(score).collect();
            let total = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
            for (kind, sum) in sums.iter_mut().enumerate() {
                let same = |id: i32| if kind == 0 { id == i as i32 } else { id % 2 == i as i32 % 2 };
                let positive: Vec<f64> = (0..scores.len())
                    .filter(|&j| j != i && same(candidates[j].1))
                    .map(|j| scores[j] - total)
                    .collect();
                *sum -= positive.iter().sum::<f64>() / positive.len() as f64;
                pairs[kind] += positive.len();
            }
        }
        0.1 * sums[0] / pairs[0] as f64 + if supervised { 10.0 * sums[1] / pairs[1] as f64 } else { 0.0 }
    }
}

fn terms(supervised: bool) -> ContrastiveTerms {
    ContrastiveTerms { temperature: 0.1, bank_rows: BANK_ROWS, supervised }
}

/// A session with a program that has contrastive terms, fed with a batch.
fn fed(
    device: Device,
    family: &str,
    head: Head,
    rows: usize,
    mode: Mode,
    sentence: Sentence,
) -> (Session, Prepared, Batch, Extents, [[f64; 2]; 3]) {
    let batch = models::batch(&models::examples(family, head, rows, 13));
    let mut session = Session::new(models::model(family, head, 0.2), device).expect("a session");
    let supervised = matches!(head, Head::Classification { .. });
    let options = EmitOptions {
        loss: true,
        sentences: mode == Mode::EVALUATE,
        sentence,
        contrastive: Some(terms(supervised)),
        ..EmitOptions::default()
    };
    let prepared = session.prepare(mode, &options, models::capacity(&batch)).expect("prepared");
    let weighting = Weighting::Mean { total: rows };
    let extents = session.feed(&prepared, &batch, weighting).expect("fed");
    session.write_dropout_key(&prepared, 5, 9).expect("key");
    let weights = Candidates::new(rows).feed(&mut session, &prepared, rows);
    (session, prepared, batch, extents, weights)
}

/// Σ weights · losses of each bank.
fn losses(
    session: &mut Session,
    prepared: &Prepared,
    slots: ContrastiveSlots,
    extents: &Extents,
    weights: &[[f64; 2]; 3],
) -> [f64; 3] {
    [0, 1, 2].map(|which| {
        let found = session.read_wide(prepared, slots.banks[which].losses, extents).expect("losses");
        found.chunks(2).map(|pair| weights[which][0] * pair[0] + weights[which][1] * pair[1]).sum()
    })
}

const BOTH: [Sentence; 2] = [Sentence::Cls, Sentence::Mean];

/// The vectors whose directions are compared are sums over each sequence's tokens of the last hidden state.
#[test]
fn the_mean_is_over_the_tokens_of_a_sequence() {
    for (family, head) in [("bert", CLASSES), ("gpt2", CLASSES), ("distilbert", Head::Span)] {
        let batch = models::batch(&models::examples(family, head, 5, 13));
        for device in [Device::Reference, Device::Cpu, device(Precision::F32)] {
            let mut session = Session::new(models::model(family, head, 0.0), device).expect("a session");
            let options = EmitOptions {
                sentences: true,
                sentence: Sentence::Mean,
                keep_hidden: true,
                ..EmitOptions::default()
            };
            let capacity = models::capacity(&batch);
            let prepared = session.prepare(Mode::EVALUATE, &options, capacity).expect("prepared");
            let extents = session.feed(&prepared, &batch, Weighting::EachRow).expect("fed");
            session.executor().poison().expect("poisoned");
            session.run(&prepared, &extents).expect("ran");
            let read = |slot| session.read_wide(&prepared, slot, &extents).expect("read");
            let found = read(prepared.slots.sentence.expect("sentence vectors"));
            let hidden = read(*prepared.slots.hidden.last().expect("hidden states"));
            assert_eq!(found.len(), 5 * WIDTH);
            for (row, bounds) in batch.cu_seqlens.windows(2).enumerate() {
                let tokens = &hidden[bounds[0] as usize * WIDTH..bounds[1] as usize * WIDTH];
                for (j, found) in found[row * WIDTH..][..WIDTH].iter().enumerate() {
                    let terms = tokens.iter().skip(j).step_by(WIDTH);
                    let (sum, scale) = terms.fold((0.0, 0.0), |(sum, scale), x| (sum + x, scale + x.abs()));
                    // n − 1 additions in f32.
                    let bound = f64::from(f32::EPSILON) * f64::from(bounds[1] - bounds[0]) * scale;
                    assert!((found - sum).abs() <= bound, "{family} on {device}, row {row}: {found}, {sum}");
                }
            }
        }
    }
}

#[test]
fn the_loss_over_each_bank_is_the_published_one() {
    for (family, head) in
        [("bert", CLASSES), ("gpt2", CLASSES), ("bert", Head::Span), ("roberta", Head::Regression)]
    {
        for (device, tolerance) in [(Device::Reference, 1e-6), (Device::Cpu, 1e-5)] {
            for of in BOTH {
                let (mut session, prepared, batch, extents, weights) =
                    fed(device, family, head, 5, Mode::EVALUATE, of);
                session.run(&prepared, &extents).expect("ran");
                let slots = prepared.slots.contrastive.expect("contrastive terms");
                let sentence = prepared.slots.sentence.expect("sentence vectors");
                let vectors = session.read_wide(&prepared, sentence, &extents).expect("vectors");
                let vectors: Vec<Vec<f64>> = vectors.chunks(WIDTH).map(<[f64]>::to_vec).collect();
                let candidates = Candidates::new(batch.row_count());
                let found = losses(&mut session, &prepared, slots, &extents, &weights);
                for (which, found) in found.into_iter().enumerate() {
                    let expected = candidates.published(which, &vectors, head == CLASSES);
                    assert!(
                        (found - expected).abs() <= tolerance * expected.abs(),
                        "{family} {head:?} {of:?} on {device}, bank {which}: {found}, published {expected}"
                    );
                }
            }
        }
    }
}

/// One row: where there are others, each is a constant to the rest, and differences are not derivatives.
#[test]
fn parameter_gradients_are_the_derivatives_of_the_terms() {
    for (family, head, of) in [
        ("bert", CLASSES, Sentence::Cls),
        ("roberta", CLASSES, Sentence::Cls),
        ("distilbert", CLASSES, Sentence::Cls),
        ("gpt2", CLASSES, Sentence::Cls),
        ("bert", Head::Span, Sentence::Cls),
        ("bert", CLASSES, Sentence::Mean),
        ("gpt2", CLASSES, Sentence::Mean),
        ("bert", Head::Span, Sentence::Mean),
    ] {
        let (mut session, prepared, batch, extents, weights) =
            fed(Device::Reference, family, head, 1, Mode::TRAIN, of);
        let slots = prepared.slots.contrastive.expect("contrastive terms");
        let loss = |session: &mut Session| {
            let zeros = vec![0.0; session.model().layout().block_len()];
            session.executor().write_block(Block::Gradients, &zeros).expect("zeroed");
            session.run(&prepared, &extents).expect("ran");
            let weighting = Weighting::Mean { total: 1 };
            let task = session.loss(&prepared, &batch, weighting, &extents, String::new).expect("a loss");
            // Weights are inputs of f64 here as there.
            let terms: f64 = losses(session, &prepared, slots, &extents, &weights).iter().sum();
            // The task's loss is read in f32: its own exact value.
            let exact =
                session.read_wide(&prepared, prepared.slots.losses.expect("a loss"), &extents).unwrap();
            assert!((task - exact[0]).abs() < 1e-5 * exact[0].abs().max(1.0));
            exact[0] + terms
        };
        loss(&mut session);
        let program = session.executor().program(prepared.id).clone();
        let nothing = Extents::default();
        let gradients: Vec<_> = program
            .slots()
            .filter_map(|(slot, description)| match description.storage {
                Storage::Gradient(id) => Some((id, session.read_wide(&prepared, slot, &nothing).unwrap())),
                _ => None,
            })
            .collect();
        let mut random = Random(99);
        for (slot, description) in program.slots() {
            let Storage::Parameter(id) = description.storage else { continue };
            let Some((_, gradient)) = gradients.iter().find(|(other, _)| *other == id) else { continue };
            let values = session.read_wide(&prepared, slot, &nothing).unwrap();
            let direction: Vec<f64> = values.iter().map(|_| random.normal()).collect();
            let norm = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            let step = 1e-5 / norm;
            let mut at = |sign: f64| {
                let moved: Vec<f64> =
                    values.iter().zip(&direction).map(|(v, d)| v + sign * step * d).collect();
                session.executor().write_wide(prepared.id, slot, &moved).expect("moved");
                loss(&mut session)
            };
            let numeric = (at(1.0) - at(-1.0)) / (2.0 * step);
            session.executor().write_wide(prepared.id, slot, &values).expect("restored");
            let analytic: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let scale = norm * (1.0 + gradient.iter().map(|g| g * g).sum::<f64>().sqrt());
            assert!(
                (numeric - analytic).abs() < 1e-6 * scale,
                "{family} {head:?} {of:?} {}: {analytic} against {numeric}",
                description.name
            );
        }
    }
}

#[test]
fn executors_agree_operation_by_operation() {
    for (family, head) in
        [("bert", CLASSES), ("gpt2", CLASSES), ("distilbert", Head::Span), ("roberta", Head::Regression)]
    {
        for (candidate, of) in
            [Device::Cpu, device(Precision::F32)].into_iter().flat_map(|d| BOTH.map(|of| (d, of)))
        {
            let (mut reference, prepared, _, extents, _) =
                fed(Device::Reference, family, head, 6, Mode::TRAIN, of);
            let (mut other, _, _, _, _) = fed(candidate, family, head, 6, Mode::TRAIN, of);
            for session in [&mut reference, &mut other] {
                let zeros = vec![0.0; session.model().layout().block_len()];
                session.executor().write_block(Block::Gradients, &zeros).expect("gradients");
                session.executor().poison().expect("poisoned");
            }
            let (id, executor) = (prepared.id, other.executor());
            let found = lockstep::compare(reference.executor(), id, executor, id, &extents).expect("runs");
            if let Some(divergence) = found {
                panic!("{candidate} {family} {head:?} {of:?}: {divergence}");
            }
        }
    }
}

#[test]
fn structured_scores_are_sums_of_absolute_mask_gradients() {
    let model = models::model("bert", CLASSES, 0.1);
    let examples = models::examples("bert", CLASSES, 23, 5);
    let masks = UnitMasks::ones(&model.config().widths());
    let mut session = Session::of(&model, Device::Cpu).expect("a session");
    let (source, grouping) = (Source::Rows(&examples), Grouping::MiniBatches(4));
    let progress = Progress::silent();
    let gradients = mask_gradients(&mut session, source, grouping, Objective::Loss, &masks, &progress)
        .expect("gradients");
    let options = cap::Options::new(false);
    let score = |options: &cap::Options| {
        cap::score(&model, Device::Cpu, &examples, 4, options, &progress).expect("scores")
    };
    let (plain, normalised) = (score(&cap::Options { normalise: false, ..options.clone() }), score(&options));
    let layers = |importance: &Importance| [importance.heads.clone(), importance.neurons.clone()].concat();
    let found = [gradients.heads, gradients.neurons].concat();
    for ((gradients, plain), normalised) in found.iter().zip(layers(&plain)).zip(layers(&normalised)) {
        let expected: Vec<f64> = (0..plain.len())
            .map(|unit| gradients.chunks(plain.len()).map(|batch| batch[unit].abs()).sum())
            .collect();
        assert_eq!(plain, expected);
        let norm = expected.iter().map(|score| score * score).sum::<f64>().sqrt();
        assert!(expected.iter().zip(&normalised).all(|(e, n)| (e / norm - n).abs() < 1e-12));
    }
}
