//! Integer arithmetic and bit operations.

use crate::{Random, expect, expect_formula};

const M: u64 = 0xffff_ffff;

fn words(n: usize) -> impl FnMut(&mut Random) -> Vec<u64> {
    move |r| (0..n).map(|_| r.bits() & M).collect()
}

fn longs(n: usize) -> impl FnMut(&mut Random) -> Vec<u64> {
    move |r| (0..n).map(|_| r.bits()).collect()
}

fn s(x: u64) -> i128 {
    i128::from(x as u32 as i32)
}

fn t(x: u64) -> i128 {
    i128::from(x as i64)
}

#[test]
fn words_agree_with_wide_arithmetic() {
    let cut = |v: i128| v as u64 & M;
    expect_formula("add.s32 d, a, b;", "r:rr", words(2), |x| cut(s(x[0]) + s(x[1])));
    expect_formula("sub.u32 d, a, b;", "r:rr", words(2), |x| cut(s(x[0]) - s(x[1])));
    expect_formula("mul.lo.s32 d, a, b;", "r:rr", words(2), |x| cut(s(x[0]) * s(x[1])));
    expect_formula("mul.hi.s32 d, a, b;", "r:rr", words(2), |x| cut((s(x[0]) * s(x[1])) >> 32));
    expect_formula("mul.hi.u32 d, a, b;", "r:rr", words(2), |x| (x[0] * x[1]) >> 32);
    expect_formula("mad.lo.s32 d, a, b, c;", "r:rrr", words(3), |x| cut(s(x[0]) * s(x[1]) + s(x[2])));
    expect_formula("mad.hi.u32 d, a, b, c;", "r:rrr", words(3), |x| (((x[0] * x[1]) >> 32) + x[2]) & M);
    expect_formula("mul.wide.s32 d, a, b;", "l:rr", words(2), |x| (s(x[0]) * s(x[1])) as u64);
    expect_formula("mul.wide.u32 d, a, b;", "l:rr", words(2), |x| x[0] * x[1]);
    expect_formula(
        "mad.wide.u32 d, a, b, c;",
        "l:rrl",
        |r| vec![r.bits() & M, r.bits() & M, r.bits()],
        |x| (x[0] * x[1]).wrapping_add(x[2]),
    );
    expect_formula("div.s32 d, a, b;", "r:rr", words(2), |x| cut(s(x[0]) / s(x[1])));
    expect_formula("rem.u32 d, a, b;", "r:rr", words(2), |x| x[0] % x[1]);
    expect_formula("min.s32 d, a, b;", "r:rr", words(2), |x| cut(s(x[0]).min(s(x[1]))));
    expect_formula("max.u32 d, a, b;", "r:rr", words(2), |x| x[0].max(x[1]));
    expect_formula("sad.s32 d, a, b, c;", "r:rrr", words(3), |x| cut((s(x[0]) - s(x[1])).abs() + s(x[2])));
    expect_formula("abs.s32 d, a;", "r:r", words(1), |x| cut(s(x[0]).abs()));
    expect_formula("neg.s32 d, a;", "r:r", words(1), |x| cut(-s(x[0])));
    expect_formula("xor.b32 d, a, b;", "r:rr", words(2), |x| x[0] ^ x[1]);
}

#[test]
fn longs_agree_with_wide_arithmetic() {
    expect_formula("add.s64 d, a, b;", "l:ll", longs(2), |x| (t(x[0]) + t(x[1])) as u64);
    expect_formula("sub.s64 d, a, b;", "l:ll", longs(2), |x| (t(x[0]) - t(x[1])) as u64);
    expect_formula("mul.lo.s64 d, a, b;", "l:ll", longs(2), |x| t(x[0]).wrapping_mul(t(x[1])) as u64);
    expect_formula("mul.hi.s64 d, a, b;", "l:ll", longs(2), |x| ((t(x[0]) * t(x[1])) >> 64) as u64);
    expect_formula("mul.hi.u64 d, a, b;", "l:ll", longs(2), |x| {
        ((u128::from(x[0]) * u128::from(x[1])) >> 64) as u64
    });
    expect_formula("div.u64 d, a, b;", "l:ll", longs(2), |x| x[0] / x[1]);
    expect_formula("rem.s64 d, a, b;", "l:ll", longs(2), |x| (t(x[0]) % t(x[1])) as u64);
    expect_formula("max.s64 d, a, b;", "l:ll", longs(2), |x| t(x[0]).max(t(x[1])) as u64);
    expect_formula("and.b64 d, a, b;", "l:ll", longs(2), |x| x[0] & x[1]);
    expect_formula("popc.b64 d, a;", "r:l", longs(1), |x| x[0].count_ones().into());
}

