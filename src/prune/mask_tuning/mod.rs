//! Mask-Tuning (Kwon et al., *A Fast Post-Training Pruning Framework for Transformers*, NeurIPS 2022): prune a fine-tuned
//! model by its masks alone.
//!
//! ```text
//! mask gradients ─ Σ g² ─► importance ─ search (MACs or latency) ─► masks ─ rearrange ─► masks ─ rescale ─► real-valued masks
//! ```

mod rearrange;
mod search;

pub use rearrange::{pruned_loss, rearrange, rearrange_layer};
pub use search::{Importance, SearchRule, search};
