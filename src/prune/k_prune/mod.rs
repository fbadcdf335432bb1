//! K-prune (Park, Choi and Kang, ICLR 2024): pruning of a fine-tuned model without retraining, sublayer by sublayer.
//!
//! ```text
//! for each sublayer from the bottom:
//!   measure  knowledge of its units and of all above, on the model as pruned so far     measure
//!   search   a threshold for all of them; prune this sublayer alone                      search
//!   tune     its output projection to the teacher's residual sum; move up                tune, student
//! ```
//!
//! What is kept true:
//! - **Nothing below the target is computed.** The hidden states at its boundary are kept for every row, the student's and
//!   the teacher's; a measurement starts there, and what it differentiates ends there. Sublayers at and above the target still
//!   have the dense model's weights, so one copy of the model on the device serves every budget.
//! - **Budgets walk up together**: the teacher's predictions, its residual sums and the measurements of students that still
//!   are the teacher (the first sublayer's always) are computed once for all.
//! - **The budget holds** (for every search rule, to rounding): what is chosen at a sublayer fits together with something
//!   above it, and is taken off the budget.
//! - Memory grows with tokens · hidden size · (budgets + 4), not with the number of layers: the teacher walks up beside the
//!   students instead of leaving all its residual sums in memory. Of a language model the teacher's last hidden states are
//!   kept, and its logits are computed again for each piece of a batch.
//!
//! For pre-LayerNorm models the target of tuning is the residual stream after the sublayer: the same sum, before no
//! LayerNorm. A language model's predictive loss is the mean over the tokens that a mini-batch predicts.
//!
//! [`Options::authors`] is the released code (snudm-starlab/K-prune), [`Options::paper`] the text, [`Options::default`] the
//! text with what it leaves open decided for the user.

mod measure;
mod options;
mod rows;
mod search;
mod student;
mod sublayer;
mod tune;

use std::ops::RangeInclusive;
use std::time::Instant;

pub use measure::{Wanted, program};
pub use options::{Emptied, Options, Regression, Search};
pub use search::{Choice, Scores, UnitCosts, search};
pub use student::{Step, Tuning};

use crate::error::{Error, Result};
use crate::memory::MemoryPlan;
use crate::model::EmptySublayers;
use crate::program::Plan;
use crate::prune::{CostModel, Job, Pruned, UnitMasks};
use crate::session::{Prepared, Session};

use measure::{Knowledge, Pass, Teacher, mean_squares};
use rows::Rows;
use student::{Student, Workshop};
use sublayer::Sublayer;
use tune::LeastSquares;

/// Operations of a multiply-add, and the unit in which scores count them.
const GIGA_OPERATIONS: f64 = 2e-9;

/// Relative slack of a budget that whole units must meet: the sums of a few thousand costs in f64.
const ROUNDING: f64 = 1e-12;

/// Fractions of multiply–accumulates that can be asked for: all, since every unit may go.
pub fn feasible(_cost: &CostModel, _options: &Options) -> RangeInclusive<f64> {
    0.0..=1.0
}

/// Prunes the job's model for each of its budgets. Labels are not looked at. Fails before anything is computed where the
/// options, a budget or the cost model cannot work, and on calibration rows that the model overflows on.
pub fn prune(job: &Job, options: &Options) -> Result<Vec<Pruned>> {
    prune_watched(job, options, |_, _, _| ())
}

