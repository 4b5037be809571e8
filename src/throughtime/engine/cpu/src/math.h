// The functions of a tape on whole vectors: exp, tanh and sigmoid by polynomials in float32, the rest by libm.
//
// Largest errors in float32, over all arguments whose result is a normal number (tests/engine/cpu measures them):
// exp 2 ulp, tanh 4 ulp, sigmoid 4 ulp. A NaN stays one. float64 is libm's: it is there to check against.
#pragma once
#include <cmath>

#include "simd.h"

namespace TT_ISA {

template <class T, class F> TT_INLINE Vec<T> each(Vec<T> a, F f) {
    for (int i = 0; i < lanes<T>; i++) a[i] = f(a[i]);
    return a;
}

// y = n ln 2 + r with |r| <= ln 2 / 2. n is a whole number both as a float and in the low bits of `bits`.
struct Reduced {
    Vec<float> r;
    Mask<float> n;
};

TT_INLINE Reduced reduce(Vec<float> y) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded number in the low bits
    Vec<float> shifted = y * 1.44269504f + magic;
    Vec<float> n = shifted - magic;
    Mask<float> bits = (Mask<float>)shifted - 0x4b400000;
    return {(y - n * 0.693145752f) - n * 1.42860677e-6f, bits};
}

// exp(r) - 1 for |r| <= ln 2 / 2, relative error 1.4e-8 (a weighted least-squares fit).
TT_INLINE Vec<float> expm1_small(Vec<float> r) {
    Vec<float> q = spread(0.00138825099f);
    q = q * r + 0.00836658035f;
    q = q * r + 0.0416672018f;
    q = q * r + 0.166665432f;
    q = q * r + 0.499999981f;
    return r + r * r * q;
}

TT_INLINE Vec<float> power_of_two(Mask<float> n) { return (Vec<float>)((n + 127) << 23); }

TT_INLINE Vec<float> reciprocal(Vec<float> a) {
#if TT_BYTES == 64 && defined(__AVX512F__)
    // One Newton step. Fused, for near the smallest normal number the correction alone would be flushed to zero.
    const __m512 r = _mm512_rcp14_ps((__m512)a);
    return (Vec<float>)_mm512_fmadd_ps(r, _mm512_fnmadd_ps((__m512)a, r, _mm512_set1_ps(1.0f)), r);
#else
    return 1.0f / a;
#endif
}

TT_INLINE Vec<float> vexp(Vec<float> x) {
    // Comparisons with a NaN are false, so that it passes both bounds and poisons the result.
    Vec<float> y = x > 89.0f ? spread(89.0f) : x;
    y = y < -104.0f ? spread(-104.0f) : y;
    Reduced a = reduce(y);
    Mask<float> half = a.n >> 1;
    return (1.0f + expm1_small(a.r)) * power_of_two(half) * power_of_two(a.n - half);
}

TT_INLINE Vec<float> vsigmoid(Vec<float> x) {
    Vec<float> y = x < -87.0f ? spread(87.0f) : -x;
    y = y < -87.0f ? spread(-87.0f) : y;
    Reduced a = reduce(y);
    Vec<float> scale = power_of_two(a.n);
    return reciprocal(scale * expm1_small(a.r) + (scale + 1.0f));
}

TT_INLINE Vec<float> vtanh(Vec<float> x) {
    // tanh |x| = e / (e + 2) with e = exp(2 |x|) - 1, which loses no digit near 0.
    Mask<float> sign = (Mask<float>)x & (int32_t)0x80000000;
    Vec<float> y = (Vec<float>)((Mask<float>)x ^ sign) * 2.0f;
    y = y > 20.0f ? spread(20.0f) : y;
    Reduced a = reduce(y);
    Vec<float> scale = power_of_two(a.n);
    Vec<float> e = scale * expm1_small(a.r) + (scale - 1.0f);
    return (Vec<float>)((Mask<float>)(e * reciprocal(e + 2.0f)) ^ sign);
}

TT_INLINE Vec<double> reciprocal(Vec<double> a) { return 1.0 / a; }
TT_INLINE Vec<double> vexp(Vec<double> x) {
    return each<double>(x, [](double v) { return std::exp(v); });
}
TT_INLINE Vec<double> vtanh(Vec<double> x) {
    return each<double>(x, [](double v) { return std::tanh(v); });
}
TT_INLINE Vec<double> vsigmoid(Vec<double> x) {
    return each<double>(x, [](double v) { return 1 / (1 + std::exp(-v)); });
}

}  // namespace TT_ISA
