//! Seeded choices: the same seed gives the same choice on every machine and in every order of calls.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A random stream named by a seed and a stream number, so that layer 7's choice does not depend on layer 6's size.
#[derive(Clone, Debug)]
pub struct Choice {
    generator: ChaCha8Rng,
}

impl Choice {
    /// Stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Choice {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Choice { generator }
    }

    /// Uniform in 0..n, without modulo bias; n > 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "no number is below zero");
        let n = n as u64;
        // The largest multiple of n that fits: draws at or above it would favour small results.
        let limit = u64::MAX - (u64::MAX % n + 1) % n;
        loop {
            let draw = self.generator.next_u64();
            if draw <= limit {
                return (draw % n) as usize;
            }
        }
    }

    /// `count` distinct numbers of 0..n in the order drawn; all of them when `count ≥ n`. Memory O(count).
    pub fn distinct(&mut self, n: usize, count: usize) -> Vec<usize> {
        // Fisher–Yates on a virtual array: only displaced entries are stored.
        let mut displaced = std::collections::HashMap::new();
        let mut drawn = Vec::with_capacity(count.min(n));
        for i in 0..count.min(n) {
            let j = i + self.below(n - i);
            drawn.push(*displaced.get(&j).unwrap_or(&j));
            let first = *displaced.get(&i).unwrap_or(&i);
            displaced.insert(j, first);
        }
        drawn
    }
}
