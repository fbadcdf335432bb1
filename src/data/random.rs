//! Deterministic random numbers for shuffling, sampling, masking and text generation.
//!
//! A [`Stream`] is ChaCha8 keyed by a seed and split into independent streams by a purpose and an index (an
//! epoch, a row), so that no draw depends on how many draws another part of the program made, nor on threads.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream is used for; streams of different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Order of the examples of an epoch.
    Shuffle = 1,
    /// Calibration rows and tokens.
    Calibration = 2,
    /// Masked language modelling.
    Masking = 3,
    /// The built-in agreement task.
    Generation = 4,
    /// Random members of clusters.
    Centroid = 5,
    /// Control masks that a method must beat.
    Control = 6,
    /// Inputs of measurements.
    Bench = 7,
    /// Candidates of contrastive losses.
    Contrast = 8,
}

/// A deterministic stream of random numbers.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of `(seed, purpose, index)`.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8] = purpose as u8;
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(index);
        Stream(generator)
    }

    /// A uniform number in `0..bound`, without modulo bias.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "empty range");
        let bound = bound as u64;
        // Numbers below 2^64 mod bound would make the small residues more likely; they are drawn again.
        let reject_below = bound.wrapping_neg() % bound;
        loop {
            let draw = self.0.next_u64();
            if draw >= reject_below {
                return (draw % bound) as usize;
            }
        }
    }

    /// A uniform number in [0, 1), a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// One element of a slice that is not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Fisher–Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_reproducible_and_distinct() {
        let draw = |seed, purpose, index| {
            let mut s = Stream::new(seed, purpose, index);
            (0..8).map(|_| s.below(1 << 30)).collect::<Vec<_>>()
        };
        let base = draw(7, Purpose::Shuffle, 3);
        assert_eq!(base, draw(7, Purpose::Shuffle, 3));
        assert_ne!(base, draw(8, Purpose::Shuffle, 3));
        assert_ne!(base, draw(7, Purpose::Masking, 3));
        assert_ne!(base, draw(7, Purpose::Shuffle, 4));
    }

    #[test]
    fn small_bounds_are_uniform() {
        let mut s = Stream::new(1, Purpose::Calibration, 0);
        let mut counts = [0usize; 6];
        let draws = 60_000;
        for _ in 0..draws {
            counts[s.below(6)] += 1;
        }
        // Chi-square with 5 degrees of freedom: 20.5 is exceeded with probability 0.001.
        let expected = draws as f64 / 6.0;
        let chi: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
        assert!(chi < 20.5, "{counts:?}");
    }
}
