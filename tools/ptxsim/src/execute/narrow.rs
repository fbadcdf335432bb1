//! The 16-bit float formats: one rounding for both, in every direction.

use half::{bf16, f16};

use crate::types::Rounding;

/// A 16-bit float format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// IEEE binary16: 10 bits of fraction.
    Half,
    /// bfloat16: 7 bits of fraction.
    Brain,
}

/// The canonical NaN of both formats.
pub const NAN16: u16 = 0x7fff;

impl Format {
    // Fraction bits, least normal exponent, bits of infinity.
    fn parameters(self) -> (i32, i32, u64) {
        match self {
            Format::Half => (10, -14, 0x7c00),
            Format::Brain => (7, -126, 0x7f80),
        }
    }

    /// Value of the bits; exact.
    pub fn decode(self, bits: u16) -> f64 {
        match self {
            Format::Half => f16::from_bits(bits).to_f64(),
            Format::Brain => bf16::from_bits(bits).to_f64(),
        }
    }

    /// Rounds once. (The conversions from f64 of the `half` crate drop the low 32 bits first, which loses ties.)
    pub fn encode(self, x: f64, rounding: Rounding) -> u16 {
        let (fraction, least, infinity) = self.parameters();
        if x.is_nan() {
            return NAN16;
        }
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        let magnitude = x.abs();
        if magnitude.is_infinite() {
            return sign | infinity as u16;
        }
        if magnitude == 0.0 {
            return sign;
        }
        // An f64 subnormal is far below the least quantum of either format; its exponent may be read as -1023.
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(least);
        // Powers of two of at most ±(133 + 1): exact.
        let scaled = magnitude * 2f64.powi(fraction - exponent);
        let upwards = match rounding {
            Rounding::Up => sign == 0,
            Rounding::Down => sign != 0,
            _ => false,
        };
        let whole = match rounding {
            Rounding::Nearest => scaled.round_ties_even(),
            Rounding::NearestAway => scaled.round(),
            _ if upwards => scaled.ceil(),
            _ => scaled.floor(),
        };
        let bits = (((exponent - least) as u64) << fraction) + whole as u64;
        if bits < infinity {
            return sign | bits as u16;
        }
        let overflow_to_infinity = upwards || matches!(rounding, Rounding::Nearest | Rounding::NearestAway);
        sign | if overflow_to_infinity { infinity as u16 } else { infinity as u16 - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_its_own_rounding() {
        for format in [Format::Half, Format::Brain] {
            for bits in 0..=u16::MAX {
                let value = format.decode(bits);
                if value.is_nan() {
                    continue;
                }
                for rounding in [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up] {
                    assert_eq!(format.encode(value, rounding), bits, "{format:?} {bits:#06x} {rounding:?}");
                }
            }
        }
    }

    #[test]
    fn ties_and_neighbours() {
        let one = 0x3f80;
        let tie = 1.0 + 2f64.powi(-8);
        assert_eq!(Format::Brain.encode(tie, Rounding::Nearest), one);
        assert_eq!(Format::Brain.encode(tie.next_up(), Rounding::Nearest), one + 1);
        assert_eq!(Format::Brain.encode(tie, Rounding::NearestAway), one + 1);
        assert_eq!(Format::Brain.encode(-tie, Rounding::Down), 0x8000 | (one + 1));
        assert_eq!(Format::Brain.encode(-tie, Rounding::Up), 0x8000 | one);
        assert_eq!(Format::Half.encode(65520.0, Rounding::Nearest), 0x7c00);
        assert_eq!(Format::Half.encode(65519.999, Rounding::Nearest), 0x7bff);
        assert_eq!(Format::Half.encode(1e9, Rounding::Zero), 0x7bff);
        assert_eq!(Format::Half.encode(-1e9, Rounding::Down), 0xfc00);
        assert_eq!(Format::Half.encode(1e-30, Rounding::Up), 1);
        assert_eq!(Format::Half.encode(2f64.powi(-25), Rounding::Nearest), 0);
        assert_eq!(Format::Half.encode(2f64.powi(-25).next_up(), Rounding::Nearest), 1);
    }
}
