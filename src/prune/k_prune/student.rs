//! The model under one budget, pruned up to a sublayer.

use serde::Serialize;

use super::options::{Emptied, Options};
use super::rows::Rows;
use super::search::Choice;
use super::sublayer::Sublayer;
use super::tune::{LeastSquares, Normal};
use crate::error::Result;
use crate::model::Model;
use crate::program::{ParameterId, WeightOrder};
use crate::progress::Progress;
use crate::prune::UnitMasks;
use crate::session::Session;

/// What became of the weights of a pruned sublayer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tuning {
    /// New weights.
    Tuned,
    /// Not asked for.
    Off,
    /// A whole feed-forward network, which the options spare.
    Spared,
    /// No unit is left.
    Emptied,
    /// The sublayer gives what the teacher's gives.
    Exact,
    /// The normal equations have no usable solution: the old weights stay.
    Singular,
    /// The solution was no better than the old weights, which stay.
    NoBetter,
}

/// What was done to one sublayer.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// `2·i` is the attention of layer i, `2·i + 1` its feed-forward network.
    pub sublayer: usize,
    /// Multiply–accumulates left for this sublayer and all above it.
    pub budget: f64,
    /// The highest score that went.
    pub threshold: Option<f64>,
    /// Units before.
    pub units: usize,
    /// Units after.
    pub kept: usize,
    /// Frobenius norm over all tokens of the teacher's residual sum minus the pruned sublayer's, with the old weights.
    pub residual_before: f64,
    /// The same with the weights that were taken, and after an emptied sublayer was removed.
    pub residual_after: f64,
    /// ε of the ridge of the solution taken.
    pub ridge: Option<f64>,
    /// What became of the weights.
    pub tuning: Tuning,
}

/// A model on its way to one budget.
pub struct Student {
    /// Hidden states below the sublayer whose turn it is, `[T, d]` a batch.
    pub hidden: Vec<Vec<f32>>,
    /// Units of the sublayers done; ones above.
    pub masks: UnitMasks,
    /// Multiply–accumulates left.
    pub budget: f64,
    /// Parameters that were replaced, dense.
    pub replaced: Vec<(ParameterId, Vec<f32>)>,
    /// Whether it still is the teacher.
    pub untouched: bool,
    /// What was done, sublayer by sublayer.
    pub steps: Vec<Step>,
}

/// What pruning a sublayer needs beside the student.
pub struct Workshop<'a> {
    /// The dense model.
    pub model: &'a Model,
    /// All choices.
    pub options: &'a Options,
    /// The calibration rows.
    pub rows: &'a Rows,
    /// The dense model on its device. Weights replaced for a run are put back after it.
    pub session: Session,
    /// Normal equations.
    pub least_squares: LeastSquares,
    /// Where an interrupt is seen.
    pub progress: &'a Progress,
}

impl Workshop<'_> {
    /// The values of a parameter, dense.
    fn dense(&self, id: ParameterId) -> Vec<f32> {
        let parameter = self.model.layout().get(id);
        let row =
            |row: usize| &self.model.values[parameter.offset + row * parameter.ld()..][..parameter.cols];
        (0..parameter.rows).flat_map(row).copied().collect()
    }

    fn write(&mut self, sublayer: &Sublayer, id: ParameterId, values: &[f32]) -> Result<()> {
        sublayer.write(&mut self.session, &self.model.layout().get(id).name, values)
    }
}

/// `‖a − b‖²`.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

impl Student {
    /// A student equal to the teacher.
    pub fn new(masks: UnitMasks, budget: f64, hidden: Vec<Vec<f32>>) -> Student {
        Student { hidden, masks, budget, replaced: Vec::new(), untouched: true, steps: Vec::new() }
    }

    /// Moves up through a sublayer that has no units.
    pub fn pass(&mut self, shop: &mut Workshop, sublayer: &Sublayer) -> Result<()> {
        let (_, hidden) = self.run(shop, sublayer, None)?;
        self.hidden = hidden;
        Ok(())
    }

    /// Runs the sublayer under the present masks: squared distance from the teacher's sums, if given, and the hidden states
    /// above.
    fn run(
        &self,
        shop: &mut Workshop,
        sublayer: &Sublayer,
        teacher: Option<&[Vec<f32>]>,
    ) -> Result<(f64, Vec<Vec<f32>>)> {
        let (mut distance, mut above) = (0.0, Vec::with_capacity(shop.rows.batches.len()));
        let Workshop { rows, session, progress, .. } = shop;
        sublayer.run(session, rows, &self.masks, &self.hidden, progress, |ran| {
            if let Some(teacher) = teacher {
                distance += squared_distance(&teacher[ran.index], &ran.sum()?);
            }
            above.push(ran.output()?);
            Ok(())
        })?;
        Ok((distance, above))
    }

