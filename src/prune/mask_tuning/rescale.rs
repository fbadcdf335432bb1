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
//! The student is the compact model, so its features are those of kept units alone. A sublayer costs one pass of the
//! teacher's and one of the student's, of which the projection comes after the solve: features are kept for it as far as
//! they fit [`FEATURE_BYTES`], and computed again beyond that (always on a GPU, where that is faster than moving them).

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
        let system = System::new(&normal, &weight, group, attention);
        let (scales, solved) = system.tune(options, place)?;
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
    options: &'a RescaleOptions,
    /// `None` where nothing is masked.
    teacher_masks: Option<&'a UnitMasks>,
    /// Found so far.
    masks: UnitMasks,
    teacher: Session,
    student: Session,
    batches: Vec<Batch>,
    capacity: Extents,
    /// `[T, d]` of each batch.
    teacher_hidden: Vec<Vec<f32>>,
    student_hidden: Vec<Vec<f32>>,
    /// Features of the sublayer being solved, of the batches whose were kept.
    features: Vec<Option<Vec<f32>>>,
    feature_bytes: usize,
}

impl<'a> Pass<'a> {
    fn start(
        job: &'a Job<'a>,
        student: &UnitMasks,
        teacher: &'a UnitMasks,
        options: &'a RescaleOptions,
    ) -> Result<Pass<'a>> {
        // Normal equations of activations rounded to bf16 would be those of another model.
        let device = match job.device {
            Device::Reference => Device::Reference,
            device => device.for_similarities(),
        };
        let compact = job.model.compact(student, EmptySublayers::KeepBias)?;
        let mut teacher_session = Session::of(job.model, device)?;
        let student_session = Session::new(compact, device)?;
        let Stream { batches, hidden, capacity, .. } =
            Stream::start(&mut teacher_session, job.examples, TOKEN_BUDGET)?;
        let config = job.model.config();
        let widest = config.layers.iter().map(|layer| layer.neurons.max(layer.heads * config.head_dim)).max();
        let widest = widest.unwrap_or(0);
        let on_host = matches!(device, Device::Cpu | Device::Reference);
        let feature_bytes = if on_host { FEATURE_BYTES } else { 0 };
        let tokens: usize = hidden.iter().map(|batch| batch.len() / config.hidden).sum();
        let mut memory = MemoryPlan::begin();
        memory.add("hidden states of the student", 4 * tokens * config.hidden);
        memory.add("features", feature_bytes.min(4 * tokens * widest));
        // Each of the two models' programs of one sublayer: inputs, query to context or activation, sums and outputs.
        memory.add("activations and inputs", 2 * 4 * capacity.tokens * (2 * widest + 8 * config.hidden));
        memory.add("normal equations", 8 * widest * (3 * widest + 2 * config.hidden));
        job.progress.plan_memory(&memory);
        Ok(Pass {
            job,
            options,
            teacher_masks: (*teacher != UnitMasks::ones(&config.widths())).then_some(teacher),
            masks: student.clone(),
            teacher: teacher_session,
            student: student_session,
            features: vec![None; batches.len()],
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
        let teacher = self.teacher_parts(sublayer, false)?;
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
        let teacher = self.teacher_parts(sublayer, true)?;
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
            for (target, residual) in target.chunks_mut(hidden_size).zip(residual.chunks(hidden_size)) {
                for column in 0..hidden_size {
                    target[column] -= bias.get(column).copied().unwrap_or(0.0) + residual[column];
                }
            }
            student.write_target(&mut self.student, &target, hidden_size)?;
            let extents = student.run(&mut self.student, batch, &self.student_hidden[index], &rows)?;
            student.add_normal(&mut self.student, &mut normal, &extents, &target)?;
            let bytes = 4 * extents.tokens * normal.columns;
            if !last && kept_bytes + bytes <= self.feature_bytes {
                kept_bytes += bytes;
                let mut values = Vec::new();
                student.read_features(&mut self.student, &extents, &mut values)?;
                self.features[index] = Some(values);
            }
        }
        teacher.forget(&mut self.teacher)?;
        student.forget(&mut self.student)?;
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
                for row in features.chunks_mut(by_feature.len().max(1)) {
                    row.iter_mut().zip(&by_feature).for_each(|(value, scale)| *value *= scale);
                }
                emitted.write_features(&mut self.student, &features)?;
            }
            let extents = emitted.run(&mut self.student, batch, &self.student_hidden[index], &[])?;
            emitted.read_output(&mut self.student, &extents, &mut self.student_hidden[index])?;
        }
        match first {
            Some(first) => first.forget(&mut self.student),
            None => Ok(()),
        }
    }

    /// The teacher's program of a sublayer, for its output and, where wanted, for the target.
    fn teacher_parts(&mut self, sublayer: usize, target: bool) -> Result<Emitted> {
        let (layer, attention) = (sublayer / 2, sublayer.is_multiple_of(2));
        let mask = self.teacher_masks.map(|masks| {
            if attention { masks.heads[layer].as_slice() } else { masks.neurons[layer].as_slice() }
        });
        // Where nothing is masked, there is no mask to write and no rest to add.
        let mask = mask.filter(|mask| mask.iter().any(|value| *value != 1.0));
        let unmasked_target = target && self.options.own_ffn_unmasked && !attention && mask.is_some();
        let parts = Parts {
            mask: mask.is_some(),
            rest: unmasked_target,
            target,
            output: !self.is_last(sublayer),
            answers_only: self.answers_only(sublayer),
            ..Parts::default()
        };
        let emitted = Emitted::prepare(&mut self.teacher, sublayer, self.capacity, parts)?;
        if let Some(mask) = mask {
            emitted.write_mask(&mut self.teacher, mask)?;
        }
        Ok(emitted)
    }

    /// Bias of the output projection; empty where it has none.
    fn projection_bias(&self, sublayer: usize) -> Vec<f32> {
        let model = self.job.model;
        let bias = projection(model, sublayer).and_then(|projection| projection.bias);
        bias.map_or(Vec::new(), |bias| {
            let parameter = model.layout().get(bias);
            model.values[parameter.offset..parameter.offset + parameter.cols].to_vec()
        })
    }
}
