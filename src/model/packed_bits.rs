//! Masks as packed bytes, the way `numpy.packbits` packs them: eight elements a byte, the first in the most significant
//! bit. Several masks may follow each other without a gap, so a mask may start inside a byte.

use std::borrow::Cow;

use super::WeightMask;
use crate::error::{Error, Result};

impl WeightMask {
    /// Sets bits `at ..` of `bytes`, which are 0 so far and reach as far as the mask, to the mask's.
    pub fn pack_at(&self, bytes: &mut [u8], at: usize) {
        for (w, &word) in self.bits().iter().enumerate() {
            // Element 0 of the word becomes the most significant of 64 bits; shifted, they span up to nine bytes.
            let start = at + 64 * w;
            let wide = (u128::from(word.reverse_bits()) << 64) >> (start % 8);
            for (to, from) in bytes[start / 8..].iter_mut().zip(wide.to_be_bytes()).take(9) {
                *to |= from;
            }
        }
    }

    /// The bits of the matrix in rows that start every `ld` elements, as the parameter block holds it: 64 a word, what
    /// lies between the rows 0.
    pub fn padded_bits(&self, ld: usize) -> Cow<'_, [u64]> {
        if ld == self.cols {
            return Cow::Borrowed(self.bits());
        }
        let mut words = vec![0u64; (self.rows * ld).div_ceil(64)];
        for index in (0..self.len()).filter(|&index| self.keeps(index)) {
            let at = index / self.cols * ld + index % self.cols;
            words[at / 64] |= 1 << (at % 64);
        }
        Cow::Owned(words)
    }

    /// The mask alone, the rest of its last byte 0.
    pub fn packed(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len().div_ceil(8)];
        self.pack_at(&mut bytes, 0);
        bytes
    }

    /// The mask of a matrix from bits `at ..` of `bytes`. Fails where these end before it does.
    pub fn unpack_at(name: &str, rows: usize, cols: usize, bytes: &[u8], at: usize) -> Result<WeightMask> {
        let end = rows.checked_mul(cols).and_then(|length| at.checked_add(length));
        let Some(end) = end.filter(|end| end.div_ceil(8) <= bytes.len()) else {
            let message = format!("{} bytes do not reach as far as its {rows} × {cols} bits", bytes.len());
            return Err(Error::shape(format!("mask {name}"), message));
        };
        let word = |start: usize| {
            let mut wide = [0u8; 16];
            for (to, from) in wide.iter_mut().zip(&bytes[start / 8..]).take(9) {
                *to = *from;
            }
            let bits = ((u128::from_be_bytes(wide) << (start % 8)) >> 64) as u64;
            let left = (end - start).min(64);
            bits.reverse_bits() & (u64::MAX >> (64 - left))
        };
        WeightMask::new(name, rows, cols, (at..end).step_by(64).map(word).collect())
    }

    /// The mask [`WeightMask::packed`] packed. Fails on another number of bytes and on bits beyond the last element.
    pub fn from_packed(name: &str, rows: usize, cols: usize, bytes: &[u8]) -> Result<WeightMask> {
        let mask = WeightMask::unpack_at(name, rows, cols, bytes, 0)?;
        let (length, bits) = (mask.len(), 8 * bytes.len());
        if bits - length >= 8 || stray_bits(bytes, length) {
            let message = format!("{bits} bits, or some of them set beyond its {length} elements");
            return Err(Error::shape(format!("mask {name}"), message));
        }
        Ok(mask)
    }
}

/// Whether a bit is set beyond the first `length` of bytes of which only the last is not full.
pub fn stray_bits(bytes: &[u8], length: usize) -> bool {
    !length.is_multiple_of(8) && bytes.last().is_some_and(|last| last << (length % 8) != 0)
}
