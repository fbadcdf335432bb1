//! The parameters of a model by role, and how a family declares them under its checkpoint's names.
//!
//! Everything that reads or changes a model by meaning (emission, compaction, masks) goes through
//! [`Parameters`]; only the family files know names. A sublayer that is pruned away declares nothing that would
//! never be used: its projections are gone, and where LayerNorm precedes the sublayer, so is its LayerNorm.

use super::config::{LayerShape, ModelConfig, NormOrder, Sublayer};
use super::heads::HeadParameters;
use crate::program::{Linear, ParameterId, ParameterLayout, WeightOrder};

/// LayerNorm parameters, each `[d]`.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Scale.
    pub gamma: ParameterId,
    /// Shift.
    pub beta: ParameterId,
}

/// Query, key and value projections of a layer, each with `heads · head_dim` outputs.
#[derive(Clone, Copy, Debug)]
pub enum Projections {
    /// Three matrices.
    Separate {
        /// Query projection.
        query: Linear,
        /// Key projection.
        key: Linear,
        /// Value projection.
        value: Linear,
    },
    /// One matrix with the outputs query, key, value side by side.
    Fused(Linear),
}

/// Parameters of an attention sublayer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParameters {
    /// Input projections.
    pub projections: Projections,
    /// Output projection; its inputs are the context, head after head.
    pub output: Linear,
}

/// Parameters of a feed-forward sublayer.
#[derive(Clone, Copy, Debug)]
pub struct FeedForwardParameters {
    /// `d → neurons`.
    pub up: Linear,
    /// `neurons → d`.
    pub down: Linear,
}

/// A sublayer, or what pruning has left of it.
#[derive(Clone, Copy, Debug)]
pub enum SublayerParameters<T> {
    /// All its parameters.
    Full(T),
    /// The bias of its output projection.
    BiasOnly(ParameterId),
    /// Nothing.
    Removed,
}

/// Parameters of one layer. A norm is absent where it precedes a sublayer that is not full.
#[derive(Clone, Copy, Debug)]
pub struct LayerParameters {
    /// Attention.
    pub attention: SublayerParameters<AttentionParameters>,
    /// LayerNorm before or after attention.
    pub attention_norm: Option<Norm>,
    /// Feed-forward network.
    pub ffn: SublayerParameters<FeedForwardParameters>,
    /// LayerNorm before or after the feed-forward network.
    pub ffn_norm: Option<Norm>,
}

impl LayerParameters {
    /// Every parameter of the layer; the same roles come in the same order in layers of one shape.
    pub fn ids(&self) -> impl Iterator<Item = ParameterId> + use<> {
        let mut ids = Vec::new();
        match self.attention {
            SublayerParameters::Full(AttentionParameters { projections, output }) => {
                ids.extend(projections.linears().into_iter().flat_map(linear_ids).chain(linear_ids(output)));
            }
            SublayerParameters::BiasOnly(bias) => ids.push(bias),
            SublayerParameters::Removed => {}
        }
        match self.ffn {
            SublayerParameters::Full(FeedForwardParameters { up, down }) => {
                ids.extend(linear_ids(up).chain(linear_ids(down)));
            }
            SublayerParameters::BiasOnly(bias) => ids.push(bias),
            SublayerParameters::Removed => {}
        }
        ids.extend([self.attention_norm, self.ffn_norm].into_iter().flatten().flat_map(Norm::ids));
        ids.into_iter()
    }
}

/// Embedding tables.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingParameters {
    /// `[vocabulary, embedding size]`.
    pub word: ParameterId,
    /// `[positions, d]`.
    pub position: ParameterId,
    /// `[token types, d]`.
    pub token_type: Option<ParameterId>,
    /// LayerNorm of the sum.
    pub norm: Option<Norm>,
    /// `embedding size → d`, where they differ.
    pub project_in: Option<Linear>,
}

/// All parameters of a model.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Embeddings.
    pub embeddings: EmbeddingParameters,
    /// Layers in order.
    pub layers: Vec<LayerParameters>,
    /// LayerNorm after the last layer.
    pub final_norm: Option<Norm>,
    /// `d → embedding size`, where they differ.
    pub project_out: Option<Linear>,
    /// Task head.
    pub head: HeadParameters,
}

