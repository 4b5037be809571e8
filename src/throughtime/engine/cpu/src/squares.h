// How large a row of numbers is, in any range: sums of squares where they are safe, scaled ones where they are not.
#pragma once
#include <cmath>

#include "simd.h"

namespace TT_ISA {

// Numbers whose squares, summed, are safely within the range of T; and how far a row may wander from 1.
template <class T> constexpr double square_low = sizeof(T) == 4 ? 0x1p-90 : 0x1p-900;
template <class T> constexpr double square_high = sizeof(T) == 4 ? 0x1p+110 : 0x1p+1000;
template <class T> constexpr double least_ratio = sizeof(T) == 4 ? 0x1p-95 : 0x1p-900;
template <class T> constexpr double far_away = sizeof(T) == 4 ? 0x1p+20 : 0x1p+300;

TT_INLINE double two_to(int e) { return std::ldexp(1.0, e); }

// The largest |v|; NaN if one is among them.
template <class T> TT_INLINE double largest_of(const T* v, long n) {
    double largest = 0;
    for (long u = 0; u < n; u++) {
        const double a = std::fabs((double)v[u]);
        if (a != a) return a;
        largest = most(largest, a);
    }
    return largest;
}

// One number is as large as several together: sqrt(a^2 + b^2), in any range.
TT_INLINE double joined(double a, double b) {
    if (!std::isfinite(a) || !std::isfinite(b)) return a + b;
    const double large = most(a, b), small = least(a, b);
    if (small == 0) return large;
    const double r = small / large;
    return large * std::sqrt(1 + r * r);
}

// The sum over a vector, pairwise.
template <class T> TT_INLINE double sum_of(Vec<T> v) {
    T a[lanes<T>];
    store(a, v);
#pragma GCC unroll 5
    for (int n = lanes<T> / 2; n; n /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) a[i] += a[i + n];
    return a[0];
}

// sum v^2, and sum q v^2.
struct Sums {
    double plain, weighted;
};

template <class T, bool WEIGHTED> TT_INLINE Sums sums_of_squares(const T* v, const T* q, long n) {
    constexpr int L = lanes<T>, N = 4;
    Vec<T> plain[N] = {}, weighted[N] = {};
    long u = 0;
    for (; u + N * L <= n; u += N * L)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            const Vec<T> a = load(v + u + j * L), square = a * a;
            plain[j] = plain[j] + square;
            if (WEIGHTED) weighted[j] = square * load(q + u + j * L) + weighted[j];
        }
    for (; u < n; u += L) {
        const int part = least<long>(L, n - u);
        const Vec<T> a = part == L ? load(v + u) : load_part(v + u, part), square = a * a;
        plain[0] = plain[0] + square;
        if (WEIGHTED) weighted[0] = square * (part == L ? load(q + u) : load_part(q + u, part)) + weighted[0];
    }
    const Vec<T> w = (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]);
    return {sum_of<T>((plain[0] + plain[1]) + (plain[2] + plain[3])), WEIGHTED ? sum_of<T>(w) : 0.0};
}

template <class T> TT_INLINE bool safe(double sum) { return sum > square_low<T> && sum < square_high<T>; }

// ||v|| of `parts` runs of n numbers, `apart` from one to the next.
template <class T> double size_of(const T* v, long parts, long apart, long n) {
    double sum = 0;
    for (long i = 0; i < parts; i++) sum += sums_of_squares<T, false>(v + i * apart, nullptr, n).plain;
    if (safe<T>(sum)) return std::sqrt(sum);
    double largest = 0;
    for (long i = 0; i < parts; i++) {
        const double a = largest_of(v + i * apart, n);
        if (a != a) return a;
        largest = most(largest, a);
    }
    if (largest == 0 || !std::isfinite(largest)) return largest;
    sum = 0;
    for (long i = 0; i < parts; i++)
        for (long u = 0; u < n; u++) {
            const double a = v[i * apart + u] / largest;
            sum += a * a;
        }
    return largest * std::sqrt(sum);
}

}  // namespace TT_ISA
