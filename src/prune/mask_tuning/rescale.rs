//! Rescaling: real-valued masks that bring every sublayer of the pruned model near that of a teacher.
//!
//! Teacher and student move up side by side, one sublayer at a time, each on its own hidden states. The target of a sublayer
//! is what would make the student's residual stream the teacher's, both before LayerNorm:
//! B = teacher's sum − projection bias − student's residual. Scales found for a sublayer hold for everything above it.
//!
//! Of the published procedure these hold: the heads of layer 0 are not tuned; in sequence tasks the last feed-forward
//! network is fitted at the tokens that answer for their rows, since no other is looked at; a teacher's feed-forward
//! network is its own target without its own neuron mask ([`RescaleOptions::own_ffn_unmasked`]). For language models all
//! tokens count.
//!
//! Teacher and student are compact models, so that what their masks remove is not computed. The neurons that the teacher's
//! own target counts and its masks remove are a third, which adds them to the teacher's sum. A sublayer costs one pass of the
//! teacher's and one of the student's, of which the projection comes after the solve: features are kept for it as far as
//! they fit [`FEATURE_BYTES`], and computed again beyond that (always on a GPU, where that is faster than moving them).

use std::time::Instant;

use rayon::prelude::*;

use super::emitted::{Emitted, Parts};
use super::normal::NormalEquations;
use super::options::RescaleOptions;
use super::system::{SublayerTrace, System};
use crate::data::Batch;
use crate::error::Result;
use crate::memory::MemoryPlan;
use crate::model::parameters::SublayerParameters;
use crate::model::{EmptySublayers, Head, Model, answer_rows};
use crate::program::{Extents, Linear, WeightOrder};
use crate::prune::lsmr::LsmrStop;
use crate::prune::stream::Stream;
use crate::prune::{Job, UnitMasks};
use crate::session::{Device, Session};

/// Tokens of a batch: enough for full-speed products, few enough for f32 sums over them.
const TOKEN_BUDGET: usize = 2048;

/// Features of one sublayer kept between its solve and its projection, at most.
pub const FEATURE_BYTES: usize = 1 << 30;

/// Rows of an element-wise loop that are worth a second thread.
const ROWS: usize = 32;

/// Real-valued masks and how they were found.
#[derive(Clone, Debug, PartialEq)]
pub struct Rescaled {
    /// The student's masks times the accepted scales.
    pub masks: UnitMasks,
    /// Sublayers in the order of solving.
    pub trace: Vec<SublayerTrace>,
}

impl Rescaled {
    /// A sentence for each sublayer that was left as it was.
    pub fn notes(&self) -> Vec<String> {
        let rejected = self.trace.iter().filter(|solved| !solved.accepted);
        let sentence = |solved: &SublayerTrace| {
            format!(
                "the {} of layer {} were not rescaled: the solver stopped with code {} after {} iterations, scales \
                 {:.2} to {:.2}",
                solved.kind,
                solved.layer,
                solved.stop.code(),
                solved.iterations,
                solved.smallest,
                solved.largest
            )
        };
        rejected.map(sentence).collect()
    }
}

/// Tunes the masks of `student` (units masked with 0 stay pruned) towards the model under `teacher`. Labels are not looked
/// at. Fails where masks do not fit the model, and where activations are not finite.
pub fn rescale(
    job: &Job,
    student: &UnitMasks,
    teacher: &UnitMasks,
    options: &RescaleOptions,
) -> Result<Rescaled> {
    rescale_observed(job, student, teacher, options, |_, _| {})
}

/// [`rescale`], showing every system with what came of it.
pub fn rescale_observed(
    job: &Job,
    student: &UnitMasks,
    teacher: &UnitMasks,
    options: &RescaleOptions,
    mut observe: impl FnMut(&System, &SublayerTrace),
) -> Result<Rescaled> {
    let widths = job.model.config().widths();
    student.check_widths(&widths)?;
    teacher.check_widths(&widths)?;
    let mut pass = Pass::start(job, student, teacher, options)?;
    let sublayers = 2 * widths.len();
    let mut stage = job.progress.stage("rescaling", sublayers as u64, "sublayers");
    let mut trace = Vec::new();
    let (kept_heads, kept_neurons) = student.kept();
    for sublayer in 0..sublayers {
        job.progress.check(|| "rescaling was not finished; nothing was written".into())?;
        let (layer, attention) = (sublayer / 2, sublayer.is_multiple_of(2));
        let kept = if attention { &kept_heads[layer] } else { &kept_neurons[layer] };
        let tuned = if attention { options.heads && layer > 0 } else { options.neurons };
        if !tuned || kept.is_empty() {
            pass.advance(sublayer)?;
            stage.advance(1);
            continue;
        }
        let (normal, place) = pass.collect(sublayer)?;
        let group = if attention { job.model.config().head_dim } else { 1 };
        let mask = if attention { &mut pass.masks.heads[layer] } else { &mut pass.masks.neurons[layer] };
        let weight = projection_rows(job.model, sublayer, mask, kept, group);
        let start = Instant::now();
        let system = System::new(&normal, &weight, group, attention);
        let (scales, solved) = system.tune(options, place)?;
        // A part of the stage that does not grow with the rows.
        job.progress.record_seconds("rescaling / solving", start.elapsed().as_secs_f64());
        observe(&system, &solved);
        if let Some(scales) = &scales {
            kept.iter()
                .zip(scales)
                .for_each(|(&unit, scale)| mask[unit] = (f64::from(mask[unit]) * scale) as f32);
        }
        trace.push(solved);
        if scales.is_none() && options.on_reject == super::OnReject::Break {
            break;
        }
        pass.project(sublayer, scales.as_deref())?;
        stage.advance(1);
    }
    Ok(Rescaled { masks: pass.masks, trace })
}