#[test]
fn corners() {
    expect(
        "add.sat.s32 d, a, b;",
        "r:rr",
        &[(&[0x7fff_ffff, 1], 0x7fff_ffff), (&[0x8000_0000, M], 0x8000_0000)],
    );
    expect("div.u32 d, a, b;", "r:rr", &[(&[7, 0], M), (&[7, 2], 3)]);
    expect("rem.u32 d, a, b;", "r:rr", &[(&[7, 0], 7)]);
    expect("div.s32 d, a, b;", "r:rr", &[(&[0x8000_0000, M], 0x8000_0000)]);
    expect("add.u16 d, a, b;", "h:hh", &[(&[0xffff, 2], 1)]);
    expect("mul.wide.u16 d, a, b;", "r:hh", &[(&[0xffff, 0xffff], 0xfffe_0001)]);
    expect("mul.wide.s16 d, a, b;", "r:hh", &[(&[0xffff, 2], 0xffff_fffe)]);
    expect("min.s16 d, a, b;", "h:hh", &[(&[0x8000, 1], 0x8000)]);
    expect("mul24.lo.s32 d, a, b;", "r:rr", &[(&[0xff80_0000, 2], 0xff00_0000), (&[0x0100_0003, 5], 15)]);
    expect("cnot.b32 d, a;", "r:r", &[(&[0], 1), (&[9], 0)]);
}

#[test]
fn shifts_clamp() {
    expect("shl.b32 d, a, b;", "r:rr", &[(&[1, 31], 1 << 31), (&[1, 32], 0), (&[1, M], 0)]);
    expect("shr.u32 d, a, b;", "r:rr", &[(&[1 << 31, 31], 1), (&[1 << 31, 32], 0)]);
    expect("shr.s32 d, a, b;", "r:rr", &[(&[1 << 31, 31], M), (&[1 << 31, 40], M), (&[1 << 30, 40], 0)]);
    expect("shl.b64 d, a, b;", "l:lr", &[(&[1, 63], 1 << 63), (&[1, 64], 0)]);
    expect("shr.s64 d, a, b;", "l:lr", &[(&[1 << 63, 100], u64::MAX)]);
    expect("shl.b16 d, a, b;", "h:hr", &[(&[0xffff, 4], 0xfff0), (&[0xffff, 16], 0)]);
    expect("shf.l.wrap.b32 d, a, b, c;", "r:rrr", &[(&[0x8000_0000, 1, 1], 3), (&[5, 7, 32], 7)]);
    expect("shf.l.clamp.b32 d, a, b, c;", "r:rrr", &[(&[5, 7, 40], 5), (&[0x8000_0000, 1, 1], 3)]);
    expect("shf.r.wrap.b32 d, a, b, c;", "r:rrr", &[(&[2, 1, 1], 0x8000_0001), (&[5, 7, 32], 5)]);
    expect("shf.r.clamp.b32 d, a, b, c;", "r:rrr", &[(&[5, 7, 33], 7)]);
}

#[test]
fn bits() {
    expect("popc.b32 d, a;", "r:r", &[(&[0xf0f0], 8)]);
    expect("clz.b32 d, a;", "r:r", &[(&[0], 32), (&[1], 31), (&[M], 0)]);
    expect("clz.b64 d, a;", "r:l", &[(&[1], 63)]);
    expect("brev.b32 d, a;", "r:r", &[(&[1], 1 << 31), (&[0xf], 0xf000_0000)]);
    expect("bfind.u32 d, a;", "r:r", &[(&[0], M), (&[0x100], 8)]);
    expect("bfind.s32 d, a;", "r:r", &[(&[M], M), (&[0xffff_fff0], 3)]);
    expect("bfind.shiftamt.u32 d, a;", "r:r", &[(&[0x100], 23)]);
    expect("bfe.u32 d, a, b, c;", "r:rrr", &[(&[0xabcd, 4, 8], 0xbc), (&[M, 0, 0], 0), (&[M, 28, 8], 0xf)]);
    expect(
        "bfe.s32 d, a, b, c;",
        "r:rrr",
        &[(&[0x80, 4, 4], 0xffff_fff8), (&[0x8000_0000, 28, 8], 0xffff_fff8)],
    );
    expect("bfe.s32 d, a, b, c;", "r:rrr", &[(&[0x8000_0000, 32, 4], M)]);
    expect(
        "bfi.b32 d, a, b, c, e;",
        "r:rrrr",
        &[(&[0xff, 0x1234_5678, 8, 8], 0x1234_ff78), (&[1, 5, 32, 4], 5)],
    );
    expect("bfi.b64 d, a, b, c, e;", "l:llrr", &[(&[M, 0, 32, 32], M << 32)]);
    expect("lop3.b32 d, a, b, c, 0x96;", "r:rrr", &[(&[0xff00, 0xf0f0, 0xaaaa], 0xff00 ^ 0xf0f0 ^ 0xaaaa)]);
    expect("lop3.b32 d, a, b, c, 0xca;", "r:rrr", &[(&[0xff, 0x1234, 0x5678], 0x5634)]);
    expect("not.b32 d, a;", "r:r", &[(&[0], M)]);
}

