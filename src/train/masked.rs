//! Training of weight masks: one optimiser step of every method of `prune::sparse`.
//!
//! A step computes the masks from the scores (or the weights), once, writes the masked weights that products read, runs
//! the micro-batches, turns the gradients of the masked weights into those of scores and weights, clips both by one norm,
//! and updates them. The fraction kept, thresholds and λ come from the host and are inputs of the programs, so that nothing
//! is emitted twice. What is frozen has no gradient, no moments, and the same bits afterwards.
//!
//! A run is continued to the same bits: scores, underlying weights and all moments are in the checkpoint, masks follow
//! from them and the step, L0's noise from the seed and the step.

use std::path::Path;
use std::sync::Arc;

use super::contrast::Contrast;
use super::objective::Objective;
use super::recipe::Recipe;
use super::stepper::{RunSize, StepReport, Stepper};
use super::teacher::Teacher;
use super::trainer::fill_step;
use super::update::zero_gradients;
use crate::data::{Batch, Cursor, Dataset, Step, Task, TaskKind};
use crate::error::{Error, Result};
use crate::exec::{Block, ProgramId};
use crate::model::{Architecture, Model, WeightMask, WeightMasks};
use crate::ops::weightmask::hard_concrete_shift;
use crate::program::{
    Builder, Extent, Extents, MaskFunction, Mode, Op, Parameter, ParameterLayout, Program, SlotId,
};
use crate::progress::Progress;
use crate::prune::sparse::{Budget, Head, MaskPlan, Method, Options, Profile};
use crate::session::{Prepared, Session};

/// Marks what a method masks and what it trains: scores alone (and a new head), or everything but the embeddings.
pub fn prepare_model(model: &mut Model, options: &Options) {
    let architecture = &mut model.architecture;
    let masked: Vec<_> = architecture.layer_matrices().iter().map(|matrix| matrix.id).collect();
    let head = architecture.parameters.head_ids();
    let first_of_layers = masked.first().map_or(0, |&id| architecture.layout.get(id).offset);
    let trained: Vec<String> = (architecture.layout.iter())
        .filter(|(id, parameter)| match options.trains_weights() {
            // Embeddings stand before the layers, the head after them.
            true => parameter.offset >= first_of_layers || head.contains(id),
            false => options.head == Head::Trained && head.contains(id),
        })
        .map(|(_, parameter)| parameter.name.clone())
        .collect();
    architecture.set_trainable(|name| trained.iter().any(|trained| trained == name));
    architecture.set_masked(&masked);
}

/// The usual recipe of a method: batch size, epochs, and the learning rate of what is trained beside the scores.
/// (Sanh et al.: SQuAD, batch 16; CAP's re-runs of GLUE: batch 32, 10 epochs. SMP: 12 epochs of 64 for the large GLUE
/// tasks, 60 of 32 for the small ones, 100 of RTE, 10 epochs of 32 for SQuAD.)
pub fn usual_recipe(options: &Options, task: &str) -> Recipe {
    let squad = task.starts_with("squad");
    let large = matches!(task, "mnli" | "mnli-mm" | "qqp" | "qnli" | "sst-2");
    let (batch_size, epochs) = match (options.method, options.profile) {
        (Method::Smp, Profile::Paper) if squad => (64, 10),
        (Method::Smp, _) if squad => (32, 10),
        (Method::Smp, _) if large => (64, 12),
        (Method::Smp, Profile::Paper) => (64, 60),
        (Method::Smp, _) if task == "rte" => (32, 100),
        (Method::Smp, _) => (32, 60),
        _ if squad => (16, 10),
        _ => (32, 10),
    };
    let warmup = if options.method == Method::Smp { 0.0 } else { 0.1 };
    Recipe { learning_rate: 3e-5, batch_size, epochs, warmup, ..Recipe::default() }
}

/// The programs around the micro-batches, and the slots that the host writes and reads.
#[derive(Debug)]
struct Programs {
    /// [`Op::SelectMasks`] (with bits), [`Op::ApplyMasks`]: before a step.
    masks: Arc<Program>,
    /// The same before an evaluation: without noise.
    settled: Arc<Program>,
    /// [`Op::MeanSigmoid`].
    means: Arc<Program>,
    /// [`Op::ScoreGradients`], [`Op::ClipFactor`]; then an [`Op::AdamW`] of weights and one of scores, as far as there are.
    update: Arc<Program>,
}

