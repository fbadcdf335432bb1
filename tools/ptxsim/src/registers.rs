//! Registers of one warp: every register is an array over the 32 lanes, so that an operation is one loop.

use crate::instruction::{Pred, Reg};

/// Lanes of a warp.
pub const LANES: usize = 32;
/// A word register of a warp.
pub type Lanes32 = [u32; LANES];
/// A long register of a warp.
pub type Lanes64 = [u64; LANES];

static ZERO32: Lanes32 = [0; LANES];
static ZERO64: Lanes64 = [0; LANES];

/// Constants of a launch, broadcast to all lanes, in both widths.
#[derive(Debug, Default)]
pub struct Constants {
    words: Vec<Lanes32>,
    longs: Vec<Lanes64>,
}

impl Constants {
    /// Broadcasts every value.
    pub fn new(values: &[u64]) -> Constants {
        Constants {
            words: values.iter().map(|&v| [v as u32; LANES]).collect(),
            longs: values.iter().map(|&v| [v; LANES]).collect(),
        }
    }
}

/// The register files of one warp.
#[derive(Debug)]
pub struct Registers<'c> {
    constants: &'c Constants,
    words: Vec<Lanes32>,
    longs: Vec<Lanes64>,
    predicates: Vec<u32>,
}

impl<'c> Registers<'c> {
    /// Zeroed files of the given sizes. The last predicate is always true.
    pub fn new(constants: &'c Constants, sizes: [u32; 3]) -> Registers<'c> {
        let mut registers = Registers {
            constants,
            words: vec![ZERO32; sizes[0] as usize],
            longs: vec![ZERO64; sizes[1] as usize],
            predicates: vec![0; sizes[2] as usize],
        };
        registers.reset();
        registers
    }

    /// Back to the state after `new`.
    pub fn reset(&mut self) {
        self.words.fill(ZERO32);
        self.longs.fill(ZERO64);
        self.predicates.fill(0);
        if let Some(always) = self.predicates.last_mut() {
            *always = u32::MAX;
        }
    }

    /// A word operand.
    #[inline]
    pub fn word(&self, r: Reg) -> &Lanes32 {
        match r.as_constant() {
            None => &self.words[r.index()],
            Some(index) => self.constants.words.get(index).unwrap_or(&ZERO32),
        }
    }

    /// A long operand.
    #[inline]
    pub fn long(&self, r: Reg) -> &Lanes64 {
        match r.as_constant() {
            None => &self.longs[r.index()],
            Some(index) => self.constants.longs.get(index).unwrap_or(&ZERO64),
        }
    }

    /// Lanes in which a predicate operand holds.
    #[inline]
    pub fn predicate(&self, p: Pred) -> u32 {
        let bits = self.predicates[p.index as usize];
        if p.negated { !bits } else { bits }
    }

    /// Writes the lanes of `mask`; a sink swallows them.
    #[inline]
    pub fn set_word(&mut self, r: Reg, mask: u32, values: &Lanes32) {
        if r.as_constant().is_some() {
            return;
        }
        let slot = &mut self.words[r.index()];
        if mask == u32::MAX {
            *slot = *values;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 != 0 {
                    slot[lane] = values[lane];
                }
            }
        }
    }

    /// Writes the lanes of `mask`; a sink swallows them.
    #[inline]
    pub fn set_long(&mut self, r: Reg, mask: u32, values: &Lanes64) {
        if r.as_constant().is_some() {
            return;
        }
        let slot = &mut self.longs[r.index()];
        if mask == u32::MAX {
            *slot = *values;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 != 0 {
                    slot[lane] = values[lane];
                }
            }
        }
    }

    /// Writes the lanes of `mask`; the predicate that is always true stays so.
    #[inline]
    pub fn set_predicate(&mut self, index: u32, mask: u32, bits: u32) {
        if index as usize + 1 < self.predicates.len() {
            let slot = &mut self.predicates[index as usize];
            *slot = (*slot & !mask) | (bits & mask);
        }
    }
}
