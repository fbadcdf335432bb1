//! Emission: a model, a mode and a few wishes become a program.
//!
//! Layers of all families are the same block with LayerNorm before or after, so there is one emitter; what differs
//! is in the configuration and in which parameters exist. Masks, taps and losses are emitted only when wished for:
//! a program without masks contains no mask slot, and a calibration program ends with the last tap.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use super::emit_contrast::{ContrastiveSlots, ContrastiveTerms};
use super::emit_head::Answer;
use super::parameters::Norm;
use super::{Architecture, Head};
use crate::error::{Error, Result};
use crate::program::{Builder, Extent, Fused, Mode, Program, SlotId};

/// Which logits a program leaves to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Logits {
    /// None; those of a loss are still computed where it needs them.
    #[default]
    None,
    /// All: `[B, labels]`, `[T, 2]` or `[T, V]`.
    All,
    /// For language models those of the predicted positions, `[R, V]`; otherwise all.
    Targets,
}

/// Rows of the hook tensors that a calibration program gathers, by layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampledTaps {
    /// Layers whose context (input of the attention output projection) is wanted.
    pub context: Vec<usize>,
    /// Layers whose activation (input of the feed-forward down-projection) is wanted.
    pub activation: Vec<usize>,
}

/// What stands for a sentence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sentence {
    /// What the classifier reads of the token that answers (of BERT the pooler's output); under a span head its hidden state.
    #[default]
    Cls,
    /// The sum of the hidden states of all tokens: the direction of their mean.
    Mean,
}

/// What a program computes and keeps.
#[derive(Clone, Debug, Default)]
pub struct EmitOptions {
    /// Head masks are inputs `[1, heads]` of every layer that has heads.
    pub head_masks: bool,
    /// Neuron masks are inputs `[1, neurons]` of every layer that has neurons.
    pub neuron_masks: bool,
    /// The head's loss by row.
    pub loss: bool,
    /// Distillation from an input `teacher_logits`, at this temperature.
    pub distillation: Option<f32>,
    /// Logits to keep.
    pub logits: Logits,
    /// Hidden states are kept.
    pub keep_hidden: bool,
    /// Contexts, activations and sublayer outputs are kept.
    pub keep_hooks: bool,
    /// Rows given by the input `samples` are gathered from the hook tensors and kept, nothing else is computed.
    pub sampled: Option<SampledTaps>,
    /// Moments of every layer's activation are kept ([`LayerSlots::activation_moments`]), and nothing above the last
    /// activation is computed unless `sampled` asks for it.
    pub moments: bool,
    /// A part of the model: sublayer `2·i` is the attention of layer i, `2·i + 1` its feed-forward network. A program
    /// that starts above 0 reads the input `hidden` in place of the embeddings; one that ends below `2·layers` has
    /// neither final LayerNorm nor head. [`ModelProgram::output`] is kept. `None` is the whole model.
    pub sublayers: Option<Range<usize>>,
    /// Over the tokens of the batch, the sum of squares of every context dimension and neuron and, with
    /// [`Mode::mask_gradients`], the gradient of a mask of ones on it (what K-prune measures). Of the layer under a sequence
    /// head the loss sees only the tokens that answer: for the others it is computed up to its activations, and nothing is
    /// differentiated.
    pub knowledge: bool,
    /// The teacher of a language model's distillation is given by the output of its last sublayer, the input
    /// `teacher_hidden [T, d]`, and its logits are computed beside the student's; those of all tokens would not fit.
    pub teacher_hidden: bool,
    /// The sentence vectors `[B, d]` are kept ([`ModelProgram::sentence`]).
    pub sentences: bool,
    /// Which vectors those are, and those that are held against banks.
    pub sentence: Sentence,
    /// Contrastive losses of the sentence vectors over banks that are inputs.
    pub contrastive: Option<ContrastiveTerms>,
}

