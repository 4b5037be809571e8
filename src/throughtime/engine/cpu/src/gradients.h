// The gradients of the weights and of x, for one chunk of steps whose dz stands in memory.
//
// Each thread owns a range of units and adds up its rows of dW, dU and db over all sequences: nothing is summed over
// threads, and the result does not depend on their number.
#pragma once
#include "step.h"

namespace TT_ISA {

// The rows of a chunk that a gradient is multiplied with: row r of `width` numbers, in bf16 as its bits.
struct Rows {
    const void* const* at;
    long width;
    bool bf16;
};

// A left side, and the rows of the gradient that it belongs to; `add`: to what is there.
template <class T> struct Block {
    Operand<T> a;
    T* d;
    bool add;
};

// Units of the left side that stay near while every panel of the right side passes.
constexpr long units_at_once = 192;

template <class T, bool PAIRS> struct Gradients {
    static constexpr bool on_tiles = PAIRS && has_tiles;
    const long most_rows;
    const long most_panels;
    T* panels;  // the right side, [rows, panel width] each
    T* left;    // bf16: pairs of rows of the left side

    Gradients(long most_rows, long most_units, long most_columns)
        : most_rows(on_tiles ? round_up(most_rows, 32) : most_rows),
          most_panels(least(16l, (most_columns - 1) / (widest * lanes<T>) + 1)),
          panels(take<T>(most_panels * this->most_rows * widest * lanes<T>)),
          left(PAIRS ? take<T>((this->most_rows / 2 + 1) * most_units) : nullptr) {}

    // d[units, width] (+)= a^T b for each of `n_blocks` pairs of a left side a [rows, units] and its rows d of a gradient.
    // The right side is copied into panels, once for all of them.
    void outer(const Block<T>* blocks, int n_blocks, Rows b, long units, long rows) {
        if (units <= 0) return;
        constexpr int L = lanes<T>;
        const long words = on_tiles ? round_up(rows, 32) / 2 : (PAIRS ? (rows + 1) / 2 : rows);
        if constexpr (on_tiles)
            for (int i = 0; i < n_blocks; i++) join_columns(left + i * words * units, blocks[i].a, units, rows, words);
        else if constexpr (PAIRS)
            for (int i = 0; i < n_blocks; i++) join_rows(left + i * words * units, blocks[i].a, units, rows);
        constexpr long wide = widest * L;
        for (long first = 0; first < b.width; first += most_panels * wide) {
            const long past = least(b.width, first + most_panels * wide);
            for (long n = first; n < past; n += wide) {
                const long width = round_up(least(wide, b.width - n), L);
                T* end = copy_panel(b, n, width, rows, panels + (n - first) * words);
                if (on_tiles) std::memset(end, 0, (words - (rows + 1) / 2) * width * sizeof(T));
            }
            // Some units of the left side at a time, which stay near for all panels.
            const long some = past - first > wide ? units_at_once : units;
            for (int i = 0; i < n_blocks; i++)
                for (long u = 0; u < units; u += some)
                    for (long n = first; n < past; n += wide) {
                        const long left_over = b.width - n;
                        const int vectors = least<long>(widest, (left_over + L - 1) / L);
                        const int part = least<long>(left_over - (vectors - 1) * L, L);
                        T* d = blocks[i].d + u * b.width + n;
                        const T* panel = panels + (n - first) * words;
                        const Target<T> sums = {d, b.width, blocks[i].add ? d : nullptr, b.width, part};
                        if constexpr (on_tiles) {
                            const Left<T> A = {left + (i * units + u) * words, words, 1};
                            times_panel_on_tiles<T>(least(some, units - u), words, A, panel, vectors, sums);
                        } else {
                            Left<T> A = {blocks[i].a.base + u, 1, blocks[i].a.row};
                            if constexpr (PAIRS) A = {left + i * words * units + u, 1, units};
                            times_panel<T, true, PAIRS>(least(some, units - u), words, A, panel, vectors, sums);
                        }
                    }
        }
    }

    // d[k, u] = the pair (a[2k, u], a[2k + 1, u]).
    void join_rows(T* d, Operand<T> a, long units, long rows) {
        for (long k = 0; k < rows; k += 2, d += units)
            join(d, a.base + k * a.row, k + 1 < rows ? a.base + (k + 1) * a.row : nullptr, units);
    }

    // d[u, k] = the pair (a[2k, u], a[2k + 1, u]): as tiles read it, not turned, and zero from the last row to `words`.
    static void join_columns(T* d, Operand<T> a, long units, long rows, long words) {
        alignas(64) T block[16][16];
        for (long k = 0; k < words; k += 16)
            for (long u = 0; u < units; u += 16) {
                const long n = least(16l, units - u);
                for (long i = 0, r = 2 * k; i < 16; i++, r += 2) {
                    if (n < 16 || r >= rows) std::memset(block[i], 0, sizeof block[i]);
                    if (r >= rows) continue;
                    const T* low = a.base + r * a.row + u;
                    join(block[i], low, r + 1 < rows ? low + a.row : nullptr, n);
                }
                turn(block);
                for (long j = 0; j < n; j++) std::memcpy(d + (u + j) * words + k, block[j], sizeof block[j]);
            }
    }

    static TT_INLINE void turn(T (&block)[16][16]) {
#if TT_BYTES == 64 && defined(__AVX512F__)
        // Numbers change places 1 apart within pairs of rows 1 apart, then 2, 4 and 8.
        __m512i v[16], w[16];
        for (int i = 0; i < 16; i++) v[i] = _mm512_load_si512(block[i]);
        for (int i = 0; i < 16; i += 2) {
            w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
            w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int j = 0; j < 2; j++) {
                v[i + 2 * j] = _mm512_unpacklo_epi64(w[i + j], w[i + j + 2]);
                v[i + 2 * j + 1] = _mm512_unpackhi_epi64(w[i + j], w[i + j + 2]);
            }
        for (int i = 0; i < 16; i += 8)
            for (int j = 0; j < 4; j++) {
                w[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
                w[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
            }
        for (int j = 0; j < 8; j++) {
            _mm512_store_si512(block[j], _mm512_shuffle_i32x4(w[j], w[j + 8], 0x88));
            _mm512_store_si512(block[j + 8], _mm512_shuffle_i32x4(w[j], w[j + 8], 0xdd));
        }
#else
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < i; j++) {
                const T a = block[i][j];
                block[i][j] = block[j][i];
                block[j][i] = a;
            }
#endif
    }

    // d[j] = the pair (low[j], high[j]), from float32 or from bf16; without a high row its half is zero.
    template <class S> static void join(T* d, const S* low, const S* high, long n) {
        long j = 0;
#if TT_BYTES == 64 && defined(__AVX512BF16__)
        for (; j + 16 <= n; j += 16) {
            __m512i both = sixteen(low + j);
            if (high) both = _mm512_or_si512(both, _mm512_slli_epi32(sixteen(high + j), 16));
            _mm512_storeu_si512(d + j, both);
        }
#endif
        for (; j < n; j++) {
            const uint32_t both = half(low[j]) | (high ? half(high[j]) : 0) << 16;
            std::memcpy(d + j, &both, 4);
        }
    }

#if TT_BYTES == 64 && defined(__AVX512BF16__)
    static TT_INLINE __m512i sixteen(const uint16_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
    static TT_INLINE __m512i sixteen(const float* p) {
        return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(p)));
    }
#endif
    static TT_INLINE uint32_t half(uint16_t a) { return a; }
    static TT_INLINE uint32_t half(float a) { return to_bf16(a); }

    // Returns where the panel ends.
    T* copy_panel(Rows b, long n, long width, long rows, T* d) {
        const long real = least(width, b.width - n);
        for (long k = 0; k < rows; k += PAIRS ? 2 : 1, d += width) {
            if constexpr (PAIRS) {
                const void *low = b.at[k], *high = k + 1 < rows ? b.at[k + 1] : nullptr;
                if (b.bf16) join(d, (const uint16_t*)low + n, high ? (const uint16_t*)high + n : nullptr, real);
                else join(d, (const T*)low + n, high ? (const T*)high + n : nullptr, real);
            } else if (b.bf16) {
                for (long j = 0; j < real; j++) d[j] = from_bf16(((const uint16_t*)b.at[k])[n + j]);
            } else {
                std::memcpy(d, (const T*)b.at[k] + n, real * sizeof(T));
            }
            for (long j = real; j < width; j++) d[j] = 0;
        }
        return d;
    }

    // d[units] (+)= the sum of the rows of a.
    static void column_sums(T* d, Operand<T> a, long units, long rows, bool add) {
        constexpr int L = lanes<T>;
        for (long u = 0; u < units; u += L) {
            const int n = least<long>(L, units - u);
            Vec<T> sum = {};
            if (add) sum = load_part(d + u, n);
            for (long m = 0; m < rows; m++) sum = sum + (n == L ? load(a.base + m * a.row + u) : load_part(a.base + m * a.row + u, n));
            store_part(d + u, sum, n);
        }
    }
};

}  // namespace TT_ISA