    /// Prunes sublayer `at` to the chosen units, tunes its output projection to the teacher's residual sums (`[T, d]` a
    /// batch), and moves up. `unit` is what a unit costs.
    pub fn prune(
        &mut self,
        shop: &mut Workshop,
        sublayer: &Sublayer,
        at: usize,
        choice: Choice,
        teacher: &[Vec<f32>],
        unit: f64,
    ) -> Result<()> {
        let mask = match at % 2 {
            0 => &mut self.masks.heads[at / 2],
            _ => &mut self.masks.neurons[at / 2],
        };
        for (value, kept) in mask.iter_mut().zip(&choice.kept) {
            *value = if *kept { 1.0 } else { 0.0 };
        }
        let units = choice.kept.len();
        let kept = choice.kept.iter().filter(|kept| **kept).count();
        let mut step = Step {
            sublayer: at,
            budget: self.budget,
            threshold: choice.threshold,
            units,
            kept,
            residual_before: 0.0,
            residual_after: 0.0,
            ridge: None,
            tuning: match () {
                _ if kept == 0 => Tuning::Emptied,
                _ if !shop.options.tune => Tuning::Off,
                _ if shop.options.spare_whole_ffn && !at.is_multiple_of(2) && kept == units => Tuning::Spared,
                _ => Tuning::Tuned,
            },
        };
        match step.tuning {
            Tuning::Tuned => self.tune(shop, sublayer, &choice, teacher, &mut step)?,
            Tuning::Emptied => self.empty(shop, sublayer, teacher, &mut step)?,
            _ => {
                let (distance, above) = self.run(shop, sublayer, Some(teacher))?;
                (step.residual_before, step.residual_after) = (distance.sqrt(), distance.sqrt());
                self.hidden = above;
            }
        }
        self.untouched &= kept == units && step.tuning != Tuning::Tuned;
        self.budget -= kept as f64 * unit;
        self.steps.push(step);
        Ok(())
    }

    /// A sublayer without units: its bias stays or goes.
    fn empty(
        &mut self,
        shop: &mut Workshop,
        sublayer: &Sublayer,
        teacher: &[Vec<f32>],
        step: &mut Step,
    ) -> Result<()> {
        let (before, mut above) = self.run(shop, sublayer, Some(teacher))?;
        let mut after = before;
        let bias = sublayer.projection.and_then(|projection| projection.bias);
        if let (Emptied::Remove, Some(bias)) = (shop.options.emptied, bias) {
            let old = shop.dense(bias);
            let zeros = vec![0.0; old.len()];
            shop.write(sublayer, bias, &zeros)?;
            (after, above) = self.run(shop, sublayer, Some(teacher))?;
            shop.write(sublayer, bias, &old)?;
            self.replaced.push((bias, zeros));
        }
        (step.residual_before, step.residual_after) = (before.sqrt(), after.sqrt());
        self.hidden = above;
        Ok(())
    }

    /// Solves for new weights and takes them if the options do.
    fn tune(
        &mut self,
        shop: &mut Workshop,
        sublayer: &Sublayer,
        choice: &Choice,
        teacher: &[Vec<f32>],
        step: &mut Step,
    ) -> Result<()> {
        let Some(projection) = sublayer.projection else { return self.pass(shop, sublayer) };
        let parameter = shop.model.layout().get(projection.weight).clone();
        let (width, outputs) = match projection.order {
            WeightOrder::OutIn => (parameter.cols, parameter.rows),
            WeightOrder::InOut => (parameter.rows, parameter.cols),
        };
        let group = width / step.units;
        let features = (0..width).filter(|feature| choice.kept[feature / group]).collect();
        let mut normal = Normal::new(width, features, outputs);
        let mut before = 0.0;
        let Workshop { rows, session, progress, least_squares, .. } = shop;
        sublayer.run(session, rows, &self.masks, &self.hidden, progress, |ran| {
            let (sum, teacher) = (ran.sum()?, &teacher[ran.index]);
            before += squared_distance(teacher, &sum);
            let lacking: Vec<f32> = teacher.iter().zip(&sum).map(|(teacher, sum)| teacher - sum).collect();
            least_squares.add(&mut normal, &ran.features()?, &lacking)
        })?;
        (step.residual_before, step.residual_after) = (before.sqrt(), before.sqrt());

        let solution = if before > 0.0 { normal.solve(shop.options.ridge) } else { None };
        step.tuning = if before > 0.0 { Tuning::Singular } else { Tuning::Exact };
        if let Some(solution) = solution {
            let old = shop.dense(projection.weight);
            let mut new = old.clone();
            for (row, &feature) in normal.kept().iter().enumerate() {
                for output in 0..outputs {
                    let at = match projection.order {
                        WeightOrder::OutIn => output * width + feature,
                        WeightOrder::InOut => feature * outputs + output,
                    };
                    new[at] = (f64::from(old[at]) + solution.x[row * outputs + output]) as f32;
                }
            }
            if new.iter().all(|value| value.is_finite()) {
                shop.write(sublayer, projection.weight, &new)?;
                let (after, above) = self.run(shop, sublayer, Some(teacher))?;
                shop.write(sublayer, projection.weight, &old)?;
                if after.is_finite() && (after < before || !shop.options.only_if_better) {
                    step.tuning = Tuning::Tuned;
                    (step.residual_after, step.ridge) = (after.sqrt(), Some(solution.ridge));
                    self.hidden = above;
                    self.replaced.push((projection.weight, new));
                    return Ok(());
                }
                step.tuning = Tuning::NoBetter;
            }
        }
        // The old weights stay.
        self.hidden = self.run(shop, sublayer, None)?.1;
        Ok(())
    }
}