/// Slots the host writes before a run; absent where the program does not read them.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// Token ids, `[T]`; absent in a program that starts above the embeddings, as are positions and segments.
    pub input_ids: Option<SlotId>,
    /// Rows of the position embedding, `[T]` ([`positions`](super::positions)).
    pub positions: Option<SlotId>,
    /// Segment of each token, `[T]`.
    pub token_type_ids: Option<SlotId>,
    /// What the sublayer below left, `[T, d]`, where a program starts above the embeddings.
    pub hidden: Option<SlotId>,
    /// Row offsets, `[B + 1]`.
    pub cu_seqlens: SlotId,
    /// Sequence heads: token that answers for each sequence, `[B]` ([`answer_rows`](super::answer_rows)).
    /// Language models: tokens whose state predicts, `[R]`.
    pub rows: Option<SlotId>,
    /// Sequence of each token, `[T]`.
    pub sequences: Option<SlotId>,
    /// Class of each sequence `[B]`, or token to predict `[R]`; −100 is ignored.
    pub labels: Option<SlotId>,
    /// Weight of each loss row, `[B, 1]` or `[R, 1]`: the total is Σ weight · loss.
    pub weights: Option<SlotId>,
    /// Regression targets, `[B, 1]`.
    pub targets: Option<SlotId>,
    /// First token of the answer, counted within the sequence, `[B]`.
    pub starts: Option<SlotId>,
    /// Last token of the answer, `[B]`.
    pub ends: Option<SlotId>,
    /// Logits of the teacher, shaped as the student's of the loss rows.
    pub teacher_logits: Option<SlotId>,
    /// Output of the teacher's last sublayer, `[T, d]`, in place of its logits.
    pub teacher_hidden: Option<SlotId>,
    /// Weight of each distillation row (of each sequence for span heads).
    pub teacher_weights: Option<SlotId>,
    /// Token rows that calibration taps gather, `[S]`.
    pub samples: Option<SlotId>,
    /// Seed and draw of dropout, `[1, 3]`.
    pub dropout_key: Option<SlotId>,
}

impl Inputs {
    /// Row offsets alone.
    pub(super) fn of_rows(cu_seqlens: SlotId) -> Inputs {
        Inputs {
            input_ids: None,
            positions: None,
            token_type_ids: None,
            hidden: None,
            cu_seqlens,
            rows: None,
            sequences: None,
            labels: None,
            weights: None,
            targets: None,
            starts: None,
            ends: None,
            teacher_logits: None,
            teacher_hidden: None,
            teacher_weights: None,
            samples: None,
            dropout_key: None,
        }
    }
}

/// Slots of one layer. Absent is what the layer does not compute.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerSlots {
    /// Input `[1, heads]`.
    pub head_mask: Option<SlotId>,
    /// Input `[1, neurons]`.
    pub neuron_mask: Option<SlotId>,
    /// Input of the attention output projection, `[T, heads·head_dim]`.
    pub context: Option<SlotId>,
    /// Attention sublayer with its residual, before a LayerNorm that follows, `[T, d]`.
    pub attention_sum: Option<SlotId>,
    /// Input of the feed-forward down-projection, `[T, neurons]`.
    pub activation: Option<SlotId>,
    /// Feed-forward sublayer with its residual, before a LayerNorm that follows, `[T, d]`.
    pub ffn_sum: Option<SlotId>,
    /// Gradient of the head mask by sequence, `[B, heads]`.
    pub head_mask_gradient: Option<SlotId>,
    /// Gradient of the neuron mask by sequence, `[B, neurons]`.
    pub neuron_mask_gradient: Option<SlotId>,
    /// Sums of squares of the context over the batch's tokens, `[1, heads·head_dim]`.
    pub context_squares: Option<SlotId>,
    /// Gradient of a mask of ones on the context, `[1, heads·head_dim]`.
    pub context_gradient: Option<SlotId>,
    /// Sums of squares of the activation over the batch's tokens, `[1, neurons]`.
    pub activation_squares: Option<SlotId>,
    /// Gradient of a mask of ones on the activation, `[1, neurons]`.
    pub activation_gradient: Option<SlotId>,
    /// Sampled rows of the context, `[S, heads·head_dim]`.
    pub sampled_context: Option<SlotId>,
    /// Sampled rows of the activation, `[S, neurons]`.
    pub sampled_activation: Option<SlotId>,
    /// Σ x, Σ |x|, Σ x² of the activation over the tokens of the batch, `[3, neurons]`.
    pub activation_moments: Option<SlotId>,
}

