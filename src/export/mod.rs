//! Masks and masked models as files that others read: what pruning found, carried from one program to another.
//!
//! | file | holds |
//! |---|---|
//! | `.npy` ([`packed`]) | the bits of all layers' matrices, as SMP's authors released them; no names, no shapes |
//! | `.safetensors` ([`mask_file`]) | the same with names, shapes, and a hash of the weights the masks belong to |
//! | `head_mask.pt`, `neuron_mask.pt`, `pruned_heads` ([`unit_masks`]) | head and neuron masks of other programs, read only |
//! | a model directory | [`Model::save_as`](crate::model::Model::save_as) with zeros or with fewer units ([`loader`]), [`Model::save_sparse`](crate::model::Model::save_sparse) without the zeros |
//!
//! Everything read here was written by somebody else: sizes are checked before they are used, nothing is executed, and a
//! file that does not belong to the model is one error that says so.

pub mod loader;
pub mod mask_file;
pub mod npy;
pub mod packed;
mod pickle;
pub mod snap;
pub mod torch;
pub mod unit_masks;
mod zip;
