// The product: register-blocked tiles of rows x panel columns, C = Cin + A B, B packed in panels (packing.h).
//
// A tile keeps its part of C in registers over the whole sum. With 32 vector registers 6 x 4 vectors, 8 x 3 or 12 x 2
// reach nine tenths of the machine's peak even with B in the second-level cache; with 16 registers it is 6 x 2. What
// comes from further away is fetched ahead: the lines of C that a tile ends in, and the block of B after this one.
#pragma once
#include "simd.h"

namespace TT_ISA {

#if TT_BYTES == 64
constexpr int widest = 4;  // vectors across a panel, at most
constexpr int tallest[] = {0, 12, 12, 8, 6};  // rows of a tile, by the vectors across
constexpr int ahead = 8;  // rows of B that are fetched before their turn
#elif TT_BYTES == 32
constexpr int widest = 2;
constexpr int tallest[] = {0, 6, 6};
constexpr int ahead = 8;
#else
constexpr int widest = 2;
constexpr int tallest[] = {0, 6, 4};
constexpr int ahead = 0;
#endif
constexpr int far_ahead = 16;         // rows of a turned A, likewise
constexpr int block_bytes = 1 << 17;  // of B: what is used again stays in the second-level cache

// One word of the sum: a number, or under bf16 a pair of numbers whose two products are added.
template <class T, bool PAIRS> TT_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
#if TT_BYTES == 64 && defined(__AVX512BF16__)
    if constexpr (PAIRS) return (Vec<T>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#elif defined(TT_EMULATE_TILES)
    if constexpr (PAIRS) {
        const Mask<T> high = (Mask<T>)(spread(0.0f) == spread(0.0f)) << 16;
        c = (Vec<T>)((Mask<T>)a & high) * (Vec<T>)((Mask<T>)b & high) + c;
        return (Vec<T>)((Mask<T>)a << 16) * (Vec<T>)((Mask<T>)b << 16) + c;
    }
#endif
    return a * b + c;
}

// Where A stands: element (row i, sum k) at a[i * row + k * col]; one of the strides is 1.
template <class T> struct Left {
    const T* a;
    long row, col;
};

// C and Cin: rows apart by `row` and `in_row`; in = nullptr stands for 0, in_row = 0 for one row repeated.
// `part` numbers of the last vector belong to C, all of them unless C is not padded.
template <class T> struct Target {
    T* c;
    long row;
    const T* in;
    long in_row;
    int part;
};

// What a tile brings nearer while it computes: at each k the lines from `at` on, `line` apart, and then `step` further.
template <class T> struct Fetch {
    const T* at;
    long line, step;
};

template <class T, int MR, int NV, bool TURNED, bool PAIRS>
void gemm_tile(int K, Left<T> A, const T* B, Target<T> C, Fetch<T> f) {
    constexpr int L = lanes<T>, W = NV * L;
    constexpr int KU = MR * NV >= 10 ? 1 : (MR * NV >= 4 ? 2 : 4);  // enough sums side by side to hide the latency
    const long row = TURNED ? 1 : A.row, col = TURNED ? A.col : 1;
    const bool whole = C.part == L;
    Vec<T> acc[KU][MR][NV];
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
        if (MR >= 3 && ahead) {  // C is wanted at the end
            const T* p = (C.in ? C.in + i * C.in_row : C.c + i * C.row);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) __builtin_prefetch(p + j * L);
        }
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
#pragma GCC unroll 4
            for (int q = 0; q < KU; q++) acc[q][i][j] = Vec<T>{};
    }
    const T* a = A.a;
    int k = 0;
    for (; k + KU <= K; k += KU) {
#pragma GCC unroll 4
        for (int q = 0; q < KU; q++) {
            Vec<T> b[NV];
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) {
                b[j] = load(B + q * W + j * L);
                if (MR >= 3 && ahead) __builtin_prefetch(f.at + j * f.line);
            }
            if (MR >= 3 && ahead) f.at += f.step;
            // A's next rows lie too far apart for the processor to guess.
            if (TURNED && ahead) __builtin_prefetch(a + (q + far_ahead) * col);
#pragma GCC unroll 12
            for (int i = 0; i < MR; i++) {
                Vec<T> v = spread(a[i * row + q * col]);
#pragma GCC unroll 4
                for (int j = 0; j < NV; j++) acc[q][i][j] = multiply_add<T, PAIRS>(v, b[j], acc[q][i][j]);
            }
        }
        B += KU * W;
        a += KU * col;
    }
    for (; KU > 1 && k < K; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++) {
            Vec<T> v = spread(a[i * row]);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) acc[0][i][j] = multiply_add<T, PAIRS>(v, load(B + j * L), acc[0][i][j]);
        }
        B += W;
        a += col;
    }
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            Vec<T> v = acc[0][i][j];
#pragma GCC unroll 4
            for (int q = 1; q < KU; q++) v = v + acc[q][i][j];
            const bool full = j < NV - 1 || whole;
            if (C.in) {
                const T* p = C.in + i * C.in_row + j * L;
                v = v + (full ? load(p) : load_part(p, C.part));
            }
            T* p = C.c + i * C.row + j * L;
            if (full) store(p, v);
            else store_part(p, v, C.part);
        }
}

