// The eight tile registers of a thread, 16 rows of 64 bytes each: the processor's own (AMX), or with TT_EMULATE_TILES
// the same in plain C++, which stops the program where the processor would raise an exception.
//
// A register is named by a template argument, for the instructions carry its number. C [M, N] float32 takes A [M, K]
// and B [K, N], words of two bf16 numbers: every word of a row of A meets the row of B of its number.
#pragma once
#include "simd.h"

#if defined(__AMX_BF16__) || defined(TT_EMULATE_TILES)
#define TT_TILES 1
#else
#define TT_TILES 0
#endif

#if TT_TILES
#if defined(TT_EMULATE_TILES)
#include <cstdio>
#include <cstdlib>
#endif

namespace TT_ISA {

constexpr int tile_rows = 16, tile_words = 16;

// What LDTILECFG reads: for each register its bytes a row and its rows.
struct alignas(64) TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64, "the processor reads 64 bytes");

#if !defined(TT_EMULATE_TILES)

// GCC's intrinsics do not say that they read memory: what was written just before could be left out.
TT_INLINE void tile_configure(const TileShapes& s) { __asm__ volatile("ldtilecfg %0" ::"m"(s) : "memory"); }
TT_INLINE void tile_release() { __asm__ volatile("tilerelease" ::: "memory"); }
template <int N> TT_INLINE void tile_zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(N)); }
template <int N> TT_INLINE void tile_load(const void* p, long stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(N), "r"(p), "r"(stride) : "memory");
}
template <int N> TT_INLINE void tile_store(void* p, long stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(N), "r"(p), "r"(stride) : "memory");
}
template <int C, int A, int B> TT_INLINE void tile_product() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else

struct EmulatedTiles {
    TileShapes shapes{};
    uint32_t word[8][tile_rows][tile_words] = {};

    static void need(bool right, const char* instruction, const char* what) {
        if (right) return;
        std::fprintf(stderr, "%s: %s\n", instruction, what);
        std::abort();
    }
    int rows(int n) const { return shapes.rows[n]; }
    int words(int n) const { return shapes.bytes[n] / 4; }
    void need_shape(int n, const char* instruction) const {
        need(shapes.palette == 1, instruction, "no shapes are loaded");
        need(shapes.rows[n] && shapes.bytes[n], instruction, "the register has no shape");
    }
};
inline thread_local EmulatedTiles emulated_tiles;

inline void tile_configure(const TileShapes& s) {
    const char* name = "ldtilecfg";
    EmulatedTiles::need(s.palette == 1 && s.start_row == 0, name, "palette 1 from row 0 is meant");
    for (int i = 0; i < 14; i++) EmulatedTiles::need(!s.reserved[i], name, "a reserved byte is set");
    for (int i = 0; i < 16; i++) {
        EmulatedTiles::need(s.bytes[i] <= 64 && s.rows[i] <= 16, name, "a shape is too large");
        EmulatedTiles::need(!s.bytes[i] == !s.rows[i], name, "a shape has rows without bytes, or bytes without rows");
        EmulatedTiles::need(i < 8 || !s.rows[i], name, "there are eight registers");
        EmulatedTiles::need(s.bytes[i] % 4 == 0, name, "a row is whole words");
    }
    emulated_tiles = EmulatedTiles{};
    emulated_tiles.shapes = s;
}

inline void tile_release() { emulated_tiles = EmulatedTiles{}; }

template <int N> void tile_zero() {
    emulated_tiles.need_shape(N, "tilezero");
    std::memset(emulated_tiles.word[N], 0, sizeof emulated_tiles.word[N]);
}

template <int N> void tile_load(const void* p, long stride) {
    EmulatedTiles& t = emulated_tiles;
    t.need_shape(N, "tileloadd");
    std::memset(t.word[N], 0, sizeof t.word[N]);
    for (int i = 0; i < t.rows(N); i++) std::memcpy(t.word[N][i], (const char*)p + i * stride, t.shapes.bytes[N]);
}

template <int N> void tile_store(void* p, long stride) {
    EmulatedTiles& t = emulated_tiles;
    t.need_shape(N, "tilestored");
    for (int i = 0; i < t.rows(N); i++) std::memcpy((char*)p + i * stride, t.word[N][i], t.shapes.bytes[N]);
}

// The sums of the lower and of the upper halves of the words run side by side and meet at the end, as in TDPBF16PS.
template <int C, int A, int B> void tile_product() {
    const char* name = "tdpbf16ps";
    EmulatedTiles& t = emulated_tiles;
    t.need_shape(C, name);
    t.need_shape(A, name);
    t.need_shape(B, name);
    EmulatedTiles::need(A != B && B != C && A != C, name, "three registers are meant");
    EmulatedTiles::need(t.rows(C) == t.rows(A), name, "C and A differ in rows");
    EmulatedTiles::need(t.words(C) == t.words(B), name, "C and B differ in columns");
    EmulatedTiles::need(t.words(A) == t.rows(B), name, "the sum of A is not that of B");
    const auto number = [](uint32_t bits) {
        float v;
        std::memcpy(&v, &bits, 4);
        return v;
    };
    for (int m = 0; m < t.rows(C); m++) {
        float low[tile_words] = {}, high[tile_words] = {}, c[tile_words];
        for (int k = 0; k < t.rows(B); k++) {
            const uint32_t a = t.word[A][m][k];
            for (int n = 0; n < t.words(C); n++) {
                const uint32_t b = t.word[B][k][n];
                low[n] = __builtin_fmaf(number(a << 16), number(b << 16), low[n]);
                high[n] = __builtin_fmaf(number(a & 0xffff0000u), number(b & 0xffff0000u), high[n]);
            }
        }
        std::memcpy(c, t.word[C][m], sizeof c);
        for (int n = 0; n < t.words(C); n++) c[n] += low[n] + high[n];
        std::memcpy(t.word[C][m], c, sizeof c);
    }
}

#endif

}  // namespace TT_ISA
#endif