/// Names of the projections of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) enum ProjectionNames {
    Separate([&'static str; 3]),
    Fused(&'static str),
}

/// Names of a layer's modules, relative to the layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerNames {
    pub projections: ProjectionNames,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub ffn_norm: &'static str,
    pub order: WeightOrder,
}

/// Appends parameters to a layout under a prefix.
pub(super) struct Declare<'a> {
    pub config: &'a ModelConfig,
    pub layout: &'a mut ParameterLayout,
    /// `bert.`, or empty for a checkpoint of the backbone alone.
    pub prefix: &'static str,
}

impl Declare<'_> {
    pub fn table(&mut self, name: &str, rows: usize, cols: usize) -> ParameterId {
        self.layout.matrix(format!("{}{name}.weight", self.prefix), rows, cols)
    }

    pub fn norm(&mut self, name: &str, width: usize) -> Norm {
        let gamma = self.layout.vector(format!("{}{name}.weight", self.prefix), width);
        let beta = self.layout.vector(format!("{}{name}.bias", self.prefix), width);
        Norm { gamma, beta }
    }

    pub fn linear(&mut self, name: &str, from: usize, to: usize, order: WeightOrder, bias: bool) -> Linear {
        let (rows, cols) = match order {
            WeightOrder::OutIn => (to, from),
            WeightOrder::InOut => (from, to),
        };
        let weight = self.table(name, rows, cols);
        let bias = bias.then(|| self.layout.vector(format!("{}{name}.bias", self.prefix), to));
        Linear { weight, bias, order }
    }

    /// Layers `{stem}.0`, `{stem}.1`, ….
    pub fn layers(&mut self, stem: &str, names: LayerNames) -> Vec<LayerParameters> {
        let config = self.config;
        let first = self.layout.count();
        let shapes = config.layers.iter().enumerate();
        let layers = shapes.map(|(i, shape)| self.layer(&format!("{stem}.{i}."), *shape, names)).collect();
        self.layout.matrices_first(first);
        layers
    }

    fn layer(&mut self, stem: &str, shape: LayerShape, names: LayerNames) -> LayerParameters {
        let (hidden, head_dim) = (self.config.hidden, self.config.head_dim);
        let (order, bias) = (names.order, self.config.projection_bias);
        let name = |module: &str| format!("{stem}{module}");
        let pre = self.config.norm_order == NormOrder::Pre;
        let attention_norm = |this: &mut Self| this.norm(&name(names.attention_norm), hidden);
        let ffn_norm = |this: &mut Self| this.norm(&name(names.ffn_norm), hidden);

        let early = (pre && shape.attention == Sublayer::Full).then(|| attention_norm(self));
        let attention = match shape.attention {
            Sublayer::Full => {
                let width = shape.heads * head_dim;
                let projections = match names.projections {
                    ProjectionNames::Separate(modules) => {
                        let [query, key, value] =
                            modules.map(|module| self.linear(&name(module), hidden, width, order, bias));
                        Projections::Separate { query, key, value }
                    }
                    ProjectionNames::Fused(module) => {
                        Projections::Fused(self.linear(&name(module), hidden, 3 * width, order, bias))
                    }
                };
                let output = self.linear(&name(names.attention_output), width, hidden, order, bias);
                SublayerParameters::Full(AttentionParameters { projections, output })
            }
            Sublayer::BiasOnly => self.lone_bias(&name(names.attention_output)),
            Sublayer::Removed => SublayerParameters::Removed,
        };
        let attention_norm = if pre { early } else { Some(attention_norm(self)) };

        let early = (pre && shape.ffn == Sublayer::Full).then(|| ffn_norm(self));
        let ffn = match shape.ffn {
            Sublayer::Full => {
                let up = self.linear(&name(names.up), hidden, shape.neurons, order, bias);
                let down = self.linear(&name(names.down), shape.neurons, hidden, order, bias);
                SublayerParameters::Full(FeedForwardParameters { up, down })
            }
            Sublayer::BiasOnly => self.lone_bias(&name(names.down)),
            Sublayer::Removed => SublayerParameters::Removed,
        };
        let ffn_norm = if pre { early } else { Some(ffn_norm(self)) };
        LayerParameters { attention, attention_norm, ffn, ffn_norm }
    }

    fn lone_bias<T>(&mut self, name: &str) -> SublayerParameters<T> {
        if !self.config.projection_bias {
            return SublayerParameters::Removed;
        }
        let name = format!("{}{name}.bias", self.prefix);
        SublayerParameters::BiasOnly(self.layout.vector(name, self.config.hidden))
    }
}

