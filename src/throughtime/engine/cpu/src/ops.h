// The operations of a tape: one list, in the order of the codes that the Python side sends, and what each computes.
#pragma once
#include "math.h"

#define TT_OPERATIONS(X)                                                                                          \
    X(affine) X(add) X(sub) X(mul) X(div) X(reciprocal) X(power) X(sqrt) X(exp) X(log) X(sin) X(cos) X(erf)        \
    X(abs) X(sign) X(tanh) X(sigmoid) X(relu) X(softplus) X(maximum) X(minimum) X(clamp) X(heaviside) X(select)    \
    X(dsigmoid) X(dtanh) X(copy) X(fma) X(fms) X(fnma) X(lerp) X(tanh_fma) X(sigmoid_fma) X(mul_tanh)              \
    X(mul_dsigmoid) X(mul_dtanh) X(dtanh_add) X(add_dtanh) X(sum) X(sum_mul)

namespace TT_ISA {

enum class Code {
#define X(name) name,
    TT_OPERATIONS(X)
#undef X
};

// How many values an operation reads.
constexpr int operands(Code c) {
    switch (c) {
    case Code::add: case Code::sub: case Code::mul: case Code::div: case Code::maximum: case Code::minimum:
    case Code::dsigmoid: case Code::dtanh: case Code::mul_tanh: case Code::sum_mul:
        return 2;
    case Code::select: case Code::fma: case Code::fms: case Code::fnma: case Code::lerp: case Code::tanh_fma:
    case Code::sigmoid_fma: case Code::mul_dsigmoid: case Code::mul_dtanh: case Code::dtanh_add: case Code::add_dtanh:
        return 3;
    default:
        return 1;
    }
}

template <class T, Code C> TT_INLINE Vec<T> compute(Vec<T> a, Vec<T> b, Vec<T> c, T k0, T k1) {
    const Vec<T> zero = {};
    if constexpr (C == Code::affine) return a * k0 + k1;
    else if constexpr (C == Code::add) return a + b;
    else if constexpr (C == Code::sub) return a - b;
    else if constexpr (C == Code::mul) return a * b;
    else if constexpr (C == Code::div) return a / b;
    else if constexpr (C == Code::reciprocal) return T(1) / a;
    else if constexpr (C == Code::power) return each<T>(a, [=](T v) { return std::pow(v, k0); });
    else if constexpr (C == Code::sqrt) return each<T>(a, [](T v) { return std::sqrt(v); });
    else if constexpr (C == Code::exp) return vexp(a);
    else if constexpr (C == Code::log) return each<T>(a, [](T v) { return std::log(v); });
    else if constexpr (C == Code::sin) return each<T>(a, [](T v) { return std::sin(v); });
    else if constexpr (C == Code::cos) return each<T>(a, [](T v) { return std::cos(v); });
    else if constexpr (C == Code::erf) return each<T>(a, [](T v) { return std::erf(v); });
    else if constexpr (C == Code::abs) return a < zero ? -a : a + zero;
    else if constexpr (C == Code::sign) return a > zero ? spread(T(1)) : (a < zero ? spread(T(-1)) : a);
    else if constexpr (C == Code::tanh) return vtanh(a);
    else if constexpr (C == Code::sigmoid) return vsigmoid(a);
    else if constexpr (C == Code::relu) return a < zero ? zero : a;
    else if constexpr (C == Code::softplus)  // as torch: a itself above 20
        return each<T>(a, [](T v) { return v > 20 ? v : std::log1p(std::exp(v)); });
    else if constexpr (C == Code::maximum) return ((a > b) | (a != a)) ? a : b;
    else if constexpr (C == Code::minimum) return ((a < b) | (a != a)) ? a : b;
    else if constexpr (C == Code::clamp) {
        a = a < k0 ? spread(k0) : a;
        return a > k1 ? spread(k1) : a;
    }
    else if constexpr (C == Code::heaviside) return a > zero ? spread(T(1)) : (a == zero ? spread(k0) : zero);
    else if constexpr (C == Code::select) return a != zero ? b : c;
    else if constexpr (C == Code::dsigmoid) return a * b * (T(1) - b);
    else if constexpr (C == Code::dtanh) return a * (T(1) - b * b);
    else if constexpr (C == Code::copy || C == Code::sum) return a;
    else if constexpr (C == Code::fma || C == Code::sum_mul) return a * b + c;
    else if constexpr (C == Code::fms) return a * b - c;
    else if constexpr (C == Code::fnma) return c - a * b;
    else if constexpr (C == Code::lerp) return c + a * (b - c);
    else if constexpr (C == Code::tanh_fma) return vtanh(a * b + c);
    else if constexpr (C == Code::sigmoid_fma) return vsigmoid(a * b + c);
    else if constexpr (C == Code::mul_tanh) return a * vtanh(b);
    else if constexpr (C == Code::mul_dsigmoid) return a * b * (c * (T(1) - c));
    else if constexpr (C == Code::mul_dtanh) return a * b * (T(1) - c * c);
    else if constexpr (C == Code::dtanh_add) return a * (T(1) - b * b) + c;
    else return (a + b) * (T(1) - c * c);  // add_dtanh
}

// Where a value of the tape stands: the number at row m, unit u is base[m * row + u]. row 0 repeats one row.
template <class T> struct Operand {
    T* base;
    long row;
};

// One operation over a tile of `rows` x `units`. sum and sum_mul add up their rows into the one row of d.
template <class T, Code C>
void over_tile(Operand<T> d, Operand<T> a, Operand<T> b, Operand<T> c, int rows, int units, T k0, T k1) {
    constexpr int L = lanes<T>, N = operands(C);
    const int whole = units / L * L, rest = units - whole;
    if constexpr (C == Code::sum || C == Code::sum_mul) {
        for (int u = 0; u < units; u += L) {
            const int n = least(L, units - u);
            Vec<T> total = load_part(d.base + u, n);
            for (int m = 0; m < rows; m++) {
                const T *pa = a.base + m * a.row + u, *pb = N > 1 ? b.base + m * b.row + u : pa;
                Vec<T> va = n == L ? load(pa) : load_part(pa, n);
                if constexpr (C == Code::sum_mul) total = va * (n == L ? load(pb) : load_part(pb, n)) + total;
                else total = total + va;
            }
            store_part(d.base + u, total, n);
        }
        return;
    }
    for (int m = 0; m < rows; m++) {
        T* pd = d.base + m * d.row;
        const T* pa = a.base + m * a.row;
        const T* pb = N > 1 ? b.base + m * b.row : pa;
        const T* pc = N > 2 ? c.base + m * c.row : pa;
#pragma GCC unroll 4
        for (int u = 0; u < whole; u += L) {
            Vec<T> va = load(pa + u), vb = va, vc = va;
            if (N > 1) vb = load(pb + u);
            if (N > 2) vc = load(pc + u);
            store(pd + u, compute<T, C>(va, vb, vc, k0, k1));
        }
        if (rest) {
            // What stands beyond the row's end is 1: no operation makes an exception of it.
            Vec<T> va = spread(T(1)), vb = va, vc = va;
            std::memcpy(&va, pa + whole, rest * sizeof(T));
            if (N > 1) std::memcpy(&vb, pb + whole, rest * sizeof(T));
            if (N > 2) std::memcpy(&vc, pc + whole, rest * sizeof(T));
            store_part(pd + whole, compute<T, C>(va, vb, vc, k0, k1), rest);
        }
    }
}

template <class T>
using TileFunction = void (*)(Operand<T>, Operand<T>, Operand<T>, Operand<T>, int, int, T, T);

template <class T> inline constexpr TileFunction<T> tile_functions[] = {
#define X(name) over_tile<T, Code::name>,
    TT_OPERATIONS(X)
#undef X
};

}  // namespace TT_ISA
