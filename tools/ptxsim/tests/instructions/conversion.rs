//! `cvt` and `cvta`.

use crate::{d, expect, f};

const M: u64 = 0xffff_ffff;
const NAN: u64 = 0x7fff_ffff;

#[test]
fn integers() {
    expect("cvt.s64.s32 d, a;", "l:r", &[(&[M], u64::MAX)]);
    expect("cvt.u64.u32 d, a;", "l:r", &[(&[M], M)]);
    expect("cvt.u32.u64 d, a;", "r:l", &[(&[7 << 32 | 5], 5)]);
    expect("cvt.u32.u8 d, a;", "r:r", &[(&[0x1ff], 0xff)]);
    expect("cvt.s32.s8 d, a;", "r:r", &[(&[0x180], 0xffff_ff80)]);
    expect("cvt.u16.u32 d, a;", "h:r", &[(&[0x1_2345], 0x2345)]);
    expect("cvt.s32.s16 d, a;", "r:h", &[(&[0x8000], 0xffff_8000)]);
    expect("cvt.sat.u8.s32 d, a;", "r:r", &[(&[300], 255), (&[M], 0)]);
    expect("cvt.sat.s16.s32 d, a;", "h:r", &[(&[40000], 0x7fff), (&[0xffff_0000], 0x8000)]);
    expect("cvt.sat.s32.u32 d, a;", "r:r", &[(&[M], 0x7fff_ffff)]);
}

#[test]
fn integers_to_floats() {
    expect(
        "cvt.rn.f32.s32 d, a;",
        "f:r",
        &[(&[M], f(-1.0)), (&[0x7fff_ffff], f(2147483648.0)), (&[16777217], f(16777216.0))],
    );
    expect("cvt.rz.f32.u32 d, a;", "f:r", &[(&[M], 0x4f7f_ffff)]);
    expect("cvt.rp.f32.s32 d, a;", "f:r", &[(&[16777217], f(16777218.0))]);
    expect("cvt.rm.f32.s32 d, a;", "f:r", &[(&[0xfeff_ffff], f(-16777218.0))]);
    expect(
        "cvt.rn.f32.u64 d, a;",
        "f:l",
        &[(&[u64::MAX], f(18446744073709551616.0)), (&[(1 << 40) + (1 << 16) + 1], f(1099511758848.0))],
    );
    expect("cvt.rn.f64.s32 d, a;", "d:r", &[(&[M], d(-1.0))]);
    expect("cvt.rn.f64.u64 d, a;", "d:l", &[(&[u64::MAX], d(18446744073709551616.0))]);
    expect("cvt.rn.bf16.s32 d, a;", "h:r", &[(&[257], 0x4380), (&[259], 0x4382)]);
    expect("cvt.rn.f16.u32 d, a;", "h:r", &[(&[2049], 0x6800), (&[70000], 0x7c00)]);
}

#[test]
fn floats_to_integers() {
    expect(
        "cvt.rzi.s32.f32 d, a;",
        "r:f",
        &[(&[f(-1.9)], M), (&[f(3e9)], 0x7fff_ffff), (&[f(-3e9)], 0x8000_0000), (&[NAN], 0)],
    );
    expect("cvt.rni.s32.f32 d, a;", "r:f", &[(&[f(2.5)], 2), (&[f(3.5)], 4), (&[f(-2.5)], 0xffff_fffe)]);
    expect("cvt.rmi.s32.f32 d, a;", "r:f", &[(&[f(-0.5)], M)]);
    expect("cvt.rpi.u32.f32 d, a;", "r:f", &[(&[f(0.5)], 1), (&[f(-5.0)], 0), (&[f(5e9)], M)]);
    expect("cvt.rzi.u64.f32 d, a;", "l:f", &[(&[f(1e10)], 10_000_000_000), (&[NAN], 1 << 63)]);
    expect("cvt.rzi.s32.f64 d, a;", "r:d", &[(&[d(-7.9)], 0xffff_fff9), (&[d(f64::NAN)], 0x8000_0000)]);
    expect("cvt.rzi.s64.f64 d, a;", "l:d", &[(&[d(1e30)], i64::MAX as u64)]);
    expect("cvt.rzi.u8.f32 d, a;", "r:f", &[(&[f(300.0)], 255)]);
}

#[test]
fn floats_to_integral_floats() {
    expect("cvt.rni.f32.f32 d, a;", "f:f", &[(&[f(2.5)], f(2.0)), (&[f(-0.25)], f(-0.0))]);
    expect("cvt.rmi.f32.f32 d, a;", "f:f", &[(&[f(-1.5)], f(-2.0))]);
    expect("cvt.rpi.f32.f32 d, a;", "f:f", &[(&[f(1.25)], f(2.0))]);
    expect("cvt.rzi.f64.f64 d, a;", "d:d", &[(&[d(-1.75)], d(-1.0))]);
    expect(
        "cvt.sat.f32.f32 d, a;",
        "f:f",
        &[(&[f(1.5)], f(1.0)), (&[f(-1.5)], 0), (&[NAN], 0), (&[f(0.25)], f(0.25))],
    );
}

#[test]
fn between_formats() {
    expect("cvt.f64.f32 d, a;", "d:f", &[(&[f(0.1)], d(f64::from(0.1f32)))]);
    expect("cvt.rn.f32.f64 d, a;", "f:d", &[(&[d(0.1)], f(0.1)), (&[d(1e300)], f(f32::INFINITY))]);
    expect("cvt.rz.f32.f64 d, a;", "f:d", &[(&[d(1e300)], f(f32::MAX)), (&[d(0.1)], f(0.1) - 1)]);
    expect(
        "cvt.rn.bf16.f32 d, a;",
        "h:f",
        &[
            (&[0x3f80_8000], 0x3f80),
            (&[0x3f81_8000], 0x3f82),
            (&[0x3f80_8001], 0x3f81),
            (&[0x7f7f_ffff], 0x7f80),
            (&[NAN], 0x7fff),
        ],
    );
    expect("cvt.rz.bf16.f32 d, a;", "h:f", &[(&[0x3f80_ffff], 0x3f80), (&[0x7f7f_ffff], 0x7f7f)]);
    expect("cvt.rn.relu.bf16.f32 d, a;", "h:f", &[(&[f(-2.0)], 0), (&[f(2.0)], 0x4000)]);
    // The first source goes to the upper half.
    expect("cvt.rn.bf16x2.f32 d, a, b;", "r:ff", &[(&[f(1.0), f(-2.0)], 0x3f80_c000)]);
    expect("cvt.rn.f16x2.f32 d, a, b;", "r:ff", &[(&[f(1.0), f(65536.0)], 0x3c00_7c00)]);
    expect(
        "cvt.rn.f16.f32 d, a;",
        "h:f",
        &[(&[f(65519.0)], 0x7bff), (&[f(65520.0)], 0x7c00), (&[f(5.9604645e-8)], 1)],
    );
    expect(
        "cvt.f32.f16 d, a;",
        "f:h",
        &[(&[0x3555], 0x3eaa_a000), (&[1], f(5.9604645e-8)), (&[0xfc00], f(f32::NEG_INFINITY))],
    );
    expect("cvt.f32.bf16 d, a;", "f:h", &[(&[0xc049], 0xc049_0000)]);
    expect(
        "cvt.rna.tf32.f32 d, a;",
        "r:f",
        &[(&[0x3f80_1000], 0x3f80_2000), (&[0x3f80_0fff], 0x3f80_0000), (&[f(-1.0)], f(-1.0))],
    );
    expect("cvt.ftz.f64.f32 d, a;", "d:f", &[(&[1], 0)]);
}