impl Norm {
    fn ids(self) -> [ParameterId; 2] {
        [self.gamma, self.beta]
    }
}

/// Weight and bias of a linear layer.
pub(super) fn linear_ids(linear: Linear) -> impl Iterator<Item = ParameterId> {
    [Some(linear.weight), linear.bias].into_iter().flatten()
}

impl Projections {
    /// The matrices, one or three.
    pub fn linears(&self) -> Vec<Linear> {
        match *self {
            Projections::Separate { query, key, value } => vec![query, key, value],
            Projections::Fused(linear) => vec![linear],
        }
    }
}

impl Parameters {
    /// Every LayerNorm of the model.
    pub fn norms(&self) -> impl Iterator<Item = Norm> {
        let layers = self.layers.iter().flat_map(|layer| [layer.attention_norm, layer.ffn_norm]);
        let head = match self.head {
            HeadParameters::LanguageModel { transform: Some((_, _, norm)), .. } => Some(norm),
            _ => None,
        };
        [self.embeddings.norm, self.final_norm, head].into_iter().chain(layers).flatten()
    }

    /// How matrix `id` of a layer is stored; `[out, in]` for every other parameter.
    pub fn order_of(&self, id: ParameterId) -> WeightOrder {
        let linears = self.layers.iter().flat_map(|layer| {
            let mut linears = Vec::new();
            if let SublayerParameters::Full(attention) = layer.attention {
                linears.extend(attention.projections.linears());
                linears.push(attention.output);
            }
            if let SublayerParameters::Full(ffn) = layer.ffn {
                linears.extend([ffn.up, ffn.down]);
            }
            linears
        });
        linears
            .into_iter()
            .find(|linear| linear.weight == id)
            .map_or(WeightOrder::OutIn, |linear| linear.order)
    }

    /// Parameters that belong to the task head alone, the BERT pooler included.
    pub fn head_ids(&self) -> Vec<ParameterId> {
        match self.head {
            HeadParameters::Backbone => Vec::new(),
            HeadParameters::Sequence { dense, norm, classifier, .. } => dense
                .into_iter()
                .flat_map(|(layer, _)| linear_ids(layer))
                .chain(norm.into_iter().flat_map(Norm::ids))
                .chain(linear_ids(classifier))
                .collect(),
            HeadParameters::Span { transform, outputs, .. } => {
                let transform = transform.into_iter();
                let transform = transform.flat_map(|(layer, _, norm)| linear_ids(layer).chain(norm.ids()));
                transform.chain(linear_ids(outputs)).collect()
            }
            HeadParameters::LanguageModel { transform, decoder, bias } => {
                let transform = transform.into_iter();
                let transform = transform.flat_map(|(layer, _, norm)| linear_ids(layer).chain(norm.ids()));
                // A tied decoder is the word embedding.
                let decoder = (decoder != self.embeddings.word).then_some(decoder);
                transform.chain(decoder).chain(bias).collect()
            }
        }
    }

    /// Field of the configuration that fixes the shape of parameter `id`, for error messages.
    pub(super) fn config_field(&self, id: ParameterId) -> &'static str {
        let embeddings = &self.embeddings;
        if id == embeddings.word {
            return "vocab_size or hidden_size";
        }
        if id == embeddings.position {
            return "max_position_embeddings (n_positions)";
        }
        if Some(id) == embeddings.token_type {
            return "type_vocab_size";
        }
        for layer in &self.layers {
            if let SublayerParameters::Full(attention) = layer.attention
                && (attention.projections.linears().into_iter().flat_map(linear_ids))
                    .chain(linear_ids(attention.output))
                    .any(|found| found == id)
            {
                return "hidden_size, or heads_per_layer of a pruned model";
            }
            if let SublayerParameters::Full(ffn) = layer.ffn
                && linear_ids(ffn.up).chain(linear_ids(ffn.down)).any(|found| found == id)
            {
                return "intermediate_size (n_inner, hidden_dim, ffn_dim), or neurons_per_layer of a pruned model";
            }
        }
        match self.head {
            HeadParameters::Sequence { classifier, .. }
                if linear_ids(classifier).any(|found| found == id) =>
            {
                "id2label (the number of classes)"
            }
            HeadParameters::LanguageModel { decoder, bias, .. } if id == decoder || Some(id) == bias => {
                "vocab_size"
            }
            _ => "hidden_size",
        }
    }
}
