//! exp, tanh and the normal distribution in f32, written so that a loop over them vectorises.
//!
//! Every function is branch-free arithmetic and passes NaN on. Polynomials are minimax fits made for this
//! project (weighted least squares with Lawson's reweighting, and Remez exchange); their errors are quoted
//! in units of 2⁻²⁴, the unit roundoff of f32. The total errors are asserted in the tests below.

use super::simd::Isa;

/// Results of [`exp`] below 2⁻¹²⁶ become 0.
const EXP_LOWEST: f32 = -87.336_54;
/// Beyond this [`exp`] is infinity. (The largest finite f32 would allow 88.72.)
const EXP_HIGHEST: f32 = 88.376;

/// eˣ; error below 1.1 ulp where the result is normal, 0 below that, ∞ above x = 88.376.
#[inline(always)]
pub(crate) fn exp<I: Isa>(x: f32) -> f32 {
    exp_of_sum::<I>(x, 0.0)
}

/// e^(x + tail) for a `tail` far smaller than 1, without rounding the sum first.
#[inline(always)]
fn exp_of_sum<I: Isa>(x: f32, tail: f32) -> f32 {
    // Adding 1.5·2²³ leaves round(x·log₂e) in the low mantissa bits.
    const SHIFT: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has 9 significant bits, so that its product with n is exact unfused too.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let low = if x < EXP_LOWEST { EXP_LOWEST } else { x };
    let bounded = if low > EXP_HIGHEST { EXP_HIGHEST } else { low };
    let shifted = I::mul_add(bounded + tail, std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = I::mul_add(n, -LN_2_HIGH, bounded);
    let r = I::mul_add(n, -LN_2_LOW, r) + tail;
    // e^r on |r| ≤ ln 2 / 2, error 0.05 · 2⁻²⁴.
    let p = I::mul_add(0.001_381_461_8, r, 0.008_368_745);
    let p = I::mul_add(p, r, 0.041_668_39);
    let p = I::mul_add(p, r, 0.166_665_2);
    let p = I::mul_add(p, r, 0.499_999_93);
    let p = I::mul_add(p * r, r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let value = p * power;
    let value = if x < EXP_LOWEST { 0.0 } else { value };
    if x > EXP_HIGHEST { f32::INFINITY } else { value }
}

/// Hyperbolic tangent; error below 1.6 ulp.
#[inline(always)]
pub(crate) fn tanh<I: Isa>(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    // x + x³·P(x²) on |x| ≤ 0.625, error 0.07 · 2⁻²⁴.
    let p = I::mul_add(-0.005_704_989, s, 0.020_639_09);
    let p = I::mul_add(p, s, -0.053_739_715);
    let p = I::mul_add(p, s, 0.133_314_42);
    let p = I::mul_add(p, s, -0.333_332_8);
    let small = I::mul_add(p * s, x, x);
    let large = (1.0 - 2.0 / (exp::<I>(2.0 * a) + 1.0)).copysign(x);
    if a > 0.625 { large } else { small }
}

/// (Φ(x), e^(−x²/2)): the standard normal distribution function and its unnormalised density.
///
/// Both are accurate relatively, 8 ulp and 1.6 ulp, in the lower tail too, where ½(1 + erf) cancels. The 8 are next
/// to x = 0, where the roundings of t and of Horner's rule count most.
#[inline(always)]
pub(crate) fn normal<I: Isa>(x: f32) -> (f32, f32) {
    let a = x.abs();
    // a² = head² + (a − head)(a + head), where head has 12 bits, so that head² is exact.
    let head = f32::from_bits(a.to_bits() & 0xffff_f000);
    let density = exp_of_sum::<I>(-0.5 * head * head, -0.5 * (a - head) * (a + head));
    // Φ(−a) = e^(−a²/2) · t·Q(t) with t = 1/(1 + 0.35 a), for a in [0, 13.3]; error 0.5 · 2⁻²⁴.
    let t = 1.0 / I::mul_add(0.35, a, 1.0);
    let q = I::mul_add(-0.029_115_032, t, 0.143_818_49);
    let q = I::mul_add(q, t, -0.255_391_17);
    let q = I::mul_add(q, t, 0.158_796_75);
    let q = I::mul_add(q, t, -0.022_843_55);
    let q = I::mul_add(q, t, 0.105_392_2);
    let q = I::mul_add(q, t, 0.119_863_08);
    let q = I::mul_add(q, t, 0.139_857_56);
    let q = I::mul_add(q, t, 0.139_621_66);
    let lower = density * (t * q);
    (if x < 0.0 { lower } else { 1.0 - lower }, density)
}

#[cfg(test)]
mod tests {
    use super::super::simd::simd_fn;
    use super::*;

    simd_fn! {
        fn exp_at<I>(x: f32) -> f32 { exp::<I>(x) }
    }
    simd_fn! {
        fn tanh_at<I>(x: f32) -> f32 { tanh::<I>(x) }
    }
    simd_fn! {
        fn normal_at<I>(x: f32) -> (f32, f32) { normal::<I>(x) }
    }

    /// The largest error in ulp of `ours` over all f32 of `from..to` (by bits) that are `step` apart, and their
    /// negatives, where the exact result is a normal f32.
    fn worst(from: f32, to: f32, step: usize, ours: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let points = (from.to_bits()..to.to_bits()).step_by(step).map(f32::from_bits);
        points.flat_map(|x| [x, -x]).fold(0.0, |worst: f64, x| {
            let exact = exact(f64::from(x));
            if exact.abs() < f64::from(f32::MIN_POSITIVE) || exact.abs() > f64::from(f32::MAX) {
                return worst;
            }
            let ulp = 2f64.powi(exact.abs().log2().floor() as i32 - 23);
            worst.max((f64::from(ours(x)) - exact).abs() / ulp)
        })
    }

    #[test]
    fn errors_stay_below_what_is_stated() {
        let root = std::f64::consts::FRAC_1_SQRT_2;
        let exp = worst(1e-6, 88.3, 311, exp_at, f64::exp);
        let tanh = worst(1e-6, 20.0, 311, tanh_at, f64::tanh);
        let distribution = worst(1e-6, 13.2, 311, |x| normal_at(x).0, |x| 0.5 * libm::erfc(-x * root));
        let density = worst(1e-6, 13.2, 311, |x| normal_at(x).1, |x| (-0.5 * x * x).exp());
        println!("exp {exp:.3}, tanh {tanh:.3}, distribution {distribution:.3}, density {density:.3} ulp");
        assert!(exp < 1.1 && tanh < 1.6 && distribution < 8.0 && density < 1.6);
    }
}