#[test]
fn permutations() {
    let (a, b) = (0x3322_1100, 0x7766_5544);
    expect(
        "prmt.b32 d, a, b, c;",
        "r:rrr",
        &[(&[a, b, 0x7531], 0x7755_3311), (&[0x80, 0, 0x0008], 0x8080_80ff)],
    );
    expect("prmt.b32.f4e d, a, b, c;", "r:rrr", &[(&[a, b, 2], 0x5544_3322)]);
    expect("prmt.b32.b4e d, a, b, c;", "r:rrr", &[(&[a, b, 1], 0x6677_0011)]);
    expect("prmt.b32.rc8 d, a, b, c;", "r:rrr", &[(&[a, b, 2], 0x2222_2222)]);
    expect("prmt.b32.ecl d, a, b, c;", "r:rrr", &[(&[a, b, 2], 0x3322_2222)]);
    expect("prmt.b32.ecr d, a, b, c;", "r:rrr", &[(&[a, b, 1], 0x1111_1100)]);
    expect("prmt.b32.rc16 d, a, b, c;", "r:rrr", &[(&[a, b, 1], 0x3322_3322)]);
}

#[test]
fn moves_and_packs() {
    expect("mov.b32 d, {a, b};", "r:hh", &[(&[0x1111, 0x2222], 0x2222_1111)]);
    expect("mov.b64 d, {a, b};", "l:rr", &[(&[1, 2], 2 << 32 | 1)]);
    expect("mov.b32 {d, _}, a;", "h:r", &[(&[0x2222_1111], 0x1111)]);
    expect("mov.b32 {_, d}, a;", "h:r", &[(&[0x2222_1111], 0x2222)]);
    expect("mov.b64 {_, d}, a;", "r:l", &[(&[7 << 32 | 3], 7)]);
    expect("selp.b32 d, a, b, c;", "r:rrp", &[(&[1, 2, 1], 1), (&[1, 2, 0], 2)]);
    expect("selp.b64 d, a, b, c;", "l:llp", &[(&[1, 2, 0], 2)]);
    expect("slct.b32.s32 d, a, b, c;", "r:rrr", &[(&[1, 2, M], 2), (&[1, 2, 0], 1)]);
    expect("slct.b32.f32 d, a, b, c;", "r:rrf", &[(&[1, 2, 0x8000_0000], 1), (&[1, 2, 0x7fc0_0000], 2)]);
}

#[test]
fn comparisons() {
    expect("setp.lt.s32 d, a, b;", "p:rr", &[(&[M, 0], 1), (&[0, M], 0)]);
    expect("setp.lt.u32 d, a, b;", "p:rr", &[(&[M, 0], 0), (&[0, M], 1)]);
    expect("setp.hs.u32 d, a, b;", "p:rr", &[(&[M, 0], 1)]);
    expect("setp.ge.s64 d, a, b;", "p:ll", &[(&[u64::MAX, 0], 0), (&[0, 0], 1)]);
    expect("setp.gt.s16 d, a, b;", "p:hh", &[(&[1, 0xffff], 1)]);
    expect("setp.eq.and.s32 d, a, b, c;", "p:rrp", &[(&[1, 1, 1], 1), (&[1, 1, 0], 0)]);
    expect("setp.eq.xor.s32 d, a, b, !c;", "p:rrp", &[(&[1, 1, 1], 1), (&[1, 1, 0], 0)]);
    expect("{ .reg .pred q; setp.eq.or.s32 q|d, a, b, c; }", "p:rrp", &[(&[1, 1, 0], 0), (&[1, 2, 0], 1)]);
    expect("set.lt.u32.s32 d, a, b;", "r:rr", &[(&[1, 2], M), (&[2, 1], 0)]);
    expect("set.eq.f32.f32 d, a, b;", "f:ff", &[(&[0, 0x8000_0000], 0x3f80_0000)]);
    expect("not.pred d, a;", "p:p", &[(&[0], 1)]);
    expect("xor.pred d, a, b;", "p:pp", &[(&[1, 1], 0), (&[1, 0], 1)]);
}
