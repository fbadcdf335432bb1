//! Knowledge measurement: what the units of the target sublayer and of all above it know of the teacher's predictions and
//! contribute to its hidden states.
//!
//! With g_b[j] the gradient of mini-batch b's loss with respect to a mask of ones on dimension j of the input of an output
//! projection, h that input and W the projection:
//!
//! ```text
//! K_pred[j] = 1/rows   · Σ_b ½·g_b[j]²
//! K_rep[j]  = 1/tokens · Σ_t h[t, j]² · mean_c W[c, j]²
//! S_head    = μ·mean_j(λ_rep·K_rep + λ_pred·K_pred) / f_head         over the head's dimensions
//! S_neuron  =          (λ_rep·K_rep + λ_pred·K_pred) / f_neuron      f in units of 10⁹ operations, two a multiply-add
//! ```
//!
//! The loss is the mean over the mini-batch of T²·KL(teacher ‖ student), of the mean of that of start and end, or of the
//! squared distance to the teacher's output. A program starts with the target, from its cached input, and what it
//! differentiates ends there: nothing below the target is computed. Where the student is still the teacher its distillation
//! loss is at its minimum: K_pred is 0 and no gradient is computed at all.

use super::options::{Options, Regression};
use super::rows::{Rows, predictions};
use super::search::{Scores, UnitCosts};
use crate::error::{Error, Result};
use crate::model::parameters::SublayerParameters;
use crate::model::{Architecture, EmitOptions, Head, Logits, Model};
use crate::program::{Extents, Linear, Mode, SlotId, WeightOrder};
use crate::progress::Progress;
use crate::session::{Prepared, Session, Weighting};

/// What the program of a measurement gives beside the sums of squares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What the student is compared with: logits, or the last hidden states of a language model.
    Outputs,
    /// The gradients of the loss.
    Gradients,
}

/// Mode and options of the program that measures sublayers `from` and above. Fails for a model without a task head.
pub fn program(
    architecture: &Architecture,
    options: &Options,
    from: usize,
    wanted: Wanted,
) -> Result<(Mode, EmitOptions)> {
    let head = architecture.head;
    if head == Head::Backbone {
        return Err(Error::usage("K-prune compares predictions: the model needs a task head"));
    }
    let sublayers = Some(from..2 * architecture.config.layers.len());
    let emitted = EmitOptions { sublayers, knowledge: true, ..EmitOptions::default() };
    Ok(match wanted {
        Wanted::Outputs if head.is_language_model() => (Mode::EVALUATE, emitted),
        Wanted::Outputs => (Mode::EVALUATE, EmitOptions { logits: Logits::All, ..emitted }),
        Wanted::Gradients => {
            let mode = Mode { mask_gradients: true, ..Mode::EVALUATE };
            let emitted = match head {
                Head::Regression => EmitOptions { loss: true, ..emitted },
                _ => EmitOptions {
                    distillation: Some(options.temperature as f32),
                    teacher_hidden: head.is_language_model(),
                    ..emitted
                },
            };
            (mode, emitted)
        }
    })
}

/// Sums over all rows for every dimension of the inputs of the output projections, by sublayer; empty below the target.
#[derive(Clone, Debug)]
pub struct Knowledge {
    /// Σ_b ½·g_b².
    predictive: Vec<Vec<f64>>,
    /// Σ_t h².
    squares: Vec<Vec<f64>>,
}

impl Knowledge {
    fn zeros(widths: &[usize], from: usize) -> Knowledge {
        let zeros = || widths.iter().enumerate().map(|(s, &n)| vec![0.0; if s < from { 0 } else { n }]);
        Knowledge { predictive: zeros().collect(), squares: zeros().collect() }
    }

    /// Scores of all units; `mean_squares` as [`mean_squares`] gives them, costs in 10⁹ operations.
    pub fn scores(
        &self,
        mean_squares: &[Vec<f64>],
        rows: &Rows,
        head_dim: usize,
        costs: UnitCosts,
        options: &Options,
    ) -> Scores {
        let dimensions = |sublayer: usize| -> Vec<f64> {
            let both = self.predictive[sublayer].iter().zip(&self.squares[sublayer]);
            both.zip(&mean_squares[sublayer])
                .map(|((predictive, squares), weight)| {
                    options.lambda_pred * predictive / rows.rows as f64
                        + options.lambda_rep * squares * weight / rows.tokens as f64
                })
                .collect()
        };
        let mean = |head: &[f64]| head.iter().sum::<f64>() / head_dim as f64;
        let layers = 0..self.squares.len() / 2;
        let heads =
            |i| dimensions(2 * i).chunks(head_dim).map(|h| options.mu * mean(h) / costs.head).collect();
        let neurons = |i| dimensions(2 * i + 1).iter().map(|k| k / costs.neuron).collect();
        Scores { heads: layers.clone().map(heads).collect(), neurons: layers.map(neurons).collect() }
    }
}