fn find(program: &Program, name: &str) -> SlotId {
    program.find(name).unwrap_or_else(|| panic!("{} has a slot {name}", program.name()))
}

impl Programs {
    fn emit(layout: &Arc<ParameterLayout>, options: &Options, plan: &MaskPlan, max_norm: f32) -> Programs {
        let matrices = layout.masked().count();
        let magnitude = !options.has_scores();
        let global = plan.groups() != matrices;
        let masks = |function: MaskFunction, select: bool, noisy: bool, threshold: bool| {
            let mut b = Builder::new("masks", layout.clone(), Mode::EVALUATE);
            if select {
                let counts = b.int_input("counts", Extent::Fixed(plan.groups()));
                let threshold = threshold.then(|| b.input("threshold", Extent::Fixed(1), 1));
                let kept = b.temporary("kept", Extent::Fixed(1), plan.groups());
                b.keep(kept);
                b.emit(Op::SelectMasks { magnitude, global, counts, threshold, kept });
            }
            let key = noisy.then(|| b.int_input("key", Extent::Fixed(3)));
            b.emit(Op::ApplyMasks { function, key });
            Arc::new(b.finish())
        };
        let function = options.function();
        let exact = function == MaskFunction::HardConcrete;
        let threshold = plan.budget(0, &vec![0.5; matrices]).threshold.is_some();
        let mut means = Builder::new("means", layout.clone(), Mode::EVALUATE);
        let out = means.temporary("means", Extent::Fixed(1), matrices);
        means.keep(out);
        let temperature = plan.temperature().unwrap_or(1.0) as f32;
        let shift = if exact { hard_concrete_shift() as f32 } else { 0.0 };
        means.emit(Op::MeanSigmoid { shift, temperature, out });

        let mut b = Builder::new("update of scores", layout.clone(), Mode::EVALUATE);
        let penalty = b.input("penalty", Extent::Fixed(1), 1);
        let norm = b.temporary("norm", Extent::Fixed(1), 2);
        b.keep(norm);
        let key = exact.then(|| b.int_input("key", Extent::Fixed(3)));
        let (scores, form) = (options.has_scores(), options.form);
        b.emit(Op::ScoreGradients { function, key, scores, penalty });
        b.emit(Op::ClipFactor { max_norm, scores, norm });
        let hyper = b.input("hyper", Extent::Fixed(1), 7);
        b.emit(Op::AdamW { form, scores: false, hyper, norm });
        if scores {
            let hyper = b.input("score hyper", Extent::Fixed(1), 7);
            b.emit(Op::AdamW { form, scores: true, hyper, norm });
        }
        let settled_function = if options.snap { MaskFunction::Bits } else { function };
        Programs {
            masks: masks(function, !exact, exact, threshold),
            settled: masks(settled_function, true, false, threshold && !options.snap),
            means: Arc::new(means.finish()),
            update: Arc::new(b.finish()),
        }
    }
}

/// The steps of a training of masks.
#[derive(Debug)]
pub struct MaskedTrainer {
    recipe: Recipe,
    options: Options,
    plan: MaskPlan,
    objective: Objective,
    seed: u64,
    train: Prepared,
    programs: Programs,
    zero: ProgramId,
    masks: ProgramId,
    settled: ProgramId,
    means: Option<ProgramId>,
    update: ProgramId,
    size: RunSize,
    step: u64,
    draw: u64,
    /// Fraction of the masked weights that the last masks kept; not known of noisy ones.
    kept: Option<f64>,
    batch: Batch,
    totals: Vec<Batch>,
    values: Vec<f32>,
}

