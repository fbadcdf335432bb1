//! Dropout from a counter-based generator: the mask is a function of where an element is, never stored.
//!
//! Element (`row`, `column`) of site `site` in draw `draw` is kept iff its 32-bit word is at least
//! round(p·2³²). The word is lane `column mod 4` of Philox4x32-10 (Salmon et al., "Parallel random numbers:
//! as easy as 1, 2, 3", SC 2011) at counter (`column / 4`, `row`, `site`, `draw`) under the key `seed`, low
//! half first. Kept values are multiplied by 1/(1 − p), computed in f32; p = 0 is the identity, to the bit.
//! So forward, backward, every executor and every number of threads agree on every element without talking.

pub mod cpu;
pub mod cuda;
pub mod reference;

/// A dropout layer of a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is dropped, in [0, 1].
    pub probability: f32,
    /// Number of this layer within the model, so that no two layers share a mask.
    pub site: u32,
}

/// What one run of a program adds: together with the site it names a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// Seed of the training run.
    pub seed: u64,
    /// Number of the draw: one for each forward pass with dropout.
    pub draw: u32,
}

/// A dropout layer in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AppliedDropout {
    /// Which layer.
    pub dropout: Dropout,
    /// Which run.
    pub key: DropoutKey,
}

impl AppliedDropout {
    /// Words below this are dropped: round(p·2³²), in [0, 2³²].
    pub fn threshold(&self) -> u64 {
        let p = f64::from(self.dropout.probability).clamp(0.0, 1.0);
        (p * 4_294_967_296.0).round() as u64
    }

    /// What a kept value is multiplied by: 1/(1 − p) in f32.
    pub fn scale(&self) -> f32 {
        1.0 / (1.0 - self.dropout.probability)
    }

    /// Whether the element is kept.
    pub fn keeps(&self, row: usize, column: usize) -> bool {
        let counter = [(column / 4) as u32, row as u32, self.dropout.site, self.key.draw];
        u64::from(philox(counter, self.key.key())[column % 4]) >= self.threshold()
    }

    /// Drops or scales `values`, the elements of `row` from `first_column` on, on the calling thread.
    pub fn scale_row(&self, row: usize, first_column: usize, values: &mut [f32]) {
        cpu::scale_row(self, row, first_column, values);
    }

    /// [`AppliedDropout::scale_row`] in f64: the same elements are dropped, the same f32 scale is applied.
    pub fn scale_row_f64(&self, row: usize, first_column: usize, values: &mut [f64]) {
        reference::scale_row(self, row, first_column, values);
    }
}

impl DropoutKey {
    /// The seed as the two words of a Philox key, low half first.
    pub fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}

/// Philox4x32-10: four random words from a counter and a key.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p = u64::from(c0) * 0xD251_1F53;
        let q = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = ((q >> 32) as u32 ^ c1 ^ k0, q as u32, (p >> 32) as u32 ^ c3 ^ k1, p as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::philox;

    /// The known answers published with the Random123 library (kat_vectors, philox4x32, 10 rounds).
    #[test]
    fn philox_gives_the_published_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, words) in cases {
            assert_eq!(philox(counter, key), words);
        }
    }
}
