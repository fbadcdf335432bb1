//! Packed masks applied to weights: W ∘ M for unstructured pruning.
//!
//! `apply`: `out[i] = weights[i]` where bit i mod 64 of word i / 64 of the mask is 1, else 0, so that a masked weight is
//! +0 whatever it was, NaN included. A mask takes a bit a weight: 10.6 MB for the 85 million weights of BERT-base's
//! encoder. No rounding: all versions give the same bits (the device's bf16 copy rounds once, to nearest even). Cost:
//! memory, 8 bytes a weight.

pub mod cpu;
pub mod cuda;
pub mod reference;