/// Masks of what `masks` take from neurons, without heads; `None` where they take nothing.
fn lacking_neurons(masks: &UnitMasks) -> Option<UnitMasks> {
    let of = |layers: &[Vec<f32>], value: fn(f32) -> f32| -> Vec<Vec<f32>> {
        layers.iter().map(|layer| layer.iter().map(|&mask| value(mask)).collect()).collect()
    };
    let neurons = of(&masks.neurons, |mask| 1.0 - mask);
    let any = neurons.iter().flatten().any(|mask| *mask != 0.0);
    any.then(|| UnitMasks { heads: of(&masks.heads, |_| 0.0), neurons })
}

/// Rows `[kept · group, d]` of the output projection of a sublayer, times the masks of their units.
fn projection_rows(model: &Model, sublayer: usize, mask: &[f32], kept: &[usize], group: usize) -> Vec<f64> {
    let Some(Linear { weight, order, .. }) = projection(model, sublayer) else { return Vec::new() };
    let parameter = model.layout().get(weight);
    let at = |row: usize, column: usize| model.values[parameter.offset + row * parameter.ld() + column];
    let hidden = model.config().hidden;
    let mut rows = Vec::with_capacity(kept.len() * group * hidden);
    for &unit in kept {
        for feature in unit * group..(unit + 1) * group {
            rows.extend((0..hidden).map(|column| {
                let value = match order {
                    WeightOrder::OutIn => at(column, feature),
                    WeightOrder::InOut => at(feature, column),
                };
                f64::from(value) * f64::from(mask[unit])
            }));
        }
    }
    rows
}

fn projection(model: &Model, sublayer: usize) -> Option<Linear> {
    let layer = &model.architecture.parameters.layers[sublayer / 2];
    match (sublayer % 2, layer.attention, layer.ffn) {
        (0, SublayerParameters::Full(attention), _) => Some(attention.output),
        (1, _, SublayerParameters::Full(ffn)) => Some(ffn.down),
        _ => None,
    }
}

/// Teacher and student on their way up.
struct Pass<'a> {
    job: &'a Job<'a>,
    /// Found so far.
    masks: UnitMasks,
    teacher: Session,
    /// The neurons that the teacher lacks, where its own target counts them.
    rest: Option<Session>,
    student: Session,
    batches: Vec<Batch>,
    capacity: Extents,
    /// `[T, d]` of each batch.
    teacher_hidden: Vec<Vec<f32>>,
    student_hidden: Vec<Vec<f32>>,
    /// Features of the sublayer being solved, of the batches whose were kept.
    features: Vec<Option<Vec<f32>>>,
    feature_bytes: usize,
    /// Whether the features of every sublayer can be kept.
    all_fit: bool,
    /// Memory of features that are no longer needed, for those of the next sublayer: fresh memory is dear. Empty where not
    /// all fit, since together they could then take twice the limit.
    spare: Vec<Vec<f32>>,
}

