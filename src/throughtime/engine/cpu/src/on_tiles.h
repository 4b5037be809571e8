// Products of bf16 pairs on tiles: C = Cin + A B, B in the same panels as for vectors, whose order tiles share.
//
// A block of C is 2 x 2 registers of 16 x 16 sums, or 1 x 4 where there are no more than 16 rows; two registers hold A,
// two B. Rows beyond a multiple of 16 make the last registers lower; words beyond a multiple of 16 are copied and
// padded with zeros, in A and in B, for what stands beyond them in memory may be NaN.
#pragma once
#include "gemm.h"
#include "tiles.h"

namespace TT_ISA {

#if TT_TILES

// The shapes of this thread's registers: C of the upper and of the lower rows. 0: none are loaded.
inline thread_local int loaded_shapes = 0;

// Loads shapes for blocks of `upper` and, below them, `lower` rows: registers 0 and 1 (2 and 3) of C, 4 (5) of A.
inline void shape_tiles(int upper, int lower) {
    const int wanted = upper << 8 | lower;
    if (loaded_shapes == wanted) return;
    TileShapes s{};
    s.palette = 1;
    for (int i = 0; i < 8; i++) s.bytes[i] = 64;
    s.rows[0] = s.rows[1] = s.rows[4] = upper;
    s.rows[2] = s.rows[3] = s.rows[5] = lower;
    s.rows[6] = s.rows[7] = tile_rows;
    tile_configure(s);
    loaded_shapes = wanted;
}

// Whoever used tiles before on this thread may have left any shapes, and who comes after shall find none.
struct TilesInUse {
    TilesInUse() { loaded_shapes = 0; }
    ~TilesInUse() {
        if (loaded_shapes) tile_release();
        loaded_shapes = 0;
    }
};

// The last words of A and of B, padded with zeros to whole tiles.
template <class T> struct Tail {
    alignas(64) T a[2 * tile_rows][tile_words];
    alignas(64) T b[tile_words * widest * tile_words];

    void copy_b(const T* from, int words, int width) {
        std::memcpy(b, from, words * width * sizeof(T));
        std::memset(b + words * width, 0, (tile_words - words) * width * sizeof(T));
    }
    void copy_a(const T* from, long row, int rows, int words) {
        for (int i = 0; i < rows; i++) {
            std::memcpy(a[i], from + i * row, words * sizeof(T));
            std::memset(a[i] + words, 0, (tile_words - words) * sizeof(T));
        }
    }
};

// One step of a block's sum: 16 words of every row. b: the registers' columns of B, `width` from row to row.
template <class T, int TR, int TC> TT_INLINE void add_words(const T* a, long row, const T* b, int width) {
    const long bytes = sizeof(T);
    tile_load<4>(a, row * bytes);
    if constexpr (TR == 2) tile_load<5>(a + tile_rows * row, row * bytes);
    tile_load<6>(b, width * bytes);
    tile_product<0, 4, 6>();
    if constexpr (TR == 2) tile_product<2, 5, 6>();
    if constexpr (TC > 1) {
        tile_load<7>(b + tile_words, width * bytes);
        tile_product<1, 4, 7>();
        if constexpr (TR == 2) tile_product<3, 5, 7>();
    }
    if constexpr (TC > 2) {
        tile_load<6>(b + 2 * tile_words, width * bytes);
        tile_product<2, 4, 6>();
    }
    if constexpr (TC > 3) {
        tile_load<7>(b + 3 * tile_words, width * bytes);
        tile_product<3, 4, 7>();
    }
}

// Register N of C and its 16 columns in memory, of which `part` belong to it.
template <class T, int N> TT_INLINE void load_sums(const T* in, long row, int rows, int part) {
    if (!in) {
        tile_zero<N>();
    } else if (part == tile_words) {
        tile_load<N>(in, row * sizeof(T));  // one row repeated: from one row to the next it is 0
    } else {
        alignas(64) T whole[tile_rows][tile_words] = {};
        for (int i = 0; i < rows; i++) std::memcpy(whole[i], in + i * row, part * sizeof(T));
        tile_load<N>(whole, sizeof whole[0]);
    }
}

template <class T, int N> TT_INLINE void store_sums(T* c, long row, int rows, int part) {
    if (part == tile_words) {
        tile_store<N>(c, row * sizeof(T));
    } else {
        alignas(64) T whole[tile_rows][tile_words];
        tile_store<N>(whole, sizeof whole[0]);
        for (int i = 0; i < rows; i++) std::memcpy(c + i * row, whole[i], part * sizeof(T));
    }
}

template <int N> struct Register {
    static constexpr int number = N;
};

// act(register, its first row and column, its rows, its columns) for each of a block's TR x TC registers of C.
template <int TR, int TC, class Act> TT_INLINE void for_each_register(int rows, int part, Act act) {
    constexpr int tall = tile_rows, wide = tile_words;
    const int upper = TR == 2 ? tall : rows, lower = rows - tall;
    act(Register<0>{}, 0, 0, upper, TC == 1 ? part : wide);
    if constexpr (TC > 1) act(Register<1>{}, 0, wide, upper, TC == 2 ? part : wide);
    if constexpr (TR == 2) act(Register<2>{}, tall, 0, lower, TC == 1 ? part : wide);
    if constexpr (TR == 2 && TC > 1) act(Register<3>{}, tall, wide, lower, part);
    if constexpr (TR == 1 && TC > 2) act(Register<2>{}, 0, 2 * wide, upper, TC == 3 ? part : wide);
    if constexpr (TR == 1 && TC > 3) act(Register<3>{}, 0, 3 * wide, upper, part);
}

// A block of TR x TC registers, `rows` rows. The words beyond whole tiles stand in `tail`, those of B from `b_tail` on.
template <class T, int TR, int TC>
void tile_block(int rows, int K, Left<T> A, const T* B, int width, const Tail<T>& tail, const T* b_tail, Target<T> C) {
    shape_tiles(TR == 2 ? tile_rows : rows, TR == 2 ? rows - tile_rows : rows);
    for_each_register<TR, TC>(rows, C.part, [&](auto n, int i, int j, int height, int part) {
        load_sums<T, decltype(n)::number>(C.in ? C.in + i * C.in_row + j : nullptr, C.in_row, height, part);
    });
    int k = 0;
    for (; k + tile_words <= K; k += tile_words) add_words<T, TR, TC>(A.a + k, A.row, B + (long)k * width, width);
    if (k < K) add_words<T, TR, TC>(tail.a[0], tile_words, b_tail, width);
    for_each_register<TR, TC>(rows, C.part, [&](auto n, int i, int j, int height, int part) {
        store_sums<T, decltype(n)::number>(C.c + i * C.row + j, C.row, height, part);
    });
}

// At most 32 rows against one panel.
template <class T> void tile_row(int rows, int K, Left<T> A, const T* B, int vectors, Tail<T>& tail, Target<T> C) {
    const int width = vectors * tile_words, whole = K / tile_words * tile_words;
    if (whole < K) tail.copy_a(A.a + whole, A.row, rows, K - whole);
    if (rows > tile_rows) {
        for (int j = 0; j < vectors; j += 2) {
            const int n = j * tile_words;
            Target<T> c = {C.c + n, C.row, C.in ? C.in + n : nullptr, C.in_row, j + 2 < vectors ? tile_words : C.part};
            if (j + 1 < vectors) tile_block<T, 2, 2>(rows, K, A, B + n, width, tail, tail.b + n, c);
            else tile_block<T, 2, 1>(rows, K, A, B + n, width, tail, tail.b + n, c);
        }
        return;
    }
    switch (vectors) {
    case 1: tile_block<T, 1, 1>(rows, K, A, B, width, tail, tail.b, C); break;
    case 2: tile_block<T, 1, 2>(rows, K, A, B, width, tail, tail.b, C); break;
    case 3: tile_block<T, 1, 3>(rows, K, A, B, width, tail, tail.b, C); break;
    default: tile_block<T, 1, 4>(rows, K, A, B, width, tail, tail.b, C);
    }
}

// As times_panel of gemm.h, for A that is not turned: the sum in blocks of B that stay in the second-level cache.
template <class T> void times_panel_on_tiles(int M, int K, Left<T> A, const T* panel, int vectors, Target<T> C) {
    if (M <= 0) return;
    constexpr int most_rows = 2 * tile_rows;
    const int width = vectors * tile_words, most_words = block_bytes / (int)sizeof(T) / width;
    const int blocks = M <= most_rows ? 1 : most(1, (K + most_words - 1) / most_words);
    const int block = most<int>(tile_words, round_up((K + blocks - 1) / blocks, tile_words));
    Tail<T> tail;
    for (int k = 0; k == 0 || k < K; k += block) {
        const int kc = least(block, K - k), whole = kc / tile_words * tile_words;
        const T* b = panel + (long)k * width;
        if (whole < kc) tail.copy_b(b + (long)whole * width, kc - whole, width);
        for (int m = 0; m < M; m += most_rows) {
            const Target<T> c = from_row(C, m, k > 0);
            tile_row(least(most_rows, M - m), kc, {A.a + m * A.row + k, A.row, 1}, b, vectors, tail, c);
        }
    }
}

constexpr bool has_tiles = true;

#else

constexpr bool has_tiles = false;
template <class T> void times_panel_on_tiles(int M, int K, Left<T> A, const T* panel, int vectors, Target<T> C);
struct TilesInUse {};

#endif

// Below so many rows vectors multiply: three quarters of a tile and more would be empty, and its start costs as much.
constexpr int rows_for_tiles = 4;

}  // namespace TT_ISA
