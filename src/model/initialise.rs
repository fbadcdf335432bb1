//! Values of parameters that no checkpoint gives.
//!
//! Matrices are drawn from N(0, σ²) as transformers does: σ is `initializer_range`, divided by √(2L) for the
//! projections that write to GPT-2's residual stream (Radford et al. 2019, section 2.3). Biases are 0, LayerNorm
//! starts as the identity, and the embedding of the padding token is 0. Each tensor has its own stream of a
//! counter-based generator, named by seed and tensor: the same tensor gets the same values in every model that has
//! it, on every machine and number of threads.

use std::f64::consts::TAU;

use rayon::prelude::*;

use super::Architecture;
use super::config::Family;
use super::parameters::SublayerParameters;
use crate::ops::dropout::philox;
use crate::program::ParameterId;

/// Elements drawn by one piece of work.
const PIECE: usize = 64 * 1024;

/// Values of N(0, 1) by number: Box–Muller on Philox words, in f64.
#[derive(Clone, Copy)]
struct Normals {
    key: [u32; 2],
    tail: [u32; 2],
}

impl Normals {
    fn new(seed: u64, stream: &str) -> Normals {
        let mut hash = blake3::Hasher::new();
        hash.update(b"initialise").update(&seed.to_le_bytes()).update(stream.as_bytes());
        let digest = *hash.finalize().as_bytes();
        let word = |i: usize| {
            u32::from_le_bytes([digest[4 * i], digest[4 * i + 1], digest[4 * i + 2], digest[4 * i + 3]])
        };
        Normals { key: [word(0), word(1)], tail: [word(2), word(3)] }
    }

    /// Values `first ..` of the stream.
    fn from(self, first: usize) -> impl Iterator<Item = f64> {
        let pair = |a: u32, b: u32| {
            // Uniform on (0, 1): the half keeps the logarithm finite.
            let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
            let radius = (-2.0 * libm::log(unit(a))).sqrt();
            let angle = TAU * unit(b);
            [radius * libm::cos(angle), radius * libm::sin(angle)]
        };
        let blocks = (first / 4) as u64..;
        blocks
            .flat_map(move |block| {
                let counter = [block as u32, (block >> 32) as u32, self.tail[0], self.tail[1]];
                let [a, b, c, d] = philox(counter, self.key);
                pair(a, b).into_iter().chain(pair(c, d))
            })
            .skip(first % 4)
    }
}

impl Architecture {
    /// Writes fresh values for parameter `id` into the block.
    pub(super) fn initialise(&self, id: ParameterId, seed: u64, values: &mut [f32]) {
        let parameter = self.layout.get(id);
        let block = &mut values[parameter.offset..parameter.offset + parameter.span()];
        block.fill(0.0);
        if parameter.vector {
            if self.parameters.norms().any(|norm| norm.gamma == id) {
                block[..parameter.cols].fill(1.0);
            }
            return;
        }
        let sigma = self.initial_deviation(id);
        let normals = Normals::new(seed, &parameter.name);
        let (cols, ld) = (parameter.cols, parameter.ld());
        let rows = (PIECE / ld.max(1)).max(1);
        block.par_chunks_mut((rows * ld).max(1)).enumerate().for_each(|(piece, block)| {
            let mut normals = normals.from(piece * rows * cols);
            for row in block.chunks_mut(ld) {
                for (value, z) in row[..cols].iter_mut().zip(&mut normals) {
                    *value = (sigma * z) as f32;
                }
            }
        });
        if let Some(row) = self.padding_row(id) {
            let start = row * parameter.ld();
            if let Some(row) = block.get_mut(start..start + parameter.ld()) {
                row.fill(0.0);
            }
        }
    }

    fn initial_deviation(&self, id: ParameterId) -> f64 {
        let sigma = f64::from(self.config.initializer_range);
        let writes_residual = self.parameters.layers.iter().any(|layer| {
            matches!(layer.attention, SublayerParameters::Full(a) if a.output.weight == id)
                || matches!(layer.ffn, SublayerParameters::Full(f) if f.down.weight == id)
        });
        if self.config.family == Family::Gpt2 && writes_residual {
            return sigma / (2.0 * self.config.layers.len() as f64).sqrt();
        }
        sigma
    }

    /// Row of an embedding that belongs to padding and is never looked up.
    fn padding_row(&self, id: ParameterId) -> Option<usize> {
        let embeddings = &self.parameters.embeddings;
        let padded = id == embeddings.word && self.config.family != Family::Gpt2
            || id == embeddings.position && self.config.family == Family::Roberta;
        self.config.pad_token.filter(|_| padded).map(|pad| pad as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::Normals;

    #[test]
    fn a_stream_continues_where_another_piece_of_it_ended() {
        let stream = Normals::new(7, "tensor");
        let whole: Vec<f64> = stream.from(0).take(40).collect();
        for first in 0..17 {
            let part: Vec<f64> = stream.from(first).take(20).collect();
            assert_eq!(part, whole[first..first + 20]);
        }
    }
}
