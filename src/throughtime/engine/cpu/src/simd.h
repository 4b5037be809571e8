// Vectors of one instruction set: TT_BYTES wide, as GCC and Clang spell them, in the namespace TT_ISA.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TT_INLINE inline __attribute__((always_inline))

namespace TT_ISA {

template <class T> struct Simd;

template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(TT_BYTES)));
    typedef float Loose __attribute__((vector_size(TT_BYTES), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(TT_BYTES)));
};

template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(TT_BYTES)));
    typedef double Loose __attribute__((vector_size(TT_BYTES), aligned(8), may_alias));
    typedef int64_t I __attribute__((vector_size(TT_BYTES)));
};

template <class T> using Vec = typename Simd<T>::V;
template <class T> using Mask = typename Simd<T>::I;
template <class T> constexpr int lanes = TT_BYTES / sizeof(T);

template <class T> TT_INLINE Vec<T> load(const T* p) { return *(const typename Simd<T>::Loose*)p; }
template <class T> TT_INLINE void store(T* p, Vec<T> v) { *(typename Simd<T>::Loose*)p = v; }

// The first n numbers of a vector; the rest is zero. For the end of a row whose length is no multiple of the vector's.
template <class T> TT_INLINE Vec<T> load_part(const T* p, int n) {
    Vec<T> v = {};
    std::memcpy(&v, p, n * sizeof(T));
    return v;
}
template <class T> TT_INLINE void store_part(T* p, Vec<T> v, int n) { std::memcpy(p, &v, n * sizeof(T)); }

template <class T> TT_INLINE Vec<T> spread(T a) { return a - Vec<T>{}; }

template <class T> TT_INLINE T least(T a, T b) { return a < b ? a : b; }
template <class T> TT_INLINE T most(T a, T b) { return a > b ? a : b; }

TT_INLINE long round_up(long n, long to) { return (n + to - 1) / to * to; }

// A vanishing gradient ends in denormal numbers, which cost a hundred cycles each: they count as zero while this lives.
struct FlushDenormals {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushDenormals() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" ::"r"(before | (1ull << 24)));
    }
    ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

}  // namespace TT_ISA