/// A program and the meaning of its slots.
#[derive(Clone, Debug)]
pub struct ModelProgram {
    /// The operations.
    pub program: Program,
    /// What the host writes.
    pub inputs: Inputs,
    /// Slots layer by layer.
    pub layers: Vec<LayerSlots>,
    /// Output of the embeddings, then of every layer, `[T, d]`; the last one after the final LayerNorm. Of a part of
    /// the model, of what it holds. Readable after a run only where [`EmitOptions::keep_hidden`] was set.
    pub hidden: Vec<SlotId>,
    /// The hidden state after the last sublayer emitted, before any final LayerNorm, `[T, d]`: what the next sublayer
    /// reads. Readable after a run only where [`EmitOptions::sublayers`] was given.
    pub output: SlotId,
    /// Kept logits.
    pub logits: Option<SlotId>,
    /// Loss of each row.
    pub losses: Option<SlotId>,
    /// Distillation loss of each row.
    pub distillation_losses: Option<SlotId>,
    /// Kept sentence vectors, `[B, d]` ([`Sentence`]), dropout included.
    pub sentence: Option<SlotId>,
    /// Inputs and results of the contrastive losses.
    pub contrastive: Option<ContrastiveSlots>,
}

impl Architecture {
    /// Emits a program, backward pass included where `mode` differentiates. Fails where what is wished for has no
    /// meaning for this head.
    pub fn emit(&self, mode: Mode, options: &EmitOptions) -> Result<ModelProgram> {
        self.check(mode, options)?;
        let config = &self.config;
        let name = format!(
            "{} {}",
            config.family.model_type(),
            if mode.differentiates() { "step" } else { "forward" }
        );
        let mut b = Builder::new(name, self.layout.clone(), mode);
        let all = 2 * config.layers.len();
        let part = options.sublayers.clone().unwrap_or(0..all);
        let embeds = part.start == 0;
        let cu_seqlens = b.int_input("cu_seqlens", Extent::Boundaries);
        let inputs = Inputs {
            input_ids: embeds.then(|| b.int_input("input_ids", Extent::Tokens)),
            positions: embeds.then(|| b.int_input("positions", Extent::Tokens)),
            token_type_ids: (self.parameters.embeddings.token_type)
                .filter(|_| embeds)
                .map(|_| b.int_input("token_type_ids", Extent::Tokens)),
            hidden: (!embeds).then(|| b.input("hidden", Extent::Tokens, config.hidden)),
            samples: options.sampled.as_ref().map(|_| b.int_input("samples", Extent::Samples)),
            ..Inputs::of_rows(cu_seqlens)
        };
        let layers = vec![LayerSlots::default(); config.layers.len()];
        let mut emitter = Emitter { b, config, options, inputs, layers, answers: None, measured: Vec::new() };
        let mut hidden = Vec::with_capacity(config.layers.len() + 1);
        let mut output = match emitter.inputs.hidden {
            Some(input) => input,
            None => {
                hidden.push(emitter.embeddings(self));
                hidden[0]
            }
        };
        let complete = part.clone().all(|sublayer| {
            let layer = &self.parameters.layers[sublayer / 2];
            let next = match sublayer % 2 {
                _ if options.knowledge && sublayer + 2 >= all && self.answers_by_sequence() => {
                    emitter.sublayer_under_answers(sublayer, layer, output)
                }
                0 => emitter.attention(sublayer / 2, layer, output),
                _ => emitter.feed_forward(sublayer / 2, layer, output),
            };
            let Some(next) = next else { return false };
            output = next;
            if sublayer % 2 == 1 {
                hidden.push(next);
            }
            true
        });
        let mut answer = Answer::default();
        if complete && part.end == all && options.sampled.is_none() && !options.moments {
            let top = emitter.top("", self, emitter.answers.unwrap_or(output));
            if let Some(last) = hidden.last_mut() {
                *last = top;
            }
            answer = emitter.head(self, top);
        }
        let Emitter { mut b, mut inputs, mut layers, measured, .. } = emitter;
        if mode.differentiates() {
            b.backward();
            for layer in &mut layers {
                layer.head_mask_gradient = layer.head_mask.and_then(|mask| b.gradient_of(mask));
                layer.neuron_mask_gradient = layer.neuron_mask.and_then(|mask| b.gradient_of(mask));
            }
            for (sublayer, slot) in measured {
                let layer = &mut layers[sublayer / 2];
                match sublayer % 2 {
                    0 => layer.context_gradient = b.column_gradient_of(slot),
                    _ => layer.activation_gradient = b.column_gradient_of(slot),
                }
            }
        }
        if options.keep_hidden {
            hidden.iter().for_each(|&slot| b.keep(slot));
        }
        if options.sublayers.is_some() {
            b.keep(output);
        }
        let program = b.finish();
        inputs.dropout_key = program.find("dropout_key");
        let Answer { logits, losses, distillation_losses, sentence, contrastive } = answer;
        Ok(ModelProgram {
            program,
            inputs,
            layers,
            hidden,
            output,
            logits,
            losses,
            distillation_losses,
            sentence: sentence.filter(|_| options.sentences),
            contrastive,
        })
    }

