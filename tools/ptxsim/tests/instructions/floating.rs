//! Floating-point arithmetic.

use ptxsim::Approximations;

use crate::{Random, d, evaluate_with, expect, expect_formula, f};

const NAN: u64 = 0x7fff_ffff;

fn canonical(x: f32) -> u64 {
    if x.is_nan() { NAN } else { f(x) }
}

fn g(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn any(n: usize) -> impl FnMut(&mut Random) -> Vec<u64> {
    move |r| (0..n).map(|_| f(r.single())).collect()
}

fn moderate(n: usize) -> impl FnMut(&mut Random) -> Vec<u64> {
    move |r| (0..n).map(|_| f(r.moderate())).collect()
}

#[test]
fn correctly_rounded() {
    expect_formula("add.f32 d, a, b;", "f:ff", any(2), |x| canonical(g(x[0]) + g(x[1])));
    expect_formula("sub.rn.f32 d, a, b;", "f:ff", moderate(2), |x| canonical(g(x[0]) - g(x[1])));
    expect_formula("mul.f32 d, a, b;", "f:ff", any(2), |x| canonical(g(x[0]) * g(x[1])));
    expect_formula("div.rn.f32 d, a, b;", "f:ff", any(2), |x| canonical(g(x[0]) / g(x[1])));
    expect_formula("sqrt.rn.f32 d, a;", "f:f", any(1), |x| canonical(g(x[0]).sqrt()));
    expect_formula("rcp.rn.f32 d, a;", "f:f", any(1), |x| canonical(1.0 / g(x[0])));
    expect_formula("fma.rn.f32 d, a, b, c;", "f:fff", moderate(3), |x| {
        canonical(g(x[0]).mul_add(g(x[1]), g(x[2])))
    });
    // One rounding: (1 + 2^-12)^2 - 1 keeps the 2^-24 that two roundings lose.
    let e = 1.0 + 2f32.powi(-12);
    expect(
        "fma.rn.f32 d, a, b, c;",
        "f:fff",
        &[(&[f(e), f(e), f(-1.0)], f(2f32.powi(-11) + 2f32.powi(-24)))],
    );
    // A case where going through f64 rounds twice: the product is a tie of f32 less a tail far below f64.
    let (a, b, c) = (f(1.0 + 2f32.powi(-23)), f(1.0), f(2f32.powi(-24) + 2f32.powi(-47)));
    expect("fma.rn.f32 d, a, b, c;", "f:fff", &[(&[a, b, c], f(1.0 + 2f32.powi(-22)))]);
}

// A directed rounding is the neighbour on the right side of the exact value, found with integers.
fn round_exact(numerator: i128, exponent: i32, up: bool) -> f32 {
    let near = (numerator as f64 * 2f64.powi(exponent)) as f32;
    let value = |x: f32| (f64::from(x) * 2f64.powi(-exponent)) as i128;
    match (up, value(near).cmp(&numerator)) {
        (true, std::cmp::Ordering::Less) => near.next_up(),
        (false, std::cmp::Ordering::Greater) => near.next_down(),
        _ => near,
    }
}

#[test]
fn directed_rounding() {
    // Operands k/2^20 with |k| < 2^23: sums and products are exact integers over 2^40.
    let operands =
        |r: &mut Random| (0..3).map(|_| f(((r.bits() as i32) >> 8) as f32 / (1 << 20) as f32)).collect();
    let k = |bits: u64| (f64::from(g(bits)) * f64::from(1 << 20)) as i128;
    for (suffix, up) in [("rm", false), ("rp", true)] {
        let wanted = |n: i128| {
            let zero = n == 0 && !up;
            if zero { f(-0.0) } else { f(round_exact(n, -40, up)) }
        };
        expect_formula(&format!("mul.{suffix}.f32 d, a, b;"), "f:fff", operands, |x| {
            wanted(k(x[0]) * k(x[1]))
        });
        expect_formula(&format!("fma.{suffix}.f32 d, a, b, c;"), "f:fff", operands, |x| {
            wanted(k(x[0]) * k(x[1]) + (k(x[2]) << 20))
        });
        expect_formula(&format!("add.{suffix}.f32 d, a, b;"), "f:fff", operands, |x| {
            wanted((k(x[0]) + k(x[1])) << 20)
        });
    }
    let third = 1.0f32 / 3.0;
    let ulp = f(third) - 1;
    // 1/3 rounds up to nearest (0x3eaaaaab).
    expect("div.rn.f32 d, a, b;", "f:ff", &[(&[f(1.0), f(3.0)], f(third))]);
    expect("div.rz.f32 d, a, b;", "f:ff", &[(&[f(1.0), f(3.0)], ulp), (&[f(-1.0), f(3.0)], ulp | 1 << 31)]);
    expect("rcp.rp.f32 d, a;", "f:f", &[(&[f(3.0)], f(third)), (&[f(-3.0)], ulp | 1 << 31)]);
    expect("sqrt.rm.f32 d, a;", "f:f", &[(&[f(2.0)], 0x3fb5_04f3)]);
    expect("sqrt.rp.f32 d, a;", "f:f", &[(&[f(2.0)], 0x3fb5_04f4), (&[f(4.0)], f(2.0))]);
    expect(
        "add.rm.f32 d, a, b;",
        "f:ff",
        &[(&[f(1.0), f(-1.0)], f(-0.0)), (&[f(f32::MAX), f(1.0)], f(f32::MAX))],
    );
    expect("add.rp.f32 d, a, b;", "f:ff", &[(&[f(f32::MAX), f(1.0)], f(f32::INFINITY))]);
    expect(
        "add.rz.f32 d, a, b;",
        "f:ff",
        &[(&[f(1.0), f(1e-30)], f(1.0)), (&[f(1.0), f(-1e-30)], f(1.0f32.next_down()))],
    );
}

#[test]
fn flushing_and_saturation() {
    let tiny = 1; // the least subnormal
    expect("add.ftz.f32 d, a, b;", "f:ff", &[(&[tiny, tiny], 0), (&[0x8000_0001, f(-0.0)], f(-0.0))]);
    expect("add.f32 d, a, b;", "f:ff", &[(&[tiny, tiny], 2)]);
    expect("mul.ftz.f32 d, a, b;", "f:ff", &[(&[f(1e-30), f(1e-10)], 0), (&[f(1e-30), f(-1e-10)], f(-0.0))]);
    expect(
        "add.sat.f32 d, a, b;",
        "f:ff",
        &[(&[f(0.75), f(0.5)], f(1.0)), (&[f(-1.0), f(0.5)], 0), (&[NAN, 0], 0)],
    );
    expect("fma.rn.sat.f32 d, a, b, c;", "f:fff", &[(&[f(2.0), f(2.0), f(-3.5)], f(0.5))]);
    expect("neg.ftz.f32 d, a;", "f:f", &[(&[tiny], f(-0.0))]);
    expect("abs.f32 d, a;", "f:f", &[(&[f(-2.0)], f(2.0))]);
    expect("neg.f32 d, a;", "f:f", &[(&[0], f(-0.0))]);
    expect("copysign.f32 d, a, b;", "f:ff", &[(&[f(-1.0), f(5.0)], f(-5.0)), (&[f(1.0), f(-5.0)], f(5.0))]);
}

#[test]
fn extremes() {
    expect(
        "min.f32 d, a, b;",
        "f:ff",
        &[(&[f(1.0), NAN], f(1.0)), (&[NAN, NAN], NAN), (&[0, f(-0.0)], f(-0.0))],
    );
    expect(
        "max.f32 d, a, b;",
        "f:ff",
        &[(&[0x7fc0_0001, f(1.0)], f(1.0)), (&[f(-0.0), 0], 0), (&[f(2.0), f(3.0)], f(3.0))],
    );
    expect("max.NaN.f32 d, a, b;", "f:ff", &[(&[f(1.0), 0x7fc0_0001], NAN)]);
    expect("min.f64 d, a, b;", "d:dd", &[(&[d(1.0), d(f64::NAN)], d(1.0)), (&[d(0.0), d(-0.0)], d(-0.0))]);
}

#[test]
fn ordered_and_unordered_comparisons() {
    let one = f(1.0);
    for (name, less, equal, unordered) in [
        ("eq", 0, 1, 0),
        ("ne", 1, 0, 0),
        ("lt", 1, 0, 0),
        ("le", 1, 1, 0),
        ("gt", 0, 0, 0),
        ("ge", 0, 1, 0),
        ("equ", 0, 1, 1),
        ("neu", 1, 0, 1),
        ("ltu", 1, 0, 1),
        ("leu", 1, 1, 1),
        ("gtu", 0, 0, 1),
        ("geu", 0, 1, 1),
        ("num", 1, 1, 0),
        ("nan", 0, 0, 1),
    ] {
        let rows: [(&[u64], u64); 3] =
            [(&[one, f(2.0)], less), (&[one, one], equal), (&[one, NAN], unordered)];
        expect(&format!("setp.{name}.f32 d, a, b;"), "p:ff", &rows);
    }
    expect("setp.gt.ftz.f32 d, a, b;", "p:ff", &[(&[1, 0], 0)]);
    expect("setp.gt.f32 d, a, b;", "p:ff", &[(&[1, 0], 1)]);
    expect("testp.infinite.f32 d, a;", "p:f", &[(&[f(f32::INFINITY)], 1), (&[one], 0)]);
    expect("testp.subnormal.f32 d, a;", "p:f", &[(&[1], 1), (&[one], 0)]);
}

#[test]
fn approximations_are_the_rounded_value() {
    expect(
        "ex2.approx.f32 d, a;",
        "f:f",
        &[(&[f(10.0)], f(1024.0)), (&[f(0.5)], 0x3fb5_04f3), (&[f(-149.0)], 1)],
    );
    expect("ex2.approx.ftz.f32 d, a;", "f:f", &[(&[f(-149.0)], 0), (&[f(f32::NEG_INFINITY)], 0)]);
    expect(
        "lg2.approx.f32 d, a;",
        "f:f",
        &[(&[f(8.0)], f(3.0)), (&[0], f(f32::NEG_INFINITY)), (&[f(-1.0)], NAN)],
    );
    expect(
        "rsqrt.approx.f32 d, a;",
        "f:f",
        &[(&[f(4.0)], f(0.5)), (&[0], f(f32::INFINITY)), (&[f(-0.0)], f(f32::NEG_INFINITY))],
    );
    expect("sqrt.approx.f32 d, a;", "f:f", &[(&[f(9.0)], f(3.0))]);
    expect("rcp.approx.ftz.f32 d, a;", "f:f", &[(&[f(4.0)], f(0.25)), (&[1], f(f32::INFINITY))]);
    expect("tanh.approx.f32 d, a;", "f:f", &[(&[0], 0), (&[f(20.0)], f(1.0)), (&[f(0.5)], 0x3eec_9a9f)]);
    expect("sin.approx.f32 d, a;", "f:f", &[(&[f(1.0)], 0x3f57_6aa4)]);
    expect("cos.approx.f32 d, a;", "f:f", &[(&[f(1.0)], 0x3f0a_5140)]);
    expect(
        "div.approx.f32 d, a, b;",
        "f:ff",
        &[(&[f(6.0), f(3.0)], f(2.0)), (&[f(1.0), f(2e38)], 0), (&[f(f32::INFINITY), f(2e38)], NAN)],
    );
    expect("div.full.f32 d, a, b;", "f:ff", &[(&[f(1.0), f(2e38)], f(1.0 / 2e38))]);
}

#[test]
fn double_precision() {
    expect("add.f64 d, a, b;", "d:dd", &[(&[d(0.1), d(0.2)], d(0.1 + 0.2))]);
    expect(
        "fma.rn.f64 d, a, b, c;",
        "d:ddd",
        &[(&[d(0.1), d(10.0), d(-1.0)], d(0.1f64.mul_add(10.0, -1.0)))],
    );
    expect("div.rn.f64 d, a, b;", "d:dd", &[(&[d(1.0), d(3.0)], d(1.0 / 3.0))]);
    expect("sqrt.rn.f64 d, a;", "d:d", &[(&[d(2.0)], d(2f64.sqrt()))]);
    expect("rcp.rn.f64 d, a;", "d:d", &[(&[d(3.0)], d(1.0 / 3.0))]);
    expect("setp.neu.f64 d, a, b;", "p:dd", &[(&[d(1.0), d(f64::NAN)], 1)]);
}

#[test]
fn half_precision() {
    // 1 + 2^-8 in bf16 is a tie; 0x3f80 is 1.0, 0x3b80 is 2^-8, 0x3c00 is 2^-7.
    expect("add.rn.bf16 d, a, b;", "h:hh", &[(&[0x3f80, 0x3b80], 0x3f80), (&[0x3f81, 0x3b80], 0x3f82)]);
    expect("fma.rn.bf16 d, a, b, c;", "h:hhh", &[(&[0x3f80, 0x3f80, 0x3c00], 0x3f81)]);
    expect("mul.f16x2 d, a, b;", "r:rr", &[(&[0x4000_3c00, 0x4200_4200], 0x4600_4200)]);
    expect("fma.rn.bf16x2 d, a, b, c;", "r:rrr", &[(&[0x4000_3f80, 0x4040_4040, 0x3f80_0000], 0x40e0_4040)]);
    expect("fma.rn.relu.bf16 d, a, b, c;", "h:hhh", &[(&[0xbf80, 0x3f80, 0], 0)]);
    expect("max.bf16x2 d, a, b;", "r:rr", &[(&[0x3f80_bf80, 0x4000_7fc0], 0x4000_bf80)]);
    expect("neg.bf16x2 d, a;", "r:r", &[(&[0x3f80_bf80], 0xbf80_3f80)]);
    expect("add.f16 d, a, b;", "h:hh", &[(&[0x7bff, 0x7bff], 0x7c00)]);
}

#[test]
fn approximations_reach_the_ends_of_their_bounds_and_no_further() {
    // Instruction, operand, exact value, the ISA's bound.
    let ulp = |x: f64| f64::from((x as f32).next_up()) - f64::from(x as f32);
    let (third, e) = (1.0 / 3.0, f64::from(1.3f32).exp2());
    let cases: [(&str, f32, f64, f64); 8] = [
        ("ex2.approx.ftz.f32 d, a;", 1.3, e, 2.0 * ulp(e)),
        ("rcp.approx.ftz.f32 d, a;", 3.0, third, ulp(third)),
        ("rsqrt.approx.f32 d, a;", 3.0, third.sqrt(), third.sqrt() * 2f64.powf(-22.9)),
        ("sqrt.approx.f32 d, a;", 3.0, 3f64.sqrt(), 3f64.sqrt() * 2f64.powi(-23)),
        ("lg2.approx.f32 d, a;", 1.5, 1.5f64.log2(), 2f64.powf(-22.6)),
        ("lg2.approx.f32 d, a;", 9.0, 9f64.log2(), 9f64.log2() * 2f64.powf(-22.6)),
        ("tanh.approx.f32 d, a;", 0.5, 0.5f64.tanh(), 0.5f64.tanh() * 2f64.powi(-11)),
        ("sin.approx.f32 d, a;", 0.5, 0.5f64.sin(), 2f64.powf(-20.9)),
    ];
    for (instruction, operand, exact, bound) in cases {
        let at = |to| f64::from(g(evaluate_with(instruction, "f:f", &[vec![f(operand)]], to)[0]));
        let (least, greatest) = (at(Approximations::Least), at(Approximations::Greatest));
        // From the rounded value, which is half an ulp off, to the last f32 inside the bound.
        let rounded = f64::from(exact as f32);
        for (found, other) in [(least, rounded - bound), (greatest, rounded + bound)] {
            assert!((found - rounded).abs() <= bound, "{instruction}: {found} for {rounded} ± {bound:e}");
            assert!((found - other).abs() < ulp(exact), "{instruction}: {found} stops short of {other}");
        }
        assert!(least < greatest, "{instruction}: {least} and {greatest}");
    }
    // What the ISA fixes stays, and so does what is rounded correctly.
    for to in [Approximations::Least, Approximations::Greatest] {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(|x| vec![f(x)]);
        let of = |instruction: &str| evaluate_with(instruction, "f:f", &special, to);
        assert_eq!(of("ex2.approx.f32 d, a;"), [f(1.0), f(1.0), f(f32::INFINITY), f(0.0), NAN]);
        assert_eq!(
            of("rcp.approx.ftz.f32 d, a;")[..4],
            [f(f32::INFINITY), f(f32::NEG_INFINITY), f(0.0), f(-0.0)]
        );
        assert_eq!(evaluate_with("rcp.rn.f32 d, a;", "f:f", &[vec![f(3.0)]], to), [f(1.0 / 3.0)]);
    }
}