impl MaskedTrainer {
    /// Prepares the programs and the blocks of weights and scores. The session's model must have gone through
    /// [`prepare_model`]; `teacher` is what a teacher says of each row of the data, as the options' distillation and
    /// contrastive terms want it.
    pub fn new(
        session: &mut Session,
        recipe: &Recipe,
        options: &Options,
        task: &Task,
        teacher: Option<Arc<Teacher>>,
        seed: u64,
        size: RunSize,
    ) -> Result<MaskedTrainer> {
        recipe.check()?;
        let architecture = session.model().architecture.clone();
        let layout = architecture.layout.clone();
        let warmup = recipe.warmup_steps(size.total_steps);
        let schedule = options.schedule(&task.name, size.total_steps, size.epoch_steps, warmup)?;
        let plan = MaskPlan::new(options, schedule, &architecture.layer_matrices(), &layout)?;
        let contrast = match (&options.contrast, &teacher) {
            (Some(terms), Some(teacher)) => {
                let (supervised, teacher) = (task.kind == TaskKind::Classification, teacher.clone());
                let terms = Contrast::new(terms, supervised, teacher, seed, size.epochs(), size.capacity)?;
                Some(terms.of(options.sentence))
            }
            _ => None,
        };
        let mut objective = Objective::new(options.distillation, teacher, contrast)?;
        objective.prepare(size.capacity)?;
        let emit = objective.emit_options(architecture.head == crate::model::Head::Regression);
        let train = session.prepare(Mode::TRAIN, &emit, size.capacity)?;
        let programs = Programs::emit(&layout, options, &plan, recipe.max_gradient_norm as f32);
        let nothing = Extents::default();
        let executor = session.executor();
        let mut prepare = |program: &Arc<Program>| executor.prepare(program.clone(), nothing);
        let zero = prepare(&zero_gradients(layout.clone()))?;
        let (masks, settled) = (prepare(&programs.masks)?, prepare(&programs.settled)?);
        let update = prepare(&programs.update)?;
        let means = plan.temperature().map(|_| prepare(&programs.means)).transpose()?;
        begin(session, &layout, options)?;
        Ok(MaskedTrainer {
            recipe: recipe.clone(),
            options: options.clone(),
            plan,
            objective,
            seed,
            train,
            programs,
            zero,
            masks,
            settled,
            means,
            update,
            size,
            step: 0,
            draw: 0,
            kept: None,
            batch: Batch::default(),
            totals: Vec::new(),
            values: Vec::new(),
        })
    }

    /// The schedule and the budgets it leads to.
    pub fn plan(&self) -> &MaskPlan {
        &self.plan
    }

    /// λ of the next step.
    pub fn lambda(&self) -> f64 {
        let step = self.options.schedule_step(self.step);
        self.options.lambda_at(step, self.size.total_steps, self.plan.schedule())
    }

    /// Fraction of the masked weights that the last masks kept.
    pub fn kept(&self) -> Option<f64> {
        self.kept
    }

    /// Budgets of the next masks.
    fn budget(&mut self, session: &mut Session) -> Result<Budget> {
        let mut means = Vec::new();
        if let Some(id) = self.means {
            let nothing = Extents::default();
            session.executor().run(id, &nothing)?;
            means = session.executor().read_wide(id, find(&self.programs.means, "means"), &nothing)?;
            if let Some(&bad) = means.iter().find(|mean| !mean.is_finite()) {
                let place = format!("at training step {}", self.step + 1);
                return Err(Error::NotFinite { what: "a mean of the scores".into(), value: bad, place });
            }
        }
        Ok(self.plan.budget(self.options.schedule_step(self.step), &means))
    }

    /// Runs a program that selects masks by `budget` (or does not) and applies them.
    fn mask(&mut self, session: &mut Session, id: ProgramId, settled: bool, budget: &Budget) -> Result<()> {
        let nothing = Extents::default();
        let program = if settled { &self.programs.settled } else { &self.programs.masks };
        let executor = session.executor();
        if let Some(slot) = program.find("counts") {
            executor.write_ints(id, slot, &budget.counts)?;
        }
        if let (Some(slot), Some(threshold)) = (program.find("threshold"), budget.threshold) {
            executor.write(id, slot, &[threshold as f32])?;
        }
        if let Some(slot) = program.find("key") {
            executor.write_ints(id, slot, &self.noise_key())?;
        }
        executor.run(id, &nothing)?;
        if let Some(slot) = program.find("kept") {
            executor.read(id, slot, &nothing, &mut self.values)?;
            let kept: f64 = self.values.iter().map(|&kept| f64::from(kept)).sum();
            self.kept = Some(kept / self.plan.total().max(1) as f64);
        }
        Ok(())
    }

    /// Key of L0's noise: one draw a step.
    fn noise_key(&self) -> [i32; 3] {
        [self.seed as u32 as i32, (self.seed >> 32) as u32 as i32, self.step as u32 as i32]
    }

