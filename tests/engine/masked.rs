//! Training of weight masks: exact counts, zeros that stay, weights that do not move, gradients of the relaxed problem,
//! runs that repeat and resume, heads of label words, and the device's kernels beside the CPU.

use std::sync::Arc;

use secateur::data::{Cursor, Dataset, Example, Step, Target, Task};
use secateur::exec::Block;
use secateur::launch::Precision;
use secateur::model::{EmitOptions, Head, LabelWordHead, Logits, Model, ModelConfig};
use secateur::ops::weightmask::hard_concrete_shift;
use secateur::program::{Builder, Extent, Extents, MaskFunction, Mode, Op, Program, Storage};
use secateur::progress::{Interrupt, Progress};
use secateur::prune::sparse::options::Setting;
use secateur::prune::sparse::{Distillation, Head as SparseHead, Masking, Method, Options, Profile};
use secateur::session::{Device, Session, Weighting};
use secateur::train::Recipe;
use secateur::train::finetune::{self, History};
use secateur::train::masked::{self, MaskedTrainer};
use secateur::train::stepper::{RunSize, Stepper};
use secateur::train::teacher::Teacher;

use crate::models;
use crate::support::numbers::Random;
use crate::training::StopAfter;

const METHODS: [Method; 5] =
    [Method::Smp, Method::Movement, Method::SoftMovement, Method::Magnitude, Method::L0];
const HEAD: Head = Head::Classification { labels: 2 };

fn options(method: Method, keep: f64) -> Options {
    let setting = Setting { keep, task: "mrpc", distilled: false };
    let options = Options::new(method, Profile::Default, setting).expect("options");
    // Tiny models have no pre-trained head: it is trained.
    Options { head: SparseHead::Trained, ..options }
}

fn task() -> Task {
    Task::by_name("mrpc").expect("a known task")
}

fn data() -> Dataset {
    Dataset { examples: models::examples("bert", HEAD, 30, 5), ..Dataset::default() }
}

fn recipe() -> Recipe {
    Recipe { learning_rate: 2e-3, batch_size: 8, epochs: 3, warmup: 0.1, ..Recipe::default() }
}

/// A model whose down-projections have padded rows.
fn padded(options: &Options) -> Model {
    let fields = serde_json::json!({"model_type": "bert", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 43, "max_position_embeddings": 32, "type_vocab_size": 2});
    let serde_json::Value::Object(fields) = fields else { unreachable!("a JSON object") };
    let config = ModelConfig::from_json(fields, std::path::Path::new("test")).expect("valid");
    let mut model = Model::from_config(config, HEAD, 7).expect("a model");
    let layout = model.layout().clone();
    for (_, parameter) in layout.iter().filter(|(_, p)| !p.vector) {
        model.values[parameter.range()].iter_mut().for_each(|value| *value *= 8.0);
    }
    masked::prepare_model(&mut model, options);
    model
}

struct Outcome {
    session: Session,
    history: History,
    before: Model,
}

fn run(
    device: Device,
    options: &Options,
    run: &finetune::Options,
    progress: &Progress,
) -> secateur::Result<Outcome> {
    let model = padded(options);
    let before = model.clone();
    let mut session = Session::new(model, device)?;
    let (data, recipe, task) = (data(), recipe(), task());
    let teacher = options.distillation.map(|_| {
        let mut random = Random(3);
        let row = |_| vec![random.normal() as f32, random.normal() as f32];
        Arc::new(Teacher { outputs: (0..data.examples.len()).map(row).collect(), sentences: None })
    });
    let make = |session: &mut Session, size| {
        MaskedTrainer::new(session, &recipe, options, &task, teacher, run.seed, size)
    };
    let history = finetune::drive(&mut session, &task, &data, Some(&data), &recipe, run, progress, make)?;
    Ok(Outcome { session, history, before })
}

fn trained(options: &Options) -> Outcome {
    run(Device::Cpu, options, &finetune::Options::default(), &Progress::silent()).expect("trains")
}

/// Everything that training moves.
fn bits(session: &mut Session) -> Vec<u32> {
    let blocks = [Block::Parameters, Block::Weights, Block::Scores, Block::ScoreSecondMoment];
    let executor = session.executor();
    let floats = blocks.map(|block| executor.read_block(block).expect("a block")).concat();
    let words = executor.read_masks().expect("bits");
    let words = words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]);
    floats.iter().map(|value| value.to_bits()).chain(words).collect()
}