/// [`prune`], with a look at every step: the budget's number, what was done to the sublayer, and the scores of the units it
/// and the sublayers above had.
pub fn prune_watched(
    job: &Job,
    options: &Options,
    mut watch: impl FnMut(usize, &Step, &Scores),
) -> Result<Vec<Pruned>> {
    check(job, options)?;
    let config = job.model.config();
    let sublayers = 2 * config.layers.len();
    let architecture = &job.model.architecture;
    program(architecture, options, 0, Wanted::Outputs)?;
    let widths: Vec<usize> =
        config.layers.iter().flat_map(|layer| [layer.heads * config.head_dim, layer.neurons]).collect();
    let costs =
        UnitCosts { head: GIGA_OPERATIONS * job.cost.head(), neuron: GIGA_OPERATIONS * job.cost.neuron() };
    let mean_squares = mean_squares(job.model);
    let rows = Rows::new(job, options.batch_tokens)?;

    let mut memory = MemoryPlan::begin();
    let session = Session::of(job.model, job.device)?;
    let least_squares = LeastSquares::new(job.device, rows.capacity, config.hidden)?;
    let progress = job.progress;
    let mut shop = Workshop { model: job.model, options, rows: &rows, session, least_squares, progress };

    let ones = UnitMasks::ones(&job.cost.layers);
    // The first program embeds the tokens itself.
    let nothing = vec![Vec::new(); rows.batches.len()];
    let mut below = nothing.clone();
    let mut students: Vec<Student> = (job.keep.iter())
        .map(|keep| Student::new(ones.clone(), keep * job.cost.total(), nothing.clone()))
        .collect();

    let mut teacher: Option<Teacher> = None;
    let mut stage = progress.stage("k-prune", (sublayers * students.len()) as u64, "sublayers");
    // Parts of the stage, which are too many to be stages of their own.
    let ended = |part: &str, start: Instant| {
        progress.record_seconds(&format!("k-prune / {part}"), start.elapsed().as_secs_f64());
        Instant::now()
    };
    for at in 0..sublayers {
        let start = Instant::now();
        let mut measurement = Measurement::new(at, &widths);
        if teacher.is_none() {
            teacher = Some(measurement.of_outputs(&mut shop)?);
            plan_memory(&mut memory, &shop, job, teacher.as_ref(), &widths)?;
        }
        let Some(teacher) = &teacher else { unreachable!("measured with the first sublayer") };
        let mut scores = Vec::with_capacity(students.len());
        for student in &students {
            let knowledge = measurement.of(&mut shop, student, teacher)?;
            let scored = knowledge.scores(&mean_squares, &rows, config.head_dim, costs, options);
            scores.push(scored);
        }
        let start = ended("measurement", start);

        let sublayer = Sublayer::prepare(&mut shop.session, at, rows.capacity)?;
        let mut sums = Vec::with_capacity(rows.batches.len());
        let mut above = Vec::with_capacity(rows.batches.len());
        sublayer.run(&mut shop.session, &rows, &ones, &below, progress, |ran| {
            sums.push(ran.sum()?);
            above.push(ran.output()?);
            Ok(())
        })?;
        below = above;
        let start = ended("teacher", start);

        for (index, (student, scores)) in students.iter_mut().zip(&scores).enumerate() {
            if widths[at] == 0 {
                student.pass(&mut shop, &sublayer)?;
            } else {
                let slack = if options.search == Search::Strict { 0.0 } else { ROUNDING * job.cost.total() };
                let budget = GIGA_OPERATIONS * (student.budget + slack);
                let choice = search(scores, at, costs, budget, options.search)?;
                let unit = costs.of(at) / GIGA_OPERATIONS;
                student.prune(&mut shop, &sublayer, at, choice, &sums, unit)?;
                watch(index, &student.steps[student.steps.len() - 1], scores);
            }
            stage.detail(format!("keep {}", job.keep[index]));
            stage.advance(1);
        }
        ended("search and tuning", start);
    }
    stage.finish();
    students.into_iter().zip(job.keep).map(|(student, &keep)| finish(job, options, student, keep)).collect()
}

/// What is measured at one sublayer, and shared by the students that still are the teacher.
struct Measurement<'a> {
    at: usize,
    widths: &'a [usize],
    /// Programs for [`Wanted::Outputs`] and [`Wanted::Gradients`].
    programs: [Option<Prepared>; 2],
    /// Of the pass that gave the teacher's answers.
    first: Option<Knowledge>,
    of_teacher: Option<Knowledge>,
}