    /// Gradients of scores and weights, their norm, and the update. Returns the norm.
    fn update(&mut self, session: &mut Session) -> Result<f64> {
        let nothing = Extents::default();
        let (program, id) = (self.programs.update.clone(), self.update);
        let penalty = self.lambda() / session.model().layout().masked().count().max(1) as f64;
        let hyper = self.recipe.hyper(self.step, self.size.total_steps);
        let scores = Recipe {
            learning_rate: self.options.score_learning_rate,
            weight_decay: 0.0,
            ..self.recipe.clone()
        };
        let key = self.noise_key();
        let executor = session.executor();
        executor.write_wide(id, find(&program, "penalty"), &[penalty])?;
        executor.write_wide(id, find(&program, "hyper"), &hyper)?;
        if let Some(slot) = program.find("score hyper") {
            executor.write_wide(id, slot, &scores.hyper(self.step, self.size.total_steps))?;
        }
        if let Some(slot) = program.find("key") {
            executor.write_ints(id, slot, &key)?;
        }
        executor.run_range(id, 0..2, &nothing)?;
        executor.read(id, find(&program, "norm"), &nothing, &mut self.values)?;
        let norm = f64::from(self.values[0]);
        if !norm.is_finite() {
            // Found before the update, so scores and weights are still those of the last good step.
            let place = format!("at training step {}; nothing was changed by it", self.step + 1);
            return Err(Error::NotFinite { what: "the gradient norm".into(), value: norm, place });
        }
        executor.run_range(id, 2..program.ops().len(), &nothing)?;
        Ok(norm)
    }
}

impl Stepper for MaskedTrainer {
    fn step(&self) -> u64 {
        self.step
    }

    fn draw(&self) -> u64 {
        self.draw
    }

    fn seek(&mut self, step: u64, draw: u64) {
        (self.step, self.draw) = (step, draw);
    }

    fn blocks(&self) -> &'static [(&'static str, Block)] {
        const PARAMETERS: (&str, Block) = ("parameters", Block::Parameters);
        const MOMENTS: [(&str, Block); 2] =
            [("first_moment", Block::FirstMoment), ("second_moment", Block::SecondMoment)];
        const WEIGHTS: (&str, Block) = ("weights", Block::Weights);
        const SCORES: [(&str, Block); 3] = [
            ("scores", Block::Scores),
            ("score_first_moment", Block::ScoreFirstMoment),
            ("score_second_moment", Block::ScoreSecondMoment),
        ];
        // Frozen weights are the model's own: they come with it.
        match (self.options.trains_weights(), self.options.has_scores()) {
            (true, true) => &[PARAMETERS, MOMENTS[0], MOMENTS[1], WEIGHTS, SCORES[0], SCORES[1], SCORES[2]],
            (true, false) => &[PARAMETERS, MOMENTS[0], MOMENTS[1], WEIGHTS],
            (false, _) => &[PARAMETERS, MOMENTS[0], MOMENTS[1], SCORES[0], SCORES[1], SCORES[2]],
        }
    }

    fn run(&mut self, session: &mut Session, data: &Dataset, step: &Step) -> Result<StepReport> {
        let total = fill_step(&mut self.totals, data, step)?;
        let budget = self.budget(session)?;
        self.mask(session, self.masks, false, &budget)?;
        session.executor().run(self.zero, &Extents::default())?;
        let mut loss = 0.0;
        for index in 0..step.micro_batches.len() {
            std::mem::swap(&mut self.batch, &mut self.totals[index]);
            let of_step = (step, total);
            let extents = self.objective.feed(session, &self.train, data, &self.batch, of_step, self.draw)?;
            session.write_dropout_key(&self.train, self.seed, self.draw)?;
            self.draw += 1;
            session.run(&self.train, &extents)?;
            let place = || format!("at training step {}", self.step + 1);
            loss += self.objective.loss(session, &self.train, &self.batch, total, &extents, place)?;
        }
        let gradient_norm = self.update(session)?;
        let learning_rate = self.recipe.learning_rate_at(self.step, self.size.total_steps);
        self.step += 1;
        Ok(StepReport { loss, gradient_norm, learning_rate })
    }

    fn begin_epoch(
        &mut self,
        session: &mut Session,
        data: &Dataset,
        epoch: u64,
        folder: Option<&Path>,
        progress: &Progress,
    ) -> Result<()> {
        if self.objective.contrast().is_none() {
            return Ok(());
        }
        self.settle(session)?;
        match self.objective.contrast() {
            Some(contrast) => contrast.begin_epoch(session, data, epoch, folder, progress),
            None => Ok(()),
        }
    }

    fn restore(&mut self, folder: &Path, place: Cursor) -> Result<()> {
        self.objective.contrast().map_or(Ok(()), |contrast| contrast.restore(folder, place))
    }

    fn held_bytes(&mut self) -> Option<(&'static str, usize)> {
        self.objective.held_bytes(self.size.epochs())
    }

    fn settle(&mut self, session: &mut Session) -> Result<()> {
        let over = self.plan.value(self.options.schedule_step(self.step)) == self.plan.schedule().last;
        let budget = match self.options.snap && (over || self.step == self.size.total_steps) {
            true => self.plan.exactly(self.options.keep),
            false => self.budget(session)?,
        };
        self.mask(session, self.settled, true, &budget)
    }

    fn may_be_best(&self) -> bool {
        let distance = self.plan.value(self.options.schedule_step(self.step)) - self.plan.schedule().last;
        // SMP's code takes the best from 0.01 above the final fraction on.
        let early = (self.options.method, self.options.profile) == (Method::Smp, Profile::Authors);
        distance.abs() <= if early { 0.01 } else { 0.0 }
    }

    fn detail(&self) -> String {
        let kept = self.kept.map_or(String::new(), |kept| format!(", kept {:.2} %", 100.0 * kept));
        match self.options.lambda {
            0.0 => kept,
            _ => format!("{kept}, λ {:.1}", self.lambda()),
        }
    }

    fn identity(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{:?}", self.options).as_bytes());
        hash.update(self.objective.identity().as_bytes());
        hash.finalize().to_hex().to_string()
    }
}

