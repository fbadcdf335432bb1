//! Perplexity of language models.
//!
//! The published figures of structured pruning are exp of the mean of *block* losses, each block's loss being the
//! mean over its predicted tokens. With blocks of one length this equals the token-weighted value; with the short
//! blocks of [`crate::data::text::Grouping::Hf`] it does not, so both are offered.

use crate::{Error, Result};

/// Loss of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockLoss {
    /// Mean negative log-likelihood (natural logarithm) of the block's predicted tokens.
    pub mean: f64,
    /// Number of predicted tokens: the block's length less 1 for next-token prediction.
    pub predicted: usize,
}

/// exp of the mean of the block losses.
///
/// # Errors
/// [`Error::Shape`] without blocks, [`Error::NotFinite`] naming the first block whose loss is not finite.
pub fn perplexity(blocks: &[BlockLoss]) -> Result<f64> {
    check(blocks)?;
    Ok((blocks.iter().map(|block| block.mean).sum::<f64>() / blocks.len() as f64).exp())
}

/// exp of the mean loss of all predicted tokens.
///
/// # Errors
/// As [`perplexity`].
pub fn token_weighted_perplexity(blocks: &[BlockLoss]) -> Result<f64> {
    check(blocks)?;
    let tokens: usize = blocks.iter().map(|block| block.predicted).sum();
    let total: f64 = blocks.iter().map(|block| block.mean * block.predicted as f64).sum();
    Ok((total / tokens as f64).exp())
}

fn check(blocks: &[BlockLoss]) -> Result<()> {
    if blocks.iter().all(|block| block.predicted == 0) {
        return Err(Error::shape("perplexity", "no predicted token"));
    }
    match blocks.iter().position(|block| !block.mean.is_finite()) {
        None => Ok(()),
        Some(place) => Err(Error::NotFinite {
            what: "loss".into(),
            value: blocks[place].mean,
            place: format!("in block {place} of the evaluation"),
        }),
    }
}