impl<'a> Measurement<'a> {
    fn new(at: usize, widths: &'a [usize]) -> Measurement<'a> {
        Measurement { at, widths, programs: [None, None], first: None, of_teacher: None }
    }

    fn prepare(&mut self, shop: &mut Workshop, wanted: Wanted) -> Result<Prepared> {
        let known = &mut self.programs[wanted as usize];
        if let Some(prepared) = known {
            return Ok(prepared.clone());
        }
        let (mode, emitted) = program(&shop.model.architecture, shop.options, self.at, wanted)?;
        let prepared = shop.session.prepare(mode, &emitted, shop.rows.capacity)?;
        *known = Some(prepared.clone());
        Ok(prepared)
    }

    /// The teacher's answers; its representational knowledge comes with them.
    fn of_outputs(&mut self, shop: &mut Workshop) -> Result<Teacher> {
        let prepared = self.prepare(shop, Wanted::Outputs)?;
        let (rows, progress) = (shop.rows, shop.progress);
        let pass = Pass { rows, hidden: &[], from: self.at, widths: self.widths, progress };
        let (knowledge, teacher) = pass.outputs(&mut shop.session, &prepared, shop.options)?;
        self.first = Some(knowledge);
        Ok(teacher)
    }

    fn of(&mut self, shop: &mut Workshop, student: &Student, teacher: &Teacher) -> Result<Knowledge> {
        if let (true, Some(known)) = (student.untouched, &self.of_teacher) {
            return Ok(known.clone());
        }
        let head = shop.model.architecture.head;
        let flat = student.untouched && !Teacher::differs_from_itself(head, shop.options);
        let first = self.first.take();
        let knowledge = match first {
            Some(first) if flat => first,
            _ => {
                let wanted = if flat { Wanted::Outputs } else { Wanted::Gradients };
                let prepared = self.prepare(shop, wanted)?;
                let (rows, progress) = (shop.rows, shop.progress);
                let pass =
                    Pass { rows, hidden: &student.hidden, from: self.at, widths: self.widths, progress };
                match wanted {
                    Wanted::Outputs => pass.representational(&mut shop.session, &prepared)?,
                    Wanted::Gradients => pass.gradients(&mut shop.session, &prepared, teacher)?,
                }
            }
        };
        if student.untouched {
            self.of_teacher = Some(knowledge.clone());
        }
        Ok(knowledge)
    }
}

/// Fails on options, budgets and cost models that cannot work.
fn check(job: &Job, options: &Options) -> Result<()> {
    options.check()?;
    let range = feasible(job.cost, options);
    if job.keep.is_empty() {
        return Err(Error::usage("at least one keep fraction is needed"));
    }
    // Written so that NaN fails.
    if let Some(keep) = job.keep.iter().find(|keep| !range.contains(keep)) {
        let message = format!("K-prune keeps a fraction of {:?} of the FLOPs, not {keep}", range);
        return Err(Error::usage(message));
    }
    let config = job.model.config();
    let same = job.cost.hidden == config.hidden && job.cost.head_dim == config.head_dim;
    if !same || job.cost.layers != config.widths() {
        return Err(Error::shape("cost model", "was made for a model of another shape"));
    }
    Ok(())
}

/// Says what the whole run will hold at most.
fn plan_memory(
    memory: &mut MemoryPlan,
    shop: &Workshop,
    job: &Job,
    teacher: Option<&Teacher>,
    widths: &[usize],
) -> Result<()> {
    let hidden = shop.model.config().hidden;
    let budgets = job.keep.len();
    let held = shop.session.host_bytes();
    if held > 0 {
        // The largest program is the first that differentiates; all keep the inputs they were prepared with.
        let (mode, emitted) = program(&shop.model.architecture, shop.options, 0, Wanted::Gradients)?;
        let largest = shop.model.architecture.emit(mode, &emitted)?.program;
        let activations = Plan::new(&largest, shop.rows.capacity).bytes(4);
        let inputs = 4 * shop.rows.capacity.tokens * (hidden + 8) * 3 * widths.len();
        memory.add("the model, activations and inputs", held + activations + inputs);
    }
    // Of each student its own, of the teacher those below and above a sublayer and its sums, of a student on its way one more.
    memory.add("hidden states", 4 * shop.rows.tokens * hidden * (budgets + 4));
    memory.add("the teacher's answers", teacher.map_or(0, Teacher::bytes));
    let widest = widths.iter().copied().max().unwrap_or(0);
    memory.add("normal equations", LeastSquares::bytes(widest, hidden, shop.rows.capacity.tokens));
    memory.add("tuned parameters", 2 * 4 * budgets * shop.model.layout().block_len());
    job.progress.plan_memory(memory);
    Ok(())
}

fn finish(job: &Job, options: &Options, student: Student, keep: f64) -> Result<Pruned> {
    let mut pruned = Pruned::of_masks(student.masks, keep, job.cost)?;
    let emptied = student.steps.iter().any(|step| step.tuning == Tuning::Emptied);
    if emptied && options.emptied == Emptied::Remove {
        pruned.empty = EmptySublayers::Remove;
    }
    if !student.replaced.is_empty() {
        let mut values = job.model.values.clone();
        for (id, dense) in &student.replaced {
            let parameter = job.model.layout().get(*id);
            for (row, from) in dense.chunks(parameter.cols).enumerate() {
                values[parameter.offset + row * parameter.ld()..][..parameter.cols].copy_from_slice(from);
            }
        }
        pruned.values = Some(values);
    }
    for (tuning, what) in [
        (Tuning::Singular, "had no usable solution for their output projection"),
        (Tuning::NoBetter, "came no closer to the teacher with new weights"),
        (Tuning::Emptied, "lost all their units"),
    ] {
        let names: Vec<String> = student
            .steps
            .iter()
            .filter(|step| step.tuning == tuning)
            .map(|step| name(step.sublayer))
            .collect();
        if !names.is_empty() {
            let after = if tuning == Tuning::Emptied { "" } else { "; they keep the old ones" };
            pruned.notes.push(format!("sublayers that {what}: {}{after}", names.join(", ")));
        }
    }
    pruned.details = serde_json::json!({ "steps": student.steps });
    Ok(pruned)
}

fn name(sublayer: usize) -> String {
    format!("{} {}", if sublayer.is_multiple_of(2) { "attention" } else { "ffn" }, sublayer / 2)
}
