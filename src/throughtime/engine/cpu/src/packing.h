// Weights in the order in which the product reads them: panels of neighbouring columns, the whole sum one after another.
#pragma once
#include "interface.h"
#include "on_tiles.h"

namespace TT_ISA {

// The panels of a matrix B [K, N] (several of one size: `groups`). Panel p holds columns [p * width, ...), the last one
// only as many vectors as it needs, padded with zeros.
template <class T> struct Panels {
    const T* data;
    int K, N, width, groups;

    TT_INLINE explicit Panels(const tt_panels& p)
        : data((const T*)p.data), K(p.words), N(p.columns), width(p.width), groups(p.groups) {}
    TT_INLINE int padded() const { return round_up(N, lanes<T>); }
    TT_INLINE const T* panel(int group, int first_column) const {
        return data + (long)group * K * padded() + (long)first_column * K;
    }
};

// C[:, columns) = Cin + A B[:, columns). C and Cin point at column 0 of the matrix; `exact`: C has no padding.
template <class T, bool PAIRS>
void multiply(const Panels<T>& B, int group, int first, int past, int M, Left<T> A, Target<T> C, bool exact) {
    constexpr int L = lanes<T>;
    past = least(past, exact ? B.N : B.padded());
    for (int n = first; n < past; n += B.width) {
        const int left = (exact ? B.N : B.padded()) - n, vectors = (least(B.width, left) + L - 1) / L;
        Target<T> c = C;
        c.c += n;
        if (c.in) c.in += n;
        c.part = least(left - (vectors - 1) * L, L);
        if constexpr (PAIRS && has_tiles) {
            if (M >= rows_for_tiles) {
                times_panel_on_tiles<T>(M, B.K, A, B.panel(group, n), vectors, c);
                continue;
            }
        }
        times_panel<T, false, PAIRS>(M, B.K, A, B.panel(group, n), vectors, c);
    }
}

TT_INLINE uint32_t to_bf16(float a) {
    uint32_t bits;
    std::memcpy(&bits, &a, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0 | (bits >> 16 & 0x8000);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
TT_INLINE float from_bf16(uint32_t a) {
    a <<= 16;
    float v;
    std::memcpy(&v, &a, 4);
    return v;
}

// Word k of a sum over n numbers that stand `stride` apart: the number itself, or the pair 2k, 2k + 1 in bf16.
template <class T, class S, bool PAIRS> TT_INLINE T word(const S* s, long stride, long k, long n) {
    if constexpr (PAIRS) {
        const uint32_t low = s[2 * k * stride], high = 2 * k + 1 < n ? s[(2 * k + 1) * stride] : 0;
        const uint32_t both = low | high << 16;
        T v;
        std::memcpy(&v, &both, 4);
        return v;
    } else if constexpr (sizeof(S) == 2) {
        return from_bf16(s[k * stride]);
    } else {
        return s[k * stride];
    }
}

// Packs panels [from, to), counted over all groups, from a weight of type S (bf16 as its bits).
template <class T, class S, bool PAIRS> void pack_some(const tt_packing& p, long from, long to) {
    constexpr int L = lanes<T>, per_word = PAIRS ? 2 : 1;
    const S* source = (const S*)p.source;
    const long N = p.turned ? p.rows : p.source_columns, padded = round_up(N, L);
    const long per_group = (N + p.width - 1) / p.width;
    for (long q = from; q < to; q++) {
        const long g = q / per_group, n0 = q % per_group * p.width;
        const long w = least(n0 + p.width, padded) - n0, real = least(n0 + w, N) - n0;
        T* d = (T*)p.out + g * p.words * padded + n0 * p.words;
        if (p.turned) {
            // Column n of the panel is a row of the weight: sixteen words of every row in turn.
            const S* rows = source + (p.blocks[g] * p.rows + n0) * p.stride;
            for (long k0 = 0; k0 < p.words; k0 += 16) {
                const long k1 = least(k0 + 16, p.words);
                for (long n = 0; n < w; n++)
                    for (long k = k0; k < k1; k++)
                        d[k * w + n] = n < real ? word<T, S, PAIRS>(rows + n * p.stride, 1, k, p.source_columns) : T(0);
            }
        } else {
            const long words = p.words / p.n_blocks;
            for (long b = 0; b < p.n_blocks; b++)
                for (long k = 0; k < words; k++, d += w) {
                    const S* s = source + p.blocks[b] * p.rows * p.stride + n0;
                    const bool there = k * per_word < p.rows;
                    for (long n = 0; n < real; n++) d[n] = there ? word<T, S, PAIRS>(s + n, p.stride, k, p.rows) : T(0);
                    for (long n = real; n < w; n++) d[n] = 0;
                }
        }
    }
}

template <class T> void pack(const tt_packing& p, long from, long to) {
    if (!p.source_bf16) pack_some<T, T, false>(p, from, to);
    else if constexpr (sizeof(T) == 4) {
        if (p.pairs) pack_some<T, uint16_t, true>(p, from, to);
        else pack_some<T, uint16_t, false>(p, from, to);
    }
}

}  // namespace TT_ISA