/// Sets the underlying weights to the model's, and the scores to their start; padding scores to −∞.
fn begin(session: &mut Session, layout: &ParameterLayout, options: &Options) -> Result<()> {
    let stretch = Block::Weights.stretch(layout);
    let executor = session.executor();
    let parameters = executor.read_block(Block::Parameters)?;
    executor.write_block(Block::Weights, &parameters[stretch.clone()])?;
    drop(parameters);
    if !options.has_scores() {
        return Ok(());
    }
    let mut scores = vec![0.0f32; stretch.len()];
    for parameter in layout.masked() {
        let first = parameter.offset - stretch.start;
        for row in scores[first..first + parameter.span()].chunks_mut(parameter.ld()) {
            row[..parameter.cols].fill(options.initial_score as f32);
            row[parameter.cols..].fill(f32::NEG_INFINITY);
        }
    }
    executor.write_block(Block::Scores, &scores)
}

/// Takes the model back: trained weights multiplied by their masks, frozen ones as they were.
pub fn into_model(mut session: Session) -> Result<Model> {
    let layout = session.model().layout().clone();
    let frozen = match layout.trains_masked() {
        true => None,
        false => Some(session.executor().read_block(Block::Weights)?),
    };
    let mut model = session.into_model()?;
    if let Some(weights) = frozen {
        let start = Block::Weights.stretch(&layout).start;
        for parameter in layout.masked() {
            let range = parameter.range();
            model.values[range.clone()].copy_from_slice(&weights[range.start - start..range.end - start]);
        }
    }
    Ok(model)
}

/// The masks that the session's executor applied last.
pub fn weight_masks(session: &mut Session) -> Result<WeightMasks> {
    let words = session.executor().read_masks()?;
    Ok(masks_of(&session.model().architecture, &words))
}

/// The bits of a masked stretch as masks of matrices.
fn masks_of(architecture: &Architecture, words: &[u64]) -> WeightMasks {
    let layout = &architecture.layout;
    let start = Block::Scores.stretch(layout).start;
    let mask = |parameter: &Parameter| {
        let first = parameter.offset - start;
        let id = layout.find(&parameter.name).unwrap_or_else(|| panic!("{} is a parameter", parameter.name));
        let bit = |i: usize| {
            let at = first + i / parameter.cols * parameter.ld() + i % parameter.cols;
            words[at / 64] >> (at % 64) & 1 == 1
        };
        WeightMask::from_fn(architecture.mask_name(id), parameter.rows, parameter.cols, bit)
    };
    WeightMasks { matrices: layout.masked().map(mask).collect() }
}
