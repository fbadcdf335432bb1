//! Emission of task heads, their losses and distillation.
//!
//! A language model's loss gathers the hidden states of the predicted positions first, so that only those go
//! through the vocabulary, and does not store their logits unless a teacher or the caller needs them.

use super::Architecture;
use super::emit::{Emitter, Logits};
use super::emit_contrast::ContrastiveSlots;
use super::heads::HeadParameters;
use super::parameters::Norm;
use crate::program::{Activation, Extent, Fused, Linear, SlotId, WeightOrder};

/// What a head left.
#[derive(Default)]
pub(super) struct Answer {
    pub logits: Option<SlotId>,
    pub losses: Option<SlotId>,
    pub distillation_losses: Option<SlotId>,
    pub sentence: Option<SlotId>,
    pub contrastive: Option<ContrastiveSlots>,
}

impl Emitter<'_> {
    /// Emits the head over `x [T, d]`, as far as the options ask for it.
    pub(super) fn head(&mut self, model: &Architecture, x: SlotId) -> Answer {
        let options = self.options;
        let asked = options.loss || options.distillation.is_some() || options.sentences;
        if !asked && options.logits == Logits::None {
            return Answer::default();
        }
        match model.parameters.head {
            HeadParameters::Backbone => Answer::default(),
            HeadParameters::Sequence { input_dropout, dense, norm, dropout, classifier } => {
                let rows = self.answer_rows();
                let all = x;
                let mut x = if self.answers.is_some() { x } else { self.b.gather("answer", x, rows) };
                x = self.b.dropout("answer.dropped", x, input_dropout);
                x = match dense {
                    Some((layer, activation)) => {
                        let fused = Fused { activation: Some(activation), dropout, ..Fused::default() };
                        self.b.linear("pooled", x, layer, fused)
                    }
                    None => self.b.dropout("answer.dropped again", x, dropout),
                };
                let (sentence, contrastive) = self.sentences(all, |_| x);
                if let Some(norm) = norm {
                    x = self.b.layer_norm("normalised", x, norm.gamma, norm.beta, self.config.norm_epsilon);
                }
                let logits = self.b.linear("logits", x, classifier, Fused::default());
                let losses = options.loss.then(|| self.sequence_loss(logits));
                Answer { sentence, contrastive, ..self.answer(logits, None, losses) }
            }
            HeadParameters::Span { dropout, transform, outputs } => {
                let (sentence, contrastive) = self.sentences(x, |emitter| {
                    let rows = emitter.answer_rows();
                    emitter.b.gather("sentence", x, rows)
                });
                let x = self.b.dropout("answer.dropped", x, dropout);
                let x = self.transformed("answer", x, transform);
                let logits = self.b.linear("logits", x, outputs, Fused::default());
                let losses = options.loss.then(|| {
                    let starts = self.b.int_input("starts", Extent::Sequences);
                    let ends = self.b.int_input("ends", Extent::Sequences);
                    (self.inputs.starts, self.inputs.ends) = (Some(starts), Some(ends));
                    let weights = self.weights(Extent::Sequences);
                    self.b.span_loss("losses", logits, [starts, ends], self.inputs.cu_seqlens, weights)
                });
                Answer { sentence, contrastive, ..self.answer(logits, None, losses) }
            }
            HeadParameters::LanguageModel { transform, decoder, bias } => {
                let decoder = Linear { weight: decoder, bias, order: WeightOrder::OutIn };
                self.language_model(model, x, transform, decoder)
            }
        }
    }

    fn sequence_loss(&mut self, logits: SlotId) -> SlotId {
        let weights = self.weights(Extent::Sequences);
        if self.b.shape(logits).1 == 1 {
            let targets = self.b.input("targets", Extent::Sequences, 1);
            self.inputs.targets = Some(targets);
            return self.b.mean_squared_error("losses", logits, targets, weights);
        }
        let labels = self.labels(Extent::Sequences);
        self.b.cross_entropy("losses", logits, labels, weights)
    }

    fn language_model(
        &mut self,
        model: &Architecture,
        x: SlotId,
        transform: Option<(Linear, Activation, Norm)>,
        decoder: Linear,
    ) -> Answer {
        let options = self.options;
        let mut answer = Answer::default();
        if options.loss || options.distillation.is_some() || options.logits == Logits::Targets {
            let rows = self.b.int_input("rows", Extent::Targets);
            self.inputs.rows = Some(rows);
            let gathered = self.b.gather("answer", x, rows);
            let state = self.transformed("answer", gathered, transform);
            if options.distillation.is_some() || options.logits == Logits::Targets {
                let logits = self.b.linear("target_logits", state, decoder, Fused::default());
                let losses = options.loss.then(|| {
                    let (labels, weights) = (self.labels(Extent::Targets), self.weights(Extent::Targets));
                    self.b.cross_entropy("losses", logits, labels, weights)
                });
                let teacher = options.teacher_hidden.then(|| {
                    let hidden = self.b.input("teacher_hidden", Extent::Tokens, self.config.hidden);
                    self.inputs.teacher_hidden = Some(hidden);
                    let gathered = self.b.gather("teacher.answer", hidden, rows);
                    let top = self.top("teacher.", model, gathered);
                    let state = self.transformed("teacher", top, transform);
                    self.b.linear("teacher.logits", state, decoder, Fused::default())
                });
                answer = self.answer(logits, teacher, losses);
            } else {
                let (labels, weights) = (self.labels(Extent::Targets), self.weights(Extent::Targets));
                let (weight, bias) = (decoder.weight, decoder.bias);
                answer.losses =
                    Some(self.b.linear_cross_entropy("losses", state, weight, bias, labels, weights));
            }
        }
        if options.logits == Logits::All {
            let state = self.transformed("all", x, transform);
            let logits = self.b.linear("logits", state, decoder, Fused::default());
            self.b.keep(logits);
            answer.logits = Some(logits);
        }
        answer
    }

    fn transformed(
        &mut self,
        name: &str,
        x: SlotId,
        transform: Option<(Linear, Activation, Norm)>,
    ) -> SlotId {
        let Some((layer, activation, norm)) = transform else { return x };
        let fused = Fused { activation: Some(activation), ..Fused::default() };
        let state = self.b.linear(&format!("{name}.transform"), x, layer, fused);
        let epsilon = self.config.norm_epsilon;
        self.b.layer_norm(&format!("{name}.normalised"), state, norm.gamma, norm.beta, epsilon)
    }

    /// Adds distillation to a head with stored logits, from the logits of `teacher` or, without, from an input.
    fn answer(&mut self, logits: SlotId, teacher: Option<SlotId>, losses: Option<SlotId>) -> Answer {
        let (rows, classes) = self.b.shape(logits);
        let distillation_losses = self.options.distillation.map(|temperature| {
            let teacher = teacher.unwrap_or_else(|| {
                let input = self.b.input("teacher_logits", rows, classes);
                self.inputs.teacher_logits = Some(input);
                input
            });
            // Only the logits of a span head are those of tokens.
            let span = rows == Extent::Tokens;
            let weights = self.b.input("teacher_weights", if span { Extent::Sequences } else { rows }, 1);
            self.inputs.teacher_weights = Some(weights);
            if span {
                let pair = [logits, teacher];
                let cu_seqlens = self.inputs.cu_seqlens;
                self.b.span_distillation("distillation", pair, temperature, cu_seqlens, weights)
            } else {
                self.b.distillation("distillation", logits, teacher, temperature, weights)
            }
        });
        let kept = self.options.logits != Logits::None;
        if kept {
            self.b.keep(logits);
        }
        Answer { logits: kept.then_some(logits), losses, distillation_losses, ..Answer::default() }
    }

    fn labels(&mut self, rows: Extent) -> SlotId {
        let labels = self.b.int_input("labels", rows);
        self.inputs.labels = Some(labels);
        labels
    }

    fn weights(&mut self, rows: Extent) -> SlotId {
        let weights = self.b.input("weights", rows, 1);
        self.inputs.weights = Some(weights);
        weights
    }
}