template <class T> using TileKernel = void (*)(int, Left<T>, const T*, Target<T>, Fetch<T>);

// The kernel for `rows` rows and NV vectors; compiled for every number of rows up to the tallest.
template <class T, int NV, bool TURNED, bool PAIRS, int MR = 1> TT_INLINE TileKernel<T> pick(int rows) {
    if constexpr (MR < tallest[NV]) {
        if (rows > MR) return pick<T, NV, TURNED, PAIRS, MR + 1>(rows);
    }
    return gemm_tile<T, MR, NV, TURNED, PAIRS>;
}

template <class T, bool TURNED, bool PAIRS> TileKernel<T> tile_kernel(int rows, int vectors) {
    switch (vectors) {
    case 1: return pick<T, 1, TURNED, PAIRS>(rows);
#if TT_BYTES == 64
    case 3: return pick<T, 3, TURNED, PAIRS>(rows);
    case 4: return pick<T, 4, TURNED, PAIRS>(rows);
#endif
    default: return pick<T, 2, TURNED, PAIRS>(rows);
    }
}

// C from row m on; `adding`: to the sums that earlier blocks left there.
template <class T> TT_INLINE Target<T> from_row(Target<T> C, int m, bool adding) {
    C.c += m * C.row;
    if (adding) {
        C.in = C.c;
        C.in_row = C.row;
    } else if (C.in) {
        C.in += m * C.in_row;
    }
    return C;
}

// Rows of any number against one panel [K, vectors * lanes]: even tiles, and the sum in blocks that stay in the
// second-level cache where the panel is used more than once.
template <class T, bool TURNED, bool PAIRS>
void times_panel(int M, int K, Left<T> A, const T* panel, int vectors, Target<T> C) {
    if (M <= 0) return;
    const int tiles = (M + tallest[vectors] - 1) / tallest[vectors], least_rows = M / tiles, more = M % tiles;
    const int width = vectors * lanes<T>;
    const int most_words = block_bytes / sizeof(T) / width, blocks = tiles == 1 ? 1 : (K + most_words - 1) / most_words;
    const int block = most(1, (K + blocks - 1) / most(1, blocks));
    const TileKernel<T> small = tile_kernel<T, TURNED, PAIRS>(least_rows, vectors);
    const TileKernel<T> large = more ? tile_kernel<T, TURNED, PAIRS>(least_rows + 1, vectors) : small;
    for (int k = 0; k == 0 || k < K; k += block) {
        const int kc = least(block, K - k);
        const T* b = panel + (long)k * width;
        Fetch<T> fetch = {b + ahead * width, lanes<T>, width};
        for (int i = 0, m = 0; i < tiles; i++) {
            const int rows = least_rows + (i < more);
            const Target<T> c = from_row(C, m, k > 0);
            (i < more ? large : small)(kc, {A.a + m * A.row + k * A.col, A.row, A.col}, b, c, fetch);
            // The first tile has brought this block of B; the others bring what follows it, a line at each k.
            if (i == 0) fetch = {b + (long)kc * width, 0, lanes<T>};
            else fetch.at += (long)kc * lanes<T>;
            m += rows;
        }
    }
}

}  // namespace TT_ISA
