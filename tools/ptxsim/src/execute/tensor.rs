//! `mma.sync` and the layout of 8×8 matrices over a warp (PTX ISA §9.7.15).
//!
//! Products are exact and summed in f32 in the order of k, starting from C. Hardware aligns and truncates the products
//! of a step instead, so results agree with it within an error bound, not to the bit.

use super::narrow::Format;
use crate::instruction::MmaShape;
use crate::registers::{LANES, Lanes32};
use crate::types::{Rounding, Type};

/// D = A·B + C for one 16×8×k tile. `a`, `b`, `c` are the fragments' registers.
pub fn multiply(shape: MmaShape, a: &[Lanes32; 4], b: &[Lanes32; 4], c: &[Lanes32; 4]) -> [Lanes32; 4] {
    let k = usize::from(shape.k);
    // A is 16×k, B is k×8, both row-major here.
    let (mut left, mut right) = ([[0f32; 16]; 16], [[0f32; 8]; 16]);
    if shape.input == Type::Tf32 {
        let cut = |bits: u32| f32::from_bits(bits & !0x1fff);
        for lane in 0..LANES {
            let (group, t) = (lane / 4, lane % 4);
            for half in 0..k / 4 {
                left[group][t + 4 * half] = cut(a[2 * half][lane]);
                left[group + 8][t + 4 * half] = cut(a[2 * half + 1][lane]);
                right[t + 4 * half][group] = cut(b[half][lane]);
            }
        }
    } else {
        let value = |bits: u32| match shape.input {
            Type::Bf16 => f32::from_bits(bits << 16),
            _ => half::f16::from_bits(bits as u16).to_f32(),
        };
        for lane in 0..LANES {
            let (group, t) = (lane / 4, lane % 4);
            for half in 0..k / 8 {
                for pair in 0..2 {
                    let (column, shift) = (2 * t + pair + 8 * half, 16 * pair);
                    left[group][column] = value(a[2 * half][lane] >> shift & 0xffff);
                    left[group + 8][column] = value(a[2 * half + 1][lane] >> shift & 0xffff);
                    right[column][group] = value(b[half][lane] >> shift & 0xffff);
                }
            }
        }
    }
    let mut sum = [[0f32; 8]; 16];
    let single = shape.output == Type::F32;
    for lane in 0..LANES {
        let (group, t) = (lane / 4, lane % 4);
        for row in 0..2 {
            for column in 0..2 {
                sum[group + 8 * row][2 * t + column] = if single {
                    f32::from_bits(c[2 * row + column][lane])
                } else {
                    half::f16::from_bits((c[row][lane] >> (16 * column)) as u16).to_f32()
                };
            }
        }
    }
    accumulate(&mut sum, &left, &right, k);
    let mut d = [[0u32; LANES]; 4];
    for lane in 0..LANES {
        let (group, t) = (lane / 4, lane % 4);
        for row in 0..2 {
            for column in 0..2 {
                let value = sum[group + 8 * row][2 * t + column];
                if single {
                    d[2 * row + column][lane] =
                        if value.is_nan() { super::float::NAN32 } else { value.to_bits() };
                } else {
                    let half = Format::Half.encode(value.into(), Rounding::Nearest);
                    d[row][lane] |= u32::from(half) << (16 * column);
                }
            }
        }
    }
    d
}

fn accumulate(sum: &mut [[f32; 8]; 16], left: &[[f32; 16]; 16], right: &[[f32; 8]; 16], k: usize) {
    for (row, out) in left.iter().zip(sum) {
        for i in 0..k {
            let factor = row[i];
            for j in 0..8 {
                out[j] += factor * right[i][j];
            }
        }
    }
}

/// The rows of an 8×8 matrix as `ldmatrix` distributes them: lane 4r+c gets elements 2c and 2c+1 of row r; transposed,
/// elements r of rows 2c and 2c+1.
pub fn distribute(rows: &[[u32; 4]; 8], transposed: bool) -> Lanes32 {
    let element = |row: usize, column: usize| rows[row][column / 2] >> (16 * (column % 2)) & 0xffff;
    std::array::from_fn(|lane| {
        let (r, c) = (lane / 4, lane % 4);
        if transposed { element(2 * c, r) | element(2 * c + 1, r) << 16 } else { rows[r][c] }
    })
}

/// The inverse of [`distribute`].
pub fn collect(lanes: &Lanes32, transposed: bool) -> [[u32; 4]; 8] {
    let mut rows = [[0; 4]; 8];
    for (lane, &value) in lanes.iter().enumerate() {
        let (r, c) = (lane / 4, lane % 4);
        if transposed {
            rows[2 * c][r / 2] |= (value & 0xffff) << (16 * (r % 2));
            rows[2 * c + 1][r / 2] |= (value >> 16) << (16 * (r % 2));
        } else {
            rows[r][c] = value;
        }
    }
    rows
}