/// What the teacher answers, batch by batch.
#[derive(Debug)]
pub enum Teacher {
    /// Logits of the rows or tokens that answer.
    Logits(Vec<Vec<f32>>),
    /// Hidden states above the last sublayer, `[T, d]`: a language model's logits would not fit.
    Hidden(Vec<Vec<f32>>),
    /// Values that a regression model's outputs are compared with.
    Targets(Vec<Vec<f32>>),
}

impl Teacher {
    /// Whether a student equal to the teacher has a gradient.
    pub fn differs_from_itself(head: Head, options: &Options) -> bool {
        head == Head::Regression && options.regression == Regression::Broadcast
    }

    fn of(head: Head, outputs: Vec<Vec<f32>>, rows: &Rows, options: &Options) -> Teacher {
        match head {
            Head::CausalLm | Head::MaskedLm => Teacher::Hidden(outputs),
            Head::Regression if options.regression == Regression::Broadcast => {
                let mut means = vec![0.0; rows.terms.len()];
                for (values, &mini) in outputs.iter().zip(&rows.mini_batch) {
                    means[mini] +=
                        values.iter().map(|v| f64::from(*v)).sum::<f64>() / rows.terms[mini] as f64;
                }
                let batches = outputs.iter().zip(&rows.mini_batch);
                Teacher::Targets(batches.map(|(v, &mini)| vec![means[mini] as f32; v.len()]).collect())
            }
            Head::Regression => Teacher::Targets(outputs),
            _ => Teacher::Logits(outputs),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let (Teacher::Logits(all) | Teacher::Hidden(all) | Teacher::Targets(all)) = self;
        4 * all.iter().map(Vec::len).sum::<usize>()
    }
}

/// Mean over the outputs of the squared weights of each input of the output projections, by sublayer.
pub fn mean_squares(model: &Model) -> Vec<Vec<f64>> {
    (0..2 * model.config().layers.len())
        .map(|sublayer| {
            let Some(projection) = output_projection(&model.architecture, sublayer) else {
                return Vec::new();
            };
            let parameter = model.layout().get(projection.weight);
            let (inputs, outputs) = match projection.order {
                WeightOrder::OutIn => (parameter.cols, parameter.rows),
                WeightOrder::InOut => (parameter.rows, parameter.cols),
            };
            let mut means = vec![0.0; inputs];
            for row in 0..parameter.rows {
                let start = parameter.offset + row * parameter.ld();
                for (col, value) in model.values[start..start + parameter.cols].iter().enumerate() {
                    let input = if projection.order == WeightOrder::OutIn { col } else { row };
                    means[input] += f64::from(*value).powi(2) / outputs as f64;
                }
            }
            means
        })
        .collect()
}

/// The output projection of a sublayer, if it has units.
pub fn output_projection(architecture: &Architecture, sublayer: usize) -> Option<Linear> {
    let layer = &architecture.parameters.layers[sublayer / 2];
    match sublayer % 2 {
        0 => match layer.attention {
            SublayerParameters::Full(parameters) => Some(parameters.output),
            _ => None,
        },
        _ => match layer.ffn {
            SublayerParameters::Full(parameters) => Some(parameters.down),
            _ => None,
        },
    }
}

/// One run of all rows from the hidden states below sublayer `from`.
pub struct Pass<'a> {
    /// The rows.
    pub rows: &'a Rows,
    /// Hidden states below the target, `[T, d]` a batch; not looked at where the target is the first sublayer.
    pub hidden: &'a [Vec<f32>],
    /// The target.
    pub from: usize,
    /// Units' dimensions by sublayer.
    pub widths: &'a [usize],
    /// Where an interrupt is seen.
    pub progress: &'a Progress,
}

