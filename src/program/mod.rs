//! The program: a list of semantic, fused operations over named slots.
//!
//! Model code does not compute, it emits ([`Builder`]); executors run what was emitted. Because the list is data,
//! gradients are another list ([`Builder::backward`]), memory is planned before the run ([`Plan`]), cost is known
//! ([`cost`]), and a program can be printed and compared between executors operation by operation.

mod access;
mod backward;
mod builder;
pub mod cost;
mod layout;
mod losses;
mod op;
mod plan;
mod print;
mod slot;
mod validate;

pub use access::Access;
pub use builder::{Builder, Fused, Linear, Mode, Program, WeightOrder};
pub use layout::{Parameter, ParameterLayout};
pub use op::{Activation, AdamWForm, AttentionShape, Dropout, DropoutSite, Epilogue, MaskFunction, Op};
pub use plan::{Buffer, Place, Plan};
pub use slot::{
    COLUMN_ALIGNMENT, Element, Extent, Extents, ParameterId, SLOT_ALIGNMENT, Slot, SlotId, Storage,
    leading_dimension,
};
