//! Masked language modelling (Devlin et al. 2019, section 3.1): of the 15 % of tokens that are to be predicted,
//! 80 % are replaced by the mask token, 10 % by a random token and 10 % are left as they are.
//!
//! The choice for a row depends only on (seed, epoch, row), so any row can be masked again at any time, on any
//! thread.

use super::random::{Purpose, Stream};
use super::tokenizer::Tokenizer;
use super::{Example, Target};
use crate::{Error, Result};

/// Share of tokens to predict.
const PREDICTED: f64 = 0.15;
/// Of those, the share replaced by the mask token; half of the rest is replaced by a random token.
const REPLACED_BY_MASK: f64 = 0.8;

/// Masks rows of a fixed vocabulary.
#[derive(Debug, Clone)]
pub struct Masker {
    mask: i32,
    /// `special[id]`: never predicted, never drawn as a replacement.
    special: Vec<bool>,
    ordinary: Vec<i32>,
    seed: u64,
}

impl Masker {
    /// A masker for the vocabulary of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Usage`] when the vocabulary has no mask token.
    pub fn new(tokenizer: &Tokenizer, seed: u64) -> Result<Self> {
        let mask = tokenizer.special().mask;
        let mask = mask.ok_or_else(|| {
            Error::usage("the tokenizer has no mask token; masked language modelling needs one")
        })?;
        let mut special = vec![false; tokenizer.vocabulary_size()];
        for id in tokenizer.special().ids() {
            special[id as usize] = true;
        }
        let ordinary: Vec<i32> = (0..special.len()).filter(|id| !special[*id]).map(|id| id as i32).collect();
        if ordinary.is_empty() {
            return Err(Error::usage("the vocabulary holds nothing but special tokens"));
        }
        Ok(Masker { mask: mask as i32, special, ordinary, seed })
    }

    /// Row number `row` as it is masked in `epoch`. At least one token is predicted unless all are special.
    pub fn mask(&self, example: &Example, row: usize, epoch: u64) -> Example {
        // 2^32 rows an epoch before streams of different epochs could meet.
        let mut stream = Stream::new(self.seed, Purpose::Masking, (epoch << 32) | (row as u64 & 0xFFFF_FFFF));
        let maskable: Vec<usize> =
            (0..example.length()).filter(|place| !self.is_special(example.input_ids[*place])).collect();
        let mut chosen: Vec<usize> = maskable.iter().copied().filter(|_| stream.chance(PREDICTED)).collect();
        if chosen.is_empty() && !maskable.is_empty() {
            chosen.push(*stream.pick(&maskable));
        }
        let mut masked = example.clone();
        let labels = chosen.iter().map(|place| example.input_ids[*place]).collect();
        for place in &chosen {
            if stream.chance(REPLACED_BY_MASK) {
                masked.input_ids[*place] = self.mask;
            } else if stream.chance(0.5) {
                masked.input_ids[*place] = *stream.pick(&self.ordinary);
            }
        }
        masked.target =
            Target::Masked { positions: chosen.into_iter().map(|place| place as u32).collect(), labels };
        masked
    }

    fn is_special(&self, id: i32) -> bool {
        usize::try_from(id).ok().and_then(|id| self.special.get(id)).copied().unwrap_or(true)
    }
}