    fn check(&self, mode: Mode, options: &EmitOptions) -> Result<()> {
        let objective = options.loss || options.distillation.is_some();
        let masks = options.head_masks || options.neuron_masks || options.knowledge;
        let all = 2 * self.config.layers.len();
        if let Some(part) = &options.sublayers
            && (part.start > part.end || part.end > all)
        {
            let message = format!("sublayers {} to {} of {all}", part.start, part.end);
            return Err(Error::shape("part of the model", message));
        }
        let by_sequence = matches!(self.head, Head::Classification { .. } | Head::Regression | Head::Span);
        let ends_below = options.sublayers.as_ref().is_some_and(|part| part.end < all);
        let problem = if objective && self.head == Head::Backbone {
            "a backbone without a head has no loss; name a task"
        } else if options.teacher_hidden && !self.head.is_language_model() {
            "a teacher is given by its hidden states to language models only"
        } else if options.knowledge && (mode.dropout || options.keep_hidden || options.keep_hooks) {
            "knowledge is measured without dropout, and of the last layer not all is computed"
        } else if options.distillation.is_some_and(|t| !(t > 0.0 && t.is_finite())) {
            "the distillation temperature must be positive"
        } else if (options.sentences || options.contrastive.is_some()) && !by_sequence {
            "only a model that classifies, or finds an answer, has sentence vectors"
        } else if options.sentence == Sentence::Mean && options.knowledge {
            "where knowledge is measured, only the tokens that answer have a last hidden state"
        } else if options.contrastive.is_some() && !objective {
            "contrastive losses are terms beside the loss of the task"
        } else if ends_below && (objective || options.logits != Logits::None) {
            "a part of the model that ends below its last sublayer has no head"
        } else if mode.differentiates() && (!objective || options.sampled.is_some() || options.moments) {
            "there are no gradients without a loss"
        } else if mode.mask_gradients && !masks {
            "there are no mask gradients without masks"
        } else {
            return Ok(());
        };
        Err(Error::usage(problem))
    }
}

/// Emission in progress.
pub(super) struct Emitter<'a> {
    pub(super) b: Builder,
    pub(super) config: &'a ModelConfig,
    pub(super) options: &'a EmitOptions,
    pub(super) inputs: Inputs,
    pub(super) layers: Vec<LayerSlots>,
    /// Hidden states of the tokens that answer, `[B, d]`, where the last layer is computed for them apart.
    pub(super) answers: Option<SlotId>,
    /// Sublayers and the slots of which the mask gradients are wanted.
    pub(super) measured: Vec<(usize, SlotId)>,
}

impl Emitter<'_> {
    fn embeddings(&mut self, model: &Architecture) -> SlotId {
        let Inputs { input_ids: Some(input_ids), positions: Some(positions), .. } = self.inputs else {
            unreachable!("a program that starts with the embeddings has their inputs")
        };
        let tables = &model.parameters.embeddings;
        let token_type = self.inputs.token_type_ids.zip(tables.token_type);
        let b = &mut self.b;
        let mut x = match tables.project_in {
            None => b.embed(
                "embeddings.sum",
                input_ids,
                tables.word,
                Some((positions, tables.position)),
                token_type,
            ),
            Some(project_in) => {
                let word = b.embed("embeddings.word", input_ids, tables.word, None, None);
                let position = b.embed("embeddings.position", positions, tables.position, None, None);
                let fused = Fused { residual: Some(position), ..Fused::default() };
                b.linear("embeddings.sum", word, project_in, fused)
            }
        };
        if let Some(norm) = tables.norm {
            x = self.norm("embeddings.norm", x, norm);
        }
        self.b.dropout("embeddings", x, self.config.dropout.embedding)
    }

    pub(super) fn norm(&mut self, name: &str, x: SlotId, norm: Norm) -> SlotId {
        self.b.layer_norm(name, x, norm.gamma, norm.beta, self.config.norm_epsilon)
    }

    /// What follows the last layer belongs to its hidden state.
    pub(super) fn top(&mut self, prefix: &str, model: &Architecture, mut hidden: SlotId) -> SlotId {
        if let Some(norm) = model.parameters.final_norm {
            hidden = self.norm(&format!("{prefix}final_norm"), hidden, norm);
        }
        if let Some(project_out) = model.parameters.project_out {
            hidden = self.b.linear(&format!("{prefix}project_out"), hidden, project_out, Fused::default());
        }
        hidden
    }
}
