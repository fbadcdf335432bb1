//! The optimiser step as a program: clip factor, then AdamW over the flat blocks.

use std::sync::Arc;

use crate::program::{AdamWForm, Builder, Extent, Mode, Op, ParameterLayout, Program, SlotId};

/// The update program and the slots the host writes and reads.
#[derive(Debug)]
pub struct Update {
    /// [`Op::ClipFactor`], [`Op::AdamW`].
    pub program: Arc<Program>,
    /// `[1, 7]`, see [`Op::AdamW`].
    pub hyper: SlotId,
    /// `[1, 2]`: gradient norm before clipping, clip factor.
    pub norm: SlotId,
}

impl Update {
    /// Emits the update of every trained parameter of `layout`.
    pub fn emit(layout: Arc<ParameterLayout>, max_gradient_norm: f32, form: AdamWForm) -> Update {
        let mut builder = Builder::new("adamw", layout, Mode::EVALUATE);
        let hyper = builder.input("hyper", Extent::Fixed(1), 7);
        let norm = builder.temporary("norm", Extent::Fixed(1), 2);
        builder.keep(norm);
        builder.emit(Op::ClipFactor { max_norm: max_gradient_norm, scores: false, norm });
        builder.emit(Op::AdamW { form, scores: false, hyper, norm });
        Update { program: Arc::new(builder.finish()), hyper, norm }
    }
}

/// A program of [`Op::ZeroGradients`] alone, run before the micro-batches of a step.
pub fn zero_gradients(layout: Arc<ParameterLayout>) -> Arc<Program> {
    let mut builder = Builder::new("zero gradients", layout, Mode::EVALUATE);
    builder.emit(Op::ZeroGradients);
    Arc::new(builder.finish())
}