impl Pass<'_> {
    /// Runs the batch and reads the sums of squares.
    fn run(
        &self,
        session: &mut Session,
        prepared: &Prepared,
        index: usize,
        write: impl FnOnce(&mut Session) -> Result<()>,
        knowledge: &mut Knowledge,
    ) -> Result<Extents> {
        self.progress.check(|| "K-prune was not finished; nothing was written".into())?;
        let extents = session.feed(prepared, &self.rows.batches[index], Weighting::EachRow)?;
        if let Some(slot) = prepared.slots.inputs.hidden {
            session.executor().write(prepared.id, slot, &self.hidden[index])?;
        }
        write(session)?;
        session.run(prepared, &extents)?;
        for sublayer in self.from..self.widths.len() {
            let slots = &prepared.slots.layers[sublayer / 2];
            let slot =
                if sublayer.is_multiple_of(2) { slots.context_squares } else { slots.activation_squares };
            add(session, prepared, slot, &extents, &mut knowledge.squares[sublayer])?;
        }
        Ok(extents)
    }

    /// The teacher's knowledge of its units (representational; predictive knowledge is 0) and its answers.
    pub fn outputs(
        &self,
        session: &mut Session,
        prepared: &Prepared,
        options: &Options,
    ) -> Result<(Knowledge, Teacher)> {
        let mut knowledge = Knowledge::zeros(self.widths, self.from);
        let mut outputs = Vec::with_capacity(self.rows.batches.len());
        let slot = prepared.slots.logits.unwrap_or(prepared.slots.output);
        for index in 0..self.rows.batches.len() {
            let extents = self.run(session, prepared, index, |_| Ok(()), &mut knowledge)?;
            let mut values = Vec::new();
            session.read(prepared, slot, &extents, &mut values)?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (what, value) = ("the model's prediction".into(), f64::from(values[at]));
                return Err(Error::NotFinite { what, value, place: format!("in calibration batch {index}") });
            }
            outputs.push(values);
        }
        let head = session.model().architecture.head;
        Ok((knowledge, Teacher::of(head, outputs, self.rows, options)))
    }

    /// Representational knowledge alone: what is left where the student is the teacher.
    pub fn representational(&self, session: &mut Session, prepared: &Prepared) -> Result<Knowledge> {
        let mut knowledge = Knowledge::zeros(self.widths, self.from);
        for index in 0..self.rows.batches.len() {
            self.run(session, prepared, index, |_| Ok(()), &mut knowledge)?;
        }
        Ok(knowledge)
    }

    /// Both kinds of knowledge.
    pub fn gradients(
        &self,
        session: &mut Session,
        prepared: &Prepared,
        teacher: &Teacher,
    ) -> Result<Knowledge> {
        let mut knowledge = Knowledge::zeros(self.widths, self.from);
        // Of the mini-batch so far.
        let mut gradients = Knowledge::zeros(self.widths, self.from).squares;
        let inputs = prepared.slots.inputs;
        let (teacher_slot, values) = match teacher {
            Teacher::Logits(values) => (inputs.teacher_logits, values),
            Teacher::Hidden(values) => (inputs.teacher_hidden, values),
            Teacher::Targets(values) => (inputs.targets, values),
        };
        let weights_slot = inputs.teacher_weights.or(inputs.weights);
        for index in 0..self.rows.batches.len() {
            let mini = self.rows.mini_batch[index];
            let predictions = predictions(&self.rows.batches[index]);
            let write = |session: &mut Session| {
                let executor = session.executor();
                if let Some(slot) = teacher_slot {
                    executor.write(prepared.id, slot, &values[index])?;
                }
                let weights = vec![1.0 / self.rows.terms[mini].max(1) as f32; predictions];
                weights_slot.map_or(Ok(()), |slot| executor.write(prepared.id, slot, &weights))
            };
            let extents = self.run(session, prepared, index, write, &mut knowledge)?;
            for sublayer in self.from..self.widths.len() {
                let slots = &prepared.slots.layers[sublayer / 2];
                let slot = if sublayer.is_multiple_of(2) {
                    slots.context_gradient
                } else {
                    slots.activation_gradient
                };
                add(session, prepared, slot, &extents, &mut gradients[sublayer])?;
            }
            if self.rows.mini_batch.get(index + 1) != Some(&mini) {
                for (sums, gradients) in knowledge.predictive.iter_mut().zip(&mut gradients) {
                    for (sum, gradient) in sums.iter_mut().zip(gradients) {
                        *sum += 0.5 * gradient.powi(2);
                        *gradient = 0.0;
                    }
                }
            }
        }
        Ok(knowledge)
    }
}

/// Adds the row of a slot to sums.
fn add(
    session: &Session,
    prepared: &Prepared,
    slot: Option<SlotId>,
    extents: &Extents,
    sums: &mut [f64],
) -> Result<()> {
    let Some(slot) = slot else { return Ok(()) };
    for (sum, value) in sums.iter_mut().zip(session.read_wide(prepared, slot, extents)?) {
        *sum += value;
    }
    Ok(())
}