#[test]
fn exactly_the_asked_number_of_weights_survives() {
    let maskings = [Masking::Local, Masking::Fractions { temperature: 1.0 }, Masking::Global];
    let smp = maskings.map(|masking| (Method::Smp, masking));
    for (method, masking) in
        smp.into_iter().chain([(Method::Movement, Masking::Local), (Method::Magnitude, Masking::Local)])
    {
        for keep in [0.001, 0.37, 1.0] {
            let options = Options { masking, ..options(method, keep) };
            let mut outcome = trained(&options);
            let masks = masked::weight_masks(&mut outcome.session).expect("masks");
            let asked = |size: usize| (keep * size as f64) as usize;
            match masking {
                Masking::Global => assert_eq!(masks.kept(), asked(masks.total())),
                Masking::Local => {
                    for mask in &masks.matrices {
                        assert_eq!(mask.kept(), asked(mask.len()), "{method:?} {keep}: {}", mask.name);
                    }
                }
                // Fractions above 1 are cut, and every matrix rounds down.
                _ => assert!(
                    masks.kept() <= asked(masks.total())
                        && masks.kept() + masks.total() / 8 + 16 > asked(masks.total())
                ),
            }
        }
    }
}

#[test]
fn masked_weights_are_zero_and_frozen_weights_have_their_bits() {
    for method in METHODS {
        let options =
            Options { snap: matches!(method, Method::SoftMovement | Method::L0), ..options(method, 0.3) };
        let Outcome { mut session, before, .. } = trained(&options);
        let masks = masked::weight_masks(&mut session).expect("masks");
        let layout = session.model().layout().clone();
        let weights = session.executor().read_block(Block::Weights).expect("weights");
        let start = Block::Weights.stretch(&layout).start;
        let after = session.executor().read_block(Block::Parameters).expect("parameters");
        let mut of_matrix = layout.masked().zip(&masks.matrices);
        let mut moved = false;
        for (_, parameter) in layout.iter() {
            let (old, new) = (&before.values[parameter.range()], &after[parameter.range()]);
            if !parameter.masked {
                let frozen = !parameter.trainable;
                assert!(!frozen || old == new, "{method:?}: {} moved", parameter.name);
                continue;
            }
            let (_, mask) = of_matrix.next().expect("a mask a matrix");
            let behind = &weights[parameter.offset - start..][..parameter.span()];
            moved |= behind != old;
            for (row, (new, behind)) in
                new.chunks(parameter.ld()).zip(behind.chunks(parameter.ld())).enumerate()
            {
                for col in 0..parameter.ld() {
                    let kept = col < parameter.cols && mask.keeps(row * parameter.cols + col);
                    let expected = if kept { behind[col] } else { 0.0 };
                    // With bits a kept weight is the weight; the best epoch's, so only where nothing is trained after it.
                    let same = method == Method::Smp || !kept;
                    assert!(
                        !same || new[col].to_bits() == expected.to_bits(),
                        "{method:?} {}",
                        parameter.name
                    );
                }
            }
        }
        assert_eq!(moved, options.trains_weights(), "{method:?}");
        let model = masked::into_model(session).expect("a model");
        if method == Method::Smp {
            for parameter in layout.masked() {
                assert!(
                    model.values[parameter.range()] == before.values[parameter.range()],
                    "{}",
                    parameter.name
                );
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    for method in METHODS {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| bits(&mut trained(&options(method, 0.3)).session))
        };
        assert!(on(1) == on(3), "{method:?}");
    }
}

#[test]
fn an_interrupted_run_continues_to_the_same_bits() {
    for method in METHODS {
        let distillation = (method == Method::Movement).then_some(Distillation::PUBLISHED);
        let options = Options { distillation, ..options(method, 0.3) };
        let mut whole = trained(&options);
        for stops in [vec![2], vec![4, 9]] {
            let directory = tempfile::tempdir().expect("a directory");
            let saved = finetune::Options {
                checkpoints: Some(directory.path().into()),
                ..finetune::Options::default()
            };
            for stop in &stops {
                let interrupt = Interrupt::new();
                let progress = Progress::new(StopAfter(*stop, interrupt.clone()), interrupt);
                let error = run(Device::Cpu, &options, &saved, &progress).err().expect("was interrupted");
                assert!(error.to_string().contains(&format!("after step {stop} of 12")), "{error}");
            }
            let mut resumed = run(Device::Cpu, &options, &saved, &Progress::silent()).expect("resumes");
            assert_eq!(resumed.history.best, whole.history.best, "{method:?}");
            let losses = |h: &History| h.epochs.iter().map(|e| e.loss.to_bits()).collect::<Vec<_>>();
            assert_eq!(losses(&resumed.history), losses(&whole.history), "{method:?} {stops:?}");
            assert!(bits(&mut resumed.session) == bits(&mut whole.session), "{method:?} {stops:?}");
        }
    }
}

#[test]
fn learning_masks_alone_learns_the_rows_by_heart() {
    let options = Options { lambda: 0.0, ..options(Method::Smp, 0.5) };
    let model = padded(&options);
    let mut session = Session::new(model, Device::Cpu).expect("a session");
    let recipe = Recipe { epochs: 80, ..recipe() };
    let (data, task) = (data(), task());
    let make =
        |session: &mut Session, size| MaskedTrainer::new(session, &recipe, &options, &task, None, 0, size);
    let run = finetune::Options::default();
    let history =
        finetune::drive(&mut session, &task, &data, Some(&data), &recipe, &run, &Progress::silent(), make)
            .expect("trains");
    let last = history.epochs.last().expect("epochs");
    assert!(last.loss < 0.5 * history.epochs[0].loss, "{:?}", history.epochs);
}

/// Loss of a batch as a function of scores (or of the masked weights), in f64, dropout and noise fixed.
struct Relaxed {
    session: Session,
    prepared: secateur::session::Prepared,
    batch: secateur::data::Batch,
    masks: [(Arc<Program>, secateur::exec::ProgramId); 3],
}

impl Relaxed {
    fn new(function: MaskFunction) -> Relaxed {
        let options = options(if function == MaskFunction::Bits { Method::Smp } else { Method::L0 }, 0.3);
        let mut model = padded(&options);
        // Frozen: the gradient block holds the scores' gradients.
        model.architecture.set_trainable(|_| false);
        let batch = models::batch(&models::examples("bert", HEAD, 5, 21));
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

#[test]
fn what_is_frozen_takes_no_memory() {
    let options = options(Method::Smp, 0.3);
    let Outcome { session, .. } = trained(&options);
    let layout = session.model().layout().clone();
    let masked = Block::Scores.stretch(&layout).len();
    // Nothing stands between the masked matrices.
    assert_eq!(masked, layout.masked().map(|p| p.span().next_multiple_of(64)).sum::<usize>());
    let head: usize =
        layout.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.span().next_multiple_of(64)).sum();
    for block in [Block::Weights, Block::Scores, Block::ScoreFirstMoment, Block::ScoreSecondMoment] {
        assert_eq!(block.stretch(&layout).len(), masked);
    }
    assert_eq!(Block::FirstMoment.stretch(&layout).len(), head);
    assert!(Block::Gradients.stretch(&layout).len() >= masked + head);
    assert!(
        Block::Gradients.stretch(&layout).len()
            < layout.block_len()
                - layout.get(layout.find("bert.embeddings.word_embeddings.weight").unwrap()).span()
                + 64
    );
}

#[test]
fn losses_that_are_not_finite_stop_a_run_with_a_name() {
    let options = options(Method::Movement, 0.3);
    let mut model = padded(&options);
    let first = model.layout().masked().next().expect("a matrix").offset;
    model.values[first] = f32::INFINITY;
    let mut session = Session::new(model, Device::Cpu).expect("a session");
    let (data, task, recipe) = (data(), task(), recipe());
    let make =
        |session: &mut Session, size| MaskedTrainer::new(session, &recipe, &options, &task, None, 0, size);
    let run = finetune::Options::default();
    let error = finetune::drive(&mut session, &task, &data, None, &recipe, &run, &Progress::silent(), make)
        .expect_err("not finite");
    assert!(error.to_string().contains("training step 1"), "{error}");
}

#[test]
fn label_words_answer_as_the_language_model_does() {
    let words = [7u32, 30, 12];
    for family in ["bert", "roberta", "distilbert", "gpt2"] {
        let causal = family == "gpt2";
        let language = if causal { Head::CausalLm } else { Head::MaskedLm };
        let folder = tempfile::tempdir().expect("a folder");
        models::model(family, language, 0.0).save(folder.path()).expect("saved");
        let examples: Vec<Example> = models::examples(family, HEAD, 6, 3)
            .into_iter()
            .map(|example| Example { target: Target::None, ..example })
            .collect();
        let batch = models::batch(&examples);
        let logits = |model: Model| {
            let mut session = Session::new(model, Device::Cpu).expect("a session");
            let emit = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
            let prepared =
                session.prepare(Mode::EVALUATE, &emit, models::capacity(&batch)).expect("prepared");
            let extents = session.feed(&prepared, &batch, Weighting::EachRow).expect("fed");
            session.run(&prepared, &extents).expect("ran");
            let mut values = Vec::new();
            session
                .read(&prepared, prepared.slots.logits.expect("logits"), &extents, &mut values)
                .expect("read");
            values
        };
        let load =
            |head, words: &[u32], mask| Model::load_with_label_words(folder.path(), head, words, mask, 0);
        let request = secateur::model::HeadRequest::Task(language);
        let all = logits(Model::load(folder.path(), request, 0).expect("loads"));
        let close = |found: f32, token: usize, word: u32, place: &str| {
            let expected = all[token * 50 + word as usize];
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                "{family} {place}: {found}, {expected}"
            );
        };
        let classes = Head::Classification { labels: 3 };
        let (model, kind) = load(classes, &words, None).expect("loads");
        assert_eq!(kind, LabelWordHead::LanguageModel);
        for (row, found) in logits(model).chunks(3).enumerate() {
            let token = if causal { batch.cu_seqlens[row + 1] - 1 } else { batch.cu_seqlens[row] };
            found.iter().zip(words).for_each(|(&found, word)| close(found, token as usize, word, "class"));
        }
        // A token that stands somewhere in a row answers for it.
        assert!(batch.cu_seqlens[5] - batch.cu_seqlens[4] > 1, "row 4 needs a second token");
        let mask = batch.input_ids[batch.cu_seqlens[4] as usize + 1] as u32;
        let (model, _) = load(classes, &words, Some(mask)).expect("loads");
        let tokens = batch.cu_seqlens[4]..batch.cu_seqlens[5];
        let at = tokens.clone().find(|&t| batch.input_ids[t as usize] as u32 == mask).expect("it is there");
        logits(model)[12..15]
            .iter()
            .zip(words)
            .for_each(|(&found, word)| close(found, at as usize, word, "mask"));
        let (model, _) = load(Head::Span, &words[..2], None).expect("loads");
        for (token, found) in logits(model).chunks(2).enumerate() {
            found.iter().zip(words).for_each(|(&found, word)| close(found, token, word, "span"));
        }
        let refused = |head, words: &[u32]| load(head, words, None).expect_err("refused").to_string();
        assert!(refused(classes, &words[..2]).contains("2 label words for 3"));
        assert!(refused(classes, &[1, 2, 50]).contains("outside"));
        assert!(refused(classes, &[1, 2, 1]).contains("two classes"));
    }
    // Without a language-model head, dot products with embeddings.
    let folder = tempfile::tempdir().expect("a folder");
    models::model("bert", HEAD, 0.0).save(folder.path()).expect("saved");
    let (_, kind) = Model::load_with_label_words(folder.path(), HEAD, &[7, 30], None, 0).expect("loads");
    assert_eq!(kind, LabelWordHead::Embedding);
}

/// One step of each method on a device: gradients of the scores by their first moments, and the masks.
#[test]
fn steps_on_a_device_follow_the_cpu() {
    let device = match std::env::var("SECATEUR_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::Cuda { ordinal: 0, precision: Precision::F32 },
        _ => Device::Emulated { precision: Precision::F32 },
    };
    for method in METHODS {
        let options = Options { prune_steps: Some(0), ..options(method, 0.3) };
        let step = |device: Device| {
            let mut session = Session::new(padded(&options), device).expect("a session");
            let data = Dataset { examples: models::examples("bert", HEAD, 4, 5), ..Dataset::default() };
            let lengths = data.lengths();
            let rows: Vec<usize> = (0..4).collect();
            let capacity = secateur::session::capacity(std::slice::from_ref(&rows), &lengths);
            let size = RunSize { total_steps: 100, epoch_steps: 1, capacity };
            let mut trainer = MaskedTrainer::new(&mut session, &recipe(), &options, &task(), None, 3, size)
                .expect("a trainer");
            let layout = session.model().layout().clone();
            if options.has_scores() {
                let mut random = Random(4);
                let mut scores = session.executor().read_block(Block::Scores).expect("scores");
                for score in scores.iter_mut().filter(|score| score.is_finite()) {
                    *score = random.normal() as f32;
                }
                session.executor().write_block(Block::Scores, &scores).expect("scores");
            }
            let one = Step { cursor: Cursor::default(), micro_batches: vec![rows] };
            let report = trainer.run(&mut session, &data, &one).expect("a step");
            let masks = session.executor().read_masks().expect("bits");
            let moments = [Block::ScoreFirstMoment, Block::FirstMoment]
                .map(|block| session.executor().read_block(block).expect("moments"));
            let parameters = session.executor().read_block(Block::Parameters).expect("parameters");
            let masked: Vec<f32> = layout.masked().flat_map(|p| parameters[p.range()].to_vec()).collect();
            (report, masks, moments, masked)
        };
        let (expected, found) = (step(Device::Cpu), step(device));
        assert!((found.0.loss - expected.0.loss).abs() < 1e-4, "{method:?}");
        assert!((found.0.gradient_norm - expected.0.gradient_norm).abs() < 1e-3 * expected.0.gradient_norm);
        assert!(found.1 == expected.1, "{method:?}: other bits");
        for (found, expected) in found.2.iter().zip(&expected.2) {
            let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-3 * largest, "{method:?}: moment {found}, {expected}");
            }
        }
        for (found, expected) in found.3.iter().zip(&expected.3) {
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs().max(0.1),
                "{method:?}: {found}, {expected}"
            );
        }
    }
}