impl<'a> Pass<'a> {
    fn start(
        job: &'a Job<'a>,
        student: &UnitMasks,
        teacher: &UnitMasks,
        options: &RescaleOptions,
    ) -> Result<Pass<'a>> {
        // Normal equations of activations rounded to bf16 would be those of another model.
        let device = match job.device {
            Device::Reference => Device::Reference,
            device => device.for_similarities(),
        };
        let compact =
            |masks: &UnitMasks| Session::new(job.model.compact(masks, EmptySublayers::KeepBias)?, device);
        let config = job.model.config();
        let mut teacher_session = match *teacher == UnitMasks::ones(&config.widths()) {
            true => Session::of(job.model, device)?,
            false => compact(teacher)?,
        };
        let lacking = lacking_neurons(teacher).filter(|_| options.own_ffn_unmasked);
        let rest = lacking.as_ref().map(compact).transpose()?;
        let student_session = compact(student)?;
        let Stream { batches, hidden, capacity, .. } =
            Stream::start(&mut teacher_session, job.examples, TOKEN_BUDGET)?;
        let widest = config.layers.iter().map(|layer| layer.neurons.max(layer.heads * config.head_dim)).max();
        let widest = widest.unwrap_or(0);
        let on_host = matches!(device, Device::Cpu | Device::CpuBf16 | Device::Reference);
        let feature_bytes = if on_host { FEATURE_BYTES } else { 0 };
        let tokens: usize = hidden.iter().map(|batch| batch.len() / config.hidden).sum();
        let mut memory = MemoryPlan::begin();
        memory.add("hidden states of the student", 4 * tokens * config.hidden);
        memory.add("features", feature_bytes.min(4 * tokens * widest));
        // Each of the models' programs of one sublayer: inputs, query to context or activation, sums and outputs.
        let models = 2 + usize::from(rest.is_some());
        memory.add("activations and inputs", models * 4 * capacity.tokens * (2 * widest + 8 * config.hidden));
        memory.add("normal equations", 8 * widest * (3 * widest + 2 * config.hidden));
        job.progress.plan_memory(&memory);
        Ok(Pass {
            job,
            masks: student.clone(),
            teacher: teacher_session,
            rest,
            student: student_session,
            features: vec![None; batches.len()],
            all_fit: 4 * tokens * widest <= feature_bytes,
            spare: Vec::new(),
            batches,
            capacity,
            student_hidden: hidden.clone(),
            teacher_hidden: hidden,
            feature_bytes,
        })
    }

    fn is_last(&self, sublayer: usize) -> bool {
        sublayer + 1 == 2 * self.job.model.config().layers.len()
    }

    /// Whether only the tokens that answer for their rows matter at this sublayer.
    fn answers_only(&self, sublayer: usize) -> bool {
        let head = self.job.model.architecture.head;
        self.is_last(sublayer) && matches!(head, Head::Classification { .. } | Head::Regression)
    }

    /// Both models through a sublayer that is not tuned.
    fn advance(&mut self, sublayer: usize) -> Result<()> {
        if self.is_last(sublayer) {
            return Ok(());
        }
        let parts = Parts { output: true, ..Parts::default() };
        let teacher = Emitted::prepare(&mut self.teacher, sublayer, self.capacity, parts)?;
        for (batch, hidden) in self.batches.iter().zip(&mut self.teacher_hidden) {
            let extents = teacher.run(&mut self.teacher, batch, hidden, &[])?;
            teacher.read_output(&mut self.teacher, &extents, hidden)?;
        }
        teacher.forget(&mut self.teacher)?;
        self.project(sublayer, None)
    }

    /// The teacher through a sublayer and the student up to its features; what is to be solved, and where.
    fn collect(&mut self, sublayer: usize) -> Result<(NormalEquations, SublayerTrace)> {
        let (last, answers_only) = (self.is_last(sublayer), self.answers_only(sublayer));
        let config = self.job.model.config();
        let hidden_size = config.hidden;
        let bias = self.projection_bias(sublayer);
        let parts = Parts { target: true, output: !last, answers_only, ..Parts::default() };
        let teacher = Emitted::prepare(&mut self.teacher, sublayer, self.capacity, parts)?;
        let rest = self.rest_parts(sublayer)?;
        let student = Emitted::prepare(
            &mut self.student,
            sublayer,
            self.capacity,
            Parts { answers_only, normal: true, ..Parts::default() },
        )?;
        let mut normal = NormalEquations::new(student.feature_columns(&mut self.student), hidden_size);
        let mut kept_bytes = 0;
        let (mut rows, mut target, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for (index, batch) in self.batches.iter().enumerate() {
            if answers_only {
                answer_rows(config, &batch.cu_seqlens, &mut rows)?;
            }
            let extents = teacher.run(&mut self.teacher, batch, &self.teacher_hidden[index], &rows)?;
            teacher.read_target(&mut self.teacher, &extents, &mut target)?;
            if let (Some(rest), Some(session)) = (&rest, &mut self.rest) {
                rest.write_sum(session, &target)?;
                let extents = rest.run(session, batch, &self.teacher_hidden[index], &rows)?;
                rest.read_target(session, &extents, &mut target)?;
            }
            if !last {
                teacher.read_output(&mut self.teacher, &extents, &mut self.teacher_hidden[index])?;
            }
            let residual = &self.student_hidden[index];
            let residual = if answers_only {
                own.clear();
                rows.iter().for_each(|&row| {
                    own.extend_from_slice(&residual[row as usize * hidden_size..][..hidden_size]);
                });
                &own
            } else {
                residual
            };
            let rows_of_target = target.par_chunks_mut(hidden_size).zip(residual.par_chunks(hidden_size));
            rows_of_target.with_min_len(ROWS).for_each(|(target, residual)| {
                let known = bias.iter().zip(residual);
                target
                    .iter_mut()
                    .zip(known)
                    .for_each(|(target, (bias, residual))| *target -= bias + residual);
            });
            student.write_target(&mut self.student, &target, hidden_size)?;
            let extents = student.run(&mut self.student, batch, &self.student_hidden[index], &rows)?;
            student.add_normal(&mut self.student, &mut normal, &extents, &target)?;
            let bytes = 4 * extents.tokens * normal.columns;
            if !last && kept_bytes + bytes <= self.feature_bytes {
                kept_bytes += bytes;
                let mut values = self.spare.pop().unwrap_or_default();
                student.read_features(&mut self.student, &extents, &mut values)?;
                self.features[index] = Some(values);
            }
        }
        self.spare.clear();
        teacher.forget(&mut self.teacher)?;
        student.forget(&mut self.student)?;
        if let (Some(rest), Some(session)) = (&rest, &mut self.rest) {
            rest.forget(session)?;
        }
        let trace = SublayerTrace {
            layer: sublayer / 2,
            kind: if sublayer.is_multiple_of(2) { "heads" } else { "neurons" }.into(),
            size: 0,
            rows: normal.rows,
            answer_rows_only: answers_only,
            damp: 0.0,
            stop: LsmrStop::Zero,
            iterations: 0,
            smallest: 1.0,
            largest: 1.0,
            accepted: false,
            error_before: 0.0,
            error_after: 0.0,
        };
        Ok((normal, trace))
    }

    /// The student's hidden states above a sublayer whose units are scaled by `scales`.
    fn project(&mut self, sublayer: usize, scales: Option<&[f64]>) -> Result<()> {
        if self.is_last(sublayer) {
            return Ok(());
        }
        let config = self.student.model().config();
        let group = if sublayer.is_multiple_of(2) { config.head_dim } else { 1 };
        let scales: Option<Vec<f32>> =
            scales.map(|scales| scales.iter().map(|&scale| scale as f32).collect());
        let by_feature: Vec<f32> =
            scales.iter().flatten().flat_map(|&scale| std::iter::repeat_n(scale, group)).collect();
        let mut first = None;
        let (mut from_features, mut from_hidden) = (None, None);
        for index in 0..self.batches.len() {
            let batch = &self.batches[index];
            let features = self.features[index].take();
            let emitted = if features.is_some() { &mut from_features } else { &mut from_hidden };
            if emitted.is_none() {
                let mask = scales.is_some() && features.is_none();
                let parts =
                    Parts { mask, features_given: features.is_some(), output: true, ..Parts::default() };
                let prepared = Emitted::prepare(&mut self.student, sublayer, self.capacity, parts)?;
                if let Some(scales) = scales.as_ref().filter(|_| mask) {
                    prepared.write_mask(&mut self.student, scales)?;
                }
                first.get_or_insert_with(|| prepared.clone());
                *emitted = Some(prepared);
            }
            let Some(emitted) = emitted else { continue };
            if let Some(mut features) = features {
                if !by_feature.is_empty() {
                    features.par_chunks_mut(by_feature.len()).with_min_len(ROWS).for_each(|row| {
                        row.iter_mut().zip(&by_feature).for_each(|(value, scale)| *value *= scale);
                    });
                }
                emitted.write_features(&mut self.student, &features)?;
                if self.all_fit {
                    self.spare.push(features);
                }
            }
            let extents = emitted.run(&mut self.student, batch, &self.student_hidden[index], &[])?;
            emitted.read_output(&mut self.student, &extents, &mut self.student_hidden[index])?;
        }
        match first {
            Some(first) => first.forget(&mut self.student),
            None => Ok(()),
        }
    }

    /// The program that adds to the teacher's sum of a sublayer the neurons that it lacks, if there are any.
    fn rest_parts(&mut self, sublayer: usize) -> Result<Option<Emitted>> {
        let answers_only = self.answers_only(sublayer);
        let Some(session) = &mut self.rest else { return Ok(None) };
        if sublayer.is_multiple_of(2) || session.model().config().layers[sublayer / 2].neurons == 0 {
            return Ok(None);
        }
        let parts = Parts { sum_given: true, target: true, answers_only, ..Parts::default() };
        Emitted::prepare(session, sublayer, self.capacity, parts).map(Some)
    }

    /// Bias of the output projection; zeros where it has none.
    fn projection_bias(&self, sublayer: usize) -> Vec<f32> {
        let model = self.job.model;
        let bias = projection(model, sublayer).and_then(|projection| projection.bias);
        bias.map_or(vec![0.0; model.config().hidden], |bias| {
            let parameter = model.layout().get(bias);
            model.values[parameter.offset..parameter.offset + parameter.cols].to_vec()
        })
    }
}
