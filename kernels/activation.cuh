// The activations, each as (value, derivative); the half that a kernel does not use is dropped by the compiler.
//
// Formulas, constants and error bounds are those of src/ops/activation and src/ops/elementary.rs. NaN is passed on.
#pragma once
#include "prelude.cuh"

// As the kernels' `int activation` arguments say it; ACTIVATION_NONE is the identity.
#define ACTIVATION_NONE 0
#define ACTIVATION_GELU_ERF 1
#define ACTIVATION_GELU_TANH 2
#define ACTIVATION_RELU 3
#define ACTIVATION_TANH 4

struct Evaluated {
    float value, derivative;
};

// 1/d for d in [1, 2^126): the approximation and one Newton step, within 1 ulp.
__device__ __forceinline__ float reciprocal(float d) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d));
    return __fmaf_rn(y, __fmaf_rn(-d, y, 1.0f), y);
}

// e^(x + tail) for x ≤ 0 and a tail far below 1; 0 where the result would not be normal. NaN only where the tail is.
__device__ __forceinline__ float exp_nonpositive(float x, float tail) {
    const float shift = 12582912.0f; // 1.5·2²³: leaves round(x·log₂e) in the low mantissa bits
    const float lowest = -87.33654f;
    const float bounded = fmaxf(x, lowest);
    const float shifted = __fmaf_rn(bounded, 1.44269504f, shift);
    const float n = shifted - shift;
    // ln 2 in two parts; n times the first is exact.
    const float r = __fmaf_rn(n, 2.1219444e-4f, __fmaf_rn(n, -0.6933594f, bounded)) + tail;
    float p = __fmaf_rn(0.0013814618f, r, 0.008368745f);
    p = __fmaf_rn(p, r, 0.04166839f);
    p = __fmaf_rn(p, r, 0.1666652f);
    p = __fmaf_rn(p, r, 0.49999993f);
    p = __fmaf_rn(p * r, r, r) + 1.0f;
    const float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x < lowest ? 0.0f : p * power;
}

// Φ(x), and its density without the factor 1/√(2π); both keep their relative accuracy in the lower tail.
__device__ __forceinline__ float normal_distribution(float x, float& density) {
    const float a = fabsf(x), half = -0.5f * a, exponent = half * a;
    density = exp_nonpositive(exponent, __fmaf_rn(half, a, -exponent)); // the tail is what rounding the product lost
    // Φ(−a) = e^(−a²/2) · t·Q(t), t = 1/(1 + 0.35 a). Beyond 14 the density is 0; the bound keeps infinity out.
    const float t = reciprocal(__fmaf_rn(0.35f, fminf(a, 1000.0f), 1.0f));
    float q = __fmaf_rn(-0.029115032f, t, 0.14381849f);
    q = __fmaf_rn(q, t, -0.25539117f);
    q = __fmaf_rn(q, t, 0.15879675f);
    q = __fmaf_rn(q, t, -0.02284355f);
    q = __fmaf_rn(q, t, 0.1053922f);
    q = __fmaf_rn(q, t, 0.11986308f);
    q = __fmaf_rn(q, t, 0.13985757f);
    q = __fmaf_rn(q, t, 0.13962166f);
    const float lower = density * (t * q);
    return x < 0.0f ? lower : 1.0f - lower;
}

struct GeluErf {
    static __device__ __forceinline__ Evaluated at(float x) {
        float density;
        const float distribution = normal_distribution(x, density);
        return {x * distribution, __fmaf_rn(x * 0.3989423f, density, distribution)};
    }
};

struct GeluTanh {
    static __device__ __forceinline__ Evaluated at(float x) {
        // 2√(2/π) and that times 0.044715. The clamp keeps x² finite and NaN a NaN; beyond it the sigmoid is 0 or 1.
        const float a = 1.595769f, b = 0.071354814f, saturated = 16.0f;
        float c = x > saturated ? saturated : x;
        c = c < -saturated ? -saturated : c;
        const float s = c * c;
        // ½(1 + tanh u) is the sigmoid of 2u. With e = e^(−|2u|) it is 1/(1 + e) or e/(1 + e), and its product with
        // 1 − sigmoid is e/(1 + e)² for either sign, so nothing cancels.
        const float e = exp_nonpositive(-fabsf(c * __fmaf_rn(b, s, a)), 0.0f), r = reciprocal(1.0f + e);
        const float sigmoid = c < 0.0f ? e * r : r;
        const float slope = c * __fmaf_rn(3.0f * b, s, a);
        return {x * sigmoid, __fmaf_rn(e * r * r, slope, sigmoid)};
    }
};

struct Relu {
    static __device__ __forceinline__ Evaluated at(float x) { return {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f}; }
};

struct Tanh {
    static __device__ __forceinline__ Evaluated at(float x) {
        const float s = x * x;
        float p = __fmaf_rn(-0.005704989f, s, 0.02063909f);
        p = __fmaf_rn(p, s, -0.053739715f);
        p = __fmaf_rn(p, s, 0.13331442f);
        p = __fmaf_rn(p, s, -0.3333328f);
        const float small = __fmaf_rn(p * s, x, x);
        const float e = exp_nonpositive(-2.0f * fabsf(x), 0.0f);
        const float large = copysignf(1.0f - 2.0f * e * reciprocal(1.0f + e), x);
        const float y = fabsf(x) > 0.625f ? large : small; // NaN takes the polynomial
        return {y, __fmaf_rn(-y, y, 1.0f)};
    }
};

// Value of an activation chosen at run time; the choice is uniform over a launch.
__device__ __forceinline__ float activation_value(int kind, float x) {
    switch (kind) {
        case ACTIVATION_GELU_ERF: return GeluErf::at(x).value;
        case ACTIVATION_GELU_TANH: return GeluTanh::at(x).value;
        case ACTIVATION_RELU: return Relu::at(x).value;
        case ACTIVATION_TANH: return Tanh::at(x).value;
        default: return x;
    }
}
